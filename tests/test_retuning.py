"""What a host can run instead of a table, chosen and scored with the network."""

import dataclasses
import math

import pytest
import torch

import fewstep as fs
from fewstep import solvers
from fewstep.errors import ArgumentError, LossyExport
from fewstep.export import export
from fewstep.export_hosts import integer_times
from fewstep.noise import Discrete
from fewstep.retuning import retuned

SD = Discrete.scaled_linear(0.00085, 0.012, 1000)


@pytest.fixture(scope="module")
def model():
    """Exact x0 of two narrow clusters in the plane, in Stable Diffusion's noise."""
    centre, spread = torch.tensor([1.0, -0.5]), 0.15

    def fn(x, t, _):
        alpha, sigma = float(SD.alpha(t)), float(SD.sigma(t))
        variance = (alpha * spread) ** 2 + sigma**2
        inner = (x * centre.to(x.dtype)).sum(-1, keepdim=True) * alpha / variance
        mean = torch.tanh(inner) * centre.to(x.dtype)
        return mean + alpha * spread**2 / variance * (x - alpha * mean)

    return fs.Denoiser(fn, noise=SD, shape=(2,), fingerprint="two clusters")


def learned():
    grid = torch.tensor([999.0, 700.4, 300.7, 60.5, -1], dtype=torch.float64)
    table = solvers.dpmpp_2m(grid).tabulate(SD)
    return dataclasses.replace(table, B=table.B * 1.02, name="learned", expected=("learned",))


def test_the_host_gets_its_best_and_the_price_is_told(model):
    told = []
    done = retuned(learned(), "comfyui", model, images=48, fresh=128, trials=16, progress=told.append)
    assert done.judge.startswith("RMS") or "teacher" in done.judge
    assert set(done.scores) == {"original", "nearest", "retuned"}
    assert all(s["samples"] == 128 and s["standard_error"] > 0 for s in done.scores.values())
    assert done.export.losses and "weights of learned" in done.export.losses[0]
    # What is exported is exactly what was scored: the host reads the same table out of the text.
    again = export(done.tableau, "comfyui")
    assert again.text == done.export.text and again.runs.isclose(done.export.runs)
    assert done.trials <= 16 and len(told) > 4
    # Times that the host will not round: every one is an index of its table.
    assert done.tableau.times[:-1].tolist() == integer_times(SD, done.tableau.times[:-1]).tolist()
    assert done.export.runs.isclose(done.tableau)
    # Selection can only have improved on where it began; on this problem the fresh seeds agree.
    assert done.gain["value"] > -3 * done.gain["standard_error"]
    assert math.isclose(
        done.gain["value"], done.scores["nearest"]["value"] - done.scores["retuned"]["value"], abs_tol=1e-9
    )


def test_moves_help_where_the_times_are_bad(model):
    bad = torch.tensor([999.0, 990, 980, 970, -1], dtype=torch.float64)
    table = solvers.euler(bad).tabulate(SD)
    broken = dataclasses.replace(table, B=table.B * 1.01, expected=("learned",))
    done = retuned(broken, "sdnext", model, images=48, fresh=128, trials=40)
    assert done.gain["value"] > 5 * done.gain["standard_error"]
    assert [int(v) for v in done.export.text.split(", ")] == done.tableau.times[:-1].tolist()


def test_what_cannot_be_retuned_says_so(model):
    with pytest.raises(ArgumentError, match="retune for one of comfyui"):
        retuned(learned(), "sigmas", model)
    with pytest.raises(ArgumentError, match="the network uses"):
        retuned(solvers.euler(torch.tensor([80.0, 1, 0])).tabulate(fs.noise.EDM()), "comfyui", model)
    free = dataclasses.replace(solvers.heun(torch.tensor([999.0, 500, 100, -1], dtype=torch.float64)), afs="unit")
    with pytest.raises(LossyExport, match="4 network calls on 3 steps"):
        retuned(free.tabulate(SD), "sdnext", model, images=8, fresh=8)
