"""Conditions: pytrees (tensor, tuple, dict, ...) whose tensor leaves have the sample axis first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewstep.errors import ArgumentError

Condition = Any
"""A pytree whose tensor leaves have the sample axis first; None for no condition."""


def null_rows(null: Condition, rows: int, *, like: Condition = None, device: torch.device | str = "cpu") -> Condition:
    """A null condition for `rows` samples.

    Its leaves are tensors `[1, ...]`, which are shared by all samples, or numbers, which fill a leaf of `like` (without
    `like`: become `[rows]`). Anything else is passed on as it is.

    Raises:
        ArgumentError: a leaf made for another number of samples, or a structure unlike that of `like`.
    """

    def fill(leaf: Any, model: Any = None) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim:
            if len(leaf) not in (1, rows):
                raise ArgumentError(
                    f"a leaf of the null condition has shape {tuple(leaf.shape)}: its first axis "
                    "must be 1, shared by all samples"
                )
            return leaf.expand(rows, *leaf.shape[1:])
        if not isinstance(leaf, int | float | Tensor):
            return leaf
        if isinstance(model, Tensor):
            return torch.zeros_like(model) + torch.as_tensor(leaf, dtype=model.dtype)
        return torch.as_tensor(leaf, device=device).expand(rows)

    if like is None:
        return pytree.tree_map(fill, null)
    try:
        return pytree.tree_map(fill, null, like)
    except ValueError as error:
        raise ArgumentError(f"the null condition does not have the structure of the condition: {error}") from error


def joined(first: Condition, second: Condition) -> Condition:
    """Both conditions in one batch, the samples of the first before those of the second."""
    return pytree.tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, first, second)


def rows(condition: Condition, index: slice | Sequence[int] | Tensor) -> Condition:
    """Some samples of a condition."""
    return pytree.tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, condition)


def placed(condition: Condition, device: torch.device | str) -> Condition:
    """The same on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, condition)


def first_rows(condition: Condition, n: int) -> Condition:
    """The first `n` samples of a condition."""
    return rows(condition, slice(0, n))


def on_device(condition: Condition, device: torch.device) -> Condition:
    """The same condition on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, condition)
