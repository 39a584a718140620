"""`FewStepScheduler` by itself: its arithmetic, its file, what it refuses."""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import fewstep as fs
from fewstep.cli import app
from fewstep.diffusers import CANNOT, FewStepScheduler, check_pipeline, save_to_hub_folder
from fewstep.ems import EMS, log_snr_grid
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule
from fewstep.tableau import Tableau
from tests import tiny_pipelines

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers warns about its own old spellings

SD = Discrete.scaled_linear()
SD_CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW_CONFIG = {"shift": 3.0, "num_train_timesteps": 1000}


def dpmpp(n: int = 5, noise: NoiseSchedule = SD) -> Tableau:
    return fs.solvers.dpmpp_2m(fs.times.uniform(noise, n, end="append")).tabulate(noise)


def scheduler_of(*tables: Any, config: Any = SD_CONFIG, **options: Any) -> FewStepScheduler:
    return FewStepScheduler.from_config(config, tableau=list(tables), **options)


def loop(scheduler: Any, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, **options: Any) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **options)[0]
    return x


# ------------------------------------------------------------------------------------------- published loops
def published_start() -> Tensor:
    """The state of diffusers' own scheduler tests (Apache-2.0)."""
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
GRID = [round(999 * (10 - k) / 10) for k in range(10)]  # np.linspace(0, 999, 11).round(), from noisy to clean
OWN: dict[str, Callable[[], Tableau]] = {
    "ddim": lambda: fs.solvers.ddim(torch.tensor([*range(900, -1, -100), -1.0])).tabulate(Discrete.linear()),
    "dpmpp_2m": lambda: fs.solvers.dpmpp_2m(torch.tensor([*GRID, 0.0]), lower_order_final=False).tabulate(
        Discrete.linear()
    ),
    "unipc": lambda: fs.solvers.unipc(torch.tensor([*GRID, 0.0]), order=2).tabulate(Discrete.linear()),
}
V = {"prediction_type": "v_prediction"}
# As those tests configure the schedulers: they end at the first training step, and DPM-Solver keeps its order there.
END = {"final_sigmas_type": "sigma_min"}
KEEP = END | {"lower_order_final": False}


@pytest.mark.parametrize(
    ("sampler", "options", "which", "value"),
    [
        ("ddim", {}, "sum", 172.0067),
        ("dpmpp_2m", {}, "mean", 0.3301),
        ("dpmpp_2m", V, "mean", 0.2251),
        ("unipc", {}, "mean", 0.2464),
        ("unipc", V, "mean", 0.1014),
        ("DEISMultistepScheduler", {}, "mean", 0.23916),
        ("DEISMultistepScheduler", V, "mean", 0.091),
        ("PNDMScheduler", {}, "sum", 198.1318),
        ("UniPCMultistepScheduler", END | {"use_karras_sigmas": True}, "mean", 0.2925),
        ("DPMSolverMultistepScheduler", KEEP | V | {"use_lu_lambdas": True}, "mean", 0.1554),
        ("DPMSolverMultistepScheduler", KEEP | V | {"use_karras_sigmas": True}, "mean", 0.2096),
        ("DPMSolverSinglestepScheduler", KEEP, "mean", 0.2791),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_published_full_loops_of_diffusers(sampler: str, options: dict[str, Any], which: str, value: float) -> None:
    """Their tests' network and start; our own solvers' tables where we have them, else the traced ones."""
    if sampler in OWN:
        table, config = OWN[sampler](), LINEAR | options
    else:
        host = getattr(diffusers, sampler)(**(LINEAR | options))
        table, config = fs.from_sampler(host, 10), host.config
    scheduler = scheduler_of(table, config=config)
    scheduler.set_timesteps(table.nfe)
    last = loop(scheduler, lambda x, t: x * t / (t + 1), published_start())
    got = (last.abs().sum() if which == "sum" else last.abs().mean()).item()
    assert abs(got - value) < (1e-2 if which == "sum" else 1e-3)


# ------------------------------------------------------------------------------- equal to the loop over the table
def curved(x: Tensor, t: Any) -> Tensor:
    """A network that depends on state and time, and mixes elements."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1)[0]
    return torch.tanh(0.7 * x + 0.2 * x.flip(-1)) + 0.1 * torch.sin(t / 150 + x)


TABLES: dict[str, tuple[NoiseSchedule, Callable[[NoiseSchedule], Tableau]]] = {
    "multistep": (SD, lambda n: dpmpp(6, n)),
    "third order": (SD, lambda n: fs.solvers.dpmpp_3m(fs.times.uniform(n, 6, end="append")).tabulate(n)),
    "corrector": (SD, lambda n: fs.solvers.unipc(fs.times.uniform(n, 6, end="append")).tabulate(n)),
    "noise basis": (SD, lambda n: fs.solvers.deis(fs.times.uniform(n, 6, end="append")).tabulate(n)),
    "two calls a step": (SD, lambda n: fs.solvers.heun(fs.times.uniform(n, 4, end="append")).tabulate(n)),
    "free first step": (
        SD, lambda n: replace(fs.solvers.dpmpp_2m(fs.times.uniform(n, 6, end="append")), afs="zero").tabulate(n)
    ),
    "unrolled": (SD, lambda n: dpmpp(6, n).unrolled()),
    "flow": (Flow(3.0), lambda n: dpmpp(6, n)),
    "flow corrector": (Flow(3.0), lambda n: fs.solvers.unipc(fs.times.uniform(n, 6, end="append")).tabulate(n)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [(kind, p) for kind in TABLES for p in (("flow",) if "flow" in kind else ("epsilon", "v", "x0"))],
)
def test_is_the_loop_over_the_table(kind: str, prediction: str) -> None:
    noise, make = TABLES[kind]
    flow = isinstance(noise, Flow)
    table = make(noise)
    start = torch.linspace(-2, 2, 96, dtype=torch.float64).reshape(2, 3, 4, 4).cos()
    denoiser = fs.from_callable(
        curved, prediction=prediction, noise=noise, shape=start.shape[1:], time="index",
        dtype=torch.float64, check=False,
    )  # fmt: skip
    want = fs.sample(denoiser, table, start=start * table.sigma[0])
    names = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
    config = FLOW_CONFIG if flow else SD_CONFIG | {"prediction_type": names[prediction]}
    scheduler = scheduler_of(table, config=config)
    scheduler.set_timesteps(table.nfe)
    assert len(scheduler.timesteps) == table.nfe == len(scheduler.sigmas) - 1
    got = loop(scheduler, curved, start * scheduler.init_noise_sigma)
    assert (got - want).abs().max() < 2e-6 * want.abs().max()  # timesteps are float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_tables_of_edm_coordinates_run_on_variance_preserving_states(prediction: str) -> None:
    """A k-diffusion table (of x0 + sigma eps) in a Stable Diffusion pipeline, which holds alpha x0 + sigma eps."""
    edm = EDM(0.03, 14.6)
    table = dpmpp(6, edm)
    kinds = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
    start = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4).cos()
    denoiser = fs.from_callable(
        curved, prediction=kinds[prediction], noise=edm, network_noise=SD, shape=start.shape[1:], time="index",
        dtype=torch.float64, check=False,
    )  # fmt: skip
    want = fs.sample(denoiser, table, start=start * table.sigma[0])
    scheduler = scheduler_of(table, config=SD_CONFIG | {"prediction_type": prediction})
    scheduler.set_timesteps(6)
    assert abs(scheduler.init_noise_sigma - 14.6 / (1 + 14.6**2) ** 0.5) < 1e-12
    got = loop(scheduler, curved, start * scheduler.init_noise_sigma)
    assert (got - want).abs().max() < 2e-6 * want.abs().max()


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_networks_with_edm_preconditioning_and_stable_video_diffusion(name: str) -> None:
    """Their schedulers hold x0 + sigma eps and shrink the network's input; ours holds that input."""
    svd = {
        "sigma_min": 0.002, "sigma_max": 700.0, "timestep_type": "continuous", "timestep_spacing": "leading",
        "use_karras_sigmas": True, "prediction_type": "v_prediction", "interpolation_type": "linear",
    } | SD_CONFIG  # fmt: skip
    host = getattr(diffusers, name)(**(svd if name.startswith("Euler") else {}))
    table = fs.from_sampler(host, 6, noise=EDM(0.002, 700.0) if name.startswith("Euler") else None)
    scheduler = scheduler_of(table, config=host.config)
    scheduler.set_timesteps(6)
    host.set_timesteps(6)
    assert (scheduler.timesteps - host.timesteps).abs().max() < 1e-5
    noise = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4).cos()
    want = loop(host, curved, noise * float(host.init_noise_sigma))
    got = loop(scheduler, curved, noise * scheduler.init_noise_sigma)
    assert (got - want).abs().max() < 2e-5 * want.abs().max()


# ---------------------------------------------------------------------------------------- beginning in the middle
@pytest.mark.parametrize("kind", ["multistep", "third order", "corrector", "noise basis", "flow corrector"])
def test_a_later_beginning_is_the_same_decisions_from_there(kind: str) -> None:
    noise, make = TABLES[kind]
    table = make(noise)
    assert table.schedule is not None
    config = FLOW_CONFIG if isinstance(noise, Flow) else SD_CONFIG
    whole = scheduler_of(table, config=config)
    state = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4).sin()
    for k in (1, 3, 5):
        rest = replace(table.schedule, times=table.schedule.times[k:], steps=table.schedule.steps[k:])
        part = scheduler_of(rest.tabulate(noise), config=config)
        whole.set_timesteps(6)
        whole.set_begin_index(k)
        assert whole.begin_index == k and whole.step_index is None
        got = state
        for t in whole.timesteps[k:]:
            got = whole.step(curved(got, t), t, got, return_dict=False)[0]
        part.set_timesteps(6 - k)
        want = loop(part, curved, state)
        assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_the_beginning_is_found_from_the_timestep_where_a_pipeline_does_not_say() -> None:
    scheduler = scheduler_of(dpmpp(6))
    state = torch.ones(1, 1, 2, 2)
    for hand_over in (lambda t: t, lambda t: t.clone(), lambda t: float(t)):
        scheduler.set_timesteps(6)
        scheduler.step(state, hand_over(scheduler.timesteps[4]), state)
        assert scheduler.step_index == 5
    scheduler.set_timesteps(6)
    with pytest.raises(ValueError, match="none of this table's"):
        scheduler.step(state, 17.0, state)


def test_a_table_that_cannot_begin_later_says_so() -> None:
    """Fresh noise and older states in one row: nothing says what the row would be without them."""
    table = fs.solvers.sde_dpmpp_2m(fs.times.uniform(SD, 5, end="append")).tabulate(SD)
    A = table.A.clone()
    A[4, 2] = 0.1
    scheduler = scheduler_of(replace(table, A=A, schedule=None))
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(1)
    with pytest.raises(ValueError, match=r"cannot start at its call 3.*Possible: \[0, 1, 2, 4\]; choose `strength`"):
        scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="strength"):
        scheduler.set_begin_index(5)


def test_add_noise_is_at_the_level_of_the_coming_call() -> None:
    table = dpmpp(5)
    scheduler = scheduler_of(table)
    scheduler.set_timesteps(5)
    x, noise = torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), -1.0)
    scheduler.set_begin_index(2)
    want = table.alpha[2] * 2 - table.sigma[2]
    assert torch.allclose(scheduler.add_noise(x, noise, scheduler.timesteps[2:3]), want.float())
    scheduler.step(x, scheduler.timesteps[2], x)
    want = table.alpha[3] * 2 - table.sigma[3]
    half = scheduler.scale_noise(x.half(), scheduler.timesteps[:1], noise.half())
    assert half.dtype == torch.float16 and torch.allclose(half, want.half())
    scheduler.set_timesteps(5)  # outside a run, as training scripts do
    bar = scheduler.alphas_cumprod[[10, 500]].reshape(2, 1, 1, 1)
    got = scheduler.add_noise(x, noise, torch.tensor([10, 500]))
    assert torch.allclose(got, bar.sqrt() * x + (1 - bar).sqrt() * noise)
    assert len(scheduler) == 1000


# ------------------------------------------------------------------------------------------------ set_timesteps
def test_the_number_of_steps_chooses_the_table() -> None:
    scheduler = scheduler_of(dpmpp(4), dpmpp(7))
    for n in (4, 7):
        scheduler.set_timesteps(n)
        assert len(scheduler.timesteps) == n and scheduler.order == 1
    with pytest.raises(ValueError, match="num_inference_steps=4 or 7"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="no table makes None"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="same number of calls"):
        scheduler_of(dpmpp(4), dpmpp(4))


def test_lists_that_pipelines_pass_unasked_are_no_custom_times() -> None:
    import numpy as np

    scheduler = scheduler_of(dpmpp(5, Flow(3.0)), config=FLOW_CONFIG)
    usual = [np.linspace(1, 1 / 5, 5), np.linspace(1, 0, 6)[:-1].tolist(), np.linspace(0.999, 0, 6)[:-1]]
    cogview = np.linspace(1000, 1, 5).astype(np.int64)
    for sigmas in [*usual, cogview / 1000, scheduler.sigmas[:-1]]:
        scheduler.set_timesteps(sigmas=sigmas, device="cpu", mu=0.7)
        assert len(scheduler.timesteps) == 5
    scheduler.set_timesteps(timesteps=cogview, sigmas=cogview / 1000)
    scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    for custom in ({"sigmas": [1.0, 0.9, 0.8, 0.5, 0.1]}, {"timesteps": [999, 700, 500, 300, 10]}):
        with pytest.raises(ValueError, match="cannot change a table"):
            scheduler.set_timesteps(**custom)


def test_whole_times_stay_integers_and_others_are_floats() -> None:
    whole = scheduler_of(fs.solvers.ddim(torch.tensor([999.0, 500.0, 20.0, -1.0])).tabulate(SD))
    broken = scheduler_of(fs.solvers.ddim(torch.tensor([998.5, 500.0, 20.0, -1.0])).tabulate(SD))
    assert whole.timesteps.dtype == torch.int64 and broken.timesteps.dtype == torch.float32


def test_steps_after_the_last_are_an_error() -> None:
    scheduler = scheduler_of(dpmpp(2))
    scheduler.set_timesteps(2)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        out = scheduler.step(x, t, x)
    assert out.prev_sample.shape == x.shape
    with pytest.raises(ValueError, match="all 2 steps"):
        scheduler.step(x, 0, x)


# --------------------------------------------------------------------------------------------------- the cost
class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "most"), [("multistep", 4), ("corrector", 6), ("flow", 4)])
def test_a_step_is_a_few_sums_and_reads_nothing_back(kind: str, most: int) -> None:
    noise, make = TABLES[kind]
    scheduler = scheduler_of(make(noise), config=FLOW_CONFIG if isinstance(noise, Flow) else SD_CONFIG)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(0)
    x, out = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    times = list(scheduler.timesteps)
    for t in times:
        with Operations() as seen:
            x = scheduler.step(out, t, x, return_dict=False)[0]
        assert len(seen.names) <= most and set(seen.names) <= {"mul.Tensor", "mul_.Tensor", "add.Tensor", "add_.Tensor"}
    assert not scheduler._held  # nothing outlives the run


def test_an_output_buffer_may_be_reused() -> None:
    """CUDA graphs write every output of a network into the same memory."""
    table = fs.solvers.deis(fs.times.uniform(SD, 6, end="append")).tabulate(SD)
    scheduler = scheduler_of(table)
    buffer = torch.empty(1, 1, 4, 4)
    results = []
    for network in (curved, lambda x, t: buffer.copy_(curved(x, t))):
        scheduler.set_timesteps(6)
        results.append(loop(scheduler, network, torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)))
    assert torch.equal(*results)


def test_the_whole_loop_compiles_to_one_graph() -> None:
    scheduler = scheduler_of(dpmpp(5))
    scheduler.set_timesteps(5)
    start = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    want = loop(scheduler, lambda x, t: torch.tanh(x) * (t / 1000), start)

    def run(x: Tensor) -> Tensor:
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x) * (t / 1000), t, x, return_dict=False)[0]
        return x

    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    got = torch.compile(run, fullgraph=True, backend="eager")(start)
    assert torch.allclose(got, want, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ the file
def test_the_table_survives_saving_exactly(tmp_path: Path) -> None:
    table = replace(dpmpp(6), meta={"guidance": 7.5, "shape": [4, 64, 64]})
    scheduler = scheduler_of(table, config=tiny_pipelines.build("sd").pipe.scheduler.config)
    scheduler.save_pretrained(tmp_path)
    again = FewStepScheduler.from_pretrained(tmp_path)
    assert again.config["tableau"] == scheduler.config["tableau"]  # every float
    assert again._table == scheduler._table and again.config["skip_prk_steps"] is True
    back = Tableau.from_dict(again.config["tableau"][0]["table"])
    assert torch.equal(back.B, table.B) and back.digest == table.digest and back.meta == table.meta
    swapped = diffusers.DPMSolverMultistepScheduler.from_config(again.config)
    assert swapped.config["beta_start"] == 0.00085  # and one may go back to a scheduler of diffusers


def test_tables_come_as_files_and_found_results(tmp_path: Path) -> None:
    table = dpmpp(6)
    table.save(tmp_path / "schedule.json")
    found = fs.Found(table, table, "m", 6, "ays", "dpmpp_2m", "here", "there", "klub")
    want = scheduler_of(table)._table
    record = json.loads((tmp_path / "schedule.json").read_text())
    for form in (tmp_path / "schedule.json", str(tmp_path), found, record):
        assert FewStepScheduler.from_config(SD_CONFIG, tableau=form)._table == want
    for wrong in (tmp_path / "nothing.json", 3, None, []):
        with pytest.raises(ValueError, match="tableau"):
            FewStepScheduler.from_config(SD_CONFIG, tableau=wrong)


CHILD = """
import json, sys, torch, warnings
warnings.filterwarnings("ignore")
trusting, importing, out = sys.argv[1:]

def run(code):
    names = {}
    exec(code, names)
    names["pipe"].set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = dict(height=16, width=16, negative_prompt="blurry", guidance_scale=3.0, output_type="latent")
    pictures = names["pipe"]("a small red cat", num_inference_steps=5, generator=generator, **options).images
    return pictures, type(names["pipe"].scheduler).__module__

sys.modules["fewstep"] = None  # as where it is not installed
try:
    run(trusting.replace(", trust_remote_code=True", ""))
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded code without being told to trust it")
first, module = run(trusting)
assert module.startswith("diffusers_modules"), module
del sys.modules["fewstep"]
second, module = run(importing.replace("my-pipeline", "saved"))
assert module == "fewstep.diffusers", module
torch.save([first, second], out)
"""
FENCE = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_pipelines_load_as_documented_with_and_without_fewstep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four blocks of the page on diffusers, from saving to loading in a fresh process."""
    page = (Path(__file__).parents[1] / "docs" / "diffusers.md").read_text("utf-8")
    save, importing, export, trusting = FENCE.findall(page.partition("## Saving, and the Hub")[2])
    monkeypatch.chdir(tmp_path)
    tiny, table = tiny_pipelines.build("sd"), dpmpp(5)
    table.save("schedule.json")
    exec(save, {"pipe": tiny.pipe})
    done = CliRunner().invoke(app, shlex.split(export)[1:])
    assert done.exit_code == 0, done.output
    assert {p.name for p in Path("my-pipeline/scheduler").iterdir()} == {
        "fewstep_scheduler.py",
        "scheduler_config.json",
    }
    with tiny.scheduled(scheduler_of(table, config=tiny.pipe.scheduler.config)):
        exec(save.replace("my-pipeline", "saved"), {"pipe": tiny.pipe})
        want = tiny.run(5)
    index = json.loads(Path("saved/model_index.json").read_text())
    assert index["scheduler"] == ["fewstep.diffusers", "FewStepScheduler"]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, trusting, importing, "out.pt"], capture_output=True, text=True, check=False,
        env=os.environ | {"HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    for got in torch.load("out.pt"):
        assert torch.equal(got, want)
    again = FewStepScheduler.from_pretrained("my-pipeline", subfolder="scheduler")
    assert again._table == scheduler_of(table)._table


def test_hub_folder_of_a_scheduler_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file needs nothing of fewstep."""
    tables = {"vp": dpmpp(5), "flow": dpmpp(5, Flow(3.0)), "cosine": dpmpp(5, Discrete.cosine())}
    folders = {name: save_to_hub_folder(table, tmp_path / name)[0].parent for name, table in tables.items()}
    with pytest.raises(ValueError, match="not the noise schedule of a diffusers network"):
        save_to_hub_folder(dpmpp(5, EDM()), tmp_path / "edm")
    assert not (tmp_path / "edm").exists()
    for name in [name for name in sys.modules if name.split(".")[0] == "fewstep"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name, folder in folders.items():
        assert {p.name for p in folder.iterdir()} == {"fewstep_scheduler.py", "scheduler_config.json"}
        spec = importlib.util.spec_from_file_location(f"copied_{name}", folder / "fewstep_scheduler.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"copied_{name}", module)
        spec.loader.exec_module(module)
        copied = module.FewStepScheduler.from_pretrained(folder)
        copied.set_timesteps(5)
        assert len(copied.timesteps) == 5
        with pytest.raises(ImportError, match="pip install fewstep"):
            module.FewStepScheduler.from_config(SD_CONFIG, tableau=tables["vp"])


# --------------------------------------------------------------------------------------------------- refusals
def guided() -> Tableau:
    table = dpmpp(3)
    wide = torch.zeros(table.rows, 2 * table.rows, dtype=torch.float64)
    wide[:, ::2], wide[:, 1::2] = 1.5 * table.B, -0.5 * table.B
    return replace(table, B=wide, channels=2, schedule=None)


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (lambda: dpmpp(), FLOW_CONFIG, "'flow' network"),
        (lambda: dpmpp(5, Flow(3.0)), SD_CONFIG, "'vp' network"),
        (lambda: dpmpp(5, EDM()), SD_CONFIG, "outside its training range"),
        (lambda: dpmpp(), SD_CONFIG | {"beta_end": 0.02}, "other betas"),
        (lambda: dpmpp(), SD_CONFIG | {"rescale_betas_zero_snr": True}, "other betas"),
        (lambda: dpmpp(), SD_CONFIG | {"num_train_timesteps": 500}, "1000 training steps"),
        (lambda: dpmpp(), SD_CONFIG | {"prediction_type": "flow_prediction"}, "'flow' network"),
        (lambda: dpmpp(), {"num_train_timesteps": 1000}, "say family="),
        (lambda: dpmpp(), SD_CONFIG | {"invert_sigmas": True}, "runs the other way"),
        (lambda: replace(dpmpp(), noise=None, schedule=None), SD_CONFIG, "no noise schedule"),
        (guided, SD_CONFIG, "guidance inside"),
        (lambda: dpmpp(5, EDM(0.001, 80)), {"sigma_data": 0.5, "sigma_min": 0.1}, "outside 0.1 to 80"),
    ],
)
def test_tables_of_other_models_are_refused(make: Any, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_of(make(), config=config)


def statistics(*, of: str) -> EMS:
    """Of no network: for each element, or the same for all."""
    lams = log_snr_grid(SD, 20)
    place = torch.arange(4, dtype=torch.float64).reshape(2, 2) if of == "elements" else torch.ones(())
    at = torch.linspace(0, 1, 20, dtype=torch.float64).reshape(20, *[1] * place.ndim)
    return EMS(lams, 0.9 - 0.5 * at + 0.1 * place, torch.sin(3 * at + place) / 2, 0.2 * torch.cos(2 * at - place))


def test_weights_for_each_element_are_refused_and_those_for_all_run() -> None:
    """DPM-Solver-v3: its statistics averaged over the elements make a table of numbers."""
    times = fs.times.logsnr(SD, 5)
    table = fs.solvers.dpm_solver_v3(times).tabulate(SD, statistics=statistics(of="elements"))
    with pytest.raises(ValueError, match="each of 4 elements.*Average the statistics"):
        scheduler_of(table)
    mean = replace(fs.solvers.dpmpp_2m(times), afs="mean").tabulate(SD, mean=torch.full((2, 2), 0.3))
    with pytest.raises(ValueError, match="each of 4 elements"):
        scheduler_of(mean)
    table = fs.solvers.dpm_solver_v3(times).tabulate(SD, statistics=statistics(of="all"))
    assert any(row.shift for row in scheduler_of(table)._table.rows)
    start = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 4, 4).cos()
    denoiser = fs.from_callable(
        curved, prediction="epsilon", noise=SD, shape=start.shape[1:], time="index", dtype=torch.float64, check=False
    )
    want = fs.sample(denoiser, table, start=start * table.sigma[0])
    scheduler = scheduler_of(table)
    scheduler.set_timesteps(table.nfe)
    got = loop(scheduler, curved, start * scheduler.init_noise_sigma)
    assert (got - want).abs().max() < 2e-6 * want.abs().max()
    scheduler.set_timesteps(table.nfe)
    scheduler.set_begin_index(2)  # without the statistics at hand: first order there
    state = start
    for t in scheduler.timesteps[2:]:
        state = scheduler.step(curved(state, t), t, state, return_dict=False)[0]
    assert state.isfinite().all() and scheduler.step_index == table.nfe


def test_a_saved_table_is_refused_by_another_model() -> None:
    record = scheduler_of(dpmpp()).config["tableau"]
    for change, message in (
        ({"beta_end": 0.02}, "another noise schedule"),
        ({"prediction_type": "v_prediction"}, "prediction_type='epsilon'"),
        ({"num_train_timesteps": 400}, "num_train_timesteps=1000"),
    ):
        with pytest.raises(ValueError, match=message):
            FewStepScheduler.from_config(SD_CONFIG | change, tableau=record)


def test_pipelines_that_need_a_class_of_their_own_are_refused() -> None:
    tiny = tiny_pipelines.build("sd")
    with pytest.raises(ValueError, match="PNDMScheduler"):
        check_pipeline(tiny.pipe)
    made_for = replace(dpmpp(), meta={"guidance": 7.5, "shape": [4, 64, 64]})
    with tiny.scheduled(scheduler_of(made_for)):
        assert check_pipeline(tiny.pipe, guidance_scale=7.5, shape=(4, 64, 64)) == []
        notes = check_pipeline(tiny.pipe, guidance_scale=3.0, shape=(4, 8, 8))
        assert "guidance 7.5, here it is 3" in notes[0] and "shape [4, 64, 64]" in notes[1]
        searched = replace(dpmpp(), meta={"network": {"guidance": 7.5, "height": 512}})
        tiny.pipe.scheduler = FewStepScheduler.from_config(SD_CONFIG, tableau=searched)
        assert "guidance 7.5, here it is 3" in check_pipeline(tiny.pipe, guidance_scale=3.0)[0]
        for name in ("BriaPipeline", "LEditsPPPipelineStableDiffusion", "StableCascadePriorPipeline"):
            impostor = type(name, (), {"scheduler": tiny.pipe.scheduler})()
            with pytest.raises(ValueError, match="Keep its own scheduler"):
                check_pipeline(impostor)


def lacking(pipeline: ast.ClassDef) -> set[str]:
    """What a pipeline's code asks of its scheduler that ours does not have."""
    known = {*dir(FewStepScheduler), "config", "timesteps", "sigmas", "alphas_cumprod", "init_noise_sigma",
             "num_inference_steps", "_internal_dict"}  # fmt: skip
    taken = set(inspect.signature(FewStepScheduler.step).parameters)
    found: set[str] = set()
    for node in ast.walk(pipeline):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.scheduler":
            found |= {node.attr} - known
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.scheduler.step":
            found |= {f"step({word.arg}=)" for word in node.keywords if word.arg is not None} - {
                f"step({name}=)" for name in taken
            }
    return found


@pytest.mark.slow
def test_every_pipeline_that_asks_for_more_is_refused_by_name() -> None:
    """In the code of the installed diffusers; some of it is only reached with the pipeline's own scheduler."""
    tokens = {"AmusedInpaintPipeline", "LLaDA2Pipeline", "DiffusionGemmaPipeline"}  # no states to add up
    on_demand = {"ChronoEditPipeline"}  # with enable_temporal_reasoning only
    unknown: dict[str, set[str]] = {}
    for path in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and "Pipeline" in node.name and (asks := lacking(node)):
                unknown[node.name] = asks
    refused = {name for name in unknown if name.startswith(tuple(CANNOT))}
    assert {"LTXConditionPipeline", "DDIMPipeline", "RePaintPipeline", "SanaWMPipeline"} <= refused
    assert set(unknown) - refused == tokens | on_demand


# ------------------------------------------------------------------------------------------------ hostile records
RECORD = scheduler_of(replace(dpmpp(3), schedule=None)).config["tableau"][0]
JUNK: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.floats(), max_size=3),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, part in inside for p in places(part, (*path, key)))]


READ = [p for p in places(RECORD) if p and p[0] not in ("table", "name", "calls")]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.sampled_from(READ), junk=JUNK, remove=st.booleans())
def test_a_damaged_record_is_a_clear_error_or_a_whole_table(place: tuple[Any, ...], junk: Any, remove: bool) -> None:
    damaged = copy.deepcopy(RECORD)
    spot = damaged
    for key in place[:-1]:
        spot = spot[key]
    if remove:
        del spot[place[-1]]
    else:
        spot[place[-1]] = junk
    try:
        scheduler = FewStepScheduler.from_config(SD_CONFIG, tableau=[damaged], family="vp", prediction_type="epsilon")
    except ValueError as error:
        assert len(str(error)) > 20
        return
    scheduler.set_timesteps(3)
    x = torch.ones(1, 1, 2, 2)
    try:
        loop(scheduler, lambda x, t: x, x, generator=torch.Generator())
    except ValueError as error:
        assert "noise" in str(error) or "cannot start" in str(error)


def test_damaged_files_of_tables_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    dpmpp(3).save(path)
    whole = path.read_text()
    for text in (whole[: len(whole) // 2], "[]", "{}", whole.replace('"outputs"', '"outputz"', 1), ""):
        path.write_text(text)
        with pytest.raises(ValueError):
            FewStepScheduler.from_config(SD_CONFIG, tableau=path)
