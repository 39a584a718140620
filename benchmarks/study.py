"""What the study costs: can the driver keep a thousand workers busy, does it survive, what does an evaluation cost?

    python -m benchmarks.study busy [--workers 1000] [--trials 20000] [--proposer s3]
    python -m benchmarks.study kills [--times 200]
    python -m benchmarks.study evaluation [--images 256] [--nfe 8] [--objective controlled]

`busy` runs the real store, runner and proposals against simulated workers. Their clock runs as fast as the driver's own
time (what it computes and writes) and jumps over the time in which the driver only waits, so an hour of a thousand
workers takes the seconds that the driver needs for it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.proposals import Proposal, Trial
from fewstep.study.reading import read
from fewstep.study.records import TIMEOUT, WORKER_DIED, Outcome, Task
from fewstep.study.runner import Runner
from fewstep.study.store import Store

LATENCY, SPREAD = 10.0, 0.5
"""Median seconds of an evaluation, and the standard deviation of their logarithm."""
STRAGGLERS, SLOWNESS = 0.01, 10.0
"""Share of evaluations that take so many times longer."""
DEATHS, HANGS, TIMELIMIT = 0.01, 0.001, 200.0
"""Share of evaluations in which the worker dies, or hangs until the pool's limit."""
RESTART = 5.0
"""Seconds until a dead worker is replaced."""


@dataclass
class SimulatedPool:
    """Workers that only wait, on a clock that jumps.

    `cpu`: count the driver's computing time instead of the time that passed: for a machine that others use too. The
    learning is in another process, and counts in neither.
    """

    workers: int
    seed: int = 0
    cpu: bool = False
    serial: bool = False
    _events: list[tuple[float, int, Task | None, dict[str, Any]]] = field(default_factory=list)
    _free: int = 0
    _count: int = 0
    _jumped: float = 0.0
    _spans: list[tuple[float, float]] = field(default_factory=list)
    _handed: set[int] = field(default_factory=set)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._free = self.workers
        self._clock = time.process_time if self.cpu else time.perf_counter
        self._began = self._clock()

    def now(self) -> float:
        return self._clock() - self._began + self._jumped

    def idle(self) -> int:
        return self._free

    def submit(self, task: Task) -> str:
        now, draw = self.now(), self._draw
        seconds = LATENCY * draw.lognormvariate(0.0, SPREAD) * (SLOWNESS if draw.random() < STRAGGLERS else 1.0)
        kind, answer = draw.random(), {"score": draw.random()}
        if kind < DEATHS:
            seconds, answer = seconds * draw.random(), {"cause": WORKER_DIED, "message": "simulated"}
        elif kind < DEATHS + HANGS or seconds > TIMELIMIT:
            seconds, answer = TIMELIMIT, {"cause": TIMEOUT, "message": "simulated"}
        self._free -= 1
        self._count += 1
        self._spans.append((now, now + seconds))
        if task.key.trial not in self._handed:
            self._handed.add(task.key.trial)
            self._last = now
        heapq.heappush(self._events, (now + seconds, self._count, task, answer | {"seconds": seconds}))
        return f"simulated {self._count % self.workers}"

    def wait(self, timeout: float) -> list[Outcome]:
        if timeout > 0:
            until = self.now() + timeout
            self._jumped += max(0.0, min(until, self._events[0][0] if self._events else until) - self.now())
        outcomes: list[Outcome] = []
        while self._events and self._events[0][0] <= self.now():
            when, number, task, answer = heapq.heappop(self._events)
            if task is not None and "cause" in answer:
                heapq.heappush(self._events, (when + RESTART, number, None, {}))
            else:
                self._free += 1
            if task is not None:
                outcomes.append(Outcome.of(task, f"simulated {number % self.workers}", answer))
        return outcomes

    def close(self) -> None:
        pass

    @property
    def utilisation(self) -> float:
        """Busy share of the workers' time, from the first handing out until the last trial was handed out."""
        return self.utilisation_from(self._spans[0][0])

    @property
    def utilisation_filled(self) -> float:
        """The same, from the moment when every worker had been given work once."""
        return self.utilisation_from(self._spans[self.workers - 1][0])

    def utilisation_from(self, first: float) -> float:
        """Busy share from a moment on."""
        busy = sum(max(0.0, min(end, self._last) - max(start, first)) for start, end in self._spans)
        return busy / (self.workers * (self._last - first))


class Perturber:
    """Proposals as a search makes them (named solvers with moved times), and a learning that takes its time."""

    name = "perturber"

    def __init__(self, learn_every: int = 500, learning: float = 5.0) -> None:
        from fewstep import solvers, times
        from fewstep.noise import EDM

        self.learn_every, self._learning, self.lesson = learn_every, learning, 0
        self.noise = EDM()
        self._bases = [
            solvers.get(name)(times.named("logsnr")(self.noise, n))
            for name in ("ddim", "dpmpp_2m")
            for n in range(4, 11)
        ]

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        draw = random.Random(seed)
        out: list[Proposal] = []
        for _ in range(count):
            base = draw.choice(self._bases)
            times = base.times.clone()
            for k in range(1, len(times) - 1):
                low, high = times[k + 1].item(), times[k - 1].item()
                times[k] = low + (high - low) * draw.uniform(0.2, 0.8)
            out.append(Proposal(base.with_times(times).canonical(), "moved"))
        return out

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        until = time.thread_time() + self._learning
        while time.thread_time() < until:  # pure Python: the worst for a driver that shares the interpreter
            sum(range(1000))
        self.lesson += 1
        return {"learnt": self.lesson}


def busy(workers: int, trials: int, *, cpu: bool, proposer: str, learning: float = 5.0) -> dict[str, Any]:
    """Utilisation of simulated workers over a study of so many trials."""
    from fewstep.noise import EDM
    from fewstep.search import s3

    nfes = tuple(range(4, 11))
    strategy = (
        Perturber(learning=learning)
        if proposer == "perturber"
        else s3.proposer(proposer, noise=EDM(), nfes=nfes, seed=0)
    )

    def measure(schedule: Any) -> tuple[int, str]:
        table = schedule.tabulate(EDM())
        return table.nfe, table.digest

    record = {
        "model": "simulated", "objective": "none", "proposer": proposer, "budget": trials, "counts": [256],
        "nfes": list(nfes), "seed": 0, "fresh": 0, "winners": 1, "ask": 1,
    }  # fmt: skip
    pool = SimulatedPool(workers, cpu=cpu)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.sqlite"
        with Store.create(path, record) as store:
            started, computed = time.perf_counter(), time.process_time()
            Runner(store, strategy, pool, measure).run()
            passed, computed = time.perf_counter() - started, time.process_time() - computed
        contents = read(path)
        count = sum(entry.scored for entry in contents.entries.values())
    return {
        "proposer": proposer, "workers": workers, "trials": trials, "scored": count, "utilisation": pool.utilisation,
        "utilisation_once_filled": pool.utilisation_filled,
        "driver_ms_per_trial": 1e3 * computed / trials, "simulated_s": pool.now(), "passed_s": passed,
        "learned": len(contents.learned), "retried": sum(e.attempts for e in contents.evaluations()),
        "clock": "the driver's computing time" if cpu else "time that passed",
    }  # fmt: skip


def kills(times: int) -> dict[str, Any]:
    """Drivers and workers of small studies killed; every study finished and counted (tests/test_pools.py)."""
    from tests.test_pools import killed

    per = 10
    for seed in range(-(-times // per)):
        with tempfile.TemporaryDirectory() as folder:
            killed(Path(folder) / "study.sqlite", kills=per, workers=2 * (seed % 2), seed=seed, budget=200)
        print(f"{(seed + 1) * per} kills survived", file=sys.stderr, flush=True)
    return {"kills": -(-times // per) * per, "lost": 0, "counted_twice": 0}


def evaluation(model: str, objective: str, images: int, nfe: int, repeats: int, batch_size: int) -> dict[str, Any]:
    """Computing time of one evaluation over that of its network calls alone, in turns.

    What all evaluations share, the teacher's part, is made before; its size changes nothing here and is kept small.
    """
    import torch

    from fewstep import compare
    from fewstep.evaluating import Evaluator
    from fewstep.randomness import unit_noise

    torch.set_num_threads(1)
    evaluator = Evaluator(model, objective, images=images, batch_size=batch_size, population=images)
    evaluator.prepare()
    network = evaluator.model
    ratios, whole, bare = [], [], []
    for k in range(repeats + 1):
        cell = compare.cell(network.noise, "dpmpp_2m", "karras" if k % 2 else "logsnr", nfe)
        assert cell.tableau is not None and cell.tableau.schedule is not None
        times = cell.tableau.schedule.times.clone()
        times[1] *= 1 - 1e-3 * (k + 1)  # another table each time: nothing is remembered
        record = cell.tableau.schedule.with_times(times).to_dict()
        started = time.process_time()
        evaluator(record, images)
        middle = time.process_time()
        with torch.no_grad():
            for low in range(0, images, batch_size):
                seeds = evaluator.selection[low : low + batch_size]
                condition = evaluator.condition(seeds)
                x = unit_noise(list(seeds), tuple(network.shape))
                begun = time.process_time()
                for t in times[:-1].tolist():
                    network(x * t, t, condition)
                bare.append(time.process_time() - begun)
        if k:  # the first one loads code
            whole.append(middle - started)
            ratios.append(whole[-1] / sum(bare))
        bare.clear()
    ratios.sort()
    return {
        "model": model, "objective": evaluator.objective, "images": images, "nfe": nfe,
        "seconds": min(whole), "ratio": ratios[len(ratios) // 2],
        "ratios": ratios,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("busy")
    part.add_argument("--workers", type=int, default=1000)
    part.add_argument("--trials", type=int, default=20_000)
    part.add_argument("--learning", type=float, default=5.0)
    part.add_argument("--proposer", default="perturber", help="perturber: moved times of named solvers; s3, evolution")
    part.add_argument("--cpu", action="store_true", help="count computing time, on a machine that others use too")
    part = commands.add_parser("kills")
    part.add_argument("--times", type=int, default=200)
    part = commands.add_parser("evaluation")
    part.add_argument("--model", default="mnist")
    part.add_argument("--objective", default="auto")
    part.add_argument("--images", type=int, default=256)
    part.add_argument("--nfe", type=int, default=8)
    part.add_argument("--repeats", type=int, default=5)
    part.add_argument("--batch-size", type=int, default=64)
    asked = vars(parser.parse_args(arguments))
    command = asked.pop("command")
    print(json.dumps({"busy": busy, "kills": kills, "evaluation": evaluation}[command](**asked), indent=2))


if __name__ == "__main__":
    from benchmarks.study import main as run  # under its own name, so that another process finds what is in it

    run()
