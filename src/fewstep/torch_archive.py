"""Reading the zip archives that `torch.save` writes, without running what is in them.

Such a file is a zip archive with a pickle and the bytes of its tensors. The unpickler here knows a closed list of
names: plain containers, tensors and numpy scalars (which become numbers). Any other name ends the reading. Tensors stay
in the file until they are asked for, so that a few numbers can be taken out of a checkpoint of gigabytes.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from fewstep.errors import FileFormatError

LARGEST = 1 << 24
"""Bytes of a pickle, or of one tensor's data, that are read."""
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "",
    "BoolStorage": "?",
    "ByteStorage": "u1",
}
"""numpy's codes of torch's classes; an empty one has none, and its tensors cannot be asked for."""
SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class Refused(pickle.UnpicklingError):
    """The pickle wants something that plain results have no need for."""


class _Kind:
    """Stands for a class of storages or of numbers: a numpy type code, and nothing else."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        """The rest of a numpy dtype, which says nothing about a scalar of a little-endian machine."""


class Kept:
    """A tensor that is still in the archive. A pickle may write its attributes: they are checked when it is read."""

    def __init__(self, *parts: Any) -> None:
        self.parts: Any = parts


class Archive:
    """What a file holds: `held`, with a `Kept` for every tensor."""

    def __init__(self, path: Path, folder: str, held: Any) -> None:
        self.path, self.folder, self.held = path, folder, held

    def numbers(self, kept: Kept) -> Any:
        """A tensor as lists of numbers.

        Raises:
            Refused: a tensor that is larger than its data, or than `LARGEST`, or of a kind without a numpy code.
        """
        code, key, offset, size, stride = kept.parts
        sizes, strides = [int(n) for n in size], [int(n) for n in stride]
        with zipfile.ZipFile(self.path) as archive:
            flat = np.frombuffer(read_part(archive, f"{self.folder}data/{int(key)}"), dtype=_code(code))
        last = int(offset) + sum((n - 1) * m for n, m in zip(sizes, strides, strict=True))
        if min([int(offset), *sizes, *strides]) < 0 or (0 not in sizes and last >= len(flat)):
            raise Refused("a tensor that is larger than its data")
        if math.prod(sizes) > LARGEST:
            raise Refused("a tensor of more numbers than any result has")
        index = int(offset) + sum(
            (
                np.arange(n).reshape([-1 if k == d else 1 for d in range(len(sizes))]) * strides[k]
                for k, n in enumerate(sizes)
            ),
            start=np.zeros(sizes, dtype=np.int64),
        )
        return flat[index].tolist()

    def plain(self, value: Any) -> Any:
        """A value with its tensors as lists."""
        return self._plain(value, {})

    def _plain(self, value: Any, known: dict[int, Any]) -> Any:
        if id(value) not in known:  # shared parts stay shared: a small pickle can stand for an endless text
            known[id(value)] = self._converted(value, known)
        return known[id(value)]

    def _converted(self, value: Any, known: dict[int, Any]) -> Any:
        if isinstance(value, Kept):
            return self.numbers(value)
        if isinstance(value, dict):
            return {k: self._plain(v, known) for k, v in cast(dict[Any, Any], value).items()}
        if isinstance(value, list | tuple):
            found = [self._plain(v, known) for v in cast(list[Any], value)]
            return found if isinstance(value, list) else tuple(found)
        return value


def read_part(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a part of an archive.

    Raises:
        Refused: more than `LARGEST`.
    """
    if archive.getinfo(name).file_size > LARGEST:
        raise Refused(f"a part of more than {LARGEST >> 20} MiB")
    return archive.read(name)


def read_archive(path: Path, what: str) -> Archive:
    """What a file of `torch.save` holds; nothing in it is executed.

    Args:
        path: of the file.
        what: it should be, for messages: "a solver schedule".

    Raises:
        FileFormatError: a file that asks for anything but containers, tensors and numbers (the message names it), or
            that is damaged.
    """
    with explained(path, what), zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
        if len(pickles) != 1:
            raise FileFormatError(f"{path} holds {len(pickles)} pickles; give a file that torch.save wrote")
        held: Any = _Reader(read_part(archive, pickles[0])).load()
        return Archive(path, pickles[0].removesuffix("data.pkl"), held)


@contextmanager
def explained(path: Path, what: str) -> Generator[None]:
    """Turns whatever a damaged or hostile file raises into a `FileFormatError` that says what was wrong."""
    try:
        yield
    except Refused as error:
        raise FileFormatError(f"{path} holds {error}, which {what} has no use for; it was not read further") from None
    except FileFormatError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; nothing of it was executed
        raise FileFormatError(f"{path} cannot be read ({error}): give {what}") from error


def _code(code: Any) -> str:
    if code not in STORAGES.values() or not code:
        raise Refused(f"a tensor of the kind {code!r}")
    return str(code)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Kept:
    if not isinstance(storage, tuple) or len(cast(tuple[Any, ...], storage)) != 2:
        raise Refused("a tensor without data")
    return Kept(*cast(tuple[Any, ...], storage), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Kind) or kind.code not in SCALARS or not isinstance(data, bytes):
        raise Refused("a numpy number of an unknown kind")
    return np.frombuffer(data, dtype=f"<{kind.code}")[0].item()


def _latin(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """An unpickler that gives only what plain results need."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if module_name == "torch" and global_name in STORAGES:
            return _Kind(STORAGES[global_name])
        # Wrapped, since a pickle may set attributes of what it is given, and shall not reach this module's.
        known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda *args: _tensor(*args),
            "torch._utils._rebuild_parameter": lambda *args: _parameter(*args),
            "numpy.core.multiarray.scalar": lambda *args: _scalar(*args),
            "numpy._core.multiarray.scalar": lambda *args: _scalar(*args),
            "_codecs.encode": lambda *args: _latin(*args),
            "numpy.dtype": type("dtype", (_Kind,), {}),
        }
        if name not in known:
            raise Refused(f"the name {name}")
        return known[name]

    def persistent_load(self, pid: Any, /) -> Any:
        kind, key = (pid[1], pid[2]) if isinstance(pid, tuple) and len(cast(tuple[Any, ...], pid)) == 5 else (None, "")
        if not isinstance(kind, _Kind) or not str(key).isdigit():
            raise Refused("data of an unknown kind")
        return kind.code, str(key)
