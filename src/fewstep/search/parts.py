"""What each method is made of: the parts that propose samplers, in the order of their turns in one race."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fewstep.search.gradient.recipes import RECIPES

HAND, DMN, LOSS, AYS, GUESS, GIVEN, EVOLVED, LESSON = "hand", "dmn", "loss", "ays", "surrogate", "given", "s3", "lesson"
"""Methods of single candidates; planned and learned ones have the names of `PLANNED` and `RECIPES`."""
PLANNED = ("gits", "oss", "local_error")
"""Methods that plan on a teacher's trajectories."""
STARTS = 2
"""A method that learns does so from so many of the best, where its calls are enough for several."""


@dataclass(frozen=True)
class Parts:
    """A method. Hand-crafted grids always take part.

    Attributes:
        entries: that the race is laid out for; a larger budget first goes into more images for each.
        least: entries that are given up last when images get dear.
        dmn: variants of DMN's bound.
        curve: times from the network's loss curve.
        ays: grids on the ways down the KLUB table from everything before them.
        plans: entries that are kept for each kind of planned times.
        evolved: entries that S³ proposes: children of what is in the race, in all their decisions.
        guesses: places that a surrogate of the times proposes.
        learned: recipes that learn by gradient from the best of all, one after the other; portions: of the calls that
            are then left.
        loss: what the last of these lowers; by default what its paper does, as the others do.
        first: a recipe that learns from the best of the hand-crafted, before the rest of the race.
        looks: of the usual shares for noising paths and trajectories, so much.
        learn, report: parts of the budget for learning, the teacher's pairs included, and for the final figures.
        early: part of the learning that this may take, so that something good is there soon.
        auto: whether a part that this network or budget cannot have is left out, instead of being refused.
    """

    entries: int = 16
    least: int = 13
    dmn: int = 0
    curve: bool = False
    ays: bool = False
    plans: Mapping[str, int] = field(default_factory=dict[str, int])
    evolved: int = 0
    guesses: int = 0
    learned: tuple[str, ...] = ()
    portions: tuple[float, ...] = (1.0,)
    loss: str = ""
    first: str = ""
    looks: float = 1.0
    learn: float = 0.5
    report: float = 0.28
    early: float = 0.0
    auto: bool = False

    @property
    def finalists(self) -> int:
        """Samplers in the finals: the best three, the best hand-crafted, and the best of every other part."""
        others = (self.dmn, self.curve, self.ays, self.guesses, self.evolved, *self.plans, *[self.first] * 2)
        return 4 + (sum(map(bool, others)) if self.auto else 0)

    @property
    def taught(self) -> int:
        """Learned samplers that enter the race, at most."""
        return STARTS * (len(self.learned) + bool(self.first))

    @property
    def lessons(self) -> tuple[str, ...]:
        """All recipes by which it learns."""
        return tuple(dict.fromkeys([*([self.first] if self.first else []), *self.learned]))

    @property
    def dearer(self) -> int:
        """How much dearer than times alone, for a message."""
        return 6 if self.auto else 3 if self.learned else 1

    def unplanned(self) -> Parts:
        """Without plans."""
        return replace(self, plans={}, entries=self.entries - sum(self.plans.values()))

    def untaught(self) -> Parts:
        """Without what needs a teacher."""
        return replace(self.unplanned(), learned=(), loss="", first="", report=Parts.report)

    def unevolved(self) -> Parts:
        """Without S³, which knows only whole ranges of noise."""
        return replace(self, evolved=0, entries=self.entries - self.evolved)


PARTS: dict[str, Parts] = {
    "auto": Parts(
        60, 60, dmn=2, curve=True, ays=True, plans={"gits": 3, "local_error": 4}, evolved=16, guesses=6,
        learned=("ld3", "joint"), portions=(0.3, 1.0), loss="faithful", first="ld3", looks=0.6, learn=0.48, early=0.2,
        report=0.1, auto=True,
    ),
    "grids": Parts(36, 24, dmn=2, curve=True, ays=True, guesses=16),
    "ays": Parts(40, 24, curve=True, ays=True),
    "dmn": Parts(16, 13, dmn=4),
    "gits": Parts(24, 18, plans={"gits": 8}),
    "oss": Parts(18, 15, plans={"oss": 2}),
    "local_error": Parts(26, 20, plans={"local_error": 10}),
    **{name: Parts(learned=(name,), report=0.15) for name in RECIPES},
}  # fmt: skip
"""Parts by method: `auto` has them all; `grids` looks for times alone, which any host can take."""
METHODS = tuple(PARTS)
