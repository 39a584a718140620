"""A worker: builds its evaluator from a specification, evaluates, and says what went wrong in one of a few words.

    python -m fewstep.study.worker

is a worker that reads JSON lines from its standard input and answers on its standard output; when the input ends, so
does the worker, whatever it is doing, for then its driver is gone. Nothing heavy is imported before the specification
asks for it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.study.records import DEVICE, ERROR, INVALID, MEMORY, InvalidSchedule

Spec = Mapping[str, Any]
"""How to build an evaluator, JSON-ready: `factory` ("module:function"), `arguments` (its keyword arguments), `threads`
(for the network; None leaves them), `paths` (where modules are looked for besides)."""

Evaluate = Callable[[Mapping[str, Any], int, bool], Any]
"""`(schedule as a record, images, fresh) -> score`, or `(score, standard error)`; lower is better."""


class Session:
    """An evaluator in this process.

    Args:
        spec: how it is built; errors of the factory are passed on.
        name: of the worker.
        evaluate: the evaluator, where it is there already.
    """

    def __init__(self, spec: Spec, name: str, evaluate: Evaluate | None = None) -> None:
        self.name = name
        sys.path += [path for path in spec.get("paths", ()) if path not in sys.path]
        if spec.get("threads") is not None:
            import torch

            torch.set_num_threads(int(spec["threads"]))
        self._evaluate: Evaluate = evaluate or found(spec["factory"])(**spec.get("arguments", {}))

    def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """One evaluation: `seconds` and a `score`, or a `cause` with its `message`."""
        started = time.perf_counter()
        answer: dict[str, Any]
        try:
            result = self._evaluate(task["schedule"], task["images"], task["fresh"])
            score, error = result if isinstance(result, tuple) else (result, None)
            answer = {"score": float(score), "error": None if error is None else float(error)}
            if not math.isfinite(answer["score"]):
                answer |= {"score": math.inf, "error": None, "message": "the samples are not finite"}
        except Exception as error:
            answer = {"cause": cause_of(error), "message": told(error)}
        return answer | {"seconds": time.perf_counter() - started}


def found(factory: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)


def cause_of(error: BaseException) -> str:
    """The kind of failure; memory and devices are recognised through the errors that wrap them."""
    if isinstance(error, InvalidSchedule):
        return INVALID
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:  # user code may well make an error its own cause
        seen.add(id(inner))
        if isinstance(inner, MemoryError) or type(inner).__name__ == "OutOfMemoryError":
            return MEMORY
        if isinstance(inner, RuntimeError) and any(word in str(inner) for word in ("CUDA error", "CUBLAS", "CUDNN")):
            return DEVICE
        inner = inner.__cause__
    return ERROR


def told(error: BaseException) -> str:
    """The error with the end of its traceback."""
    lines = traceback.format_exception(error)
    return "".join(lines)[-3000:].strip()


def main() -> None:
    """Serve until the input ends."""
    # Ctrl-C is the driver's business; what user code prints must not mix with the answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(Exception):
            for line in sys.stdin:
                tasks.put(json.loads(line))
        os._exit(0)

    def answer(record: Mapping[str, Any]) -> None:
        try:
            answers.write(json.dumps(record) + "\n")
            answers.flush()
        except OSError:
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    hello = tasks.get()
    try:
        session = Session(hello["spec"], hello["name"])
    except Exception as error:
        answer({"failed": told(error)})
        return
    answer({"ready": True})
    while True:
        answer(session.run(tasks.get()))


if __name__ == "__main__":
    main()
