"""References from pictures on disk: a folder, a zip of pictures, or an npz of arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics.statistics import Features, Statistics

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
ARRAY_NAMES = ("images", "arr_0", "samples", "train_images")


def read_images(
    path: str | Path,
    *,
    batch: int = 256,
    channels: int | None = None,
    array: str | None = None,
    only: Collection[int] | None = None,
) -> Iterator[Tensor]:
    """Batches of images `[b, C, H, W]`, float32 in [-1, 1], in the order of their names (of the array, for npz).

    Args:
        path: a folder (searched through all levels) or a zip of png, jpg, webp or bmp files, or an npz whose array
            holds uint8 `[N, H, W]` or `[N, H, W, C]`.
        batch: images at a time.
        channels: 1 or 3 turns pictures into grey or RGB; by default each file must be of the first one's kind.
        array: name of the array in the npz; by default `images`, `arr_0`, `samples` or `train_images`.
        only: numbers of the images wanted, counted in their order; no other is decoded.

    Raises:
        ArgumentError: nothing there, or pictures of different sizes.
        FileFormatError: a file that cannot be read as a picture or array.
    """
    path = Path(path)
    if batch < 1:
        raise ArgumentError(f"batch={batch}: give a positive number of images")
    if channels not in (None, 1, 3):
        raise ArgumentError(f"channels={channels}: give 1 (grey), 3 (RGB), or None to keep what the files have")
    _require_there(path)
    if path.suffix == ".npz":
        return _from_npz(path, batch, array, only)
    files = _files(path)
    if only is not None:
        wanted = frozenset(only)
        files = (file for k, file in enumerate(files) if k in wanted)
    return _batches(files, path, batch, channels)


def statistics_of_images(path: str | Path, features: Features, **reading: Any) -> Statistics:
    """Feature statistics of a folder, zip or npz of images; `reading` as for `read_images`."""
    return Statistics.of(features(images) for images in read_images(path, **reading))


def to_unit(pixels: Tensor) -> Tensor:
    """Bytes 0..255 to the networks' range [-1, 1], float32."""
    return pixels.float().div(127.5).sub(1)


Named = tuple[str, Callable[[], bytes]]


def image_names(path: Path) -> list[str]:
    """Names of the pictures of a folder (below it, with `/`) or a zip, in the order of `read_images`."""
    inside = len(str(path)) + 1  # both kinds of names are the path, one character, and the rest
    return [name[inside:].replace("\\", "/") for name, _ in _files(path)]


def count_images(path: Path) -> int:
    """How many pictures there are in a folder, a zip or an npz, as `read_images` looks for them.

    Raises:
        ArgumentError, FileFormatError: as in `read_images`, where there are none.
    """
    _require_there(path)
    return len(_array(path, None)[1]) if path.suffix == ".npz" else sum(1 for _ in _files(path))


def _require_there(path: Path) -> None:
    if not path.exists():
        raise ArgumentError(f"path: nothing at {path}; give a folder of pictures, a zip of pictures or an npz")


def _files(path: Path) -> Iterator[Named]:
    return _from_folder(path) if path.is_dir() else _from_zip(path)


def _from_folder(path: Path) -> Iterator[Named]:
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES):
        yield str(file), file.read_bytes


def _from_zip(path: Path) -> Iterator[Named]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES):
                yield f"{path}:{name}", lambda name=name: archive.read(name)
    except zipfile.BadZipFile as error:
        raise FileFormatError(f"{path} is neither a folder, an npz nor a zip ({error}); give one of these") from error


def _batches(files: Iterator[Named], path: Path, batch: int, channels: int | None) -> Iterator[Tensor]:
    waiting: list[np.ndarray[Any, Any]] = []
    first: tuple[int, ...] | None = None
    for name, read in files:
        pixels = _decode(name, read(), channels)
        first = first or pixels.shape
        if pixels.shape != first:
            raise ArgumentError(
                f"{name} is {pixels.shape} (height, width, channels), the first image {first}; bring all to one size "
                "and mode"
            )
        waiting.append(pixels)
        if len(waiting) == batch:
            yield _stack(waiting)
            waiting = []
    if first is None:
        raise ArgumentError(
            f"path: no pictures in {path} (looked for {', '.join(sorted(SUFFIXES))}); give a folder or zip that holds "
            "some"
        )
    if waiting:
        yield _stack(waiting)


def _decode(name: str, data: bytes, channels: int | None) -> np.ndarray[Any, Any]:
    from PIL import Image, UnidentifiedImageError  # comes with matplotlib

    try:
        with Image.open(io.BytesIO(data)) as picture:
            grey = picture.mode in ("1", "L") if channels is None else channels == 1
            return np.asarray(picture.convert("L" if grey else "RGB")).reshape(picture.height, picture.width, -1)
    except (UnidentifiedImageError, OSError) as error:
        raise FileFormatError(f"{name} cannot be read as a picture ({error}); remove or replace it") from error


def _stack(pixels: list[np.ndarray[Any, Any]]) -> Tensor:
    return to_unit(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def _from_npz(path: Path, batch: int, array: str | None, only: Collection[int] | None) -> Iterator[Tensor]:
    name, images = _array(path, array)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise ArgumentError(
            f"array {name} of {path} is {images.dtype} {images.shape}; give uint8 [N, H, W] or [N, H, W, C]"
        )
    if only is not None:
        images = images[sorted(only)]
    pixels = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)
    return (to_unit(part) for part in pixels.split(batch))


def _array(path: Path, array: str | None) -> tuple[str, np.ndarray[Any, Any]]:
    """The array of images of an npz, and its name."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            held = sorted(data)
            name = array or next((n for n in ARRAY_NAMES if n in held), None)
            if name is not None and name in held:
                return name, data[name]
    except Exception as error:  # zip, zlib, numpy and pickle refusals all come as classes of their own
        raise FileFormatError(f"{path} cannot be read as npz ({error}); write it again with numpy.savez") from error
    raise ArgumentError(f"array: {path} has no {array or ' or '.join(ARRAY_NAMES)}; it holds {held}: name one of them")
