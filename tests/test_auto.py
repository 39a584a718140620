"""`auto`: all parts in one race, the best of each in the finals, and the best so far on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep import models, solvers, times
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.optimizing import optimize
from fewstep.progress import Event, silent
from fewstep.search.compete import Competition
from fewstep.search.ledger import Ledger
from fewstep.search.methods import sources
from fewstep.search.parts import METHODS, PARTS, PLANNED, Parts
from fewstep.search.plan import plan
from fewstep.search.window import Window
from fewstep.tableau import Tableau
from tests.test_optimize import counted

CALLS = 30_000
ALL = {"hand", "dmn", "loss", "ays", "surrogate", "gits", "local_error", "s3", "ld3", "lesson", "joint"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path, list[str]]:
    """A search; the origins that lay on disk when each part was over."""
    folder, net, seen = tmp_path_factory.mktemp("auto"), counted(), list[str]()

    def look(event: Event) -> None:
        if (folder / "search.json").exists():
            found = Found.load(folder)
            if not found.complete and found.origin not in seen:
                seen.append(found.origin)

    judge = models.judge("problem:gaussian")
    assert judge is not None
    found = optimize(
        net, 3, judge=replace(judge, nll=None), max_calls=CALLS, out=folder, progress=look, teacher_calls=8
    )
    assert net.evaluations == found.calls <= CALLS
    return found, folder, seen


def test_all_parts_take_their_turn(run: tuple[Found, Path, list[str]]) -> None:
    found, _, _ = run
    assert {c["method"] for c in found.candidates} == ALL
    assert all(stage["calls"] <= stage["planned"] for stage in found.stages)
    assert len({c["solver"] for c in found.candidates if c["method"] == "hand"}) > 2
    assert found.selected_by.startswith("faithful, Fréchet distance to the teacher's end points")


def test_the_result_is_no_worse_than_any_part(run: tuple[Found, Path, list[str]]) -> None:
    found, _, _ = run
    finals = {c["method"]: c["fresh"]["score"] for c in found.candidates if "fresh" in c}
    assert {"hand", "joint", "s3", "ays", *PARTS["auto"].plans} <= set(finals)
    assert found.selection["after"] == min(c["fresh"]["score"] for c in found.candidates if "fresh" in c)
    assert found.selection["after"] < 0.7 * found.selection["before"]
    (told,) = [note for note in found.notes if note.startswith("Chosen on ")]
    assert f"{found.selection['after']:.4g}; behind it: " in told and f"{found.selection['before']:.4g}" in told


def test_the_course_is_told_and_the_best_so_far_is_on_disk(run: tuple[Found, Path, list[str]]) -> None:
    found, folder, seen = run
    parts = [step["part"] for step in found.course]
    assert parts == ["hand-crafted", "first lesson", "ways down", "plans", "evolution", "race", "learning"]
    spent = [step["calls"] for step in found.course]
    assert spent == sorted(spent) and 0 < spent[0] < spent[-1] <= found.calls
    assert seen[0] == found.course[0]["best"]  # before the table of AYS was made
    again = Found.load(folder)
    assert again.complete and again.tableau.isclose(found.tableau) and again.course == found.course


def test_a_small_budget_does_without_the_teachers_parts() -> None:
    found = optimize(counted(), 3, objective=lambda x: x.flatten(1).square().mean(1), max_calls=12_500, teacher_calls=8)
    assert "joint" not in {c["method"] for c in found.candidates}
    assert any("too few to plan or to learn" in note for note in found.notes)
    assert any(note.startswith("Chosen on ") for note in found.notes)


@pytest.mark.slow
def test_without_a_teacher_and_below_the_noisiest_time() -> None:
    options = {"objective": lambda x: x.flatten(1).square().mean(1), "max_calls": 24_000}
    found = optimize(counted(), 3, teacher_calls=0, data=torch.randn(64, 2), **options)
    assert {c["method"] for c in found.candidates} == ALL - {"gits", "local_error", "ld3", "lesson", "joint"}
    assert any("There is no teacher" in note for note in found.notes)
    found = optimize(counted(), 3, start=2.0, data=torch.randn(64, 2), **options)
    assert "s3" not in {c["method"] for c in found.candidates}
    assert any("S³ took no part" in note for note in found.notes)


class Same:
    """Likes all samplers alike."""

    def score(self, tableau: Tableau, count: int) -> float:
        return 1.0


@pytest.mark.parametrize("given", [False, True])
def test_a_first_lesson_enters_its_times_where_its_solver_competes(given: bool) -> None:
    """The solver of a given table does not: then the sampler itself goes on alone."""
    net = counted()
    every = sources(Window(net.noise), "dpmpp_2m", 3)
    scorer: Any = Same()
    p = plan(300_000, nfe=3, parts=PARTS["auto"], taught=True)
    competition = Competition(every, scorer, scorer, p, Ledger(net), silent)
    learned = every[0].candidate(times.karras(net.noise, 3, rho=4.0), "ld3", "learned")
    assert learned is not None
    weights = solvers.get("ddim")(learned.times).tabulate(net.noise)  # other numbers on these times
    learned = replace(learned, schedule=None, tableau=weights, solver="mine (given)" if given else "dpmpp_2m")
    competition.learn(lambda standing: [learned])
    assert [c.method for c in competition.race.entries] == (["ld3"] if given else ["ld3", "lesson"])


def test_parts() -> None:
    assert METHODS[:4] == ("auto", "grids", "ays", "dmn") and set(PLANNED) < set(METHODS)
    auto = PARTS["auto"]
    assert auto.untaught().finalists < auto.finalists and not auto.untaught().learned
    assert auto.unevolved().entries == auto.entries - auto.evolved
    assert Parts().finalists == 4 and PARTS["gs"].taught == 2
    with pytest.raises(ArgumentError, match="choose one of auto, grids"):
        optimize(counted(), 3, "all")
