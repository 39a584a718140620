"""The loop: seeds, batches, conditions, dtypes, memory, gradients, compilation, image-to-image."""

import gc
import weakref

import pytest
import torch

import fewstep as fs
from fewstep import noise as ns
from fewstep import solvers
from fewstep.errors import ArgumentError, DenoiserError, SeedsError
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds, unit_noise
from fewstep.sampling import sample, trajectory
from fewstep.tableau import Tableau

EDM = ns.EDM()
TIMES = torch.tensor([80.0, 12.0, 3.0, 0.7, 0.1, 0.0], dtype=torch.float64)


class Net:
    """A network that depends on x, t and the condition."""

    noise = EDM
    dtype = torch.float32
    device = "cpu"

    def __init__(self, shape=(2, 6, 6), limit=None):
        self.shape, self.limit, self.batches = shape, limit, []

    def __call__(self, x, t, condition=None):
        self.batches.append(len(x))
        if self.limit and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        shift = 0.0 if condition is None else condition["label"].reshape(-1, *(1,) * (x.ndim - 1))
        return torch.tanh(x / (1 + t)) + 0.02 * t / (1 + t) + 0.1 * shift


@pytest.mark.parametrize("name", ["dpmpp_2m", "sde_dpmpp_2m", "dpmpp_sde", "unipc"])
def test_samples_do_not_depend_on_the_batch(name):
    table = solvers.NAMES[name](TIMES).tabulate(EDM)
    label = {"label": torch.arange(64.0)}
    whole = sample(Net(), table, seeds=range(64), condition=label)
    for size in (1, 7, 64):
        again = sample(Net(), table, seeds=range(64), condition=label, batch_size=size)
        assert (again - whole).abs().max() < 1e-5
    assert (
        sample(Net(), table, seeds=[63, 5], condition={"label": torch.tensor([63.0, 5.0])}) - whole[[63, 5]]
    ).abs().max() < 1e-5


def test_noise_is_bit_equal_in_any_batch():
    whole = unit_noise(range(64), (3, 4), 5)
    for size in (1, 7, 64):
        parts = torch.cat([unit_noise(range(lo, min(lo + size, 64)), (3, 4), 5) for lo in range(0, 64, size)])
        assert torch.equal(parts, whole)
    assert not torch.equal(whole, unit_noise(range(64), (3, 4), 6)) and whole.std() == pytest.approx(1, abs=0.05)
    flat = torch.cat([unit_noise(range(8), (50,), s) for s in range(8)])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.6


def test_out_of_memory_splits_the_batch():
    table = solvers.sde_dpmpp_2m(TIMES).tabulate(EDM)
    small = Net(limit=5)
    got = sample(small, table, seeds=range(23))
    assert (got - sample(Net(), table, seeds=range(23))).abs().max() < 1e-5
    assert max(small.batches[3:]) <= 6 and sorted(set(small.batches))[0] < 6
    with pytest.raises(DenoiserError, match="single sample"):
        sample(Net(limit=0.5), table, seeds=range(3))


@pytest.mark.parametrize("shape", [(7,), (4, 8, 8), (3, 2, 4, 4), ()])
def test_any_state_shape(shape):
    table = solvers.unipc(TIMES).tabulate(EDM)
    assert sample(Net(shape), table, seeds=range(3)).shape == (3, *shape)


def test_iteration_is_the_callback():
    table = solvers.heun(TIMES).tabulate(EDM)
    start = 80 * unit_noise(range(2), (2, 6, 6))
    points = list(trajectory(Net(), table, start))
    assert [p.row for p in points] == list(range(table.rows)) and points[-1].output is None
    assert torch.equal(points[-1].state, sample(Net(), table, seeds=range(2))) and points[0].time == 80.0
    calls = [p for p in points if p.output is not None]
    assert len(calls) == table.nfe and torch.equal(calls[0].output, Net()(start, 80.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_latents_accumulate_in_float32(dtype):
    table = solvers.dpmpp_2m(TIMES).tabulate(EDM)
    start = (80 * unit_noise(range(4), (2, 6, 6))).to(dtype)
    exact = sample(Net(), table, start=start.double())
    got = sample(Net(), table, start=start)
    states = [p.state.dtype for p in trajectory(Net(), table, start)]
    eps = torch.finfo(dtype).eps
    assert got.dtype == dtype and set(states) == {torch.float32} and (got.double() - exact).abs().max() < 4 * eps
    assert sample(Net(), table, start=start.float(), accumulate=torch.float64).dtype == torch.float32


@pytest.mark.parametrize(("solver", "options", "allowed"), [
    (solvers.dpmpp_3m, {}, 3 + 2), (solvers.dpmpp_2m, {}, 2 + 2), (solvers.deis, {"order": 3}, 2 * 3 + 2),
    (solvers.ipndm, {"order": 4}, 2 * 4 + 2),
])  # fmt: skip
def test_a_long_run_forgets(solver, options, allowed):
    """A 200-step teacher holds order + 2 tensors (data basis), 2 order + 2 (noise basis), at every network call."""
    times = torch.cat([torch.linspace(80, 0.01, 200, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    table = solver(times, **options).tabulate(EDM)
    alive, most = weakref.WeakSet(), 0

    class Tracked(torch.Tensor):
        pass

    def net(x, t, condition=None):
        nonlocal most
        alive.add(x)
        out = (x * 0.5 + t).as_subclass(Tracked)
        alive.add(out)
        gc.collect() if len(alive) > 40 else None
        most = max(most, len(alive))
        return out

    start = torch.ones(1, 3).as_subclass(Tracked)
    sample(net, table, start=start)
    # The caller's own start tensor lives on; it is not held by the loop.
    assert most <= allowed + 1


def test_gradients_through_the_loop_and_checkpointing():
    times = TIMES[:-1].clone().requires_grad_()
    start = 80 * unit_noise(range(3), (2, 4), dtype=torch.float64)

    def loss(t, **options):
        table = solvers.unipc(torch.cat([t, torch.zeros(1, dtype=torch.float64)])).tabulate(EDM)
        return (
            sample(lambda x, s, _: torch.tanh(x / (1 + s)) + 0.1 * s / (1 + s), table, start=start, **options)
            .pow(2)
            .sum()
        )

    (plain,) = torch.autograd.grad(loss(times), times)
    (again,) = torch.autograd.grad(loss(times, checkpoint=True), times)
    assert torch.equal(plain, again) or (plain - again).abs().max() < 1e-12
    for i in (1, 2, 3):
        d = 1e-6 * TIMES[i].item()
        up, down = TIMES[:-1].clone(), TIMES[:-1].clone()
        up[i] += d
        down[i] -= d
        fd = (loss(up) - loss(down)).item() / (2 * d)
        assert abs(plain[i].item() - fd) < 1e-5 * (1 + abs(fd))


def test_learned_weights_get_gradients_even_where_they_are_zero():
    base = solvers.ddim(TIMES).tabulate(EDM).unrolled()
    weights = base.B.clone().requires_grad_()
    table = Tableau(
        base.A, weights, base.times, base.alpha, base.sigma, evaluated=base.evaluated, expected=("learned",)
    )
    sample(Net((2,)), table, seeds=range(2)).sum().backward()
    lower = torch.ones_like(base.B).tril(-1).bool()
    assert (weights.grad[lower] != 0).all() and (weights.grad[~lower] == 0).all()


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "heun", "sde_dpmpp_2m", "er_sde"])
def test_compiles_without_a_graph_break(name):
    table = solvers.NAMES[name](TIMES).tabulate(EDM)
    start = 80 * unit_noise(range(2), (2, 4, 4))
    noise = [unit_noise(range(2), (2, 4, 4), m + 1) for m in range(table.C.shape[1])]
    net = Net((2, 4, 4))
    run = lambda x: sample(lambda y, t, c: torch.tanh(y / (1 + t)) + 0.1 * t, table, start=x, noise=noise.__getitem__)  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(start), run(start)) and net.shape == (2, 4, 4)


def test_image_to_image_from_any_level():
    """Starting low keeps the image; the start is alpha x0 + sigma noise."""
    noise = ns.VPLinear()
    times = torch.linspace(0.3, 0.0, 5, dtype=torch.float64)
    table = solvers.dpmpp_2m(times).tabulate(noise)
    init = torch.linspace(-1, 1, 2 * 36, dtype=torch.float32).reshape(2, 1, 6, 6)
    seen = []

    def net(x, t, condition=None):
        seen.append(x)
        return x * 0.9

    out = sample(net, table, seeds=range(2), init=init)
    want = noise.alpha(0.3) * init.double() + noise.sigma(0.3) * unit_noise(range(2), (1, 6, 6)).double()
    assert (seen[0] - want).abs().max() < 1e-6 and out.shape == init.shape
    perfect = sample(lambda x, t, c: init, table, seeds=range(2), init=init)
    assert (perfect - init).abs().max() < 1e-6


def test_constants_channels_and_per_element_weights_run():
    a = torch.zeros(3, 3, dtype=torch.float64)
    a[1, 0] = 0.5
    b = torch.zeros(3, 6, dtype=torch.float64)
    b[1, 0], b[1, 1], b[2, 2], b[2, 3] = 0.75, -0.25, 1.5, -0.5  # guidance 3 / 1.5 inside the table
    guided = Tableau(a, b, [2.0, 1.0, 0.0], [1.0, 1, 1], [2.0, 1, 0], channels=2).verify()
    net = lambda x, t, c=None: (torch.tanh(x), 0.1 * x + t)  # noqa: E731
    x = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    x1 = 0.5 * x + 0.75 * torch.tanh(x) - 0.25 * (0.1 * x + 2)
    want = 1.5 * torch.tanh(x1) - 0.5 * (0.1 * x1 + 1)
    assert (sample(net, guided, start=x) - want).abs().max() < 1e-14 and guided.nfe == 2 and guided.unrolled() == guided
    assert "D0.1" in str(guided)

    per = torch.zeros(3, 3, 2, dtype=torch.float64)
    per[1, 0], per[2, 1] = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 2.0])
    table = Tableau(
        a,
        per,
        [2.0, 1.0, 0.0],
        [1.0, 1, 1],
        [2.0, 1, 0],
        K=[[0.0], [0.0], [3.0]],
        constants=(torch.tensor([1.0, -1.0]),),
        expected=("made up",),
    )
    x1 = 0.5 * x + torch.tensor([0.5, 0.25]) * torch.tanh(x)
    want = torch.tensor([1.0, 2.0]) * torch.tanh(x1) + 3 * torch.tensor([1.0, -1.0])
    for t in (table, table.unrolled()):
        assert (sample(lambda y, s, c: torch.tanh(y), t, start=x) - want).abs().max() < 1e-14
    assert "per element" in str(table)


def test_bad_input_is_told_before_any_work():
    table = solvers.dpmpp_2m(TIMES).tabulate(EDM)
    net = Net()
    with pytest.raises(ArgumentError, match="nothing to start from"):
        sample(net, table)
    with pytest.raises(ArgumentError, match="first axis must be the 4 samples"):
        sample(net, table, seeds=range(4), condition={"label": torch.zeros(3)})
    with pytest.raises(ArgumentError, match="equal, non-zero lengths"):
        sample(net, table, seeds=range(4), init=torch.zeros(3, 2, 6, 6))
    with pytest.raises(ArgumentError, match="batch_size=0"):
        sample(net, table, seeds=range(4), batch_size=0)
    with pytest.raises(ArgumentError, match="own noise schedule"):
        sample(net, solvers.ddim(torch.tensor([1.0, 0.5, 0.0])).tabulate(ns.Flow()), seeds=range(4))
    with pytest.raises(ArgumentError, match="draws 5 noise tensors|draws 4 noise tensors"):
        list(trajectory(net, solvers.sde_dpmpp_2m(TIMES).tabulate(EDM), torch.zeros(1, 2)))
    assert net.batches == []


def test_a_bad_output_names_time_samples_and_seeds():
    def net(x, t, condition=None):
        out = torch.tanh(x / (1 + t))
        return torch.where((condition == 3).reshape(-1, 1) & torch.tensor(t < 1), torch.nan, out)

    model = fs.Denoiser(net, noise=EDM, shape=(4,), check_finite=True)
    table = solvers.dpmpp_2m(TIMES).tabulate(EDM)
    with pytest.raises(DenoiserError, match=r"0\.7.*samples 5, seeds 105") as caught:
        sample(model, table, seeds=range(100, 108), condition=torch.tensor([0, 1, 2, 0, 1, 3, 0, 1]), batch_size=3)
    assert caught.value.rows == (5,) and caught.value.time == 0.7


def test_three_kinds_of_seeds_do_not_mix():
    kinds = (CalibrationSeeds(5), SelectionSeeds(5), ReportSeeds(5))
    assert len({*kinds[0], *kinds[1], *kinds[2]}) == 15 and list(ReportSeeds(3, offset=7)) == [7, 8, 9]
    for kind in (CalibrationSeeds, SelectionSeeds, ReportSeeds):
        for seeds in (*kinds, range(5)):
            if isinstance(seeds, kind):
                assert kind.require(seeds, "seeds") is seeds
            else:
                with pytest.raises(SeedsError, match=f"seeds must be {kind.__name__}"):
                    kind.require(seeds, "seeds")
    with pytest.raises(SeedsError, match="n=0"):
        ReportSeeds(0)
    assert fs.ReportSeeds(4)[1:3] == range(1, 3)
