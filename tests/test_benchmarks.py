"""The benchmarks' own machinery, in small: scores that survive, figures over seed sets, what is counted and how."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import course, overhead
from benchmarks.quality_cells import Analytic, Deadline, from_times, make_cell, network_jobs, work
from benchmarks.quality_tables import Figure, Looked, markdown, short
from fewstep import models, times
from fewstep.compare import Results
from fewstep.problems import get
from fewstep.randomness import ReportSeeds


def problem() -> Analytic:
    return Analytic(get("gaussian_8x8"), ReportSeeds(32))


def test_scores_are_made_once_and_survive_a_torn_line(tmp_path: Path) -> None:
    small = problem()
    noise = small.problem.noise
    # unipc and unipc_3_bh2_data are one table, heun cannot make 6 calls.
    names = ("ddim", "dpmpp_2m", "unipc", "unipc_3_bh2_data", "heun")
    jobs = [small.floor(), *small.jobs(make_cell(noise, name, "tangent", 6) for name in names)]
    assert [job.cell.solver for job in jobs] == ["exact", "ddim", "dpmpp_2m", "unipc", "unipc_3_bh2_data"]
    path = tmp_path / "scores.jsonl"
    assert work(jobs[:2], Results(path), Deadline(None), quiet=True) == 0
    with path.open("ab") as file:
        file.write(b'{"key": "abc", "scores": {"rm')
    assert work(jobs, Results(path), Deadline(0.0), quiet=True) == 2
    assert work(jobs, Results(path), Deadline(None), quiet=True) == 0
    kept = Results(path)
    assert len(kept) == 4

    def never() -> dict[str, float]:
        raise AssertionError("made again")

    assert work([job._replace(score=never) for job in jobs], kept, Deadline(None)) == 0
    euler, second = (kept.get(job.key) for job in jobs[1:3])
    assert euler is not None and second is not None
    assert 0 < second["rms"] < euler["rms"]
    assert Looked(jobs[1:], kept).at(6)["ddim", "tangent"] == [euler]


def test_many_steps_reach_the_exact_end_points() -> None:
    small = problem()
    cell = make_cell(small.problem.noise, "dpmpp_3m", "logsnr", 400)
    assert cell.tableau is not None
    score = small.score(cell.tableau)
    assert score["rms"] < 1e-3 and score["kl"] < 0.1


def test_a_cell_of_the_network() -> None:
    model, judge = models.load("mnist"), models.judge("mnist")
    assert judge is not None
    cell = from_times(model.noise, "ddim", "own", 1, times.karras(model.noise, 1))
    (job,) = network_jobs(model, judge, [cell, make_cell(model.noise, "heun", "karras", 6)], ReportSeeds(48))
    scores = job.score()
    assert scores["fd"] > 1 and scores["fd_error"] > 0 and 0 <= scores["as_label"] <= 1
    assert job.about["seeds"] == "ReportSeeds(48, offset=0)"
    assert from_times(model.noise, "heun", "own", 6, times.karras(model.noise, 6)).reason == "makes 11 calls"


def test_figure_over_seed_sets() -> None:
    sets = [{"fd": v, "fd_error": 0.1, "as_label": 0.5} for v in (1.0, 1.1, 1.5)]
    figure = Figure.of(sets)
    assert figure.value == pytest.approx(1.2)
    assert figure.error == pytest.approx((0.07 / 3) ** 0.5)  # the spread: sd / sqrt(3), above the jackknife's 0.058
    alone = Figure.of(sets[:1])
    assert alone.error == pytest.approx(0.1) and str(alone) == "1.000 ± 0.100"
    lower = Figure.of([{"fd": v - 0.6, "fd_error": 0.1, "as_label": 0.5} for v in (1.0, 1.1, 1.6)])
    assert lower.gain(figure) == "+0.567 ± 0.033" and lower.gain(alone) == "+0.600"  # paired by seed set
    assert not lower.clear_of(figure) and not lower.clear_of(alone)
    assert Figure.of([dict(s, fd=0.9) for s in sets]).clear_of(figure)
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"
    assert [short(v) for v in (float("inf"), 12345.0, 0.01234, 999.4)] == ["∞", "1e4", "0.0123", "999"]


def test_overhead_counts_what_it_says() -> None:
    assert overhead.teacher_memory("dpmpp_2m", 20) <= 4
    assert overhead.teacher_memory("adams_bashforth", 20, order=3) <= 8
    table = overhead.table_of("dpmpp_2m")
    with torch.no_grad():
        for run in (overhead.ours(table, (1, 4, 8, 8)), overhead.floor(table, (1, 4, 8, 8))):
            timing = overhead.in_turns({"one": (run, overhead.nothing)}, 2)["one"]
            assert 0 < timing.least <= timing.median < 0.1
    ratios = overhead.Target("ours / theirs", 0.2, 0.1)
    assert "MISSED" in str(ratios)


def test_the_course_of_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part that left something else has a row, and the last has the whole gain."""
    out = tmp_path / "course.json"
    asked = ["--nfe", "3", "--method", "dmn", "--max-calls", "20000", "--images", "200", "--out", str(out)]
    assert course.main(["problem:gaussian", *asked]) == 0
    stands = json.loads(out.read_text())
    assert [s["part"] for s in stands][-1] == "finals" and len(stands) > 1
    spent = [s["calls"] for s in stands]
    assert spent == sorted(spent) and spent[-1] <= 20_000
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(stands)
    gain = stands[0]["scores"]["to_teacher"] - stands[-1]["scores"]["to_teacher"]
    assert rows[-1].endswith("| 100% |" if gain else "| nan% |")
