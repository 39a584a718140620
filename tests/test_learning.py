"""Methods that learn by gradient inside `optimize` and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fewstep import problems, sample
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.noise import EDM
from fewstep.optimizing import optimize
from fewstep.search.gradient.recipes import RECIPES
from fewstep.search.plan import default_calls, plan
from fewstep.tableau import Tableau

NOISE = EDM()


def mixture() -> Denoiser:
    means = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return problems.GaussianMixture(means, 0.01, noise=NOISE, name="four").denoiser()


def off_the_modes(images: torch.Tensor) -> torch.Tensor:
    return ((images.abs() - 1).square().sum(1) / 0.02 - 1).square()


SMALL: dict[str, Any] = {"max_calls": 20_000, "teacher_calls": 20, "objective": off_the_modes}


def stage(found: Found, name: str) -> dict[str, Any]:
    return next(s for s in found.stages if s["stage"] == name)


@pytest.mark.parametrize("method", ["times", "dyweight"])
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
    assert any("identities are off by" in note for note in found.notes)
    kept = Tableau.load(tmp_path / "schedule.json")
    assert kept == found.tableau and Found.load(tmp_path).times == found.times
    again = optimize(mixture(), 3, method, out=tmp_path, **SMALL)
    assert again.tableau == found.tableau and stage(again, "learning")["backward"] == 0
    assert stage(again, "learning")["calls"] < told["calls"] / 3  # what is looked at again is not kept


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
        ("times", 4, {"loss": "lpips"}, "loss is 'lpips'"),
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
            p = plan(calls, nfe=nfe, method="gs", learned=True)
        except ArgumentError:
            assert calls == 30_000 and nfe == 10
            continue
        assert p.total <= calls and p.stages["learning"] >= 0.45 * calls and p.levels == 0
    assert default_calls(5, learned=True) == 3 * default_calls(5)


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
