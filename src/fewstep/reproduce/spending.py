"""What one cell of a table costs, counted over all runs that worked on it, and the teacher that all cells share.

A method that works for a cell keeps what it has in a folder of the cell's own, so that no cell gets for nothing what
another one paid for; only the teacher's runs are shared. They are counted for every method that asks for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep.files import atomic_write_text
from fewstep.search.meter import Meter, metered

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

BILL = "spent.json"
TEACHERS = ("teacher-*.safetensors", "trajectories-*/*.safetensors")
"""Files of a cache that hold a teacher's runs."""


@dataclass
class Bill:
    """What a cell has cost so far.

    Attributes:
        calls: network calls of the method itself; those of the teacher are in `teacher`.
        teacher: seeds that the method asked a teacher for.
        backward: calls that were differentiated too.
        seconds: on the clock.
        memory: bytes at the peak, above what was in use before: of the GPU where the network is on one, else of the
            process.
    """

    calls: int = 0
    teacher: Meter = field(default_factory=Meter)
    backward: int = 0
    seconds: float = 0.0
    memory: int = 0

    def record(self) -> dict[str, Any]:
        """The five figures, JSON-ready; `teacher_made` are the teacher's calls that no other cell had made before."""
        return {
            "search_calls": self.calls, "teacher_calls": self.teacher.needed, "teacher_made": self.teacher.made,
            "backward_calls": self.backward, "seconds": round(self.seconds, 3),
            "memory_mib": round(self.memory / 2**20, 1),
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write what a later run needs to go on counting."""
        meter = self.teacher
        asked = {table: [meter.costs[table], sorted(seeds)] for table, seeds in meter.seeds.items()}
        kept = {
            "calls": self.calls, "made": meter.made, "asked": asked, "backward": self.backward,
            "seconds": self.seconds, "memory": self.memory,
        }  # fmt: skip
        atomic_write_text(folder / BILL, json.dumps(kept))

    @staticmethod
    def opened(folder: Path) -> Bill:
        """The bill of a folder. One without a bill was left by a process that was killed: what lies there was paid for
        and not counted, so it is thrown away.
        """
        try:
            kept = json.loads((folder / BILL).read_text("utf-8"))
            asked = kept["asked"].items()
            meter = Meter({t: set(seeds) for t, (_, seeds) in asked}, {t: cost for t, (cost, _) in asked}, kept["made"])
            return Bill(kept["calls"], meter, kept["backward"], kept["seconds"], kept["memory"])
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            return Bill()


@contextmanager
def counted(model: Denoiser, folder: Path) -> Generator[Bill]:
    """Work on a cell in its folder; the bill is kept there when the work is stopped, and is given back when it ends."""
    bill = Bill.opened(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BILL).unlink(missing_ok=True)
    peak, before, made, began = Peak(model.device), model.evaluations, bill.teacher.made, time.perf_counter()
    try:
        with metered(bill.teacher):
            yield bill
    finally:
        bill.calls += model.evaluations - before - (bill.teacher.made - made)
        bill.seconds += time.perf_counter() - began
        bill.memory = max(bill.memory, peak.bytes())
        bill.save(folder)


class Peak:
    """The most memory in use since it was made, above what was in use then.

    On a GPU this is what the allocator handed out. On Linux the kernel's high-water mark of the process is reset and
    read; elsewhere it cannot be reset, and a cell that needs less than an earlier one shows 0.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS") or _most()

    def bytes(self) -> int:
        """So far."""
        if self._device is not None:
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, (_status("VmHWM") or _most()) - self._before)


def _status(name: str) -> int | None:
    """A figure of Linux's about this process, in bytes."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])
    return None


def _most() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def lent(shared: Path, own: Path) -> Generator[None]:
    """The teacher's runs of one cache in another while a method works there; what it adds goes back."""
    _link(shared, own)
    try:
        yield
    finally:
        _link(own, shared)


def _link(source: Path, target: Path) -> None:
    """Link the teacher's files (copy them to another file system); files are only ever replaced whole, so a link never
    changes under its reader.
    """
    for file in (file for pattern in TEACHERS for file in source.glob(pattern)):
        place = target / file.relative_to(source)
        if place.exists() and place.samefile(file):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            os.link(file, new)
        except OSError:
            shutil.copy2(file, new)
        new.replace(place)
