"""Comparisons: scores that mean what they say, cells that say why they are empty, and a file that survives anything."""

import json
import math

import pytest
import torch

from fewstep import compare, models, problems, solvers, times
from fewstep.errors import ArgumentError, SeedsError
from fewstep.metrics import frechet_with_error
from fewstep.randomness import ReportSeeds, SelectionSeeds, unit_noise
from fewstep.sampling import sample
from fewstep.search.teacher import Teacher, stochastic_reference

NAME = "problem:gaussian"


@pytest.fixture
def model():
    return models.load(NAME)


def table(model, n=5, grid=times.karras):
    return solvers.dpmpp_2m(grid(model.noise, n)).tabulate(model.noise)


def test_scores_are_those_of_all_samples_at_once(model):
    seeds, judge = ReportSeeds(70, offset=30), models.judge(NAME)
    teacher = compare.teacher(model, calls=40)
    found = compare.score(model, table(model), seeds, judge=judge, teacher=teacher, batch_size=16)
    made = sample(model, table(model), seeds=seeds)
    value, error = frechet_with_error(judge.features(made), judge.reference)
    assert found["fd"] == pytest.approx(value, rel=1e-9)
    assert found["fd_error"] == pytest.approx(error, rel=1e-9)
    assert found["nll"] == pytest.approx(judge.nll(made), rel=1e-9)
    reference = sample(model, teacher.tableau, seeds=seeds)
    assert found["rms"] == pytest.approx(float((made - reference).double().square().mean().sqrt()), rel=1e-6)
    assert found["calls"] == 5 * 70
    assert (found["samples"], found["nfe"]) == (70, 5)


def test_the_teacher_is_near_the_exact_solution(model):
    """On a Gaussian the flow's end point is known: the reference run must be much nearer to it than any candidate."""
    seeds = ReportSeeds(16)
    start = unit_noise(seeds, (2,)).double() * model.noise.sigma_max
    exact = problems.get("gaussian").ode_solution(start, model.noise.t_max, 0.0)
    gap = float((compare.teacher(model)(seeds).double() - exact).abs().max())
    assert gap < 2e-3
    assert float((sample(model, table(model), seeds=seeds).double() - exact).abs().max()) > 10 * gap


def test_rms_error_is_the_spread_over_seeds(model):
    teacher = compare.teacher(model, calls=30)
    parts = [compare.score(model, table(model), ReportSeeds(50, offset=50 * k), teacher=teacher) for k in range(8)]
    spread = float(torch.tensor([p["rms"] for p in parts], dtype=torch.float64).std())
    typical = sum(p["rms_error"] for p in parts) / len(parts)
    assert 0.4 < spread / typical < 2.5


def test_seeds_of_another_kind_and_too_few_are_refused(model):
    with pytest.raises(SeedsError, match="seeds must be ReportSeeds"):
        compare.score(model, table(model), SelectionSeeds(60))
    with pytest.raises(SeedsError):
        list(compare.compare(model, [], SelectionSeeds(60)))
    with pytest.raises(ArgumentError, match="give at least 48"):
        compare.score(model, table(model), ReportSeeds(47), judge=models.judge(NAME))
    assert model.calls == 0


def test_cells_have_exactly_the_calls_or_a_reason(model):
    found = compare.cells(model.noise, [4, 5, 20], ["ddim", "heun", "pndm"], ["karras", "logsnr"])
    assert len(found) == 18
    for cell in found:
        assert (cell.tableau is None) == bool(cell.reason)
        assert cell.tableau is None or cell.tableau.nfe == cell.nfe
    reached = {(c.solver, c.nfe) for c in found if c.tableau is not None}
    assert reached == {("ddim", 4), ("ddim", 5), ("ddim", 20), ("heun", 5), ("pndm", 20)}
    with pytest.raises(ArgumentError, match="did you mean"):
        compare.cell(model.noise, "dpmp_2m", "karras", 5)
    with pytest.raises(ArgumentError, match="no times named"):
        compare.cell(model.noise, "ddim", "karas", 5)
    with pytest.raises(ArgumentError, match="give positive numbers"):
        compare.cells(model.noise, [0], ["ddim"], ["karras"])


def run(model, path, nfes=(4, 5), **options):
    cells = compare.cells(model.noise, nfes, ["ddim", "heun"], ["karras"])
    return list(
        compare.compare(
            model, cells, ReportSeeds(60), judge=models.judge(NAME), results=compare.Results(path), **options
        )
    )


def test_finished_scores_are_not_made_again(model, tmp_path):
    first = run(model, tmp_path / "x.jsonl")
    spent = model.evaluations
    assert spent == 60 * (4 + 5 + 5)
    again = run(model, tmp_path / "x.jsonl")
    assert model.evaluations == spent
    assert [r.to_dict() for r in again] == [r.to_dict() for r in first]
    more = run(model, tmp_path / "x.jsonl", nfes=(4, 5, 6))
    assert model.evaluations == spent + 60 * 6
    assert [r.label for r in more if r.reason] == ["heun \N{MIDDLE DOT} karras"] * 2


def test_a_file_cut_at_any_byte_opens_and_is_mended(model, tmp_path):
    path = tmp_path / "x.jsonl"
    first = [r.to_dict() for r in run(model, path)]
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        kept = compare.Results(path)
        complete = sum(len(b"".join(lines[: k + 1])) - 1 <= cut for k in range(len(lines)))
        assert len(kept) == complete
        kept.add("new", {"fd": 1.0})
        assert compare.Results(path).get("new") == {"fd": 1.0}
        assert len(compare.Results(path)) == complete + 1
    path.write_bytes(whole.replace(b'"scores"', b'"scoers"', 1))  # damage inside costs that score only
    assert len(compare.Results(path)) == len(lines) - 1

    def plain(rows):
        return [r | {"scores": {k: v for k, v in r["scores"].items() if k != "seconds"}} for r in rows]

    assert plain(r.to_dict() for r in run(model, path)) == plain(first)


def test_scores_against_a_stochastic_teacher_are_kept_under_the_motion(model, monkeypatch):
    sde = stochastic_reference("sde_dpmpp_2m", model.noise, 12).tabulate(model.noise)
    cases = [(Teacher(model, sde, brownian=True), True), (compare.teacher(model, calls=20), False)]
    ddpm = solvers.ddpm(times.logsnr(model.noise, 4)).tabulate(model.noise)
    keys = [compare.key_of(model, ddpm, ReportSeeds(60), None, teacher) for teacher, _ in cases]
    monkeypatch.setattr("fewstep.brownian.MOTION", "another")
    for key, (teacher, other) in zip(keys, cases, strict=True):
        assert (compare.key_of(model, ddpm, ReportSeeds(60), None, teacher) != key) == other


def test_the_key_changes_with_everything_that_matters(model):
    judge, teacher, seeds = models.judge(NAME), compare.teacher(model, calls=20), ReportSeeds(60)
    other = models.load("problem:grid_8x8")
    keys = [
        compare.key_of(model, table(model), seeds, judge, None),
        compare.key_of(other, table(model), seeds, judge, None),
        compare.key_of(model, table(model, 6), seeds, judge, None),
        compare.key_of(model, table(model), ReportSeeds(61), judge, None),
        compare.key_of(model, table(model), ReportSeeds(60, offset=60), judge, None),
        compare.key_of(model, table(model), seeds, None, None),
        compare.key_of(model, table(model), seeds, judge, teacher),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == compare.key_of(models.load(NAME), table(model), seeds, models.judge(NAME), None)


def test_stopping_keeps_what_is_done(model, tmp_path):
    cells = compare.cells(model.noise, [4, 5], ["ddim"], ["karras"])
    rows = compare.compare(
        model, cells, ReportSeeds(60), judge=models.judge(NAME), results=compare.Results(tmp_path / "x")
    )
    next(rows)
    rows.close()
    assert len(compare.Results(tmp_path / "x")) == 1


def test_progress_tells_the_best_by_the_chosen_score(model):
    events = []
    rows = run(model, None, by="nll", progress=events.append)
    assert events[-1].finished
    least = min(r.scores["nll"] for r in rows if r.scores)
    assert f"{least:.4g}" in events[-1].best


def test_records_are_plain_json(model):
    for row in run(model, None):
        assert json.loads(json.dumps(row.to_dict(), allow_nan=False)) == row.to_dict()
        assert all(math.isfinite(v) for v in row.scores.values())
