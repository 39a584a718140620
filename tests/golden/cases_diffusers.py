"""The diffusers schedulers that are read: case -> class, configuration, steps, options. And how odd ones are driven."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.adapters import diffusers as adapter
from fewstep.probe import Host
from fewstep.script import Script

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = {**SD, "use_karras_sigmas": True}
STOPS = {**SD, "final_sigmas_type": "sigma_min"}  # not with Karras sigmas: their last one would come twice
PLAIN = {**SD, "clip_sample": False}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}


@dataclass(frozen=True)
class Case:
    """One way to run one class."""

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    steps: int | None = 7
    options: dict[str, Any] = field(default_factory=dict)
    drive: str = ""


def _multistep() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"):
        for order in (1, 2, 3) if not algorithm.startswith("sde-dpmsolver ") else (1, 2):
            if algorithm == "sde-dpmsolver" and order == 3:
                continue
            grid = STOPS if algorithm in ("dpmsolver", "sde-dpmsolver") else KARRAS
            config = {**grid, "algorithm_type": algorithm, "solver_order": order}
            cases[f"dpm_multistep {algorithm} {order}"] = Case("DPMSolverMultistepScheduler", config)
            if order == 2:
                config = {**config, "solver_type": "heun"}
                cases[f"dpm_multistep {algorithm} 2 heun"] = Case("DPMSolverMultistepScheduler", config)
    more = {
        "20 steps": Case("DPMSolverMultistepScheduler", {**KARRAS, "solver_order": 2}, steps=20),
        "3 20 steps": Case("DPMSolverMultistepScheduler", {**KARRAS, "solver_order": 3}, steps=20),
        "v": Case("DPMSolverMultistepScheduler", {**KARRAS, "prediction_type": "v_prediction"}),
        "x0": Case("DPMSolverMultistepScheduler", {**KARRAS, "prediction_type": "sample"}),
        "lu": Case("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}),
        "to sigma_min": Case("DPMSolverMultistepScheduler", {**STOPS, "solver_order": 3}),
        "euler_at_final": Case("DPMSolverMultistepScheduler", {**KARRAS, "euler_at_final": True}),
        "flow": Case("DPMSolverMultistepScheduler", FLOW),
        "timesteps": Case(
            "DPMSolverMultistepScheduler",
            SD,
            steps=None,
            options={"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]},
        ),
    }
    return cases | {f"dpm_multistep {name}": case for name, case in more.items()}


def _singlestep() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for algorithm, grid in (("dpmsolver++", KARRAS), ("dpmsolver", STOPS), ("sde-dpmsolver++", KARRAS)):
        for order in (1, 2, 3) if algorithm != "sde-dpmsolver++" else (1, 2):
            config = {**grid, "algorithm_type": algorithm, "solver_order": order, "lower_order_final": True}
            cases[f"dpm_singlestep {algorithm} {order}"] = Case("DPMSolverSinglestepScheduler", config)
    heun = {**KARRAS, "solver_type": "heun", "solver_order": 2, "lower_order_final": True}
    return cases | {"dpm_singlestep heun": Case("DPMSolverSinglestepScheduler", heun)}


def _unipc() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for variant in ("bh1", "bh2"):
        for predict_x0 in (True, False):
            for order in (1, 2, 3, 4):
                grid = KARRAS if predict_x0 and variant == "bh2" else STOPS  # bh1 onto sigma = 0 is 0/0 there
                config = {**grid, "solver_type": variant, "predict_x0": predict_x0, "solver_order": order}
                cases[f"unipc {variant} {'data' if predict_x0 else 'noise'} {order}"] = Case(
                    "UniPCMultistepScheduler", config
                )
    off = {**KARRAS, "solver_order": 3, "disable_corrector": [0, 1, 2, 3, 4, 5, 6, 7]}
    more = {
        "v": Case("UniPCMultistepScheduler", {**KARRAS, "prediction_type": "v_prediction"}),
        "flow": Case("UniPCMultistepScheduler", FLOW),
        "predictor only": Case("UniPCMultistepScheduler", off),
        "to sigma_min": Case("UniPCMultistepScheduler", {**STOPS, "solver_order": 3}),
        "all orders": Case("UniPCMultistepScheduler", {**STOPS, "solver_order": 3, "lower_order_final": False}),
    }
    return cases | {f"unipc {name}": case for name, case in more.items()}


def _sa() -> dict[str, Case]:
    cases = {
        f"sa {algorithm.split('_')[0]} {p} {c}": Case(
            "SASolverScheduler", {**SD, "algorithm_type": algorithm, "predictor_order": p, "corrector_order": c}
        )
        for algorithm in ("data_prediction", "noise_prediction")
        for p, c in ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (3, 4), (4, 4))
    }
    return cases | {
        "sa ode 3 3": Case("SASolverScheduler", {**SD, "predictor_order": 3, "corrector_order": 3}, drive="tau=0")
    }


CASES: dict[str, Case] = {
    "ddim": Case("DDIMScheduler", PLAIN),
    "ddim eta1": Case("DDIMScheduler", PLAIN, options={"eta": 1.0}),
    "ddim eta.4": Case("DDIMScheduler", PLAIN, options={"eta": 0.4}),
    "ddim v": Case("DDIMScheduler", {**PLAIN, "prediction_type": "v_prediction"}),
    "ddim x0": Case("DDIMScheduler", {**PLAIN, "prediction_type": "sample"}),
    "ddim zero_snr": Case(
        "DDIMScheduler",
        {**PLAIN, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        steps=8,
    ),
    "ddim stops": Case("DDIMScheduler", {**PLAIN, "set_alpha_to_one": False, "timestep_spacing": "trailing"}, steps=8),
    "ddim trailing 7": Case("DDIMScheduler", {**PLAIN, "timestep_spacing": "trailing"}),
    "ddim_parallel eta.4": Case("DDIMParallelScheduler", PLAIN, options={"eta": 0.4}),
    "cogvideox_ddim": Case("CogVideoXDDIMScheduler", {"clip_sample": False}),
    "cogvideox_dpm": Case("CogVideoXDPMScheduler", {"clip_sample": False}, drive="cogvideox"),
    "ddpm": Case("DDPMScheduler", PLAIN),
    "ddpm v": Case("DDPMScheduler", {**PLAIN, "prediction_type": "v_prediction"}),
    "ddpm large": Case("DDPMScheduler", {**PLAIN, "variance_type": "fixed_large"}),
    "ddpm_parallel": Case("DDPMParallelScheduler", PLAIN),
    "ddpm_wuerstchen": Case("DDPMWuerstchenScheduler", drive="wuerstchen"),
    "unclip": Case("UnCLIPScheduler", {"clip_sample": False}, drive="unclip"),
    **{f"deis {o}": Case("DEISMultistepScheduler", {**SD, "solver_order": o}) for o in (1, 2, 3)},
    **_multistep(),
    **_singlestep(),
    **_unipc(),
    **_sa(),
    "dpm_sde": Case("DPMSolverSDEScheduler", KARRAS),
    "dpm_sde v": Case("DPMSolverSDEScheduler", {**KARRAS, "prediction_type": "v_prediction"}),
    "edm_dpm 2": Case("EDMDPMSolverMultistepScheduler"),
    "edm_dpm 3": Case("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "sigma_schedule": "exponential"}),
    "edm_dpm sde": Case("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "edm_dpm v": Case("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "edm_euler": Case("EDMEulerScheduler"),
    "edm_euler churn": Case("EDMEulerScheduler", options={"s_churn": 2.5, "s_noise": 1.0}),
    "cosine_dpm": Case("CosineDPMSolverMultistepScheduler"),
    "cosine_dpm 1": Case("CosineDPMSolverMultistepScheduler", {"solver_order": 1}),
    "euler": Case("EulerDiscreteScheduler", SD),
    "euler sigmas": Case(
        "EulerDiscreteScheduler", SD, steps=None, options={"sigmas": [14.6, 6.478, 2.602, 0.9116, 0.2645, 0.0]}
    ),
    "euler v": Case("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}),
    "euler churn": Case("EulerDiscreteScheduler", KARRAS, options={"s_churn": 2.5, "s_noise": 1.0}),
    "euler_ancestral": Case("EulerAncestralDiscreteScheduler", SD),
    "heun": Case("HeunDiscreteScheduler", KARRAS),
    "heun v": Case("HeunDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}),
    "kdpm2": Case("KDPM2DiscreteScheduler", KARRAS),
    "kdpm2_ancestral": Case("KDPM2AncestralDiscreteScheduler", KARRAS),
    "lms": Case("LMSDiscreteScheduler", KARRAS),
    "lms 2": Case("LMSDiscreteScheduler", SD, options={"order": 2}),
    "ipndm": Case("IPNDMScheduler"),
    "ipndm trained": Case("IPNDMScheduler", {"trained_betas": [0.995, 0.9, 0.75, 0.55, 0.3, 0.1, 0.02, 0.0]}),
    "pndm": Case("PNDMScheduler", SD, steps=12),
    "pndm plms": Case("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    "flow_euler": Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow_euler stochastic": Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}),
    "flow_euler sigmas": Case(
        "FlowMatchEulerDiscreteScheduler", {}, steps=None, options={"sigmas": [1.0, 0.8, 0.5, 0.2]}
    ),
    "flow_heun": Case("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow_lcm": Case("FlowMatchLCMScheduler", {"shift": 3.0}),
    "flow_map": Case("FlowMapEulerDiscreteScheduler", {"shift": 5.0}),
    "ltx_ancestral": Case("LTXEulerAncestralRFScheduler", {"eta": 0.6}),
    "minimax": Case(
        "MiniMaxH3Scheduler",
    ),
    "helios euler": Case("HeliosScheduler", {"scheduler_type": "euler", "stages": 1}),
    "helios unipc": Case(
        "HeliosScheduler",
        {"scheduler_type": "unipc", "stages": 1},
        6,
        {"sigmas": [0.99, 0.9, 0.75, 0.5, 0.3, 0.1, 0.02]},
    ),
    "helios unipc pure": Case("HeliosScheduler", {"scheduler_type": "unipc", "stages": 1}),
    "lcm": Case("LCMScheduler", {}),
    "tcd": Case("TCDScheduler", {**SD, "clip_sample": False}, options={"eta": 0.3}),
    "scm": Case("SCMScheduler", steps=2, drive="scm"),
    "cm": Case("CMStochasticIterativeScheduler", {"clip_denoised": False}, drive="cm"),
    "karras_ve": Case("KarrasVeScheduler", {"s_churn": 2.5, "s_noise": 1.0}, drive="karras_ve"),
    "score_sde_vp": Case("ScoreSdeVpScheduler", drive="score_sde_vp"),
}
for _name in ("ddim", "euler", "lms", "heun", "dpm_multistep dpmsolver++ 2", "unipc bh2 data 2", "edm_dpm 2"):
    """As the host runs it, float32 tables and all; everything else has its tables raised to float64 first."""
    CASES[f"{_name} float32"] = Case(
        CASES[_name].scheduler, CASES[_name].config, CASES[_name].steps, {**CASES[_name].options}, "float32"
    )


def make(case: Case) -> Any:
    """The scheduler of a case (imports diffusers)."""
    import diffusers.schedulers as schedulers
    from diffusers.utils import logging

    logging.set_verbosity_error()
    if case.scheduler in ("ScoreSdeVpScheduler", "KarrasVeScheduler"):
        from diffusers.schedulers.deprecated import scheduling_karras_ve, scheduling_sde_vp

        module = scheduling_sde_vp if case.scheduler == "ScoreSdeVpScheduler" else scheduling_karras_ve
        return getattr(module, case.scheduler)(**case.config)
    config = dict(case.config)
    if case.drive == "tau=0":
        config["tau_func"] = lambda t: 0.0
    return getattr(schedulers, case.scheduler)(**config)


def host(case: Case) -> Host:
    """The case as a host for `probe`."""
    scheduler = make(case)
    custom = {
        "cogvideox": cogvideox,
        "karras_ve": karras_ve,
        "score_sde_vp": score_sde_vp,
        "wuerstchen": wuerstchen,
        "unclip": unclip,
        "scm": scm,
        "cm": cm,
    }
    if case.drive in custom:
        return custom[case.drive](scheduler, case)
    options: dict[str, Any] = dict(case.options)
    if case.scheduler == "HeliosScheduler" and "sigmas" in options:
        options["sigmas"] = np.array(options["sigmas"], dtype=np.float32)
    return adapter.host(scheduler, case.steps, exact=case.drive != "float32", **options)


def _copied(scheduler: Any) -> Any:
    own = copy.deepcopy(scheduler)
    adapter.upcast(own)
    return own


def cogvideox(scheduler: Any, case: Case) -> Host:
    """As CogVideoXPipeline calls it: with the earlier x0 and the earlier timestep."""

    def run(script: Script) -> Tensor:
        own = _copied(scheduler)
        own.set_timesteps(case.steps)
        state, before = script.start(), None
        for i, t in enumerate(own.timesteps):
            alpha, sigma = adapter.place(own, t)
            x0 = script.output(state, float(t), alpha, sigma)
            back = own.timesteps[i - 1] if i > 0 else None
            out = adapter.encode(own, "epsilon", state, x0, alpha, sigma)
            state, before = own.step(out, before, t, back, state, return_dict=False)
        return state

    return run


def wuerstchen(scheduler: Any, case: Case) -> Host:
    def run(script: Script) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(case.steps)
        own.timesteps, own.s, own._init_alpha_cumprod = (
            own.timesteps.double(),
            own.s.double(),
            own._init_alpha_cumprod.double(),
        )
        state = script.start()
        for t in own.timesteps[:-1]:
            bar = float(own._alpha_cumprod(t[None], "cpu"))
            alpha, sigma = bar**0.5, (1 - bar) ** 0.5
            x0 = script.output(state, float(t), alpha, sigma)
            state = own.step((state - alpha * x0) / sigma, t[None], state, return_dict=False)[0]
        return state

    return run


def unclip(scheduler: Any, case: Case) -> Host:
    """As the UnCLIP pipelines call it: with the next timestep."""

    def run(script: Script) -> Tensor:
        own = _copied(scheduler)
        own.set_timesteps(case.steps)
        state = script.start()
        for i, t in enumerate(own.timesteps):
            alpha, sigma = adapter.place(own, t)
            x0 = script.output(state, float(t), alpha, sigma)
            following = own.timesteps[i + 1] if i + 1 < len(own.timesteps) else None
            state = own.step(
                adapter.encode(own, "epsilon", state, x0, alpha, sigma),
                t,
                state,
                prev_timestep=following,
                return_dict=False,
            )[0]
        return state

    return run


def scm(scheduler: Any, case: Case) -> Host:
    """TrigFlow: x = cos(t) x0 + sin(t) eps, the velocity cos(t) eps - sin(t) x0; the last x0 is the sample."""

    def run(script: Script) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(case.steps)
        own.timesteps = own.timesteps.double()
        state, x0 = script.start(), script.start()
        for t in own.timesteps[:-1]:
            cos, sin = float(torch.cos(t)), float(torch.sin(t))
            wanted = script.output(state, float(t), cos, sin * own.config.sigma_data)
            state, x0 = own.step((cos * state - wanted) / sin, t, state, return_dict=False)
        return x0

    return run


def cm(scheduler: Any, case: Case) -> Host:
    """The network's x0 is taken to be what the class makes of its output (the consistency function)."""

    def run(script: Script) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(case.steps)
        adapter.upcast(own)
        state = script.start()
        for t in own.timesteps:
            own.scale_model_input(state, t)
            level = own.sigmas[own.step_index]
            x0 = script.output(state, float(t), 1.0, float(level))
            skip, out = own.get_scalings_for_boundary_condition(level)
            state = own.step((x0 - skip * state) / out, t, state, return_dict=False)[0]
        return state

    return run


def karras_ve(scheduler: Any, case: Case) -> Host:
    """As KarrasVePipeline calls it (its schedule holds squares; the pipeline takes them as they are)."""

    def run(script: Script) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(case.steps)
        own.schedule = own.schedule.double()
        state = script.start()
        for t in own.timesteps:
            sigma = own.schedule[t]
            following = own.schedule[t - 1] if t > 0 else torch.zeros((), dtype=torch.float64)
            hat, high = own.add_noise_to_input(state, sigma)
            x0 = script.output(hat, float(high), 1.0, float(high))
            state, derivative = own.step((x0 - hat) / high, high, following, hat, return_dict=False)
            if following != 0:
                x0 = script.output(state, float(following), 1.0, float(following))
                state, _ = own.step_correct(
                    (x0 - state) / following, high, following, hat, state, derivative, return_dict=False
                )
        return state

    return run


def score_sde_vp(scheduler: Any, case: Case) -> Host:
    """As ScoreSdeVpPipeline calls it; the mean of the last step is the sample."""

    def run(script: Script) -> Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(case.steps)
        state = mean = script.start()
        for t in own.timesteps.double():
            log_mean = float(-0.25 * t**2 * (own.config.beta_max - own.config.beta_min) - 0.5 * t * own.config.beta_min)
            alpha = float(torch.tensor(log_mean, dtype=torch.float64).exp())
            sigma = (1 - alpha**2) ** 0.5
            x0 = script.output(state, float(t), alpha, sigma)
            state, mean = own.step_pred((state - alpha * x0) / sigma, state, t[None])
        return mean

    return run
