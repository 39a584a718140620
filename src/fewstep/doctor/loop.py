"""Traps that show when the loop runs: a step too many, waits for the device, what `torch.compile` makes of a step.

A copy of the scheduler is stepped on a state of 4x8x8 numbers; there is no network.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.doctor.patient import Finding, Patient, quiet

READING = ("_local_scalar_dense", "nonzero", "equal")
"""Operations whose result the processor needs: item(), float(), `if tensor`, finding where."""


class Device(TorchDispatchMode):
    """Counts what is read back from tensors that would lie on an accelerator, and from all that is made of them."""

    def __init__(self, *there: Tensor) -> None:
        super().__init__()
        self.there = {id(x): x for x in there}  # kept, so that no identity is given away twice
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it; what it makes lies where its arguments do."""
        out = func(*args, **(kwargs or {}))
        if any(id(x) in self.there for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
            self.reads += func.__name__.partition(".")[0] in READING
            self.there |= {id(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}
        return out


class Loop:
    """A run of the scheduler as a pipeline does it, with unit normals for the network's outputs."""

    def __init__(self, p: Patient) -> None:
        self.scheduler = p.ready()
        self.generator = torch.Generator().manual_seed(0)
        self.output = torch.randn(1, 4, 8, 8, generator=self.generator)
        start = torch.randn(1, 4, 8, 8, generator=self.generator)
        self.x = start * float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        step = getattr(self.scheduler, "step", None)
        takes_noise = step is not None and "generator" in inspect.signature(step).parameters
        self.options = {"generator": self.generator} if takes_noise else {}

    @contextmanager
    def alone(self) -> Generator[None]:
        """Without remarks, and without a trace in the generator of the process."""
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            yield

    def runs(self, times: Sequence[Tensor]) -> bool:
        """Step through these; False for a scheduler whose step wants more than pipelines of images give."""
        with self.alone():
            try:
                for t in times:
                    self.step(t)
            except Exception:  # of any kind: nothing is known then of what the checks ask
                return False
        return True

    def step(self, t: Tensor) -> None:
        """One call."""
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(self.x, t)
        self.x = self.scheduler.step(self.output, t, self.x, return_dict=False, **self.options)[0]


def past_the_end(p: Patient) -> Finding | None:
    """One step more than there are: an error, or another state."""
    loop = Loop(p)
    times = list(loop.scheduler.timesteps)
    if not loop.runs(times):
        return None
    last, scale = loop.x, float(loop.x.abs().max())
    try:
        with loop.alone():
            loop.step(times[-1])
    except Exception as error:  # whatever it raises is what the user sees
        return Finding(
            "past-the-end", "note",
            f"a step after the last raises {type(error).__name__}, also where a second loop begins without "
            "set_timesteps", "call set_timesteps before every run", {"raises": type(error).__name__},
        )  # fmt: skip
    moved = float((loop.x - last).abs().max()) / scale
    if moved < 1e-6:
        return None
    finite = math.isfinite(moved)
    what = f"repeats the last one and moves the state by {moved:.2g} of its largest entry" if finite else "gives NaN"
    return Finding(
        "past-the-end", "trap", f"a step after the last raises no error: it {what} (with outputs of size 1)",
        "go through scheduler.timesteps once, and call set_timesteps before every run",
        {"moved": moved if finite else None},
    )  # fmt: skip


def host_syncs(p: Patient) -> Finding | None:
    """Numbers read back from the device in a step: the processor waits for all that is under way."""
    loop, reads = Loop(p), list[int]()
    with Device(loop.scheduler.timesteps) as device:
        times = list(loop.scheduler.timesteps)
    for t in times:
        with Device(*device.there.values(), loop.x, loop.output) as seen:
            if not loop.runs([t]):
                return None
        reads.append(seen.reads)
    if not any(reads[1:]):
        return None  # finding the first step reads twice, and set_begin_index(0) saves it
    return Finding(
        "host-syncs",
        "note",
        f"on an accelerator a step waits for it up to {max(reads)} times, {sum(reads)} times in {len(reads)} calls: it "
        "reads numbers back (counted on the processor's own tensors), and nothing can be queued ahead",
        "take a scheduler that goes by a counter (Euler, DPM-Solver++, UniPC), or a FewStepScheduler, which reads none",
        {"reads": reads, "total": sum(reads)},
    )


def compiled_step(p: Patient) -> Finding | None:
    """`torch.compile(scheduler.step)`: how many graphs it traces."""
    if not p.compiling:
        return None
    loop, graphs = Loop(p), list[int]()
    if hasattr(loop.scheduler, "set_begin_index"):
        loop.scheduler.set_begin_index(0)
    count = 0

    def backend(module: Any, _: Any) -> Any:
        nonlocal count
        count += 1
        return module.forward

    torch.compiler.reset()
    step = torch.compile(loop.scheduler.step, backend=backend)
    with loop.alone():
        for t in list(loop.scheduler.timesteps):
            before = count
            loop.x = step(loop.output, t, loop.x, return_dict=False)[0]
            graphs.append(count - before)
    torch.compiler.reset()
    if count <= 1:
        return None
    return Finding(
        "compiled-step",
        "note",
        f"torch.compile(scheduler.step) traces {count} graphs in {len(graphs)} calls ({graphs}), for the number of the "
        "step is a Python number",
        "compile the whole loop, or the network alone",
        {"graphs": graphs, "total": count},
    )


CHECKS = (past_the_end, host_syncs, compiled_step)
