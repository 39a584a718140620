"""Clean samples from files: numbers in the network's units, and pictures that a pipeline encodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import fewstep
from fewstep import models
from fewstep.clean import clean_samples
from fewstep.cli import app
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.models import default_condition
from fewstep.optimizing import optimize
from tests import tiny_pipelines
from tests.test_optimize import counted, mixture
from tests.test_pipelines import model_of


def test_numbers_of_both_kinds(tmp_path: Path) -> None:
    model = models.load("problem:grid_8x8")
    rows = torch.randn(40, *model.shape)
    np.save(tmp_path / "rows.npy", rows.numpy())
    save_file({"samples": rows.double()}, tmp_path / "rows.safetensors")
    for name in ("rows.npy", "rows.safetensors"):
        found = clean_samples(tmp_path / name, model, 100)
        assert torch.equal(found.samples, rows) and found.condition is None and found.note == f"40 of {name}"
        assert torch.equal(clean_samples(tmp_path / name, model, 4).samples, rows[[0, 10, 20, 30]])


def test_labels_of_numbers(tmp_path: Path) -> None:
    model = models.load("mnist")
    rows, labels = torch.randn(6, 1, 28, 28), torch.tensor([3, 1, 4, 1, 5, 9])
    save_file({"samples": rows, "labels": labels}, tmp_path / "rows.safetensors")
    found = clean_samples(tmp_path / "rows.safetensors", model, 3)
    assert torch.equal(found.samples, rows[[0, 2, 4]]) and found.condition.tolist() == [3, 4, 5]
    np.save(tmp_path / "rows.npy", rows.numpy())
    with pytest.raises(ArgumentError, match=r"class-conditional.*a \.safetensors can"):
        clean_samples(tmp_path / "rows.npy", model, 3)
    for wrong, said in ((labels + 5, "not integers from 0 to 9"), (labels[:4], "has 4 labels, and more samples")):
        save_file({"samples": rows, "labels": wrong}, tmp_path / "wrong.safetensors")
        with pytest.raises(FileFormatError, match=said):
            clean_samples(tmp_path / "wrong.safetensors", model, 6)


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
    for name, said in (
        ("other.safetensors", "no tensor `samples`; it holds rows"),
        ("shape.npy", r"shape \(4, 7\): give clean samples \[N, 2\]"),
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
    with torch.no_grad():
        expected = torch.cat([vae.encode(pixels[k : k + 1]).latent_dist.mode() for k in (0, 2, 4)])
    assert found.samples.shape == (3, *model.shape)
    assert torch.allclose(found.samples, (expected - shift) * scale, atol=1e-5)
    prompts = default_condition(model, [0, 2, 4])
    assert all(torch.equal(found.condition[leaf], prompts[leaf]) for leaf in prompts)
    one = default_condition(model, [1])
    assert not torch.equal(found.condition["prompt_embeds"][:1], one["prompt_embeds"])


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
    by_tensor = optimize(counted(), 3, "ays", data=rows, **options)
    assert by_file.tableau == by_tensor.tableau and by_file.candidates == by_tensor.candidates
    assert any("64 of rows.npy" in note for note in by_file.notes)
    with pytest.raises(ArgumentError, match="a file brings its own conditions"):
        optimize(counted(), 3, "ays", data=tmp_path / "rows.npy", data_condition=torch.zeros(64), **options)


def test_data_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of one's own, and no teacher; then data in another range, refused before the search."""
    monkeypatch.chdir(tmp_path)
    model = mixture()
    problem = fewstep.problems.get("grid_8x8").denoiser()
    rows = fewstep.models.load("problem:grid_8x8").fn.__self__.sample(200, seed=3)  # type: ignore[attr-defined]
    assert tuple(rows.shape[1:]) == tuple(problem.shape) == tuple(model.shape)
    np.save("rows.npy", rows.numpy())
    asked = ["optimize", "problem:grid_8x8", "--nfe", "3", "--method", "ays", "--max-calls", "12000", "--json", "-q"]
    asked += ["--no-around", "--out", "found"]
    done = CliRunner().invoke(app, [*asked, "--data", "rows.npy", "--teacher-calls", "0", "--objective", "frechet"])
    assert done.exit_code == 0, done.output
    notes = json.loads(done.stdout)["notes"]
    assert any("200 of rows.npy" in note or "of rows.npy" in note for note in notes)
    assert any(note.startswith("KLUB of the times found") and "±" in note for note in notes)
    record = json.loads(Path("found/search.json").read_text())
    assert record["plan"]["made"] == 0 and "teacher of the report" not in {s["stage"] for s in record["stages"]}
    assert {"samples.png", "report.html", "schedule.json"} <= {p.name for p in Path("found").iterdir()}
    absent = CliRunner().invoke(app, [*asked[:-1], "other", "--data", "absent.npy"])
    assert absent.exit_code == 2 and "nothing at absent.npy" in absent.stdout and not Path("other").exists()
