"""Denoisers: every convention gives the same x0; limits, gradients, counters, checks of what a network returns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import problems
from fewstep.conventions import PREDICTIONS, data_coefficients, network_time
from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPLinear
from tests.analytic import NOISES, network, scales, schedule_time, times


def wrapped(noise: NoiseSchedule, prediction: Any, scale: Any, **options: Any) -> tuple[problems.Problem, Denoiser]:
    problem = problems.get("images_8x8", noise)
    fn = network(problem, prediction, scale)
    options = {"noise": noise, "check": False, "dtype": torch.float64, **options}
    return problem, from_callable(fn, prediction=prediction, shape=problem.shape, time=scale, **options)


def state(problem: problems.Problem, t: float, n: int = 3) -> Tensor:
    x0 = problem.sample(n, seed=1, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return problem.noise.alpha(t) * x0 + problem.noise.sigma(t) * noise


# --------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NOISES)
def test_every_prediction_and_time_scale_gives_the_same_x0(name: str, prediction: Any) -> None:
    noise = NOISES[name]
    for scale in scales(noise):
        problem, denoiser = wrapped(noise, prediction, scale)
        for t in times(noise):
            x = state(problem, t)
            assert (denoiser(x, t) - problem.denoise(x, t)).abs().max() < 2e-9, (scale, t)


@pytest.mark.parametrize("name", NOISES)
def test_time_scales_invert(name: str) -> None:
    noise = NOISES[name]
    for scale in scales(noise):
        for t in times(noise):
            told = network_time(noise, torch.tensor(t, dtype=torch.float64), scale)
            assert abs(schedule_time(noise, told, scale).item() - t) < 1e-8 * max(1.0, abs(t)), (scale, t)


def test_time_scales_are_the_fields_numbers() -> None:
    at = lambda noise, t, scale: network_time(noise, torch.tensor(t, dtype=torch.float64), scale).item()  # noqa: E731
    assert at(Discrete.linear(), 500.0, "index") == 500 and at(Discrete.linear(), 999.0, "unit") == 1
    assert at(VPLinear(), 0.5, "index") == 499 and at(VPLinear(), 0.5, "unit") == 0.5
    assert at(Flow(shift=3.0), 0.5, "index") == pytest.approx(750) and at(Flow(shift=3.0), 0.5, "unit") == 0.75
    assert at(EDM(), 80.0, "sigma") == 80 and at(EDM(), 80.0, "log_sigma/4") == pytest.approx(math.log(80) / 4)


def test_coefficients_recover_x0_from_the_definitions() -> None:
    x0, eps = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for alpha, sigma in ((0.8, 0.6), (1.0, 7.0), (0.3, 0.7)):
        x, r = alpha * x0 + sigma * eps, math.hypot(alpha, sigma)
        given = {"epsilon": eps, "v": (alpha * eps - sigma * x0) / r, "x0": x0, "score": -eps / sigma, "flow": eps - x0}
        for prediction in PREDICTIONS:
            c_skip, c_out = data_coefficients(prediction, *torch.tensor([alpha, sigma], dtype=torch.float64))
            assert (c_skip * x + c_out * given[prediction] - x0).abs().max() < 1e-12, prediction


@pytest.mark.parametrize("noise", [Flow(), Flow(3.0), NOISES["zero_snr"]])
@pytest.mark.parametrize("prediction", ["v", "flow", "x0"])
def test_exact_where_alpha_is_zero(noise: NoiseSchedule, prediction: Any) -> None:
    problem, denoiser = wrapped(noise, prediction, "index")
    assert noise.alpha(noise.t_max) == 0
    x = torch.randn(3, *problem.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = problem.denoise(x, noise.t_max)
    assert (mean - mean[0]).abs().max() < 1e-12  # pure noise says nothing: the mean of the data
    assert (denoiser(x, noise.t_max) - mean).abs().max() < 1e-12


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
def test_nothing_to_say_where_alpha_is_zero(prediction: Any) -> None:
    _, denoiser = wrapped(Flow(), prediction, "unit")
    with pytest.raises(DenoiserError, match=r"alpha is 0.*start at an earlier time") as raised:
        denoiser(torch.zeros(1, 1, 8, 8), 1.0)
    assert raised.value.time == 1.0 and denoiser.calls == 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NOISES)
def test_x0_is_the_state_where_there_is_no_noise(name: str, prediction: Any) -> None:
    noise = NOISES[name]
    denoiser = from_callable(lambda x, t: 0.3 * x, prediction=prediction, noise=noise, shape=(5,), check=False)
    x = torch.linspace(-1, 1, 5)[None]
    expected = 0.3 * x if prediction == "x0" else x
    assert (denoiser(x, noise.t_clean) - expected).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------- foreign coordinates


@pytest.mark.parametrize("theirs", ["vp", "cosine", "sd", "zero_snr", "edm", "flow3"])
@pytest.mark.parametrize("ours", ["vp", "edm", "flow", "flow3"])
def test_a_network_runs_in_any_coordinates(theirs: str, ours: str) -> None:
    problem = problems.get("images_8x8", NOISES[ours])
    trained = problems.get("images_8x8", NOISES[theirs])
    denoiser = from_callable(
        network(trained, "v", "sigma"), prediction="v", noise=NOISES[ours], network_noise=NOISES[theirs],
        shape=problem.shape, time="sigma", dtype=torch.float64, check=False,
    )  # fmt: skip
    for t in times(NOISES[ours])[:4]:
        x = state(problem, t)
        assert (denoiser(x, t) - problem.denoise(x, t)).abs().max() < 2e-9, t


def test_both_coordinates_may_have_alpha_zero() -> None:
    problem = problems.get("images_8x8", Flow())
    trained = problems.get("images_8x8", NOISES["zero_snr"])
    denoiser = from_callable(
        network(trained, "v", "index"), prediction="v", noise=Flow(), network_noise=trained.noise, shape=problem.shape,
        dtype=torch.float64, check=False,
    )  # fmt: skip
    x = torch.ones(1, *problem.shape, dtype=torch.float64)
    assert (denoiser(x, 1.0) - problem.denoise(x, 1.0)).abs().max() < 1e-9


# ------------------------------------------------------------------------------------------------- time and dtype


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("ours,theirs", [("vp", "vp"), ("edm", "sd"), ("flow3", "vp")])
def test_gradients_in_the_time(ours: str, theirs: str, prediction: Any) -> None:
    trained = problems.get("images_8x8", NOISES[theirs])
    denoiser = from_callable(
        network(trained, prediction, "index"), prediction=prediction, noise=NOISES[ours], network_noise=NOISES[theirs],
        shape=trained.shape, time="index", dtype=torch.float64, check=False,
    )  # fmt: skip
    at = float(NOISES[ours].time_of_ratio(0.71))
    x = state(problems.get("images_8x8", NOISES[ours]), at)
    t = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((denoiser(x, t) * direction).sum(), t)
    h = 1e-4 * at
    ends = [(denoiser(x, at + s * h) * direction).sum() for s in (-2, -1, 1, 2)]
    slope = (8 * (ends[2] - ends[1]) - (ends[3] - ends[0])) / (12 * h)
    assert abs(gradient.item() - slope.item()) < 1e-6 * max(1.0, abs(slope.item()))


def test_gradients_in_the_state() -> None:
    problem, denoiser = wrapped(VPLinear(), "epsilon", "index")
    x = state(problem, 0.4, n=1)
    assert torch.autograd.gradcheck(lambda x: denoiser(x, 0.4), x.requires_grad_())


def test_the_network_gets_its_own_dtype_and_the_state_keeps_its_own() -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype))
        return x

    options: dict[str, Any] = {"prediction": "epsilon", "noise": VPLinear(), "shape": (4,), "check": False}
    half = from_callable(fn, **options, network_dtype=torch.bfloat16)
    assert half(torch.ones(2, 4, dtype=torch.float64), 0.5).dtype == torch.float64
    plain = from_callable(fn, **options)
    assert plain(torch.ones(2, 4, dtype=torch.float16), 0.5).dtype == torch.float16
    plain(torch.ones(2, 4, dtype=torch.float64), 0.5)
    assert seen == [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)]


def test_sixteen_bit_states_are_converted_in_float32() -> None:
    """(x - sigma eps) / alpha near the noisy end: in float16 the difference would lose eight bits more."""
    noise, t = VPLinear(), 0.7
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    eps = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).half()
    x = (0.5 * alpha + sigma * eps.double()).half()[None]
    denoiser = from_callable(lambda x, t: eps[None], prediction="epsilon", noise=noise, shape=(64,), check=False)
    exact = (x.double() - sigma * eps.double()) / alpha
    assert (denoiser(x, t).double() - exact).abs().max() < 1e-3 * exact.abs().max()


def test_the_time_may_be_a_function_and_an_integer() -> None:
    told: list[Tensor] = []

    def fn(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return x

    noise = Discrete.linear()
    options: dict[str, Any] = {"prediction": "x0", "noise": noise, "shape": (4,), "check": False}
    from_callable(fn, **options, time=lambda t: t.round().long())(torch.ones(3, 4), 17.6)
    from_callable(fn, **options, time=lambda t: 1 - t / 1000)(torch.ones(3, 4), 250.0)
    assert told[0].dtype == torch.long and told[0].tolist() == [18, 18, 18]
    assert told[1].dtype == torch.float32 and told[1].tolist() == [0.75, 0.75, 0.75]


def test_unknown_names_are_refused() -> None:
    options: dict[str, Any] = {"noise": EDM(), "shape": (4,), "check": False}
    with pytest.raises(ArgumentError, match="prediction='eps'.*epsilon"):
        from_callable(lambda x, t: x, prediction="eps", **options)
    with pytest.raises(ArgumentError, match="time='index' means nothing.*network_noise"):
        from_callable(lambda x, t: x, prediction="x0", time="index", **options)
    with pytest.raises(ArgumentError, match="time='seconds'.*log_sigma"):
        from_callable(lambda x, t: x, prediction="x0", time="seconds", **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="check=False"):
        from_callable(lambda x, t: x, prediction="x0", data=torch.zeros(1, 4), **options)
    with pytest.raises(ArgumentError, match="cannot be called"):
        Denoiser(3, noise=EDM(), shape=(4,))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="channels=0"):
        Denoiser(lambda x, t, c: x, noise=EDM(), shape=(4,), channels=0)


# ------------------------------------------------------------------------------------- conditions, channels, counts


def test_conditions_reach_the_network() -> None:
    seen: list[Any] = []

    def fn(x: Tensor, t: Tensor, condition: Any = None, *, text: Any = None, size: Any = None) -> Tensor:
        seen.append((condition, text, size))
        return x

    denoiser = from_callable(fn, prediction="x0", noise=EDM(), shape=(4,), check=False)
    x = torch.ones(2, 4)
    for condition in (None, "c", {"text": 1, "size": 2}):
        denoiser(x, 1.0, condition)
    assert seen == [(None, None, None), ("c", None, None), (None, 1, 2)]


def test_several_channels() -> None:
    denoiser = from_callable(
        lambda x, t: (x, 2 * x), prediction="epsilon", noise=VPLinear(), shape=(4,), channels=2, check=False
    )
    one = from_callable(lambda x, t: 2 * x, prediction="epsilon", noise=VPLinear(), shape=(4,), check=False)
    x = torch.randn(2, 4)
    first, second = denoiser(x, 0.5)
    assert torch.equal(second, one(x, 0.5)) and not torch.equal(first, second) and denoiser.calls == 1
    bad = Denoiser(lambda x, t, c: (x, x, x), noise=EDM(), shape=(4,), channels=2)
    with pytest.raises(DenoiserError, match="3 outputs.*channels=2"):
        bad(x, 1.0)


def test_calls_and_evaluations_are_counted() -> None:
    denoiser = problems.get("grid_6x6").denoiser()
    for rows in (1, 7, 2):
        denoiser(torch.zeros(rows, 2), 1.0)
    assert (denoiser.calls, denoiser.evaluations) == (3, 10)
    denoiser.reset_counters()
    assert (denoiser.calls, denoiser.evaluations, denoiser.batch_cost) == (0, 0, 1)


# ------------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    "fn,message",
    [
        (lambda x, t, c: x[:, :2], r"shape \(3, 2, 4\).*\(3, 4, 4\).*time 2.5"),
        (lambda x, t, c: torch.cat([x, x], 1), "predicts variances.*first half"),
        (lambda x, t, c: x.long(), "int64.*return floating point"),
        (lambda x, t, c: None, "NoneType.*return a tensor"),
    ],
)
def test_wrong_kinds_of_output(fn: Any, message: str) -> None:
    with pytest.raises(DenoiserError, match=message) as raised:
        Denoiser(fn, noise=EDM(), shape=(4, 4))(torch.zeros(3, 4, 4), 2.5)
    assert raised.value.time == 2.5


def test_outputs_that_are_not_finite_name_time_and_samples() -> None:
    def fn(x: Tensor, t: Any, condition: Any) -> Tensor:
        out = x.clone()
        out[1, 2], out[3, 0] = math.nan, -math.inf
        return out

    x = torch.zeros(5, 4)
    with pytest.raises(DenoiserError, match=r"not finite at time 0.5, in 2 of 5 samples \(rows 1, 3 ") as raised:
        Denoiser(fn, noise=EDM(), shape=(4,))(x, 0.5)
    assert raised.value.rows == (1, 3) and raised.value.time == 0.5
    assert Denoiser(fn, noise=EDM(), shape=(4,), check_finite=False)(x, 0.5).isnan().any()


def test_large_finite_outputs_pass() -> None:
    """Their sum overflows; they are finite."""
    denoiser = Denoiser(lambda x, t, c: x, noise=EDM(), shape=(4,))
    assert denoiser(torch.full((2, 4), 3e38), 1.0).isfinite().all()
    assert denoiser(torch.full((2, 4), 6e4, dtype=torch.float16), 1.0).isfinite().all()


def test_states_of_another_kind_are_refused() -> None:
    denoiser = problems.get("grid_6x6").denoiser()
    for x in (torch.zeros(2), torch.zeros(3, 1, 2), torch.zeros(3, 2, dtype=torch.long)):
        with pytest.raises(ArgumentError, match=r"give floating-point states of shape \[B, "):
            denoiser(x, 1.0)


# ---------------------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_change_with_the_network_and_its_conventions() -> None:
    class Net(torch.nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((100,), weight))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * self.weight.mean()

    def digest(
        weight: float = 1.0, prediction: Any = "x0", noise: NoiseSchedule | None = None, fn: Any = None, **o: Any
    ) -> str:
        fn = Net(weight) if fn is None else fn
        return from_callable(fn, prediction=prediction, noise=noise or EDM(), shape=(4,), check=False, **o).fingerprint

    assert digest() == digest() and len(digest()) == 16
    others = [
        digest(2.0),
        digest(prediction="v"),
        digest(noise=VPLinear()),
        digest(network_noise=VPLinear()),
        digest(time="log_sigma/4"),
    ]
    assert len({digest(), *others}) == 6
    assert digest(fn=Net(1.0).forward) == digest(fn=Net(1.0).forward) != digest(fn=Net(2.0).forward)
    assert digest(fingerprint="mine") == "mine"


# --------------------------------------------------------------------------------------------------------- compiling


@pytest.mark.parametrize(
    "prediction,ours,theirs", [("v", "vp", "vp"), ("epsilon", "edm", "sd"), ("flow", "flow3", "flow3")]
)
def test_compiles_without_a_graph_break(prediction: Any, ours: str, theirs: str) -> None:
    # A small network of torch operations: what is traced is the wrapper.
    denoiser = from_callable(
        lambda x, t: torch.tanh(x * t[:, None]), prediction=prediction, noise=NOISES[ours],
        network_noise=NOISES[theirs], shape=(4,), check=False,
    )  # fmt: skip
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    t = float(NOISES[ours].time_of_ratio(0.7))
    torch._dynamo.reset()
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    expected = denoiser(x, t)
    assert (compiled(x, t) - expected).abs().max() < 1e-6
    assert (compiled(x, torch.tensor(t, dtype=torch.float64)) - expected).abs().max() < 1e-6
    assert denoiser.calls == 1  # calls inside a graph are not counted
