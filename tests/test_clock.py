"""Minutes are kept: parts of a search end early where the machine is slower than it was when its speed was measured."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import models
from fewstep.many import optimize_many
from fewstep.optimizing import optimize
from fewstep.search.clock import (
    EVOLUTION,
    FINALS,
    FIRST,
    HAND_CRAFTED,
    LEARNING,
    PLANS,
    RACE,
    SLACK,
    WAYS,
    WEIGHT,
    Clock,
)
from fewstep.search.parts import PARTS
from fewstep.search.plan import plan
from fewstep.search.select import FEWEST, Race
from tests.test_auto import CALLS
from tests.test_optimize import Counted, counted, off_the_modes

MEASURED = 3
"""Batches by which the speed is measured."""


class Slowing(Counted):
    """A network that takes its time once its speed has been measured."""

    patience = MEASURED + 1  # and the question by which a cache knows it

    def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
        self.patience -= 1
        if self.patience < 0:
            time.sleep(0.02)
        return super().__call__(x, t, condition)


def slowing() -> Slowing:
    inner = counted()
    return Slowing(inner.fn, noise=inner.noise, shape=inner.shape, fingerprint="slowing")


def test_parts_end_in_their_order_in_proportion_to_their_calls() -> None:
    for method in ("auto", "joint", "grids"):
        clock, p = Clock(100.0), plan(300_000, nfe=6, parts=PARTS[method], taught=True)
        clock.follow(p)
        parts = (HAND_CRAFTED, FIRST, WAYS, PLANS, EVOLUTION, RACE, LEARNING, FINALS)
        ends = [clock.ends[part] for part in parts]
        assert ends == sorted(ends) and ends[0] > 0 and ends[-1] < 1
        total = p.total + (WEIGHT - 1) * p.stages.get("learning", 0)
        assert ends[-1] == pytest.approx(1 - (p.stages["report"] + p.stages["teacher of the report"]) / total)
        learned = WEIGHT * p.stages.get("learning", 0) * (1 - p.parts.early) / total
        assert clock.ends[LEARNING] - clock.ends[RACE] == pytest.approx(max(learned - SLACK, learned / 2))


def test_a_clock_without_time_cuts_nothing() -> None:
    assert Clock().affordable(100, 3, 10, 5) == 100
    late = Clock(10.0, begun=time.monotonic() - 8)  # two seconds are left, at a hundred calls a second
    assert late.affordable(100, 4, 800, 5) == 100
    late.cut[RACE] = None
    assert late.affordable(100, 4, 800, 5) == pytest.approx(50, abs=1) and late.affordable(100, 400, 800, 5) == 5
    assert not Clock(None, {RACE: 0.0}, begun=0.0).over(RACE)
    clock = Clock(10.0, {RACE: 0.4}, begun=time.monotonic() - 5)
    assert clock.over(RACE) and not clock.over(FINALS) and [*clock.cut] == [RACE]


def test_a_race_that_is_late_has_a_few_entries() -> None:
    source = [_candidate(k) for k in range(9)]
    race = Race(lambda c, n: float(c.log_ratios[0]), (4, 8), lambda c, n: None, late=lambda: True)
    race.enter(source, 9)
    assert race.entries == source[:FEWEST]
    race.promote(1, 3, 1, lambda c: False)
    assert all([*c.scores] == [4] for c in race.entries)


def _candidate(k: int) -> Any:
    first = next(source_candidates())
    return replace(first, log_ratios=torch.full_like(first.log_ratios, float(k)), scores={}, about={})


def source_candidates() -> Any:
    from fewstep.search.methods import sources
    from fewstep.search.window import Window

    return sources(Window(counted().noise), "dpmpp_2m", 3)[0].hand()


@pytest.mark.parametrize("method", ["dmn", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_search_ends_when_its_time_is_over(method: str) -> None:
    """By far fewer calls than it had planned, with a whole result that is no worse than its start."""
    judge = models.judge("problem:gaussian")
    assert judge is not None
    own: dict[str, Any] = {"objective": off_the_modes} if method == "dmn" else {"judge": replace(judge, nll=None)}
    found = optimize(slowing(), 3, method, minutes=0.06, max_calls=CALLS, batch_size=32, teacher_calls=20, **own)
    assert found.calls < 0.7 * found.plan["max_calls"]
    assert any("Ended early: " in note and "race" in note for note in found.notes)
    assert found.complete and found.selection["after"] <= found.selection["before"]
    assert set(found.report) >= {"before", "after", "gain"}


@pytest.mark.slow
def test_several_results_share_the_time() -> None:
    asked: dict[str, Any] = {"objective": off_the_modes, "minutes": 0.1, "max_calls": 40_000, "batch_size": 32}
    many = optimize_many(slowing(), (2, 3), method="dmn", **asked)
    for found in many.results.values():
        assert found.calls < 0.8 * found.plan["max_calls"]
        assert any("Ended early: " in note for note in found.notes)
