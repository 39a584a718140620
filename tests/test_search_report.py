"""The page of a search, and what it tells: ablations are truly what they say, importances find what matters."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewstep import noise as ns
from fewstep import search_report, searching
from fewstep.cli import app
from fewstep.errors import ArgumentError
from fewstep.evaluating import Evaluator
from fewstep.report import search_page
from fewstep.report.search_page import Point, SearchPage
from fewstep.search.s3 import Rates, Space
from fewstep.search.s3.ablation import COMPONENTS, resets
from fewstep.search.s3.crossover import draw
from fewstep.search.s3.importance import importances
from fewstep.study.reading import read

MODEL = "problem:gaussian_8x8"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "s.sqlite"
    quick = {"limit": 8, "guidance": {"generations": 3, "children": 40, "kept": 20}}
    with searching.start(
        path, MODEL, nfes=[3, 4], budget=28, images=(16, 32), fresh=64, teacher_calls=8, options=quick
    ) as search:
        search.run()
    return path


def test_the_page_compares_sets_back_and_draws(study, tmp_path):
    result = CliRunner().invoke(app, ["search", "report", str(study), "--out", str(tmp_path / "page"), "--json", "-q"])
    assert result.exit_code == 0, result.output
    page = json.loads(result.stdout)["report"]
    text = (tmp_path / "page" / "report.html").read_text()
    assert page.endswith("report.html") and text.startswith("<!doctype html>")
    assert "http" not in re.sub(
        r'xmlns[:a-z]*="[^"]*"|"http://www.w3.org/[^"]*"|<metadata>.*?</metadata>', "", text, flags=re.S
    )
    for heading in ("The front", "Which strategy where", "Best so far", "What each component is worth",
                    "What the surrogate ranks by", "Use it", "How it was made"):  # fmt: skip
        assert f"<h2>{heading}" in text
    assert text.count("<svg") == 4 and text.count("<img") == 4


def test_the_figures_are_those_of_the_evaluator_and_are_kept(study, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(search_page, "write", lambda page, path: seen.append(page) or path)
    monkeypatch.setattr(search_report, "importances", lambda *_: (0.0, []))  # they have tests of their own
    search_report.write(study, tmp_path, ablations=False)
    contents = read(study)
    evaluate = Evaluator(MODEL, images=32, fresh=64, teacher_calls=8)
    for point, row in zip(seen[0].points, searching.front(contents), strict=True):
        assert evaluate(point.found, 64, True) == pytest.approx(point.fresh, rel=1e-5)
        assert evaluate(point.constant, 64, True) == pytest.approx(point.constant_fresh, rel=1e-5)
        assert point.gain[0] == pytest.approx(point.constant_fresh[0] - point.fresh[0], rel=1e-5)
        assert point.selected == row["score"] and not point.worth
        trials = [e.trial for e in contents.entries.values() if e.trial.nfe == point.nfe and e.trial.scores]
        assert point.curve[-1] == (len(trials), min(t.scores[16] for t in trials))
        assert point.published == sum(t.proposal.stage == 0 for t in trials) == 8
        assert point.constant_origin in {t.proposal.origin for t in trials if t.proposal.stage == 0}
    before = Evaluator.__call__
    assert callable(before)
    monkeypatch.setattr("fewstep.search.objective.Scorer._run", lambda *_: pytest.fail("measured again"))
    search_report.write(study, tmp_path, ablations=False)
    with pytest.raises(ArgumentError, match="give 2 to 64"):
        search_report.write(study, tmp_path, images=65)


def test_a_page_claims_no_more_than_its_errors_allow():
    space = Space(ns.VPLinear(), (3,))
    schedule = space.decode(draw(space, Rates(), np.array([3]), np.random.default_rng(0)))
    points = [
        Point(3, schedule, "guided", 1.0, 16, schedule, "ddim", 2.0, (1.1, 0.1), (1.9, 0.1), 64, (gain, 0.5),
              {"times": (0.1, 0.2), "basis": None}, [(1, 2.0), (4, 1.0)])
        for gain in (0.9, 1.1)
    ]  # fmt: skip
    text = search_page.html(SearchPage("m", "s3", "FD", space.noise, points, 9))
    assert "for 1 of 2 numbers of calls" in text and "same" in text
    assert "0.10 ± 0.20</td>" in text and "\N{HEAVY ASTERISK}</td>" not in text  # nothing is sure
    sure = replace(points[0], worth={"times": (0.5, 0.2)})
    assert "0.50 ± 0.20 \N{HEAVY ASTERISK}</td>" in search_page.html(
        SearchPage("m", "s3", "FD", space.noise, [sure], 9)
    )
    bare = search_page.html(SearchPage("m", "s3", "FD", space.noise, [Point(3, schedule, "guided", 1.0, 16)], 1))
    assert "No schedule was compared" in bare and "Best so far" not in bare
    lost = search_page.html(SearchPage("m", "s3", "FD", space.noise, [
        Point(3, schedule, "guided", 1.0, 16, worth={"times": (math.inf, None)})], 1))  # fmt: skip
    assert "not finite" in lost


def test_resets_change_one_component_and_keep_the_calls():
    space = Space(ns.EDM(), (4, 5), clean=True)
    rng = np.random.default_rng(2)
    g = draw(space, Rates(relative=True), np.full(60, 5), rng)
    changed = {name: 0 for name in COMPONENTS}
    for k in range(0, 60, 2):
        found, constant = g.take([k]), g.take([k + 1])
        for name, other in resets(space, found, constant).items():
            if other is None:
                continue
            changed[name] += 1
            assert space.valid(other)[0] and other.nfe[0] == 5 and other.names() != found.names()
            if name == "first step":
                assert other.afs[0] == constant.afs[0] != found.afs[0]
                continue
            n = int(found.steps[0])
            assert other.steps[0] == n
            if name != "times":
                assert np.array_equal(other.times, found.times, equal_nan=True)
            elif constant.steps[0] == n:
                assert np.array_equal(other.times[0, : n + 1], constant.times[0, : n + 1])
            if name == "corrector":
                assert np.array_equal(other.order, found.order)
    assert all(count > 0 for name, count in changed.items() if name not in ("scaling", "derivative estimation"))
    assert all(v is None for v in resets(space, g.take([0]), g.take([0])).values())


def test_importance_is_of_what_decides_the_score():
    space = Space(ns.VPLinear(), (5,))
    rng = np.random.default_rng(4)
    g = draw(space, Rates(), np.full(150, 5), rng)
    scores = np.exp(0.7 * (g.basis * g.live).sum(1) + 0.01 * rng.standard_normal(150))
    tau, found = importances(space, g, scores, repeats=2)
    assert tau > 0.35 and found[0].component == "basis"
    assert found[0].drop > 3 * max(abs(f.drop) for f in found[1:])
    blind, nothing = importances(space, g, rng.permutation(scores), repeats=2)
    assert abs(blind) < 0.25 and max(abs(f.drop) for f in nothing) < 0.25
    assert importances(space, g.take(slice(0, 5)), scores[:5]) == (0.0, [])


def test_nothing_to_report_is_said(tmp_path):
    path = tmp_path / "s.sqlite"
    searching.start(path, MODEL, nfes=[3], budget=1, teacher_calls=4, images=(8,)).close()
    with pytest.raises(ArgumentError, match="no trial is finished"):
        search_report.write(path, tmp_path)
    assert torch.is_grad_enabled()
