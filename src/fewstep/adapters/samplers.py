"""A table as the sampler of another library: k-diffusion's `sample_*` functions (ComfyUI's too), EDM's `sampler_fn`.

Both run the whole table exactly, learned weights and free first steps included; nothing here is rounded to what a named
solver of theirs could do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.frame import Framed, framed
from fewstep.errors import ArgumentError
from fewstep.sampling import trajectory
from fewstep.tableau import Tableau

Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


class KDiffusionSampler:
    """A table as `sample(model, x, sigmas, extra_args, callback, disable)`; made by `k_diffusion_sampler`.

    Attributes:
        sigmas: `[n + 1]` float64, what to pass as `sigmas`; `x` starts at unit noise times the first.
    """

    def __init__(self, tableau: Tableau) -> None:
        self._framed = _single(tableau)
        self.sigmas = torch.tensor(self._framed.levels, dtype=torch.float64, device="cpu")
        self.__name__ = f"sample_{tableau.name or 'fewstep'}"

    @torch.no_grad()
    def __call__(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor | None = None,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        """Sample.

        Args:
            model: `model(x, sigma [B], **extra_args)` returns x0, as k-diffusion's wrappers and ComfyUI's models do.
            x: `[B, ...]` the first state, in the dtype that the run keeps.
            sigmas: the table's own levels (`.sigmas`), for the interface's sake; others are refused.
            extra_args: passed to the model.
            callback: called after every network call with `x, i, sigma, sigma_hat, denoised`; `i` is the step.
            disable: accepted for the interface; no progress bar is drawn here.
            noise_sampler: `(sigma, sigma_next) -> unit noise`; ordinary normals by default.

        Raises:
            ArgumentError: `sigmas` are not the table's.
        """
        if sigmas is not None:
            self._framed.require(sigmas, "Pass the sampler's own .sigmas, or leave them out")
        return _run(self._framed, model, x, dict(extra_args or {}), callback, noise_sampler)


def k_diffusion_sampler(tableau: Tableau) -> KDiffusionSampler:
    """The table as a sampler function of k-diffusion: `sample(model, x, sampler.sigmas)`.

    States are `x0 + sigma eps`, or `(1 - s) x0 + s eps` for a flow model's table, as ComfyUI has them.

    Raises:
        ArgumentError: the table has no noise schedule, starts at an infinite noise level or has several channels.
    """
    return KDiffusionSampler(tableau)


def edm_sampler(tableau: Tableau) -> Callable[..., Tensor]:
    """The table as EDM's `sampler_fn(net, latents, class_labels=None, randn_like=torch.randn_like, ...)`.

    As EDM's own it takes unit noise, keeps the state in float64 and calls `net(x, sigma, class_labels)`. It serves
    EDM2's `generate_images` too: `sampler_fn(net, noise=..., labels=..., gnet=..., guidance=..., dtype=...)`, with the
    guidance `gnet(x, t).lerp(net(x, t), guidance)`. `num_steps`, `sigma_min` and `sigma_max` may be given as long as
    they are the table's; `rho` and the churn options are refused, for the table has fixed what they decide.

    Source: Karras et al. 2022, `generate.py`; Karras et al. 2024, `generate_images.py`.
    """
    own = _single(tableau)

    @torch.no_grad()
    def sampler(
        net: Model,
        latents: Tensor | None = None,
        class_labels: Tensor | None = None,
        randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
        *,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
        gnet: Model | None = None,
        guidance: float = 1.0,
        dtype: torch.dtype = torch.float64,
        **settings: Any,
    ) -> Tensor:
        _same_settings(own, settings)
        unit = latents if latents is not None else noise
        if unit is None:
            raise ArgumentError("latents is missing: give unit noise [B, C, H, W]")
        of = class_labels if class_labels is not None else labels

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            out = net(x, sigma, of).to(dtype)
            return out if gnet is None or guidance == 1 else gnet(x, sigma, of).to(dtype).lerp(out, guidance)

        start = unit.to(dtype) * own.levels[0]
        return _run(own, model, start, {}, None, lambda *_: randn_like(start))

    return sampler


def _same_settings(own: Framed, settings: Mapping[str, Any]) -> None:
    known = {"num_steps": len(own.levels) - 1, "sigma_max": own.levels[0]}
    positive = [level for level in own.levels if level > 0]
    known["sigma_min"] = positive[-1]
    for name, value in settings.items():
        if value is None:
            continue
        if name not in known:
            raise ArgumentError(f"{name}={value}: the table has fixed its steps and its noise; leave {name} out")
        if abs(float(value) - known[name]) > 1e-4 * known[name]:
            raise ArgumentError(
                f"{name}={value}, and the table was made with {known[name]:.6g}: leave {name} out, or take a table "
                "made so"
            )


def _single(tableau: Tableau) -> Framed:
    if tableau.channels > 1:
        raise ArgumentError(
            f"the table mixes {tableau.channels} outputs of each call, and these hosts give one: guide inside the model"
        )
    return framed(tableau)


class _Called:
    """A host's model as the loop's denoiser; knows which row is next."""

    def __init__(
        self,
        own: Framed,
        model: Model,
        extra: Mapping[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._own, self._model, self._extra, self._callback = own, model, extra, callback
        self._rows: Iterator[int] = iter([k for k, called in enumerate(own.table.evaluated) if called])

    def __call__(self, x: Tensor, level: Any, _: Any) -> Tensor:
        row = next(self._rows)
        factor, told = self._own.inputs[row], float(level)
        denoised = self._model(x if factor == 1 else x * factor, x.new_full((len(x),), told), **self._extra)
        if self._callback is not None:
            step = self._own.step(row)
            sigma, hat = (x.new_tensor(v) for v in (self._own.levels[step], told))
            self._callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})
        return denoised


class _Drawn:
    """Noise columns from a host's noise sampler, each drawn once, when the first row wants it."""

    def __init__(self, own: Framed, like: Tensor, sampler: NoiseSampler | None) -> None:
        self._own, self._like, self._sampler = own, like, sampler
        self._kept: dict[int, Tensor] = {}

    @cached_property
    def _again(self) -> set[int]:
        """Columns that several rows read."""
        used = (self._own.table.C.reshape(*self._own.table.C.shape[:2], -1) != 0).any(2).sum(0)
        return {k for k, rows in enumerate(used.tolist()) if rows > 1}

    def __call__(self, column: int) -> Tensor:
        if column in self._kept:
            return self._kept[column]
        if self._sampler is None:
            drawn = torch.randn_like(self._like)
        else:
            first, last = (self._like.new_tensor(v) for v in self._own.intervals[column])
            drawn = self._sampler(first, last)
        if column in self._again:
            self._kept[column] = drawn
        return drawn


def _run(
    own: Framed,
    model: Model,
    start: Tensor,
    extra: Mapping[str, Any],
    callback: Callable[[dict[str, Any]], None] | None,
    noise_sampler: NoiseSampler | None,
) -> Tensor:
    denoiser = _Called(own, model, extra, callback)
    state = start
    for point in trajectory(denoiser, own.table, start, noise=_Drawn(own, start, noise_sampler)):
        state = point.state
    return state.to(start.dtype)
