"""Reading the `.pth` files of USF's solver schedules without running what is in them.

Such a file is a zip archive with a pickle and the bytes of its tensors. The unpickler here knows a closed list of
names: plain containers, tensors (which become lists of numbers) and numpy scalars (which become numbers). Any other
name ends the reading.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np

from fewstep.errors import FileFormatError

LARGEST = 1 << 24
"""Bytes of a schedule's file, unpacked; the authors' have a few thousand."""
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "HalfStorage": "<f2",
}
SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class _Refused(pickle.UnpicklingError):
    """The pickle wants something that no schedule needs."""


class _Kind:
    """Stands for a class of storages or of numbers: a numpy type code, and nothing else."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        """The rest of a numpy dtype, which says nothing about a scalar of a little-endian machine."""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, np.ndarray):
        raise _Refused("a tensor without data")
    flat = cast("np.ndarray[Any, Any]", storage)
    sizes, strides = [int(n) for n in size], [int(n) for n in stride]
    last = int(offset) + sum((n - 1) * m for n, m in zip(sizes, strides, strict=True))
    if min([int(offset), *sizes, *strides]) < 0 or (0 not in sizes and last >= len(flat)):
        raise _Refused("a tensor that is larger than its data")
    index = int(offset) + sum(
        (
            np.arange(n).reshape([-1 if k == d else 1 for d in range(len(sizes))]) * strides[k]
            for k, n in enumerate(sizes)
        ),
        start=np.zeros(sizes, dtype=np.int64),
    )
    return flat[index].tolist()


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Kind) or kind.code not in SCALARS or not isinstance(data, bytes):
        raise _Refused("a numpy number of an unknown kind")
    return np.frombuffer(data, dtype=f"<{kind.code}")[0].item()


def _latin(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise _Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """An unpickler that gives only what a schedule needs."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if module_name == "torch" and global_name in STORAGES:
            return _Kind(STORAGES[global_name])
        # Wrapped, since a pickle may set attributes of what it is given, and shall not reach this module's.
        known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda *args: _tensor(*args),
            "numpy.core.multiarray.scalar": lambda *args: _scalar(*args),
            "numpy._core.multiarray.scalar": lambda *args: _scalar(*args),
            "_codecs.encode": lambda *args: _latin(*args),
            "numpy.dtype": type("dtype", (_Kind,), {}),
        }
        if name not in known:
            raise _Refused(f"the name {name}")
        return known[name]

    def persistent_load(self, pid: Any, /) -> Any:
        kind, key = (pid[1], pid[2]) if isinstance(pid, tuple) and len(cast(tuple[Any, ...], pid)) == 5 else (None, "")
        if not isinstance(kind, _Kind) or not str(key).isdigit():
            raise _Refused("data of an unknown kind")
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype=kind.code)


def read_pth(path: str | Path) -> dict[str, Any]:
    """The record of a solver schedule, tensors as lists; `score` is in it where the file has one.

    Raises:
        FileFormatError: a file that asks for anything but containers, tensors and numbers (the message names it), that
            is damaged, or that holds something else.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST:
                raise FileFormatError(f"{path} is too large for a solver schedule: give one of USF's .pth files")
            pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
            if len(pickles) != 1:
                raise FileFormatError(f"{path} holds {len(pickles)} pickles; give a file that torch.save wrote")
            held: Any = _Reader(archive, pickles[0].removesuffix("data.pkl")).load()
    except _Refused as error:
        raise FileFormatError(
            f"{path} holds {error}, which a solver schedule has no use for; it was not read further"
        ) from None
    except FileFormatError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; nothing of it was executed
        raise FileFormatError(f"{path} cannot be read ({error}): give a .pth file of a solver schedule") from error
    return record_of(held, str(path))


def record_of(held: Any, where: str) -> dict[str, Any]:
    """The decisions in what a file holds: alone, or beside their score.

    Raises:
        FileFormatError: no decisions.
    """
    score: Any = None
    if isinstance(held, list | tuple) and len(cast(list[Any], held)) == 2:
        held, score = cast(list[Any], held)
    if isinstance(held, dict) and "timesteps" not in held:
        outer = cast(dict[str, Any], held)
        held, score = outer.get("decisions", outer.get("decision")), outer.get("score", outer.get("fid", score))
    if not isinstance(held, dict) or "timesteps" not in held:
        raise FileFormatError(f"{where} holds no solver schedule: it has no timesteps")
    record = cast(dict[str, Any], held)
    return record if score is None else {**record, "score": score}
