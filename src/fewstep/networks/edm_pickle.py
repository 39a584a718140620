"""Reading the `.pkl` files of the EDM networks without running what is in them.

Such a file is a pickle whose modules are records `_reconstruct_persistent_obj({class_name, module_src, state, ...})`:
unpickled as its authors mean it, it executes the source code it carries. Here an unpickler that knows a closed list of
names makes inert records of them. Tensors are copied out of their bytes, source code is never looked at, and any name
that is not on the list ends the reading with an error that says which.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FileFormatError


class Refused(pickle.UnpicklingError):
    """The pickle wants something that no weights file needs."""


@dataclass(frozen=True)
class Record:
    """What remains of a module of the file: its class's name and its attributes."""

    class_name: str
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Held:
    """A tensor as the pickle may hold it. Tensors themselves could be told to change their storage."""

    tensor: Tensor


class Inert:
    """Stands for an object of a class that is known by name only: keeps its attributes, does nothing."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Options(dict[str, Any]):
    """Stands for `dnnlib.EasyDict`."""


class Scalar(Inert):
    """Stands for `numpy.dtype`; the byte order is all that matters of its state."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        super().__init__()
        if not (isinstance(code, str) and code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")):
            raise Refused(f"a numpy number of type {code!r}")
        self.code: str = code

    def value(self, data: Any) -> float | int | bool:
        """The number that the bytes are (little-endian, as on every machine that made such files)."""
        return np.frombuffer(cast(bytes, data), dtype=np.dtype(f"<{self.code}"))[0].item()


def _persistent(meta: Any) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("a persistent object that is no record of a class")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, Mapping):
        raise Refused("a persistent object without a class name or a state")
    return Record(name, state)


def _storage(data: Any) -> Held:
    """The flat tensor of a storage that torch saved into bytes, through torch's own restricted reader."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError):
        raise Refused("a storage that is no plain tensor data") from None
    if not isinstance(found, torch.storage.TypedStorage):
        raise Refused(f"a storage that is a {type(found).__name__}")
    with torch.device("cpu"):
        return Held(torch.empty(0, dtype=found.dtype).set_(found._untyped_storage))  # pyright: ignore[reportPrivateUsage]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Held:
    sizes, strides = tuple(map(int, size)), tuple(map(int, stride))
    flat = storage.tensor if isinstance(storage, Held) else None
    if flat is None or math.prod(sizes) > flat.numel() or min((*strides, 0)) < 0:
        raise Refused("a tensor that is larger than its data")
    return Held(flat.as_strided(sizes, strides, int(offset)).clone())  # checks the bounds


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _scalar(dtype: Any, data: Any) -> float | int | bool:
    if not isinstance(dtype, Scalar):
        raise Refused("a numpy number without a type")
    return dtype.value(data)


def _latin(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise Refused(f"text in the encoding {encoding!r}")
    return str(text).encode("latin1")


KNOWN: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": Options,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.nn.modules.container.ModuleDict": Inert,
    "torch.nn.modules.container.ModuleList": Inert,
    "torch.nn.modules.container.Sequential": Inert,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.slice": slice,
    "_codecs.encode": _latin,
    "numpy.dtype": Scalar,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": Inert,
    "numpy.core.multiarray._reconstruct": Inert,
    "numpy._core.multiarray._reconstruct": Inert,
}
"""Every name that a pickle may ask for, and what it gets."""


def _own(found: Callable[..., Any]) -> Callable[..., Any]:
    """The same for one use: a pickle may set attributes of what it is given, and shall not reach this module's."""
    if isinstance(found, type):
        return type(found.__name__, (found,), {}) if found.__module__ == __name__ else found

    def call(*args: Any) -> Any:
        return found(*args)

    return call


class Reader(pickle.Unpickler):
    """An unpickler that gives only what `KNOWN` has, or its own list of names."""

    known: Mapping[str, Callable[..., Any]] = KNOWN

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for a name of the file.

        Raises:
            Refused: a name that is not on the list.
        """
        name = f"{module_name}.{global_name}"
        if name not in self.known:
            raise Refused(f"the name {name}")
        return _own(self.known[name])

    def persistent_load(self, pid: Any, /) -> Any:
        """Refuse references to data outside the pickle."""
        raise Refused("data outside the pickle")


def read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration (see `fewstep.networks.edm.build`) and tensors of the network under `ema`.

    Raises:
        FileFormatError: a pickle that asks for anything but tensors, plain containers and records of modules (the
            message names it), one that is damaged, or one without such a network.
    """
    try:
        with path.open("rb") as file:
            held = Reader(file).load()
    except Refused as error:
        raise FileFormatError(
            f"{path} holds {error}, which a file of an EDM network has no use for; it was not read further. Get the "
            "file from its authors"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way; nothing of it was executed
        raise FileFormatError(f"{path} cannot be read as a pickle ({error}); download it again") from error
    network = cast(dict[str, Any], held).get("ema") if isinstance(held, dict) else None
    if not isinstance(network, Record):
        raise FileFormatError(f"{path} has no network under 'ema'; give a network-snapshot or a published .pkl of EDM")
    try:
        return _config(network), dict(_tensors(network, ""))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} holds a module of an unknown form ({error}); download it again") from error


def _config(network: Record) -> dict[str, Any]:
    positional = network.state.get("_init_args") or ()
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    given = dict(zip(names, positional, strict=False)) | dict(network.state["_init_kwargs"])
    return {"class_name": network.class_name} | {str(k): _plain(v) for k, v in given.items()}


def _plain(value: Any) -> Any:
    """The value, if JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    raise ValueError(f"an argument of the network is a {type(value).__name__}")


def _tensors(module: Record | Inert, prefix: str) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by the names of a state dictionary."""
    state = module.state
    transient = state.get("_non_persistent_buffers_set", ())
    found: list[tuple[str, Tensor]] = []
    for group in ("_parameters", "_buffers"):
        for name, value in state[group].items():
            if value is not None and not (group == "_buffers" and name in transient):
                if not isinstance(value, Held):
                    raise ValueError(f"{prefix}{name} is a {type(value).__name__}, not a tensor")
                found.append((prefix + name, value.tensor))
    for name, child in state["_modules"].items():
        if child is not None:
            found += _tensors(child, f"{prefix}{name}.")
    return found
