"""The teacher: end points of a many-step reference run from the same seeds, made once and shared by every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.progress import Event, Report, silent
from fewstep.sampling import sample
from fewstep.search.cache import Cache, Probe, SeedRows, digest
from fewstep.solvers import dpmpp_3m
from fewstep.times import logsnr
from fewstep.times.grids import Ends

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.noise import NoiseSchedule
    from fewstep.rules import SolverSchedule
    from fewstep.tableau import Tableau

ConditionOf = Callable[[Sequence[int]], Any]
"""`seeds -> condition`, a pytree whose tensor leaves have one row for each seed; it must depend on each seed alone."""

InitOf = Callable[[Sequence[int]], Tensor]
"""`seeds -> [B, *shape]` clean images that image-to-image starts from; each must depend on its seed alone."""

CALLS = 60
CHUNK = 64


def no_condition(_seeds: Sequence[int]) -> None:
    """The condition of an unconditional network."""


class Teacher:
    """Samples of a reference tableau by seed.

    Args:
        denoiser: the network.
        tableau: the reference sampler, many steps; `reference_schedule` gives one.
        condition: condition of given seeds.
        cache: folder of the kept end points, named by a digest of the network's fingerprint, the tableau, the condition
            and the seeds; by default they are kept in memory only.
        probe: guards the cache; shared by those who use one network.
        batch_size: samples at a time.
        init: clean images that the samples start from, where the tableau begins below the noisiest time.

    Errors: `ArgumentError` when the tableau draws noise: its end points would be no reference for another sampler.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tableau: Tableau,
        *,
        condition: ConditionOf = no_condition,
        cache: Cache | str | Path | None = None,
        probe: Probe | None = None,
        batch_size: int = CHUNK,
        init: InitOf | None = None,
    ) -> None:
        if tableau.C.shape[1]:
            raise ArgumentError(
                "the teacher's tableau draws noise; give a deterministic one: its end points must belong to their seeds"
            )
        self.denoiser, self.tableau, self.condition, self._batch = denoiser, tableau, condition, batch_size
        self._init = init
        kept = cache if isinstance(cache, Cache) else Cache(cache)
        guard = probe or Probe(denoiser, condition(range(1)))
        self._rows = SeedRows(kept, self._name, self._run, guard, chunk=CHUNK, batch=batch_size)

    @property
    def cost(self) -> int:
        """Network calls of one end point."""
        return self.tableau.nfe * self.denoiser.batch_cost

    def __call__(self, seeds: Sequence[int], progress: Report = silent) -> Tensor:
        """End points `[len(seeds), *shape]`, float32 on the CPU. The kind of the seeds is the caller's business."""
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            progress(Event("teacher", done, len(seeds)))

        return self._rows(seeds, told)

    def _name(self, seeds: range) -> str:
        init = () if self._init is None else (self._init(seeds),)
        return "teacher-" + digest(
            self.denoiser.fingerprint, self.tableau.digest, list(seeds), self.condition(seeds), *init
        )

    def _run(self, seeds: list[int]) -> Tensor:
        images = sample(
            self.denoiser, self.tableau, seeds=seeds, init=None if self._init is None else self._init(seeds),
            condition=self.condition(seeds), batch_size=self._batch,
        )  # fmt: skip
        return images.float().cpu()


def reference_schedule(noise: NoiseSchedule, calls: int = CALLS, **ends: Unpack[Ends]) -> SolverSchedule:
    """The reference sampler: DPM-Solver++(3M) on equal steps of log signal-to-noise; `start`, `end` as for grids."""
    return dpmpp_3m(logsnr(noise, calls, **ends))
