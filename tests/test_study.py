"""The study: what a file keeps, what an interruption changes (nothing), what each failure leads to."""

import json
import math
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.errors import ArgumentError, FileFormatError, StudyError
from fewstep.proposals import Proposal, Trial
from fewstep.study import schema
from fewstep.study.learning import Learner
from fewstep.study.lock import held, holder
from fewstep.study.pools import SerialPool
from fewstep.study.reading import read
from fewstep.study.records import Key, Outcome, Task
from fewstep.study.runner import Runner
from fewstep.study.store import Store
from fewstep.study.summary import front, status
from tests.studies import Drawer, Sleeper, Stranger, Stumbler, Sudden, drawer, measure, record, schedule, sequence, spec

ROOT = Path(__file__).resolve().parents[1]


def run(store: Store, pool=None, proposer=None) -> Store:
    Runner(store, proposer or drawer(), pool or SerialPool(spec()), measure).run()
    return store


def scored(contents) -> int:
    return sum(entry.scored for entry in contents.entries.values())


# --------------------------------------------------------------------------------------------------- a whole search
def test_a_search_spends_its_budget_and_leaves_a_front(tmp_path):
    path = tmp_path / "study.sqlite"
    with Store.create(path, record(counts=[4, 16], fresh=64)) as store:
        run(store)
    contents = read(path)
    assert scored(contents) == 24
    assert len({entry.trial.digest for entry in contents.entries.values()}) == 24
    rows = front(contents)
    assert [row["nfe"] for row in rows] == [3, 4, 5]
    for row in rows:
        assert row["images"] == 16 and set(row["fresh"]) == {"16", "64"}
        assert row["fresh"]["16"]["error"] == 0.01
        assert row["curse"] == pytest.approx(0.1 * row["score"])
    promoted = [entry for entry in contents.entries.values() if 16 in entry.trial.scores]
    for nfe in (3, 4, 5):
        ours = sorted(e.trial.scores[4] for e in contents.entries.values() if e.trial.nfe == nfe)
        best = [e.trial.scores[4] for e in promoted if e.trial.nfe == nfe]
        assert ours[0] in best  # the best of few images was seen with more
        assert len(best) < len(ours)
    told = status(contents, path)
    assert told["evaluated"] == 24 and told["writer"] is None and len(told["learned"]) >= 3


class Cut(BaseException):
    pass


def cut_short(patch, after: int) -> None:
    """Stop the process, as it were, at the change or writing number `after`."""
    left = [after]

    def wrapped(whole):
        def run(self, *args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            return whole(self, *args, **kwargs)

        return run

    for name in ("_op", "_attempt", "add", "queue", "start", "finish", "learned"):
        patch.setattr(Store, name, wrapped(getattr(Store, name)))


def test_interrupted_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    plan = record(counts=[4, 16], fresh=64, budget=30)
    with Store.create(tmp_path / "whole.sqlite", plan) as store:
        expected = sequence(run(store))
    draw = random.Random(0)
    for attempt in range(4):
        path = tmp_path / f"cut-{attempt}.sqlite"
        Store.create(path, plan).close()
        cuts = 0
        while True:
            store = Store.open(path)
            store.tries = 1
            try:
                with monkeypatch.context() as patch:
                    cut_short(patch, draw.randrange(1, 200))
                    patch.setattr(Store, "due", lambda self: 0.0)
                    run(store)
            except Cut:
                cuts += 1
                # What a kill leaves: nothing that waited is written, nothing is tidied up.
                store._db.close()
                store._lock.release()
                continue
            assert sequence(store) == expected
            store.close()
            break
        assert cuts > 1


def test_a_higher_budget_goes_on_as_if_it_had_been_there_from_the_start(tmp_path):
    with Store.create(tmp_path / "a.sqlite", record(budget=30)) as store:
        expected = sequence(run(store))
    with Store.create(tmp_path / "b.sqlite", record(budget=12)) as store:
        run(store)
    with Store.open(tmp_path / "b.sqlite") as store:
        store.set("budget", 30)
        assert sequence(run(store)) == expected


def test_equal_tables_are_one_trial_and_a_dry_proposer_ends(tmp_path):
    class Same(Drawer):
        asked = 0

        def propose(self, trials, count, seed):
            Same.asked += 1
            return [Proposal(schedule([1.0, 0.6, 0.3, 0.0]), "always")] * count

    with Store.create(tmp_path / "s.sqlite", record(counts=[4, 16], fresh=32)) as store:
        run(store, proposer=Same())
        (entry,) = store.contents.entries.values()
        assert set(entry.trial.scores) == {4, 16} and Same.asked < 50
        assert {key for key in entry.evaluations if key.fresh} == {Key(0, 16, True), Key(0, 32, True)}


# --------------------------------------------------------------------------------------------------------- failures
def test_schedules_without_a_table_are_told_and_cost_nothing(tmp_path):
    def picky(found):
        if len(found.times) == 4:
            raise ArgumentError("no table for this")
        return measure(found)

    with Store.create(tmp_path / "s.sqlite", record(nfes=[4], budget=8)) as store:
        Runner(store, drawer(), SerialPool(spec()), picky).run()
        states = Counter(entry.status for entry in store.contents.entries.values())
        assert states["finished"] == 8 and states["failed"] > 0
        causes = {e.message for e in store.contents.evaluations() if e.status == "failed"}
        assert causes == {"no table for this", "it makes 5 network calls, which was not asked for"}


class Pool(SerialPool):
    """Answers as told (None: as the evaluator does), then as the evaluator does."""

    def __init__(self, *answers):
        super().__init__(spec())
        self.answers = list(answers)

    def wait(self, timeout):
        if self._task is not None and self.answers and (answer := self.answers.pop(0)):
            task, self._task = self._task, None
            return [Outcome.of(task, "w", answer)]
        return super().wait(timeout)


def test_a_worker_that_dies_is_no_failure_of_the_trial_until_the_third_time(tmp_path):
    died = {"cause": "worker died", "message": "signal SIGKILL"}
    with Store.create(tmp_path / "a.sqlite", record()) as store:
        expected = sequence(run(store))
    with Store.create(tmp_path / "b.sqlite", record()) as store:
        run(store, Pool(None, died, died, None, died))
        assert sequence(store) == expected
        assert sorted(e.attempts for e in store.contents.evaluations())[-2:] == [1, 2]
    with Store.create(tmp_path / "c.sqlite", record()) as store:
        run(store, Pool(died, died, died))
        first = store.contents.entries[0]
        assert first.status == "failed" and next(iter(first.evaluations.values())).cause == "worker died"
        assert scored(store.contents) == 24
    with Store.create(tmp_path / "d.sqlite", record()) as store:
        run(store, Pool(*[{"cause": "node lost", "message": "the machine went"}] * 9))
        assert sequence(store) == expected  # whoever is moved nine times has not failed


def test_samples_that_are_not_finite_are_an_infinite_score(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store.create(path, record(counts=[4, 16], fresh=32)) as store:
        run(store, Pool({"score": math.nan}, {"score": math.inf}))
        scores = [entry.trial.scores[4] for entry in store.contents.entries.values()]
        assert scores[:2] == [math.inf, math.inf] and all(map(math.isfinite, scores[2:]))
    assert read(path).entries[0].trial.scores[4] == math.inf
    assert status(read(path), path)["infinite"] == 2


def test_an_error_of_the_objective_stops_the_study_and_is_forgiven_when_mended(tmp_path):
    path = tmp_path / "s.sqlite"
    bug = {"cause": "error", "message": "ZeroDivisionError: division by zero"}
    with Store.create(tmp_path / "whole.sqlite", record()) as store:
        expected = sequence(run(store))
    with Store.create(path, record()) as store, pytest.raises(StudyError, match="ZeroDivisionError"):
        run(store, Pool(bug, bug, bug))
    assert Counter(e.status for e in read(path).evaluations())["failed"] == 3
    with Store.open(path) as store:
        run(store)
        assert scored(store.contents) >= 24
        assert [s[:1] for s in sequence(store)[:2]] == [s[:1] for s in expected[:2]]
        assert not any(e.cause for e in store.contents.evaluations())


def test_one_bad_evaluation_among_good_ones_is_borne(tmp_path):
    bug = {"cause": "error", "message": "once"}
    with Store.create(tmp_path / "s.sqlite", record()) as store:
        run(store, Pool(bug, None, bug, None, bug))
        assert scored(store.contents) == 24


def test_late_answers_are_not_counted_twice(tmp_path):
    class Echo(SerialPool):
        def wait(self, timeout):
            return [outcome for outcome in super().wait(timeout) for _ in range(2)]

    with Store.create(tmp_path / "s.sqlite", record()) as store:
        run(store, Echo(spec()))
        assert scored(store.contents) == store.contents.places == 24
        assert Task(Key(0, 4), {}).to_dict() == {"schedule": {}, "images": 4, "fresh": False}


# --------------------------------------------------------------------------------------------------------- the file
def test_two_writers_are_told_apart_and_readers_are_welcome(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store.create(path, record()) as store:
        who = holder(path)
        assert who is not None and held(path)
        with pytest.raises(StudyError, match=f"process {who['pid']} on {who['host']}"):
            Store.open(path)
        run(store)
        told = status(read(path), path)
        assert told["writer"] == who and told["evaluated"] == 24
    assert not held(path) and not path.with_name("s.sqlite.lock").exists()
    with Store.open(path) as store:
        assert len(store.contents.entries) == 24
    with pytest.raises(StudyError, match="exists: go on with it"):
        Store.create(path, record())


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store.create(path, record(budget=120)) as store:
        store.tries, store.pause = 2, 0.01
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(StudyError, match="disk is full"):
            run(store)
        before = scored(store.contents)
        store._db.execute("PRAGMA max_page_count = 100000")  # space was made: nothing was lost
        store.commit()
        assert scored(read(path)) == before > 0
    with Store.open(path) as store:
        run(store)
    assert scored(read(path)) == 120


def test_a_file_that_cannot_be_written(tmp_path):
    path = tmp_path / "s.sqlite"
    store = Store.create(path, record())
    store.tries = 1
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StudyError, match="read-only"):
        run(store)
    store._waiting.clear()
    store.close()
    with pytest.raises(ArgumentError, match="does not exist"):
        Store.open(tmp_path / "none.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises((StudyError, ArgumentError), match="cannot"):
        Store.create(tmp_path / "file" / "s.sqlite", record())


def test_damage_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store.create(path, record(budget=200)) as store:
        run(store)
    whole = path.read_bytes()
    draw = random.Random(3)
    torn = bytearray(whole)
    for start in range(4096, len(whole), 4096):  # every page but the first: garbage in its head
        torn[start : start + 64] = draw.randbytes(64)
    path.write_bytes(bytes(torn))
    with pytest.raises(FileFormatError, match="damaged"):
        Store.open(path)
    assert not held(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match="damaged"):
        Store.open(path)
    path.write_bytes(b"no study" * 100)
    for opened in (Store.open, read):
        with pytest.raises(FileFormatError, match="damaged or no study"):
            opened(path)
    path.write_bytes(whole)
    newer(path)
    with pytest.raises(FileFormatError, match="update fewstep"):
        Store.open(path)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(FileFormatError, match="no study of fewstep"):
        read(tmp_path / "other.sqlite")


def newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()


def test_a_schedule_that_someone_changed_is_noticed(tmp_path):
    path = tmp_path / "s.sqlite"
    with Store.create(path, record()) as store:
        run(store)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE trials SET schedule = ? WHERE number = 3", (json.dumps({"times": [0, 1], "steps": [{}]}),))
    db.close()
    with pytest.raises(FileFormatError, match="damaged"):
        read(path)


def test_pragmas_are_what_durability_needs(tmp_path):
    with Store.create(tmp_path / "s.sqlite", record()) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


# ------------------------------------------------------------------------------------------------------- interrupts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_what_is_done(tmp_path, number):
    path = tmp_path / "s.sqlite"
    done = subprocess.run(
        [sys.executable, "-m", "tests.study_driver", str(path), "--budget", "100000", "--pause", "0.01",
         "--signal", str(int(number))],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert int(done.stdout) == scored(read(path)) > 3
    assert not held(path)


# ----------------------------------------------------------------------------------------------------------- learning
def trials_of(count: int, first: int = 0) -> list[Trial]:
    proposals = drawer().propose([], count, 5)
    return [Trial(first + k, p, 4, f"{k}", {4: 0.1 * k}) for k, p in enumerate(proposals)]


def wait_for(learner: Learner):
    for _ in range(600):
        if (report := learner.done()) is not None:
            return report
        time.sleep(0.05)
    raise AssertionError("it learned for half a minute")


def test_learning_elsewhere_is_learning_here():
    here, elsewhere = (Learner(drawer(), background=background) for background in (False, True))
    some = trials_of(20)
    for through, trials in enumerate((some[:9], [*some[:8], replace(some[8], scores={4: 7.0}), *some[9:]]), 1):
        reports = []
        for learner in (here, elsewhere):
            learner.start(trials, through, through - 1)
            reports.append(wait_for(learner))
        assert reports[0].report == reports[1].report and reports[1].trials == len(trials)
        assert here.proposer.lesson == elsewhere.proposer.lesson != 0.0
    for learner in (here, elsewhere):
        learner.close()


@pytest.mark.parametrize(
    ("proposer", "message"),
    [
        (Stumbler, r"(?s)stumbler could not learn.*ValueError: no more"),
        (Stranger, r"(?s)could not learn.*a_script_nobody_knows"),
        (Sudden, r"died \(exit code 3\).*resume"),
    ],
)
def test_a_study_whose_proposer_cannot_learn_stops_and_says_why(proposer, message):
    learner = Learner(proposer(), background=True)
    learner.start(trials_of(8), 8, 0)
    with pytest.raises(StudyError, match=message):
        wait_for(learner)
    learner.close()


def test_learning_that_is_stopped_ends_at_once():
    learner = Learner(Sleeper(), background=True)
    learner.start(trials_of(8), 8, 0)
    time.sleep(0.2)
    began = time.monotonic()
    learner.close()
    assert time.monotonic() - began < 20 and not learner._thread.is_alive()


def test_a_proposer_that_cannot_be_copied_is_refused_before_any_work():
    proposer = drawer(key=lambda trial: trial.number)
    with pytest.raises(StudyError, match="define it in a module"):
        Learner(proposer, background=True)
    Learner(proposer, background=False)
