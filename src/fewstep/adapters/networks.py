"""Other libraries' networks as denoisers: EDM's modules, guided-diffusion's, and k-diffusion's wrappers.

Nothing here imports those libraries: a network is whatever is called as theirs are. What differs is what the network is
told and what it returns; the noise schedules are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError
from fewstep.fingerprint import describe
from fewstep.networks.edm_denoiser import SIGMA_MAX, SIGMA_MIN
from fewstep.networks.labels import Labelled, check_labels
from fewstep.noise import EDM, Discrete, NoiseSchedule


class _EdmModule(Labelled):
    """`net(x, sigma, class_labels)` that takes integer labels, one-hot rows, or None."""

    def __init__(self, net: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.options = net, dict(options)
        self.identity = f"edm module {describe(net)}"

    @property
    def classes(self) -> int | None:
        """Number of classes; None for an unconditional network."""
        return int(getattr(self.net, "label_dim", 0) or 0) or None

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """`x [B, C, H, W]`, `sigma [B]`, `label` integers `[B]` or rows `[B, classes]`, to x_0."""
        return self.net(x, sigma, None if label is None else self._rows(label, len(x)), **self.options)

    def _rows(self, label: Tensor, size: int) -> Tensor:
        classes = self.classes
        if classes is None:
            raise ArgumentError("condition was given to an unconditional network; leave it out")
        if label.ndim == 2 and label.shape[1] == classes:
            return label.to(torch.float32)
        if not torch.compiler.is_compiling():
            check_labels(label, size, classes)
        return F.one_hot(label.long(), classes + 1)[:, :classes].to(torch.float32)


def from_edm(
    net: Any,
    *,
    shape: Sequence[int] | None = None,
    noise: NoiseSchedule | None = None,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    network_dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    data: Tensor | None = None,
    data_condition: Any = None,
    **net_options: Any,
) -> Denoiser:
    """A preconditioned network of EDM or EDM2, `net(x, sigma, class_labels) -> x0`, as a `Denoiser`.

    The condition is labels as integers `[B]` (the number of classes: no label), one-hot rows, or None.

    Args:
        net: the module, e.g. `pickle.load(file)["ema"]` in their repository (a file alone: `fs.load("edm:FILE")`).
        shape: of one sample; by default `(img_channels, img_resolution, img_resolution)` of the network.
        noise: schedule of the states; by default EDM's between the two levels.
        sigma_min, sigma_max: ends of the noise levels, narrowed to `net.sigma_min` and `net.sigma_max`.
        network_dtype: what the network is called in.
        device, dtype: of the states.
        check, data, data_condition: see `from_callable`.
        net_options: passed on in every call (`force_fp32=True`, ...).

    Raises:
        ArgumentError: no shape, or ends that are no range.
    """
    if shape is None:
        size = getattr(net, "img_resolution", None)
        channels = getattr(net, "img_channels", None)
        if size is None or channels is None:
            raise ArgumentError("shape is missing, and the network does not say img_channels and img_resolution")
        shape = (int(channels), int(size), int(size))
    low = max(sigma_min, float(getattr(net, "sigma_min", 0.0)))
    high = min(sigma_max, float(getattr(net, "sigma_max", float("inf"))))
    if not low < high:
        raise ArgumentError(f"the network takes noise levels from {low:g} to {high:g}, which is no range")
    own = EDM(low, high)
    return from_callable(
        _EdmModule(net, net_options), prediction="x0", noise=noise or own, network_noise=own, shape=shape,
        network_dtype=network_dtype, device=device, dtype=dtype, check=check, data=data, data_condition=data_condition,
    )  # fmt: skip


class _GuidedNetwork(torch.nn.Module):
    """`model(x, t, **kwargs)` with the learned variance cut off."""

    def __init__(self, model: Any, scale: float, learned: bool | None) -> None:
        super().__init__()
        self.model, self.scale, self.learned = model, scale, learned
        self.identity = f"guided-diffusion {describe(model)} {scale}"

    def forward(self, x: Tensor, t: Tensor, condition: Any = None, **named: Any) -> Tensor:
        """`t [B]` is the step, a float between two of them where the table asks for one."""
        given = named if condition is None else {"y": condition}
        out = self.model(x, t * self.scale if self.scale != 1 else t, **given)
        channels = x.shape[1]
        twice = out.shape[1] == 2 * channels
        if self.learned and not twice:
            raise ArgumentError(
                f"learn_sigma=True, and the network returns {out.shape[1]} channels for {channels}: set it to False"
            )
        if twice and self.learned is False:
            raise ArgumentError(
                f"the network returns {out.shape[1]} channels for {channels}, mean and variance: set learn_sigma=True"
            )
        return out[:, :channels] if twice else out


def from_guided_diffusion(
    model: Any,
    diffusion: Any = None,
    *,
    betas: Any = None,
    shape: Sequence[int] | None = None,
    prediction: str | None = None,
    learn_sigma: bool | None = None,
    rescale_timesteps: bool | None = None,
    noise: NoiseSchedule | None = None,
    network_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    data: Tensor | None = None,
    data_condition: Any = None,
) -> Denoiser:
    """A network of openai/guided-diffusion (also ADM, DiT, improved-diffusion): `model(x, t, y=...)`.

    The condition is a tensor (passed as `y`) or a mapping of keyword arguments. The library clips x_0 to [-1, 1] by
    default; here that is a wrapper, `fewstep.guidance.clipped`.

    Args:
        model: returns the prediction `[B, C, H, W]`, or `[B, 2C, H, W]` with a learned variance, which is cut off.
        diffusion: its `GaussianDiffusion` (from `create_model_and_diffusion`, with no `timestep_respacing`): gives the
            betas, the prediction, whether the variance is learned and how times are told.
        betas: `[n]` numbers, instead of a diffusion.
        shape: of one sample; by default `(in_channels, image_size, image_size)` of the model.
        prediction: `epsilon` or `x0`; by default the diffusion's `model_mean_type`, else epsilon.
        learn_sigma: whether the variance is learned; by default the diffusion's `model_var_type`, else seen in the
            output's channels.
        rescale_timesteps: tell `t 1000 / n` instead of t; by default the diffusion's, else False.
        noise: schedule of the states; by default the network's own, whose times are its steps 0 to n - 1.
        network_dtype, device, dtype, check, data, data_condition: see `from_callable`.

    Raises:
        ArgumentError: no betas, a respaced diffusion, or a network that predicts the previous state.
    """
    if (diffusion is None) == (betas is None):
        raise ArgumentError(
            "give diffusion=, the model's GaussianDiffusion, or betas=, its noise schedule: one of them"
        )
    own = Discrete.from_betas(_betas(diffusion) if betas is None else torch.as_tensor(betas))
    steps = len(own.alphas_cumprod)
    rescaled = bool(getattr(diffusion, "rescale_timesteps", False)) if rescale_timesteps is None else rescale_timesteps
    learned = _enum(diffusion, "model_var_type").startswith("LEARNED") if diffusion is not None else None
    network = _GuidedNetwork(model, 1000 / steps if rescaled else 1.0, learned if learn_sigma is None else learn_sigma)
    kind: Any = prediction or _mean_type(diffusion)
    return from_callable(
        network, prediction=kind, noise=noise or own, network_noise=own, time="index", shape=_image_shape(model, shape),
        network_dtype=network_dtype, device=device, dtype=dtype, check=check, data=data, data_condition=data_condition,
    )  # fmt: skip


def _betas(diffusion: Any) -> Tensor:
    """Of a diffusion that keeps every step."""
    steps = len(diffusion.betas)
    original = int(getattr(diffusion, "original_num_steps", steps))
    if original != steps:
        raise ArgumentError(
            f"diffusion keeps {steps} of {original} steps: make it with timestep_respacing='', for the steps are "
            "chosen here"
        )
    return torch.as_tensor(diffusion.betas, dtype=torch.float64)


def _enum(diffusion: Any, name: str) -> str:
    value = getattr(diffusion, name, "")
    return str(getattr(value, "name", value)).upper()


def _mean_type(diffusion: Any) -> str:
    kind = _enum(diffusion, "model_mean_type") if diffusion is not None else ""
    if kind == "PREVIOUS_X":
        raise ArgumentError("the network predicts the previous state, which is no estimate of x0: it cannot be used")
    return "x0" if kind == "START_X" else "epsilon"


def _image_shape(model: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        return tuple(shape)
    channels, size = getattr(model, "in_channels", None), getattr(model, "image_size", None)
    if channels is None or size is None:
        raise ArgumentError("shape is missing, and the model does not say in_channels and image_size: give (C, H, W)")
    return (int(channels), int(size), int(size))


class _Wrapped(torch.nn.Module):
    """A k-diffusion wrapper; the condition is its extra arguments."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__()
        self.wrapper = wrapper
        self.identity = f"k-diffusion {describe(wrapper)}"

    def forward(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        """`x [B, ...]`, `sigma [B]` to x_0."""
        return self.wrapper(x, sigma, **extra)


def from_k_diffusion(
    wrapper: Any,
    *,
    shape: Sequence[int],
    noise: NoiseSchedule | None = None,
    network_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    data: Tensor | None = None,
    data_condition: Any = None,
) -> Denoiser:
    """A wrapper of k-diffusion, `model(x, sigma, **extra_args) -> x0`, as a `Denoiser`.

    The condition is a mapping, the extra arguments. `VDenoiser`, `CompVisDenoiser`, `DiscreteEpsDDPMDenoiser` and so on
    all answer in x0 at x0 + sigma eps, so the states are EDM's by default.

    Args:
        wrapper: the wrapped network. Its own rounding of times (`quantize`) stays in force.
        shape: of one sample.
        noise: schedule of the states; by default EDM's over the range of `wrapper.sigmas`, else 0.002 to 80.
        network_dtype, device, dtype, check, data, data_condition: see `from_callable`.
    """
    sigmas = getattr(wrapper, "sigmas", None)
    own = EDM(float(sigmas.min()), float(sigmas.max())) if isinstance(sigmas, Tensor) else EDM()
    return from_callable(
        _Wrapped(wrapper), prediction="x0", noise=noise or own, network_noise=own, shape=shape,
        network_dtype=network_dtype, device=device, dtype=dtype, check=check, data=data, data_condition=data_condition,
    )  # fmt: skip
