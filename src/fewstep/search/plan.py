"""Dividing a budget of network calls before any is made.

A network call is one image through the network once; guidance that doubles the batch costs two. Every part of the work
has its share, and the shares of all parts, with every image counted, never exceed the whole.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.errors import ArgumentError
from fewstep.search.dynamic_oss import calls as oss_calls
from fewstep.search.parts import PARTS, Parts

PAIRED, GRAM = 0.05, 0.13
"""Shares of the teacher behind the paired figure, and of the noising paths; the race has the rest."""
PATHS, STEPPED = 0.12, 0.1
"""Shares of the teacher's trajectories that plans are made on, and of the student's states that OSS follows."""
LEVELS = 96
"""Noise levels of the KLUB table."""
LEAST = 48
"""Samples of a final figure, at least: fewer give no standard error."""
AROUND = 0.2
"""Part of the race's entries that is kept for the neighbours of the best."""
LAST = 8
"""Images of the last round and of the finals, in those of the first: a few bad samples weigh much in a small set."""
FEW_LAST = 6
"""As LAST, where images are dear, or there are many finalists."""
MATCHED_LAST = 4
"""As FEW_LAST, for a judge that compares with the teacher: chance weighs less, and the teacher is dear."""
MOST_IMAGES = 256
"""Images of the first round, at most; what is left of a large budget goes into more entries."""


@dataclass(frozen=True)
class Plan:
    """Numbers of images and calls, fixed beforehand.

    Attributes:
        max_calls: the budget.
        levels, paths: noise levels and data samples of the KLUB table; 0 without AYS.
        made: samples that the teacher makes because there are no data.
        trajectories: of the teacher, that plans are made on; stepped: those that OSS follows. 0 with other methods.
        counts: images in each round of the race.
        rooms: candidates in each round; guesses: those that the surrogate proposes, which enter at the second round.
        scale: part of the entries that the method is laid out for.
        parts: of the method; `auto` does without some where the budget is small.
        fresh: images in the finals, on fresh seeds.
        taught: whether selection needs the teacher on every seed.
        report, paired: images of the final figures, and those of them that the teacher makes too.
        image_cost: network calls of one image of the sampler that is looked for.
        stages: calls of each stage, at most.
    """

    max_calls: int
    levels: int
    paths: int
    made: int
    trajectories: int
    stepped: int
    counts: tuple[int, ...]
    rooms: tuple[int, ...]
    guesses: int
    scale: float
    parts: Parts
    fresh: int
    taught: bool
    report: int
    paired: int
    image_cost: int
    stages: dict[str, int]

    @property
    def total(self) -> int:
        """Calls of all stages together, at most."""
        return sum(self.stages.values())

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def default_calls(nfe: int, *, learned: bool = False) -> int:
    """The budget when none is given: for times 13,000 a step, but between 130,000 and 150,000, so that few steps are
    chosen as surely as ten; to learn 39,000 a step, between 240,000 and 450,000.
    """
    low, high, step = (240_000, 450_000, 39_000) if learned else (130_000, 150_000, 13_000)
    return min(high, max(low, step * nfe))


def plan(
    max_calls: int,
    *,
    nfe: int,
    batch_cost: int = 1,
    teacher: int = 60,
    parts: Parts = PARTS["grids"],
    solvers: int = 1,
    made: bool = False,
    taught: bool = False,
    levels: int = LEVELS,
    most_paths: int = 4096,
    paths: int | None = None,
    selection: int | None = None,
    report: int | None = None,
    table: bool = True,
    walked_already: bool = False,
    checked: int = 0,
    fewest: int = 0,
) -> Plan:
    """Divide `max_calls`.

    Args:
        max_calls: the budget, in network calls.
        nfe: calls of the sampler that is looked for.
        batch_cost: network calls of one evaluation (2 with guidance).
        teacher: calls of one reference sample; 0 where there is none.
        parts: of the method.
        solvers: how many solvers compete.
        made: whether the data have to be made by the teacher.
        taught: whether selection compares with the teacher.
        levels: noise levels of the KLUB table.
        most_paths: data samples that there are.
        paths, selection, report: numbers of samples that the caller asks for.
        table: whether the KLUB table is still to be computed, where the method needs one.
        walked_already: whether the plans' trajectories are there.
        checked: calls for a look at the data.
        fewest: images of the first round that the judge should have. Where the budget is short, fewer samplers enter
            rather than fewer images are made, down to `parts.least`.

    Errors: `ArgumentError` when the budget is too small for any search; it says how much would do.
    """
    klub = parts.ays
    one, taught_one = nfe * batch_cost, teacher * batch_cost
    whole = max_calls - batch_cost
    shown = report or _between(parts.report * whole / (2 * one), LEAST, 5000)
    pairs = min(shown, _between(PAIRED * whole / taught_one, 8, 256)) if teacher else 0
    levels = levels if klub and table else 0
    walks = walked(parts.looks * whole, levels * batch_cost, taught_one if made else 0, klub, most_paths, paths)
    runs, stepped = trajectories(whole, parts, taught_one, nfe, batch_cost, paths, walked_already)
    stages = {
        "probe": batch_cost,  # one question, by which a cache recognises the network
        "range of the data": checked,
        "data": walks * taught_one if made else 0,
        "KLUB table": walks * levels * batch_cost,
        "trajectories": runs * taught_one,
        "optimal steps": 2 * stepped * oss_calls(teacher + 1, nfe) * batch_cost,
        "report": 2 * shown * one,
        "teacher of the report": pairs * taught_one,
    }
    if parts.learned:
        stages["learning"] = int(parts.learn * whole)
    rest = max_calls - sum(stages.values())
    entries = parts.entries + 6 * (solvers - 1)
    least = parts.least + (6 * (solvers - 1) if parts.auto else 0)
    shape = _Shape(one, taught_one if taught else 0, entries, parts.guesses, parts.finalists, parts.taught, parts.auto)
    counts, rooms, guesses, fresh = shape.fill(rest, selection, fewest, least)
    if rooms[0] < 8:
        why = ", or give data=, which the teacher has to make otherwise" if made else ""
        enough = _enough(nfe, batch_cost, teacher, klub, made, taught) * parts.dearer
        enough += checked + 2 * stages["trajectories"]
        raise ArgumentError(
            f"max_calls={max_calls} is too small a budget at {nfe} calls per sample: the search needs about {enough}; "
            f"give more calls (or minutes){why}"
        )
    stages["race"] = shape.images(counts, rooms, guesses) * one
    stages["finals"] = parts.finalists * fresh * one
    stages["teacher of the selection"] = (counts[-1] + fresh) * taught_one if taught else 0
    return Plan(
        max_calls, levels, walks, walks if made else 0, runs, stepped, counts, rooms, guesses, rooms[0] / entries,
        parts, fresh, taught, shown, pairs, one, stages,
    )  # fmt: skip


def trajectories(
    calls: int, parts: Parts, per_path: int, n_max: int, batch_cost: int, asked: int | None, there: bool
) -> tuple[int, int]:
    """How many teacher trajectories a plan is made on, and how many of them OSS follows.

    Args:
        calls: of the whole budget.
        parts: of the method, which may need none.
        per_path: network calls of one trajectory.
        n_max: largest number of steps that OSS searches.
        batch_cost: network calls of one evaluation.
        asked: the number that the caller wants; there: whether they are made already.
    """
    if not parts.plans or there or not per_path:
        return 0, 0
    runs = asked or _between(parts.looks * PATHS * calls / per_path, 8, 256)
    one = 2 * oss_calls(per_path // batch_cost + 1, n_max) * batch_cost
    return runs, min(runs, _between(STEPPED * calls / max(1, one), 2, 64)) if "oss" in parts.plans else 0


def walked(calls: float, per_path: int, per_sample: int, klub: bool, most: int, asked: int | None) -> int:
    """How many clean samples the budget can use: noising paths of the KLUB table, or images to start and compare with.

    Args:
        calls: of the whole budget.
        per_path: network calls of one path through the table.
        per_sample: of one sample that the teacher has to make; 0 where they are there.
        klub: whether the method uses a table.
        most: samples that there are; asked: the number that the caller wants.
    """
    one = per_path + per_sample
    if not one:
        return 0
    share = (GRAM if klub else 0.05) * calls * (2 if per_sample else 1)
    return min(asked, most) if asked else min(most, _between(share / one, 16, 1024))


@dataclass(frozen=True)
class _Shape:
    """The proportions of the race: calls of one image and of its teacher (0 where not needed), entries, guesses,
    finalists, learned samplers in the last round, and whether there are many parts.
    """

    one: int
    taught_one: int
    entries: int
    guesses: int
    finalists: int = 4
    learned: int = 0
    many: bool = False

    def fill(self, calls: int, selection: int | None, fewest: int, least_entries: int) -> Filled:
        """Counts, rooms, guesses, and the images of the finals, that `calls` can pay for."""
        most = LAST if not self.many else MATCHED_LAST if self.taught_one else FEW_LAST
        # In images of the first round: 2.5 for each entry with its later rounds, 2 for each guess, 8 for each finalist.
        whole = 2.5 * self.entries + 2 * self.guesses + most * (self.finalists + self.learned)
        unit = _between(
            calls / (self.one * whole + 2 * most * self.taught_one), 8 if self.taught_one else 16, MOST_IMAGES
        )
        if selection is not None:
            unit = min(unit, max(8, selection // (2 * most)))
            fewest = min(fewest, unit)
        for images in range(fewest, unit, -1):
            for last in (most, min(most, FEW_LAST)):
                filled = self._filled(calls, images, last)
                if filled[1][0] >= least_entries:
                    return filled
        return self._filled(calls, unit, most)

    def _filled(self, calls: int, unit: int, last: int) -> Filled:
        """As many entries as `calls` can pay for with `unit` images in the first round."""
        counts, fresh = (unit, 2 * unit, last * unit), last * unit
        rest = calls - self.finalists * fresh * self.one - (counts[-1] + fresh) * self.taught_one
        entries = int(rest / self.one / unit)
        while entries > 0:
            guesses = entries * self.guesses // self.entries
            rooms = (entries, max(2, entries // 3), max(2, entries // 5))
            if self.images(counts, rooms, guesses) * self.one <= rest:
                return counts, rooms, guesses, fresh
            entries -= 1
        return counts, (0, 0, 0), 0, fresh

    def images(self, counts: tuple[int, ...], rooms: tuple[int, ...], guesses: int) -> int:
        """Images of the whole race, at most."""
        steps = [counts[0], *(after - before for before, after in itertools.pairwise(counts))]
        late = guesses * counts[1] + self.learned * counts[-1]
        return sum(room * step for room, step in zip(rooms, steps, strict=True)) + late


Filled = tuple[tuple[int, ...], tuple[int, ...], int, int]
"""Images in each round, candidates in each, guesses, and images of the finals."""


def _enough(nfe: int, batch_cost: int, teacher: int, klub: bool, made: bool, taught: bool) -> int:
    """A budget that surely does, for the message."""
    calls = 200 * LEAST * nfe * batch_cost // 10
    if klub:
        calls += 64 * 96 * batch_cost
    return int(2 * calls + (64 * made + 64 * taught + 16) * teacher * batch_cost)


def _between(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))
