"""Which samplers of which hosts are read, and how; used by `tools/make_golden.py` and by the live tests."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.adapters import diffusers as adapter
from fewstep.adapters import k_diffusion as kd_adapter
from fewstep.probe import Host, probe
from fewstep.script import Script

from . import cases_diffusers, references, store

Tables = dict[str, dict[str, Any]]

KARRAS6 = [14.6, 6.478, 2.602, 0.9116, 0.2645, 0.0292, 0.0]
IRREGULAR8 = [80.0, 31.0, 9.7, 6.1, 2.2, 1.7, 0.41, 0.06, 0.0]
STOPS5 = [10.0, 5.2, 1.9, 0.83, 0.31, 0.1]
GRIDS = {"karras6": KARRAS6, "irregular8": IRREGULAR8, "stops5": STOPS5}
CHURN = {"s_churn": 2.5, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}

K_DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("sample_euler", {}),
    "euler churn": ("sample_euler", CHURN),
    "heun": ("sample_heun", {}),
    "heun churn": ("sample_heun", CHURN),
    "dpm_2": ("sample_dpm_2", {}),
    "dpm_2 churn": ("sample_dpm_2", CHURN),
    "euler_ancestral": ("sample_euler_ancestral", {}),
    "euler_ancestral eta.5": ("sample_euler_ancestral", {"eta": 0.5}),
    "dpm_2_ancestral": ("sample_dpm_2_ancestral", {}),
    "dpm_2_ancestral eta.5": ("sample_dpm_2_ancestral", {"eta": 0.5}),
    "lms": ("sample_lms", {}),
    "lms order2": ("sample_lms", {"order": 2}),
    "lms order3": ("sample_lms", {"order": 3}),
    "dpmpp_2s_ancestral": ("sample_dpmpp_2s_ancestral", {}),
    "dpmpp_2s_ancestral eta0": ("sample_dpmpp_2s_ancestral", {"eta": 0.0}),
    "dpmpp_sde": ("sample_dpmpp_sde", {}),
    "dpmpp_sde eta.5": ("sample_dpmpp_sde", {"eta": 0.5}),
    "dpmpp_sde eta0 r.3": ("sample_dpmpp_sde", {"eta": 0.0, "r": 0.3}),
    "dpmpp_sde independent": ("sample_dpmpp_sde", {"noise_sampler": "independent"}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {}),
    "dpmpp_2m_sde heun eta.5": ("sample_dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}),
    "dpmpp_2m_sde heun eta0": ("sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    "dpmpp_3m_sde": ("sample_dpmpp_3m_sde", {}),
    "dpmpp_3m_sde eta.5": ("sample_dpmpp_3m_sde", {"eta": 0.5}),
    "dpmpp_3m_sde eta0": ("sample_dpmpp_3m_sde", {"eta": 0.0}),
}
"""Case -> function and options; each is read on every grid."""

K_FAST: dict[str, tuple[int, dict[str, Any]]] = {
    f"dpm_fast {n} eta{eta:g}": (n, {"eta": eta}) for n in (4, 5, 6, 8) for eta in (0.0, 1.0)
}


def k_diffusion_sampling(path: str | None = None) -> Any:
    """k-diffusion's sampling module, or None; empty modules stand in for what only its other parts need."""
    if path is None:
        package = importlib.util.find_spec("k_diffusion")
        if package is None or package.origin is None:
            return None
        path = package.origin.replace("__init__.py", "sampling.py")
    absent = [name for name in ("torchdiffeq", "torchsde") if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__["odeint"] = None
    parent, utils = types.ModuleType("k_diffusion_alone"), types.ModuleType("k_diffusion_alone.utils")
    parent.__path__ = []
    utils.__dict__["append_dims"] = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    parent.__dict__["utils"] = utils
    sys.modules[parent.__name__], sys.modules[utils.__name__] = parent, utils
    spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in absent:
        del sys.modules[name]
    return module


def read_k_diffusion(sampling: Any, case: str) -> dict[str, Any]:
    """One case of k-diffusion: `NAME GRID`, or a dpm_fast case."""
    about = {"host": "k-diffusion 0.1.1.post1"}
    if case in K_FAST:
        n, options = K_FAST[case]
        ends = torch.tensor([0.03, 14.6], dtype=torch.float64)
        weights = probe(kd_adapter.host(sampling.sample_dpm_fast, ends[0].item(), ends[1].item(), n, **options))
        options = {"sigma_min": 0.03, "sigma_max": 14.6, "n": n, **options}
        return store.record(weights, sampler="sample_dpm_fast", options=options, steps=ends, last=(1.0, 0.03), **about)
    name, grid = case.rsplit(" ", 1)
    function, options = K_DIFFUSION[name]
    sigmas = torch.tensor(GRIDS[grid], dtype=torch.float64)
    weights = probe(_k_host(getattr(sampling, function), sigmas, options))
    return store.record(weights, sampler=function, options=options, steps=sigmas, last=(1.0, GRIDS[grid][-1]), **about)


def _k_host(sampler: Any, sigmas: Tensor, options: dict[str, Any]) -> Host:
    """As the adapter has it, or with a noise sampler that draws afresh at every call (the field's "cpu" noise)."""
    if options.get("noise_sampler") != "independent":
        return kd_adapter.host(sampler, sigmas, **options)

    def run(script: Script) -> Tensor:
        fresh = {**options, "noise_sampler": lambda *_: script.normal(script.start())}
        return kd_adapter.host(sampler, sigmas, **fresh)(script)

    return run


def k_diffusion_cases() -> list[str]:
    return [f"{name} {grid}" for name in K_DIFFUSION for grid in GRIDS] + list(K_FAST)


def k_diffusion_roster(sampling: Any) -> list[str]:
    return [name for name in dir(sampling) if name.startswith("sample_")]


def write_k_diffusion(path: str | None = None) -> dict[str, Tables]:
    sampling = k_diffusion_sampling(path)
    if sampling is None:
        raise SystemExit(
            "k-diffusion is not installed: pip install --no-deps k-diffusion==0.1.1.post1, or give its sampling.py"
        )
    store.write_roster("k_diffusion", k_diffusion_roster(sampling))
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # dpm_fast makes its levels in the default dtype
    try:
        return {"k_diffusion": {case: read_k_diffusion(sampling, case) for case in k_diffusion_cases()}}
    finally:
        torch.set_default_dtype(dtype)


def identities(weights: Any) -> tuple[float, float]:
    """Alpha and sigma of the sample if the sampler's mean and noise are right (0 where only rounding is left)."""
    first = weights.calls[0]
    alpha = float(weights.start[-1] * first.alpha + weights.outputs[-1].sum())
    variance = float((weights.start[-1] * first.sigma) ** 2 + (weights.noise[-1] ** 2).sum())
    floor = 1e-9 if weights.defect < 1e-12 else 1e-6
    return alpha if abs(alpha - 1) > floor else 1.0, variance**0.5 if variance**0.5 > floor else 0.0


def read_diffusers(name: str) -> dict[str, Any]:
    case = cases_diffusers.CASES[name]
    weights = probe(cases_diffusers.host(case))
    levels = [row.sigma for row in weights.calls]
    scheduler = cases_diffusers.make(case)
    if case.scheduler == "DDPMWuerstchenScheduler":
        last: tuple[float, float] = (0.9999**0.5, 0.0001**0.5)  # it clamps alpha_cumprod
    elif case.scheduler in (
        "LCMScheduler",
        "SCMScheduler",
        "ScoreSdeVpScheduler",
        "CMStochasticIterativeScheduler",
        "KarrasVeScheduler",
    ):
        last = (1.0, 0.0)
    elif hasattr(scheduler, "sigmas"):
        options = {k: v for k, v in case.options.items() if k in ("timesteps", "sigmas")}
        if case.scheduler == "HeliosScheduler" and options:
            options = {"sigmas": np.array(options["sigmas"], dtype=np.float32)}
        scheduler.set_timesteps(**({"num_inference_steps": case.steps} if case.steps else {}), **options)
        last = adapter.end(scheduler) or identities(weights)
    else:
        last = identities(weights)
    return store.record(
        weights, host=f"diffusers {version('diffusers')}", sampler=case.scheduler,
        options={**case.config, **case.options},
        steps=torch.tensor(levels), last=last,
    )  # fmt: skip


def diffusers_roster() -> list[str]:
    """Every scheduler class in the files of diffusers, deprecated ones too, whether it can be imported or not."""
    package = importlib.util.find_spec("diffusers")
    assert package is not None and package.origin is not None
    files = (Path(package.origin).parent / "schedulers").rglob("scheduling_*.py")
    classes = re.compile(r"^class (\w+Scheduler)\(.*SchedulerMixin", re.MULTILINE)
    return sorted(name for file in files for name in classes.findall(file.read_text(encoding="utf-8")))


def write_diffusers() -> dict[str, Tables]:
    store.write_roster("diffusers", diffusers_roster())
    return {"diffusers": {name: read_diffusers(name) for name in cases_diffusers.CASES}}


WRITERS: dict[str, Callable[..., dict[str, Tables]]] = {
    "k_diffusion": write_k_diffusion,
    "diffusers": write_diffusers,
    "reference": references.write,
}
