"""Denoisers that wrap another: classifier-free guidance, its two predictions as channels, thresholding, clipping.

A wrapper is a `Denoiser` like any other and shares the counters of the network inside. Guidance is linear in the two
predictions, so it can also be *in* the table (`guidance_channels`); thresholding and clipping are not linear, and so
not a table: wrap them around the network, where they belong.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Condition, joined, null_rows
from fewstep.conventions import Prediction, data_coefficients, require_alpha, require_prediction
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.fingerprint import fingerprint_of
from fewstep.noise import Time


class Wrapped(Denoiser):
    """A denoiser around another: same states, same network, same counters. Subclasses give `_outputs`."""

    def __init__(self, inner: Denoiser, options: dict[str, Any], channels: int = 1) -> None:
        super().__init__(
            inner, noise=inner.noise, shape=inner.shape, device=inner.device, dtype=inner.dtype, channels=channels,
            prediction=inner.prediction, null_condition=inner.null_condition, check_finite=inner.check_finite,
        )  # fmt: skip
        self.inner = inner
        self.options = options
        self.batch_cost = inner.batch_cost
        self._counter = inner._counter

    @property
    def fingerprint(self) -> str:
        """Digest of the network inside and of this wrapper's options."""
        return fingerprint_of(self.inner.fingerprint, type(self).__name__, self.options)


def _inner_null(denoiser: Denoiser, null: Condition) -> Condition:
    if denoiser.channels != 1:
        raise ArgumentError(
            f"this denoiser has {denoiser.channels} outputs: guide the denoiser of one output that is inside it"
        )
    null = denoiser.null_condition if null is None else null
    if null is None:
        raise ArgumentError(
            "guidance needs the condition that means none: give null=, e.g. the index of the null class or the empty "
            "prompt's embedding"
        )
    return null


class _Doubled(Wrapped):
    """Shared by both forms of guidance: conditional and unconditional prediction from one doubled batch."""

    def __init__(self, inner: Denoiser, null: Condition, options: dict[str, Any], channels: int) -> None:
        super().__init__(inner, options, channels)
        self.null_condition = _inner_null(inner, null)
        self.batch_cost = 2 * inner.batch_cost

    def _both(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, Tensor]:
        null = null_rows(self.null_condition, len(x), like=condition)
        conditional, unconditional = self.inner(torch.cat([x, x]), t, joined(condition, null)).chunk(2)
        return conditional, unconditional

    def _unconditional(self, x: Tensor, t: Time) -> Tensor:
        return self.inner(x, t, null_rows(self.null_condition, len(x), device=x.device))


class Guided(_Doubled):
    """Classifier-free guidance; made by `guided`, which says what the arguments mean."""

    def __init__(
        self,
        inner: Denoiser,
        scale: float,
        null: Condition,
        rescale: float,
        interval: tuple[float, float] | None,
        rescale_in: Prediction,
    ) -> None:
        self.scale, self.rescale, self.interval = scale, rescale, interval
        self.rescale_in: Prediction = rescale_in
        options = {
            "scale": scale,
            "rescale": rescale,
            "interval": interval,
            "rescale_in": rescale_in if rescale else None,
        }
        super().__init__(inner, null, options, channels=1)
        if scale == 1:
            self.batch_cost = inner.batch_cost

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        if condition is None:
            return (self._unconditional(x, t),)
        inside = self._inside(t)
        if self.scale == 1 or inside is False:
            return (self.inner(x, t, condition),)
        conditional, unconditional = self._both(x, t, condition)
        out = unconditional + self.scale * (conditional - unconditional)
        if self.rescale:
            out = self._rescaled(out, conditional, x, t)
        return (torch.where(inside, out, conditional) if isinstance(inside, Tensor) else out,)

    def _inside(self, t: Time) -> bool | Tensor:
        """Whether guidance acts at t; a tensor inside a compiled graph of tensor times, which cannot branch."""
        if self.interval is None:
            return True
        low, high = self.interval
        if isinstance(t, Tensor) and torch.compiler.is_compiling():
            return (t >= low) & (t <= high)
        return low <= float(t.detach() if isinstance(t, Tensor) else t) <= high

    def _rescaled(self, guided: Tensor, conditional: Tensor, x: Tensor, t: Time) -> Tensor:
        """Lin et al. 2023, equations 14 to 16, in the space of `rescale_in`.

        There a prediction is a multiple of `D - c x`, with c the c_skip of `fewstep.conventions`, so that scaling the
        prediction by f turns D into `f D + (1 - f) c x`.
        """
        alpha = self.noise.alpha(t)
        require_alpha(self.rescale_in, alpha, t, "rescale_in")
        skip = data_coefficients(self.rescale_in, alpha, self.noise.sigma(t))[0].to(x.dtype) * x
        axes = tuple(range(1, x.ndim))
        spread = (conditional - skip).std(axes, keepdim=True)
        guided_spread = (guided - skip).std(axes, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        factor = self.rescale * (spread / guided_spread) + (1 - self.rescale)
        return factor * guided + (1 - factor) * skip


def weight_of(denoiser: Denoiser) -> float:
    """The weight of the classifier-free guidance in a denoiser; 1 where there is none."""
    while isinstance(denoiser, Wrapped):
        if isinstance(denoiser, Guided):
            return denoiser.scale
        denoiser = denoiser.inner
    return 1.0


def guided(
    denoiser: Denoiser,
    scale: float,
    *,
    null: Condition = None,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    rescale_in: Prediction | None = None,
) -> Denoiser:
    """Classifier-free guidance: `D_u + scale (D_c - D_u)`, from one doubled batch per call (Ho & Salimans 2022).

    A scale of 1 is the conditional network itself, at no extra cost. Without a condition the result is unconditional.

    Args:
        denoiser: a conditional denoiser.
        scale: the guidance weight w; 1 means none, 7.5 is common for text.
        null: the condition that means none: a tensor with sample axis 1, or a number (a null class), or a pytree of
            them with the structure of the conditions. By default the denoiser's `null_condition`.
        rescale: phi of Lin et al. 2023 (equations 14 to 16): 0 keeps the guided prediction, 1 gives it the standard
            deviation of the conditional one, sample by sample.
        interval: `(lowest, highest)` time at which guidance acts (Kynkäänniemi et al. 2024); elsewhere only the
            conditional prediction is computed, from a single batch.
        rescale_in: the prediction whose spread is restored; the network's own by default, which is what diffusers does.

    Raises:
        ArgumentError: no null condition, or a number out of range.
    """
    if not math.isfinite(scale):
        raise ArgumentError(f"scale={scale}: give a finite guidance weight; 1 means no guidance")
    if not 0 <= rescale <= 1:
        raise ArgumentError(f"rescale={rescale}: give a number from 0 (off) to 1; 0.7 is the paper's")
    if rescale and math.prod(denoiser.shape) < 2:
        raise ArgumentError(
            f"rescale={rescale}: samples of shape {denoiser.shape} have a single entry, and so no spread: use rescale=0"
        )
    if interval is not None and not interval[0] <= interval[1]:
        raise ArgumentError(f"interval={interval}: give (lowest, highest) times of the noise schedule")
    space = require_prediction(denoiser.prediction if rescale_in is None else rescale_in)
    return Guided(denoiser, float(scale), null, float(rescale), interval, space)


class Channels(_Doubled):
    """`(D_c, D_u)` as two output channels; made by `guidance_channels`."""

    def __init__(self, inner: Denoiser, null: Condition) -> None:
        super().__init__(inner, null, {}, channels=2)

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        if condition is None:
            raise ArgumentError(
                "a denoiser of two channels needs a condition: give condition=, or use the denoiser inside it"
            )
        return self._both(x, t, condition)


def guidance_channels(denoiser: Denoiser, *, null: Condition = None) -> Denoiser:
    """The conditional and the unconditional prediction as two channels, so that guidance can be part of a table.

    Column `2 j` of B is then the conditional output j, column `2 j + 1` the unconditional one; the weights
    `(w b, (1 - w) b)` are plain guidance of weight w. Each row may have its own.
    """
    return Channels(denoiser, null)


class Thresholded(Wrapped):
    """Dynamic thresholding; made by `thresholded`."""

    def __init__(self, inner: Denoiser, quantile: float, floor: float) -> None:
        super().__init__(inner, {"quantile": quantile, "floor": floor}, inner.channels)
        self.quantile, self.floor = quantile, floor

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        outputs = self.inner(x, t, condition)
        return tuple(self._threshold(out) for out in (outputs if self.channels > 1 else (outputs,)))

    def _threshold(self, x0: Tensor) -> Tensor:
        bound = _top_quantile(x0.abs().flatten(1), self.quantile).clamp_min(self.floor)
        bound = bound.reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, bound), -bound) * (self.floor / bound)


def _top_quantile(values: Tensor, q: float) -> Tensor:
    """`torch.quantile(values, q, dim=1)` without its size limit, from the few largest entries."""
    n = values.shape[1]
    position = q * (n - 1)
    below = min(int(position), n - 1)
    top = values.topk(n - below, dim=1).values
    low, high = top[:, -1], top[:, -2] if n - below > 1 else top[:, -1]
    return torch.lerp(low, high, position - below)


def thresholded(denoiser: Denoiser, *, quantile: float = 0.995, floor: float = 1.0) -> Denoiser:
    """Imagen's dynamic thresholding (Saharia et al. 2022): x_0 clipped to its own quantile s >= floor, then scaled by
    floor / s.

    For pixels in [-1, 1]; meaningless for latents. **Not a table**: it is not linear, so no tableau can hold it, which
    is why it is a wrapper of the network.

    Args:
        denoiser: whose x_0 is thresholded.
        quantile: of the absolute pixels of one sample.
        floor: the range that the pixels live in.
    """
    if not 0 < quantile <= 1 or not floor > 0:
        raise ArgumentError(
            f"quantile={quantile}, floor={floor}: give a quantile in (0, 1] and a positive floor (0.995 and 1)"
        )
    return Thresholded(denoiser, float(quantile), float(floor))


class Clipped(Wrapped):
    """Static clipping; made by `clipped`."""

    def __init__(self, inner: Denoiser, bound: float) -> None:
        super().__init__(inner, {"bound": bound}, inner.channels)
        self.bound = bound

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        outputs = self.inner(x, t, condition)
        return tuple(out.clamp(-self.bound, self.bound) for out in (outputs if self.channels > 1 else (outputs,)))


def clipped(denoiser: Denoiser, bound: float = 1.0) -> Denoiser:
    """x_0 clipped to `[-bound, bound]` (diffusers' clip_sample). **Not a table**, like `thresholded`."""
    if not bound > 0:
        raise ArgumentError(f"bound={bound}: give the largest absolute pixel, 1 as a rule")
    return Clipped(denoiser, float(bound))
