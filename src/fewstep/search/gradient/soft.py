"""LD3's soft teacher: the start noise of a pair may move within a small ball, towards one that the student can follow.

A student of few steps need not send a noise where the teacher sends it; it is enough that it sends some noise near by
there. Only the pairs that are learned from move; whatever is judged starts from its own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.search.gradient.pairs import Pairs

RADIUS, RATE = 0.001, 12.0
"""LD3's: the ball is `0.001 size / N^2` wide, the rate `12 / N`; N network calls, in units of the unit noise."""


class Soft:
    """Moves the noises of the pairs of a batch.

    Args:
        pairs: whose noises move.
        calls: network calls of the student.
    """

    def __init__(self, pairs: Pairs, calls: int) -> None:
        self.pairs, self.rate = pairs, RATE / calls
        self.radius = RADIUS * math.prod(pairs.noise.shape[1:]) / calls**2
        if not len(pairs.moved):
            pairs.moved = torch.zeros_like(pairs.noise)

    def __call__(self, index: Sequence[int], slope: Tensor, loss: float, again: Callable[[], float]) -> None:
        """One step of gradient descent, projected to the ball; it is taken back unless the loss falls.

        Args:
            index: of the batch.
            slope: gradient of the loss in the first states.
            loss: of the batch; again: the same once the noises have moved.
        """
        where = torch.tensor(list(index), device="cpu")
        before = self.pairs.moved[where].clone()
        moved = before - self.rate * self.pairs.sigma * slope.to(before)
        size = moved.flatten(1).norm(dim=1).clamp_min(1e-30)
        shrink = (self.radius / size).clamp_max(1.0).reshape(-1, *(1,) * (moved.ndim - 1))
        self.pairs.moved[where] = moved * shrink
        if not again() < loss:
            self.pairs.moved[where] = before
