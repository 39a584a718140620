"""What was spent: network calls and seconds by stage, beside what was planned."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from fewstep.batching import in_batches
from fewstep.conditions import rows
from fewstep.randomness import CalibrationSeeds, unit_noise

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser


@dataclass
class Stage:
    """One stage's cost; `planned` is its upper bound, `calls` what this run made: less where a cache had the answer.

    `backward` counts the calls that were differentiated too, each about twice as dear again as the call itself.
    """

    stage: str
    planned: int
    calls: int = 0
    seconds: float = 0.0
    backward: int = 0


class Ledger:
    """Stages of one run, in the order in which they began; a stage may be entered again, but not inside another."""

    def __init__(self, model: Denoiser) -> None:
        self.model = model
        self.stages: dict[str, Stage] = {}

    @contextmanager
    def stage(self, name: str, planned: int = 0) -> Generator[Stage]:
        """Count what happens inside; an interrupted stage is counted too."""
        entry = self.stages.setdefault(name, Stage(name, planned))
        before, started = self.model.evaluations, time.monotonic()
        try:
            yield entry
        finally:
            entry.calls += self.model.evaluations - before
            entry.seconds += time.monotonic() - started

    @property
    def calls(self) -> int:
        """Network calls so far."""
        return sum(stage.calls for stage in self.stages.values())

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return sum(stage.seconds for stage in self.stages.values())

    def record(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [asdict(stage) for stage in self.stages.values()]


def speed(model: Denoiser, condition: Any, batch: int) -> float:
    """Network calls a second, from two timed batches after one that warms up; costs three batches, which are run in
    parts where they do not fit in memory.
    """
    noise = unit_noise(CalibrationSeeds(batch), tuple(model.shape)) * model.noise.sigma(model.noise.t_max).item()
    x = noise.to(device=model.device, dtype=model.dtype)

    def call(lo: int, hi: int) -> None:
        out = model(x[lo:hi], model.noise.t_max, rows(condition, slice(lo, hi)))
        torch.as_tensor(out if isinstance(out, torch.Tensor) else out[0]).sum().item()  # waits for the device

    fits = max(hi - lo for lo, hi, _ in in_batches(call, batch))
    started = time.monotonic()
    for _ in range(2):
        for _ in in_batches(call, batch, fits):
            pass
    return 2 * batch * model.batch_cost / max(time.monotonic() - started, 1e-9)
