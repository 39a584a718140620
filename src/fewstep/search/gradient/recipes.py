"""The published learned samplers, and four of our own, as sentences: space, what is lowered, how it is descended.

Learning rates, schedules and batches are the papers' (or their code's) where they are known: LD3, GS, DyWeight,
NeuralSolver, DC-Solver and EPD. S4S and BNS print none that we could check; theirs are ours. Where a paper lowers
LPIPS or Inception features, the objective here is `features`: distances in the judge's feature network, or L2 where
there is none. Every part can be exchanged: an objective by name, an optimiser by `replace`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.search.gradient.lion import Lion
from fewstep.search.gradient.objectives import Along, Objective
from fewstep.search.gradient.space import Space

Optimiser = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]

OPTIMISERS: dict[str, Optimiser] = {
    "adam": lambda params, lr: torch.optim.Adam(params, lr),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr),
    "sgd": lambda params, lr: torch.optim.SGD(params, lr),
    "rmsprop": lambda params, lr: torch.optim.RMSprop(params, lr, momentum=0.9),
    "lion": Lion,
}


@dataclass(frozen=True)
class Rule:
    """How one group of parameters descends: an optimiser of `OPTIMISERS`, its learning rate, and the least one.

    With `per_call` the rate is divided by the number of network calls (LD3).
    """

    optimiser: str
    rate: float
    least: float = 0.0
    per_call: bool = False


@dataclass(frozen=True)
class Phase:
    """A part of the iterations, in which some groups learn.

    Attributes:
        share: of all iterations.
        groups: of the space's; those that it does not have are passed over.
        only: the one entry of the group's first parameter that learns, where the descent is greedy.
        objective: another than the recipe's.
    """

    share: float
    groups: tuple[str, ...] = ("times", "told", "weights")
    only: int | None = None
    objective: Objective | None = None


def at_once(_space: Space) -> list[Phase]:
    """Everything learns all the time."""
    return [Phase(1.0)]


def times_first(_space: Space) -> list[Phase]:
    """LD3: two rounds of the times, then five of times and model times."""
    return [Phase(2 / 7, ("times",)), Phase(5 / 7, ("times", "told"))]


def in_turns(_space: Space) -> list[Phase]:
    """S4S-Alt: weights, then times and model times, and so on, four times each."""
    return [Phase(1 / 8, groups) for _ in range(4) for groups in (("weights",), ("times", "told"))]


def greedy(space: Space) -> list[Phase]:
    """DC-Solver: one ratio after the other, each by the teacher's state at the time that its step goes to."""
    numbers = space()
    count = len(space.groups["weights"][0])
    after = [*numbers.calls[1:], len(numbers.times) - 1][-count:]
    last = len(numbers.times) - 1
    return [
        Phase(1 / count, only=k, objective=None if row == last else Along(weight=0.0, rows=(row,)))
        for k, row in enumerate(after)
    ]


@dataclass(frozen=True)
class Recipe:
    """A method.

    Attributes:
        name, space: of the method and of its space.
        loss: name of the objective (see `fewstep.search.gradient.losses`).
        rules: by group of parameters.
        iterations: the paper's number of updates, and the most that are made.
        batch: pairs in an update.
        clip: largest norm of the gradient; 0 for none.
        ema: decay of the average of parameters that is judged; 0 judges the parameters themselves.
        warmup, floor: parts of a cosine schedule: linear rise over a part of the iterations, and the last rate as a
            part of the first; a floor of 1 is a constant rate.
        patience: judgements without an improvement after which the best point is taken up again at a lower rate.
        decay: factor on the rates then.
        phases: parts of the descent.
        soft: LD3's soft teacher: the start noises of the pairs move too, within a radius.
        solver: the start that the paper uses, where ours must be a special one.
    """

    name: str
    space: str
    loss: str
    rules: Mapping[str, Rule]
    iterations: int
    batch: int = 32
    clip: float = 1.0
    ema: float = 0.0
    warmup: float = 0.0
    floor: float = 1.0
    patience: int = 5
    decay: float = 0.8
    phases: Callable[[Space], list[Phase]] = at_once
    soft: bool = False
    solver: str = ""

    @property
    def identity(self) -> list[Any]:
        """Names all of it, for files."""
        return [getattr(v, "__qualname__", repr(v)) for v in vars(self).values()]

    def rate(self, iteration: int, total: int) -> float:
        """The factor on all rates at an iteration."""
        warm = int(self.warmup * total)
        if iteration < warm:
            return 0.1 + 0.9 * iteration / warm
        part = (iteration - warm) / max(1, total - warm)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * part))


TIMES = Rule("rmsprop", 5e-3, least=5e-5)
TOLD = Rule("sgd", 0.1, least=1e-6, per_call=True)

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("times", "times", "features", {"times": Rule("adam", 3e-2)}, 2000, floor=0.05),
        Recipe("weights", "weights", "features", {"weights": Rule("adam", 5e-3)}, 2000, ema=0.99, floor=0.05),
        Recipe(
            "joint", "joint", "features",
            {"times": Rule("adam", 2e-2), "told": Rule("adam", 1e-2), "weights": Rule("adam", 5e-3)},
            2000, ema=0.99, floor=0.05,
        ),
        # Rates of pixel-space sets; the authors divide TOLD's by a hundred for latents. Their configuration makes 175
        # updates, 7 rounds of 50 pairs; here are more pairs, and at most twice as many.
        Recipe("ld3", "ld3", "features", {"times": TIMES, "told": TOLD}, 350, batch=2, phases=times_first, soft=True),
        Recipe("s4s", "s4s", "features", {"weights": Rule("adam", 5e-3)}, 2000, batch=20, soft=True),
        Recipe(
            "s4s-alt", "s4s-alt", "features", {"weights": Rule("adam", 5e-3), "times": TIMES, "told": TOLD}, 2000,
            batch=20, phases=in_turns, soft=True,
        ),
        Recipe(
            "gs", "gs", "features", {group: Rule("adam", 1e-3) for group in ("times", "told", "weights")}, 10_000,
            batch=24, ema=0.999, patience=10**9, solver="dpmpp_3m",
        ),
        Recipe(
            "bns", "bns", "log-l2", {"times": Rule("adam", 5e-3), "weights": Rule("adam", 5e-3)}, 15_000, batch=40,
            floor=0.01, patience=10**9,
        ),
        Recipe(
            "dyweight", "dyweight", "features", {"weights": Rule("adam", 3e-2)}, 625, batch=16, warmup=0.1,
            floor=0.01, patience=10**9, solver="ipndm_3",
        ),
        Recipe(
            "neural-solver", "neural-solver", "neural-solver",
            {"times": Rule("lion", 1e-2), "weights": Rule("lion", 1e-2)}, 2000, batch=4, patience=10**9,
            solver="euler",
        ),
        Recipe(
            "dc", "dc", "l2", {"weights": Rule("adamw", 0.1)}, 400, batch=10, clip=0.0, patience=10**9, phases=greedy,
            solver="unipc",
        ),
        Recipe(
            "epd", "epd", "epd", {"weights": Rule("adam", 0.2)}, 79, batch=128, clip=0.0, floor=0.05,
            patience=10**9, solver="dpm_2",
        ),
        Recipe(
            "epd-1", "epd-1", "epd", {"weights": Rule("adam", 0.2)}, 79, batch=128, clip=0.0, floor=0.05,
            patience=10**9, solver="dpm_2",
        ),
    )
}  # fmt: skip
"""Method by name."""
