"""The Gram-matrix KLUB against closed forms (Gaussian data) and Monte Carlo; the cache, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep import problems, times
from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError, DenoiserError, SeedsError
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.ledger import speed

C = 0.5
NOISE = EDM()


def analytic(levels: int, c: float = C) -> Gram:
    """E[D_j D_k] for N(0, c^2): D = gamma x, gamma = c^2 / (c^2 + r^2), and a path has covariance c^2 + min(r)^2."""
    grid = ratio_grid(NOISE, levels)
    whole = torch.cat([torch.zeros(1, dtype=torch.float64), grid])
    gamma = c**2 / (c**2 + whole**2)
    products = gamma[:, None] * gamma * (c**2 + torch.minimum(whole[:, None], whole) ** 2)
    return Gram(grid, products[None], torch.ones(1, dtype=torch.float64))


def exact(low: Tensor, high: Tensor, c: float = C) -> Tensor:
    """The closed form of the integral of r^-3 c^4 (1/(r^2+c^2) - 1/(high^2+c^2))."""
    logs = torch.log((high**2 + c**2) * low**2 / ((low**2 + c**2) * high**2))
    return c**4 * (
        -(high**-2 - low**-2) / (2 * c**2) + logs / (2 * c**4) - (low**-2 - high**-2) / (2 * (high**2 + c**2))
    )


GRIDS = {
    "karras": (times.karras(NOISE, 10, end="min"), 46.605),
    "logsnr": (times.logsnr(NOISE, 10, end="min"), 11.734),
    "tangent c=0.5": (times.tangent(NOISE, 10, c=0.5, end="min"), 790.6),
    "tangent c=1": (times.tangent(NOISE, 10, c=1.0, end="min"), 2864.1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_published_values(name: str) -> None:
    """KLUB / d of known grids for c = 0.5: 0.4 % off with the default 128 levels, and converging."""
    grid, value = GRIDS[name]
    assert exact(grid[1:], grid[:-1]).sum().item() == pytest.approx(value, rel=1e-4)
    assert analytic(128).total(grid) == pytest.approx(value, rel=4e-3)
    assert analytic(1024).total(grid) == pytest.approx(value, rel=1e-4)


def test_published_normaliser() -> None:
    """Z1 of the importance proposal (c = 0.5) is this integral over c^4: 10.472895 and 10.697166."""
    ends = torch.tensor([[0.1, 0.2], [0.2, 0.5]], dtype=torch.float64)
    assert torch.allclose(exact(*ends.T) / C**4, torch.tensor([10.472895, 10.697166], dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(
        analytic(2048).klub(*ends.T) / C**4, torch.tensor([10.472895, 10.697166], dtype=torch.float64), rtol=1e-4
    )


def test_every_pair_of_levels() -> None:
    """On and off the grid, far and near, in one cell and across many (at high noise the closed form itself cancels)."""
    gram = analytic(1024)
    generator = torch.Generator().manual_seed(0)
    logs = torch.empty(2, 500, dtype=torch.float64).uniform_(-6.2, 2.0, generator=generator).sort(0).values
    low, high = logs.exp()
    assert ((gram.klub(low, high) - exact(low, high)) / exact(low, high)).abs().max() < 6e-3
    at = gram.ratios
    assert torch.allclose(gram.klub(at[10], at[11:]), exact(at[10], at[11:]), rtol=1e-2)
    assert gram.klub(at[5:], at[5:]).abs().max() == 0


def test_look_up_is_the_integral_of_its_own_interpolant() -> None:
    """A fine trapezoid of V(r, b) / r^2 d log r with V linear in log r between levels, in both arguments."""
    gram = analytic(12)
    logs = gram.ratios.log()

    def column(b: float) -> Tensor:
        """V at the levels below b, and zero at b."""
        j = min(int(torch.searchsorted(logs, torch.tensor(b, dtype=torch.float64), right=True)) - 1, 10)
        f = (b - logs[j]) / (logs[j + 1] - logs[j])
        return torch.cat(
            [(1 - f) * gram.gaps[: j + 1, j] + f * gram.gaps[: j + 1, j + 1], torch.zeros(1, dtype=torch.float64)]
        )

    for a, b in ((-6.0, 4.0), (-3.1, -2.0), (-1.0, 1.7), (0.11, 0.12), (logs[3].item(), logs[6].item() + 1e-9)):
        values = column(b)
        knots = torch.cat([logs[: len(values) - 1], torch.tensor([b], dtype=torch.float64)])
        u = torch.linspace(a, b, 400001, dtype=torch.float64)
        k = torch.searchsorted(knots, u, right=True).sub(1).clamp(0, len(knots) - 2)
        v = values[k] + (u - knots[k]) / (knots[k + 1] - knots[k]) * (values[k + 1] - values[k])
        whole = torch.trapezoid(v * torch.exp(-2 * u), u).item()
        found = gram.klub(torch.tensor(a).double().exp(), torch.tensor(b).double().exp()).item()
        assert found == pytest.approx(whole, rel=1e-6)


def test_ideal_denoiser_is_a_martingale() -> None:
    gram = analytic(64)
    assert gram.martingale_defect() < 1e-12
    assert torch.allclose(gram.loss, C**2 * gram.ratios**2 / (C**2 + gram.ratios**2), rtol=1e-12)


def test_total_takes_either_order_and_adds_up() -> None:
    gram = analytic(128)
    grid = GRIDS["karras"][0]
    assert gram.total(grid) == gram.total(grid.flip(0))
    assert gram.total(grid) == pytest.approx(gram.klub(grid[1:], grid[:-1]).sum().item(), rel=1e-12)


def test_above_the_grid_its_last_column_stands() -> None:
    gram = analytic(128)
    top = gram.ratios[-1]
    assert torch.equal(gram.klub(torch.tensor(0.1), torch.tensor(float("inf"))), gram.klub(torch.tensor(0.1), top))


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), Flow(shift=3.0)], ids=lambda n: n.family)
def test_one_pass_over_gaussian_data(noise: object) -> None:
    """Monte Carlo against the closed form, in any noise schedule, within five standard errors."""
    problem = problems.Gaussian(0.3, torch.tensor([C**2] * 16), shape=(16,), noise=noise)
    data = problem.sample(256, seed=1)
    levels = ratio_grid(EDM(0.011, 10.0), 24)
    gram = Gram.compute(problem.denoiser(), data, ratios=levels)
    assert gram.samples == 256 and gram.calls == 256 * 24
    ideal = C**4 * (1 / (levels[:, None] ** 2 + C**2) - 1 / (levels**2 + C**2)).abs()
    # E|D_j - D_k|^2 is a mean of 256 x 16 squared normals.
    assert ((gram.gaps - ideal).abs() <= 5 * ideal * (2 / (256 * 16)) ** 0.5 + 1e-7).all()
    value, error = gram.total_with_error(levels[::4])
    assert abs(value - exact(levels[::4][:-1], levels[::4][1:]).sum().item()) < 5 * error + 0.02 * value
    assert gram.martingale_defect() < 0.1


def test_a_wrong_denoiser_is_no_martingale() -> None:
    def fn(x: Tensor, t: object, condition: object) -> Tensor:
        return 0.5 * x / (1 + float(t)) ** 0.5

    net = Denoiser(fn, noise=EDM(0.01, 10.0), shape=(4,))
    assert (
        Gram.compute(
            net, torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), ratios=ratio_grid(net.noise, 8)
        ).martingale_defect()
        > 0.15
    )


def test_results_do_not_depend_on_the_batch() -> None:
    problem = problems.get("gaussian_8x8")
    data, levels = problem.sample(24, seed=2), ratio_grid(NOISE, 10)
    one, three = (Gram.compute(problem.denoiser(), data, ratios=levels, batch_size=b) for b in (24, 5))
    assert torch.allclose(one.blocks, three.blocks, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.counts, three.counts)


MEMORY = """
import torch
from pathlib import Path
from fewstep.denoiser import from_callable
from fewstep.noise import EDM
from fewstep.randomness import CalibrationSeeds
from fewstep.search.klub import Gram, ratio_grid
torch.set_num_threads(1)
shape, batch, levels = (3, 64, 64), 16, 32
x0 = lambda x, t: x / (1 + t.view(-1, 1, 1, 1) ** 2)
model = from_callable(x0, prediction="x0", noise=EDM(), shape=shape, check=False)
data = torch.ones(6 * batch, *shape)
for n in (2, batch, 6 * batch):
    Gram.compute(model, data[:n], seeds=CalibrationSeeds(n), ratios=ratio_grid(EDM(), levels), batch_size=batch)
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # the peak so far, in KiB
"""
"""Peaks of a process of its own after passes over 2, 16 and 96 samples, 16 in a batch."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's peak")
def test_memory_is_that_of_one_batch_whatever_the_number_of_samples() -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    least, one, six = (1024 * int(word) for word in run.stdout.split())
    outputs = 16 * 32 * 3 * 64 * 64 * 4  # of one batch at all levels
    assert one - least < 3 * outputs
    assert six - one < outputs  # keeping them all would take five times that


def test_a_batch_that_does_not_fit_is_halved() -> None:
    problem = problems.get("gaussian_8x8")
    data, levels, inner = problem.sample(24, seed=2), ratio_grid(NOISE, 10), problem.denoiser()
    limit, calls = 5, 0

    def small(x: Tensor, t: object, condition: object = None) -> Tensor:
        nonlocal calls
        calls += 1
        if len(x) > limit or calls == 10:  # in the middle of a batch, too
            raise torch.OutOfMemoryError("pretended")
        return inner(x, t)

    net = Denoiser(small, noise=NOISE, shape=problem.shape)
    whole = Gram.compute(inner, data, ratios=levels)
    assert torch.allclose(Gram.compute(net, data, ratios=levels).blocks, whole.blocks, rtol=1e-5, atol=1e-6)
    assert speed(net, None, 24) > 0
    limit = 0
    with pytest.raises(DenoiserError, match="single noising path"):
        Gram.compute(net, data, ratios=levels)


class Interrupted(Denoiser):
    """Stops after a number of calls, as Ctrl-C does."""

    left = 10**9

    def __call__(self, x: Tensor, t: object, condition: object = None) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(x, t, condition)


def test_interrupted_pass_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    problem = problems.get("gaussian_8x8")
    data, levels = problem.sample(24, seed=2), ratio_grid(NOISE, 10)

    def net() -> Interrupted:
        exact = problem.denoiser()
        return Interrupted(exact.fn, noise=NOISE, shape=exact.shape, fingerprint="a")

    whole = Gram.compute(net(), data, ratios=levels, batch_size=8)
    broken = net()
    broken.left = 17
    with pytest.raises(KeyboardInterrupt):
        Gram.compute(broken, data, ratios=levels, batch_size=8, cache=tmp_path)
    again = net()
    resumed = Gram.compute(again, data, ratios=levels, batch_size=8, cache=tmp_path)
    assert torch.equal(whole.blocks, resumed.blocks)
    assert again.evaluations == 16 * 10 + 1  # two batches of three, and the cache's question
    free = net()
    assert torch.equal(Gram.compute(free, data, ratios=levels, cache=tmp_path).blocks, whole.blocks)
    assert free.evaluations == 1


def test_cache_of_another_network_is_refused(tmp_path: Path) -> None:
    problem = problems.get("gaussian_8x8")
    data, levels = problem.sample(8, seed=2), ratio_grid(NOISE, 4)
    first = Denoiser(problem.denoise, noise=NOISE, shape=problem.shape, fingerprint="same")
    other = Denoiser(
        lambda x, t, c: 0.5 * problem.denoise(x, t, c), noise=NOISE, shape=problem.shape, fingerprint="same"
    )
    Gram.compute(first, data, ratios=levels, cache=tmp_path)
    with pytest.raises(DenoiserError, match="delete that file"):
        Gram.compute(other, data, ratios=levels, cache=tmp_path)


def test_damaged_cache_is_made_again(tmp_path: Path) -> None:
    problem = problems.get("gaussian_8x8")
    data, levels = problem.sample(8, seed=2), ratio_grid(NOISE, 4)
    made = Gram.compute(problem.denoiser(), data, ratios=levels, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(Gram.compute(problem.denoiser(), data, ratios=levels, cache=tmp_path).blocks, made.blocks)


def test_what_is_refused() -> None:
    net = problems.get("gaussian").denoiser()
    data = torch.zeros(4, 2)
    with pytest.raises(SeedsError, match="seeds must be CalibrationSeeds"):
        Gram.compute(net, data, seeds=SelectionSeeds(4))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="3 seeds"):
        Gram.compute(net, data, seeds=CalibrationSeeds(3))
    with pytest.raises(ArgumentError, match="shape"):
        Gram.compute(net, torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="rising"):
        Gram(torch.tensor([2.0, 1.0]).double(), torch.zeros(1, 3, 3).double(), torch.ones(1).double())
    with pytest.raises(ArgumentError, match="end the grid at t_min"):
        analytic(16).klub(torch.tensor(1e-4), torch.tensor(1.0))
    broken = Denoiser(lambda x, t, c: x * float("nan"), noise=NOISE, shape=(2,), check_finite=False)
    with pytest.raises(DenoiserError, match="not finite at time"):
        Gram.compute(broken, data)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1e-6, 0.1, 1.0], "and the network's noise levels from"),
        ([0.1, 1.0, 1e6], "and the network's noise levels from"),
        ([1.0, 0.5, 0.1], "that rise"),
        ([0.1, float("nan"), 1.0], "that rise"),
    ],
)
def test_noise_levels_that_the_network_does_not_know_are_refused(ratios: list[float], said: str) -> None:
    model = problems.get("gaussian_8x8", NOISE).denoiser()
    levels = torch.tensor(ratios, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=said):
        Gram.compute(model, torch.zeros(4, *model.shape), seeds=CalibrationSeeds(4), ratios=levels)
    assert model.evaluations == 0


def test_data_that_are_not_finite_are_the_datas_fault() -> None:
    model = problems.get("gaussian_8x8", NOISE).denoiser()
    data = torch.zeros(4, *model.shape)
    data[2] = float("nan")
    with pytest.raises(ArgumentError, match=r"data\[2\] is not finite"):
        Gram.compute(model, data, seeds=CalibrationSeeds(4))
    with pytest.raises(ArgumentError, match="batch_size=0"):
        Gram.compute(model, data[:2], seeds=CalibrationSeeds(2), batch_size=0)
    assert model.evaluations == 0


def test_a_batch_never_takes_more_memory_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for: outputs of 9 rows (8 levels and the data) of 64 floats are 2304 bytes a sample."""
    monkeypatch.setattr("fewstep.search.klub.BATCH_BYTES", 3 * 2304)
    seen: list[int] = []

    def fn(x: Tensor, t: object, condition: object) -> Tensor:
        seen.append(len(x))
        return 0.5 * x

    model = Denoiser(fn, noise=NOISE, shape=(64,))
    Gram.compute(model, torch.zeros(8, 64), ratios=ratio_grid(NOISE, 8), batch_size=8)
    assert max(seen) == 3


def test_a_table_is_kept_by_the_networks_precision(tmp_path: Path) -> None:
    def made(dtype: torch.dtype) -> Denoiser:
        return from_callable(
            lambda x, t: x / (1 + t.view(-1, 1) ** 2).to(x.dtype), prediction="x0", noise=NOISE, shape=(4,),
            network_dtype=dtype, check=False, fingerprint="one",
        )  # fmt: skip

    for count, dtype in enumerate((torch.float32, torch.bfloat16), 1):
        Gram.compute(made(dtype), torch.ones(2, 4), ratios=ratio_grid(NOISE, 8), cache=tmp_path)
        assert len(list(tmp_path.glob("gram-*"))) == count
