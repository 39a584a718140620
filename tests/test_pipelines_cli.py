"""Schedules found for pipelines: by name, in a fresh process, on the command line; and the experiment on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import fewstep as fs
from fewstep.cli import app
from fewstep.cli.pipelines import folded, short_name
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.models import about, default_condition
from fewstep.networks.labels import innermost
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.report.found import made_for
from tests import tiny_pipelines

# diffusers and transformers warn about their own old spellings.
pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = "a small red cat\n\n  a photo of a dog\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with saved pipelines and a prompts file."""
    place = tmp_path_factory.mktemp("pipelines")
    for name in ("sd", "sd3", "dit"):
        tiny_pipelines.fresh(name).pipe.save_pretrained(place / name)
    (place / "prompts.txt").write_text(PROMPTS)
    return place


@pytest.fixture(autouse=True)
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def run(*args: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else " ".join(result.output.split())


SMALL = ("--height", "16", "--width", "16", "--prompts", "prompts.txt")


# ---------------------------------------------------------------------------------------------------------- by name
def test_a_name_with_options_is_the_pipeline_with_arguments() -> None:
    named = fs.load("diffusers:sd?prompts=prompts.txt&guidance=3&height=16&width=16&negative-prompt=blurry")
    pipe = tiny_pipelines.build("sd").pipe
    prompts = ["a small red cat", "a photo of a dog"]
    made = fs.from_diffusers(pipe, prompts, guidance=3.0, height=16, width=16, negative_prompt="blurry")
    assert named.fingerprint == made.fingerprint
    facts = about(named)
    assert facts["guidance"] == 3 and facts["height"] == 16 and facts["prompts"]["count"] == 2
    assert about(fs.load("diffusers:sd?prompts=prompts.txt"))["guidance"] == 7.5  # the pipeline's own


def test_embeddings_from_a_file(home: Path) -> None:
    model = fs.load("diffusers:sd?prompts=prompts.txt&guidance=1")
    save_file(innermost(model).leaves, home / "prompts.safetensors")
    again = fs.load("diffusers:sd?prompts=prompts.safetensors&guidance=1")
    mine, theirs = (default_condition(m, [1])["prompt_embeds"] for m in (model, again))
    assert torch.equal(mine, theirs)


def test_dtype_is_the_networks() -> None:
    model = fs.load("diffusers:sd3?prompts=prompts.txt&dtype=bfloat16&guidance=1&height=16&width=16")
    assert innermost(model).family.dtype == torch.bfloat16 and model.dtype == torch.float32


def test_classes_need_no_prompts() -> None:
    model = fs.load("diffusers:dit?guidance=1")
    assert default_condition(model, [5, 1005])["class_labels"].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diffusers:sd", "needs prompts"),
        ("diffusers:sd?prompts=absent.txt", "does not exist"),
        ("diffusers:sd?prompts=empty.txt", "is empty"),
        ("diffusers:sd?prompts=broken.safetensors", "as safetensors"),
        ("diffusers:nowhere?prompts=prompts.txt", "no model_index.json"),
        ("diffusers:sd?prompts=prompts.txt&dtype=float8", "give one of float32"),
        ("diffusers:sd?prompts=prompts.txt&height=tall", "give a whole number"),
        ("diffusers:sd?prompts=prompts.txt&steps=4", "no option of a pipeline; known are prompts"),
        ("diffusers:sd?prompts=prompts.txt&guidance=high", "not a number"),
        ("diffusers:other?prompts=prompts.txt", "KandinskyPipeline has no adapter here"),
        ("diffusers:", "is no model"),
    ],
)
def test_bad_names_are_refused(name: str, words: str, home: Path) -> None:
    (home / "empty.txt").write_text("\n \n")
    (home / "broken.safetensors").write_bytes(b"none")
    (home / "other").mkdir(exist_ok=True)
    (home / "other" / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ArgumentError, match=words):
        fs.load(name)


def test_options_are_folded_into_the_name() -> None:
    asked = {"prompts": Path("a&b=c.txt"), "negative_prompt": "50% grey + blue?", "height": 512, "offload": True}
    name = folded("diffusers:my/sd", asked)
    from urllib.parse import parse_qsl

    assert name is not None and name.count("?") == 1
    told = dict(parse_qsl(name.partition("?")[2], keep_blank_values=True))
    assert told["prompts"] == str(Path("a&b=c.txt").absolute()) and told["negative-prompt"] == "50% grey + blue?"
    assert told["height"] == "512" and told["offload"] == ""
    assert (
        short_name("diffusers:/models/my sd?guidance=2") == "my-sd"
        and short_name("mnist?guidance=2") == "mnist-guidance-2"
    )
    assert "mnist is none" in run("sample", "mnist", "--prompts", "prompts.txt", "--solver", "ddim", code=2)


# -------------------------------------------------------------------------------------------------- found, reloaded
@pytest.mark.parametrize(
    ("name", "method", "nfe"), [("sd", "dmn", 2), pytest.param("sd3", "ays", 2, marks=pytest.mark.slow)]
)
def test_optimize_saves_what_it_was_found_for(name: str, method: str, nfe: int, home: Path) -> None:
    model = fs.load(f"diffusers:{name}?prompts=prompts.txt&guidance=1&height=16&width=16")
    found = fs.optimize(
        model, nfe, method, max_calls=5000, teacher_calls=4, calibration=CalibrationSeeds(16),
        selection=SelectionSeeds(16), report=ReportSeeds(16), out=home / f"found-{name}",
    )  # fmt: skip
    assert found.tableau.nfe == nfe and found.complete
    meta = Found.load(home / f"found-{name}").tableau.meta
    assert meta["fingerprint"] == model.fingerprint and meta["network"]["guidance"] == 1
    assert meta["network"]["prompts"]["count"] == 2 and meta["network"]["width"] == 16
    judges = {
        "sliced Wasserstein distance to the teacher's end points of the same seeds",
        "sliced Wasserstein distance to 16 samples of the teacher",
        "RMS distance to the teacher",
    }
    assert set(found.report["after"]) == judges
    assert "2 prompts" in made_for(meta["network"]) and "16x16" in made_for(meta["network"])


def three(home: Path) -> tuple[Any, Any, tuple[Any, ...]]:
    """A network, a schedule of three calls in a file, and the command that samples with both."""
    model = fs.load("diffusers:sd?prompts=prompts.txt&guidance=3&height=16&width=16")
    table = fs.solvers.dpmpp_2m(fs.times.karras(model.noise, 3)).tabulate(model.noise)
    table.save(home / "three.json")
    command = ("sample", "diffusers:sd", *SMALL, "--guidance", "3", "--schedule", "three.json", "--seeds", "0-3")
    return model, table, command


def test_the_command_samples_the_same(home: Path) -> None:
    model, table, command = three(home)
    run(*command, "--out", "here.npy")
    mine = fs.sample(model, table, seeds=range(4), condition=default_condition(model, range(4)))
    assert np.abs(np.load(home / "here.npy") - mine.numpy()).max() < 1e-5
    run(*command, "--out", "here.png")
    assert (home / "here.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(run("compare", "diffusers:sd", *SMALL, "-g", "3", "--schedule", "three.json", "--solver", "ddim",
                          "--times", "karras", "-n", "4", "--json"))  # fmt: skip
    assert told["fingerprint"] == model.fingerprint and told["guidance"] == 3
    assert {row["solver"] for row in told["rows"]} == {"three.json", "ddim"}


@pytest.mark.slow
def test_a_fresh_process_samples_the_same(home: Path) -> None:
    """Ten seconds are for loading torch and diffusers once more."""
    model, table, command = three(home)
    subprocess.run([sys.executable, "-m", "fewstep", *command, "--out", "there.npy"], check=True, capture_output=True)
    mine = fs.sample(model, table, seeds=range(4), condition=default_condition(model, range(4)))
    assert np.abs(np.load(home / "there.npy") - mine.numpy()).max() < 1e-5


FEATURES = """
import torch
def colours():
    return lambda pixels: torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1)
def error():
    return lambda pixels: pixels.square().mean((1, 2, 3))
"""


@pytest.fixture
def features(home: Path) -> tuple[str, ...]:
    (home / "features_of_pictures.py").write_text(FEATURES)
    np.savez(home / "stats.npz", mu=np.zeros(6), sigma=np.eye(6))
    np.savez(home / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    return ("--features", "python:features_of_pictures:colours", "--reference", "stats.npz")


def test_features_see_decoded_pictures(features: tuple[str, ...]) -> None:
    base = ("compare", "diffusers:sd", *SMALL, "-g", "1", "--solver", "ddim", "--times", "karras", "--nfe", "2")
    told = json.loads(run(*base, "-n", "48", *features, "--json"))
    assert told["by"] == "fd" and told["rows"][0]["scores"]["fd"] > 0
    assert "belong together" in run(*base, *features[:2], code=2)
    assert "statistics of 5 features" in run(*base, *features[:3], "other.npz", code=2)


# ----------------------------------------------------------------------------------------------------- from end to end
@pytest.mark.slow
def test_command_line_from_search_to_report(home: Path, features: tuple[str, ...]) -> None:
    run("optimize", "diffusers:sd", *SMALL, "--nfe", "3", "--method", "dmn", "-g", "1", "--max-calls", "24000", "-q",
        "--no-around", *features)  # fmt: skip
    folder = home / "runs" / "sd-3"
    assert {p.name for p in folder.iterdir()} >= {"schedule.json", "search.json", "report.html", "samples.png"}
    assert Found.load(folder).selected_by.startswith("Fréchet distance, python:features_of_pictures")


@pytest.mark.slow
def test_search_over_solver_schedules_in_processes(home: Path) -> None:
    study = home / "study.sqlite"
    run("search", "start", "diffusers:sd", *SMALL, "-g", "1", "--nfe", "3", "--budget", "4", "--images", "4",
        "--proposer", "random", "--workers", "2", "--threads", "1", "--out", study, "-q")  # fmt: skip
    run("search", "resume", study, "--budget", "6", "-q")
    run("search", "front", study, "--save", home / "front")
    meta = json.loads((home / "front" / "nfe-3.json").read_text())["meta"]
    assert meta["network"]["height"] == 16 and meta["network"]["prompts"]["count"] == 2


@pytest.mark.slow
def test_experiment_goes_on_where_it_was(home: Path) -> None:
    command = ("reproduce", "text-to-image", "--model", "diffusers:sd", *SMALL, "-g", "1", "--nfe", "4", "--method",
               "dmn", "--images", "8", "--max-calls", "20000", "--out", home / "t2i", "--json")  # fmt: skip
    told = json.loads(run(*command))
    rows = {row["times"]: row for row in told["rows"]}
    assert {"found", "ays-sd15", "gits-sd15-dpmpp", "karras"} <= set(rows)
    assert rows["found"]["scores"]["rms"] > 0 and rows["gits-sd15-dpmpp"]["scores"]["rms"] > 0
    scores = (home / "t2i" / "scores.jsonl").read_bytes()
    assert json.loads(run(*command))["rows"] == told["rows"]
    assert (home / "t2i" / "scores.jsonl").read_bytes() == scores
    assert "| dpmpp_2m | found |" in (home / "t2i" / "table.md").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((), "Missing option '--model'"),
        (("--model", "diffusers:sd", *SMALL, "--edm", "x.pkl"), "No such option: --edm"),
        (("--model", "problem:gaussian", "--prompts", "prompts.txt"), "--prompts is for diffusers: models"),
        (("--model", "diffusers:sd"), "needs prompts"),
    ],
)
def test_experiment_refuses_bad_input(change: tuple[str, ...], words: str) -> None:
    assert words in run("reproduce", "text-to-image", *change, code=2)


def test_the_other_experiment_still_needs_its_files() -> None:
    assert "Missing option '--edm'" in run("reproduce", "ays-table5", code=2)
