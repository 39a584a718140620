"""The composition: the budget, the choice, what is written, what resumes, what is refused."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep import models, problems, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError, FileFormatError, SeedsError
from fewstep.found import Found
from fewstep.guidance import guided
from fewstep.metrics import Statistics, frechet, sliced_wasserstein
from fewstep.noise import EDM, Flow
from fewstep.optimizing import optimize
from fewstep.progress import Event
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search import methods
from fewstep.search.cache import Cache
from fewstep.search.judges import FrechetJudge, ImageJudge, MatchedJudge, PairedJudge, SlicedJudge
from fewstep.search.objective import Scorer
from fewstep.search.parts import PARTS
from fewstep.search.plan import default_calls, plan
from fewstep.search.select import Candidate, Race
from fewstep.search.surrogate import Process, propose
from fewstep.search.teacher import Teacher, no_condition, reference_schedule
from fewstep.tableau import Tableau

S = pytest.mark.slow

NOISE = EDM()
BUDGET = 8_000
TAUGHT = {"max_calls": 12_000, "teacher_calls": 12}  # with a cheap teacher a small budget goes a long way


def mixture() -> Denoiser:
    """Four modes in the plane: cheap, not Gaussian, and sampled badly by few steps."""
    means = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    return problems.GaussianMixture(means, 0.01, noise=NOISE, name="four").denoiser()


def off_the_modes(images: Tensor) -> Tensor:
    """How far samples are from the spread of their mode, an objective that needs no teacher."""
    return ((images.abs() - 1).square().sum(1) / 0.02 - 1).square()


class Counted(Denoiser):
    """Counts single samples itself, and stops after a number of calls."""

    seen = 0
    left = 10**9

    def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(x)
        return super().__call__(x, t, condition)


def counted(fingerprint: str = "counted") -> Counted:
    inner = mixture()
    return Counted(inner.fn, noise=NOISE, shape=inner.shape, fingerprint=fingerprint)


@pytest.fixture(autouse=True, scope="module")
def _one_dmn() -> Iterator[None]:
    """One of DMN's variants is enough here; each takes a good part of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "DMN_OPTIONS", methods.DMN_OPTIONS[:1])
        yield


# ------------------------------------------------------------------------------------------------------------ the plan
CASES = list(
    product(
        ["auto", "grids", "ays", "dmn", "gits", "oss", "local_error", "joint"],
        [3, 6, 10],
        [15_000, 40_000, 78_000, 1_000_000],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize("method, nfe, calls, made, taught", CASES)
def test_a_plan_never_exceeds_its_budget(method: str, nfe: int, calls: int, made: bool, taught: bool) -> None:
    try:
        p = plan(calls, nfe=nfe, parts=PARTS[method], made=made, taught=taught, solvers=2)
    except ArgumentError as error:
        assert calls < (250_000 if PARTS[method].learned else 78_000) and "give more calls" in str(error)
        return
    assert p.total <= calls and p.total == sum(p.stages.values())
    assert p.rooms[0] >= p.rooms[1] >= p.rooms[2] >= 2 and p.counts[0] < p.counts[1] < p.counts[2]
    assert (p.levels > 0) == (method in ("auto", "grids", "ays")) and p.report >= 48 and p.paired <= p.report
    assert (p.trajectories >= 8) == (method in ("auto", "gits", "oss", "local_error"))
    assert (p.stepped >= 2) == (method == "oss") and p.stepped <= p.trajectories
    if calls == 1_000_000:  # a large budget is used, as far as more images mean anything
        assert p.total > 0.5 * calls or method not in ("auto", "grids", "ays")


def test_the_default_budgets_are_those_that_are_promised() -> None:
    assert default_calls(6) <= 130_000 and default_calls(10) <= 130_000 and default_calls(50) <= 150_000


def test_guidance_costs_double() -> None:
    one, two = (plan(100_000, nfe=6, batch_cost=cost) for cost in (1, 2))
    assert two.image_cost == 2 * one.image_cost and two.counts[0] < one.counts[0] and two.total <= 100_000


# ------------------------------------------------------------------------------------------------------------ the race
def candidate(value: float, method: str = "ays", solver: str = "s") -> Candidate:
    schedule = solvers.ddim(torch.tensor([1.0, 0.0]))
    table = schedule.tabulate(Flow())
    return Candidate(schedule, table, solver, method, f"{value}", torch.tensor([1.0, value, -1.0], dtype=torch.float64))


def test_race() -> None:
    """Planted values; the second round reverses the order of the best two."""
    asked: list[tuple[str, int]] = []

    def score(c: Candidate, count: int) -> float:
        asked.append((c.origin, count))
        value = float(c.origin)
        return value if count == 4 else {0.1: 0.2, 0.2: 0.1}.get(value, value)

    told: list[int] = []
    race = Race(score, (4, 8), lambda c, images: told.append(images))
    race.enter([candidate(v) for v in (0.3, 0.1, 0.2, 0.1000001)] + [candidate(0.9, "hand")], room=4)
    assert [c.origin for c in race.entries] == ["0.3", "0.1", "0.2", "0.9"]  # the repeat is passed over
    race.promote(1, 3, 1, lambda c: c.method == "hand")
    assert [c.origin for c in race.standing()] == ["0.2", "0.1", "0.9", "0.3"]
    assert told == [4, 4, 4, 4, 4, 4, 4] and len(asked) == 7
    race.promote(1, 3, 1, lambda c: c.method == "hand")
    assert len(asked) == 7  # nobody twice
    race.enter([candidate(0.05)], 1, stage=1)
    assert race.standing()[0].origin == "0.05" and told[-1] == 8 and race.best("hand").origin == "0.9"


def test_surrogate_interpolates_and_finds_the_planted_optimum() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3))
    target = np.array([0.3, -0.2, 0.5])
    value = lambda x: float(((x - target) ** 2).sum())  # noqa: E731
    values = np.array([value(x) for x in points])
    mean, deviation = Process(points, values, np.full(20, 1e-3), points.std(0)).predict(points)
    assert np.abs(mean - values).max() < 0.02 and deviation.max() < 0.2
    for _ in range(15):
        place = propose(points, values, np.ones(len(values)), lambda p: p[:, 0] > -1, rng)
        assert place is not None and place[0] > -1
        points, values = np.vstack([points, place]), np.append(values, value(place))
    assert values.min() < 0.01
    assert propose(points, values, np.ones(len(values)), lambda p: p[:, 0] > 1e9, rng) is None


# ------------------------------------------------------------------------------------------------------------- judges
def test_judges_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 2, generator=generator)
    real = torch.randn(500, 2, generator=generator).double() + 1
    frechet = FrechetJudge(lambda x: 2 * x, Statistics.of(2 * real))
    rows = frechet.observe(images, range(64))
    assert torch.equal(rows, 2 * images.double())
    value, error = frechet.figure(rows)
    assert value == pytest.approx(frechet.score(rows)) and 0 < error < value

    net = mixture()
    teacher = Teacher(net, solvers.ddim(times.karras(NOISE, 4)).tabulate(NOISE))
    paired = PairedJudge(teacher, list(SelectionSeeds(10)))
    seeds = list(SelectionSeeds(12))
    rows = paired.observe(teacher(seeds) + 0.5, seeds)
    assert rows[10:].isnan().all() and paired.score(rows) == pytest.approx(0.5, rel=1e-5)
    assert paired.figure(rows).standard_error == pytest.approx(0, abs=1e-6)

    assert ImageJudge(lambda x: x.flatten(1).mean(1)).score(torch.tensor([[1.0], [3.0]])) == 2.0
    with pytest.raises(ArgumentError, match="one finite number for each"):
        ImageJudge(lambda x: x.mean()).observe(images, range(64))

    sliced = SlicedJudge(real.float(), "x")
    assert sliced.score(sliced.observe(real.float(), ())) < 1e-6
    assert 0.5 < sliced.score(sliced.observe(real.float() + 1, ())) < 1.5
    assert SlicedJudge(torch.randn(10, 3, 20, 20, generator=generator), "x").reference.shape == (10, 256)


def test_scorer_pays_for_each_image_once(tmp_path: Path) -> None:
    table = solvers.dpmpp_2m(times.karras(NOISE, 5)).tabulate(NOISE)
    judge = FrechetJudge(lambda x: x.flatten(1), Statistics.of(problems.get("gaussian").sample(1000)))

    def scorer(net: Counted) -> Scorer:
        return Scorer(net, [judge], SelectionSeeds(100), condition=no_condition, cache=Cache(tmp_path))

    net = counted()
    one = scorer(net)
    at_30, at_80 = one.score(table, 30), one.score(table, 80)
    assert net.seen == 80 * 5 + 1 and at_30 != at_80 and one.score(table, 30) == at_30
    other = counted()
    assert scorer(other).score(table, 80) == at_80 and other.seen == 1
    with pytest.raises(ArgumentError, match="100 seeds"):
        one.score(table, 101)


# ------------------------------------------------------------------------------------------------------- the whole run
@pytest.fixture(scope="module")
def found() -> Found:
    return optimize(counted(), 4, "grids", **TAUGHT)


def test_found_is_better_and_says_by_how_much(found: Found) -> None:
    assert found.complete and found.tableau.nfe == found.start.nfe == 4
    assert found.selection["after"] < 0.8 * found.selection["before"]
    chosen = found.selected_by
    before, after = (found.report[role][chosen]["value"] for role in ("before", "after"))
    assert after < 0.9 * before
    assert chosen == found.selection["judge"] and chosen.startswith("sliced Wasserstein distance to the teacher's end")
    others = set(found.report["after"]) - {chosen}
    assert "RMS distance to the teacher" in others and any("sliced" in name for name in others)
    assert found.improved and found.start_origin in times.NAMES
    gain = found.report["gain"][chosen]
    assert gain["value"] == pytest.approx(before - after) and 0 < gain["standard_error"] < gain["value"]
    hand = [c for c in found.candidates if c["method"] == "hand"]
    assert {c["origin"] for c in hand} == set(times.NAMES)
    assert found.tableau.meta["report"]["after"] == found.report["after"] and found.tableau.meta["nfe"] == 4


def test_ays_and_grids_take_times_from_the_loss_curve_too(found: Found) -> None:
    ays = optimize(counted(), 3, "ays", objective=off_the_modes, max_calls=10_000)
    for one in (found, ays):
        entered = {c["origin"] for c in one.candidates if c["method"] == "loss"}
        assert entered == {f"rescaled entropic, power {power}" for power in ("1", "0.95", "1.05")}
        starts = {c["start"] for c in one.candidates if c["method"] == "ays"}
        assert starts & entered  # the descent goes down from them too
    assert {c["method"] for c in ays.candidates} == {"hand", "loss", "ays"}


def test_the_same_twice(found: Found) -> None:
    again = optimize(counted(), 4, "grids", **TAUGHT).to_dict()
    first = found.to_dict()
    for record in (first, again):
        for stage in (*record["stages"], *record["course"]):
            stage.pop("seconds")
    assert json.dumps(first) == json.dumps(again)


def featured() -> models.Judge:
    """A judge of the Gaussian that has features and no density, as networks have."""
    judge = models.judge("problem:gaussian")
    assert judge is not None
    return replace(judge, nll=None)


def test_the_judge_by_default() -> None:
    """The distance to the teacher's samples of the same seeds, in features too where they are known; without a teacher
    that to the data.
    """
    seen = optimize(counted(), 3, "dmn", judge=featured(), max_calls=BUDGET, teacher_calls=12)
    assert seen.selected_by.startswith("faithful, Fréchet distance to the teacher's end points")
    alone = optimize(counted(), 3, "dmn", judge=featured(), teacher_calls=0, max_calls=BUDGET)
    assert alone.selected_by.startswith("Fréchet distance, ")
    without = optimize(counted(), 3, "dmn", max_calls=BUDGET, teacher_calls=12)
    assert without.selected_by.startswith("sliced Wasserstein distance to the teacher's end points")
    assert without.selected_by in without.report["after"]
    matched = optimize(counted(), 3, "dmn", judge=featured(), objective="matched", max_calls=BUDGET, teacher_calls=12)
    assert matched.selected_by.startswith("Fréchet distance to the teacher's end points")


def test_a_matched_judge_compares_sets_of_the_same_seeds() -> None:
    """It is the distance of the two sets of features or numbers, whatever order they come in, and 0 for the teacher."""
    net = counted()
    teacher = Teacher(net, reference_schedule(net.noise).tabulate(net.noise))
    seeds = range(40)
    images = teacher(seeds).double()
    other = images[torch.randperm(40, generator=torch.Generator().manual_seed(0))] * 1.1 + 0.2

    def twice(x: Tensor) -> Tensor:
        return 2 * x.flatten(1)

    by_features, by_numbers = MatchedJudge(teacher, seeds, twice), MatchedJudge(teacher, seeds)
    for judge in (by_features, by_numbers):
        assert judge.score(judge.observe(images, seeds)) == pytest.approx(0, abs=1e-6)
        rows = judge.observe(other, seeds)
        value, error = judge.figure(rows)
        assert value == judge.score(rows) > 0 and error > 0
        unknown = judge.observe(torch.cat([other, other[:5]]), [*seeds, 100, 101, 102, 103, 104])
        assert judge.score(unknown) == judge.score(rows)
    want = frechet(Statistics.of(twice(other)), Statistics.of(twice(images)))
    assert by_features.score(by_features.observe(other, seeds)) == pytest.approx(want, rel=1e-9)
    want = sliced_wasserstein(other.flatten(1), images.flatten(1), projections=64)
    assert by_numbers.score(by_numbers.observe(other, seeds)) == pytest.approx(want, rel=1e-9)
    assert by_features.digest != by_numbers.digest


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        pytest.param(method, objective, marks=() if quick == objective else S)
        for method, quick in (("grids", "teacher"), ("ays", "frechet"), ("dmn", "matched"))
        for objective in ("teacher", "frechet", "matched", "auto")
    ],
)
def test_the_budget_is_honoured_exactly(method: str, objective: str, tmp_path: Path) -> None:
    net = counted()
    judge = featured() if objective in ("frechet", "auto") else None
    result = optimize(net, 3, method, objective=objective, judge=judge, out=tmp_path, **TAUGHT)
    assert net.seen == net.evaluations == result.calls <= result.plan["max_calls"] == TAUGHT["max_calls"]
    planned = {stage["stage"]: stage for stage in result.stages}
    assert all(stage["calls"] <= stage["planned"] for stage in planned.values())
    assert set(planned) <= set(result.plan["stages"])
    assert result.selection["after"] <= result.selection["before"]
    expected = (
        {"hand", "dmn"}
        if method == "dmn"
        else {"hand", "loss", "ays"}
        if method == "ays"
        else {"hand", "dmn", "loss", "ays", "surrogate"}
    )
    assert {c["method"] for c in result.candidates} == expected


def test_a_given_table_takes_no_hand_crafted_grids_place() -> None:
    """The start of the figures is the best hand-crafted grid also where the table that was given is on its times."""
    given = solvers.dpmpp_2m(times.logsnr(NOISE, 4)).tabulate(NOISE)
    result = optimize(counted(), 4, "dmn", objective=off_the_modes, max_calls=BUDGET, teacher_calls=12, given=given)
    hand = {c["origin"] for c in result.candidates if c["method"] == "hand"}
    assert hand == set(times.NAMES) and any(c["method"] == "given" for c in result.candidates)


def test_never_worse_than_the_start() -> None:
    """Nothing moves a score that does not look at the images: the start is returned, and the notes say so."""
    result = optimize(counted(), 3, "grids", objective=lambda images: torch.ones(len(images)), max_calls=BUDGET)
    assert not result.improved and result.selection["after"] == result.selection["before"]
    assert result.origin == result.start_origin and "is returned" in result.notes[-1]


def search(net: Counted, folder: Path) -> Found:
    judge = models.judge("problem:gaussian")
    return optimize(net, 3, "grids", objective="frechet", judge=judge, max_calls=BUDGET, out=folder, batch_size=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found, int, int]:
    """A run that was not disturbed: its folder, what it found, its calls and its samples."""
    folder, net = tmp_path_factory.mktemp("whole"), counted()
    return folder, search(net, folder), net.calls, net.seen


@pytest.mark.parametrize("part", [pytest.param(0.2, marks=S), 0.5, pytest.param(0.9, marks=S)])
def test_interrupted_and_resumed(part: float, whole: tuple[Path, Found, int, int], tmp_path: Path) -> None:
    """Stopped anywhere, the same call goes on to the same result, and does not pay twice."""
    _, undisturbed, calls, samples = whole
    net = counted()
    net.left = int(part * calls)
    with pytest.raises(KeyboardInterrupt, match="run the same again"):
        search(net, tmp_path)
    if part > 0.3:  # the race had begun: its best is there
        partial = Found.load(tmp_path)
        assert not partial.complete and partial.tableau.nfe == 3 and partial.candidates and not partial.report
        assert Tableau.load(tmp_path / "schedule.json") == partial.tableau
    rest = counted()
    resumed = search(rest, tmp_path)
    assert resumed.complete and resumed.tableau == undisturbed.tableau
    assert resumed.report == undisturbed.report and resumed.candidates == undisturbed.candidates
    assert net.seen + rest.seen <= samples + 1 + 16 * 96  # the question, and at most one batch of paths, twice


def test_files(whole: tuple[Path, Found, int, int]) -> None:
    folder, found, _, _ = whole
    loaded = Found.load(folder)
    assert loaded.tableau == found.tableau and loaded.candidates == found.candidates and loaded.report == found.report
    table = Tableau.load(folder / "schedule.json")
    assert table == found.tableau and table.meta["report"]["seeds"].startswith("ReportSeeds")
    free = counted()
    cached = search(free, folder)
    assert free.seen == 1 and cached.report == found.report


def test_a_record_of_another_kind_is_refused(tmp_path: Path, found: Found) -> None:
    record = found.to_dict()
    for broken, said in (
        ({**record, "format": "x"}, "search record"),
        ({**record, "version": 99}, "update"),
        ({k: v for k, v in record.items() if k != "plan"}, "plan"),
    ):
        with pytest.raises(FileFormatError, match=said):
            Found.from_dict(broken)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(FileFormatError, match="cannot be read"):
        Found.load(tmp_path)


@pytest.mark.parametrize(
    "solver, nfe",
    [("auto", 3), ("heun", 5), ("sde_dpmpp_2m", 3), (lambda grid: solvers.unipc(grid, order=2), 3)],
    ids=["auto", "heun", "sde", "own"],
)
def test_solvers(solver: object, nfe: int) -> None:
    result = optimize(counted(), nfe, "dmn", solver=solver, objective=off_the_modes, max_calls=BUDGET)
    assert result.tableau.nfe == nfe and result.selection["after"] <= result.selection["before"]
    names = {c["solver"] for c in result.candidates}
    assert (len(names) >= 3) if solver == "auto" else (names == {result.solver} == {result.start_solver})


def test_solvers_that_cannot() -> None:
    with pytest.raises(ArgumentError, match="heun cannot make exactly 4 network calls.* 3, 5"):
        optimize(counted(), 4, "grids", solver="heun")
    with pytest.raises(ArgumentError, match="no solver"):
        optimize(counted(), 4, "grids", solver="nonsense")
    with pytest.raises(ArgumentError, match="no number of steps"):
        optimize(counted(), 4, "grids", solver=solvers.heun)


def test_few_calls() -> None:
    one = optimize(counted(), 1, "grids", objective=off_the_modes, max_calls=BUDGET)
    assert not one.improved and one.tableau.nfe == 1
    assert optimize(counted(), 2, "grids", objective=off_the_modes, max_calls=BUDGET).tableau.nfe == 2


def test_flow_models() -> None:
    problem = problems.get("grid_6x6", Flow(shift=3.0))
    result = optimize(problem.denoiser(), 3, "grids", max_calls=BUDGET, teacher_calls=12)
    assert result.tableau.times[0] == 1.0 and result.tableau.times[-1] == 0.0
    assert result.model == "problem:grid_6x6" and result.selection["after"] <= result.selection["before"]


def test_without_data_the_teacher_makes_some() -> None:
    inner = mixture()
    net = Denoiser(lambda x, t, c: inner.fn(x, t, None), noise=NOISE, shape=inner.shape, fingerprint="wrapped")
    result = optimize(net, 3, "grids", objective=off_the_modes, max_calls=BUDGET, teacher_calls=12)
    assert net.evaluations == result.calls <= BUDGET
    assert any("the teacher made" in note for note in result.notes) and any(
        "martingale" in note for note in result.notes
    )
    given = optimize(
        net, 3, "grids", objective=off_the_modes, max_calls=BUDGET, data=problems.get("grid_8x8").sample(64)
    )
    assert any("data given by the caller" in note for note in given.notes)


def test_guidance_is_counted_twice() -> None:
    problem = problems.get("grid_8x8")
    inner = Denoiser(lambda x, t, c: problem.denoise(x, t), noise=NOISE, shape=(2,), fingerprint="g", null_condition=0)
    net = guided(inner, 2.0)
    result = optimize(
        net, 2, "grids", objective=off_the_modes, condition=torch.arange(4), max_calls=2 * BUDGET, teacher_calls=12,
        data=problem.sample(64), data_condition=torch.zeros(64).long(),
    )  # fmt: skip
    assert net.evaluations == result.calls <= 2 * BUDGET and net.batch_cost == 2


def test_conditions_follow_the_seeds() -> None:
    seen: set[tuple[int, float]] = set()

    def fn(x: Tensor, t: object, label: Tensor) -> Tensor:
        seen.add(tuple(label.shape))
        mean = label.to(x)[:, None]
        return mean + (x - mean) / (1 + float(t) ** 2)

    net = Denoiser(fn, noise=NOISE, shape=(2,), fingerprint="labels")
    result = optimize(net, 3, "dmn", objective=off_the_modes, condition=torch.tensor([0.0, 5.0]), max_calls=BUDGET)
    assert result.tableau.nfe == 3 and all(len(shape) == 1 for shape in seen)
    with pytest.raises(ArgumentError, match="lengths"):
        optimize(net, 3, "grids", condition={"a": torch.zeros(2), "b": torch.zeros(3)})


def test_seeds_that_are_given() -> None:
    result = optimize(
        counted(), 3, "grids", objective=off_the_modes, max_calls=BUDGET, calibration=CalibrationSeeds(20, 7),
        selection=SelectionSeeds(240, 5), report=ReportSeeds(60, 3),
    )  # fmt: skip
    assert result.report["seeds"] == "ReportSeeds(60, offset=3)" and result.plan["paths"] == 20
    assert result.plan["counts"][-1] + result.plan["fresh"] <= 240


WRONG = {
    "calibration": SelectionSeeds(64), "selection": ReportSeeds(64), "report": SelectionSeeds(64),
}  # fmt: skip


@pytest.mark.parametrize("argument", WRONG)
def test_mixed_seeds_are_refused_before_any_work(argument: str) -> None:
    net = counted()
    for seeds in (WRONG[argument], range(64)):
        with pytest.raises(SeedsError, match=argument):
            optimize(net, 4, **{argument: seeds})
    assert net.seen == 0


@pytest.mark.parametrize(
    "options, said",
    [
        ({"nfe": 0}, "nfe is 0"),
        ({"nfe": 2.5}, "nfe is 2.5"),
        ({"method": "s3"}, "method is 's3': choose one of auto, grids, ays, dmn"),
        ({"objective": "fid"}, "objective is 'fid'"),
        ({"objective": "frechet"}, "needs a judge"),
        ({"minutes": 0}, "minutes is 0"),
        ({"max_calls": 0}, "max_calls is 0"),
        ({"max_calls": 500}, "too small a budget.*about"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"data": torch.zeros(5, 3)}, r"data has shape \(5, 3\)"),
        ({"model": object()}, "model is a object"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_arguments_are_refused_before_any_work(options: dict, said: str) -> None:
    net = counted()
    arguments = {"model": net, "nfe": 5, **options}
    with pytest.raises(ArgumentError, match=said):
        optimize(arguments.pop("model"), arguments.pop("nfe"), **arguments)
    assert net.seen == 0


def test_the_budget_that_a_refusal_names_is_enough() -> None:
    for method in ("auto", "grids", "ays", "dmn", "joint"):
        for made, taught in product((False, True), repeat=2):
            with pytest.raises(ArgumentError) as refused:
                plan(100, nfe=7, parts=PARTS[method], made=made, taught=taught)
            enough = int(str(refused.value).split("about ")[1].split(";")[0])
            assert plan(enough, nfe=7, parts=PARTS[method], made=made, taught=taught).total <= enough


def test_minutes_are_turned_into_calls() -> None:
    net = counted()
    result = optimize(net, 2, "dmn", objective=off_the_modes, minutes=0.05, max_calls=20_000)
    assert net.seen == result.calls <= 20_000 and "network calls a second" in result.notes[0]


def test_a_network_that_fails_is_reported() -> None:
    net = Denoiser(lambda x, t, c: x * float("nan"), noise=NOISE, shape=(2,), fingerprint="nan")
    with pytest.raises(DenoiserError):
        optimize(net, 4, "dmn", objective=lambda x: x.flatten(1).mean(1), max_calls=BUDGET)


def test_progress_is_told() -> None:
    events: list[Event] = []
    optimize(counted(), 3, "grids", max_calls=BUDGET, teacher_calls=12, progress=events.append)
    assert {"teacher", "race", "noising paths", "finals", "report"} <= {e.stage for e in events}
    assert all(e.total is not None and 0 <= e.done <= e.total for e in events)
    assert any(e.best for e in events if e.stage == "race")


def test_public_face() -> None:
    assert fewstep.optimize is optimize and fewstep.Found is Found
    assert math.isfinite(default_calls(1))


def test_a_sampler_that_overflows_is_the_worst(tmp_path: Path) -> None:
    """A judge that cannot score one grid; the record is strict JSON all the same."""
    bad = times.uniform(NOISE, 3)

    def solver(grid: Tensor) -> SolverSchedule:
        return solvers.ddim(grid) if not torch.equal(grid, bad) else solvers.ddim(grid + torch.tensor([1e-9, 0, 0, 0]))

    class Overflowing(Counted):
        def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
            if float(t) == 80.000000001:
                raise DenoiserError("overflow")
            return super().__call__(x, t, condition)

    inner = mixture()
    net = Overflowing(inner.fn, noise=NOISE, shape=inner.shape, fingerprint="overflowing")
    result = optimize(net, 3, "dmn", solver=solver, objective=off_the_modes, max_calls=BUDGET, out=tmp_path)
    (record,) = [c for c in result.candidates if c["origin"] == "uniform"]
    assert set(record["scores"].values()) == {None} and result.origin != "uniform"
    json.loads((tmp_path / "search.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the file"))
