"""One network on several devices: every batch is shared out among them.

    model = spread([load("mnist", device="cuda:0"), load("mnist", device="cuda:1")])
    model = load("mnist", device="cuda:0,cuda:1")  # the same

Whatever calls the denoiser runs on all of them: the teacher, the scores of selection, the descents of learned samplers.
Gradients flow back through every share; a table has few numbers, so nothing but states travels between devices. States
live on the first one. A device that already has a batch's worth to do in one call gains; small networks do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

import torch
from torch import Tensor

from fewstep.conditions import Condition, on_device, rows
from fewstep.denoiser import Counter, Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.guidance import Wrapped
from fewstep.noise import Time
from fewstep.sampling import checkpointing

Outputs = tuple[Tensor, ...]


def spread(denoisers: Sequence[Denoiser]) -> Denoiser:
    """A denoiser that shares out every batch `[B, *shape]` among copies of one network on several devices.

    Args:
        denoisers: the copies, each on its device; states are kept on the first one's. One copy is returned as it is.

    Raises:
        ArgumentError: no copy, or copies of different networks.
    """
    if not denoisers:
        raise ArgumentError("denoisers is empty: give one denoiser for each device")
    first = denoisers[0]
    for k, other in enumerate(denoisers[1:], 1):
        if (other.fingerprint, other.shape, other.dtype) != (first.fingerprint, first.shape, first.dtype):
            raise ArgumentError(
                f"denoisers[{k}] is not the network of denoisers[0] ({other!r}, {other.dtype}, fingerprint "
                f"{other.fingerprint}; {first!r}, {first.dtype}, {first.fingerprint}): give copies of one network"
            )
    return first if len(denoisers) == 1 else Spread(denoisers)


def places_of(name: str, device: torch.device | str | None) -> tuple[str, list[str]]:
    """The devices that are asked for (a name's `device=` wins), and the name without them where they are several.

    Errors: `ArgumentError` for a list with a gap.
    """
    bare, _, query = name.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    places = str(dict(options).get("device", device or "")).split(",")
    if len(places) == 1:
        return name, places
    if not all(places):
        raise ArgumentError(f"device={','.join(places)!r} has a gap: write device=cuda:0,cuda:1")
    rest = urlencode([(key, value) for key, value in options if key != "device"], safe="/:,~")
    return f"{bare}?{rest}" if rest else bare, places


class Spread(Wrapped):
    """Made by `spread`, which says what it does."""

    def __init__(self, denoisers: Sequence[Denoiser]) -> None:
        super().__init__(denoisers[0], {}, denoisers[0].channels)
        self.denoisers = tuple(denoisers)
        self._counter = _Sum([d._counter for d in denoisers])
        self._threads = ThreadPoolExecutor(len(denoisers) - 1, "fewstep-device")

    @property
    def fingerprint(self) -> str:
        """That of the network: where it runs changes nothing but rounding."""
        return self.inner.fingerprint

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> Outputs:
        return self._shared_out(x, t, condition, list(self.denoisers))

    def checkpointed(self, x: Tensor, t: Time, condition: Condition = None) -> Any:
        """As a call, whose activations are recomputed in the backward pass: on each device those of its share, for the
        hooks by which that is done are known to one thread alone.
        """
        outputs = self._shared_out(x, t, condition, [checkpointing(d) for d in self.denoisers])
        return outputs[0] if self.channels == 1 else outputs

    def _shared_out(self, x: Tensor, t: Time, condition: Condition, calls: list[Callable[..., Any]]) -> Outputs:
        size = max(1, -(-len(x) // len(self.denoisers)))
        shares = [slice(low, low + size) for low in range(0, max(1, len(x)), size)]
        jobs = [
            _inherited(x.device.type, partial(_share, call, denoiser.device, x, t, condition, share))
            for call, denoiser, share in zip(calls, self.denoisers, shares, strict=False)  # few samples need few
        ]
        others: list[Future[Outputs]] = [self._threads.submit(job) for job in jobs[1:]]
        try:
            parts = [jobs[0](), *(other.result() for other in others)]
        finally:
            wait(others)  # nobody computes on for a batch that is given up
        return tuple(torch.cat(channel) for channel in zip(*parts, strict=True))


def _share(
    call: Callable[..., Any], place: torch.device, x: Tensor, t: Time, condition: Condition, share: slice
) -> Outputs:
    """The outputs of some samples, made at a place, on the states' own device."""
    there = t if not isinstance(t, Tensor) or t.device.type == "cpu" else t.to(place)
    try:
        with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
            raw: Any = call(x[share].to(place), there, on_device(rows(condition, share), place))
    except DenoiserError as error:
        raise DenoiserError(
            f"{error} (on {place}, which had the samples of the batch from row {share.start} on)",
            time=error.time, rows=tuple(share.start + row for row in error.rows), sane=error.sane,
        ) from error  # fmt: skip
    outputs: Outputs = raw if isinstance(raw, tuple) else (raw,)
    return tuple(out.to(x.device) for out in outputs)


def _inherited(kind: str, job: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """The job in any thread with this one's gradient mode and precision, which a new thread does not have."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    half, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run() -> Outputs:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), torch.autocast(kind, dtype, enabled=half):
            return job()

    return run


class _Sum(Counter):
    """The counters of copies as one: a call on all of them is one call."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = tuple(counters)

    @property
    def calls(self) -> int:
        """Calls of the first copy, which has a share of every batch."""
        return self.counters[0].calls

    @calls.setter
    def calls(self, value: int) -> None:
        for counter in self.counters:
            counter.calls = value

    @property
    def evaluations(self) -> int:
        """Samples through all of them."""
        return sum(counter.evaluations for counter in self.counters)

    @evaluations.setter
    def evaluations(self, value: int) -> None:
        for counter in self.counters:
            counter.evaluations = value
