"""The loop of a study: asks for proposals, keeps every worker busy, writes down what comes back.

Whatever it decides follows from the store alone, so a study that was stopped at any moment goes on as if it had not
been: with one worker to the last bit, with several as far as the order of their answers allows.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence

from fewstep.errors import ArgumentError, StudyError
from fewstep.progress import Event, Report, silent
from fewstep.proposals import Proposal, Proposer, Trial
from fewstep.rules import SolverSchedule
from fewstep.study.interrupts import Interrupts
from fewstep.study.learning import Learner
from fewstep.study.plan import Plan
from fewstep.study.pools import Pool
from fewstep.study.records import (
    ATTEMPTS,
    BLAMELESS,
    ERROR,
    FAILED,
    INVALID,
    LOSSES,
    QUEUED,
    RETRYABLE,
    Entry,
    Key,
    Outcome,
    Task,
)
from fewstep.study.rungs import Rungs
from fewstep.study.store import Store, told_through

ASK = 32
"""Most proposals asked for at once: between two askings, answers are heard and work is handed out."""
DRY = 20
"""A proposer that gave nothing new so many times in a row, with nothing running, has nothing more to give."""
BUGS = 3
"""So many evaluations in a row that fail by an error of their own stop the study."""
POLL = 0.5

Measure = Callable[[SolverSchedule], tuple[int, str]]
"""Network calls and digest of a schedule's table; `ArgumentError` where it gives none."""


class Runner:
    """One run of a study.

    Args:
        store: the study.
        proposer: as it was made, before it learned anything.
        pool: the workers; closed by whoever made it.
        measure: gives the network calls and the digest of a schedule.
        progress: told what is going on.
    """

    def __init__(
        self, store: Store, proposer: Proposer, pool: Pool, measure: Measure, progress: Report = silent
    ) -> None:
        self.store, self.pool, self.measure, self.progress = store, pool, measure, progress
        self.plan = Plan.of(store.contents.values)
        self.contents = store.contents
        store.every = 0.05 if pool.serial else 0.25
        entries = list(self.contents.entries.values())
        self.rungs = Rungs(self.plan.counts, entries)
        self.learner = Learner(proposer, background=not pool.serial)
        self._running: dict[int, Task] = {}
        self._tickets = self._bugs = 0
        self._last = ""
        self._losses: Counter[Key] = Counter()
        self._wait_for_news = False
        for evaluation in self.contents.evaluations():
            if evaluation.status == FAILED and evaluation.cause == ERROR:  # mended, perhaps, since the study stopped
                store.forgive(evaluation)
        waiting = [e.key for e in self.contents.evaluations() if e.status == QUEUED]
        self._queue: deque[Key] = deque(sorted(waiting))
        self._spent = sum(entry.status != FAILED for entry in entries)
        self._scored = sum(entry.scored for entry in entries)
        if self.contents.learned:
            last = self.contents.learned[-1].through
            self.learner.restore(told_through(entries, last))

    def run(self) -> None:
        """Until the budget is spent and the winners are scored again, or the proposer has nothing more.

        Raises:
            KeyboardInterrupt: Ctrl-C; all that was finished is written.
            StudyError: it cannot go on; the same holds.
        """
        with Interrupts() as stop:
            try:
                while True:
                    stop.check()
                    self._learn()
                    self._fill(stop)
                    self.store.tick()
                    if not self._running and not self._queue and not self.learner.busy:
                        break
                    with stop.here():
                        outcomes = self.pool.wait(self._patience())
                    self._collect(outcomes)
                    self._check_bugs()
            finally:
                self.store.commit()
                self.learner.close()

    # --------------------------------------------------------------------------------------------- handing out
    def _fill(self, stop: Interrupts) -> None:
        """Give every idle worker something to do; then have some proposals ready for those that come."""
        while True:
            while self._queue and self.pool.idle():
                self._submit(self._queue.popleft())
            idle = self.pool.idle()
            ahead = 0 if self.pool.serial else max(1, self.pool.workers // 8)
            want = idle + ahead - len(self._queue)
            if want <= 0 or not self._produce(want):
                return
            stop.check()
            if not idle:
                return  # hear the answers before asking for more
            if not self.pool.serial:
                self._collect(self.pool.wait(0))

    def _submit(self, key: Key) -> None:
        self._tickets += 1
        task = Task(key, self.contents.entries[key.trial].schedule, self._tickets)
        self._running[task.ticket] = task
        self.store.start(key, self.pool.submit(task))

    def _produce(self, want: int) -> bool:
        """Queue what was earned, else what is proposed, else the winners again; False when there is nothing now."""
        key = self.rungs.promotion(final=self._final())
        if key is None and self._ask(want):
            return True
        if key is None and self._final():  # perhaps because the proposer had nothing more
            key = self.rungs.promotion(final=True)
        keys = self._rescores() if key is None else [key]
        for key in keys:
            self.store.queue(key)
            self._queue.append(key)
        return bool(keys)

    @property
    def room(self) -> int:
        """Trials that the budget still has room for."""
        return self.plan.budget - self._spent

    def _final(self) -> bool:
        """Whether no new trial will come: the budget is spent, or the proposer has nothing more; and none is open."""
        if self.room > 0 and not self._exhausted:
            return False
        first = self.plan.counts[0]
        return not any(key.images == first and not key.fresh for key in self._open())

    def _open(self) -> list[Key]:
        return [*self._queue, *(task.key for task in self._running.values())]

    @property
    def _exhausted(self) -> bool:
        return int(self.contents.values.get("dry", 0)) >= DRY

    def _ask(self, want: int) -> bool:
        count = min(self.plan.ask if self.pool.serial else want, self.room, ASK)
        if count < 1 or self._wait_for_news or self._exhausted:
            return False
        number = int(self.contents.values.get("asks", 0))
        seed = int.from_bytes(hashlib.sha256(f"{self.plan.seed}:{number}".encode()).digest()[:7], "big")
        proposals = self.learner.proposer.propose(self._trials(), count, seed)
        with self.store.together():
            self.store.set("asks", number + 1)
            new = sum([self._add(proposal) for proposal in proposals[:count]])
            if new or not self._running:
                self.store.set("dry", 0 if new else int(self.contents.values.get("dry", 0)) + 1)
        self._wait_for_news = bool(self._running) and not new  # it may know more when it has heard more
        return bool(new) or not self._running

    def _trials(self) -> Sequence[Trial]:
        """All that were told, then those that are open."""
        finished = self.store.finished
        told = {trial.number for trial in finished}
        open_ones = {task.key.trial for task in self._running.values()} | {key.trial for key in self._queue}
        return [*finished, *(self.contents.entries[number].trial for number in sorted(open_ones - told))]

    def _add(self, proposal: Proposal) -> bool:
        """Queue a proposal; False for one that is known, or gives no table."""
        try:
            nfe, digest = self.measure(proposal.schedule)
            problem = "" if nfe in self.plan.nfes else f"it makes {nfe} network calls, which was not asked for"
        except ArgumentError as error:
            # It has no table, so it is known by its decisions.
            decisions = repr(proposal.schedule.to_dict()).encode()
            nfe, digest, problem = 0, f"none-{hashlib.sha256(decisions).hexdigest()[:16]}", str(error)
        if self.store.knows(digest):
            return False
        entry = self.store.add(proposal, nfe, digest)
        key = Key(entry.trial.number, self.plan.counts[0])
        self.store.queue(key)
        if problem:
            self.store.fail(Outcome(Task(key, {}), "", cause=INVALID, message=problem), for_good=True)
            return False
        self._queue.append(key)
        self._spent += 1
        return True

    def _rescores(self) -> list[Key]:
        """Evaluations of the winners on fresh seeds that are not there yet."""
        if not self.plan.fresh or not self._final() or any(not key.fresh for key in self._open()):
            return []
        keys: list[Key] = []
        for nfe in self.plan.nfes:
            for number, images in self.rungs.best(nfe, self.plan.winners):
                known = self.contents.entries[number].evaluations
                wanted = {Key(number, images, True), Key(number, max(images, self.plan.fresh), True)}
                keys += wanted - known.keys()
        return sorted(keys)

    # -------------------------------------------------------------------------------------------- taking back
    def _collect(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if self._running.pop(outcome.task.ticket, None) is None:
                continue  # a late answer to what was handed out again
            self._wait_for_news = False
            entry = self.contents.entries[outcome.task.key.trial]
            with self.store.together():
                if outcome.cause:
                    self._failed(outcome, entry)
                else:
                    self._finished(outcome, entry)

    def _finished(self, outcome: Outcome, entry: Entry) -> None:
        self._bugs = 0
        new = not entry.scored
        self.store.finish(outcome)
        key = outcome.task.key
        if not key.fresh:
            self._scored += new
            self.rungs.note(entry, key.images)
        self._report(key, entry)

    def _failed(self, outcome: Outcome, entry: Entry) -> None:
        key = outcome.task.key
        self._losses[key] += outcome.cause in BLAMELESS
        attempts = entry.evaluations[key].attempts + (outcome.cause not in BLAMELESS)
        for_good = outcome.cause not in RETRYABLE or attempts >= ATTEMPTS or self._losses[key] >= LOSSES
        self.store.fail(outcome, for_good=for_good)
        if not for_good:
            self._queue.appendleft(key)
        elif not entry.scored:
            self._spent -= 1
        self._bugs = self._bugs + 1 if outcome.cause == ERROR else 0
        self._last = outcome.message

    def _check_bugs(self) -> None:
        if self._bugs >= BUGS:
            raise StudyError(
                f"{BUGS} evaluations in a row failed by an error of the model or the objective; nothing was lost: mend "
                f"it, then resume, and they are tried again. The last one was\n{self._last}"
            )

    def _report(self, key: Key, entry: Entry) -> None:
        if key.fresh:
            fresh = [e for e in self.contents.evaluations() if e.key.fresh]
            self.progress(Event("winners again", sum(e.score is not None for e in fresh), len(fresh)))
            return
        best = self.rungs.best(entry.trial.nfe, 1)
        told = "".join(
            f"{self.contents.entries[number].trial.scores[images]:.4g} at {entry.trial.nfe} calls (trial {number})"
            for number, images in best
        )
        self.progress(Event("search", self._scored, self.plan.budget, told))

    # ----------------------------------------------------------------------------------------------- learning
    def _learn(self) -> None:
        if (report := self.learner.done()) is not None:
            self.store.learned(report)
            self._wait_for_news = False
        last = self.contents.learned[-1].through if self.contents.learned else 0
        if self.learner.busy or not self.learner.every or self.contents.places - last < self.learner.every:
            return
        if self.room > 0 and not self._exhausted:
            scored_trials = [trial for trial in self.store.finished if trial.scores]
            self.learner.start(scored_trials, self.contents.places, len(self.contents.learned))
            if self.pool.serial and (report := self.learner.done()) is not None:
                self.store.learned(report)

    def _patience(self) -> float:
        """Seconds to wait for answers: not past the moment when something should be written, or was learned."""
        limit = POLL if self.learner.busy or self._wait_for_news else 10 * POLL
        return max(0.0, min(limit, self.store.due()))
