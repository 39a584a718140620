"""The teacher: a many-step reference run from the same seeds, made once and shared by every method.

    teacher = Teacher(net, reference_schedule(net.noise, 60).tabulate(net.noise), cache="runs/.cache")
    ends = teacher.endpoints(SelectionSeeds(64))              # [64, *shape]
    paths = teacher.trajectory(CalibrationSeeds(32))          # states and outputs x0 at all of its times
    paths.times, paths.states, paths.outputs                  # [61], [32, 61, *shape], [32, 60, *shape]
    paths.state(10), paths.output(10)                         # [32, *shape]: that time alone, memory-mapped

Both are kept under a digest of the network, its precision, the teacher's table, and the conditions and start images
of the seeds; trajectories bring their end points with them. Processes may share a folder, and a run that was killed
goes on where it stopped. `Teacher.cost` is what one seed costs in network calls, `Trajectories.cost` what all do: the
price of a method that learns from them, also where they were there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from fewstep.batching import in_batches
from fewstep.brownian import brownian_noise, motion
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.progress import Event, Report, silent
from fewstep.sampling import first_state, sample, trajectory
from fewstep.search import meter
from fewstep.search.cache import Cache, Probe, SeedRows, digest, precision
from fewstep.search.trajectories import Shelf, Trajectories
from fewstep.solvers import NAMES, STOCHASTIC, dpmpp_3m
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
DETOURS = ("heun_churn", "restart")
"""Stochastic solvers that follow the ODE, and go back to more noise now and then."""


def no_condition(_seeds: Sequence[int]) -> None:
    """The condition of an unconditional network."""


class Teacher:
    """End points and trajectories of a reference tableau, by seed.

    Args:
        denoiser: the network.
        tableau: the reference sampler, many steps; `reference_schedule` gives one, any deterministic one will do.
        brownian: let the tableau be a stochastic one, whose noise is that of a Brownian motion for each seed
            (`fewstep.brownian`): a reference for stochastic samplers that follow the same motion.
        condition: condition of given seeds.
        cache: folder where results are kept, named by a digest of the network's fingerprint, its precision, the
            tableau, the condition and the seeds; by default they are kept in memory only.
        probe: guards the cache; shared by those who use one network.
        batch_size: samples at a time.
        init: clean images that the samples start from, where the tableau begins below the noisiest time.

    Errors: `ArgumentError` when the tableau draws noise without `brownian`: its end points would be no reference for
        another sampler.
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
        brownian: bool = False,
    ) -> None:
        if tableau.C.shape[1] and not brownian:
            raise ArgumentError(
                "the teacher's tableau draws noise; give a deterministic one, or brownian=True where the samplers that "
                "are compared with it are stochastic and follow the same motion"
            )
        self.denoiser, self.tableau, self.condition, self._batch = denoiser, tableau, condition, batch_size
        self.init = init
        kept = cache if isinstance(cache, Cache) else Cache(cache)
        guard = self.probe = probe or Probe(denoiser, condition(range(1)))
        self.dtype = torch.promote_types(denoiser.dtype, torch.float32)
        self._rows = SeedRows(kept, self._name, self.run, guard, chunk=CHUNK, batch=batch_size)
        self.identity = {
            "network": denoiser.fingerprint,
            "table": tableau.digest,
            "dtype": str(denoiser.dtype),
            "network dtype": str(getattr(denoiser, "network_dtype", None)),
        } | ({"motion": list(motion(tableau))} if tableau.C.shape[1] else {})
        self._shelf = Shelf(kept, f"trajectories-{digest(self.identity)}", self.identity, self._token, guard)
        self._knots = knots(tableau)

    @property
    def cost(self) -> int:
        """Network calls of one end point, or of one trajectory."""
        return self.tableau.nfe * self.denoiser.batch_cost

    @property
    def times(self) -> Tensor:
        """`[T+1]` of a trajectory's states, from noisy to clean."""
        return self.tableau.times[[row for row, _ in self._knots]]

    def endpoints(self, seeds: Sequence[int], progress: Report = silent) -> Tensor:
        """End points `[len(seeds), *shape]` on the CPU, in float32 at least.

        The kind of the seeds is the caller's business.
        """
        meter.asked(self.tableau.digest, self.cost, seeds)
        return self._rows(seeds, progress)

    __call__ = endpoints

    def trajectory(self, seeds: Sequence[int], progress: Report = silent, *, outputs: bool = True) -> Trajectories:
        """The states at all of the teacher's times, and the network's outputs there.

        Args:
            seeds: of the trajectories; their kind is the caller's business.
            progress: told after every batch.
            outputs: whether the network's outputs are wanted, which doubles the size.

        Raises:
            DenoiserError: states that are not finite, with the time and the seeds; no memory for one sample; or a cache
                of another network or precision.
            ArgumentError: outputs of a network with several channels.
        """
        if outputs and self.denoiser.channels != 1:
            raise ArgumentError(
                f"the network gives {self.denoiser.channels} outputs, and trajectories keep one: wrap it with "
                "guidance, or give outputs=False"
            )
        if outputs and any(row < 0 for _, row in self._knots[:-1]):
            raise ArgumentError(
                "the teacher's table does not call the network at every time (an analytical first step?), and has no "
                "outputs to keep there: give another table, or outputs=False"
            )
        wanted = list(dict.fromkeys(seeds))
        meter.asked(self.tableau.digest, self.cost, wanted)
        missing = self._missing(wanted, outputs)
        done = len(wanted) - len(missing)
        progress(Event("teacher", done, len(wanted)))

        def run(lo: int, hi: int) -> None:
            # Another process may have made some of them since.
            part = self._missing(missing[lo:hi], outputs)
            if part:
                states, x0 = self._walk(part, outputs)
                self._shelf.add(part, states, x0)
                self._rows.put(part, states[-1])

        for lo, hi, _ in in_batches(run, len(missing), self._batch, missing) if missing else ():
            done += hi - lo
            progress(Event("teacher", done, len(wanted)))
        rows = [row for row, _ in self._knots]
        table, shards = self.tableau, self._shelf.covering(wanted, outputs=outputs)
        return Trajectories(seeds, self.times, table.alpha[rows], table.sigma[rows], self.cost, shards)

    def _missing(self, seeds: Sequence[int], outputs: bool) -> list[int]:
        there = {seed for shard in self._shelf.covering(seeds, outputs=outputs) for seed in shard.seeds}
        return [seed for seed in seeds if seed not in there]

    def _walk(self, seeds: list[int], outputs: bool) -> tuple[Tensor, Tensor | None]:
        """States `[T+1, b, *shape]` and outputs `[T, b, *shape]` of one batch, on the CPU."""
        start = first_state(self.denoiser, self.tableau, seeds, None if self.init is None else self.init(seeds))
        states = torch.empty(len(self._knots), *start.shape, dtype=self.dtype, device="cpu")
        x0 = torch.empty_like(states[:-1]) if outputs else None
        state_of = {row: k for k, (row, _) in enumerate(self._knots)}
        output_of = {row: k for k, (_, row) in enumerate(self._knots[:-1])}
        with torch.no_grad(), meter.making(self.denoiser):
            noise = brownian_noise(self.tableau, seeds, tuple(start.shape[1:]))
            for point in trajectory(self.denoiser, self.tableau, start, condition=self.condition(seeds), noise=noise):
                if point.row in state_of:
                    states[state_of[point.row]].copy_(point.state)
                if x0 is not None and point.row in output_of and isinstance(point.output, Tensor):
                    x0[output_of[point.row]].copy_(point.output)
        finite = states.isfinite().flatten(2).all(2)
        if not finite.all():
            k = int((~finite.all(1)).nonzero()[0, 0])
            bad = tuple((~finite[k]).nonzero()[:, 0].tolist())
            time = self.times[k].item()
            raise DenoiserError(
                f"the teacher's states are not finite at time {time:g}: check the network's dtype and input scale",
                time=time, rows=bad,
            )  # fmt: skip
        return states, x0

    def _name(self, seeds: range) -> str:
        more = (*precision(self.denoiser), *motion(self.tableau))
        init = () if self.init is None else (self.init(seeds),)
        return "teacher-" + digest(
            self.denoiser.fingerprint, self.tableau.digest, list(seeds), self.condition(seeds), *init, *more
        )

    def start_digest(self, seeds: Sequence[int]) -> str:
        """Names the clean images that the seeds start from."""
        return "" if self.init is None else digest(self.init(seeds))

    def _token(self, seeds: Sequence[int]) -> str:
        return digest(list(seeds), self.condition(seeds), self.start_digest(seeds))

    def run(self, seeds: Sequence[int]) -> Tensor:
        """End points `[len(seeds), *shape]` on the CPU, made anew and not kept."""
        with meter.making(self.denoiser):
            images = sample(
                self.denoiser, self.tableau, seeds=seeds, init=None if self.init is None else self.init(seeds),
                condition=self.condition(seeds), batch_size=self._batch, brownian=True,
            )  # fmt: skip
        return images.to(device="cpu", dtype=self.dtype)


def knots(tableau: Tableau) -> list[tuple[int, int]]:
    """The rows of a table that are its trajectory: for each of its times the row of the state and that of the output.

    The state is the last one at that time (a corrected one where there is a corrector), the output the last at that
    time; -1 where the network is not called. Inner nodes are no part of it: the times are those of the decisions.
    """
    told = tableau.times.tolist()
    wanted = tableau.times if tableau.schedule is None else tableau.schedule.times
    levels = sorted({t for t in wanted.tolist() if t in told}, reverse=True)
    found: list[tuple[int, int]] = []
    for level in levels:
        rows = [i for i, t in enumerate(told) if t == level]
        asked = [i for i in rows if tableau.evaluated[i]]
        found.append((rows[-1], asked[-1] if asked else -1))
    return found


def reference_schedule(noise: NoiseSchedule, calls: int = CALLS, **ends: Unpack[Ends]) -> SolverSchedule:
    """The reference sampler: DPM-Solver++(3M) on equal steps of log signal-to-noise; `start`, `end` as for grids."""
    return dpmpp_3m(logsnr(noise, calls, **ends))


def sde_of(solver: str) -> str:
    """The named solver that is the reference of a stochastic solver's SDE, on one Brownian motion with it: ER-SDE-3 for
    ER-SDE, SDE-DPM-Solver++(2M) for all that solve the reverse SDE. Empty for those that solve the ODE, with detours to
    more noise (churn, restart) or without.
    """
    if solver not in STOCHASTIC or solver in DETOURS:
        return ""
    return "er_sde_3" if solver.startswith("er_sde") else "sde_dpmpp_2m"


def stochastic_reference(sde: str, noise: NoiseSchedule, calls: int = CALLS, **ends: Unpack[Ends]) -> SolverSchedule:
    """The reference sampler of an SDE, `sde_of` a solver: on the same times as `reference_schedule`."""
    return NAMES[sde](logsnr(noise, calls, **ends))
