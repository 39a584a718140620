"""Names to networks, their default conditions and judges."""

import sys
from pathlib import Path

import pytest
import torch

from fewstep import models, networks, problems
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.metrics.images import to_unit
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.randomness import CalibrationSeeds, ReportSeeds


def start(n: int, *, sigma: float) -> torch.Tensor:
    return sigma * torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_mnist() -> None:
    model = models.load("mnist")
    assert (model.shape, model.noise, model.dtype) == ((1, 28, 28), EDM(0.002, 80.0), torch.float32)
    assert models.load("mnist", dtype=torch.float64)(start(2, sigma=1.0).double(), 1.0).dtype == torch.float64
    assert models.load("mnist").fingerprint == model.fingerprint != models.load("mnist", guidance=2.0).fingerprint


def test_mnist_with_guidance_is_the_formula() -> None:
    x, label = start(4, sigma=3.0), torch.tensor([1, 5, 7, 0])
    plain, by_name = models.load("mnist"), models.load("mnist?guidance=2.5")
    conditional, unconditional = plain(x, 3.0, label), plain(x, 3.0)
    for model in (by_name, models.load("mnist", guidance=2.5)):
        assert (model(x, 3.0, label) - (unconditional + 2.5 * (conditional - unconditional))).abs().max() < 1e-4
    assert by_name.batch_cost == 2


@pytest.mark.parametrize("noise", ["vp", "flow", "cosine", "sd"])
def test_mnist_in_other_noise_schedules_is_the_same_network(noise: str) -> None:
    model, own = models.load(f"mnist?noise={noise}"), models.load("mnist")
    t = model.noise.time_of_ratio(2.0)
    scale = float(model.noise.alpha(t))
    x = start(3, sigma=2.0)
    assert (model(scale * x, t) - own(x, 2.0)).abs().max() < 1e-4


def test_problems() -> None:
    model = models.load("problem:grid_8x8?noise=vp")
    assert isinstance(model.noise, VPLinear)
    exact = problems.get("grid_8x8", VPLinear())
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(model(x, 0.4), exact.denoise(x, 0.4))
    assert isinstance(models.load("problem:gaussian", noise=Flow()).noise, Flow)


def test_python_factory_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models_for_test.py").write_text(
        "from fewstep.problems import get\n"
        "def make(): return get('gaussian').denoiser()\n"
        "def wrong(): return 3\n"
        "VALUE = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert isinstance(models.load("python:my_models_for_test:make"), Denoiser)
    assert sys.path == path
    for name, words in [
        ("python:my_models_for_test:wrong", "returned a int, not a Denoiser"),
        ("python:my_models_for_test:absent", "it has .*make, wrong"),
        ("python:my_models_for_test:VALUE", "no function VALUE"),
        ("python:absent_module_for_test:make", "No module named"),
        ("python:make", "write python:MODULE:FACTORY"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            models.load(name)
    with pytest.raises(ArgumentError, match="chosen by its factory"):
        models.load("python:my_models_for_test:make", noise="vp")
    monkeypatch.delitem(sys.modules, "my_models_for_test")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet", r"is no model; give mnist, problem:NAME .*grid_8x8.*python:MODULE:FACTORY"),
        ("", "is no model"),
        ("problem:", "is no model"),
        ("mnist:", "is no model"),
        ("mnist:small", "is no model"),
        ("problem:nothing", "give one of .*gaussian"),
        ("diffusers:./absent", "no model_index.json"),
        ("edm:net.pkl", "no file net.pkl"),
        ("edm:", "is no model"),
        ("edm:net.pkl?guidance=2", "guidance=2: EDM's networks"),
        ("mnist?trust-pickle", "are for edm: models"),
        ("mnist?noise=pink", "noise='pink' .* edm, vp, cosine, flow, sd"),
        ("mnist?guidance=strong", "not a number"),
        ("mnist?steps=3", "known are noise=, guidance="),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        models.load(name)


def test_default_condition_is_balanced() -> None:
    for model in (models.load("mnist"), models.load("mnist", guidance=3.0)):
        assert models.default_condition(model, range(12)).tolist() == [*range(10), 0, 1]
    for seeds in (CalibrationSeeds(20), ReportSeeds(20, offset=7)):
        labels = models.default_condition(models.load("mnist"), seeds)
        assert labels is not None
        assert torch.bincount(labels).tolist() == [2] * 10
    assert models.default_condition(models.load("problem:gaussian"), range(3)) is None


def test_judge_of_digits() -> None:
    judge = models.judge("mnist?guidance=2")
    assert judge is not None
    images, labels = networks.mnist_images(500)
    real = judge.report(to_unit(images), labels)
    assert real["as_label"] > 0.98
    assert real["frechet"] < 1
    assert abs(real["kernel"]) < 4 * real["kernel_error"]
    assert real["precision"] > 0.8
    worse = judge.report((to_unit(images) + start(500, sigma=0.5)).clamp(-1, 1))
    assert "as_label" not in worse
    assert worse["frechet"] > 5 * real["frechet"]
    assert worse["kernel"] > real["kernel"] + 4 * real["kernel_error"]
    assert judge.frechet(to_unit(images)) == (real["frechet"], real["frechet_error"])


def test_judge_of_problems() -> None:
    judge, problem = models.judge("problem:grid_8x8"), problems.get("grid_8x8")
    assert judge is not None
    scores = judge.report(problem.sample(500, seed=5))
    assert scores["frechet"] < 5 * scores["frechet_error"] + 0.05
    assert scores["nll"] == pytest.approx(problem.nll(problem.sample(5000, seed=6)), abs=0.2)
    assert models.judge("python:somewhere:make") is None


def test_guidance_without_conditions_is_refused() -> None:
    """Nothing would be guided: the network would be asked for unconditional samples alone, at twice the cost."""
    model = models.load("problem:images_8x8", guidance=3.0)
    with pytest.raises(ArgumentError, match="guidance=3 does nothing without conditions"):
        models.default_condition(model, range(2))
    assert models.default_condition(models.load("problem:images_8x8"), range(2)) is None
    assert models.default_condition(models.load("mnist", guidance=3.0), range(2)) is not None
