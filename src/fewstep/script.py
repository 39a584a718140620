"""One scripted run of a sampler: it plays chosen outputs and noise, and writes down what the sampler did with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewstep.errors import ArgumentError, NotATable

Unknown = tuple[str, int]
"""Which unknown: ("start", 0), ("output", j), ("noise", m), ("interval", k) or ("edit", row)."""

F64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


@dataclass
class Row:
    """One network call as the sampler made it."""

    state: Tensor
    told: float
    alpha: float | None
    sigma: float | None


class Script:
    """One run of a sampler: what each unknown is worth in it, and the record of what the sampler did.

    A host (a function that takes a Script and returns the last state) starts from `start()`, answers its network calls
    by `output(...)`, and may call `edit(state)` between two steps and `increment(a, b)` for Brownian noise. Ordinary
    normal noise is caught wherever the sampler draws it.
    """

    def __init__(
        self, value: Callable[[Unknown], Tensor], shape: tuple[int, ...], dtype: torch.dtype, knots: list[float] | None
    ) -> None:
        self.value = value
        self.shape = shape
        self.dtype = dtype
        self.rows: list[Row] = []
        self.draws = 0
        self.edits: list[int] = []
        self.asked: list[tuple[float, float]] = []
        self._knots = knots

    def _play(self, unknown: Unknown, dtype: torch.dtype | None = None) -> Tensor:
        return self.value(unknown).reshape(self.shape).to(dtype or self.dtype, copy=True)

    def start(self) -> Tensor:
        """The first state."""
        return self._play(("start", 0))

    def output(self, state: Tensor, told: float, alpha: float | None = None, sigma: float | None = None) -> Tensor:
        """Record that the network was called on `state` and told the time `told`; returns its scripted x0.

        `alpha` and `sigma` say where the host takes the state to be, where it says so.
        """
        if state.numel() != self.value(("start", 0)).numel():
            raise ArgumentError(
                f"the sampler called its network with shape {tuple(state.shape)} for a state of shape {self.shape}: "
                "trace it without guidance (one network call per output), and wrap the guidance into the denoiser"
            )
        self.rows.append(Row(state.detach().reshape(-1).to(**F64, copy=True), told, alpha, sigma))
        return self._play(("output", len(self.rows) - 1), state.dtype).reshape(state.shape)

    def edit(self, state: Tensor) -> Tensor:
        """The state as somebody outside edits it just before the next network call (stepwise weights)."""
        self.edits.append(len(self.rows))
        return state + self._play(("edit", len(self.rows)), state.dtype).reshape(state.shape)

    def normal(self, like: Tensor) -> Tensor:
        """The next draw of unit noise, in the shape and dtype of `like`."""
        if like.numel() != self.value(("start", 0)).numel():
            raise NotATable(
                f"the sampler draws noise of shape {tuple(like.shape)} for a state of shape {self.shape}, "
                "which no column of a table can hold; sample with it directly"
            )
        self.draws += 1
        return self._play(("noise", self.draws - 1), like.dtype).reshape(like.shape)

    def increment(self, first: float, second: float) -> Tensor:
        """Brownian motion's increment between two levels over the root of their distance: unit noise.

        Increments that overlap share the disjoint pieces between their end points, one unknown for each piece.
        """
        self.asked.append((first, second))
        if self._knots is None:
            return self._play(("interval", len(self.asked)))
        low, high = sorted(min(self._knots, key=lambda knot: abs(knot - level)) for level in (first, second))
        total = torch.zeros(self.shape, dtype=self.dtype, device="cpu")
        for k, (a, b) in enumerate(pairwise(self._knots)):
            if low <= a and b <= high:
                total += ((b - a) / (high - low)) ** 0.5 * self._play(("interval", k))
        return total if first >= second else -total


class Catch(TorchFunctionMode):
    """Every normal draw that torch makes while this is on comes from the script."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func is torch.randn or func is torch.randn_like:
            played = self.script.normal(drawn)
            return drawn.copy_(played) if "out" in (kwargs or {}) else played
        if func is Tensor.normal_:
            mean, std = (
                ([*args[1:], 0.0, 1.0][:2])
                if len(args) > 1
                else ((kwargs or {}).get("mean", 0.0), (kwargs or {}).get("std", 1.0))
            )
            return args[0].copy_(mean + std * self.script.normal(args[0]))
        return drawn
