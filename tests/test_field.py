"""The field's table: what its methods are, what a cell costs and scores, and that nothing is made twice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import field as benchmark
from fewstep import compare, inputs, models, solvers, times
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.inputs import known_data
from fewstep.metrics import Statistics, frechet, frechet_jackknife, jackknife, sliced_wasserstein
from fewstep.metrics.jackknife import deal
from fewstep.optimizing import optimize
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.report.field_figures import Line, Panel, Point, calls_figure, cost_figure
from fewstep.reproduce import field_page
from fewstep.reproduce.field_methods import GROUPS, Effort, Maker, Method, chosen, usual
from fewstep.reproduce.field_page import Entry, Page
from fewstep.reproduce.field_scores import Examiner, ruler_of
from fewstep.reproduce.field_table import FieldSettings, FieldTable
from fewstep.reproduce.spending import Bill, counted, lent
from fewstep.results import Results
from fewstep.search.meter import metered
from fewstep.search.teacher import Teacher, reference_schedule

NAME = "problem:gaussian"
EFFORT = Effort(solver="ddim", max_calls=9000, teacher_calls=8, images=(16, 32))
SMALL = FieldSettings(("ddim", "dpmpp_2m:karras:min", "heun", "dmn", "gits"), (2,), (0,), EFFORT, 96)


def judge() -> models.Judge:
    """The problem's, with fewer exact samples, which take most of the time."""
    known = models.judge(NAME)
    assert known is not None
    return replace(known, reference_features=known.reference_features[:300])


def table(folder: Path, settings: FieldSettings = SMALL, **options: Any) -> FieldTable:
    return FieldTable(models.load(NAME), NAME, folder, settings, judge(), **options)


# ------------------------------------------------------------------------------------------------------- the methods
def test_every_group_is_of_known_methods() -> None:
    for name in GROUPS:
        assert chosen([name])
    kinds = {m.kind for m in chosen(["all"])}
    assert kinds == {"hand", "dmn", "ays", "grids", "planned", "gradient", "s3", "auto"}
    assert [m.name for m in chosen(["ddim", "gits", "ddim:karras", "planned"])] == [
        "ddim:karras", "gits", "oss", "local_error",
    ]  # fmt: skip


def test_solvers_have_their_usual_times() -> None:
    found = {name: usual(name) for name in ("euler", "ipndm_4", "heun", "dpmpp_3m", "unipc_3_bh2_data", "deis_tab_3")}
    assert list(found.values()) == ["karras"] * 3 + ["logsnr"] * 2 + ["vp_uniform_2"]
    assert all(Method.parsed(name).times for name in solvers.NAMES)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nonsense", "no method"), ("ddim:nonsense", "no times named"), ("gits:nonsense", "no solver"),
     ("s3:ddim", "write s3"), ("ddim:karras:max", "SOLVER:TIMES:min"), ("gits:ddim:karras", "write gits")],
)  # fmt: skip
def test_wrong_names_are_told(name: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        chosen([name])
    with pytest.raises(ArgumentError, match="methods is empty"):
        chosen([])


def test_hand_crafted_samplers_are_what_they_say(tmp_path: Path) -> None:
    model = models.load(NAME)
    maker = Maker(model, NAME, None, None, EFFORT)

    def made(name: str, nfe: int) -> Any:
        return maker(Method.parsed(name), nfe, 0, tmp_path).tableau

    noise = model.noise
    assert made("deis_tab_3:vp_uniform_2:min", 4) == solvers.get("deis_tab_3")(
        times.vp_uniform(noise, 4, rho=2.0, end="min")
    ).tabulate(noise)
    assert made("ipndm", 5) == solvers.get("ipndm")(times.karras(noise, 5)).tabulate(noise)
    assert made("heun:karras:min", 4).nfe == 4 == len(made("heun:karras:min", 4).schedule.times) + 1
    grid = made("dpmpp_2m:dmn", 4).schedule.times
    assert grid[-1] == noise.t_clean and (grid - times.logsnr(noise, 4)).abs().max() > 1e-3
    with pytest.raises(ArgumentError, match="cannot make 3 calls"):
        made("heun:karras:min", 3)


# --------------------------------------------------------------------------------------------------------- the costs
def test_a_meter_counts_what_is_asked_for_once_and_no_figures(tmp_path: Path) -> None:
    model = models.load(NAME)
    runs = reference_schedule(model.noise, 8).tabulate(model.noise)
    teacher = Teacher(model, runs, cache=tmp_path)
    with metered() as meter:
        teacher(SelectionSeeds(10))
        with metered() as inner:
            teacher.trajectory(CalibrationSeeds(4))
            teacher(SelectionSeeds(6))
        teacher(ReportSeeds(5))
    assert (meter.needed, meter.made) == (8 * 14, 8 * 19)
    assert (inner.needed, inner.made) == (8 * 10, 8 * 4)
    with metered() as again:
        Teacher(model, runs, cache=tmp_path)(SelectionSeeds(10))
    assert (again.needed, again.made) == (80, 0)


def test_a_bill_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    model, place = models.load(NAME), tmp_path / "cell"
    teacher = Teacher(model, reference_schedule(model.noise, 8).tabulate(model.noise), cache=tmp_path)

    def work(seeds: SelectionSeeds) -> None:
        (place / "kept").touch()
        teacher(seeds)
        model(torch.zeros(3, 2), 1.0)

    with pytest.raises(KeyboardInterrupt), counted(model, place):
        work(SelectionSeeds(10))
        raise KeyboardInterrupt
    assert (place / "kept").exists()
    with counted(model, place) as bill:
        assert (place / "kept").exists()
        work(SelectionSeeds(10, offset=5))
    record = bill.record()
    assert (record["search_calls"], record["teacher_calls"], record["teacher_made"]) == (7, 8 * 15, 8 * 15)
    assert record["seconds"] > 0  # and the seventh call is the question by which a cache knows the network
    (place / "spent.json").unlink()  # as a killed process leaves it: its work was not counted
    assert Bill.opened(place).calls == 0 and not place.exists()


def test_the_peak_of_memory_is_seen() -> None:
    """In a process of its own: what this one has used before would hide it."""
    script = (
        "import torch; from fewstep.reproduce.spending import Peak; peak = Peak(torch.device('cpu'))\n"
        "block = torch.ones(40_000_000, dtype=torch.float64); del block; print(peak.bytes())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) > 0.9 * 320_000_000


def test_a_lent_teacher_comes_back_richer(tmp_path: Path) -> None:
    model = models.load(NAME)
    runs = reference_schedule(model.noise, 8).tabulate(model.noise)
    Teacher(model, runs, cache=tmp_path / "shared")(SelectionSeeds(4))
    with pytest.raises(KeyboardInterrupt), lent(tmp_path / "shared", tmp_path / "own"):
        before = model.evaluations
        Teacher(model, runs, cache=tmp_path / "own")(SelectionSeeds(4))
        Teacher(model, runs, cache=tmp_path / "own").trajectory(CalibrationSeeds(4))
        spent = model.evaluations - before
        raise KeyboardInterrupt
    assert 8 * 4 <= spent <= 8 * 4 + 2  # the trajectories, and the question by which the cache knows the network
    before = model.evaluations
    Teacher(model, runs, cache=tmp_path / "shared").trajectory(CalibrationSeeds(4))
    assert model.evaluations - before <= 1


# -------------------------------------------------------------------------------------------------------- the scores
def test_jackknives_of_one_deal_can_be_subtracted() -> None:
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = Statistics.of(torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    quick = frechet_jackknife(rows, reference, groups=12)
    slow = jackknife(lambda kept: frechet(Statistics.of(rows[kept]), reference), 60, groups=12)
    torch.testing.assert_close(quick.without, slow.without, rtol=1e-9, atol=1e-12)
    assert quick.estimate == pytest.approx(slow.estimate, rel=1e-9)
    near = frechet_jackknife(rows + 0.01, reference, groups=12)
    gap = near.less(quick)
    spread = (near.without - quick.without).var(correction=0) * 11
    assert gap == pytest.approx((near.value - quick.value, float(spread.sqrt())))
    assert gap.standard_error < 0.1 * quick.estimate.standard_error  # the same samples: what they share cancels
    assert sorted(torch.cat(deal(60, 12)).tolist()) == list(range(60))
    with pytest.raises(ArgumentError, match="deal both samples alike"):
        quick.less(frechet_jackknife(rows, reference, groups=10))


def examined(known: Any, data: Any = None) -> tuple[Examiner, Any]:
    model = models.load(NAME)
    ruler = ruler_of(model, known, data)
    return Examiner(model, ruler, ReportSeeds(64), compare.teacher(model, calls=8), batch=40), model


def test_scores_are_those_of_their_definitions() -> None:
    known = replace(judge(), nll=None)  # as a network with features has it
    examiner, model = examined(known)
    tableau = compare.cell(model.noise, "ddim", "karras", 3).tableau
    scores = examiner(tableau)
    seen = compare.look(model, tableau, ReportSeeds(64), features=known.features)
    ours, theirs = seen.features, compare.teacher(model, calls=8)(ReportSeeds(64)).flatten(1).double()
    own = frechet(Statistics.of(theirs), known.reference)
    value = frechet(Statistics.of(ours), known.reference)
    assert scores["distance"] == pytest.approx(value, rel=1e-5)
    assert scores["excess"] == pytest.approx(value - own, rel=1e-4)
    assert scores["to_teacher"] == pytest.approx(frechet(Statistics.of(ours), Statistics.of(theirs)), rel=1e-5)
    assert scores["rms"] == pytest.approx(float((ours - theirs).square().mean().sqrt()), rel=1e-5)
    assert all(0 <= scores[name] <= 1 for name in ("precision", "recall", "coverage"))
    assert all(scores[f"{name}_error"] > 0 for name in ("distance", "excess", "to_teacher", "rms"))
    assert examiner.teachers()["distance"] == pytest.approx(own, rel=1e-5)
    teacher = examiner(examiner.teacher.tableau)  # the teacher's own table is at its own distance
    assert abs(teacher["excess"]) < 1e-6 and teacher["rms"] < 1e-6


def test_points_are_compared_themselves_and_unknown_networks_with_their_teacher() -> None:
    examiner, model = examined(judge())
    tableau = compare.cell(model.noise, "ddim", "karras", 3).tableau
    scores = examiner(tableau)
    ours = compare.look(model, tableau, ReportSeeds(64), features=lambda x: x.flatten(1)).features
    exact = judge().reference_features
    assert scores["distance"] == pytest.approx(sliced_wasserstein(ours, exact), rel=1e-5)
    alone = examined(None)[0]
    assert "distance" not in alone(tableau) and alone(tableau)["to_teacher"] == scores["to_teacher"]
    assert "precision" not in alone.teachers()
    given = examined(None, known_data(model, 100))[0]
    assert given(tableau)["distance"] > 0 and "exact samples" in given.ruler.name
    with pytest.raises(ArgumentError, match="at least 48"):
        Examiner(model, given.ruler, ReportSeeds(20), alone.teacher)


# --------------------------------------------------------------------------------------------------------- the table
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FieldTable:
    made = table(tmp_path_factory.mktemp("whole"))
    assert made.run() == 0
    return made


def cells_of(made: FieldTable) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell for cell in made.cells}


def counts(cell: dict[str, Any]) -> tuple[int, int, int]:
    return tuple(cell["cost"][name] for name in ("search_calls", "teacher_calls", "backward_calls"))  # pyright: ignore


def test_every_cell_is_a_line_and_none_is_made_twice(whole: FieldTable) -> None:
    lines = [json.loads(line)["scores"] for line in (whole.folder / "cells.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == [
        "teacher", "ddim:karras", "dpmpp_2m:karras:min", "heun:karras", "dmn", "gits",
    ]  # fmt: skip
    assert lines[3]["reason"] == "heun cannot make 2 calls" and lines[3]["scores"] == {}
    assert not (whole.folder / "work").exists()
    again = table(whole.folder)
    again.run()
    assert again.model.evaluations == 0


def test_a_cell_costs_what_it_would_cost_alone(whole: FieldTable, tmp_path: Path) -> None:
    alone = table(tmp_path, replace(SMALL, methods=("gits",)))
    alone.run()
    one, many = cells_of(alone)["gits"], cells_of(whole)["gits"]
    assert counts(one) == counts(many)
    assert one["digest"] == many["digest"] and one["scores"]["distance"] == many["scores"]["distance"]
    assert many["cost"]["teacher_made"] < one["cost"]["teacher_made"]
    model = models.load(NAME)
    found = optimize(
        model, 2, "gits", solver="ddim", max_calls=9000, judge=judge(), teacher_calls=8, batch_size=250,
        calibration=EFFORT.learned_from(Method.parsed("gits"), 2, 0), selection=SelectionSeeds(4096),
        report=ReportSeeds(48, 900_000_000), cache=tmp_path / "other",
    )  # fmt: skip
    figures = sum(s["calls"] for s in found.stages if s["stage"] in ("report", "teacher of the report"))
    assert sum(counts(one)[:2]) == found.calls - figures
    assert one["digest"] == found.tableau.digest


def test_another_seed_is_another_repetition(whole: FieldTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = table(tmp_path, replace(SMALL, methods=("ddim",), seeds=(1,)))
    other.run()
    one, two = cells_of(whole)["ddim:karras"], cells_of(other)["ddim:karras"]
    assert one["digest"] == two["digest"] and one["scores"]["distance"] != two["scores"]["distance"]
    asked: dict[str, Any] = {}

    def note(*_: object, **options: Any) -> None:
        asked.update(options)
        raise ArgumentError("enough seen")

    monkeypatch.setattr("fewstep.reproduce.field_methods.optimize", note)
    table(tmp_path, replace(SMALL, methods=("gits",), seeds=(2,))).run()
    seeds = [asked[name] for name in ("calibration", "selection", "report")]
    assert [seed.offset for seed in seeds] == [2_000_000, 2_000_000, 900_000_096]
    assert Effort(max_calls=80_000).learned_from(Method.parsed("gits"), 5, 2) == CalibrationSeeds(133, 2_000_000)


def test_an_interrupted_table_goes_on_to_the_same_cells(whole: FieldTable, tmp_path: Path) -> None:
    small = replace(SMALL, methods=("ddim", "gits"))
    stops = iter([("race", 3), ("finals", 1)])
    want = next(stops)

    def stop(event: Any) -> None:
        nonlocal want
        if want and event.stage == want[0] and event.done >= want[1]:
            want = next(stops, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table(tmp_path, small, progress=stop).run()
    with pytest.raises(KeyboardInterrupt):
        field_page.filled(table(tmp_path, small, progress=stop))
    assert (tmp_path / "field.md").is_file()
    rest = table(tmp_path, small)
    rest.run()
    for method, again in cells_of(rest).items():
        cell = cells_of(whole)[method]
        assert again["scores"].get("distance") == cell["scores"].get("distance")
        if "cost" in cell:  # a process that starts again asks its one question again
            assert counts(again) == pytest.approx(counts(cell), abs=3)


def test_a_failing_network_leaves_its_cell_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DenoiserError("no memory")

    small = replace(SMALL, methods=("ddim", "dmn"))
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.reproduce.field_methods.optimize", fail)
        broken = table(tmp_path, small)
        assert broken.run() == 1 and broken.failed == {"dmn, 2 calls, seed 0": "no memory"}
    assert "dmn" not in cells_of(broken) and "ddim:karras" in cells_of(broken)
    tried: list[int] = []
    monkeypatch.setattr("fewstep.reproduce.field_methods.optimize", lambda *a, **_: tried.append(a[1]) or fail())
    assert table(tmp_path, small).run() == 1 and tried == [2]


def test_s3_is_a_study_within_its_budget(tmp_path: Path) -> None:
    effort = replace(EFFORT, max_calls=900)
    made = table(tmp_path, replace(SMALL, methods=("s3",), nfes=(2,), effort=effort))
    made.run()
    cell = cells_of(made)["s3"]
    assert cell["scores"]["rms"] > 0 and cell["cost"]["teacher_calls"] == 8 * 32
    assert sum(counts(cell)[:2]) <= 1.1 * 900
    poor = table(tmp_path / "poor", replace(SMALL, methods=("s3",), effort=replace(EFFORT, max_calls=200)))
    poor.run()
    assert "too few" in cells_of(poor)["s3"]["reason"]


def test_settings_are_checked_before_any_work(tmp_path: Path) -> None:
    for wrong in ({"nfes": (0,)}, {"seeds": (-1,)}, {"images": 10}, {"neighbours": 1}):
        with pytest.raises(ArgumentError):
            replace(SMALL, **wrong)
    with pytest.raises(ArgumentError, match="holds no table"):
        field_page.write(tmp_path)


# ---------------------------------------------------------------------------------------------------------- the page
def test_the_page_and_its_figures(whole: FieldTable) -> None:
    files = field_page.write(whole.folder)
    assert [file.name for file in files] == ["field.md", "quality-calls.png", "quality-cost.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    page = files[0].read_text()
    cell = cells_of(whole)["dmn"]
    dagger = "†" if cell["kept"] else ""
    row = next(line for line in page.splitlines() if line.startswith("| dmn |"))
    assert dagger in row and f"{cell['scores']['excess']:.3f}"[:5] in row
    assert f"{cell['cost']['search_calls']:,}" in page and "- heun:karras, 2 calls: heun cannot make 2 calls" in page
    best = min((c["scores"]["excess"], m) for m, c in cells_of(whole).items() if "excess" in c["scores"])[1]
    assert next(line for line in page.splitlines() if "**" in line).startswith(f"| {best} |")


def test_a_larger_budget_is_shown_beside_the_smaller_one(whole: FieldTable, tmp_path: Path) -> None:
    (tmp_path / "field.json").write_text((whole.folder / "field.json").read_text())
    cells = Results(tmp_path / "cells.jsonl")
    for key, cell in enumerate(whole.cells):
        cells.add(str(key), cell)
    dmn = cells_of(whole)["dmn"]
    more = {name: 2 * value for name, value in dmn["cost"].items()}
    cells.add("more", dmn | {"effort": "more", "cost": more, "kept": False})
    page = Page.read(tmp_path)
    (shown,), (before,) = ([e for e in entries if e.method == "dmn"] for entries in (page.entries, page.earlier))
    assert shown.calls == 2 * before.calls == 2 * sum(counts(dmn)[:2])
    (told,) = [line for line in page.markdown().splitlines() if "Searches: " in line]
    assert "dmn: more" in told and f": {whole.settings.effort.words}" in told
    (line,) = [line for line in page.lines("excess", earlier=True) if line.label == "dmn"]
    assert [p.cost for p in line.points] == [before.calls, shown.calls]
    assert Effort(minutes=2, max_calls=9000).words.endswith("budget 2 minutes or 9,000 network calls")
    asked, own = Effort(loss="l1"), Effort()
    for name, learns in (("ld3", True), ("auto", True), ("gits", False), ("s3", False)):
        method = Method.parsed(name)
        assert (asked.spent(method) != own.spent(method)) == learns and (asked.lowered(method) == "l1") == learns


def test_repetitions_are_averaged_with_the_larger_error() -> None:
    cells = tuple(
        {"scores": {"rms": value, "rms_error": 0.01}, "cost": {"seconds": value}} for value in (1.0, 2.0, 3.0)
    )
    entry = Entry("m", "hand", 4, cells)
    assert entry.score("rms") == pytest.approx((2.0, 1 / 3**0.5)) and entry.cost("seconds") == 2.0
    assert Entry("m", "hand", 4, cells[:1]).score("rms") == (1.0, 0.01)
    assert entry.score("excess") is None


def test_figures_show_every_method_that_was_searched() -> None:
    lines = [Line("by hand", (Point(3, 2.0), Point(4, 1.0)), hand=True), Line("gits", (Point(3, 1.0, 0.1, 5000),))]
    lines += [Line("auto", (Point(3, 0.5, 0.1, 2e4), Point(3, 0.4, 0.1, 4e4), Point(4, 0.3)), first=True)]
    figure = calls_figure([Panel("FD", lines, 0.1), Panel("RMS", lines[:2])])
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(figure.axes) == 2
    assert set(labels) == {"best by hand", "teacher", "gits", "auto"}
    costs = cost_figure(lines, judge="FD")
    assert [axis.get_title("left") for axis in costs.axes] == ["3 calls", "4 calls"]
    with pytest.raises(ArgumentError, match="no point"):
        cost_figure([], judge="FD")


def test_the_benchmark_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", NAME, "--methods", "ddim", "--nfe", "2", "--images", "48", "--teacher", "8", "--quiet"]
    assert benchmark.main([*run, "--out", str(tmp_path / "b")]) == 0
    assert "| ddim:karras |" in capsys.readouterr().out
    assert benchmark.main(["report", str(tmp_path / "b")]) == 0
    assert "| ddim:karras |" in capsys.readouterr().out
    assert benchmark.main(["report", str(tmp_path)]) == 2 and "holds no table" in capsys.readouterr().err
    assert benchmark.main([*run, "--methods", "nonsense", "--out", str(tmp_path / "c")]) == 2
    assert not (tmp_path / "c").exists()
    assert inputs.judge_of(models.load(NAME)) is not None
