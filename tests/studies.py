"""Studies in small: a proposer that draws times at random, and what goes with it."""

import importlib
import math
import os
import random
import time
from collections.abc import Sequence
from typing import Any

from fewstep.proposals import Proposal, Trial
from fewstep.rules import SolverSchedule, Step
from fewstep.study.store import Store

NFES = (3, 4, 5)


class Drawer:
    """Random times for Euler, near those of the best finished trials; what it learned changes what it draws."""

    name, learn_every = "drawer", 7

    def __init__(self, nfes: Sequence[int] = NFES, **options: Any) -> None:
        self.nfes, self.lesson, self.options = tuple(nfes), 0.0, options

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        draw = random.Random(f"{seed} {self.lesson!r} {len(trials)}")
        done = sorted((t for t in trials if t.scores), key=lambda t: t.scores[max(t.scores)])[:5]
        out: list[Proposal] = []
        for _ in range(count):
            n = draw.choice(self.nfes)
            parents = [t for t in done if t.nfe == n]
            base = (
                parents[0].proposal.schedule.times.tolist()[1:-1] if parents else [draw.random() for _ in range(n - 1)]
            )
            inner = sorted((min(0.99, max(0.01, t + 0.05 * draw.random() - 0.02)) for t in base), reverse=True)
            # Two that were moved to the same rim must not be equal.
            inner = [t + 1e-4 * (n - k) for k, t in enumerate(inner)]
            out.append(
                Proposal(schedule([1.0, *inner, 0.0]), f"drawn {seed % 97}", 0, tuple(t.number for t in parents))
            )
        return out

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        scores = [t.scores[max(t.scores)] for t in trials]
        self.lesson = math.fsum(s for s in scores if s < math.inf)
        return {"mean": self.lesson / len(scores)}


class Stumbler(Drawer):
    name = "stumbler"

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        raise ValueError("no more than seven")


class Sudden(Drawer):
    name = "sudden"

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        os._exit(3)


class Stranger(Drawer):
    """Of a script, which another process does not know."""

    name = "stranger"

    def __reduce__(self) -> Any:
        return importlib.import_module, ("a_script_nobody_knows",)


class Sleeper(Drawer):
    name = "sleeper"

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        time.sleep(60)
        return {}


def drawer(*, noise: Any = None, nfes: Sequence[int] = NFES, seed: int = 0, **options: Any) -> Drawer:
    return Drawer(nfes, **options)


def schedule(times: Sequence[float]) -> SolverSchedule:
    import torch

    return SolverSchedule(torch.tensor(times, dtype=torch.float64, device="cpu"), (Step(),) * (len(times) - 1))


def measure(found: SolverSchedule) -> tuple[int, str]:
    """Calls and digest without a table: quick, and exact for Euler."""
    times = found.times.tolist()
    return len(times) - 1, "-".join(f"{t:.12g}" for t in times)


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "none", "objective": "evenness", "proposer": "drawer", "budget": 24, "counts": [4], "nfes": list(NFES),
        "seed": 1, "fresh": 0, "winners": 1, "ask": 2,
    }  # fmt: skip
    return base | changes


def spec(factory: str = "evaluator", **arguments: Any) -> dict[str, Any]:
    return {"factory": f"tests.study_evaluators:{factory}", "arguments": arguments}


def sequence(store: Store) -> list[Any]:
    """All that a search decided and learned: what an interruption must not change."""
    contents = store.contents
    trials = [
        (e.trial.digest, e.trial.proposal.origin, e.trial.proposal.parents, dict(e.trial.scores), e.status)
        for e in contents.entries.values()
    ]
    return [*trials, *((told.through, told.trials, told.report) for told in contents.learned)]
