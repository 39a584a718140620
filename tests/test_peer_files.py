"""Result files of other projects: written as their code writes them, read, and replayed against their step formulas."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fewstep as fs
from fewstep import noise as ns
from fewstep import problems
from fewstep.cli import app
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.peers.held import contents, parameters
from tests import peer_formulas as formulas
from tests.edm_networks import EasyDict, Persistent, their_modules

EXACT = 1e-9
SD = ns.Discrete.scaled_linear()
SNAPSHOTS = os.environ.get("FEWSTEP_PEER_FILES")
"""A folder with clones of the authors' repositories, whose files have no licence and are not here."""
FIVE = {  # MCG-NJU/NeuralSolver, src/diffusion/flow_matching/ns_sampling.py, MIT
    "timedeltas": [0.0521, 0.1475, 0.2114, 0.2797, 0.3092],
    "coeffs": [[0.0] * 5, [-1.26, 0, 0, 0, 0], [1.38, -2.26, 0, 0, 0], [0, 0, -0.92, 0, 0], [0, 0, 0, -0.70, 0]],
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(noise: ns.NoiseSchedule) -> Any:
    """An analytic network in float64, called as `(x, t)`."""
    return problems.get("mixture_1d", noise).denoiser(dtype=torch.float64)


def replayed(table: fs.Tableau, z: Tensor, draws: list[Tensor] | None = None) -> Tensor:
    """Our sample from unit noise, accumulated in float64."""
    model = network(table.noise)
    noise = None if draws is None else draws.__getitem__
    return fs.sample(model, table, start=z * table.sigma[0].item(), noise=noise, accumulate=torch.float64)


def close(ours: Tensor, theirs: Tensor, tolerance: float = EXACT) -> None:
    assert torch.isfinite(theirs).all() and theirs.std() > 1e-3
    assert ((ours - theirs).abs() / theirs.abs().clamp_min(1)).max() < tolerance


# ------------------------------------------------------------------------------- files as the authors' code writes them
def solver(name: str) -> Any:
    """A function of their module `solvers`, by name."""

    def function() -> None:
        raise AssertionError("only its name is for the pickle")

    function.__name__ = function.__qualname__ = name
    function.__module__ = "solvers"
    return function


def snapshot(path: Path, class_name: str, params: dict[str, Tensor], said: dict[str, Any], **more: Any) -> Path:
    """A network-snapshot-*.pkl: the predictor and the loss, as their persistent classes are pickled."""
    key, buffers, loss = more.get("key", "model"), more.get("buffers", {}), more.get("loss", {})
    state = {
        "training": False, "_parameters": {k: nn.Parameter(v.float()) for k, v in params.items()},
        "_buffers": {k: v.float() for k, v in buffers.items()}, "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(), "_modules": {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(dim=-1)},
        **said, "_init_args": (), "_init_kwargs": EasyDict(said),
    }  # fmt: skip
    function = solver(f"{said.get('sampler_stu', 'dyweight')}_sampler")
    kept = {"solver_stu": function, "sigma_min": 0.002, "sigma_max": 80.0, **loss}
    module = ModuleType("solvers")
    vars(module)[function.__name__] = function
    held = {key: Persistent(class_name, state), "loss_fn": Persistent("a_loss", kept), **more.get("held", {})}
    with their_modules(), path.open("wb") as file:
        sys.modules["solvers"] = module
        try:
            pickle.dump(held, file)
        finally:
            del sys.modules["solvers"]
    return path


def dyweight_file(tmp_path: Path, n: int = 4, **more: Any) -> tuple[Path, Tensor, Tensor]:
    """Three slopes a row; weights beyond the mask must not count."""
    W = torch.eye(n, dtype=torch.float64) + 0.2 * randn(n, n, seed=n)
    mask = torch.tensor([[float(0 <= i - j <= 2) for j in range(n)] for i in range(n)])
    W = W / (W * mask).sum(1, keepdim=True) * torch.linspace(0.9, 0.98, n)[:, None]
    scale = 1 + 0.1 * randn(n - 1, seed=9)
    loss = {"schedule_type": "polynomial", "schedule_rho": 7.0, "dataset_name": "cifar10", "t_steps": None}
    path = snapshot(
        tmp_path / "network-snapshot-000010.pkl", "DyWeight_predictor", {"hybrid_weights": W, "t_scale": scale},
        {"num_steps": n + 1, "afs": True, "max_history_steps": 3, "guidance_rate": 0.0}, key="predictor",
        buffers={"mask": mask}, loss=loss | more,
    )  # fmt: skip
    return path, (W * mask).float().double(), scale.float().double()


def epd_file(tmp_path: Path, steps: int = 3, points: int = 2, **said: Any) -> tuple[Path, dict[str, Tensor], Any]:
    sde = said.get("class_name") == "adasde_predictor"
    names = ["r_params", "scale_dir_params", "scale_time_params", "weight_s"] + ["gamma_params"] * sde
    params = {name: randn(steps, points, seed=k) for k, name in enumerate(names)}
    said = {
        "num_steps": steps + 1, "num_points": points, "sampler_stu": "epd", "schedule_type": "time_uniform",
        "schedule_rho": 1.0, "afs": True, "scale_dir": 0.05, "scale_time": 0.2, "fcn": False, "max_order": 3,
        "dataset_name": "cifar10", **said,
    }  # fmt: skip
    name, grid = said.pop("class_name", "EPD_predictor"), said.pop("t_steps", None)
    loss = {} if grid is None else {"t_steps": torch.tensor(grid)}
    path = snapshot(tmp_path / f"{name}.pkl", name, params, said, loss=loss)
    return path, {k: v.float().double() for k, v in params.items()}, said


def gas_file(tmp_path: Path, n: int, order: int) -> tuple[Path, list[Tensor]]:
    """A checkpoint of their training loop; the averaged parameters are not the last ones."""
    sizes = [n - 1, n] + [n] * (2 * order)
    shadow = [0.03 * randn(size, seed=k).float() for k, size in enumerate(sizes)]
    shadow[1] = 0.1 * shadow[1]
    last = [nn.Parameter(p + 1) for p in shadow]
    optim = torch.optim.Adam(last)
    sum(p.sum() for p in last).backward()
    optim.step()
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow, "collected_params": []}
    path = tmp_path / "10000.pt"
    torch.save({"ema": ema, "model": last, "optim": optim.state_dict(), "step": 10000}, path)
    return path, [p.double() for p in shadow]


def ld3_file(tmp_path: Path, t: list[float], told: list[float]) -> Path:
    n = len(t)
    held = {"params1": torch.ones(n), "params2": torch.zeros(n), "best_t_steps": torch.tensor(t + told).double()}
    torch.save(held, tmp_path / "best_v2.pt")
    return tmp_path / "best_v2.pt"


# ------------------------------------------------------------------------------------------------ DyWeight, EPD, AdaSDE
def polynomial(n: int, low: float = 0.002, high: float = 80.0) -> list[float]:
    return [(high ** (1 / 7) + i / n * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n + 1)]


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("noise", [None, SD], ids=["edm", "sd"])
def test_dyweight(tmp_path: Path, n: int, noise: ns.NoiseSchedule | None) -> None:
    path, W, scale = dyweight_file(tmp_path, n)
    table = fs.from_peer(path, noise)
    assert table.nfe == n - 1 and not table.evaluated[0] and table.meta["peer"]["dataset"] == "cifar10"
    grid, z = polynomial(n), randn(16, 1, seed=3)
    net = formulas.in_sigma(network(table.noise), table.noise)
    theirs = formulas.dyweight(net, grid[0] * z, grid, W, scale, afs=True)
    # The sample is in the network's own states; theirs is divided by alpha.
    close(replayed(table, z) / table.alpha[-1], theirs)
    chosen = fs.from_peer(path, noise, sigmas=polynomial(n, 0.1, 50.0))
    again = fs.from_peer(path, noise, sigma_min=0.1, sigma_max=50.0)
    assert chosen.isclose(again) and not chosen.isclose(table)


def test_dyweight_for_flux(tmp_path: Path) -> None:
    W, scale = torch.eye(3) + 0.1 * randn(3, 3).tril().float(), torch.tensor([1.02, 0.98, 0.99])
    path = tmp_path / "dyweight_nfe3.pt"
    meta = {"K": 3, "tscale_low": 0.5, "tscale_high": 1.5}
    torch.save({"window_size": 2, "dyweight_weights_raw": W, "dyweight_t_scales": scale, "dyweight_meta": meta}, path)
    table = fs.from_peer(path, shift=3.0)
    even = [1.0, 2 / 3, 1 / 3]
    sigmas = [*(3 * s / (1 + 2 * s) for s in even), 0.0]
    assert fs.from_peer(path, sigmas=sigmas).isclose(table)
    model, z = network(ns.Flow()), randn(16, 1)
    velocity = lambda x, t: (x - model(x, t)) / t  # noqa: E731
    close(replayed(table, z), formulas.dyweight_flux(velocity, z, sigmas, W.double(), scale.double()))
    with pytest.raises(ArgumentError, match=r"shift=.*3\.158.*all 4 as sigmas"):
        fs.from_peer(path)


GRID = [80.0, 7.0, 1.3, 0.002]


@pytest.mark.parametrize(
    ("points", "noise", "said"),
    [
        (2, None, {}),
        (1, None, {"scale_dir": 0.0, "scale_time": 0.0, "afs": False}),
        (2, SD, {"fcn": True}),
        (3, None, {"sampler_stu": "ipndm"}),
        (2, SD, {"sampler_stu": "ipndm", "max_order": 4, "afs": False}),
    ],
)
def test_epd(tmp_path: Path, points: int, noise: ns.NoiseSchedule | None, said: dict[str, Any]) -> None:
    """Times as the snapshot keeps them; every real call counts."""
    path, params, whole = epd_file(tmp_path, 3, points, t_steps=GRID, **said)
    table = fs.from_peer(path, noise)
    assert table.nfe == 3 * (1 + points) - whole["afs"]
    grid = torch.tensor(GRID).tolist()
    z = randn(16, 1, seed=1)
    net = formulas.in_sigma(network(table.noise), table.noise)
    close(replayed(table, z) / table.alpha[-1], formulas.epd(net, grid[0] * z, grid, params, whole))


def test_epd_of_flow_matching(tmp_path: Path) -> None:
    """EPD-Solver++'s for FLUX: the file says how its pipeline's scheduler shifts times."""
    config = {"sigma_min": 0.001, "sigma_max": 1.0, "flowmatch_mu": 1.15, "flowmatch_shift": 3.0}
    said = {"schedule_type": "flowmatch", "afs": False, "scale_dir": 0.0, "dataset_name": "ms_coco"}
    path, params, whole = epd_file(tmp_path, 3, 2, **said, backend="flux", backend_config=config)
    table = fs.from_peer(path)
    shift = math.exp(1.15)
    even = [1 + i / 3 * (0.001 - 1) for i in range(4)]
    grid = [shift * s / (1 + (shift - 1) * s) for s in even]
    assert table.noise == ns.Flow() and table.times[[0, -1]].tolist() == pytest.approx([grid[0], grid[-1]])
    z = randn(16, 1)
    close(replayed(table, z), formulas.epd(network(ns.Flow()), z, grid, params, whole))
    path, *_ = epd_file(tmp_path, 3, 2, **said, backend="sd3", backend_config={"sigma_min": 0.003})
    with pytest.raises(ArgumentError, match="shift="):
        fs.from_peer(path)
    assert fs.from_peer(path, shift=3.0).times[-1].item() == pytest.approx(3 * 0.003 / (1 + 2 * 0.003))


@pytest.mark.parametrize(("gamma", "noise"), [(0.02, None), (0.01, SD), (0.0, None)])
def test_adasde(tmp_path: Path, gamma: float, noise: ns.NoiseSchedule | None) -> None:
    """Noise before every step but the first, which is free here."""
    said = {"class_name": "adasde_predictor", "sampler_stu": "adasde", "gamma": gamma, "gamma_min": 1e-4}
    path, params, whole = epd_file(tmp_path, 3, 1, **said, t_steps=GRID)
    table = fs.from_peer(path, noise)
    assert table.nfe == 5 and table.C.shape[1] == (2 if gamma else 0)
    draws, z, grid = [randn(16, 1, seed=k) for k in (7, 8)], randn(16, 1), torch.tensor(GRID).tolist()
    net = formulas.in_sigma(network(table.noise), table.noise)
    theirs = formulas.epd(net, grid[0] * z, grid, params, whole, iter(draws))
    close(replayed(table, z, draws) / table.alpha[-1], theirs)


@pytest.mark.parametrize("kind", ["polynomial", "logsnr", "time_uniform", "discrete"])
def test_times_of_a_snapshot(tmp_path: Path, kind: str) -> None:
    """Where a snapshot keeps no times, they are made; published values."""
    path, *_ = epd_file(
        tmp_path, 3, 1, schedule_type=kind, afs=False, schedule_rho=7.0 if kind == "polynomial" else 1.0
    )
    if kind == "discrete":
        with pytest.raises(ArgumentError, match="indices"):
            fs.from_peer(path)
        table = fs.from_peer(path, SD)
        levels = [SD.ratio(t).item() for t in (999.0, 666.0, 333.0, 0.0)]
    else:
        table = fs.from_peer(path)
        levels = {
            "polynomial": [80.0, 9.723201, 0.469979, 0.002],
            "time_uniform": [80.0, 6.950235, 1.286669, 0.002],
            "logsnr": [80.0, 80.0 ** (2 / 3) * 0.002 ** (1 / 3), 80.0 ** (1 / 3) * 0.002 ** (2 / 3), 0.002],
        }[kind]
    found = (table.sigma / table.alpha)[[i for i in range(table.rows) if i % 2 == 0]]
    assert found.tolist() == pytest.approx(levels, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- GS and GAS
@pytest.mark.parametrize(("n", "order"), [(4, 4), (6, 6), (5, 3)])
def test_gas_on_edm_networks(tmp_path: Path, n: int, order: int) -> None:
    """Its states are variance preserving: the network is given them at t + xi, its noise is read at t."""
    path, (logits, xi, *rest) = gas_file(tmp_path, n, order)
    table = fs.from_peer(path, ns.EDM())
    beta_d, beta_min = formulas.vp_fit(ns.VPLinear().ratio(1e-3).item(), 80.0, 1e-3)

    def levels(t: float) -> tuple[float, float]:
        alpha = math.exp(-0.25 * t**2 * beta_d - 0.5 * t * beta_min)
        return alpha, math.sqrt(1 - alpha**2)

    model, z = network(ns.EDM()), randn(16, 1)

    def noise(x: Tensor, t: float) -> Tensor:
        alpha, sigma = levels(t)
        return (x - alpha * model(x / alpha, sigma / alpha)) / sigma

    t = sticks(logits, 1e-3)
    theirs = formulas.gs(noise, z, t, xi, rest[::2], rest[1::2], levels)
    assert table.nfe == n
    close(replayed(table, z) * levels(1e-3)[0], theirs)
    assert not fs.from_peer(path, ns.EDM(), ema=False).isclose(table)


def test_gas_on_discrete_networks(tmp_path: Path) -> None:
    path, (logits, xi, *rest) = gas_file(tmp_path, 5, 5)
    table = fs.from_peer(path, SD)
    levels = lambda t: (SD.alpha(1000 * t - 1).item(), SD.sigma(1000 * t - 1).item())  # noqa: E731
    eps, z = formulas.noise_of(network(SD), SD), randn(16, 1)
    noise = lambda x, t: eps(x, 1000 * t - 1)  # noqa: E731
    close(replayed(table, z), formulas.gs(noise, z, sticks(logits, 1e-3), xi, rest[::2], rest[1::2], levels))


def sticks(logits: Tensor, eps: float) -> list[float]:
    mu = logits.sigmoid() * (1 - 2e-5) + 1e-5
    inner = (1 - mu.cumprod(0)) * (1 - eps) + eps
    return [1.0, *inner.flip(0).tolist(), eps]


# --------------------------------------------------------------------------------------------------------- NeuralSolver
def neural_files(tmp_path: Path) -> list[Path]:
    """The module with the printed table, the same as JSON, and a checkpoint that holds a network beside it."""
    other = dict(FIVE, timedeltas=[0.25] * 4, coeffs=[[0.0] * 4] * 4)
    text = f"import torch\nFM_DATA = dict(\n    step5=dict(timedeltas={FIVE['timedeltas']}, coeffs={FIVE['coeffs']}),\n"
    text += f"    step4=dict(timedeltas={other['timedeltas']}, coeffs={other['coeffs']}))\nraise SystemExit(1)\n"
    (tmp_path / "ns_sampling.py").write_text(text)
    (tmp_path / "stats.json").write_text(json.dumps(FIVE))
    raw = {
        f"source_sampler._raw_{k}": torch.tensor(FIVE[v])
        for k, v in (("timedeltas", "timedeltas"), ("solver_coeffs", "coeffs"))
    }
    raw["source_sampler._raw_solver_coeffs"][3, 0] = 9.0  # not used by their training with so few steps
    state = OrderedDict(raw) | {"eval_denoiser.weight": torch.zeros(4, dtype=torch.bfloat16)}
    torch.save({"epoch": 19, "state_dict": state, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    return [tmp_path / name for name in ("ns_sampling.py", "stats.json", "last.ckpt")]


def test_neural_solver_of_flow_matching(tmp_path: Path) -> None:
    module, listed, checkpoint = neural_files(tmp_path)
    table = fs.from_peer(module, steps=5)
    model, z = network(ns.Flow()), randn(16, 1)
    velocity = lambda x, t: (model(x, 1 - t) - x) / (1 - t)  # noqa: E731
    theirs = formulas.neural_flow(velocity, z, FIVE["timedeltas"], FIVE["coeffs"])
    close(replayed(table, z), theirs)
    assert table.times[-1].item() == pytest.approx(1e-4) and table.meta["peer"]["table"] == "FM_DATA"
    assert fs.from_peer(listed, family="flow").isclose(table)
    close(replayed(fs.from_peer(checkpoint, family="flow"), z), theirs, 1e-6)  # float32 in the file
    for path, options, match in (
        (module, {}, "FM_DATA 5, FM_DATA 4: choose one with steps="), (listed, {}, "family=flow or family=ddpm"),
        (module, {"steps": 5, "double_step": True}, "double_step is for DDPM"),
        (module, {"steps": 5.5}, "give a whole number"),
        (listed, {"family": "flow", "steps": 6}, "one solver of 5 steps"),
        (module, {"step": 5}, "no option step; it has steps, table, family, double_step"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            fs.from_peer(path, **options)


@pytest.mark.parametrize("noise", [None, ns.Discrete.linear()], ids=["continuous", "discrete"])
@pytest.mark.parametrize("twice", [False, True])
def test_neural_solver_of_ddpm(tmp_path: Path, noise: ns.NoiseSchedule | None, twice: bool) -> None:
    path = neural_files(tmp_path)[1]
    table = fs.from_peer(path, noise, family="ddpm", double_step=twice)
    vp, z = ns.VPLinear(), randn(16, 1)
    levels = lambda t: (vp.alpha(t).item(), vp.sigma(t).item())  # noqa: E731
    own = table.noise
    eps = formulas.noise_of(network(own), own)
    told = (lambda x, t: eps(x, 1000 * t)) if noise else eps
    close(replayed(table, z), formulas.neural_ddpm(told, z, FIVE["timedeltas"], FIVE["coeffs"], levels, twice))
    assert table.nfe == 5


# ------------------------------------------------------------------------------------------------------------------ LD3
CASES = [("uni_pc", 3, "bh1"), ("uni_pc", 2, "bh2"), ("uni_pc", 1, "bh2"), ("dpm_solver++", 3, None),
         ("dpm_solver++", 2, None), ("ipndm", 4, None), ("ipndm", 3, None), ("euler", None, None)]  # fmt: skip


@pytest.mark.parametrize(("solver", "order", "variant"), CASES)
@pytest.mark.parametrize("noise", [ns.EDM(), SD], ids=["edm", "sd"])
def test_ld3(tmp_path: Path, noise: ns.NoiseSchedule, solver: str, order: int | None, variant: str | None) -> None:
    edm = isinstance(noise, ns.EDM)
    theirs_t = polynomial(5) if edm else [1.0, 0.71, 0.47, 0.26, 0.08, 0.001]
    told = [t * (1 + 0.04 * (-1) ** i * (0 < i < 5)) for i, t in enumerate(theirs_t)]
    path = ld3_file(tmp_path, theirs_t, told)
    options = {k: v for k, v in (("order", order), ("variant", variant)) if v is not None}
    if solver == "euler" and not edm:
        with pytest.raises(ArgumentError, match="EDM's networks only"):
            fs.from_peer(path, noise, solver=solver)
        return
    table = fs.from_peer(path, None if edm else noise, solver=solver, **options)
    # float32 in their files; here what the file holds, in this library's times
    t, asked = ([v if edm else 1000 * v - 1 for v in torch.tensor(p).double().tolist()] for p in (theirs_t, told))
    levels = lambda s: (noise.alpha(s).item(), noise.sigma(s).item())  # noqa: E731
    data, z = network(noise), randn(16, 1)
    eps, start = formulas.noise_of(data, noise), z * table.sigma[0]
    assert table.nfe == 5 and table.model_times[[i for i, e in enumerate(table.evaluated) if e]].tolist() == asked[:-1]
    if solver == "uni_pc":
        theirs = formulas.unipc(data, start, t, asked, order or 1, str(variant), levels)
    elif solver == "dpm_solver++":
        theirs = formulas.dpmpp(data, start, t, asked, order or 1, levels)
    else:
        theirs = formulas.ipndm(eps, start, t, asked, order or 1, levels)
    close(replayed(table, z), theirs)


def test_ld3_needs_to_be_told_its_solver(tmp_path: Path) -> None:
    path = ld3_file(tmp_path, GRID, GRID)
    same = fs.from_peer(path, solver="ipndm", order=2)
    assert same.isclose(fs.solvers.ipndm(torch.tensor(GRID), order=2).tabulate(ns.EDM())) and same.schedule is not None
    for noise, options, match in (
        (None, {}, "give solver="), (None, {"solver": "uni_pc"}, "give solver="),
        (None, {"solver": "heun", "order": 2}, r"choose one of uni_pc"),
        (None, {"solver": "uni_pc", "order": 2}, "variant= is"),
        (None, {"solver": "ipndm", "order": 4}, "1 to 3 with 3"),
        (SD, {"solver": "ipndm", "order": 2}, "which are not of"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            fs.from_peer(path, noise, **options)
    with pytest.raises(ArgumentError, match="not those of an EDM network"):
        fs.from_peer(ld3_file(tmp_path, [1.0, 0.5, 0.001], [1.0, 0.5, 0.001]), solver="ipndm", order=1)


# --------------------------------------------------------------------------------------------------- all of the formats
def test_tables_of_peers_are_files_like_others(tmp_path: Path) -> None:
    path, *_ = epd_file(tmp_path, 3, 1, class_name="adasde_predictor", sampler_stu="adasde", gamma=0.02)
    table = fs.from_peer(path)
    table.save(tmp_path / "adasde.json")
    again = fs.Tableau.load(tmp_path / "adasde.json")
    assert again.isclose(table, 1e-15) and again.meta["peer"]["class"] == "adasde_predictor"
    assert "learned weights" in str(table)
    drawn = fs.sample(problems.get("gaussian").denoiser(), table, seeds=range(3))
    assert torch.isfinite(drawn).all()


def test_usf_files_are_recognised(tmp_path: Path) -> None:
    from tests import usf_reference

    torch.save(usf_reference.TABLES["plain vp"][1], tmp_path / "searched.pth")
    schedule = fs.SolverSchedule.from_usf(tmp_path / "searched.pth")
    assert fs.from_peer(tmp_path / "searched.pth", ns.VPLinear()).isclose(schedule.tabulate(ns.VPLinear()))


def test_what_a_file_does_not_hold_is_asked_for(tmp_path: Path) -> None:
    path, *_ = dyweight_file(tmp_path, dataset_name="ms_coco")
    with pytest.raises(ArgumentError, match=r"'ms_coco'.*give noise="):
        fs.from_peer(path)
    gas, _ = gas_file(tmp_path, 4, 4)
    with pytest.raises(ArgumentError, match="give noise="):
        fs.from_peer(gas)
    with pytest.raises(ArgumentError, match="not for Flow"):
        fs.from_peer(gas, ns.Flow())
    with pytest.raises(ArgumentError, match="no option order; it has t_eps, ema"):
        fs.from_peer(gas, ns.EDM(), order=3)
    with pytest.raises(ArgumentError, match="5 falling levels"):
        fs.from_peer(path, SD, sigmas=[80.0, 1.0])
    with pytest.raises(ArgumentError, match="no file"):
        fs.from_peer(tmp_path / "none.pkl")
    with pytest.raises(ArgumentError, match="a list of 5 numbers"):
        fs.from_peer(path, SD, sigmas="many")
    with pytest.raises(ArgumentError, match="sigmas= are all levels"):
        fs.from_peer(path, SD, sigmas=polynomial(4), sigma_min=0.1)
    with pytest.raises(ArgumentError, match="sigma_min='low': give a number"):
        fs.from_peer(path, SD, sigma_min="low")
    steep, *_ = epd_file(tmp_path)
    with pytest.raises(ArgumentError, match="shift= is for flow matching"):
        fs.from_peer(steep, shift=3.0)
    steep, *_ = dyweight_file(tmp_path)
    with pytest.raises(ArgumentError, match="0 < sigma_min < sigma_max"):
        fs.from_peer(steep, sigma_min=90.0)


def test_samplers_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "amed.pkl", "AMED_predictor", {}, {"num_steps": 4, "sampler_stu": "amed"})
    with pytest.raises(FileFormatError, match="chooses each sample's steps"):
        fs.from_peer(path)
    path = snapshot(tmp_path / "other.pkl", "Other_predictor", {}, {"num_steps": 4})
    with pytest.raises(FileFormatError, match="no result of a project that is known"):
        fs.from_peer(path)


class Call:
    """What pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> Any:
        return self.what


def test_hostile_files_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for evil, name in ((Call(os.system, f"touch {mark}"), "system"), (Call(eval, "1"), "eval")):
        held = {"extra": evil}
        path, *_ = epd_file(tmp_path, 2, 1)
        with path.open("wb") as file:
            pickle.dump(held, file)
        torch.save({"best_t_steps": torch.ones(4), **held}, tmp_path / "best_v2.pt")
        for file in (path, tmp_path / "best_v2.pt"):
            with pytest.raises(FileFormatError, match=rf"name \w+\.{name}"):
                fs.from_peer(file)
    (tmp_path / "ns.py").write_text(f"open({str(mark)!r}, 'w')\nFM_DATA = dict(step1=dict(timedeltas=[open('x')]))\n")
    with pytest.raises(FileFormatError, match="has no solver"):
        fs.from_peer(tmp_path / "ns.py")
    assert not mark.exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good, *_ = epd_file(tmp_path, 3, 2)
    gas, _ = gas_file(tmp_path, 4, 4)
    ld3 = ld3_file(tmp_path, GRID, GRID)
    module = neural_files(tmp_path)[0]
    for path in (good, gas, ld3, module):
        whole = path.read_bytes()
        for size in (0, 3, len(whole) // 3, len(whole) - 40):
            path.write_bytes(whole[:size])
            with pytest.raises(FileFormatError, match=r"cannot be read|no pickle|no archive|no result|damaged|holds"):
                fs.from_peer(path, ns.EDM())
        path.write_bytes(whole)
    for name, text in (("a.json", "{}"), ("b.json", "[1]"), ("c.json", '{"timedeltas": [1, 2], "coeffs": [[1]]}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(FileFormatError, match="no result of a project|has no solver"):
            fs.from_peer(tmp_path / name, family="flow")
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "empty.pt", "w"):
        pass
    with pytest.raises(FileFormatError, match="0 pickles|cannot be read"):
        fs.from_peer(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_steps": 9}, "has no parameters of 8 steps"), ({"num_steps": "x"}, "does not fit its format"),
        ({"max_order": 7, "sampler_stu": "ipndm"}, "max_order=7"), ({"schedule_type": "mine"}, "give them as sigmas"),
        ({"num_steps": None}, "does not fit its format"),
    ],
)  # fmt: skip
def test_snapshots_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path, params, said = epd_file(tmp_path, 3, 2)
    snapshot(path, "EPD_predictor", params, said | change)
    with pytest.raises((FileFormatError, ArgumentError), match=match):
        fs.from_peer(path)


def test_numbers_that_make_no_table_are_refused(tmp_path: Path) -> None:
    path, params, said = epd_file(tmp_path, 3, 2)
    broken = copy.deepcopy(params)
    broken["weight_s"][1, 0] = math.nan
    snapshot(path, "EPD_predictor", broken, said)
    with pytest.raises(FileFormatError, match="make no table"):
        fs.from_peer(path)


def run(*args: Any, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, done.output
    return done


def test_commands_read_files_of_peers(tmp_path: Path) -> None:
    """One way for all commands: peer:FILE, with options behind it; `show` takes them apart too."""
    snap, *_ = dyweight_file(tmp_path)
    saved = tmp_path / "start.json"
    assert "3 network calls" in run("show", f"peer:{snap}", "--save", saved).stdout
    assert fs.Tableau.load(saved).isclose(fs.from_peer(snap))
    ld3 = ld3_file(tmp_path, [1.0, 0.5, 0.2, 0.001], [1.0, 0.5, 0.2, 0.001])
    wanted = fs.from_peer(ld3, SD, solver="uni_pc", order=2, variant="bh1")
    apart = ("--noise", "sd", "--option", "solver=uni_pc", "--option", "order=2", "--option", "variant=bh1")
    behind = f"peer:{ld3}?solver=uni_pc&order=2&variant=bh1&noise=sd"
    for words in ((behind,), ("--from", f"peer:{ld3}", *apart)):
        run("show", *words, "--save", saved)
        assert fs.Tableau.load(saved).isclose(wanted)
    plus = f"peer:{ld3}?solver=dpm_solver++&order=2&noise=sd"
    assert json.loads(run("show", plus, "--json").stdout)["name"] == "LD3"
    made = run(
        "sample", "problem:gaussian", "--schedule", f"peer:{snap}", "--seeds", "0-3", "--out", tmp_path / "x.npy"
    )
    assert "3 network calls" in made.stdout
    five = neural_files(tmp_path)[0]
    assert "5 network calls" in run("show", f"peer:{five}", "--steps", 5).stdout
    for words, match in (
        (("show", snap), f"read it as peer:{snap}"), (("show", f"peer:{ld3}"), "give noise="),
        (("show", "peer:"), "names no file"), (("show", f"peer:{snap}?noise=pink"), "choose one of edm"),
        (("show", f"peer:{snap}", "--config", snap), "--config is for diffusers"),
    ):  # fmt: skip
        assert match.replace(" ", "") in "".join(run(*words, code=2).output.split())


@pytest.mark.skipif(SNAPSHOTS is None, reason="FEWSTEP_PEER_FILES names no folder of the authors' files")
def test_the_authors_own_snapshots() -> None:
    """Every snapshot of DyWeight, EPD and AdaSDE below the folder, replayed with its own parameters."""
    assert SNAPSHOTS is not None
    found = sorted(Path(SNAPSHOTS).rglob("*.pkl"))
    assert found, f"no .pkl below {SNAPSHOTS}"
    for path in found:
        held = contents(path)
        record, loss = held.predictor, held.record("loss_fn")
        said = {**(loss.state if loss else {}), **record.state}
        edm = said["dataset_name"] in ("cifar10", "ffhq", "afhqv2", "imagenet64")
        flow = said["schedule_type"] == "flowmatch"
        lsun = ns.Discrete.scaled_linear(0.0015, 0.0195)
        noise = None if edm or flow else SD if said["dataset_name"] == "ms_coco" else lsun
        table = fs.from_peer(
            path, noise, **({"shift": 3.0, "sigma_min": 0.003} if said.get("backend") == "sd3" else {})
        )
        nominal = nominal_levels(table, said, flow)
        params = {k: torch.tensor(v, dtype=torch.float64) for k, v in parameters(record).items()}
        z, draws = randn(16, 1), [randn(16, 1, seed=k) for k in range(20)]
        net = network(table.noise) if flow else formulas.in_sigma(network(table.noise), table.noise)
        if record.class_name == "DyWeight_predictor":
            mask = torch.tensor(parameters(record, "_buffers")["mask"])
            W = params["hybrid_weights"] * mask
            theirs = formulas.dyweight(net, nominal[0] * z, nominal, W, params["t_scale"], said["afs"])
        else:
            theirs = formulas.epd(net, nominal[0] * z, nominal, params, said, iter(draws))
        close(replayed(table, z, draws) / (1 if flow else table.alpha[-1]), theirs)


def nominal_levels(table: fs.Tableau, said: dict[str, Any], flow: bool) -> list[float]:
    """The times that the file keeps, or the ones of its schedule."""
    kept, n = said.get("t_steps"), said["num_steps"] - 1
    if kept is not None and len(kept.tensor) == n + 1:
        return kept.tensor.tolist()
    if said["schedule_type"] == "polynomial":  # between the ends of the network, whatever the file says of others
        return polynomial(n, table.noise.ratio(table.noise.t_min).item(), table.noise.ratio(table.noise.t_max).item())
    if flow:
        return table.times[:: 1 + said["num_points"]].tolist()
    assert said["schedule_type"] == "discrete"
    return [table.noise.ratio(1000 * (1 + i / n * (1e-3 - 1)) - 1).item() for i in range(n + 1)]
