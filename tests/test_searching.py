"""Searches on networks as studies: the evaluator, what must agree to go on, the commands."""

import json
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewstep import compare, inputs, models, searching, solvers, times
from fewstep.cli import app
from fewstep.denoiser import Denoiser
from fewstep.ems import EMS, log_snr_grid
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.evaluating import Evaluator, function_of
from fewstep.judging import checked_objective, searched_objective, selection_judge
from fewstep.metrics import Statistics, frechet
from fewstep.metrics.controlled import controlled_frechet
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.study.reading import read
from fewstep.study.records import InvalidSchedule
from fewstep.study.worker import Session
from fewstep.tableau import Tableau

MODEL = "problem:gaussian_8x8"
PROPOSER = "python:tests.test_searching:mover"


def mean_square(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).square().mean(1)


class Mover:
    """Named solvers, then their times moved."""

    name, learn_every = "mover", 0

    def __init__(self, noise, nfes):
        self.noise, self.nfes = noise, nfes

    def propose(self, trials, count, seed):
        from fewstep.proposals import Proposal

        draw = torch.Generator().manual_seed(seed)
        out = []
        for _ in range(count):
            nfe = self.nfes[int(torch.randint(len(self.nfes), (), generator=draw))]
            grid = times.named("logsnr")(self.noise, nfe)
            if trials:
                grid[1:-1] *= 1 - 0.05 * torch.rand(nfe - 1, generator=draw, dtype=torch.float64)
            out.append(Proposal(solvers.get("dpmpp_2m")(grid).canonical(), "moved", stage=1 if trials else 0))
        return out

    def learn(self, trials):
        return {}


def mover(*, noise, nfes, seed, **options):
    if options:
        raise TypeError(f"no option {next(iter(options))}")
    return Mover(noise, nfes)


def named(model, nfe=4, solver="dpmpp_2m") -> SolverSchedule:
    return solvers.get(solver)(times.named("logsnr")(model.noise, nfe))


# -------------------------------------------------------------------------------------------------------- evaluator
def test_the_score_is_that_of_the_samples():
    evaluate = Evaluator("problem:grid_8x8", "frechet", images=48, fresh=96, batch_size=17)
    model, known = models.load("problem:grid_8x8"), models.judge("problem:grid_8x8")
    schedule = named(model)
    table = schedule.tabulate(model.noise)
    images = sample(model, table, seeds=SelectionSeeds(48))
    expected = frechet(Statistics.of(known.features(images)), known.reference)
    assert evaluate(schedule, 48) == pytest.approx(expected, abs=1e-5)
    assert evaluate(schedule.to_dict(), 48) == evaluate(schedule, 48)
    value, error = evaluate(schedule, 96, True)
    told = compare.score(model, table, ReportSeeds(96), judge=known)
    assert value == pytest.approx(told["fd"], abs=1e-5) and error > 0


def test_more_images_of_the_same_trial_cost_only_the_new_ones():
    evaluate = Evaluator(MODEL, "teacher", images=32, teacher_calls=10)
    evaluate.prepare()
    schedule, model = named(evaluate.model), evaluate.model
    before = model.evaluations
    few = evaluate(schedule, 8)
    assert model.evaluations - before == 8 * 4
    both = evaluate(schedule, 32)
    assert model.evaluations - before == 32 * 4
    again = Evaluator(MODEL, "teacher", images=32, teacher_calls=10)
    assert (again(schedule, 8), again(schedule, 32)) == (few, both)


def controlled(tmp_path, **changes) -> Evaluator:
    arguments = {"images": 64, "fewest": 48, "fresh": 80, "teacher_calls": 5, "population": 300, "batch_size": 100}
    return Evaluator(MODEL, "controlled", **arguments | {"cache": str(tmp_path)} | changes)


def test_a_controlled_score_is_that_of_samples_teacher_and_population(tmp_path):
    evaluate = controlled(tmp_path)
    model, known = evaluate.model, models.judge(MODEL)
    teacher, table = evaluate.teacher.tableau, named(model).tabulate(model.noise)
    assert teacher.nfe == 5
    seen = lambda table, seeds: known.features(sample(model, table, seeds=seeds)).double()  # noqa: E731
    population = Statistics.of(seen(teacher, CalibrationSeeds(300, 600_000_000)))
    for seeds, fresh in ((SelectionSeeds(48), False), (ReportSeeds(80), True)):
        wanted = controlled_frechet(seen(table, seeds), seen(teacher, seeds), population, known.reference)
        found = evaluate(named(model), len(seeds), fresh)
        value, error = found if fresh else (found, 1.0)
        assert value == pytest.approx(wanted, abs=1e-4) and error > 0


def test_the_teachers_features_are_made_once_and_shared(tmp_path):
    events = []
    evaluate = controlled(tmp_path)
    evaluate.prepare(events.append)
    assert {(e.done, e.total) for e in events} >= {(300, 300), (64, 64), (80, 80)}
    teacher = (300 + 64 + 80) * 5
    assert evaluate.model.evaluations == teacher + 1  # the probe that guards the cache
    score = evaluate(named(evaluate.model), 64)
    assert evaluate.model.evaluations == teacher + 1 + 64 * 4
    other = controlled(tmp_path)  # as in another worker
    assert other(named(other.model), 64) == score
    assert other.model.evaluations <= 1 + 64 * 4
    assert all(file.stat().st_size < 1.1 * 512 * 64 * 8 for file in tmp_path.iterdir())  # features, no images


def test_the_controlled_distance_is_chosen_where_it_was_measured_to_be_better():
    digits, grid = models.judge("mnist"), models.judge("problem:grid_8x8")
    for known, calls, fewest, most, wanted in (
        (digits, 60, 256, 256, "controlled"), (digits, 60, 64, 256, "controlled"), (digits, 60, 128, 128, "faithful"),
        (digits, 60, 16, 256, "faithful"), (digits, 0, 256, 256, "frechet"), (grid, 60, 256, 256, "matched"),
        (None, 60, 256, 256, "matched"),
    ):  # fmt: skip
        assert searched_objective("auto", known, calls, fewest, most) == wanted
        plain = "matched" if known is not digits else "faithful" if calls else "frechet"
        assert checked_objective("auto", known, calls) == plain
    for known, calls, fewest, words in (
        (None, 60, 64, "needs features"),
        (digits, 0, 64, "a teacher"),
        (digits, 9, 8, "on 8 images"),
    ):
        with pytest.raises(ArgumentError, match=words):
            searched_objective("controlled", known, calls, fewest, 256)
    with pytest.raises(ArgumentError, match="population=63"):
        Evaluator(MODEL, "controlled", images=64, population=63)


def test_absurd_images_whose_features_are_not_finite_score_infinite():
    known = models.judge("problem:grid_8x8")
    judge = models.Judge("none", lambda images: known.features(images) / 0, known.reference, known.reference_features)
    evaluate = Evaluator("problem:grid_8x8", "frechet", images=48, judge=judge)
    assert evaluate(named(evaluate.model), 48) == math.inf


def test_a_function_of_the_images_judges():
    evaluate = Evaluator(MODEL, "python:tests.test_searching:mean_square", images=16)
    images = sample(evaluate.model, named(evaluate.model).tabulate(evaluate.model.noise), seeds=SelectionSeeds(16))
    assert evaluate(named(evaluate.model), 16) == pytest.approx(mean_square(images.double()).mean().item(), rel=1e-6)
    for name in ("python:tests.test_searching:nothing", "python:no_such_module:f", "python:f"):
        with pytest.raises(ArgumentError):
            function_of(name)


def test_what_goes_wrong_has_its_name(monkeypatch):
    evaluate = Evaluator(MODEL, "python:tests.test_searching:mean_square", images=16)
    with pytest.raises(InvalidSchedule):
        evaluate({"times": [0.0, 1.0], "steps": [{}]}, 16)
    schedule = named(evaluate.model)

    def fails(error):
        def call(self, x, t, condition=None):
            raise error

        monkeypatch.setattr(Denoiser, "__call__", call)

    session = Session({"factory": ""}, "w", evaluate)
    task = {"schedule": schedule.to_dict(), "images": 16, "fresh": False}
    fails(DenoiserError("not finite", rows=(1,)))
    assert evaluate(schedule, 16) == math.inf
    assert session.run(task)["score"] == math.inf
    fails(MemoryError())
    assert session.run(task)["cause"] == "out of memory"
    fails(DenoiserError("wrong shape"))
    answer = session.run(task)
    assert answer["cause"] == "error" and "wrong shape" in answer["message"]


def test_samples_that_overflow_score_infinity():
    evaluate = Evaluator("problem:grid_8x8", "frechet", images=48)
    huge = Evaluator("problem:grid_8x8", "python:tests.test_searching:mean_square", images=16)
    times_of = [80.0, 1e-150, 0.0]
    for evaluator in (evaluate, huge):
        evaluator.model.fn = lambda x, t, condition=None: torch.full_like(x, math.inf)
        evaluator.model.check_finite = False
        assert evaluator({"times": times_of, "steps": [{}, {}]}, 16) == math.inf


def test_judges_are_told_their_seeds_as_ranges():
    evaluate = Evaluator(MODEL, "teacher", images=8, teacher_calls=4)
    assert evaluate.identity["selection seeds"] == "SelectionSeeds(8, offset=0)"
    judge = selection_judge("teacher", inputs.judge_of(evaluate.model), evaluate.teacher, list(evaluate.selection))
    assert evaluate.identity["judge digest"] == judge.digest


# --------------------------------------------------------------------------------------------------------- searches
def options(**changes):
    return {
        "nfes": [3, 4], "budget": 6, "proposer": PROPOSER, "objective": "teacher", "images": (8, 16),
        "teacher_calls": 8, "batch_size": 16,
    } | changes  # fmt: skip


def test_a_search_its_front_and_its_files(tmp_path):
    path = tmp_path / "s.sqlite"
    with searching.start(path, MODEL, **options()) as search:
        rows = search.run()
    assert [row["nfe"] for row in rows] == [3, 4]
    files = searching.save_front(path, tmp_path / "front")
    model = models.load(MODEL)
    for row, file in zip(rows, files, strict=True):
        table = Tableau.load(file)
        assert table.digest == row["digest"] and table.nfe == row["nfe"]
        assert table.meta["fingerprint"] == model.fingerprint and table.meta["score"] == row["score"]
        assert set(row["fresh"]) == {"16", "64"} and row["curse"] is not None
    with searching.resume(path, budget=9) as search:
        search.run()
    assert sum(entry.scored for entry in read(path).entries.values()) == 9


def test_another_model_metric_or_seed_set_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    searching.start(path, MODEL, **options()).close()
    monkeypatch.setattr(Denoiser, "fingerprint", "another", raising=False)
    with pytest.raises(ArgumentError, match="fingerprint: .* then, 'another' now"):
        searching.resume(path)


def test_a_controlled_search_goes_on_only_with_its_teacher(tmp_path):
    path = tmp_path / "s.sqlite"
    control = options(objective="controlled", images=(48,), fresh=0, population=100, teacher_calls=4)
    with searching.start(path, MODEL, **control) as search:
        rows = search.run()
    assert len(list((tmp_path / "s.sqlite.cache").iterdir())) == 2  # features of the selection and of the population
    contents = read(path)
    again = searching.evaluator_of(contents.record, path)
    assert (
        again.score_table(again.tabulate(contents.entries[rows[0]["trial"]].trial.proposal.schedule), 48)
        == rows[0]["score"]
    )
    for change in ({"population": 101}, {"teacher_calls": 5}):
        record = {**contents.record, "evaluator": contents.record["evaluator"] | change}
        with pytest.raises(ArgumentError, match="judge digest: .* then, .* now"):
            searching.evaluator_of(record, path)


def test_what_auto_chose_stays_chosen(tmp_path):
    """A study of an earlier version, where `auto` was another judge, goes on with that one."""
    path = tmp_path / "s.sqlite"
    searching.start(path, "mnist", nfes=[3], budget=1, objective="frechet", fresh=0).close()
    with sqlite3.connect(path) as db:
        record = json.loads(db.execute("SELECT value FROM study WHERE key = 'record'").fetchone()[0])
        record["evaluator"]["objective"] = "auto"
        for name in ("fewest", "population"):
            del record["evaluator"][name]
        db.execute("UPDATE study SET value = ? WHERE key = 'record'", (json.dumps(record),))
    db.close()
    with searching.resume(path) as search:
        assert search.evaluator.objective == "frechet"


def test_with_statistics_steps_may_take_the_third_basis(tmp_path):
    path, file = tmp_path / "s.sqlite", tmp_path / "ems.safetensors"
    model = models.load(MODEL)
    lams = log_snr_grid(model.noise, 20)
    EMS.constant(lams, 0.6, -0.3, 0.1).save(file)
    with searching.start(path, MODEL, **options(proposer="s3", options={"limit": 3}, statistics=file)) as search:
        search.run()
    contents = read(path)
    assert contents.record["options"]["bases"] == ["data", "noise", "v3"]
    first = [e.trial.proposal for e in contents.entries.values() if e.trial.proposal.stage == 0]
    assert first and all(p.origin.startswith("dpm_solver_v3") for p in first)
    for saved, row in zip(searching.save_front(path, tmp_path), searching.front(contents), strict=True):
        table = Tableau.load(saved)
        evaluate = Evaluator(MODEL, "teacher", images=row["images"], teacher_calls=8, batch_size=16)
        assert evaluate.score_table(table, row["images"]) == pytest.approx(row["score"], rel=1e-6)
    EMS.constant(lams, 0.5, -0.3, 0.1).save(file)
    with pytest.raises(ArgumentError, match="statistics: .* then, .* now"):
        searching.resume(path)
    with pytest.raises(ArgumentError, match="give statistics="):
        searching.start(tmp_path / "x", MODEL, **options(proposer="s3", options={"bases": ["data", "v3"]}))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nfes": []}, "nfes"), ({"budget": 0}, "budget=0"), ({"images": (16, 8)}, "rising"), ({"fresh": 4}, "fresh=4"),
        ({"proposer": "python:tests.test_searching:nobody"}, "no such function"),
        ({"objective": "beauty"}, "objective"),
        ({"options": {"speed": 3}}, "no option speed"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_no_file(tmp_path, changes, words):
    with pytest.raises(ArgumentError, match=words):
        searching.start(tmp_path / "s.sqlite", MODEL, **options(**changes))
    assert not list(tmp_path.glob("s.sqlite"))


def test_workers_are_checked():
    for wrong in ({"pool": "threads"}, {"count": 0}, {"pool": "serial", "count": 2}):
        with pytest.raises(ArgumentError):
            searching.Workers(**wrong)


# --------------------------------------------------------------------------------------------------------- commands
def run(*args, code=0):
    result = CliRunner().invoke(app, ["search", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("command", ["start", "resume", "status", "front"])
def test_every_command_explains_itself(command):
    text = run(command, "--help").stdout
    assert "Examples:" in text and f"fewstep search {command}" in text and "--json" in text


def test_the_commands_from_start_to_front(tmp_path):
    path = tmp_path / "s.sqlite"
    told = run(
        "start", MODEL, "--nfe", "3-4", "--budget", 5, "--out", path, "--proposer", PROPOSER, "--images", "8,16",
        "--objective", "python:tests.test_searching:mean_square", "-q",
    )  # fmt: skip
    assert "5 of 5 trials" in told.stdout and "finished" in told.stdout
    status = json.loads(run("status", path, "--json").stdout)
    assert status["evaluated"] == 5 and status["nfes"] == [3, 4] and status["finished"]
    run("resume", path, "--budget", 7, "-q")
    front = json.loads(run("front", path, "--save", tmp_path / "best", "--json").stdout)
    assert [Path(file).name for file in front["files"]] == ["nfe-3.json", "nfe-4.json"]
    assert json.loads(run("status", path, "--json").stdout)["evaluated"] == 7
    again = run("start", MODEL, "--nfe", 3, "--out", path, "--proposer", PROPOSER, "-q", code=2)
    assert "exists" in again.output
    assert "does not exist" in run("status", tmp_path / "none.sqlite", code=2).output
    assert "write 5, 4-10 or 5,8" in run("start", MODEL, "--nfe", "10-4", "--out", tmp_path / "x", code=2).output
    assert "NAME=VALUE" in run(
        "start", MODEL, "--nfe", 3, "--out", tmp_path / "x", "--option", "depth", code=2
    ).output  # fmt: skip


def sizes():
    return lambda images: torch.stack([images.flatten(1).mean(1), images.flatten(1).std(1)], 1)


def test_features_of_ones_own_judge_a_study_and_its_workers(tmp_path, monkeypatch):
    path, stats = tmp_path / "s.sqlite", tmp_path / "stats.npz"
    model = models.load(MODEL)
    np.savez(stats, mu=np.zeros(2), sigma=np.eye(2))
    monkeypatch.chdir(tmp_path)
    asked = ("start", MODEL, "--nfe", "3", "--budget", 4, "--out", path, "--proposer", PROPOSER, "--images", 16, "-q")
    own = ("--features", "python:tests.test_searching:sizes", "--reference")
    assert "belong together" in run(*asked, *own[:2], code=2).output
    run(*asked, *own, "stats.npz", "--objective", "frechet", "--workers", 1, "--pool", "processes", "--threads", 1)
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    run("resume", path, "--budget", 5, "-q")
    contents = read(path)
    assert contents.record["identity"]["judge"] == "Fréchet distance, python:tests.test_searching:sizes"
    for entry in contents.entries.values():
        table = entry.trial.proposal.schedule.tabulate(model.noise)
        samples = sample(model, table, seeds=SelectionSeeds(16))
        expected = frechet(Statistics.of(sizes()(samples).double()), Statistics.load(stats))
        assert entry.trial.scores[16] == pytest.approx(expected, rel=1e-6)
