"""The time that a search was given: its parts ask whether theirs is over, and end early; no result waits for the rest.

The budget of network calls is what fits into the time at the speed that was measured at the start. Where the machine
gets slower, or all that is not the network takes long, the clock cuts what is left of a part.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.search.plan import Plan

HAND_CRAFTED, FIRST, WAYS, PLANS, EVOLUTION, RACE, LEARNING, FINALS = (
    "hand-crafted", "first lesson", "ways down", "plans", "evolution", "race", "learning", "finals",
)  # fmt: skip
"""Parts of a search, in their order."""
TIME_SHARE = 0.8
"""Part of the given time that the network may take; the rest is for everything else."""
WEIGHT = 1.5
"""How much longer a call of learning takes, on average: a good part of them is differentiated, which takes two more."""
SLACK = 0.1
"""Part of the time by which the race may be late where a lesson follows, which takes what is left."""
WITHIN = {HAND_CRAFTED: 0.6, FIRST: 0.7, WAYS: 0.8, PLANS: 0.85, EVOLUTION: 0.95, RACE: 1.0}
"""By when those of the race should be over, in parts of the time until its end: late enough to cut nothing where all
time goes into network calls, early enough to leave the later parts something.
"""


@dataclass
class Clock:
    """Seconds that are given; None for as long as it takes.

    Attributes:
        ends: by when each part should be over, in parts of the whole; lessons: how long those of learning may take.
        cut: parts that were ended early, in the order of their ends.
    """

    seconds: float | None = None
    ends: dict[str, float] = field(default_factory=dict[str, float])
    lessons: dict[str, float] = field(default_factory=dict[str, float])
    cut: dict[str, None] = field(default_factory=dict[str, None])
    begun: float = field(default_factory=time.monotonic)

    def over(self, part: str) -> bool:
        """Whether the part's time is over; then it counts as cut."""
        if self.seconds is None or time.monotonic() - self.begun <= self.ends.get(part, 1.0) * self.seconds:
            return False
        self.cut[part] = None
        return True

    def affordable(self, wanted: int, cost: int, spent: int, least: int) -> int:
        """How many of `wanted` things of `cost` calls there is time for, at the pace of the `spent` calls so far.

        All of them where nothing had to be cut.
        """
        if self.seconds is None or not self.cut:
            return wanted
        gone = time.monotonic() - self.begun
        left = max(0.0, self.seconds - gone)
        return min(wanted, max(least, int(left * spent / max(gone, 1e-9) / cost)))

    def follow(self, plan: Plan) -> None:
        """Let parts end in proportion to their network calls, those of learning with their weight."""
        stages = plan.stages
        late = [stages.get(name, 0) for name in ("finals", "report", "teacher of the report")]
        rest, learning = plan.total - stages.get("learning", 0), WEIGHT * stages.get("learning", 0)
        total = max(1, rest + learning)
        first = plan.parts.early * learning if plan.parts.first else 0
        slack = min(SLACK, (learning - first) / total / 2)  # a race is not cut for what a lesson can do without
        race = (rest - sum(late) + first) / total + slack
        self.ends = {part: share * race for part, share in WITHIN.items()}
        self.lessons = {FIRST: first / total, LEARNING: (learning - first) / total}
        self.ends |= {LEARNING: race - slack + (learning - first) / total, FINALS: 1 - sum(late[1:]) / total}
