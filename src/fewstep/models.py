"""Names to networks: `mnist`, `problem:NAME`, `edm:FILE`, `diffusers:PLACE`, `python:MODULE:FACTORY`; and what judges
their samples.

model = load("mnist", guidance=2.0)
model = load("problem:grid_8x8?noise=flow")       # options may stand in the name, for command lines
images = sample(model, tableau, seeds=seeds, condition=default_condition(model, seeds))
judge("mnist").report(images)
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from fewstep import metrics, networks, problems
from fewstep.adapters.pipelines.network import latent_of
from fewstep.conditions import Condition
from fewstep.denoiser import Denoiser
from fewstep.devices import places_of, spread
from fewstep.errors import ArgumentError
from fewstep.guidance import guided, weight_of
from fewstep.metrics import Features, Statistics
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear

NOISES: dict[str, Callable[[], NoiseSchedule]] = {
    "edm": lambda: EDM(0.002, 80.0),
    "vp": VPLinear,
    "cosine": VPCosine,
    "flow": Flow,
    "sd": Discrete.scaled_linear,
}
"""Noise schedules that a name can ask for, as in `mnist?noise=flow`."""

CHOICES = (
    "mnist, problem:NAME (NAME one of "
    + ", ".join(problems.NAMES)
    + "), edm:FILE, diffusers:PATH_OR_ID, or python:MODULE:FACTORY"
)
FLAGS = {"trust-pickle": "trust_pickle", "fp16": "fp16"}
"""Options of a name that take no value, and the arguments that they stand for."""


def load(
    name: str,
    *,
    guidance: float | None = None,
    noise: NoiseSchedule | str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_pickle: bool = False,
    fp16: bool = False,
) -> Denoiser:
    """The network of that name as a `Denoiser`.

    Args:
        name: `mnist`, the class-conditional digit network that ships; `problem:NAME`, an analytic problem; `edm:FILE`,
            a network of EDM (Karras et al. 2022) from its .safetensors or .pkl; `diffusers:PATH_OR_ID`, the pipeline of
            a folder or of the Hub, with the options of `fewstep.adapters.pipelines.opening.load`;
            `python:MODULE:FACTORY`, what `FACTORY()` of an importable module (or one in the working folder) returns.
            Options can follow: `mnist?guidance=2&noise=flow`, `edm:FILE?trust-pickle&fp16&device=cuda`,
            `diffusers:my-sd15?prompts=prompts.txt&guidance=7.5`.
        guidance: classifier-free guidance weight; 1, the default, is none, but a pipeline has a default of its own.
        noise: noise schedule of the states, or its name: edm, vp, cosine, flow, sd. By default the network's own.
        dtype, device: of the states; float32 on the CPU by default (pipelines: on the GPU, if there is one). Several
            devices, `cuda:0,cuda:1`, have a copy each and share every batch (`fewstep.spread`).
        trust_pickle, fp16: for `edm:`, see `fewstep.networks.edm_denoiser`.

    Raises:
        ArgumentError: an unknown name or option; lists the choices.
        FileFormatError: a damaged file.
    """
    name, several = places_of(name, device)
    if len(several) > 1:
        how: dict[str, Any] = {"guidance": guidance, "noise": noise, "dtype": dtype, "trust_pickle": trust_pickle}
        return spread([load(name, device=place, fp16=fp16, **how) for place in several])
    name, _, query = name.partition("?")
    kind, _, rest = name.partition(":")
    if kind == "diffusers" and rest:
        if noise is not None or dtype is not None or trust_pickle or fp16:
            raise ArgumentError(f"name={name!r}: noise, dtype, trust_pickle and fp16 are not for pipelines: leave them "
                                "out, and write ?dtype=bfloat16 for the network's")  # fmt: skip
        return _pipeline(rest, query, guidance, device)
    asked = Asked(1.0 if guidance is None else guidance, noise, device, trust_pickle, fp16)
    for key, value in parse_qsl(query, keep_blank_values=True):
        asked = asked.with_option(key, value)
    schedule, device = _noise(asked.noise), asked.device
    if kind != "edm" and (asked.trust_pickle or asked.fp16):
        raise ArgumentError(f"name={name!r}: trust_pickle and fp16 are for edm: models; leave them out")
    if name == "mnist":
        model = networks.mnist_denoiser(noise=schedule, dtype=dtype or torch.float32, device=device or "cpu")
    elif kind == "problem" and rest:
        model = problems.get(rest, schedule).denoiser(dtype=dtype or torch.float32, device=device or "cpu")
    elif kind == "edm" and rest:
        if asked.guidance != 1:
            raise ArgumentError(f"guidance={asked.guidance:g}: EDM's networks know no unlabelled images; leave it at 1")
        model = networks.edm_denoiser(
            rest, noise=schedule, dtype=dtype or torch.float32, device=device or "cpu",
            trust_pickle=asked.trust_pickle, fp16=asked.fp16,
        )  # fmt: skip
    elif kind == "python" and rest:
        if not (schedule is dtype is device is None):
            raise ArgumentError("noise, dtype and device of a python: model are chosen by its factory: set them there")
        model = _from_factory(name)
    else:
        raise ArgumentError(f"name={name!r} is no model; give {CHOICES}")
    return model if asked.guidance == 1 else guided(model, asked.guidance)


def _pipeline(place: str, query: str, guidance: float | None, device: torch.device | str | None) -> Denoiser:
    """`diffusers:PLACE?...`; of two values of one option the name's wins, as for other models."""
    from fewstep.adapters.pipelines.opening import load as load_pipeline

    options = dict(parse_qsl(query, keep_blank_values=True))
    if "guidance" in options:
        guidance = Asked(1.0, None, None, False, False).with_option("guidance", options.pop("guidance")).guidance
    return load_pipeline(place, guidance=guidance, device=options.pop("device", device), **options)


@dataclass(frozen=True)
class Asked:
    """Options of a model, from arguments and from its name; the name's win."""

    guidance: float
    noise: NoiseSchedule | str | None
    device: torch.device | str | None
    trust_pickle: bool
    fp16: bool

    def with_option(self, key: str, value: str) -> Asked:
        """The same with one option of the name."""
        if key in FLAGS and value in ("", "1", "true"):
            return replace(self, **{FLAGS[key]: True})
        if key in ("noise", "device"):
            return replace(self, **{key: value})
        if key != "guidance":
            raise ArgumentError(
                f"{key!r} in the model's name is no option; known are noise=, guidance=, device=, trust-pickle and fp16"
            )
        try:
            return replace(self, guidance=float(value))
        except ValueError:
            raise ArgumentError(f"guidance={value!r} in the model's name is not a number; write guidance=2.0") from None


def _noise(noise: NoiseSchedule | str | None) -> NoiseSchedule | None:
    if not isinstance(noise, str):
        return noise
    if noise not in NOISES:
        raise ArgumentError(
            f"noise={noise!r} is no noise schedule; give one of {', '.join(NOISES)}, or a NoiseSchedule"
        )
    return NOISES[noise]()


def made_by(name: str) -> Any:
    """What the function of a name `python:MODULE:FACTORY` returns.

    Raises:
        ArgumentError: no such module or function.
    """
    module, _, factory = name.removeprefix("python:").rpartition(":")
    if not module or not factory:
        raise ArgumentError(f"name={name!r}: write python:MODULE:FACTORY, as in python:my_package.models:make_denoiser")
    here = os.getcwd()
    sys.path.insert(0, here)  # a console script does not look in the working folder by itself
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArgumentError(f"name={name!r}: {error}; run from its folder, or install it") from error
    finally:
        sys.path.remove(here)
    make = getattr(found, factory, None)
    if not callable(make):
        public = [n for n in vars(found) if not n.startswith("_") and callable(getattr(found, n))]
        raise ArgumentError(f"name={name!r}: {module} has no function {factory}; it has {', '.join(public) or 'none'}")
    return make()


def _from_factory(name: str) -> Denoiser:
    model = made_by(name)
    if not isinstance(model, Denoiser):
        raise ArgumentError(
            f"name={name!r}: {name.rpartition(':')[2]}() returned a {type(model).__name__}, not a Denoiser; wrap the "
            "network with fewstep.from_callable"
        )
    return model


def default_condition(model: Denoiser, seeds: Sequence[int]) -> Condition:
    """Balanced labels, `seed % classes` for each seed, for a class-conditional network of this package; the prompts of
    a pipeline in turn; else None.

    Errors: `ArgumentError` for a guided network without either: without conditions its guidance would do nothing.
    """
    latent = latent_of(model)
    if latent is not None:
        return latent.condition_of(seeds)
    classes = networks.classes_of(model)
    if classes is None and (weight := weight_of(model)) != 1:
        raise ArgumentError(f"guidance={weight:g} does nothing without conditions: leave it out (Python: condition=)")
    return None if classes is None else torch.tensor([int(seed) % classes for seed in seeds], device=model.device)


def pictures(model: Denoiser, samples: Tensor) -> Tensor:
    """Samples as pixels: a pipeline's latents are decoded, a few at a time; others are what they are."""
    latent = latent_of(model)
    return samples if latent is None else latent.decode(samples)


def about(model: Denoiser) -> dict[str, Any]:
    """What a pipeline's samples depend on (weights, guidance, prompts, sizes), JSON-ready; nothing for others."""
    latent = latent_of(model)
    return {} if latent is None else dict(latent.facts)


@dataclass(frozen=True)
class Judge:
    """What samples of one model are judged by."""

    name: str
    """what the features are, for captions"""
    features: Features
    """samples `[B, *shape]` to `[B, d]`"""
    reference: Statistics
    """of the features of real data"""
    reference_features: Tensor
    """`[m, d]`, for precision, recall and kernel distance"""
    classify: Callable[[Tensor], Tensor] | None = None
    """samples to labels `[B]`"""
    nll: Callable[[Tensor], float] | None = None
    """samples to their mean negative log-likelihood, where the density is known"""
    floors: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """what real data scores, where it was measured"""

    @torch.no_grad()
    def frechet(self, samples: Tensor) -> metrics.Estimate:
        """Fréchet distance to the reference, with its standard error; at least 48 samples."""
        return metrics.frechet_with_error(self.features(samples), self.reference)

    @torch.no_grad()
    def report(self, samples: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """All scores by name: Fréchet and kernel distance with errors, precision, recall, density, coverage and, where
        they can be had, `as_label` (share that is classified as `labels [B]`) and `nll`.
        """
        features = self.features(samples)
        frechet = metrics.frechet_with_error(features, self.reference)
        kernel = metrics.kernel_distance(features, self.reference_features)
        scores = {
            "frechet": frechet.value,
            "frechet_error": frechet.standard_error,
            "kernel": kernel.value,
            "kernel_error": kernel.standard_error,
            **metrics.precision_recall(features, self.reference_features)._asdict(),
        }
        if labels is not None and self.classify is not None:
            scores["as_label"] = float((self.classify(samples).cpu() == labels.cpu()).double().mean())
        if self.nll is not None:
            scores["nll"] = self.nll(samples)
        return scores


@lru_cache(maxsize=8)
def judge(name: str) -> Judge | None:
    """The judge of the model of that name (options in the name are ignored), or None where there is none."""
    kind, _, rest = name.partition("?")[0].partition(":")
    if kind == "mnist":
        return Judge(
            "64 features of a digit classifier",
            networks.mnist_features(),
            networks.mnist_reference(),
            networks.mnist_reference_features(),
            classify=networks.mnist_classify,
            floors=networks.mnist_floors(),
        )
    return _judge_of_problem(problems.get(rest)) if kind == "problem" else None


def _judge_of_problem(problem: problems.Problem) -> Judge:
    """Exact samples are the reference; the features of a sample are its own numbers."""

    def flat(samples: Tensor) -> Tensor:
        return samples.flatten(1)

    exact = problem.sample(50_000, seed=0, dtype=torch.float64).flatten(1)
    return Judge("the samples themselves", flat, Statistics.of(exact), exact[:5000], nll=problem.nll)
