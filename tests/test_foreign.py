"""Foreign samplers by name: as tables, side by side, as files, and as the start of a search."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

import fewstep as fs
from fewstep import solvers, times
from fewstep.adapters.foreign import foreign, read_config
from fewstep.against import compared
from fewstep.cli import app
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, Flow
from fewstep.tableau import Tableau

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
SD = Discrete.scaled_linear(0.00085, 0.012, 1000)
SD_CONFIG = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "num_train_timesteps": 1000, "prediction_type": "epsilon"}  # fmt: skip


def sample_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None, power=1.0):
    """In k-diffusion's interface; `power` is only there to be an option."""
    for a, b in pairwise(sigmas):
        x0 = model(x, a * x.new_ones([len(x)]))
        x = x0 + (x - x0) * (b / a) ** power
    return x


@pytest.fixture
def k_diffusion(monkeypatch):
    """A module under the library's name, with its interface: the library itself needs torchvision."""
    package, sampling = ModuleType("k_diffusion"), ModuleType("k_diffusion.sampling")
    sampling.sample_euler = sample_ddim
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.sampling", sampling)


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_k_diffusion_functions(k_diffusion):
    table = foreign("k_diffusion:sample_euler", 5)
    assert table.difference(solvers.euler(times.karras(EDM(), 5)).tabulate(EDM())) < 1e-9
    sd = foreign("k_diffusion:sample_euler", 5, options={"times": "logsnr"}, noise=SD)
    assert sd.difference(solvers.euler(times.logsnr(SD, 5)).tabulate(SD)) < 1e-9
    listed = foreign("k_diffusion:sample_euler", options={"sigmas": [14.6, 2.0, 0.0], "power": 1.0})
    assert listed.nfe == 2 and listed.times.tolist() == [14.6, 2.0, 0.0]
    with pytest.raises(ArgumentError, match="it has sample_euler"):
        foreign("k_diffusion:sample_none", 5)
    with pytest.raises(ArgumentError, match="--steps is missing"):
        foreign("k_diffusion:sample_euler")


def test_k_diffusion_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "k_diffusion", None)
    with pytest.raises(ArgumentError, match=r"cannot be imported here.*torchvision.*python:MODULE:FUNCTION"):
        foreign("k_diffusion:sample_euler", 5)


def test_diffusers_schedulers_with_options_and_configurations(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_CONFIG))
    named = foreign(
        "diffusers:UniPCMultistepScheduler", 6, options={"use_karras_sigmas": True, "solver_order": 3}, config=tmp_path
    )
    own = {k: v for k, v in SD_CONFIG.items() if not k.startswith("_")}
    scheduler = diffusers.UniPCMultistepScheduler(**own, use_karras_sigmas=True, solver_order=3)
    assert named.isclose(fs.from_sampler(scheduler, 6))
    assert named.nfe == 6 and isinstance(named.noise, Discrete)
    flow = foreign("diffusers:FlowMatchEulerDiscreteScheduler", options={"shift": 3.0, "sigmas": [1.0, 0.8, 0.5]})
    torch.testing.assert_close(
        Flow().sigma(flow.times), torch.tensor([1.0, 0.9231, 0.75, 0.0], dtype=torch.float64), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ArgumentError, match="did you mean.*UniPCMultistepScheduler"):
        foreign("diffusers:UniPCScheduler", 6)
    with pytest.raises(ArgumentError, match="has no option"):
        foreign("diffusers:DDIMScheduler", 6, options={"colour": 3})
    with pytest.raises(ArgumentError, match="holds no scheduler_config"):
        read_config(tmp_path / "nothing")


def test_functions_and_schedulers_of_a_module(monkeypatch):
    module = ModuleType("samplers_of_mine")
    module.in_sigma = sample_ddim
    module.in_time = lambda model, x, ts: x + 0 * sum(model(x, t) for t in ts[:-1])
    monkeypatch.setitem(sys.modules, "samplers_of_mine", module)
    assert foreign("python:samplers_of_mine:in_sigma", 4).isclose(
        solvers.euler(times.karras(EDM(), 4)).tabulate(EDM()), 1e-9
    )
    still = foreign("python:samplers_of_mine:in_time", 4, noise=Flow())
    assert still.nfe == 4 and still.unrolled().A[-1, 0] == 1
    with pytest.raises(ArgumentError, match="--noise is missing"):
        foreign("python:samplers_of_mine:in_time", 4)
    with pytest.raises(ArgumentError, match="it has in_sigma, in_time"):
        foreign("python:samplers_of_mine:none", 4)
    with pytest.raises(ArgumentError, match="write diffusers:CLASS"):
        foreign("a1111:euler", 4)


def test_show_prints_saves_and_compares(tmp_path, k_diffusion):
    file = tmp_path / "start.json"
    shown = run("show", "--from", "k_diffusion:sample_euler", "--steps", 4, "--save", file)
    assert shown.exit_code == 0, shown.output
    assert "4 network calls" in shown.stdout
    assert Tableau.load(file).nfe == 4
    heun = tmp_path / "heun.json"
    grid = times.karras(EDM(), 4)
    solvers.dpmpp_2m(grid).tabulate(EDM()).save(heun)
    told = run("show", file, "--against", heun)
    assert told.exit_code == 0, told.output
    assert "largest, relative to a row's largest weight" in told.stdout
    same = run("show", "--from", "k_diffusion:sample_euler", "--steps", 4, "--against", file, "--json")
    data = json.loads(same.stdout)
    assert data["remarks"] == ["the same sampler"] and data["largest"] < 1e-12
    for words, match in (
        (("show",), "one of them"),
        (("show", file, "--steps", 3), "--steps belongs to --from"),
        (("show", file, "--option", "a=1"), "--option belongs to --from"),
        (("show", "--from", "k_diffusion:sample_euler", "--steps", 3, "--noise", "pink"), "--noise pink"),
        (("show", "--from", "k_diffusion:sample_euler", "--config", file, "--steps", 3), "--config is for diffusers"),
    ):
        failed = run(*words)
        assert failed.exit_code == 2 and match in " ".join(failed.output.split()), failed.output


def test_rows_part_where_tables_do():
    grid = times.karras(EDM(), 4)
    one = solvers.dpmpp_2m(grid).tabulate(EDM())
    B = one.B.clone()
    B[3, 2] += 0.25
    two = dataclasses.replace(one, B=B, expected=("changed",))
    found = compared(one, two)
    assert [row["outputs"] for row in found.rows[:3]] == [0, 0, 0]
    assert found.rows[3]["outputs"] == pytest.approx(0.25)
    assert found.rows[3]["noise"] == 0 and found.largest >= 0.25
    more = compared(one, solvers.dpmpp_2m(times.karras(EDM(), 6)).tabulate(EDM()))
    assert more.remarks == ("they make 4 and 6 network calls",) and len(more.rows) == 5
    assert "4 and 6" in str(more)
    random = compared(one, solvers.euler_ancestral(grid).tabulate(EDM()))
    assert any("noise: 0 columns and 3" in r for r in random.remarks)
    with pytest.raises(ArgumentError, match="same noise"):
        compared(one, solvers.euler(times.uniform(Flow(), 4)).tabulate(Flow()))


def test_a_search_may_start_from_a_table_and_is_not_worse(k_diffusion):
    model = fs.load("problem:gaussian")
    table = foreign("k_diffusion:sample_euler", 4, options={"times": "logsnr"}, noise=model.noise)
    found = fs.optimize(model, 4, "dmn", max_calls=14_000, given=table)
    entries = {c["origin"]: c for c in found.candidates}
    assert table.schedule is None and {c["solver"] for c in found.candidates} == {"dpmpp_2m", "sample_ddim (given)"}
    assert entries["the given table"]["method"] == "given"
    assert entries["logsnr"]["method"] == "hand"  # its times are one of the hand-crafted grids, whose place stays
    fresh = {c["origin"]: c["fresh"]["score"] for c in found.candidates if "fresh" in c}
    assert "the given table" in fresh  # it stands in the finals whatever its rank
    assert fresh[found.origin] <= fresh["the given table"]


def test_a_start_that_does_not_fit_is_refused_at_once(k_diffusion):
    model = fs.load("problem:gaussian")
    table = foreign("k_diffusion:sample_euler", 4, noise=model.noise)
    with pytest.raises(ArgumentError, match="makes 4 network calls, and nfe is 5"):
        fs.optimize(model, 5, "dmn", given=table)
    with pytest.raises(ArgumentError, match="trace it with the network's"):
        fs.optimize(model, 4, "dmn", given=solvers.euler(times.karras(SD, 4)).tabulate(SD))
    low = solvers.euler(times.karras(model.noise, 4, start=5.0)).tabulate(model.noise)
    with pytest.raises(ArgumentError, match=r"starts at noise level 5, and the search at 80"):
        fs.optimize(model, 4, "dmn", given=low)


@pytest.mark.parametrize("decided", [False, True])
def test_a_search_of_whole_schedules_tries_the_given_one_first(k_diffusion, tmp_path, decided):
    from fewstep import searching
    from fewstep.study.reading import read

    model = fs.load("problem:gaussian")
    table = foreign("k_diffusion:sample_euler", 3, options={"times": "quadratic"}, noise=model.noise)
    if decided:
        table = solvers.heun(times.karras(model.noise, 2)).tabulate(model.noise)
    study = tmp_path / "study.sqlite"
    options = {"nfes": [3], "images": [16], "fresh": 0}
    with searching.start(study, "problem:gaussian", budget=6, given=table, **options) as search:
        search.run()
    origins = [entry.trial.proposal.origin for _, entry in sorted(read(study).entries.items())]
    assert origins[0] == ("given: heun" if decided else "dpmpp_2m on the times of sample_ddim")
    assert len(origins) == 6 and any(" on " in o and "times of" not in o for o in origins)
    with pytest.raises(ArgumentError, match="makes 3 network calls, and 4 are searched"):
        searching.start(tmp_path / "other", "problem:gaussian", budget=6, given=table, **options | {"nfes": [4]})
    assert not (tmp_path / "other").exists()
