"""Drivers of small studies as processes of their own, so that tests and the benchmark can end them without notice.

python -m tests.study_driver FILE --budget 40 --signal 2       one driver, which sends itself a signal
python -m tests.study_driver FILE --budget 40 --kills 10       drivers and workers killed at random moments
"""

import argparse
import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import torch

from fewstep.study.pools import SerialPool
from fewstep.study.processes import ProcessPool
from fewstep.study.runner import Runner
from fewstep.study.store import Store
from tests.studies import drawer, measure, record, spec


def drive(path: Path, budget: int, pause: float, workers: int, log: str | None) -> int:
    """Start or go on; returns the number of scored trials."""
    exists = path.exists()
    plan = record(budget=budget, counts=[4, 16], fresh=64)
    store = Store.open(path) if exists else Store.create(path, plan)
    how = spec(pause=pause, log=log)
    pool = ProcessPool(how, workers) if workers else SerialPool(how)
    try:
        Runner(store, drawer(), pool, measure).run()
        store.set("finished", True)
    except KeyboardInterrupt:
        pass
    finally:
        pool.close()
        store.close()
    return sum(entry.scored for entry in store.contents.entries.values())


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def children(process: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def killed_again_and_again(path: Path, args: argparse.Namespace) -> int:
    """Fork drivers of one study and kill each, or one of its workers, after a random time; returns the kills."""
    draw = random.Random(args.seed)
    kills = 0
    while kills < args.kills:
        driver = os.fork()
        if not driver:
            drive(path, args.budget, args.pause, args.workers, args.log)
            os._exit(0)
        while kills < args.kills:
            time.sleep(draw.uniform(0.0, args.longest))
            workers = children(driver)
            kills += 1
            if workers and draw.random() < 0.5:
                kill(draw.choice(workers))
                continue
            kill(driver)
            break
        else:
            kill(driver)
        os.waitpid(driver, 0)
    return kills


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--log")
    parser.add_argument("--signal", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--longest", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills is not None:
        print(killed_again_and_again(args.path, args))
        return
    if args.signal is not None:
        threading.Timer(0.5, os.kill, (os.getpid(), args.signal)).start()
    print(drive(args.path, args.budget, args.pause, args.workers, args.log))


if __name__ == "__main__":
    main()
