"""Learning in a process of its own, so that it never takes the driver's time: not even the interpreter's lock.

    python -m fewstep.study.tutor

reads pickles from its standard input and answers on its standard output; both ends are this program, nothing else ever
reads or writes them. When the input ends, so does the process, whatever it is doing, for then its driver is gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

from fewstep.errors import StudyError
from fewstep.proposals import Proposer, Trial
from fewstep.study.worker import told


class Tutor:
    """A process that learns for a proposer in this one; only what it has not yet heard of is sent to it.

    Args:
        proposer: is copied now, and learns in the process; what the copy learns is told to whoever asked.

    Raises:
        StudyError: it cannot be copied.
    """

    def __init__(self, proposer: Proposer) -> None:
        self.name = proposer.name
        try:
            self._copy = pickle.dumps(proposer)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise StudyError(
                f"{proposer.name} cannot be copied to the process that learns for it ({error}): define it in a module, "
                "and keep no open files or functions in it"
            ) from error
        self._process: subprocess.Popen[bytes] | None = None
        self._heard: dict[int, Trial] = {}

    def open(self) -> None:
        """Start the process, unless it runs."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fewstep.study.tutor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )  # fmt: skip

    def learn(self, trials: Sequence[Trial]) -> tuple[Any, dict[str, Any]]:
        """The lesson and the report of the copy's `learn`; waits for them.

        Raises:
            StudyError: it failed, with its traceback, or the process died.
        """
        self.open()
        first, self._copy = self._copy, b""
        news = [t for t in trials if self._heard.get(t.number) is not t]
        self._heard |= {t.number: t for t in news}
        answer = self._answer(first + pickle.dumps((news, [t.number for t in trials])))
        if isinstance(answer, str):
            raise StudyError(f"{self.name} could not learn: {answer}")
        return answer

    def _answer(self, question: bytes) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(OSError):  # it may have said why and gone
                process.stdin.write(question)
                process.stdin.flush()
            return pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise StudyError(
                f"the process that learns for {self.name} died (exit code {process.wait()}); nothing was "
                "lost: resume the study"
            ) from error

    def close(self) -> None:
        """Kill the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
            self._process = None


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Learn whenever asked, until the input ends or learning fails."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                inbox.put(pickle.load(questions))
        except EOFError:
            os._exit(0)
        except Exception as error:  # a proposer of a module that is not to be found here
            inbox.put(error)

    def heard() -> Any:
        question = inbox.get()
        if isinstance(question, Exception):
            raise question
        return question

    threading.Thread(target=listen, daemon=True).start()
    known = dict[int, Trial]()
    try:
        proposer: Proposer = heard()
        while True:
            news, numbers = heard()
            known.update({trial.number: trial for trial in news})
            report = proposer.learn([known[number] for number in numbers])
            pickle.dump((proposer.lesson, report), answers)
            answers.flush()
    except Exception as error:
        with contextlib.suppress(OSError):  # the driver has gone
            pickle.dump(told(error), answers)
            answers.flush()


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what user code prints must not mix with the answers
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
