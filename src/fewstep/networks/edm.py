"""The networks of EDM (Karras et al. 2022): a U-Net inside one of the four preconditioners of its Table 1.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)

An implementation of its own, for evaluation only. Parameters and arguments are named as in the released files, so that
`build(config)` takes their tensors as they are; `fewstep.networks.edm_file` reads them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.networks.edm_layers import Convolution
from fewstep.networks.edm_unet import UNETS

Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]
"""c_skip, c_out, c_in, c_noise, broadcastable over `[B, 1, 1, 1]`"""


class Preconditioned(nn.Module):
    """`(x, sigma, labels) -> x_0`, with `x = x_0 + sigma * noise`.

    `sigma_min` and `sigma_max` are the noise levels that the network takes; `label_dim` the number of classes, 0 for an
    unconditional network.
    """

    sigma_min: float
    sigma_max: float

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_type: str,
        outputs: int = 1,
        **model: Any,
    ) -> None:
        super().__init__()
        if model_type not in UNETS:
            raise ArgumentError(f"model_type={model_type!r} is not known: give {' or '.join(UNETS)}")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.model = UNETS[model_type](
            img_resolution=img_resolution, in_channels=img_channels, out_channels=outputs * img_channels,
            label_dim=label_dim, **model,
        )  # fmt: skip
        self.inner_dtype = torch.float32

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in, c_noise at noise levels `[B, 1, 1, 1]`, float32."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """`x [B, C, H, W]`, `sigma [B]`, `labels [B, label_dim]` one-hot (None: zeros, no label) to x_0, float32."""
        x = x.float()
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma.float().reshape(-1, 1, 1, 1))
        if self.label_dim and labels is None:
            labels = x.new_zeros(1, self.label_dim)
        raw = self.model((c_in * x).to(self.inner_dtype), c_noise.flatten(), labels)
        return c_skip * x + c_out * raw[:, : self.img_channels].float()

    def halve(self) -> None:
        """Compute in float16 from here on, but for embeddings and preconditioning (in place).

        What the released ImageNet network does on a GPU; float16 on a CPU is slow.
        """
        for module in self.modules():
            if isinstance(module, Convolution | nn.GroupNorm):
                module.half()
        self.inner_dtype = torch.float16


class EDMPrecond(Preconditioned):
    """EDM's own preconditioning; any noise level."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model)
        self.sigma_min, self.sigma_max, self.sigma_data = float(sigma_min), float(sigma_max), float(sigma_data)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Preconditioned`."""
        square = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / square, sigma * self.sigma_data * square.rsqrt(), square.rsqrt(), sigma.log() / 4


class VPPrecond(Preconditioned):
    """Of the variance-preserving baseline (Song et al. 2021): the network predicts noise, told 999 t."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model)
        self.beta_d, self.beta_min, self.steps = float(beta_d), float(beta_min), int(M)
        self.sigma_min, self.sigma_max = self._sigma(epsilon_t), self._sigma(1.0)

    def _sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Preconditioned`. The time is the solution of `log(1 + sigma^2) = beta_d t^2 / 2 + beta_min t`."""
        log = torch.log1p(sigma**2)
        t = 2 * log / ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() + self.beta_min)
        return 1.0, -sigma, (sigma**2 + 1).rsqrt(), (self.steps - 1) * t


class VEPrecond(Preconditioned):
    """Of the variance-exploding baseline (Song et al. 2021)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Preconditioned`."""
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


# The released class is called iDDPMPrecond; `build` knows it by that name.
class IDDPMPrecond(Preconditioned):
    """Of improved DDPM's networks: told the index of the nearest of its `M` noise levels, which the file holds."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, outputs=2, **model)
        self.steps = int(M)
        self.u: Tensor
        self.register_buffer("u", noise_levels(self.steps, C_1, C_2))

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The least noise level but zero."""
        return float(self.u[self.steps - 1])

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The largest noise level."""
        return float(self.u[0])

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """See `Preconditioned`."""
        nearest = (sigma.reshape(-1, 1) - self.u).abs().argmin(dim=1)
        return 1.0, -sigma, (sigma**2 + 1).rsqrt(), (self.steps - 1 - nearest).to(sigma.dtype)


def noise_levels(steps: int, least_ratio: float, offset: float) -> Tensor:
    """`[steps + 1]` noise levels of a cosine schedule, from the noisiest to 0, its first ones bent (EDM's Table 1)."""
    bars = [math.sin(0.5 * math.pi * j / steps / (offset + 1)) ** 2 for j in range(steps + 1)]
    u = [0.0]
    for j in range(steps, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(bars[j - 1] / bars[j], least_ratio) - 1))
    return torch.tensor(u[::-1], dtype=torch.float32, device="cpu")


PRECONDITIONERS: dict[str, type[Preconditioned]] = {
    "EDMPrecond": EDMPrecond,
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": IDDPMPrecond,
}


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Preconditioned:
    """The network of a file.

    Args:
        config: `class_name` (one of `PRECONDITIONERS`) and that class's arguments.
        tensors: all its parameters and buffers; without them they are random, and the last layers not zero.

    Returns:
        The network in float32, in evaluation mode, without gradients of parameters.

    Raises:
        FileFormatError: an unknown class or argument, or tensors that are not exactly those of the network.
    """
    arguments = dict(config)
    name = arguments.pop("class_name", None)
    if not isinstance(name, str) or name not in PRECONDITIONERS:
        raise FileFormatError(f"class {name!r} is no network of EDM that is known here: {', '.join(PRECONDITIONERS)}")
    try:
        # With tensors to come, nothing is allocated or drawn first: sizes of a wrong file are found before memory is.
        with torch.device("cpu" if tensors is None else "meta"):
            network = PRECONDITIONERS[name](**arguments)
        if tensors is not None:
            network.load_state_dict(dict(tensors), strict=True, assign=True)
    except (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        raise FileFormatError(
            f"this is not a {name} of the kinds that are known here ({error}); give a file of the published networks"
        ) from error
    return network.float().requires_grad_(False).eval()
