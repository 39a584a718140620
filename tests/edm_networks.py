"""EDM networks for tests: configurations, weights from a seed, and files in the format of the released ones."""

from __future__ import annotations

import json
import math
import pickle
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.networks.edm import Preconditioned, build

Config = dict[str, Any]

DDPMPP: Config = {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "augment_dim": 9,
    "dropout": 0.13,
    "use_fp16": False,
}
NCSNPP: Config = DDPMPP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM: Config = {"model_type": "DhariwalUNet", "dropout": 0.1, "use_fp16": True}
TINY: Config = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
LABELLED: Config = TINY | {"label_dim": 10}
TINY_ADM: Config = ADM | TINY | {"model_channels": 32, "augment_dim": 9, "channel_mult": [1, 2, 3]}

SMALL: dict[str, Config] = {
    "ddpmpp": {"class_name": "EDMPrecond"} | DDPMPP | TINY,
    "ddpmpp-cond": {"class_name": "EDMPrecond"} | DDPMPP | LABELLED,
    "ncsnpp": {"class_name": "EDMPrecond"} | NCSNPP | TINY | {"channel_mult": [1, 2, 2], "num_blocks": 2},
    "ncsnpp-cond": {"class_name": "EDMPrecond"} | NCSNPP | LABELLED,
    "adm": {"class_name": "EDMPrecond"} | TINY_ADM,
    "adm-cond": {"class_name": "EDMPrecond"} | TINY_ADM | {"label_dim": 10, "num_blocks": 2},
    "baseline-vp": {"class_name": "VPPrecond"} | DDPMPP | TINY,
    "baseline-ve": {"class_name": "VEPrecond"} | NCSNPP | TINY,
    "baseline-adm-cond": {"class_name": "iDDPMPrecond"} | TINY_ADM | {"label_dim": 10},
}
"""Every option that a released network has, at 16x16 pixels."""

CIFAR10: Config = {"img_resolution": 32, "img_channels": 3, "model_channels": 128, "channel_mult": [2, 2, 2]}
FFHQ: Config = {"img_resolution": 64, "img_channels": 3, "model_channels": 128, "channel_mult": [1, 2, 2, 2]}
IMAGENET: Config = {"img_resolution": 64, "img_channels": 3, "model_channels": 192, "channel_mult": [1, 2, 3, 4]}
FULL: dict[str, Config] = {
    "cifar10-32x32-uncond-vp": {"class_name": "EDMPrecond"} | DDPMPP | CIFAR10 | {"label_dim": 0},
    "cifar10-32x32-cond-vp": {"class_name": "EDMPrecond"} | DDPMPP | CIFAR10 | {"label_dim": 10},
    "cifar10-32x32-uncond-ve": {"class_name": "EDMPrecond"} | NCSNPP | CIFAR10 | {"label_dim": 0},
    "cifar10-32x32-cond-ve": {"class_name": "EDMPrecond"} | NCSNPP | CIFAR10 | {"label_dim": 10},
    "ffhq-64x64-uncond-vp": {"class_name": "EDMPrecond"} | DDPMPP | FFHQ | {"label_dim": 0},
    "ffhq-64x64-uncond-ve": {"class_name": "EDMPrecond"} | NCSNPP | FFHQ | {"label_dim": 0},
    "imagenet-64x64-cond-adm": {"class_name": "EDMPrecond"} | ADM | IMAGENET | {"label_dim": 1000},
    "baseline-cifar10-32x32-uncond-vp": {"class_name": "VPPrecond"} | DDPMPP | CIFAR10 | {"label_dim": 0},
    "baseline-cifar10-32x32-uncond-ve": {"class_name": "VEPrecond"} | NCSNPP | CIFAR10 | {"label_dim": 0},
    "baseline-imagenet-64x64-cond-adm": {"class_name": "iDDPMPrecond"} | ADM | IMAGENET | {"label_dim": 1000},
}
"""The released networks by name (AFHQv2's are FFHQ's), as their training options make them."""

SIGMAS = (0.002, 0.05, 1.0, 20.0, 80.0)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(shapes: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Weights that depend on each tensor's name and shape alone; buffers that are no weights are kept."""
    state: dict[str, Tensor] = {}
    for name, value in shapes:
        draw = randn(*value.shape, seed=zlib.crc32(name.encode()))
        last = name.rpartition(".")[2]
        if last in ("resample_filter", "u"):
            state[name] = value.clone()
        elif last == "freqs":
            state[name] = 16 * draw
        elif value.ndim > 1:
            state[name] = draw / math.sqrt(value[0].numel())
        else:
            state[name] = 0.1 * draw + (1.0 if "norm" in name and last == "weight" else 0.0)
    return state


def inputs(config: Config, rows: int = len(SIGMAS)) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, noise levels, and one-hot labels where the network has classes."""
    sigma = torch.tensor(SIGMAS[:rows])
    size = config["img_resolution"]
    x = randn(rows, 3, size, size, seed=1) * (0.25 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    classes = config["label_dim"]
    return x, sigma, torch.eye(classes)[torch.arange(rows) * 7 % classes] if classes else None


def names(state: Mapping[str, Tensor]) -> int:
    """A checksum of all names and shapes."""
    return zlib.crc32(json.dumps(sorted((name, list(value.shape)) for name, value in state.items())).encode())


def seeded_network(config: Config) -> Preconditioned:
    return build(config, seeded(build(config).state_dict().items()))


# ------------------------------------------------------------------------------------ files as the authors write them
SOURCE = "raise SystemExit('the source code in the file was executed')"


class EasyDict(dict[str, Any]):
    """Pickled as `dnnlib.util.EasyDict`."""


EasyDict.__module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("only its name is for the pickle")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickled as the authors' `persistent_class` pickles an object: a call of a function on a record."""

    def __init__(self, class_name: str, state: Mapping[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,), None


@contextmanager
def their_modules() -> Iterator[None]:
    """The names that such a pickle refers to can be imported, while it is written."""
    modules = {name: ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}
    vars(modules["torch_utils.persistence"])["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    vars(modules["dnnlib.util"])["EasyDict"] = EasyDict
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def persistent(module: nn.Module, config: Config | None = None) -> Any:
    """The module as such a file holds it: module dictionaries as they are, all else as records."""
    children = OrderedDict((name, persistent(child)) for name, child in module._modules.items() if child is not None)
    if isinstance(module, nn.ModuleDict):
        plain = nn.ModuleDict()
        plain.__dict__["_modules"] = children
        return plain
    state = {k: v for k, v in vars(module).items() if k.startswith("_") or isinstance(v, bool | int | float | str)}
    state |= {"_modules": children, "skip_scale": np.sqrt(0.5), "resample": np.array([1, 1]), "_init_args": ()}
    arguments = dict(config or {})
    name = arguments.pop("class_name", type(module).__name__)
    return Persistent(name, EasyDict(state | {"_init_kwargs": arguments}))


def write_pickle(path: Path, config: Config, *, protocol: int = 4, **more: Any) -> Path:
    """A file in the format of the released ones, its weights from the names' seeds."""
    network = persistent(seeded_network(config), config)
    held = {"ema": network, "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None} | more
    with their_modules(), path.open("wb") as file:
        pickle.dump(held | {"dataset_kwargs": EasyDict(resolution=16)}, file, protocol=protocol)
    return path
