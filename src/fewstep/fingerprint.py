"""Names of networks: results are filed under a digest that changes when the network does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def describe(fn: Any) -> str:
    """A text that changes with the network: its parameters where it is (or is a method of) a module, else its name.

    A module may carry its own name in `identity`, so that results stay filed under it when its class is renamed.
    """
    owner = getattr(fn, "__self__", fn)
    if isinstance(owner, torch.nn.Module):
        return f"{getattr(fn, 'identity', _name(fn))}:{parameters_digest(owner.state_dict())}"
    return _name(fn)


def _name(fn: Any) -> str:
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    return f"{getattr(fn, '__module__', type(fn).__module__)}.{name}"


def parameters_digest(tensors: Mapping[str, Tensor], samples: int = 64) -> str:
    """Digest of names, shapes, and some entries of each tensor, spread evenly (a few kB of a network of any size)."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // samples)].to(device="cpu", dtype=torch.float64)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of(*parts: Any) -> str:
    """16 hexadecimal digits of JSON-ready parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
