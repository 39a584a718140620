"""The networks that ship, what lies beside them, and the scripts that made them (on a tiny data set)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import networks
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics import Statistics, frechet, precision_recall
from fewstep.metrics.images import to_unit
from fewstep.networks import mnist
from fewstep.networks.classifier import Classifier
from fewstep.networks.train_features import shifted
from fewstep.networks.unet import EDMPrecond, UNet


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = networks.mnist_images()
    return to_unit(images), labels


# -------------------------------------------------------------------------------------------------- what ships
def test_sizes_of_what_ships() -> None:
    sizes = {p.name: p.stat().st_size for p in mnist.shipped("mnist.safetensors").parent.iterdir()}
    assert sizes["mnist.safetensors"] <= 4_000_000
    assert sizes["mnist_features.safetensors"] <= 500_000
    assert sum(sizes.values()) < 4_000_000
    assert "CC BY-SA 3.0" in mnist.shipped("README.md").read_text()


def test_images_that_ship(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = networks.mnist_images(25)
    assert (images.shape, images.dtype) == ((25, 1, 28, 28), torch.uint8)
    assert labels.tolist() == [k % 10 for k in range(25)]
    assert digits[0].shape == (1000, 1, 28, 28)
    with pytest.raises(ArgumentError, match="n=1001"):
        networks.mnist_images(1001)


def test_classifier_reads_the_images(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    assert networks.mnist_features().accuracy >= 0.99  # on all 10,000 test images, measured when it was trained
    assert (networks.mnist_classify(images) == labels).double().mean() >= 0.99


def test_features_agree_with_their_references(digits: tuple[Tensor, Tensor]) -> None:
    features = networks.mnist_features()(digits[0])
    assert features.shape == (1000, 64)
    floors = networks.mnist_floors()
    assert frechet(Statistics.of(features), networks.mnist_reference("test")) < 0.5
    assert frechet(networks.mnist_reference("train_10k"), networks.mnist_reference("test")) == pytest.approx(
        floors["train_10k_to_test"], rel=1e-9
    )
    assert [networks.mnist_reference(p).n for p in ("train", "train_10k", "test")] == [60_000, 10_000, 10_000]
    stored = networks.mnist_reference_features()
    assert stored.shape == (5000, 64)
    assert float(networks.mnist_reference().cov.diagonal().mean()) == pytest.approx(1, rel=0.01)
    overlap = precision_recall(features, stored)
    assert overlap.precision == pytest.approx(floors["precision_test"], abs=0.03)
    with pytest.raises(ArgumentError, match="part='valid'"):
        networks.mnist_reference("valid")


def test_features_do_not_depend_on_the_batch_and_pass_gradients(digits: tuple[Tensor, Tensor]) -> None:
    extractor, images = networks.mnist_features(), digits[0][:6].clone().requires_grad_()
    whole = extractor(images)
    assert (torch.cat([extractor(part) for part in images.split(1)]) - whole).abs().max() < 1e-4
    assert (extractor(images * 3) - extractor((images * 3).clamp(-1, 1))).abs().max() == 0
    (gradient,) = torch.autograd.grad(whole.sum(), images)
    assert float(gradient.abs().max()) > 0
    with pytest.raises(ArgumentError, match="28, 28"):
        extractor(torch.zeros(2, 3, 32, 32))


def test_denoiser_denoises(digits: tuple[Tensor, Tensor]) -> None:
    """At small noise it returns the image, at any level it beats the best linear guess, and the right label helps."""
    x0, labels = digits[0][:100], digits[1][:100]
    model = networks.mnist_denoiser()
    eps = noise(*x0.shape)

    def error(sigma: float, label: Tensor | None) -> float:
        return float((model(x0 + sigma * eps, sigma, label) - x0).square().mean())

    variance = float((x0 - x0.mean(0)).square().mean())
    assert error(0.01, labels) < 0.01**2 * 1.1
    for sigma in (0.2, 1.0, 5.0):
        assert error(sigma, labels) < 0.7 * variance * sigma**2 / (variance + sigma**2)
    assert error(5.0, labels) < 0.95 * error(5.0, None)
    assert error(5.0, None) < error(5.0, (labels + 1) % 10)


def test_torchs_defaults_do_not_matter(digits: tuple[Tensor, Tensor]) -> None:
    x, labels = digits[0][:3], digits[1][:3]
    expected = networks.mnist_denoiser()(x, 1.0, labels), networks.mnist_features()(x)
    device = torch.get_default_device()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        model, extractor = networks.mnist_denoiser(), mnist.load_features(mnist.shipped("mnist_features.safetensors"))
        assert networks.mnist_reference().mean.device.type == "cpu"
        found = model(x, 1.0, labels), extractor(x)
        shipped_images = networks.mnist_images(3).images
        overlap = precision_recall(networks.mnist_reference_features()[:50], networks.mnist_reference_features()[50:99])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(device)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 1e-5
    assert torch.equal(to_unit(shipped_images), x)
    assert overlap.precision > 0


def test_no_label_is_the_null_class() -> None:
    model, x = networks.mnist_denoiser(), noise(3, 1, 28, 28) * 2
    assert torch.equal(model(x, 2.0), model(x, 2.0, torch.full((3,), 10)))
    assert networks.classes_of(model) == 10
    assert model.shape == (1, 28, 28)


def test_bad_labels() -> None:
    model, x = networks.mnist_denoiser(), noise(3, 1, 28, 28)
    for label, words in [
        (torch.tensor([1, 2, 11]), r"outside 0\.\.9"),
        (torch.tensor([-1, 2, 3]), r"outside 0\.\.9"),
        (torch.tensor([1.0, 2.0, 3.0]), "one integer label"),
        (torch.tensor([1]), "one integer label"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            model(x, 1.0, label)


def test_damaged_or_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    with pytest.raises(FileFormatError, match="cannot be read"):
        mnist.read_weights(tmp_path / "torn.safetensors")
    with pytest.raises(FileFormatError, match="cannot be read"):
        mnist.read_weights(tmp_path / "absent.safetensors")
    with pytest.raises(FileFormatError, match=r"lacks its file absent\.npz"):
        mnist.shipped("absent.npz")


# ------------------------------------------------------------------------------------------------- architecture
def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Classifier(widths=(8, 16), classes=3)
    with torch.no_grad():
        for _ in range(5):
            model(noise(32, 1, 28, 28))  # moves the running statistics
        folded = model.folded()
        model.eval()
        x = noise(4, 1, 28, 28, seed=1)
        assert (folded(x) - model(x)).abs().max() < 1e-5
    assert not any("norm" in name for name in folded.state_dict())


def test_network_starts_as_the_best_linear_denoiser() -> None:
    """The last layer starts at zero: D(x) = c_skip x, whatever the label."""
    net = EDMPrecond(UNet(widths=(16, 32), classes=3))
    x, sigma = noise(2, 1, 28, 28), torch.tensor([0.5, 2.0])
    expected = x * (0.25 / (sigma**2 + 0.25)).reshape(-1, 1, 1, 1)
    assert (net(x, sigma, torch.tensor([0, 3])) - expected).abs().max() < 1e-6


def test_shifts_move_whole_pixels() -> None:
    images = noise(40, 1, 8, 8)
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, [2] * 4, value=-1.0)
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1).reshape(40, 25, 8, 8)
    hits = (windows == moved).all(dim=(2, 3))
    assert bool(hits.any(dim=1).all())
    assert bool(hits.any(dim=0).sum() > 10)  # of 25 shifts


# ------------------------------------------------------------------------------------------------------ scripts
def run(module: str, *args: object) -> str:
    command = [sys.executable, "-W", "error", "-m", f"fewstep.networks.{module}", *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_scripts_train_resume_and_build(tmp_path: Path) -> None:
    pixels, labels = networks.mnist_images()
    images, digits = pixels[:, 0].numpy(), labels.numpy()
    data = tmp_path / "data.npz"
    np.savez(data, train_images=images, train_labels=digits, test_images=images[:300], test_labels=digits[:300])
    out = tmp_path / "net.safetensors"
    options = ("--data", data, "--out", out, "--widths", 16, 32, "--batch", 32, "--threads", 1)
    run("train", *options, "--images", 64)
    assert mnist.read_weights(out)[1]["images_seen"] == "64"
    run("train", *options, "--images", 128)  # goes on from the checkpoint
    assert mnist.read_weights(out)[1]["images_seen"] == "128"
    model = mnist.load_denoiser(out)
    assert model(noise(2, 1, 28, 28), 1.0, torch.tensor([0, 9])).shape == (2, 1, 28, 28)
    features = tmp_path / "mnist_features.safetensors"
    log = run("train_features", "--data", data, "--out", features, "--epochs", 2, "--widths", 8, 16)
    assert "test accuracy" in log
    floors = json.loads(run("reference", "--data", data, "--weights", tmp_path))
    assert floors["train_10k_to_test"] > 0
    assert 0.5 < floors["precision_test"] <= 1
    assert Statistics.load(tmp_path / "mnist_train.safetensors").n == 1000
