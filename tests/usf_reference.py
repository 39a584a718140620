"""USF's own sampler and DPM-Solver-v3's, run on test networks where a folder holds their code; and those networks.

FOLDER/uni_sampler.py (codebases/imagenet256/uni_sampler of thu-nics/USF 5b89ef5), uni_sampler_edm.py (the same of
codebases/edm), dpm_solver_v3.py (codebases/edm/samplers of thu-ml/DPM-Solver-v3 ba16871). Everything runs in float64:
their casts to float32 are lifted, and they are given noise schedules of ours in their form.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep import noise as ns
from fewstep.ems import EMS, log_snr_grid
from fewstep.probe import probe
from fewstep.script import Script

FILE = Path(__file__).parent / "usf_outputs.json"
NOISES: dict[str, ns.NoiseSchedule] = {
    "vp": ns.VPLinear(t_min=1e-4), "edm": ns.EDM(), "linear": ns.Discrete.linear(),
    "scaled": ns.Discrete.scaled_linear(),
}  # fmt: skip
SHAPE = (2, 2, 3)
POINTS = 121
MEAN = torch.linspace(-0.4, 0.5, 12, dtype=torch.float64).reshape(SHAPE)


@cache
def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def made_up(noise: ns.NoiseSchedule) -> EMS:
    """Smooth statistics of no network, numbers that float32 holds."""
    lams = log_snr_grid(noise, POINTS)
    at = torch.linspace(0, 1, POINTS, dtype=torch.float64)[:, None, None, None]
    place = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(1, *SHAPE)
    linear = 1 / (1 + torch.exp(6 * at - 3 + place)) + 0.05 * place
    growth = -0.4 + 0.5 * torch.sin(5 * at + 2 * place)
    drift = 0.1 * torch.cos(4 * at - 3 * place)
    return EMS(lams, *(v.float().double() for v in (linear, growth, drift)), noise=noise, rule="nearest")


def denoise(x: Tensor, lam: float) -> Tensor:
    """x0 of a network that depends on state and noise level, and is not linear."""
    width = float(np.exp(-lam))
    return (
        (0.3 + 0.4 / (1 + width)) * torch.tanh(x / (1 + width)) + 0.2 * float(np.sin(lam)) + 0.05 * x / (1 + width**2)
    )


def starts(noise: ns.NoiseSchedule) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64) * noise.sigma(noise.t_max)


class Levels:
    """One of our noise schedules in their form; their time of a discrete network is (index + 1) / N."""

    def __init__(self, noise: ns.NoiseSchedule) -> None:
        self.noise = noise
        self.total_N = len(noise.alphas_cumprod) if isinstance(noise, ns.Discrete) else 1000
        self.T = 1.0

    def ours(self, t: Any) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        return t * self.total_N - 1 if isinstance(self.noise, ns.Discrete) else t

    def theirs(self, t: Tensor) -> Tensor:
        return (t + 1) / self.total_N if isinstance(self.noise, ns.Discrete) else t

    def marginal_log_mean_coeff(self, t: Any) -> Tensor:
        return self.noise.alpha(self.ours(t)).log()

    def marginal_alpha(self, t: Any) -> Tensor:
        return self.noise.alpha(self.ours(t))

    def marginal_std(self, t: Any) -> Tensor:
        return self.noise.sigma(self.ours(t))

    def marginal_lambda(self, t: Any) -> Tensor:
        return self.noise.lam(self.ours(t))

    def inverse_lambda(self, lam: Any) -> Tensor:
        return self.theirs(self.noise.time_of_lam(torch.as_tensor(lam, dtype=torch.float64)))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Their tensors stay in float64, on the CPU."""
    default, cuda, short = torch.get_default_dtype(), torch.Tensor.cuda, torch.FloatTensor
    torch.set_default_dtype(torch.float64)
    torch.Tensor.cuda = lambda self, *_: self  # type: ignore[method-assign]
    torch.FloatTensor = torch.DoubleTensor  # type: ignore[misc]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.cuda, torch.FloatTensor = cuda, short  # type: ignore[method-assign,misc]


def module(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"reference_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.np = SimpleNamespace(**{**vars(np), "float32": np.float64})
    return loaded


@contextlib.contextmanager
def files(ems: EMS) -> Iterator[str]:
    """Statistics and mean image as files of theirs."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "l.npz", l=ems.l.numpy())
        np.savez(Path(folder) / "sb.npz", s=ems.s.numpy(), b=ems.b.numpy())
        torch.save(MEAN, Path(folder) / "average_x0.pth")
        yield folder


def sampler(folder: Path, name: str, model: Any, ems: EMS) -> Any:
    """Their sampler on a noise-prediction model `(x, t)`, with these statistics."""
    noise = NOISES[name]
    levels = Levels(noise)
    loaded = module(folder, "uni_sampler_edm" if name == "edm" else "uni_sampler")
    first, last = (float(levels.theirs(torch.tensor(t, dtype=torch.float64))) for t in (noise.t_max, noise.t_min))
    more = {} if name == "edm" else {"device": "cpu"}
    with files(ems) as place:
        return loaded.uni_sampler(
            model, levels, statistics_dir=place, dpmsolver_v3_t_start=first, dpmsolver_v3_t_end=last,
            average_x0_dir=f"{place}/average_x0.pth", **more,
        )  # fmt: skip


def decisions(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "skip_coefficients"} | {
        "timesteps": torch.tensor(record["timesteps"], dtype=torch.float64)
    }


def table(folder: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Their table of a schedule without v3 steps, by unit impulses (the mean image's weight is the offset)."""
    noise, levels = NOISES[name], Levels(NOISES[name])
    zeros = torch.zeros(POINTS, 1, 1, 1, dtype=torch.float64)
    unused = EMS(log_snr_grid(noise, POINTS), zeros, zeros, zeros)

    def host(script: Script) -> Tensor:
        def model(x: Tensor, t: Tensor) -> Tensor:
            own = levels.ours(t.reshape(-1)[0]).item()
            alpha, sigma = noise.alpha(own).item(), noise.sigma(own).item()
            return (x - alpha * script.output(x, own, alpha, sigma)) / sigma

        theirs = sampler(folder, name, model, unused)
        theirs.average_x0 = torch.ones(1)
        return theirs.sample(script.start(), decisions(record))

    weights = probe(host)
    found = {"start": weights.start.tolist(), "outputs": weights.outputs.tolist(), "offset": weights.offset.tolist()}
    return {"noise": name, "record": record, "told": [row.told for row in weights.calls]} | found


def output(folder: Path, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What their sampler makes of the test network, with the made-up statistics."""
    noise, levels = NOISES[name], Levels(NOISES[name])

    def model(x: Tensor, t: Tensor) -> Tensor:
        own = levels.ours(t.reshape(-1)[0])
        return (x - noise.alpha(own) * denoise(x, noise.lam(own).item())) / noise.sigma(own)

    made = sampler(folder, name, model, made_up(noise)).sample(starts(noise), decisions(record))
    return {"noise": name, "record": record, "output": made.flatten().tolist()}


def third_version(folder: Path, options: dict[str, Any], steps: int, name: str) -> dict[str, Any]:
    """What DPM-Solver-v3's own loop makes of the test network, and its times."""
    noise, levels = NOISES[name], Levels(NOISES[name])

    def model(x: Tensor, t: Tensor) -> Tensor:
        own = levels.ours(t.reshape(-1)[0])
        return (x - noise.alpha(own) * denoise(x, noise.lam(own).item())) / noise.sigma(own)

    with files(made_up(noise)) as place:
        solver = module(folder, "dpm_solver_v3").DPM_Solver_v3(
            place, levels, steps=steps, t_start=noise.t_max, t_end=noise.t_min, device="cpu"
        )
    made = solver.sample(model, starts(noise), lower_order_final=True, **options)
    return {"noise": name, "options": options, "times": solver.timesteps.tolist(), "output": made.flatten().tolist()}


# ------------------------------------------------------------------------------------------ the schedules that are read


def record(times: list[float], rules: list[tuple[Any, ...]], afs: str) -> dict[str, Any]:
    """A record of theirs from `(basis, order, points of the first derivative, relaxation, corrector)` for each step."""
    names = {"N": "noise_prediction", "D": "data_prediction", "V": "dpmsolver_v3_prediction"}
    kinds, correctors = [], []
    for i, (_, order, low, relaxation, corrector) in enumerate(rules):
        full = list(range(-order, -1))
        kinds.append([_entry(full[-low:] if low and k == 0 else full) for k in range(order - 1)])
        if kinds[-1] and relaxation is not None:
            kinds[-1][0] |= (
                {"relaxation": relaxation} if isinstance(relaxation, str)
                else {"relaxation": "linear", "relaxation_coefficient": relaxation}
            )  # fmt: skip
        correctors.append({"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None})
        if corrector and i < len(rules) - 1:
            sets = [[p - 1 for p in entry["active_points"]] + [-1] for entry in kinds[-1]] or []
            sets = [*sets, sets[-1] if sets else [-1]]
            more = {"start_point": -2, "taylor_order": order + 1, "derivative_type": [_entry(s) for s in sets]}
            correctors[-1] = {"type": "pseudo", **more}
    return {
        "timesteps": times, "orders": [r[1] for r in rules], "prediction_types": [names[r[0]] for r in rules],
        "start_points": [-1] * len(rules), "derivative_types": kinds, "corrector_types": correctors, "afs": afs,
    }  # fmt: skip


def _entry(points: list[int]) -> dict[str, Any]:
    return {"estimate": f"Difference_{len(points)}", "active_points": points, "relaxation": None}


def single_step(times: list[float]) -> dict[str, Any]:
    """Blocks of three: from the newest, from one and from two points back, as DPM-Solver-3 goes."""
    n = len(times) - 1
    starts_ = [-(i % 3) - 1 for i in range(n)]
    kinds = [[_entry(list(range(start + 1, 0)))] * (-start - 1) for start in starts_]
    return {
        "timesteps": times, "orders": [-s for s in starts_], "start_points": starts_, "derivative_types": kinds,
        "prediction_types": (["noise_prediction"] * 3 + ["dpmsolver_v3_prediction"] * 3)[:n], "afs": "no_afs",
        "corrector_types": [
            {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}
        ] * n,
    }  # fmt: skip


UNIT = [1.0, 0.83, 0.61, 0.44, 0.29, 0.13, 0.04, 0.002]
EXPLODING = [80.0, 21.0, 7.3, 2.2, 0.71, 0.19, 0.03, 0.003]
MIXED = [("V", 1, 0, None, True), ("N", 2, 0, 0.12, True), ("V", 3, 1, -0.07, True), ("D", 4, 2, None, True),
         ("V", 4, 0, "unipc-bh2", False), ("V", 2, 0, "unipc-bh1", True), ("N", 3, 0, None, False)]  # fmt: skip
PLAIN = [("N", 1, 0, None, True), ("D", 2, 0, -0.2, True), ("N", 3, 1, "0.5exp", False), ("D", 4, 0, "unipc-bh1", True),
         ("D", 3, 1, "-0.5exp", True), ("N", 4, 2, "dpmsolver-2", True), ("D", 2, 0, 0.3, False)]  # fmt: skip
# EDM's zero_x0 gives another x0 to data steps that read the first point, so that none does here.
PLAIN_EDM = [("N", 1, 0, None, True), ("N", 2, 0, -0.2, True), ("N", 3, 1, "0.5exp", False),
             ("D", 3, 0, "unipc-bh1", True), ("D", 3, 1, "-0.5exp", True),
             ("N", 4, 2, "dpmsolver-2", True), ("D", 2, 0, 0.3, False)]  # fmt: skip
FAMILIES = {"cifar10_sde": "vp", "cifar10_edm": "edm", "imagenet256": "linear"}
TABLES = {
    "plain vp": ("vp", record(UNIT, PLAIN, "zero_x0")),
    "plain edm": ("edm", record(EXPLODING, PLAIN_EDM, "zero_x0")),
    "plain linear": ("linear", record(UNIT, PLAIN, "average_x0")),
}
OUTPUTS = {
    "mixed vp": ("vp", record(UNIT, MIXED, "zero_x0")),
    "mixed edm": ("edm", record(EXPLODING, MIXED, "average_x0")),
    "mixed scaled": ("scaled", record(UNIT, MIXED, "no_afs")),
    "single-step vp": ("vp", single_step(UNIT[:-1])),
}
OPTIONS = [
    {"order": order, "p_pseudo": p, "use_corrector": corrector, "c_pseudo": c}
    for order in (1, 2, 3) for p in (False, True) for corrector in (False, True) for c in (False, True)
    if corrector or not c
]  # fmt: skip


def write(folder: Path, released: dict[str, dict[str, Any]]) -> None:
    """The whole file; `released` are schedules of the authors without v3 steps, by name, to be read too."""
    tables = dict(TABLES)
    for name, given in released.items():
        noise = {"cifar10_sde": "vp", "cifar10_edm": "edm", "imagenet256": "linear"}.get(
            name.rsplit("_", 1)[0], "scaled"
        )
        tables[name] = (noise, {k: v for k, v in given.items() if k not in ("score", "compact")})
    with float64():
        found: dict[str, Any] = {
            "tables": {case: table(folder, *given) for case, given in tables.items()},
            "outputs": {case: output(folder, *given) for case, given in OUTPUTS.items()},
            "dpm_solver_v3": [third_version(folder, o, 7, name) for name in ("vp", "edm") for o in OPTIONS],
        }
    lines = [f'"{kind}": {json.dumps(cases, separators=(",", ":"))}' for kind, cases in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
