"""`Denoiser`: what every sampler calls, `(x [B, *shape], t, condition) -> x_0 [B, *shape]`.

A denoiser knows its noise schedule and sample shape, counts its real network calls and checks what comes out of them.
`from_callable` makes one of a network in any of the field's conventions; `fewstep.guidance` wraps one in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Condition
from fewstep.conventions import Prediction, TimeScale, per_sample, require_prediction
from fewstep.coordinates import Coordinates
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.fingerprint import describe, fingerprint_of
from fewstep.noise import NoiseSchedule, Time
from fewstep.outputs import check_finite, check_kind

X0Function = Callable[[Tensor, Time, Condition], Tensor | tuple[Tensor, ...]]
RawNetwork = Callable[..., Any]
"""`fn(x, t)`, `fn(x, t, condition)` or, for a mapping, `fn(x, t, **condition)`; t is `[B]`."""


class Denoiser:
    """A network as samplers see it: `denoiser(x, t, condition)` is its estimate of x_0.

    `x` is `[B, *shape]`, `t` a float or a 0-d tensor in the noise schedule's own time (gradients flow through it), the
    result is `[B, *shape]` in x's dtype, or a tuple of `channels` such tensors.

    Args:
        fn: `(x, t, condition) -> x_0` at the state `x = alpha(t) x_0 + sigma(t) eps`.
        noise: the schedule of the states.
        shape: shape of one sample, without the batch axis.
        device, dtype: of the states that samplers make for it.
        channels: how many outputs one call gives (2: conditional and unconditional).
        prediction: what the network itself predicts; guidance rescales in this space unless told otherwise.
        null_condition: the condition that means "none", as `fewstep.guidance.guided` takes it.
        fingerprint: a name that changes when the network does; results are filed under it.
        check_finite: look for NaN and infinity in every output. By default on the CPU only: on an accelerator the look
            would wait for the device in every call. Shapes are always checked.

    Attributes:
        calls: network calls so far (a doubled batch is one call). Calls inside a compiled graph are not counted.
        evaluations: single samples that went through the network so far (a doubled batch counts twice).
        batch_cost: rows that one call costs per sample, at most: 2 when guidance doubles the batch.

    Raises:
        DenoiserError: in a call, for an output of wrong shape or kind, or one that is not finite.
    """

    batch_cost: int = 1

    def __init__(
        self,
        fn: X0Function,
        *,
        noise: NoiseSchedule,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels: int = 1,
        prediction: Prediction = "x0",
        null_condition: Condition = None,
        fingerprint: str | None = None,
        check_finite: bool | None = None,
    ) -> None:
        if not callable(fn):
            raise ArgumentError(
                f"fn is {type(fn).__name__}, which cannot be called: give a function (x, t, condition) -> x_0"
            )
        if channels < 1:
            raise ArgumentError(f"channels={channels}: a network has at least one output")
        self.fn: Callable[..., Any] = fn
        self.noise = noise
        self.shape = tuple(int(n) for n in shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self.channels = channels
        self.prediction: Prediction = require_prediction(prediction)
        self.null_condition = null_condition
        self.check_finite = check_finite
        self._fingerprint = fingerprint
        self._counter = Counter()

    def __call__(self, x: Tensor, t: Time, condition: Condition = None) -> Any:
        """The estimate of x_0 `[B, *shape]` (a tuple with several channels) of states x `[B, *shape]` at time t."""
        if x.ndim != 1 + len(self.shape) or not x.is_floating_point():
            raise ArgumentError(
                f"x has shape {tuple(x.shape)} in {x.dtype}: give floating-point states of shape [B, *{self.shape}]"
            )
        outputs = self._outputs(x, t, condition)
        return outputs[0] if self.channels == 1 else outputs

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        outputs = self._received(self.fn(x, t, condition), x, t)
        return tuple(out.to(x.dtype) for out in outputs)

    def _received(self, raw: Any, x: Tensor, t: Time) -> tuple[Tensor, ...]:
        """One output tensor per channel, counted and checked."""
        if not torch.compiler.is_compiling():
            self._counter.count(len(x))
        outputs: tuple[Any, ...] = tuple(raw) if isinstance(raw, tuple | list) else (raw,)
        if len(outputs) != self.channels:
            raise DenoiserError(
                f"the network returned {len(outputs)} outputs, and channels={self.channels} was declared: change one"
            )
        for out in outputs:
            check_kind(out, x, t)
            finite = x.device.type == "cpu" if self.check_finite is None else self.check_finite
            if finite and not torch.compiler.is_compiling():
                check_finite(out.detach(), t, x.detach(), self.noise)
        return outputs

    @property
    def calls(self) -> int:
        """Network calls so far."""
        return self._counter.calls

    @property
    def evaluations(self) -> int:
        """Single samples that went through the network so far."""
        return self._counter.evaluations

    def reset_counters(self) -> None:
        """Set `calls` and `evaluations` to zero, here and in the denoisers that share the network."""
        self._counter.calls = self._counter.evaluations = 0

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the network's parameters and conventions, or the name that was given."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(describe(self.fn), self._conventions())
        return self._fingerprint

    def _conventions(self) -> dict[str, Any]:
        return {
            "noise": self.noise.to_dict(),
            "shape": self.shape,
            "prediction": self.prediction,
            "channels": self.channels,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape} on {self.noise!r}, {self.calls} calls so far>"


class Counter:
    """Network calls and rows; denoisers that wrap one network share its counter."""

    def __init__(self) -> None:
        self.calls = 0
        self.evaluations = 0

    def count(self, rows: int) -> None:
        """One call on `rows` samples."""
        self.calls += 1
        self.evaluations += rows


class Network(Denoiser):
    """A network in its own conventions as a denoiser; made by `from_callable`, which says what the arguments mean."""

    def __init__(
        self,
        fn: RawNetwork,
        *,
        network_noise: NoiseSchedule | None,
        time: TimeScale | Callable[[Tensor], Tensor] | None,
        network_dtype: torch.dtype | None,
        **denoiser: Any,
    ) -> None:
        super().__init__(fn, **denoiser)
        self.coordinates = Coordinates(self.noise, network_noise, self.prediction, time)
        self.network_noise = self.coordinates.network_noise
        self.time: TimeScale | Callable[[Tensor], Tensor] = self.coordinates.time
        self.network_dtype = network_dtype

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        told, scale, skip, gain = self.coordinates.at(t)
        wide = torch.promote_types(x.dtype, torch.float32)
        inputs = x if scale is None else x.to(wide) * scale
        outputs = self._received(self.call(inputs.to(self.network_dtype or x.dtype), told, condition), x, t)
        if isinstance(skip, Tensor) or isinstance(gain, Tensor):
            return tuple((skip * inputs.to(wide) + gain * out.to(wide)).to(x.dtype) for out in outputs)
        return tuple(torch.mul(inputs.to(wide), skip).add_(out.to(wide), alpha=gain).to(x.dtype) for out in outputs)

    def call(self, inputs: Tensor, time: Tensor, condition: Condition = None) -> Any:
        """The raw network at its own input `[B, *shape]` and its own time (0-d)."""
        times = per_sample(time, inputs)
        if condition is None:
            return self.fn(inputs, times)
        if isinstance(condition, Mapping):
            return self.fn(inputs, times, **condition)
        return self.fn(inputs, times, condition)

    def _conventions(self) -> dict[str, Any]:
        time = self.time if isinstance(self.time, str) else describe(self.time)
        return super()._conventions() | {"network_noise": self.network_noise.to_dict(), "time": time}


def from_callable(
    fn: RawNetwork,
    *,
    prediction: Prediction,
    noise: NoiseSchedule,
    shape: Sequence[int],
    time: TimeScale | Callable[[Tensor], Tensor] | None = None,
    network_noise: NoiseSchedule | None = None,
    channels: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    network_dtype: torch.dtype | None = None,
    null_condition: Condition = None,
    fingerprint: str | None = None,
    check_finite: bool | None = None,
    check: bool = True,
    data: Tensor | None = None,
    data_condition: Condition = None,
) -> Network:
    """A `Denoiser` from a network in its own conventions, checked against itself.

    Args:
        fn: `fn(x, t)`, or `fn(x, t, condition)` when there is a condition (`fn(x, t, **condition)` for a mapping), with
            x `[B, *shape]` and t `[B]`; returns its prediction `[B, *shape]`, or a tuple of `channels` of them.
        prediction: `epsilon`, `v`, `x0`, `score` or `flow` (eps - x_0; negate a network that gives x_0 - eps).
        noise: the noise schedule of the states that samplers handle.
        shape: shape of one sample.
        time: what the network is told: `index`, `unit`, `sigma`, `log_sigma/4` (see `fewstep.conventions`), or a
            function of its schedule's time, a 0-d float64 tensor. By default what its family of schedules uses.
        network_noise: the schedule that the network was trained on, if it is another: the state is scaled to it and its
            time is found at the same noise level. So a Stable Diffusion network runs in EDM's coordinates.
        network_dtype: dtype that the network is called in, if not the state's.
        channels, device, dtype, null_condition, fingerprint, check_finite: see `Denoiser`.
        check: test at several noise levels which prediction and time scale denoise best (`fewstep.selfcheck`).
        data: clean samples `[N, *shape]` for that check, a dozen will do. Without them a crude run of the network makes
            some (about fifty calls on a few samples).
        data_condition: the condition of `data` or of the crude run; by default the null condition.

    Raises:
        ArgumentError: a bad argument; or, with `data`, a declaration that another one beats clearly.

    Warns:
        UserWarning: the same without `data`, where the evidence is the network's own word.
    """
    if not check and data is not None:
        raise ArgumentError("data is for the self-check, and check=False switches it off: give one of them")
    network = Network(
        fn, network_noise=network_noise, time=time, network_dtype=network_dtype, noise=noise, shape=shape,
        device=device, dtype=dtype, channels=channels, prediction=prediction, null_condition=null_condition,
        fingerprint=fingerprint, check_finite=check_finite,
    )  # fmt: skip
    if check:
        from fewstep.selfcheck import require_consistent

        require_consistent(network, data, data_condition)
    return network
