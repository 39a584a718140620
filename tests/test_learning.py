"""Methods that learn by gradient inside `optimize` and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fewstep import problems, sample, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.lowered import lowered_by
from fewstep.metrics import Statistics
from fewstep.models import Judge
from fewstep.noise import EDM
from fewstep.optimizing import optimize
from fewstep.randomness import CalibrationSeeds, ReportSeeds, unit_noise
from fewstep.remarks import of_teacher
from fewstep.search.cache import Cache
from fewstep.search.gradient.recipes import RECIPES
from fewstep.search.judges import ImageJudge, PairedJudge
from fewstep.search.objective import Scorer
from fewstep.search.parts import PARTS
from fewstep.search.plan import default_calls, plan
from fewstep.search.teacher import Teacher, no_condition
from fewstep.tableau import Tableau

NOISE = EDM()


def mixture() -> Denoiser:
    means = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    known = problems.GaussianMixture(means, 0.01, noise=NOISE, name="four").denoiser()
    net: Any = lambda x, t, condition=None: known(x, t)  # noqa: E731 - one that nobody recognises, for quick figures
    return Denoiser(net, noise=NOISE, shape=(2,), dtype=known.dtype, fingerprint="four")


def off_the_modes(images: torch.Tensor) -> torch.Tensor:
    return ((images.abs() - 1).square().sum(1) / 0.02 - 1).square()


off_the_modes.fingerprint = "off the modes"  # pyright: ignore[reportFunctionMemberAccess] - so that scores are kept


SMALL: dict[str, Any] = {"max_calls": 20_000, "teacher_calls": 20, "objective": off_the_modes}


def stage(found: Found, name: str) -> dict[str, Any]:
    return next(s for s in found.stages if s["stage"] == name)


@pytest.mark.parametrize("method", [pytest.param("times", marks=pytest.mark.slow), "dyweight"])
def test_optimize_learns(method: str, tmp_path: Path) -> None:
    found = optimize(mixture(), 3, method, out=tmp_path, **SMALL)
    assert found.selection["after"] <= found.selection["before"] and found.tableau.nfe == 3
    learned = [c for c in found.candidates if c["method"] == method]
    assert stage(found, "learning")["backward"] > 0
    if not learned:  # a descent that finds nothing better gives its start back, which is in the race already
        assert any("the start is returned" in note for note in found.notes)
        return
    assert learned[0]["learned"]["score"] <= learned[0]["learned"]["start_score"]
    told = stage(found, "learning")
    assert 0 < told["calls"] <= told["planned"] and told["backward"] == learned[0]["learned"]["backward"] > 0
    assert found.backward == told["backward"] and found.calls <= 20_000
    losses = learned[0]["learned"]["losses"]
    told_apart = " on pairs it learned from, {:.3g} -> {:.3g} on others".format(*(losses[k]["held"] for k in losses))
    assert any(told_apart in note and "identities are off by" in note for note in found.notes)
    kept = Tableau.load(tmp_path / "schedule.json")
    assert kept == found.tableau and Found.load(tmp_path).times == found.times
    again = optimize(mixture(), 3, method, out=tmp_path, **SMALL)
    assert again.tableau == found.tableau and stage(again, "learning")["backward"] == 0
    assert stage(again, "learning")["calls"] < told["calls"] / 3  # what is looked at again is not kept


@pytest.mark.slow
def test_a_learned_sampler_runs_like_any_other(tmp_path: Path) -> None:
    net = mixture()
    found = optimize(net, 3, "weights", loss="l2", **SMALL)
    if found.improved:
        assert found.tableau.schedule is None and "weights" in found.tableau.name
    found.save(tmp_path / "s.json")
    one, two = (sample(net, t, seeds=range(4)) for t in (found.tableau, Tableau.load(tmp_path / "s.json")))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "method, nfe, options, why",
    [
        ("epd", 5, {}, "near by it can make 4, 7"),
        ("times", 4, {"teacher_calls": 0}, "learns from a teacher"),
        ("times", 4, {"loss": "psnr"}, "loss is 'psnr'"),
        ("times", 4, {"loss": "lpips"}, "looks at pictures"),
        ("ld3", 4, {"calibration": CalibrationSeeds(3)}, "learned from 4 pairs"),
        ("times", 4, {"loss": "frechet"}, "needs a judge"),
        ("dmn", 4, {"loss": "l2"}, "for methods that learn"),
        ("s4s", 4, {"solver": "heun"}, "heun"),
        ("dc", 2, {}, "three calls|3 calls"),
        ("times", 1, {}, "no free one"),
    ],
)
def test_bad_input_costs_nothing(method: str, nfe: int, options: dict[str, Any], why: str) -> None:
    net = mixture()
    with pytest.raises(ArgumentError, match=why):
        optimize(net, nfe, method, **(SMALL | options))
    assert net.evaluations == 0


@pytest.mark.parametrize("calls", [30_000, 240_000, 1_000_000])
def test_plans_of_methods_that_learn(calls: int) -> None:
    for nfe in (3, 10):
        try:
            p = plan(calls, nfe=nfe, parts=PARTS["gs"])
        except ArgumentError:
            assert calls == 30_000 and nfe == 10
            continue
        assert p.total <= calls and p.stages["learning"] >= 0.45 * calls and p.levels == 0
    assert [default_calls(n, learned=True) for n in (3, 8, 50)] == [240_000, 312_000, 450_000]


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    from fewstep.cli import app

    words = (
        "optimize problem:mixture_1d --nfe 3 --method times --loss pseudo-huber --max-calls 50000 --no-around --json"
    )
    result = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["method"] == "times" and told["nfe"] == 3
    assert (tmp_path / "report.html").is_file()
    record = json.loads((tmp_path / "search.json").read_text())
    assert any(s["stage"] == "learning" and s["backward"] > 0 for s in record["stages"])


def test_every_method_is_told_by_help() -> None:
    from typing import get_type_hints

    from fewstep.cli.optimizing import optimize as command

    text = str(get_type_hints(command, include_extras=True)["method"].__metadata__[0].help)
    assert all(name in text for name in RECIPES)


def seen(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images, images.square()], 1)


def judged(features: Any = seen) -> Judge:
    exact = (torch.arange(400).reshape(-1, 1) // torch.tensor([1, 2]) % 2 * 2 - 1) + 0.1 * unit_noise(range(400), (2,))
    return Judge("moments", features, Statistics.of(seen(exact.double())), seen(exact.double()))


def test_the_data_can_decide_and_a_given_table_takes_part() -> None:
    grid = times.karras(NOISE, 3, rho=5.0)
    given = replace(solvers.dpmpp_2m(grid).tabulate(NOISE), schedule=None, name="mine")
    options = SMALL | {"objective": "frechet", "judge": judged(), "given": given}
    found = optimize(mixture(), 3, "weights", **options)
    assert found.selection["judge"].startswith("Fréchet distance, ")
    assert stage(found, "learning")["backward"] > 0 and not any("scores the teacher" in note for note in found.notes)
    mine = next(c for c in found.candidates if c["method"] == "given" and c["solver"] == "mine (given)")
    same = next(c for c in found.candidates if c["origin"] == "times of mine")  # by dpmpp_2m, as the table is
    first = min(mine["scores"], key=int)
    assert mine["times"] == given.times.tolist() and mine["scores"][first] == pytest.approx(same["scores"][first])
    assert found.selection["after"] <= min(mine["fresh"]["score"], found.selection["before"])


def test_features_without_a_gradient_are_not_followed() -> None:
    blind = judged(torch.no_grad()(seen))
    net = mixture()
    for loss in ("features", "frechet"):
        with pytest.raises(ArgumentError, match="moments have none"):
            optimize(net, 3, "times", loss=loss, judge=blind, **SMALL)
    assert net.evaluations == 0
    lowered = (
        lowered_by("times", PARTS["times"], "auto", net, blind),
        lowered_by("times", PARTS["times"], "auto", net, judged()),
    )
    assert [one.name for one in lowered if one is not None] == ["l2", "L2 in moments"]


def test_a_teacher_that_is_worse_than_what_was_found_is_said() -> None:
    """By a judge that looks at data; those that compare with the teacher cannot say."""
    net = mixture()
    good, poor = (solvers.ddim(times.karras(NOISE, steps)).tabulate(NOISE) for steps in (24, 2))
    judges = [ImageJudge(off_the_modes), PairedJudge(teacher := Teacher(net, poor), ReportSeeds(200))]
    scorer = Scorer(net, judges, ReportSeeds(200), condition=no_condition, cache=Cache(None))
    (note,) = of_teacher(scorer, good, teacher, list(ReportSeeds(200)))
    assert "the teacher is at" in note and note.startswith(judges[0].name)
    assert not list(of_teacher(scorer, poor, Teacher(net, good), list(ReportSeeds(200))))
