"""Evaluators that cost nothing, for workers that load nothing."""

import itertools
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def distance(record: Mapping[str, Any], images: int) -> float:
    """How uneven the times are, less certain with fewer images."""
    times = record["times"]
    n = len(times) - 1
    uneven = sum((a - b - 1 / n) ** 2 for a, b in itertools.pairwise(times))
    return uneven + math.sin(1e4 * sum(times) + images) / images**2


def evaluator(pause: float = 0.0, log: str | None = None) -> Any:
    """Sleeps, scores, and writes a line for every evaluation."""

    def evaluate(record: Mapping[str, Any], images: int, fresh: bool) -> Any:
        time.sleep(pause)
        if log is not None:
            with Path(log).open("a") as file:
                file.write(f"{images} {record['times']}\n")
        score = distance(record, images)
        return (score * 1.1, 0.01) if fresh else score

    return evaluate


def broken_evaluator() -> Any:
    raise RuntimeError("no network here")


def moody_evaluator(folder: str) -> Any:
    """Fails in one of many ways, chosen by a digit of the first time; `folder` remembers who has failed once."""

    def evaluate(record: Mapping[str, Any], images: int, fresh: bool) -> Any:
        kind = int(record["times"][1] * 1e6) % 10
        once = Path(folder) / f"{record['times'][1]!r}"
        if kind < 4 and not once.exists():
            once.touch()
            if kind == 0:
                os._exit(7)
            if kind == 1:
                raise MemoryError("no memory")
            if kind == 2:
                raise RuntimeError("CUDA error: an illegal memory access")
            time.sleep(60)
        return math.nan if kind == 4 else distance(record, images)

    return evaluate
