"""The self-check: every wrong declaration of a network whose right one is known is found and named."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import problems
from fewstep.conventions import PREDICTIONS
from fewstep.denoiser import Network, from_callable
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPLinear
from fewstep.selfcheck import Reading, diagnose
from tests.analytic import network, scales

FAMILIES = {"vp": VPLinear(), "sd": Discrete.scaled_linear(), "edm": EDM(), "flow": Flow(3.0)}
WRONG = [pair for pair in itertools.product(PREDICTIONS, PREDICTIONS) if pair[0] != pair[1]]


def declare(
    noise: NoiseSchedule, truth: tuple[Any, str], said: tuple[Any, Any], name: str = "images_8x8", **options: Any
) -> Network:
    problem = problems.get(name, noise)
    options = {"data": problem.sample(16, seed=1), **options}
    return from_callable(
        network(problem, *truth), prediction=said[0], time=said[1], noise=noise, shape=problem.shape, **options
    )


def scale_of(noise: NoiseSchedule) -> str:
    return "sigma" if isinstance(noise, EDM) else "index"


def names(truth: tuple[str, str]) -> str:
    return f"declare prediction={truth[0]!r} with time={truth[1]!r},"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("true,said", WRONG)
def test_a_wrong_prediction_is_named(name: str, true: Any, said: Any) -> None:
    noise = FAMILIES[name]
    truth = (true, scale_of(noise))
    with pytest.raises(ArgumentError, match=f"looks like prediction='{true}', you said prediction='{said}'") as raised:
        declare(noise, truth, (said, truth[1]))
    assert names(truth) in str(raised.value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_wrong_time_scale_is_named(name: str, prediction: Any) -> None:
    noise = FAMILIES[name]
    pairs = (
        [("index", "unit"), ("unit", "index")]
        if name != "edm"
        else [("sigma", "log_sigma/4"), ("log_sigma/4", "sigma")]
    )
    for true, said in pairs:
        with pytest.raises(ArgumentError, match=f"looks like time='{true}', you said time='{said}'") as raised:
            declare(noise, (prediction, true), (prediction, said))
        assert names((prediction, true)) in str(raised.value)


@pytest.mark.parametrize(
    ("problem", "every_scale"),
    [
        ("images_8x8", True), ("grid_8x8", False), ("gaussian_8x8", False),
        pytest.param("grid_8x8", True, marks=pytest.mark.slow),
        pytest.param("gaussian_8x8", True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", FAMILIES)
def test_right_declarations_pass(name: str, problem: str, every_scale: bool) -> None:
    noise = FAMILIES[name]
    for prediction, scale in itertools.product(PREDICTIONS, scales(noise) if every_scale else [scale_of(noise)]):
        denoiser = declare(noise, (prediction, scale), (prediction, scale), problem)
        assert denoiser.calls == denoiser.evaluations == 0


@pytest.mark.parametrize("problem", ["images_8x8", "grid_8x8", "gaussian_8x8", "mixture_1d"])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_right_declarations_pass_without_data(name: str, problem: str) -> None:
    noise = FAMILIES[name]
    for prediction in PREDICTIONS:
        scale = scale_of(noise)
        declare(noise, (prediction, scale), (prediction, scale), problem, data=None)


def warned(noise: NoiseSchedule, truth: tuple[Any, str], said: tuple[Any, Any]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        declare(noise, truth, said, data=None)
    return str(caught[0].message) if caught else ""


@pytest.mark.parametrize("true,said", [("epsilon", "v"), ("v", "epsilon"), ("x0", "score"), ("epsilon", "flow")])
def test_wrong_predictions_are_warned_of_without_data(true: Any, said: Any) -> None:
    noise = VPLinear()
    assert names((true, "index")) in warned(noise, (true, "index"), (said, "index"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("true,said", WRONG)
def test_every_wrong_prediction_is_warned_of_without_data(name: str, true: Any, said: Any) -> None:
    noise = FAMILIES[name]
    truth = (true, scale_of(noise))
    assert names(truth) in warned(noise, truth, (said, truth[1]))


@pytest.mark.parametrize("true,said", [("index", "unit"), ("unit", "index")])
def test_wrong_time_scales_are_warned_of_without_data(true: str, said: str) -> None:
    assert names(("epsilon", true)) in warned(VPLinear(), ("epsilon", true), ("epsilon", said))


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="give data= to be sure") as caught:
        declare(VPLinear(), ("epsilon", "index"), ("v", "index"), data=None)
    assert caught[0].filename == __file__


def test_a_time_function_takes_part() -> None:
    noise = VPLinear()
    right: Any = lambda t: 1000 * t - 1  # noqa: E731
    declare(noise, ("v", "index"), ("v", right))
    with pytest.raises(ArgumentError, match=r"time='unit', you said time='the given function'"):
        declare(noise, ("v", "unit"), ("v", right))


def test_a_network_of_another_schedule_is_checked_in_its_own() -> None:
    trained = problems.get("images_8x8", VPLinear())
    fn, data = network(trained, "epsilon", "index"), trained.sample(16)
    options: dict[str, Any] = {"noise": EDM(), "network_noise": VPLinear(), "shape": trained.shape, "data": data}
    from_callable(fn, prediction="epsilon", time="index", **options)
    with pytest.raises(ArgumentError, match="looks like prediction='epsilon'"):
        from_callable(fn, prediction="v", time="index", **options)


def test_conditional_networks_are_checked_with_a_condition() -> None:
    problem = problems.get("images_8x8", VPLinear())
    raw = network(problem, "v", "index")

    def strict(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return raw(x, t, condition)

    labels = torch.arange(16) % 10
    options: dict[str, Any] = {"noise": problem.noise, "shape": problem.shape, "time": "index"}
    data = problem.sample(16, condition=labels)
    from_callable(strict, prediction="v", **options, data=data, data_condition=labels)
    from_callable(strict, prediction="v", **options, null_condition=-1)
    with pytest.raises(ArgumentError, match="looks like prediction='v'"):
        from_callable(strict, prediction="epsilon", **options, data=data, data_condition=labels)
    with pytest.raises(DenoiserError, match=r"could not call the network \(TypeError.*null_condition="):
        from_callable(strict, prediction="v", **options)


def test_networks_that_are_no_denoisers_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="does not remove noise, and no other reading"):
        from_callable(lambda x, t: 50 * torch.ones_like(x), prediction="epsilon", noise=VPLinear(), shape=(1, 8, 8))


def test_data_must_be_samples() -> None:
    options: dict[str, Any] = {"noise": VPLinear(), "shape": (4,), "prediction": "epsilon"}
    for data, message in (
        (torch.zeros(3, 5), r"data has shape \(3, 5\).*\[N, \*\(4,\)\]"),
        (torch.zeros(0, 4), "data has shape"),
        (torch.ones(3, 4), "standard deviation of 0"),
        (torch.full((3, 4), torch.nan), "standard deviation of nan"),
    ):
        with pytest.raises(ArgumentError, match=message):
            from_callable(lambda x, t: x, data=data, **options)


def test_scores_of_a_true_denoiser() -> None:
    """Its residual is orthogonal to its input and output, so no linear correction helps: excess 1."""
    problem = problems.get("images_8x8", VPLinear())
    net = from_callable(
        network(problem, "v", "index"),
        prediction="v",
        noise=problem.noise,
        shape=problem.shape,
        time="index",
        check=False,
    )
    found = diagnose(net, problem.sample(64))
    assert found.best == found.declared == Reading("v", "index") and not found.doubted
    assert found.scores[found.declared].excess < 1.03 and found.scores[found.declared].error < 0.8
    assert all(score.excess > 1.25 for reading, score in found.scores.items() if reading != found.declared)
    assert str(found).splitlines()[0].endswith("prediction='v' with time='index'  (declared)")


def test_the_users_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    declare(VPLinear(), ("epsilon", "index"), ("epsilon", "index"), data=None)
    assert torch.equal(torch.get_rng_state(), before)
