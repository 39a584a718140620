"""Sets in the plane: their samplers, the small networks for them, and the benchmark that measures schedules there."""

import math
from pathlib import Path

import pytest
import torch

import fewstep as fs
from benchmarks import toys, toys_cells, toys_figures, toys_tables
from benchmarks.quality_cells import Deadline, work
from benchmarks.toys_cells import Place, Sizes
from benchmarks.toys_sets import MixtureToy, TrainedToy, toy
from fewstep.compare import Results
from fewstep.errors import ArgumentError
from fewstep.metrics import entropy, kl_of_samples
from fewstep.models import load
from fewstep.networks.points import PointNetwork, points_denoiser
from fewstep.networks.train_points import train
from fewstep.problems import datasets
from fewstep.randomness import ReportSeeds

TINY = Sizes(calibration=64, selection=240, fresh=240, report=320, sets=2)


@pytest.mark.parametrize("name", datasets.NAMES)
def test_points_are_centred_scaled_and_seeded(name: str) -> None:
    points = datasets.draw(name, 40_000, seed=3)
    assert points.shape == (40_000, 2) and points.dtype == torch.float32
    assert torch.equal(points, datasets.draw(name, 40_000, seed=3))
    assert not torch.equal(points[:100], datasets.draw(name, 40_000, seed=4)[:100])
    torch.testing.assert_close(points.mean(0), torch.zeros(2), atol=0.012, rtol=0)
    torch.testing.assert_close(points.std(0), torch.full((2,), 0.5), atol=0.015, rtol=0)


def test_spirals_lie_on_two_arms() -> None:
    points = datasets.spirals(5000, seed=1).double()
    turn = torch.linspace(0, 1, 4000, dtype=torch.float64)
    angle = 2 * math.pi * datasets.TURNS * turn
    arm = turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    to_one, to_other = (torch.cdist(points, side).min(1).values for side in (arm, -arm))
    # Distance to the nearest of two curves: half a normal of deviation JITTER.
    away = torch.minimum(to_one, to_other)
    assert away.max() < 5 * datasets.JITTER
    assert away.square().mean().sqrt().item() == pytest.approx(datasets.JITTER, rel=0.1)
    assert (to_one < to_other).double().mean().item() == pytest.approx(0.5, abs=0.03)
    # Even in area: the share inside radius r is r^2.
    assert (points.norm(dim=1) < 0.5).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_checkerboard_fills_its_dark_squares_evenly() -> None:
    points = datasets.checkerboard(80_000, seed=1).double()
    assert points.abs().max() <= datasets.HALF_SIDE
    square = ((points / datasets.HALF_SIDE + 1) / 2 * datasets.SQUARES).floor().long().clamp(0, 3)
    # A point at the very edge of a square may be rounded over it.
    light = (square.sum(1) % 2 == 1).double().mean()
    assert light < 1e-4
    shares = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16).double() / len(points)
    dark = [4 * i + j for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    torch.testing.assert_close(shares[dark], torch.full((8,), 0.125, dtype=torch.float64), atol=0.005, rtol=0)
    # Its entropy is the logarithm of its area.
    area = 2 * datasets.HALF_SIDE**2
    assert entropy(points[:20_000]).value == pytest.approx(math.log(area), abs=0.05)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ArgumentError, match="spirals, checkerboard"):
        datasets.draw("moons", 10)
    with pytest.raises(ArgumentError, match="n=0"):
        datasets.spirals(0)
    with pytest.raises(ArgumentError, match="no network for points named 'moons'"):
        points_denoiser("moons")


def test_divergence_of_samples_against_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(20_000, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    assert kl_of_samples(a, b).value == pytest.approx(0.0, abs=0.03)
    # KL(N(0, s^2) || N(0, 1)) in two dimensions is s^2 - 1 - log s^2.
    estimate = kl_of_samples(0.6 * c, b)
    assert estimate.value == pytest.approx(0.36 - 1 - math.log(0.36), abs=0.04)
    assert 0 < estimate.standard_error < 0.02
    with pytest.raises(ArgumentError, match="one shape"):
        kl_of_samples(a, b[:, :1])
    with pytest.raises(ArgumentError, match="coincide"):
        kl_of_samples(torch.zeros(50, 2), b)
    with pytest.raises(ArgumentError, match="drawn apart"):
        kl_of_samples(a, torch.cat([a, a, a]))


@pytest.mark.parametrize("name", datasets.NAMES)
def test_shipped_network_denoises(name: str) -> None:
    """Better than handing back the state, or the mean of the data, at every noise level; near the best at the ends."""
    model, clean = points_denoiser(name), datasets.draw(name, 4000, seed=9)
    assert model.shape == (2,) and model.noise == fs.noise.EDM(0.002, 80.0)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    for sigma in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        x = clean + sigma * noise
        loss = (model(x, sigma) - clean).square().mean().item()
        assert loss < 0.97 * (x - clean).square().mean().item()
        assert loss < 0.9 * clean.square().mean().item()
    far = model(80 * noise[:64], 80.0)
    assert far.abs().max() < 0.2  # nothing is left of the data: the answer is their mean
    assert load(f"python:fewstep.networks.points:{name}").fingerprint == model.fingerprint


@pytest.mark.parametrize("name", datasets.NAMES)
def test_shipped_network_samples_its_set(name: str) -> None:
    model = points_denoiser(name)
    table = fs.solvers.dpmpp_2m(fs.times.karras(model.noise, 30)).tabulate(model.noise)
    made = fs.sample(model, table, seeds=range(3000))
    reference = datasets.draw(name, 20_000, seed=8)
    assert kl_of_samples(made, reference).value < 0.3
    blur = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    assert kl_of_samples(blur, reference).value > 0.5


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config, out = {"width": 16, "depth": 1}, tmp_path / "points.safetensors"
    arguments = {"batch": 32, "rate": 1e-2, "config": config}
    first = train("spirals", out, steps=40, **arguments)
    assert train("spirals", out, steps=40, **arguments) == first  # nothing is left to do
    assert train("spirals", out, steps=300, **arguments) < first
    from fewstep.networks.points import load_points

    model = load_points(out)
    x = torch.ones(3, 2)
    assert model(x, 0.5).shape == (3, 2)
    torch.testing.assert_close(PointNetwork(**config)(x, torch.full((3,), 0.5)), 0.5 * x)  # its start: c_skip alone


def test_denoiser_by_axes_is_the_denoiser() -> None:
    for name in ("grid_8x8", "grid_8x4"):
        a = MixtureToy(name)
        exact = a.problem.denoiser()
        x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        for sigma in (0.002, 0.05, 0.3, 80.0):
            state = a.data(200, 1) + sigma * x
            torch.testing.assert_close(a.model(state, sigma), exact(state, sigma), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of one grid and one trained set that two places need, in tiny."""
    path = tmp_path_factory.mktemp("toys") / "toys.jsonl"
    kept = Results(path)
    few = {name: fs.times.NAMES[name] for name in ("karras", "logsnr", "tangent")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs.times, "NAMES", few)
        fill(kept)
    return path


def fill(kept: Results) -> None:
    for name, solver in (("grid_6x6", "sde_dpmpp_1"), ("spirals", "sde_dpmpp_2m")):
        a = toy(name)
        chosen = [Place(name, solver, 6)]
        assert toys_cells.search_all(a, kept, Deadline(None), TINY, chosen) == 0
        assert work(list(toys_cells.jobs_of(a, kept, TINY, chosen)), kept, Deadline(None), quiet=True) == 0


@pytest.mark.slow
def test_scores_survive_and_are_not_made_again(stored: Path) -> None:
    kept, a = Results(stored), toy("grid_6x6")
    place = Place("grid_6x6", "sde_dpmpp_1", 6)
    before = len(kept)
    assert toys_cells.search_all(a, kept, Deadline(0.0), TINY, [place]) == 0
    jobs = list(toys_cells.jobs_of(a, kept, TINY, [place]))
    assert work(jobs, kept, Deadline(0.0), quiet=True) == 0 and len(kept) == before
    found = kept.get(toys_cells.search_key(a, place, TINY))
    assert found is not None and set(found["times"]) == set(toys_cells.METHODS)
    for where in found["times"].values():
        assert where[0] == 80.0 and where[-1] == 0.002 and len(where) == 7
    assert found["klub"]["converged"] <= min(found["klub"].values())
    exact, one = (kept.get(job.key) for job in jobs[:2])
    assert exact is not None and one is not None and set(exact) == {"nll", "kl", "sw"}
    assert exact["nll"] < one["nll"]


def test_exact_samples_score_best(stored: Path) -> None:
    measured = toys_tables.Measured(toy("grid_6x6"), Results(stored), TINY)
    floor = measured.exact("sw")
    made = measured.at("sde_dpmpp_1", "edm", 6, "sw")
    assert floor is not None and made is not None and floor.least <= floor.value <= floor.most < made.value
    assert measured.at("ddim", "edm", 6, "nll") is None


def test_report_from_stored_scores(stored: Path, tmp_path: Path) -> None:
    page, names = tmp_path / "ays-toys.md", ("paper", "wins", "grid_8x8", "grid_8x4", "grid_6x6", *datasets.NAMES)
    around = "".join(f"before {n}\n<!-- toys:{n} -->\nold\n<!-- /toys:{n} -->\n" for n in (*names, "origins"))
    page.write_text(around, encoding="utf-8")
    toys_tables.write(page, Results(stored), TINY)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text and "before origins" in text
    measured = toys_tables.Measured(toy("grid_6x6"), Results(stored), TINY)
    nll = measured.at("sde_dpmpp_1", "edm", 6, "nll")
    assert nll is not None and f"| 6 × 6, stochastic DDIM | EDM | {nll.value:.2f} (1.17)".replace("-", "−") in text
    assert "| n/a (9.02) |" in text  # not measured, the paper's beside it
    toys_tables.write(page, Results(stored), TINY)
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="no block toys:none"):
        toys_tables.replace(text, "none", "")


def test_order_is_compared_with_the_paper() -> None:
    assert toys_tables.ranking({"a": 2.0, "b": 1.0, "c": 3.0}) == ["b", "a", "c"]
    assert str(toys_tables.Mean.of([1.0, 2.0, 3.0])) == "2.000 ± 1.000"
    assert str(toys_tables.Mean.of([-1.0])) == "−1.000"
    assert all(len(v) == len(toys_cells.NFES) for rows in toys_tables.PAPER.values() for v in rows.values())


def test_histograms_count_every_point() -> None:
    points = torch.tensor([[0.9, -0.9], [0.9, -0.9], [-0.1, 0.1], [5.0, 0.0]])
    grid = toys_figures.counts(points, 1.0)
    assert grid.shape == (50, 50) and grid.sum() == 3
    assert grid[2, 47] == 2 and grid[27, 22] == 1  # rows are the second coordinate
    figure = toys_figures.histogram_figure([("data", "", points), ("EDM", "KL 1", points)], "title", 1.0)
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["data", "EDM"]
    assert len({image.norm.vmax for axis in figure.axes[:2] for image in axis.images}) == 1


def test_command_line(stored: Path, tmp_path: Path) -> None:
    sizes = [word for name, size in TINY._asdict().items() for word in (f"--{name}", str(size))]
    toys.main(["score", "--names", "spirals", "--results", str(stored), "--minutes", "0", *sizes])
    toys.main(["figures", "--names", "spirals", "--results", str(stored), "--docs", str(tmp_path), *sizes])
    assert (tmp_path / "assets" / "tables" / "toys_spirals.png").read_bytes().startswith(b"\x89PNG")


def test_coinciding_samples_are_infinitely_far() -> None:
    a = TrainedToy("spirals", reference=500)
    assert a.divergence(torch.zeros(100, 2)) == math.inf
    assert a.exact(ReportSeeds(50)).shape == (50, 2)
