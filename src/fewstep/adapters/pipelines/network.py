"""A pipeline's network as a `Denoiser`, with its prompts, its decoder and its identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.pipelines.family import Family, Leaves
from fewstep.adapters.pipelines.training import Training
from fewstep.conditions import Condition, null_rows
from fewstep.conventions import per_sample
from fewstep.denoiser import Denoiser, Network
from fewstep.errors import ArgumentError
from fewstep.fingerprint import fingerprint_of, parameters_digest
from fewstep.guidance import Wrapped
from fewstep.networks.labels import innermost
from fewstep.noise import Time

DECODED_AT_ONCE = 4


class Latent:
    """A pipeline with encoded prompts: what a sampler needs besides the network.

    Attributes:
        family: the adapter of its class.
        leaves: of all prompts, `[prompts, ...]` each, on the CPU.
        facts: what the samples depend on, in words and numbers, for files and reports.
    """

    def __init__(self, family: Family, leaves: Leaves, facts: Mapping[str, Any], name: str) -> None:
        self.family, self.leaves, self.facts, self.name = family, leaves, dict(facts), name

    def __call__(self, network: Any, x: Tensor, t: Tensor, condition: Leaves) -> Tensor:
        """The raw prediction, of states of any dtype: the network sees its own."""
        return self.family(network, x.to(self.family.dtype), t, condition)

    @property
    def prompts(self) -> int:
        """How many there are."""
        return len(next(iter(self.leaves.values())))

    def condition_of(self, seeds: Sequence[int]) -> Leaves:
        """The prompts in turn: seed s has prompt s modulo their number."""
        return {name: leaf.to(self.family.device) for name, leaf in self.rows(seeds).items()}

    def rows(self, seeds: Sequence[int]) -> Leaves:
        """The same, on the CPU."""
        prompts = self.prompts
        numbers = torch.tensor([int(seed) % prompts for seed in seeds], device="cpu")
        return {name: leaf[numbers] for name, leaf in self.leaves.items()}

    @torch.no_grad()
    def decode(self, latents: Tensor, at_once: int = DECODED_AT_ONCE) -> Tensor:
        """Pixels in [-1, 1] of latents `[B, *shape]`, float32 on the CPU: `[B, 3, H, W]`, videos with frames."""
        parts = latents.split(at_once)
        made = [self.family.decode(part.to(self.family.device, torch.float32)).float().cpu() for part in parts]
        return torch.cat(made).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor, at_once: int = DECODED_AT_ONCE) -> Tensor:
        """Latents of pictures `[B, 3, H, W]` in [-1, 1], float32 on the CPU: the modes of the encoder."""
        parts = [self.family.encode_pixels(part.to(self.family.device)) for part in pixels.split(at_once)]
        return torch.cat([part.float().cpu() for part in parts])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """JSON-ready; changes with the weights, their configurations and adapters, the prompts and the sizes."""
        pipe = self.family.pipe
        modules = self.family.networks() | {name: getattr(pipe, name, None) for name in self.family.encoders}
        facts = {key: value for key, value in self.facts.items() if key != "weights"}
        return facts | {name: _module(module) for name, module in modules.items() if module is not None}


SAVING = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""What saving a transformers model writes into its configuration."""


def _module(module: Any) -> dict[str, Any]:
    """Weights, configuration and low-rank adapters of one module."""
    config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()
    plain = {k: v for k, v in config.items() if not k.startswith("_") and k not in SAVING}
    weights = _weights(module)
    # What nobody can say where it rests has no numbers here; its names and shapes still count.
    there = {name: value for name, value in weights.items() if value.device.type != "meta"}
    absent = sorted((name, tuple(value.shape)) for name, value in weights.items() if value.device.type == "meta")
    return {
        "config": fingerprint_of(plain),
        "weights": parameters_digest(there) + (fingerprint_of(absent) if absent else ""),
        "adapters": adapters_of(module),
    }


def _weights(module: Any) -> Mapping[str, Tensor]:
    """The state, also of a module whose layers are offloaded one by one (accelerate's hooks know where they rest)."""
    weights = dict(module.state_dict())
    if any(value.device.type == "meta" for value in weights.values()) and any(
        hasattr(part, "_hf_hook") for part in module.modules()
    ):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        weights |= get_state_dict_offloaded_model(module)
    return weights


def adapters_of(module: Any) -> dict[str, Any]:
    """Low-rank adapters that are at work in a module, with their scales."""
    found: dict[str, set[float]] = {}
    for part in module.modules():
        scaling, active = getattr(part, "scaling", None), getattr(part, "active_adapters", ())
        if isinstance(scaling, Mapping) and not getattr(part, "disable_adapters", False):
            for name in active if isinstance(active, list | tuple) else ():
                if name in scaling:
                    found.setdefault(str(name), set()).add(float(scaling[name]))
    return {name: sorted(scales) for name, scales in sorted(found.items())}


class PipelineNetwork(Network):
    """The network of a pipeline; made by `from_diffusers`."""

    def __init__(self, latent: Latent, training: Training, null: Leaves | None, **denoiser: Any) -> None:
        super().__init__(
            latent, network_noise=None, time="index" if training.sigma_data is None else "log_sigma/4",
            network_dtype=None, noise=training.noise, shape=latent.family.shape(), device=latent.family.device,
            prediction=training.prediction, null_condition=null, **denoiser,
        )  # fmt: skip
        self.latent, self.training = latent, training

    def call(self, inputs: Tensor, time: Tensor, condition: Condition = None) -> Any:
        """The raw network; without a condition, on the negative prompt."""
        if condition is None:
            if self.null_condition is None:
                raise ArgumentError(
                    "a pipeline needs a condition, and without guidance there is no negative prompt to take: give "
                    "condition=fewstep.models.default_condition(model, seeds)"
                )
            condition = null_rows(self.null_condition, len(inputs))
        module = self.latent.family.network(float(time.detach()) if len(self.latent.family.networks()) > 1 else 0.0)
        graph = torch.is_grad_enabled() and (inputs.requires_grad or time.requires_grad)
        with torch.set_grad_enabled(graph):  # the weights are not trained here: no graph for them alone
            if self.training.sigma_data is None:
                return self.latent(module, inputs, per_sample(time, inputs), condition)
            return self._preconditioned(module, inputs, time, condition)

    def _preconditioned(self, module: Any, x: Tensor, time: Tensor, condition: Leaves) -> Tensor:
        """EDM's c_skip x + c_out F(c_in x, log(sigma) / 4) (Karras et al. 2022, Table 1)."""
        data = float(self.training.sigma_data or 0.0)
        sigma = torch.exp(4 * time)
        total = sigma**2 + data**2
        skip, gain = (data**2 / total).to(x.dtype), (sigma * data / total.sqrt()).to(x.dtype)
        out = self.latent(module, x * (1 / total.sqrt()).to(x.dtype), per_sample(time, x), condition).to(x.dtype)
        return skip * x + (-gain if self.training.negated else gain) * out

    @property
    def fingerprint(self) -> str:
        """Digest of weights, adapters, prompts, sizes and conventions, or the name that was given."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.latent.identity, self._conventions())
        return self._fingerprint


class ByExpert(Wrapped):
    """One denoiser for times told at and above a boundary, another below: Wan 2.2's two guidance weights."""

    def __init__(self, high: Denoiser, low: Denoiser, told: Callable[[float], float], boundary: float) -> None:
        super().__init__(high, {"boundary": boundary, "low": low.fingerprint})
        self.low, self._told, self.boundary = low, told, boundary
        self.batch_cost = max(high.batch_cost, low.batch_cost)

    def _outputs(self, x: Tensor, t: Time, condition: Condition) -> tuple[Tensor, ...]:
        time = float(t.detach() if isinstance(t, Tensor) else t)
        return ((self.inner if self._told(time) >= self.boundary else self.low)(x, t, condition),)


def latent_of(model: Denoiser) -> Latent | None:
    """The pipeline inside a denoiser, whatever wraps it; None for other networks."""
    inner = innermost(model)
    return inner if isinstance(inner, Latent) else None
