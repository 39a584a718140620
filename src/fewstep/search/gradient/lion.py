"""Lion (Chen et al. 2023), which NeuralSolver descends with and torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Steps of equal size: the sign of a momentum that is looked at a little ahead of itself.

    Args:
        params: what learns.
        lr: size of a step.
        betas: of the look ahead and of the momentum.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; returns what `closure` returns."""
        loss = closure() if closure else None
        for group in self.param_groups:
            ahead, keep = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    p.add_(momentum.lerp(p.grad, 1 - ahead).sign(), alpha=-group["lr"])
                    momentum.lerp_(p.grad, 1 - keep)
        return loss
