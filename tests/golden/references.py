"""The authors' own single-file solvers, read where a folder holds them: case -> record.

FOLDER/dpm_solver_pytorch.py, uni_pc.py, sa_solver.py, er_sde_solver.py, uni_sampler.py (USF), and of diff-sampler
solvers.py with solver_utils.py; each straight from its repository.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import NotATable
from fewstep.probe import Host, probe
from fewstep.script import Script

from . import store

GITS = [80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002]
EQUAL = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
SOURCES = {
    "dpm_solver": "LuChengTHU/dpm-solver 52bc3fb",
    "uni_pc": "wl-zhao/UniPC cf9de85",
    "sa_solver": "scxue/SA-Solver 876f3dd",
    "er_sde": "QinpengCui/ER-SDE-Solver 25ca6c2",
    "diff_sampler": "zju-pi/diff-sampler 68d5ce4",
    "usf": "thu-nics/USF 5b89ef5",
}
Found = tuple[str, str, dict[str, Any], Host, Tensor, tuple[float, float]]
"""Case, sampler, options, host, grid, and alpha and sigma of the sample."""


def module(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"reference_{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path.remove(str(folder))


def _answer(script: Script, schedule: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A noise-prediction model on a VP schedule in continuous time."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1)[:1]
        alpha, sigma = float(schedule.marginal_alpha(t)), float(schedule.marginal_std(t))
        return (x - alpha * script.output(x, float(t), alpha, sigma)) / sigma

    return model


def _vp(loaded: Any) -> tuple[Any, tuple[float, float]]:
    """The linear VP schedule (beta 0.1 to 20), and where it is at t = 1e-3."""
    schedule = loaded.NoiseScheduleVP("linear", continuous_beta_0=0.1, continuous_beta_1=20.0)
    end = torch.tensor([1e-3])
    return schedule, (float(schedule.marginal_alpha(end)), float(schedule.marginal_std(end)))


def dpm_solver(folder: Path) -> Iterator[Found]:
    loaded = module(folder, "dpm_solver_pytorch")
    schedule, last = _vp(loaded)
    for algorithm in ("dpmsolver", "dpmsolver++"):
        for method, orders in (("multistep", (1, 2, 3)), ("singlestep", (2, 3))):
            for order in orders:
                for kind in ("dpmsolver", "taylor") if order > 1 else ("dpmsolver",):
                    options = {"steps": 8, "order": order, "method": method, "skip_type": "logSNR", "solver_type": kind}

                    def host(script: Script, algorithm: str = algorithm, options: dict[str, Any] = options) -> Tensor:
                        solver = loaded.DPM_Solver(_answer(script, schedule), schedule, algorithm_type=algorithm)
                        return solver.sample(script.start(), t_start=1.0, t_end=1e-3, **options)

                    yield (
                        f"dpm_solver {method} {algorithm} {order} {kind}",
                        "DPM_Solver",
                        options,
                        host,
                        torch.zeros(0),
                        last,
                    )


def uni_pc(folder: Path) -> Iterator[Found]:
    loaded = module(folder, "uni_pc")
    schedule, last = _vp(loaded)
    for algorithm in ("data_prediction", "noise_prediction"):
        for variant in ("bh1", "bh2", "vary_coeff"):
            for order in (1, 2, 3):
                options = {"steps": 7, "order": order, "skip_type": "time_uniform"}

                def host(
                    script: Script,
                    algorithm: str = algorithm,
                    variant: str = variant,
                    options: dict[str, Any] = options,
                ) -> Tensor:
                    solver = loaded.UniPC(
                        _answer(script, schedule), schedule, algorithm_type=algorithm, variant=variant
                    )
                    return solver.sample(script.start(), t_start=1.0, t_end=1e-3, **options)

                yield (
                    f"uni_pc {variant} {algorithm[:5].strip('_')} {order}",
                    "UniPC",
                    options,
                    host,
                    torch.zeros(0),
                    last,
                )


def sa_solver(folder: Path) -> Iterator[Found]:
    loaded = module(folder, "sa_solver")
    schedule, last = _vp(loaded)
    for algorithm in ("data_prediction", "noise_prediction"):
        for predictor, corrector in ((1, 0), (1, 2), (2, 0), (2, 2), (3, 3), (3, 4), (4, 0)):
            for tau in (0.0, 1.0, 0.6):
                if algorithm == "noise_prediction" and tau == 0.6:
                    continue
                options = {
                    "steps": 7,
                    "predictor_order": predictor,
                    "corrector_order": corrector,
                    "skip_type": "logSNR",
                }

                def host(
                    script: Script, algorithm: str = algorithm, tau: float = tau, options: dict[str, Any] = options
                ) -> Tensor:
                    solver = loaded.SASolver(_answer(script, schedule), schedule, algorithm_type=algorithm)
                    return solver.sample("few_steps", script.start(), lambda t: tau, t_start=1.0, t_end=1e-3, **options)

                name = f"sa_solver {algorithm[:5].strip('_')} {predictor} {corrector} tau{tau:g}"
                yield name, "SASolver", {**options, "tau": tau}, host, torch.zeros(0), last


def er_sde(folder: Path) -> Iterator[Found]:
    loaded = module(folder, "er_sde_solver")
    # It mixes numpy and torch in ways that no longer work: these two calls on torch's side, nothing else changes.
    numpy = loaded.np
    loaded.np = SimpleNamespace(
        **{name: getattr(numpy, name) for name in ("sqrt", "exp", "log10", "float64")},
        arange=lambda n, **_: torch.arange(n),
        sum=lambda v: v.sum() if isinstance(v, Tensor) else numpy.sum(v),
    )
    sigmas = torch.tensor([80.0, 31.0, 9.7, 6.1, 2.2, 1.7, 0.41, 0.06, 0.0])
    alphas = 1 / (1 + torch.tensor([80.0, 31.0, 9.7, 6.1, 2.2, 1.7, 0.41, 0.06]) ** 2).sqrt()
    for order, name in ((1, "1_order"), (2, "2_order_taylor"), (3, "3_order_taylor")):

        def exploding(script: Script, name: str = name) -> Tensor:
            solver = loaded.ER_SDE_Solver("ve", "x_start")
            model = lambda x, t: script.output(x, float(t), 1.0, float(t))  # noqa: E731
            return getattr(solver, f"ve_{name}")(model, script.start(), sigmas, sigmas)

        def preserving(script: Script, name: str = name) -> Tensor:
            solver = loaded.ER_SDE_Solver("vp", "x_start")
            level = sigmas[:-1]

            def model(x: Tensor, t: Tensor) -> Tensor:
                alpha = float(1 / (1 + t**2).sqrt())
                return script.output(x, float(t), alpha, float(t) * alpha)

            return getattr(solver, f"vp_{name}")(model, script.start(), alphas, level * alphas, level)

        yield f"er_sde ve {order}", f"ve_{name}", {}, exploding, sigmas, (1.0, 0.0)
        last = (float(alphas[-1]), float(alphas[-1] * sigmas[-2]))
        yield f"er_sde vp {order}", f"vp_{name}", {}, preserving, sigmas[:-1], last


def diff_sampler(folder: Path) -> Iterator[Found]:
    loaded = module(folder, "solvers")
    utils = module(folder, "solver_utils")
    for grid_name, grid in (("gits", GITS), ("equal", EQUAL)):
        steps = torch.tensor(grid)
        cases: list[tuple[str, str, dict[str, Any]]] = [("euler", "euler_sampler", {}), ("heun", "heun_sampler", {})]
        cases += [("dpm_2", "dpm_2_sampler", {})]
        cases += [(f"ipndm {o}", "ipndm_sampler", {"max_order": o}) for o in (2, 3, 4)]
        cases += [(f"ipndm_v {o}", "ipndm_v_sampler", {"max_order": o}) for o in (2, 3, 4)]
        cases += [(f"dpm_pp noise {o}", "dpm_pp_sampler", {"max_order": o, "predict_x0": False}) for o in (2, 3)]
        cases += [(f"dpm_pp data {o}", "dpm_pp_sampler", {"max_order": o}) for o in (2, 3)]
        cases += [(f"unipc noise {o}", "unipc_sampler", {"max_order": o, "predict_x0": False}) for o in (2, 3)]
        for mode in ("tab", "rhoab"):
            cases += [(f"deis {mode} {o}", "deis_sampler", {"max_order": o, "deis_mode": mode}) for o in (2, 3)]
        for name, function, options in cases:
            if name.startswith("deis tab") and grid_name == "equal":
                continue  # its VP times need sigma_min of 0.002

            def host(
                script: Script, function: str = function, options: dict[str, Any] = options, steps: Tensor = steps
            ) -> Tensor:
                def net(x: Tensor, t: Tensor, *_: Any, **__: Any) -> Tensor:
                    level = float(t.reshape(-1)[0])
                    return script.output(x, level, 1.0, level)

                more = dict(options)
                if "deis_mode" in more:
                    # Its rhoab counts earlier points, its sampler all of them: as it calls itself it fails.
                    order = more["max_order"] - (more["deis_mode"] == "rhoab")
                    more["coeff_list"] = utils.get_deis_coeff_list(steps, order, deis_mode=more["deis_mode"])
                sampler = getattr(loaded, function)
                return sampler(net, script.start() / steps[0], t_steps=steps, num_steps=len(steps), **more)

            yield f"diff_sampler {name} {grid_name}", function, options, host, steps, (1.0, grid[-1])


READERS = {
    "dpm_solver": dpm_solver,
    "uni_pc": uni_pc,
    "sa_solver": sa_solver,
    "er_sde": er_sde,
    "diff_sampler": diff_sampler,
}


def write(folder: str) -> dict[str, dict[str, Any]]:
    """All records, and in rosters.json what was refused, by how much."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    tables: dict[str, Any] = {}
    refused: list[str] = []
    try:
        for source, reader in READERS.items():
            for case, sampler, options, host, steps, last in reader(Path(folder)):
                try:
                    weights = probe(host)
                except NotATable as error:
                    refused.append(f"{case}: row {error.row} off by {error.defect:.3g}")
                    continue
                about = {"host": SOURCES[source], "sampler": sampler, "options": options}
                tables[case] = store.record(weights, steps=steps, last=last, **about)
    finally:
        torch.set_default_dtype(dtype)
    store.write_roster("refused", refused)
    return {"reference": tables}
