"""Pools: workers that die, hang and misbehave; drivers killed without notice; a cluster that loses a node."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fewstep.errors import ArgumentError, StudyError
from fewstep.study.processes import ProcessPool
from fewstep.study.reading import read
from fewstep.study.records import Key, Task
from fewstep.study.runner import Runner
from fewstep.study.store import Store
from fewstep.study.worker import cause_of
from tests.studies import drawer, measure, record, schedule, spec

ROOT = Path(__file__).resolve().parents[1]


def scored(contents) -> int:
    return sum(entry.scored for entry in contents.entries.values())


def task(number: int, first: float = 0.5) -> Task:
    return Task(Key(number, 4), schedule([1.0, first, 0.0]).to_dict(), number)


def answers(pool: ProcessPool, many: int, seconds: float = 60.0) -> list:
    found, until = [], time.monotonic() + seconds
    while len(found) < many and time.monotonic() < until:
        found += pool.wait(1.0)
    return found


def ready(pool: ProcessPool, many: int) -> None:
    until = time.monotonic() + 60
    while pool.idle() < many and time.monotonic() < until:
        assert not pool.wait(1.0)
    assert pool.idle() == many


def test_processes_search_as_one_process_does(tmp_path):
    log = tmp_path / "log"
    pool = ProcessPool(spec(pause=0.005, log=str(log)), 2)
    try:
        with Store.create(tmp_path / "s.sqlite", record(counts=[4, 16], fresh=32)) as store:
            Runner(store, drawer(), pool, measure).run()
            contents = store.contents
            assert scored(contents) == 24
            assert {e.worker for e in contents.evaluations()} == {"process 1", "process 2"}
            assert len(log.read_text().splitlines()) == len(list(contents.evaluations())) == contents.places
    finally:
        pool.close()


def test_a_killed_worker_is_replaced_and_its_task_comes_back(tmp_path):
    pool = ProcessPool(spec(pause=0.3), 2)
    try:
        ready(pool, 2)
        before = pool.pids()
        assert [pool.submit(task(0)), pool.submit(task(1))] == ["process 1", "process 2"]
        os.kill(before[0], signal.SIGKILL)
        found = {outcome.task.key.trial: outcome for outcome in answers(pool, 2)}
        assert found[0].cause == "worker died" and "SIGKILL" in found[0].message
        assert found[1].cause == "" and found[1].score is not None
        ready(pool, 2)
        assert before[0] not in pool.pids() and before[1] in pool.pids()
    finally:
        pool.close()
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_hung_worker_is_killed(tmp_path):
    pool = ProcessPool(spec(pause=60.0), 1, timeout=0.2)
    try:
        ready(pool, 1)
        pool.submit(task(0))
        (outcome,) = answers(pool, 1)
        assert outcome.cause == "timeout" and "no answer within" in outcome.message
        ready(pool, 1)
    finally:
        pool.close()


def test_every_mishap_ends_in_the_right_count(tmp_path):
    """Workers that exit, have no memory, lose their device, hang or return NaN: all trials come through."""
    pool = ProcessPool(spec("moody_evaluator", folder=str(tmp_path)), 2, timeout=1.5)
    try:
        with Store.create(tmp_path / "s.sqlite", record(budget=20)) as store:
            Runner(store, drawer(), pool, measure).run()
            assert scored(store.contents) == 20
            assert not any(e.status == "failed" for e in store.contents.evaluations())
            causes = Counter(e.cause for e in store.contents.evaluations() if e.attempts)
            assert sum(causes.values()) >= 3
    finally:
        pool.close()


def test_a_worker_that_cannot_be_built_is_one_clear_error():
    pool = ProcessPool(spec("broken_evaluator"), 1)
    try:
        with pytest.raises(StudyError, match="no network here"):
            answers(pool, 1)
    finally:
        pool.close()


def test_workers_that_die_at_once_are_not_started_for_ever():
    pool = ProcessPool({"factory": "os:_exit", "arguments": {}, "threads": None}, 1)
    pool._spec["factory"] = "tests.no_such_module:thing"
    try:
        with pytest.raises(StudyError, match="cannot build|in a row"):
            answers(pool, 1)
    finally:
        pool.close()


def test_causes_are_seen_through_wrappers():
    class OutOfMemoryError(RuntimeError):
        pass

    outer = RuntimeError("one sample does not fit")
    outer.__cause__ = OutOfMemoryError("CUDA out of memory")
    assert cause_of(outer) == cause_of(MemoryError()) == "out of memory"
    assert cause_of(RuntimeError("CUDA error: device-side assert")) == "device error"
    assert cause_of(ZeroDivisionError()) == "error"


# ------------------------------------------------------------------------------------------------- without notice
def killed(path: Path, *, kills: int, workers: int, seed: int, budget: int = 60, pause: float = 0.02) -> None:
    """Kill drivers and workers at random moments, then finish and count."""
    log = path.with_suffix(".log")
    command = [
        sys.executable, "-m", "tests.study_driver", str(path), "--budget", str(budget), "--pause", str(pause),
        "--workers", str(workers), "--log", str(log),
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "--kills", str(kills), "--seed", str(seed)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and int(done.stdout) == kills, done.stderr
    between = read(path) if path.exists() else None  # it opens, whatever happened to it
    last = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert last.returncode == 0, f"a study that cannot be gone on with after kills (seed {seed}): {last.stderr}"
    contents = read(path)
    assert int(last.stdout) == scored(contents) == budget
    assert len({entry.trial.digest for entry in contents.entries.values()}) == len(contents.entries)
    assert {e.status for e in contents.evaluations()} == {"finished"}
    places = sorted(e.place for e in contents.evaluations())
    assert len(set(places)) == len(places)
    for entry in between.entries.values() if between else ():  # nothing finished was lost or scored anew
        assert entry.trial.scores.items() <= contents.entries[entry.trial.number].trial.scores.items()
    assert not orphans()


def orphans() -> list[int]:
    """Workers that outlived their driver: none may."""
    time.sleep(0.2)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if b"fewstep.study.worker" in command and parent == 1:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find workers")
@pytest.mark.parametrize(("workers", "kills"), [(0, 3), (2, 2)])
def test_kill_9_loses_nothing(tmp_path, workers, kills):
    killed(tmp_path / "s.sqlite", kills=kills, workers=workers, seed=workers)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find workers")
@pytest.mark.parametrize("seed", range(20))
def test_kill_9_two_hundred_times(tmp_path, seed):
    killed(tmp_path / "s.sqlite", kills=10, workers=2 * (seed % 2), seed=seed, budget=200)


# -------------------------------------------------------------------------------------------------------------- Ray
def test_without_ray_the_extra_is_named(monkeypatch):
    from fewstep.study.ray_pool import RayPool

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArgumentError, match=r"fewstep\[ray\]"):
        RayPool(spec(), 1)


@pytest.mark.slow
def test_a_cluster_of_two_nodes_loses_one(tmp_path):
    """In a process of its own, for Ray leaves threads and warnings behind."""
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray_driver", str(tmp_path / "s.sqlite")],
        capture_output=True, text=True, cwd=ROOT, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    contents = read(tmp_path / "s.sqlite")
    assert scored(contents) == 60
    assert len({entry.trial.digest for entry in contents.entries.values()}) == 60
    places = [e.place for e in contents.evaluations()]
    assert sorted(places) == list(range(1, len(places) + 1))
    assert all(e.status == "finished" for e in contents.evaluations())
    assert any(e.cause is None and e.worker for e in contents.evaluations())
    assert "lost in flight: 2" in done.stdout
