"""What a descent learns from: first states and the teacher's end points of the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.randomness import unit_noise
from fewstep.search.gradient.objectives import Batch, Track
from fewstep.search.teacher import Teacher
from fewstep.search.trajectories import Trajectories

if TYPE_CHECKING:
    from fewstep.progress import Report

HELD = 2**30
"""Bytes of trajectories that are held in memory; larger ones are read a batch at a time."""


class Pairs:
    """Pairs of seeds, made once by the teacher.

    Args:
        teacher: makes the end points, and the trajectories where they are wanted.
        seeds: of the pairs.
        sigma, alpha: of the first state.
        path: whether trajectories are wanted.
        progress: told while the teacher works.
    """

    def __init__(
        self, teacher: Teacher, seeds: Sequence[int], *, path: bool, progress: Report, sigma: float, alpha: float = 0.0
    ) -> None:
        self.teacher, self.seeds = teacher, list(seeds)
        self.sigma, self.alpha = sigma, alpha
        self.paths: Trajectories | None = None
        self._states: Tensor | None = None
        if path:
            self.paths = teacher.trajectory(self.seeds, progress, outputs=False)
            one = self.paths.state(0)
            if one.nbytes * len(self.paths.times) <= HELD:
                self._states = torch.stack([self.paths.state(k) for k in range(len(self.paths.times))])
        self.targets = teacher(self.seeds, progress)
        shape = tuple(self.targets.shape[1:])
        self.noise = unit_noise(self.seeds, shape)
        self.moved = torch.zeros(0)
        """what a soft teacher added to the noise, `[n, *shape]`; empty without one"""

    def __len__(self) -> int:
        return len(self.seeds)

    def batch(self, index: Sequence[int], *, path: bool = False) -> Batch:
        """The pairs of some seeds, by their place."""
        net = self.teacher.denoiser
        pick = torch.tensor(list(index), device="cpu")
        seeds = [self.seeds[k] for k in index]
        noise = self.noise[pick] + (self.moved[pick] if len(self.moved) else 0)
        start = noise * self.sigma + self._image(seeds)
        put = lambda t: t.to(device=net.device, dtype=net.dtype)  # noqa: E731
        where = self._path(pick, seeds) if path else None
        return Batch(
            put(start), put(self.targets[pick]), where and where._replace(states=put(where.states)),
            self.teacher.condition(seeds),
        )  # fmt: skip

    def _image(self, seeds: list[int]) -> Tensor | float:
        """Image-to-image: the clean part of the first state."""
        init = self.teacher.init
        return 0.0 if init is None else init(seeds).cpu().float() * self.alpha

    def _path(self, pick: Tensor, seeds: list[int]) -> Track:
        assert self.paths is not None, "asked for when the pairs were made"
        if self._states is not None:
            states = self._states[:, pick]
        else:
            some = self.teacher.trajectory(seeds, outputs=False)
            states = torch.stack([some.state(k) for k in range(len(some.times))])
        return Track(states, self.paths.alpha, self.paths.sigma)
