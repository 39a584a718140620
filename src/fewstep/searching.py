"""A search over solver schedules as a study: started, gone on with, and its front saved.

    with searching.start("study.sqlite", "mnist", nfes=range(4, 11), budget=400) as search:
        search.run(Workers(2))
    searching.save_front("study.sqlite", "schedules")

The one place that joins what proposes (`search`), what evaluates (`evaluating`) and what survives (`study`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import fewstep
from fewstep.beginning import Beginning, first_of, with_third_basis
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.evaluating import Evaluator, Tabulator, function_of
from fewstep.models import Judge
from fewstep.noise import from_dict
from fewstep.progress import Report, silent
from fewstep.proposals import Proposer
from fewstep.search.control import POPULATION
from fewstep.search.objective import BATCH
from fewstep.study.pools import Pool, SerialPool
from fewstep.study.processes import ProcessPool
from fewstep.study.ray_pool import RayPool
from fewstep.study.reading import read
from fewstep.study.runner import Runner
from fewstep.study.store import Store
from fewstep.study.summary import front
from fewstep.study.worker import Spec
from fewstep.tableau import Tableau

POOLS = ("auto", "serial", "processes", "ray")


@dataclass(frozen=True)
class Workers:
    """Where evaluations run.

    Attributes:
        count: how many workers.
        pool: `serial` (this process), `processes` (on this machine), `ray` (a cluster); `auto`: the first for one
            worker, else the second.
        threads: of each worker's network; by default the machine's cores divided among them.
        timeout: seconds that one evaluation may take.
        address: of the Ray cluster, `auto` for the one that this machine belongs to.
        cpus, gpus: of each Ray worker.
    """

    count: int = 1
    pool: str = "auto"
    threads: int | None = None
    timeout: float | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ArgumentError(f"pool={self.pool!r}: choose one of {', '.join(POOLS)}")
        if self.count < 1 or (self.pool == "serial" and self.count > 1):
            raise ArgumentError(f"{self.count} workers in a {self.pool} pool: give 1 to serial, 1 or more to others")

    def open(self, spec: Spec, evaluator: Evaluator) -> Pool:
        """The pool."""
        if self.pool == "ray":
            return RayPool(
                {**spec, "threads": self.threads or max(1, int(self.cpus))}, self.count, address=self.address,
                cpus=self.cpus, gpus=self.gpus, timeout=self.timeout,
            )  # fmt: skip
        if self.pool == "serial" or (self.pool == "auto" and self.count == 1):
            return SerialPool({**spec, "threads": self.threads}, evaluator)
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.count)
        return ProcessPool({**spec, "threads": threads}, self.count, timeout=self.timeout)


class Search:
    """An open study with its evaluator; `run` it, and `close` it. `arguments` build the evaluator in other workers."""

    def __init__(self, store: Store, evaluator: Evaluator, arguments: Mapping[str, Any]) -> None:
        self.store, self.evaluator, self._arguments = store, evaluator, arguments

    def run(self, workers: Workers | None = None, progress: Report = silent) -> list[dict[str, Any]]:
        """Search until the budget is spent; returns the front.

        Raises:
            KeyboardInterrupt: after Ctrl-C; what was finished is written.
            StudyError: it cannot go on; the same holds.
        """
        record = self.store.contents.record
        proposer = _proposer(
            record["proposer"], noise=self.evaluator.model.noise, nfes=tuple(record["nfes"]), seed=record["seed"],
            **record["options"],
        )  # fmt: skip
        if record.get("first"):
            proposer = Beginning(proposer, record["first"])
        self.evaluator.prepare(progress)
        spec = {"factory": "fewstep.evaluating:Evaluator", "arguments": self._arguments}
        pool = (workers or Workers()).open(spec, self.evaluator)
        try:
            self.store.set("finished", False)
            Runner(self.store, proposer, pool, self.evaluator.tabulate.measure, progress).run()
            self.store.set("finished", True)
        finally:
            pool.close()
            self.store.commit()
        return front(self.store.contents)

    def close(self) -> None:
        """Let go of the file."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    path: str | Path,
    model: str,
    *,
    nfes: Sequence[int],
    budget: int,
    proposer: str = "s3",
    options: Mapping[str, Any] | None = None,
    objective: str = "auto",
    images: Sequence[int] = (256,),
    fresh: int | None = None,
    winners: int = 1,
    seed: int = 0,
    ask: int = 1,
    guidance: float | None = None,
    batch_size: int = BATCH,
    teacher_calls: int | None = None,
    population: int = POPULATION,
    offset: int = 0,
    given: Tableau | None = None,
    statistics: str | Path | None = None,
    features: str | None = None,
    reference: str | Path | None = None,
    network: Denoiser | None = None,
    judge: Judge | None = None,
) -> Search:
    """A new study.

    Args:
        path: its file.
        model: `mnist`, `problem:NAME`, `diffusers:PATH_OR_ID?prompts=FILE` or `python:MODULE:FACTORY`.
        nfes: network calls that are searched, together.
        budget: trials to be evaluated.
        proposer: `s3`, `evolution`, `random`, `tpe`, or `python:MODULE:FUNCTION`, which is called with `noise`, `nfes`,
            `seed` and the options; `options` are its own.
        objective: see `Evaluator`.
        images: of each evaluation; several, rising: few first, more for the best third of the same number of calls.
        fresh: images on which the winners are scored again, on seeds that never selected; by default four times as
            many as select; 0 for none. `winners`: of each number of calls.
        seed: of the proposals. ask: proposals at once, with one worker.
        guidance, batch_size, teacher_calls, population, offset: see `Evaluator`.
        given: a table to start from (say, a traced scheduler): its decisions, or where it has none its times with some
            solvers, are tried first.
        statistics: file of the network's statistics (`EMS.save`): steps may then take DPM-Solver-v3's basis too.
        features, reference: see `Evaluator`.
        network, judge: see `Evaluator`; then one serial worker runs the study, and `resume` is given them again.

    Raises:
        ArgumentError: something cannot be used; said before any work.
        StudyError: the file exists, or cannot be made.
    """
    counts = tuple(images)
    try:
        json.dumps(dict(options or {}))
    except TypeError as error:
        raise ArgumentError(f"options of the proposer: {error}; a study keeps them, so give plain data") from error
    again = 4 * max(counts, default=1) if fresh is None else fresh
    _check(nfes, budget, counts, again, winners, ask)
    arguments = {
        "model": model, "objective": objective, "images": counts[-1], "fewest": counts[0], "fresh": again,
        "guidance": guidance, "batch_size": batch_size, "teacher_calls": teacher_calls, "population": population,
        "offset": offset,
    }  # fmt: skip
    files = {"statistics": statistics, "reference": reference}
    arguments |= {name: str(Path(file).absolute()) for name, file in files.items() if file is not None}
    arguments |= {} if features is None else {"features": features}
    evaluator = Evaluator(**_with_cache(arguments, path), network=network, judge=judge)
    options = with_third_basis(dict(options or {}), proposer, evaluator.tabulate.statistics)
    record: dict[str, Any] = {
        "model": model, "objective": evaluator.identity["objective"], "identity": evaluator.identity,
        "evaluator": arguments, "proposer": proposer, "options": options, "nfes": sorted(set(nfes)),
        "budget": budget, "counts": list(counts), "fresh": again, "winners": winners, "seed": seed, "ask": ask,
        "fewstep": fewstep.__version__,
    }  # fmt: skip
    if given is not None:
        record["first"] = first_of(given, evaluator.model.noise, record["nfes"])
    # Made once for nothing, so that a wrong name or option is told before there is a file.
    _proposer(proposer, noise=evaluator.model.noise, nfes=tuple(record["nfes"]), seed=seed, **record["options"])
    return Search(Store.create(path, record), evaluator, _arguments_of(record, path))


def resume(
    path: str | Path, *, budget: int | None = None, network: Denoiser | None = None, judge: Judge | None = None
) -> Search:
    """An existing study, to go on with; `budget` changes the number of trials in all, the others are as for `start`.

    Raises:
        ArgumentError: no such file, or a model, metric or seeds that are not those of the study; says the difference.
        StudyError: another process writes it.
        FileFormatError: damaged, or newer than this version.
    """
    store = Store.open(path)
    try:
        record = store.contents.record
        evaluator = evaluator_of(record, path, network, judge)
        if budget is not None and budget != store.contents.values.get("budget", record["budget"]):
            _check(record["nfes"], budget, record["counts"], record["fresh"], record["winners"], record["ask"])
            store.set("budget", budget)
        return Search(store, evaluator, _arguments_of(record, path))
    except BaseException:
        store.close()
        raise


def evaluator_of(
    record: Mapping[str, Any], path: str | Path, network: Denoiser | None = None, judge: Judge | None = None
) -> Evaluator:
    """The evaluator of a study, with the network, metric and seeds that it was made with.

    Raises:
        ArgumentError: they are others now; says the difference.
    """
    evaluator = Evaluator(**_arguments_of(record, path), network=network, judge=judge)
    now = evaluator.identity
    wrong = [f"{key}: {old!r} then, {now.get(key)!r} now" for key, old in record["identity"].items()
             if now.get(key) != old]  # fmt: skip
    if wrong:
        raise ArgumentError(
            f"{path} was made with something else, so new scores could not be compared with its own: "
            f"{'; '.join(wrong)}. Bring that back, or start another study"
        )
    return evaluator


def save_front(path: str | Path, folder: str | Path) -> list[Path]:
    """Write the best schedule of each number of calls as `nfe-N.json`; returns the files."""
    contents = read(path)
    record = contents.record
    tabulate = Tabulator.of(from_dict(record["identity"]["noise"]), record["evaluator"])
    files: list[Path] = []
    for row in front(contents):
        table = tabulate(contents.entries[row["trial"]].trial.proposal.schedule)
        about = {key: row[key] for key in ("nfe", "trial", "origin", "images", "score", "fresh")}
        meta = about | {
            "model": record["model"], "fingerprint": record["identity"]["fingerprint"],
            "selected_by": record["identity"]["judge"], "method": record["proposer"], "fewstep": fewstep.__version__,
        }  # fmt: skip
        network = record["identity"].get("network")
        meta |= {"network": network} if network else {}
        files.append(Path(folder) / f"nfe-{row['nfe']}.json")
        replace(table, meta=meta).save(files[-1])
    return files


def _check(nfes: Sequence[int], budget: int, counts: Sequence[int], fresh: int, winners: int, ask: int) -> None:
    if not nfes or min(nfes) < 1:
        raise ArgumentError(f"nfes={list(nfes)}: give positive numbers of network calls")
    if budget < 1 or winners < 1 or ask < 1:
        raise ArgumentError(f"budget={budget}, winners={winners}, ask={ask}: give positive whole numbers")
    if not counts or min(counts) < 2 or list(counts) != sorted(set(counts)):
        raise ArgumentError(f"images={list(counts)}: give rising numbers from 2, as in 64,256")
    if fresh and fresh < counts[-1]:
        raise ArgumentError(f"fresh={fresh}: give 0, or at least as many images as select ({counts[-1]})")


def _arguments_of(record: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Those of a study's evaluator; what `auto` chose then is chosen still."""
    return _with_cache({**record["evaluator"], "objective": record["objective"]}, path)


def _with_cache(arguments: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    return {**arguments, "cache": str(Path(path).absolute().with_name(Path(path).name + ".cache"))}


def _proposer(name: str, **arguments: Any) -> Proposer:
    """The proposer of that name."""
    try:
        if name.startswith("python:"):
            return function_of(name)(**arguments)
        from fewstep.search.s3 import proposer

        return proposer(name, **arguments)
    except TypeError as error:
        raise ArgumentError(f"proposer {name}: {error}; check its options") from error
