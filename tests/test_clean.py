"""Clean samples from files: numbers in the network's units, and pictures that a pipeline encodes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import fewstep
from fewstep import inputs, models
from fewstep.clean import clean_samples, drawn
from fewstep.cli import app
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.guidance import guided
from fewstep.inputs import condition_of, given_data
from fewstep.models import default_condition
from fewstep.optimizing import optimize
from tests import tiny_pipelines
from tests.test_optimize import counted
from tests.test_pipelines import model_of


def test_numbers_of_both_kinds(tmp_path: Path) -> None:
    model = models.load("problem:grid_8x8")
    rows = torch.randn(40, *model.shape)
    np.save(tmp_path / "rows.npy", rows.numpy())
    save_file({"samples": rows.double()}, tmp_path / "rows.safetensors")
    order = drawn(40, 100)
    assert sorted(order) == list(range(40)) != order and drawn(40, 4) == order[:4]
    for name in ("rows.npy", "rows.safetensors"):
        found = clean_samples(tmp_path / name, model, 100)
        assert torch.equal(found.samples, rows[order]) and found.condition is None and found.note == f"40 of {name}"
        assert torch.equal(clean_samples(tmp_path / name, model, 4).samples, rows[order[:4]])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float16, np.float64])
def test_all_types_of_real_numbers(kind: type[np.generic], tmp_path: Path) -> None:
    rows = np.arange(12).reshape(6, 2).astype(kind)
    np.save(tmp_path / "rows.npy", rows)
    save_file({"samples": torch.from_numpy(rows)}, tmp_path / "rows.safetensors")
    for name in ("rows.npy", "rows.safetensors"):
        found = clean_samples(tmp_path / name, models.load("problem:grid_8x8"), 4).samples
        assert found.dtype == torch.float32 and found.tolist() == rows[drawn(6, 4)].tolist()


def test_labels_of_numbers(tmp_path: Path) -> None:
    model = models.load("mnist")
    rows, labels = torch.randn(6, 1, 28, 28), torch.tensor([3, 1, 4, 1, 5, 9])
    save_file({"samples": rows, "labels": labels}, tmp_path / "rows.safetensors")
    found = clean_samples(tmp_path / "rows.safetensors", model, 3)
    order = drawn(6, 3)
    assert torch.equal(found.samples, rows[order]) and torch.equal(found.condition, labels[order])
    np.save(tmp_path / "rows.npy", rows.numpy())
    with pytest.raises(ArgumentError, match=r"class-conditional.*a \.safetensors can"):
        clean_samples(tmp_path / "rows.npy", model, 3)
    for wrong, said in (
        (labels + 5, "not integers from 0 to 9"),
        (labels.double(), "not integers"),
        (labels[:, None], "not integers"),
        (labels[:4], "has 4 labels for 6 samples"),
    ):
        save_file({"samples": rows, "labels": wrong.contiguous()}, tmp_path / "wrong.safetensors")
        with pytest.raises(FileFormatError, match=said):
            clean_samples(tmp_path / "wrong.safetensors", model, 3)


@pytest.mark.parametrize("labels", [["one"] * 8, [1, 2], [[1], [2, 3]], [None] * 8, [-1] * 8])
def test_labels_of_pictures_that_are_none(labels: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((8, 28, 28, 1), np.uint8), labels=np.array(labels, dtype=object))
    with pytest.raises(FileFormatError, match="labels"):
        clean_samples(tmp_path / "images.npz", models.load("mnist"), 4)
    if len(labels) == 8:
        pictures_in(tmp_path / "pictures", 8, 28)
        table = {"labels": [[f"{k}.png", label] for k, label in enumerate(labels)]}
        (tmp_path / "pictures" / "dataset.json").write_text(json.dumps(table))
        with pytest.raises(FileFormatError, match="not integers from 0 to 9"):
            clean_samples(tmp_path / "pictures", models.load("mnist"), 4)


def test_the_first_of_a_sorted_set_are_of_all_classes(tmp_path: Path) -> None:
    """What takes the first of them (the KLUB table, the look at the range) must not see one class."""
    labels = np.arange(1000) // 100
    images = np.broadcast_to(labels[:, None, None, None], (1000, 28, 28, 1)).astype(np.uint8)
    np.savez(tmp_path / "sorted.npz", images=images, labels=labels)
    found = clean_samples(tmp_path / "sorted.npz", models.load("mnist"), 1000)
    assert set(found.condition[:100].tolist()) == set(range(10))
    assert torch.equal(((found.samples + 1) * 127.5).round()[:, 0, 0, 0].long(), found.condition)  # each with its own


def test_conditions_of_other_networks(tmp_path: Path) -> None:
    """Neither classes nor prompts: the user's own conditions, by number or by seed."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(30, 2)))
    model = guided(counted(), 2.0, null=torch.zeros(1))
    own, by_seed = torch.arange(30.0), torch.arange(7.0)
    asked = condition_of(model, by_seed)
    data = given_data(model, tmp_path / "rows.npy", own, 10, asked)
    assert data.condition.tolist() == drawn(30, 10)
    data = given_data(model, tmp_path / "rows.npy", None, 10, asked)
    assert data.condition.tolist() == [k % 7 for k in drawn(30, 10)]


def test_data_that_are_none(tmp_path: Path) -> None:
    rows = torch.randn(8, 2)
    rows[3, 1] = math.nan
    for data, said in (
        (rows, r"data\[3\] is not finite"),
        (np.zeros((4, 2)), "data is a ndarray"),
        (torch.zeros(4, 3), r"shape \(4, 3\)"),
        (tmp_path / "absent.npy", "data: nothing at"),
    ):
        net = counted()
        with pytest.raises(ArgumentError, match=said):
            optimize(net, 3, "ays", data=data, max_calls=12_000)  # pyright: ignore[reportArgumentType]
        assert net.seen == 0


def test_what_cannot_be_read(tmp_path: Path) -> None:
    model = models.load("problem:grid_8x8")
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY and then nothing")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("damaged.npy", "damaged.safetensors", "pickled.npy"):
        with pytest.raises(FileFormatError, match="cannot be read"):
            clean_samples(tmp_path / name, model, 4)
    save_file({"rows": torch.zeros(4, *model.shape)}, tmp_path / "other.safetensors")
    np.save(tmp_path / "shape.npy", np.zeros((4, 7)))
    np.save(tmp_path / "few.npy", np.zeros((1, 2)))
    np.save(tmp_path / "none.npy", np.zeros((0, 2)))
    np.save(tmp_path / "number.npy", np.zeros(()))
    np.save(tmp_path / "complex.npy", np.zeros((4, 2), complex))
    for name, said in (
        ("other.safetensors", "no tensor `samples`; it holds rows"),
        ("shape.npy", r"shape \(4, 7\): give two or more clean samples \[N, 2\]"),
        ("few.npy", r"shape \(1, 2\): give two or more"),
        ("none.npy", r"shape \(0, 2\)"),
        ("number.npy", r"shape \(\)"),
        ("complex.npy", r"holds torch.complex128 of shape \(4, 2\)"),
        ("absent.npy", "nothing at"),
        ("absent", "none of pictures"),
    ):
        with pytest.raises(ArgumentError, match=said):
            clean_samples(tmp_path / name, model, 4)


# ---------------------------------------------------------------------------------------------------------- pipelines
def pictures_in(folder: Path, count: int, side: int) -> Tensor:
    """Random pictures as files; returns them in [-1, 1]."""
    from PIL import Image

    folder.mkdir()
    pixels = torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator("cpu").manual_seed(1))
    for k, picture in enumerate(pixels.to(torch.uint8).numpy()):
        Image.fromarray(picture).save(folder / f"{k}.png")
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_pipeline_encodes_pictures_and_keeps_their_prompts(name: str, tmp_path: Path) -> None:
    """As the pipelines' own image-to-image does: `(mode - shift) scale`, picture by picture."""
    tiny = tiny_pipelines.build(name)
    model = model_of(tiny, prompts=["a cat", "a dog"])
    pixels = pictures_in(
        tmp_path / "pictures", 6, 16 if name == "flux" else model.shape[-1] * tiny.pipe.vae_scale_factor
    )
    found = clean_samples(tmp_path / "pictures", model, 3)
    vae = tiny.pipe.vae
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    order = drawn(6, 3)
    with torch.no_grad():
        expected = torch.cat([vae.encode(pixels[k : k + 1]).latent_dist.mode() for k in order])
    assert found.samples.shape == (3, *model.shape)
    assert torch.allclose(found.samples, (expected - shift) * scale, atol=1e-5)
    prompts = default_condition(model, order)
    assert all(torch.equal(found.condition[leaf], prompts[leaf]) for leaf in prompts)
    other = default_condition(model, [k + 1 for k in order])
    assert not torch.equal(found.condition["prompt_embeds"], other["prompt_embeds"])


@pytest.mark.filterwarnings("ignore")
def test_a_video_pipeline_takes_latents_alone(tmp_path: Path) -> None:
    tiny = tiny_pipelines.build("wan")
    model = model_of(tiny)
    height = tiny.inputs.get("height", 16)
    pictures_in(tmp_path / "pictures", 2, height)
    with pytest.raises(ArgumentError, match="encodes no pictures here: give its latents"):
        clean_samples(tmp_path / "pictures", model, 2)
    save_file({"samples": torch.randn(3, *model.shape)}, tmp_path / "latents.safetensors")
    assert clean_samples(tmp_path / "latents.safetensors", model, 9).samples.shape == (3, *model.shape)


# ----------------------------------------------------------------------------------------------------------- searches
def test_a_file_and_its_tensor_lead_to_the_same_result(tmp_path: Path) -> None:
    rows = torch.randn(64, 2, generator=torch.Generator("cpu").manual_seed(2)).sign()
    np.save(tmp_path / "rows.npy", rows.numpy())
    options = {"max_calls": 12_000, "objective": lambda images: images.square().sum(1), "teacher_calls": 0}
    by_file = optimize(counted(), 3, "ays", data=tmp_path / "rows.npy", **options)
    by_tensor = optimize(counted(), 3, "ays", data=rows[drawn(64, 64)], **options)
    assert by_file.tableau == by_tensor.tableau and by_file.candidates == by_tensor.candidates
    assert any("64 of rows.npy" in note for note in by_file.notes)


def test_what_can_be_refused_is_refused_before_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((8, 2)))

    def read(*_: Any) -> Any:
        raise AssertionError("the file was read")

    monkeypatch.setattr(inputs, "clean_samples", read)
    for solver, nfe, method, said in (
        ("nonsense", 3, "ays", "no solver"),
        ("heun", 4, "ays", "heun cannot make exactly 4"),
        ("ddim", 40, "gits", "too coarse"),
    ):
        with pytest.raises(ArgumentError, match=said):
            optimize(counted(), nfe, method, solver=solver, data=tmp_path / "rows.npy")


def rows_of(name: str, count: int) -> np.ndarray[Any, Any]:
    """Exact samples of an analytic problem."""
    return fewstep.problems.get(name).sample(count, seed=3).numpy()


def asked(*more: str) -> list[str]:
    """`fewstep optimize` with little to do."""
    return ["optimize", *more, "--nfe", "3", "--max-calls", "24000", "--json", "-q", "--no-around"]


def test_data_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of one's own, and no teacher."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", rows_of("grid_8x8", 200))
    ask = asked("problem:grid_8x8", "--method", "ays", "--out", "found", "--objective", "frechet")
    done = CliRunner().invoke(app, [*ask, "--data", "rows.npy", "--teacher-calls", "0"])
    assert done.exit_code == 0, done.output
    notes = json.loads(done.stdout)["notes"]
    assert any(note.startswith("KLUB table: ") and "of 200 of rows.npy" in note for note in notes)
    assert any(note.startswith("KLUB of the times found") and "\N{PLUS-MINUS SIGN}" in note for note in notes)
    record = json.loads(Path("found/search.json").read_text())
    assert record["plan"]["made"] == 0 and "teacher of the report" not in {s["stage"] for s in record["stages"]}
    assert {"samples.png", "report.html", "schedule.json"} <= {p.name for p in Path("found").iterdir()}


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (None, [], "data: nothing at rows.npy"),
        (rows_of("grid_8x8", 64).clip(-1, 1) / 2 + 0.5, [], "likely trained on [-1, 1]; write data * 2 - 1 in place"),
        (
            rows_of("grid_8x8", 64),
            ["--teacher-calls", "0", "--objective", "matched"],
            "give --features and --reference",
        ),
    ],
)
def test_what_the_command_line_refuses(
    rows: Any, more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if rows is not None:
        np.save("rows.npy", rows)
    ask = asked("problem:grid_8x8", "--method", "ays", "--out", "found", "--data", "rows.npy", *more)
    done = CliRunner().invoke(app, ask)
    assert done.exit_code == 2 and said in json.loads(done.stdout)["error"]["message"]
    assert not Path("found/schedule.json").exists()


OWN = """
import torch
from fewstep import problems
def make():
    return problems.get("grid_6x6").denoiser()
def make_features():
    return lambda images: torch.cat([images.flatten(1), images.flatten(1) ** 2], 1)
"""


def test_own_features_and_no_teacher_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several results for a network that the package does not know, image-to-image from the user's own data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_for_clean.py").write_text(OWN)
    rows = rows_of("grid_6x6", 128)
    np.save("rows.npy", rows)
    both = np.concatenate([rows, rows**2], 1)
    np.savez("stats.npz", mu=both.mean(0), sigma=np.cov(both.T), n=len(both))
    ask = ["--features", "python:own_for_clean:make_features", "--reference", "stats.npz", "--teacher-calls", "0"]
    ask += ["--data", "rows.npy", "--start", "2.0", "--method", "dmn", "--each", "--solver", "ddim,dpmpp_2m"]
    ask += ["--max-calls", "40000", "--out", "found"]
    done = CliRunner().invoke(app, [*asked("python:own_for_clean:make"), *ask])
    assert done.exit_code == 0, done.output
    for folder in ("ddim-3", "dpmpp_2m-3"):
        names = {p.name for p in (tmp_path / "found" / folder).iterdir()}
        assert {"samples.png", "report.html", "schedule.json", "search.json"} <= names
    told = json.loads(Path("found/ddim-3/schedule.json").read_text())
    assert told["meta"]["images"] == "128 of rows.npy" and told["meta"]["teacher_calls"] == 0
