"""References from pictures, and the adapter of the standard Inception network (with a stand-in: its weights cannot "
"ship)."""

import io
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics import Statistics, read_images, statistics_of_images
from fewstep.metrics.inception import Inception

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


def features(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :4]


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "pictures" / ("more" if i > 4 else "") / f"{i}.png").write_bytes(png(pixels))
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as file:
        for i, pixels in enumerate(PIXELS):
            file.writestr(f"deep/{i}.png", png(pixels))
    return tmp_path / "pictures.zip"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.savez(tmp_path / "pictures.npz", images=PIXELS, labels=np.arange(7))
    return tmp_path / "pictures.npz"


@pytest.mark.parametrize("kind", ["folder", "archive", "arrays"])
def test_the_same_images_from_every_source(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    batches = list(read_images(path, batch=3))
    assert [len(b) for b in batches] == [3, 3, 1]
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert (torch.cat(batches) - expected).abs().max() < 1e-6
    stats = statistics_of_images(path, features, batch=2)
    assert (stats.mean - Statistics.of(features(expected)).mean).abs().max() < 1e-7


def test_grey_and_rgb(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(PIXELS[0, :, :, 0]))
    assert next(read_images(tmp_path)).shape == (1, 1, 6, 5)
    rgb = next(read_images(tmp_path, channels=3))
    assert rgb.shape == (1, 3, 6, 5)
    assert torch.equal(rgb[:, 0], rgb[:, 2])
    (tmp_path / "1.png").write_bytes(png(PIXELS[1]))
    with pytest.raises(ArgumentError, match=r"1\.png is \(6, 5, 3\)"):
        list(read_images(tmp_path))
    np.savez(tmp_path / "grey.npz", arr_0=PIXELS[..., 0])
    assert next(read_images(tmp_path / "grey.npz")).shape == (7, 1, 6, 5)


def test_bad_sources(tmp_path: Path, arrays: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG torn")
    (tmp_path / "no.zip").write_bytes(b"no zip")
    (tmp_path / "torn.npz").write_bytes(b"PK torn")
    np.savez(tmp_path / "floats.npz", images=PIXELS / 255)
    for path, error, words in [
        (tmp_path / "absent", ArgumentError, "nothing at"),
        (tmp_path / "empty", ArgumentError, "no pictures"),
        (tmp_path / "torn", FileFormatError, "cannot be read as a picture"),
        (tmp_path / "no.zip", FileFormatError, "neither a folder"),
        (tmp_path / "torn.npz", FileFormatError, "cannot be read as npz"),
        (tmp_path / "floats.npz", ArgumentError, "float64"),
    ]:
        with pytest.raises(error, match=words):
            list(read_images(path))
    with pytest.raises(ArgumentError, match=r"it holds \['images', 'labels'\]"):
        list(read_images(arrays, array="pixels"))
    with pytest.raises(ArgumentError, match="batch=0"):
        read_images(arrays, batch=0)
    with pytest.raises(ArgumentError, match="channels=2"):
        read_images(arrays, channels=2)


class StandIn(nn.Module):
    """Has the interface of torch-fidelity 0.4's extractor; the feature is the mean byte of each channel."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert feature_extractor_weights_path is not None, "it would download"
        self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]
        self.layers = features_list

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (x.float().mean(dim=(2, 3)) * self.scale,)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.usefixtures("stand_in")
def test_inception_feeds_bytes(weights: Path) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)
    out = Inception(weights)(images)
    assert out.tolist() == [[0.0] * 3, [256.0] * 3, [510.0] * 3, [510.0] * 3]
    with pytest.raises(ArgumentError, match="1 or 3"):
        Inception(weights)(torch.zeros(1, 4, 8, 8))


@pytest.mark.usefixtures("stand_in")
def test_inception_bad_weights(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no file"):
        Inception(tmp_path / "absent.pth")
    with pytest.raises(ArgumentError, match="layer='pool'"):
        Inception(weights, layer="pool")
    torch.save({"code": types.SimpleNamespace()}, tmp_path / "code.pth")
    with pytest.raises(FileFormatError, match="not a plain weights file"):
        Inception(tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FileFormatError, match="dictionary of tensors"):
        Inception(tmp_path / "list.pth")


def test_inception_without_its_package_names_the_extra(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"fewstep\[metrics\]"):
        Inception(weights)
