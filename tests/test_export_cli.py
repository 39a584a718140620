"""`fewstep export`: folders, text, and what is tried where a host cannot run the table."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from fewstep import solvers, times
from fewstep.adapters.webui import export_extension
from fewstep.cli import app
from fewstep.errors import LossyExport
from fewstep.noise import Discrete
from fewstep.problems import get

SD = Discrete.scaled_linear(0.00085, 0.012, 1000)


def run(*args):
    return CliRunner().invoke(app, ["export", *(str(a) for a in args)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "schedule.json"
    solvers.dpmpp_2m(times.karras(SD, 5)).tabulate(SD).save(path)
    return path


def webui(monkeypatch):
    """The part of the WebUI that an extension of schedules meets."""

    @dataclasses.dataclass
    class Scheduler:
        name: str
        label: str
        function: object
        default_rho: float = -1
        need_inner_model: bool = False
        aliases: list = None

    modules, part = ModuleType("modules"), ModuleType("modules.sd_schedulers")
    part.Scheduler, part.schedulers, part.schedulers_map = Scheduler, [], {}
    modules.sd_schedulers = part
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.sd_schedulers", part)
    return part


def test_the_webui_gets_a_schedule_type(monkeypatch, tmp_path):
    host = webui(monkeypatch)
    table = solvers.heun(times.karras(SD, 5)).tabulate(SD)
    table = dataclasses.replace(table, meta={"model": 'a "quoted" model'})
    (script,) = export_extension(table, tmp_path / "ext", "mine")
    for _ in range(2):  # a reload of the UI runs scripts again
        exec(compile(script.read_text(), str(script), "exec"), {})
    assert len(host.schedulers) == 1 and host.schedulers_map["fewstep mine"] is host.schedulers[0]
    made = host.schedulers[0].function(n=5, sigma_min=0.03, sigma_max=14.6, device="cpu")
    torch.testing.assert_close(made, SD.ratio(times.karras(SD, 5)).float(), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="was made for 5 steps, and 6"):
        host.schedulers[0].function(n=6, sigma_min=0.03, sigma_max=14.6, device="cpu")
    with pytest.raises(LossyExport, match="no sampler of a1111"):
        export_extension(solvers.unipc(times.karras(SD, 5)).tabulate(SD), tmp_path / "ext")


def test_folders(file, tmp_path):
    done = run(file, "--to", "comfyui-nodes", "--out", tmp_path / "nodes", "--name", "found", "--json")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "nodes" / "schedules" / "found.json").is_file()
    assert len(json.loads(done.stdout)["files"]) == 4
    missing = run(file, "--to", "a1111-extension")
    assert missing.exit_code == 2 and "--out DIR" in missing.output
    assert run(file, "--to", "a1111-extension", "--out", tmp_path / "ext").exit_code == 0


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_the_hub_folder_is_a_scheduler(file, tmp_path):
    pytest.importorskip("diffusers")
    done = run(file, "--to", "diffusers-hub", "--out", tmp_path / "hub")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {"scheduler_config.json", "fewstep_scheduler.py"}


def test_snapping_moves_the_times_to_integers(file):
    plain, snapped = (run(file, "--to", "comfyui", *more) for more in ((), ("--snap",)))
    assert "integer times" in plain.stderr and "integer times" not in snapped.stderr
    read = torch.tensor([float(v) for v in snapped.stdout.split(",")], dtype=torch.float64)
    whole = SD.time_of_ratio(read[:-1])
    torch.testing.assert_close(whole, whole.round(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_what_a_host_can_run_instead_is_scored(tmp_path):
    noise = get("gaussian").noise
    table = solvers.dpmpp_2m(times.karras(noise, 4)).tabulate(noise)
    path = tmp_path / "learned.json"
    dataclasses.replace(table, B=table.B * 1.02, name="learned", expected=("learned",)).save(path)
    assert run(path, "--to", "k-diffusion").exit_code == 2
    early = run(path, "--to", "k-diffusion", "--model", "problem:gaussian")
    assert early.exit_code == 2 and "--accept-loss" in early.output
    words = ("--accept-loss", "--model", "problem:gaussian", "--trials", 12, "--images", 48)
    done = run(path, "--to", "k-diffusion", *words, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["losses"] and set(told["retuned"]["scores"]) == {"original", "nearest", "retuned"}
    assert told["retuned"]["trials"] <= 12 and len(told["retuned"]["times"]) == 5
    assert f"sample_{told['sampler']}(" in told["text"]
    shown = run(path, "--to", "k-diffusion", *words, "--quiet")
    assert "nearest sampler, same times" in shown.stderr and "lower is better" in shown.stderr
