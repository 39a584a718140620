"""EDM networks on the command line, and `fewstep reproduce ays-table5` from its files to its table."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewstep import models, times
from fewstep.clean import clean_images, drawn
from fewstep.cli import app
from fewstep.cli.reproducing_ays import rounds
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics import Statistics, frechet
from fewstep.randomness import ReportSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.s3.initial import initial
from fewstep.search.teacher import Teacher
from fewstep.study.reading import read
from fewstep.tableau import Tableau

from .edm_networks import DDPMPP, TINY, randn, write_pickle

SIZES = {"img_resolution": 8, "model_channels": 8, "channel_mult": [1], "attn_resolutions": [], "label_dim": 4}
CONFIG = {"class_name": "EDMPrecond"} | DDPMPP | TINY | SIZES
FEATURES = """
import torch
def make():
    matrix = torch.randn(192, 6, generator=torch.Generator().manual_seed(0)) / 14
    return lambda images: images.flatten(1).float().cpu() @ matrix
def wrong():
    return 3
"""


def invoke(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network, images with labels, statistics, and a feature module."""
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "network.pkl", CONFIG)
    pixels = (40 * randn(96, 8, 8, 3, seed=3) + 128).clamp(0, 255).to(torch.uint8).numpy()
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(96) % 4)
    (tmp_path / "features_for_test.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(tmp_path)
    flat = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    features = models.made_by("python:features_for_test:make")(flat).double()
    np.savez(tmp_path / "stats.npz", mu=features.mean(0).numpy(), sigma=features.T.cov().numpy())
    yield tmp_path
    import sys

    sys.modules.pop("features_for_test", None)


FILES = ("--edm", "network.pkl", "--data", "images.npz", "--reference", "stats.npz")
SMALL = (
    "--images", "48", "--nfe", "2,3", "--solver", "ddim", "--paths", "16", "--levels", "8",
    "--selection", "96", "--out", "runs", "--device", "cpu", "--quiet",
)  # fmt: skip


def test_the_objective_is_what_chooses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "NAMES", {name: times.NAMES[name] for name in ("karras", "logsnr")})
    asked: list[int] = []
    whole = Teacher.endpoints
    monkeypatch.setattr(Teacher, "__call__", lambda self, seeds, *more: asked.append(len(seeds)) or whole(self, seeds))
    features = ("--features", "python:features_for_test:make", "--trust-pickle")
    command = ("reproduce", "ays-table5", *FILES, *features, *SMALL[:2], "--nfe", "2", *SMALL[4:])
    invoke(*command)
    assert not asked  # the Fréchet distance, as in the paper
    chosen = (folder / "runs" / "chosen.jsonl").read_text()
    invoke(*command, "--objective", "faithful")
    assert asked and (folder / "runs" / "chosen.jsonl").read_text().startswith(chosen)
    assert "'nonsense': choose one of" in invoke(*command, "--objective", "nonsense", code=2)


def test_the_table_from_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "NAMES", {name: times.NAMES[name] for name in ("karras", "logsnr")})
    command = (
        "reproduce",
        "ays-table5",
        *FILES,
        "--features",
        "python:features_for_test:make",
        *SMALL,
        "--trust-pickle",
    )
    result: dict[str, Any] = json.loads(invoke(*command, "--json"))
    cells = result["cells"]
    assert {(n, kind) for n in (2, 3) for kind in ("hand", "ays")} <= {(c["nfe"], c["kind"]) for c in cells}
    assert all(len(c["times"]) == c["nfe"] + 1 and c["scores"][0]["fd"] > 0 for c in cells)
    table = (folder / "runs" / "table.md").read_text()
    assert table.startswith("| solver | 2 steps | 3 steps |")
    assert "..." not in table
    scores = (folder / "runs" / "scores.jsonl").read_text()
    assert invoke(*command).rstrip().endswith(table.rstrip())
    assert (folder / "runs" / "scores.jsonl").read_text() == scores  # all kept: the second run made none


USF = ("--edm", "network.pkl", "--reference", "stats.npz", "--features", "python:features_for_test:make")
TINY_SEARCH = (
    "--images", "48", "--nfe", "2-3", "--budget", "14", "--selection", "96", "--out", "usf", "--device", "cpu",
    "--proposer", "evolution", "--trust-pickle", "--quiet",
)  # fmt: skip


@pytest.mark.slow
def test_the_search_of_usf_from_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.search.s3.evolution.initial", lambda space, limit: initial(space, 6))
    command = ("reproduce", "usf-cifar10", *USF, *TINY_SEARCH)
    told: dict[str, Any] = json.loads(invoke(*command, "--json"))
    cells = {(cell["nfe"], cell["kind"]): cell for cell in told["cells"]}
    assert set(cells) == {(n, kind) for n in (2, 3) for kind in ("constant", "found")}
    contents = read(folder / "usf" / "search.sqlite")
    assert sum(entry.scored for entry in contents.entries.values()) == 28
    network = models.load("edm:network.pkl?trust-pickle")
    features = models.made_by("python:features_for_test:make")
    reference = Statistics.load(folder / "stats.npz")
    for (nfe, kind), cell in cells.items():
        scores = {e.trial.number: e.trial.scores[96] for e in contents.entries.values()
                  if e.trial.nfe == nfe and (kind == "found" or e.trial.proposal.stage == 0)}  # fmt: skip
        assert cell["trial"] == min(scores, key=lambda number: scores[number])
        assert cell["selected_by"] == min(scores.values())
        table = SolverSchedule.from_dict(cell["schedule"]).tabulate(network.noise)
        assert table.nfe == nfe
        seeds = ReportSeeds(48)
        made = sample(network, table, seeds=seeds, condition=models.default_condition(network, seeds))
        assert cell["fd"] == pytest.approx(frechet(Statistics.of(features(made).double()), reference), rel=1e-4)
    table = (folder / "usf" / "table.md").read_text()
    assert table.startswith("| | 2 calls | 3 calls |") and "n/a" not in table
    before = (folder / "usf" / "scores.jsonl").read_text()
    assert invoke(*command).rstrip().endswith(table.rstrip())  # all kept: the second run made none
    assert (folder / "usf" / "scores.jsonl").read_text() == before
    other = invoke(*command, "--selection", "100", code=2)
    assert "another search (counts [96] there, [100] now)" in " ".join(other.split())


FIELD = (
    "--images", "48", "--nfe", "3", "--methods", "ddim,dpmpp_2m:karras:min,heun,s3", "--max-calls", "600",
    "--selection", "16,32", "--teacher-calls", "8", "--out", "field", "--device", "cpu", "--trust-pickle", "--quiet",
)  # fmt: skip


def test_the_fields_table_from_files(folder: Path) -> None:
    command = ("reproduce", "cifar10-table", *USF, *FIELD)
    told: dict[str, Any] = json.loads(invoke(*command, "--json"))
    cells = {cell["method"]: cell for cell in told["cells"]}
    assert set(cells) == {"teacher", "ddim:karras", "dpmpp_2m:karras:min", "heun:karras", "s3"}
    network = models.load("edm:network.pkl?trust-pickle")
    features, seeds = models.made_by("python:features_for_test:make"), ReportSeeds(48)
    reference = Statistics.load(folder / "stats.npz")
    assert len(list((folder / "field" / "tables").glob("s3-3-0-*.json"))) == 1
    for method in ("dpmpp_2m:karras:min", "s3"):
        (file,) = (folder / "field" / "tables").glob(f"{method.replace(':', '-')}-3-0-*.json")
        made = sample(network, Tableau.load(file), seeds=seeds, condition=models.default_condition(network, seeds))
        scores = cells[method]["scores"]
        assert scores["distance"] == pytest.approx(frechet(Statistics.of(features(made).double()), reference), rel=1e-4)
        assert scores["excess"] == pytest.approx(
            scores["distance"] - cells["teacher"]["scores"]["distance"], rel=1e-3, abs=1e-4
        )
    assert cells["s3"]["cost"]["search_calls"] > 100 and cells["ddim:karras"]["cost"]["search_calls"] == 0
    before = (folder / "field" / "cells.jsonl").read_text()
    made = (folder / "field" / "made.jsonl").read_text()
    page = invoke(*command, "--data", "images.npz")  # now real images are behind precision and recall
    assert "| ddim:karras | " in page and "| s3 | " in page
    after = (folder / "field" / "cells.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 2 * len(before.splitlines())
    assert (folder / "field" / "made.jsonl").read_text() == made  # scored anew, and not searched
    assert "precision, the data" in (folder / "field" / "field.md").read_text()
    assert "no method" in invoke(*command, "--methods", "nonsense", code=2)


def test_bad_files(folder: Path) -> None:
    features = ("--features", "python:features_for_test:make")
    for change, words in [
        (("ays-table9", *FILES, *features), "No such command"),
        (("ays-table5", *FILES), "give --inception"),
        (("ays-table5", *FILES, *features), "can carry code"),
        (("ays-table5", *FILES, "--features", "python:features_for_test:wrong"), "returned a int"),
        (("ays-table5", *FILES, *features, "--inception", "absent.pth"), "give --inception"),
        (("ays-table5", *FILES[:4], "--reference", "images.npz", *features, "--trust-pickle"), "lacks mu and sigma"),
    ]:
        assert words in " ".join(invoke("reproduce", *change, "--out", "runs", "--device", "cpu", code=2).split())
    np.savez(folder / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    wrong = ("reproduce", "ays-table5", *FILES[:4], "--reference", "other.npz", *features, "--trust-pickle")
    assert "statistics of 5 features" in " ".join(invoke(*wrong, "--device", "cpu", code=2).split())
    assert not (folder / "runs").exists()


def test_images_and_their_labels(folder: Path) -> None:
    model = models.load("edm:network.pkl?trust-pickle")
    whole = clean_images("images.npz", model, 1000)
    assert whole.samples.shape == (96, 3, 8, 8)
    assert whole.condition.tolist() == [k % 4 for k in drawn(96, 1000)]
    some = clean_images("images.npz", model, 10)
    assert torch.equal(some.samples, whole.samples[:10]) and torch.equal(some.condition, whole.condition[:10])
    in_order = whole.samples[[drawn(96, 96).index(k) for k in range(6)]]
    _as_pictures(folder, in_order)
    for place in ("pictures", "pictures.zip"):
        found = clean_images(place, model, 3)
        assert torch.equal(found.samples, in_order[drawn(6, 3)])
        assert found.condition.tolist() == [k % 4 for k in drawn(6, 3)]
    (folder / "pictures" / "dataset.json").write_text('{"labels": [["0/0.png", 1]]}')
    with pytest.raises(FileFormatError, match="no label for every image"):
        clean_images("pictures", model, 3)
    (folder / "pictures" / "dataset.json").unlink()
    with pytest.raises(ArgumentError, match="has no labels"):
        clean_images("pictures", model, 3)
    np.savez(folder / "large.npz", images=np.zeros((4, 9, 9, 3), np.uint8), labels=np.zeros(4, int))
    with pytest.raises(ArgumentError, match=r"shape \(3, 9, 9\), the network \(3, 8, 8\)"):
        clean_images("large.npz", model, 4)
    with pytest.raises(ArgumentError, match="none of pictures"):
        clean_images("images.npz", models.load("problem:gaussian"), 4)
    np.savez(folder / "wrong.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.full(4, 9))
    with pytest.raises(FileFormatError, match="not integers from 0 to 3"):
        clean_images("wrong.npz", model, 4)


def _as_pictures(folder: Path, samples: torch.Tensor) -> None:
    """Six of them as png, in a folder and a zip, with labels."""
    from PIL import Image

    labels = []
    (folder / "pictures" / "0").mkdir(parents=True)
    for k, image in enumerate(samples[:6]):
        pixels = image.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "pictures" / "0" / f"{k}.png")
        labels.append([f"0/{k}.png", k % 4])
    (folder / "pictures" / "dataset.json").write_text(json.dumps({"labels": labels}))
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for file in (folder / "pictures").rglob("*.*"):
            archive.write(file, file.relative_to(folder / "pictures").as_posix())


def test_edm_models_on_the_command_line(folder: Path) -> None:
    refused = invoke("sample", "edm:network.pkl", "--nfe", "2", "--solver", "ddim", "--seeds", "0-3", code=2)
    assert "can carry code" in " ".join(refused.split())
    trusted = ("--trust-pickle", "--nfe", "2", "--solver", "ddim")
    invoke("sample", "edm:network.pkl", *trusted, "--seeds", "0-3", "--out", "grid.png")
    assert (folder / "grid.png").is_file()
    invoke("compare", "edm:network.pkl", *trusted, "--samples", "2", "--by", "rms", "--out", "compared", "--quiet")
    poor = invoke(
        "optimize", "edm:network.pkl", *trusted, "--max-calls", "300", "--no-around", "--out", "found", code=2
    )
    assert "too small a budget" in " ".join(poor.split())  # the network itself was loaded


@pytest.mark.slow
def test_optimize_an_edm_network(folder: Path) -> None:
    budget = ("--method", "dmn", "--max-calls", "14000", "--no-around", "--out", "found", "--quiet")
    invoke("optimize", "edm:network.pkl", "--trust-pickle", "--nfe", "2", "--solver", "ddim", *budget)
    assert (folder / "found" / "schedule.json").is_file()


def test_rounds_grow_to_the_last() -> None:
    assert rounds(1024) == ((128, 0.27), (384, 0.33), (1024, 0.0))
    assert all(images >= 48 for images, _ in rounds(96))
