"""Guidance: its algebra, its costs, its spaces; the two predictions as channels of a table; thresholding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.conventions import PREDICTIONS, Prediction
from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.guidance import clipped, guidance_channels, guided, thresholded
from fewstep.noise import EDM, Flow, NoiseSchedule, VPLinear
from fewstep.sampling import sample
from tests.analytic import network

LABELS = torch.tensor([0, 3, 7, 9])


def model(noise: NoiseSchedule | None = None) -> Denoiser:
    return problems.get("images_8x8", noise or VPLinear()).denoiser(dtype=torch.float64)


def states(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# ------------------------------------------------------------------------------------------------- algebra and cost


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_guidance_extrapolates_from_one_doubled_batch(scale: float) -> None:
    denoiser, x, t = model(), states(), 0.4
    conditional, unconditional = denoiser(x, t, LABELS), denoiser(x, t)
    denoiser.reset_counters()
    wrapped = guided(denoiser, scale)
    out = wrapped(x, t, LABELS)
    assert gap(out, unconditional + scale * (conditional - unconditional)) < 1e-13
    assert gap(out, conditional) > 1e-3
    assert (wrapped.calls, wrapped.evaluations, wrapped.batch_cost) == (1, 8, 2)
    assert (denoiser.calls, denoiser.evaluations, denoiser.batch_cost) == (1, 8, 1)


def test_a_scale_of_one_is_free() -> None:
    denoiser, x = model(), states()
    wrapped = guided(denoiser, 1.0)
    assert torch.equal(wrapped(x, 0.4, LABELS), denoiser(x, 0.4, LABELS))
    assert (wrapped.evaluations, wrapped.batch_cost) == (8, 1)


def test_without_a_condition_nothing_is_guided() -> None:
    denoiser, x = model(), states()
    wrapped = guided(denoiser, 3.0)
    assert torch.equal(wrapped(x, 0.4), denoiser(x, 0.4))
    assert wrapped.evaluations == 8  # four of the guided, four of the plain


def test_guidance_acts_inside_its_interval() -> None:
    denoiser, x = model(), states()
    wrapped, everywhere = guided(denoiser, 3.0, interval=(0.2, 0.6)), guided(denoiser, 3.0)
    for t, inside in ((0.1, False), (0.2, True), (0.4, True), (0.6, True), (0.7, False)):
        for time in (t, torch.tensor(t, dtype=torch.float64)):
            denoiser.reset_counters()
            out = wrapped(x, time, LABELS)
            assert denoiser.evaluations == (8 if inside else 4)
            assert torch.equal(out, (everywhere if inside else denoiser)(x, t, LABELS))


def test_guidance_is_differentiable() -> None:
    wrapped = guided(model(), 2.0, rescale=0.5)
    assert torch.autograd.gradcheck(lambda x: wrapped(x, 0.5, LABELS[:1]), states(1).requires_grad_())


# ----------------------------------------------------------------------------------------------------------- rescale


def spread(x: Tensor) -> Tensor:
    return x.std(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("noise", [VPLinear(), EDM(), Flow(3.0)], ids=lambda n: n.family)
def test_rescaling_is_the_hosts_formula_in_the_networks_space(noise: NoiseSchedule, prediction: Prediction) -> None:
    """diffusers' rescale_noise_cfg on raw predictions, then x0, is what ours gives on x0."""
    problem = problems.get("images_8x8", noise)
    scale = "sigma" if isinstance(noise, EDM) else "unit"
    raw = network(problem, prediction, scale)
    options: dict[str, Any] = {"prediction": prediction, "noise": noise, "shape": (1, 8, 8), "time": scale}
    options |= {"dtype": torch.float64, "null_condition": -1, "check": False}
    wrapped = guided(from_callable(raw, **options), 4.0, rescale=0.7)

    def host(x: Tensor, told: Tensor) -> Tensor:
        conditional, unconditional = raw(x, told, LABELS), raw(x, told)
        guess = unconditional + 4.0 * (conditional - unconditional)
        return 0.7 * guess * (spread(conditional) / spread(guess)) + 0.3 * guess

    expected = from_callable(host, **options)
    x = states()
    for level in (0.3, 2.0):
        t = float(noise.time_of_ratio(level))
        assert gap(wrapped(x, t, LABELS), expected(x, t)) < 1e-11
        assert gap(wrapped(x, t, LABELS), guided(wrapped.inner, 4.0)(x, t, LABELS)) > 1e-3  # type: ignore[attr-defined]


def test_full_rescaling_restores_the_conditional_spread() -> None:
    denoiser, x, t = model(), states(), 0.4
    out = guided(denoiser, 5.0, rescale=1.0, rescale_in="x0")(x, t, LABELS)
    assert gap(spread(out), spread(denoiser(x, t, LABELS))) < 1e-13
    half = guided(denoiser, 5.0, rescale=0.5, rescale_in="x0")(x, t, LABELS)
    assert gap(half, (out + guided(denoiser, 5.0)(x, t, LABELS)) / 2) < 1e-13


def test_rescaling_noise_needs_alpha() -> None:
    wrapped = guided(model(Flow()), 2.0, rescale=0.5, rescale_in="epsilon")
    with pytest.raises(DenoiserError, match=r"rescale_in='epsilon'.*alpha is 0"):
        wrapped(states(), 1.0, LABELS)
    assert guided(model(Flow()), 2.0, rescale=0.5, rescale_in="v")(states(), 1.0, LABELS).isfinite().all()


# ------------------------------------------------------------------------------------------------------ null condition


def test_null_conditions_take_the_form_of_the_condition() -> None:
    seen: list[Any] = []

    def fn(x: Tensor, t: Any, condition: Any) -> Tensor:
        seen.append(condition)
        return x

    denoiser = Denoiser(fn, noise=EDM(), shape=(4,))
    x, text = torch.zeros(3, 4), torch.arange(6.0).reshape(3, 2)
    condition = {"text": text, "label": torch.tensor([1, 2, 3]), "mode": "fine"}
    null = {"text": torch.tensor([[8.0, 9.0]]), "label": -1, "mode": "fine"}
    guided(denoiser, 2.0, null=null)(x, 1.0, condition)
    assert seen[0]["text"].tolist() == [*text.tolist(), [8.0, 9.0], [8.0, 9.0], [8.0, 9.0]]
    assert seen[0]["label"].tolist() == [1, 2, 3, -1, -1, -1] and seen[0]["mode"] == "fine"
    guided(denoiser, 2.0, null=torch.tensor([7]))(x, 1.0)
    assert seen[1].tolist() == [7, 7, 7]
    guided(denoiser, 2.0, null=7)(x, 1.0)
    assert seen[2].tolist() == [7, 7, 7]


def test_bad_guidance_is_refused() -> None:
    plain = problems.get("grid_8x8").denoiser()
    with pytest.raises(ArgumentError, match="guidance needs the condition that means none: give null="):
        guided(plain, 2.0)
    for options, message in (
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": 2.0, "rescale": 1.5}, "rescale=1.5.*from 0"),
        ({"scale": 2.0, "interval": (0.6, 0.2)}, "interval=.*lowest, highest"),
        ({"scale": 2.0, "rescale": 0.5, "rescale_in": "eps"}, "prediction='eps'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            guided(model(), **options)
    with pytest.raises(ArgumentError, match="single entry.*rescale=0"):
        guided(problems.get("mixture_1d").denoiser(), 2.0, null=0, rescale=0.5)
    with pytest.raises(ArgumentError, match="2 outputs"):
        guided(guidance_channels(model()), 2.0)
    with pytest.raises(ArgumentError, match="first axis must be 1"):
        guided(model(), 2.0, null=torch.tensor([1, 2]))(states(), 0.4, LABELS)
    with pytest.raises(ArgumentError, match="structure of the condition"):
        guided(model(), 2.0, null={"a": 1})(states(), 0.4, LABELS)


# ------------------------------------------------------------------------------------------------------------ channels


def test_guidance_can_be_part_of_the_table() -> None:
    """A table over (conditional, unconditional) with weights (w b, (1 - w) b) is the guided sampler."""
    denoiser, w = model(EDM()), 2.5
    table = solvers.dpmpp_2m(times.karras(denoiser.noise, 5)).tabulate(denoiser.noise)
    B = torch.stack([w * table.B, (1 - w) * table.B], dim=2).flatten(1)
    whole = replace(table, B=B, channels=2, schedule=None)
    channels = guidance_channels(denoiser)
    options: dict[str, Any] = {"seeds": range(4), "condition": LABELS}
    assert gap(sample(channels, whole, **options), sample(guided(denoiser, w), table, **options)) < 1e-10
    assert (channels.channels, channels.batch_cost) == (2, 2)


def test_channels_are_conditional_then_unconditional() -> None:
    denoiser, x = model(), states()
    channels = guidance_channels(denoiser)
    conditional, unconditional = channels(x, 0.4, LABELS)
    assert gap(conditional, denoiser(x, 0.4, LABELS)) < 1e-13 and gap(unconditional, denoiser(x, 0.4)) < 1e-13
    with pytest.raises(ArgumentError, match="needs a condition"):
        channels(x, 0.4)


# -------------------------------------------------------------------------------------------------------- thresholding


@pytest.mark.parametrize("quantile", [0.005, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("floor", [1.0, 0.2])
def test_dynamic_thresholding(quantile: float, floor: float) -> None:
    x0 = torch.randn(5, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 *= torch.tensor([0.1, 0.5, 1.0, 2.0, 9.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    denoiser = Denoiser(lambda x, t, c: x0, noise=EDM(), shape=(3, 9, 7))
    out = thresholded(denoiser, quantile=quantile, floor=floor)(x0, 1.0)
    for k in range(5):
        s = max(torch.quantile(x0[k].abs().flatten(), quantile).item(), floor)
        assert gap(out[k], x0[k].clamp(-s, s) / s * floor) < 1e-13


def test_clipping() -> None:
    x0 = torch.linspace(-3, 3, 8)[None]
    denoiser = Denoiser(lambda x, t, c: x0, noise=EDM(), shape=(8,))
    assert torch.equal(clipped(denoiser, 0.7)(x0, 1.0), x0.clamp(-0.7, 0.7))
    pair = Denoiser(lambda x, t, c: (x0, 2 * x0), noise=EDM(), shape=(8,), channels=2)
    assert torch.equal(clipped(pair)(x0, 1.0)[1], (2 * x0).clamp(-1, 1))
    assert torch.equal(thresholded(pair)(x0, 1.0)[0], thresholded(denoiser)(x0, 1.0))


def test_bad_thresholds_are_refused() -> None:
    with pytest.raises(ArgumentError, match="quantile=1.5"):
        thresholded(model(), quantile=1.5)
    with pytest.raises(ArgumentError, match="bound=0"):
        clipped(model(), 0)


# ------------------------------------------------------------------------------------------------------------ wrappers

WRAPPERS: dict[str, Callable[[Denoiser], Denoiser]] = {
    "guided": lambda d: guided(d, 2.0),
    "rescaled": lambda d: guided(d, 2.0, rescale=0.7),
    "rescaled in v": lambda d: guided(d, 2.0, rescale=0.7, rescale_in="v"),
    "interval": lambda d: guided(d, 2.0, interval=(0.1, 0.5)),
    "channels": guidance_channels,
    "thresholded": thresholded,
    "threshold 0.9": lambda d: thresholded(d, quantile=0.9),
    "clipped": clipped,
    "both": lambda d: thresholded(guided(d, 2.0)),
}


def test_wrappers_have_fingerprints_of_their_own() -> None:
    denoiser = model()
    digests = [wrap(denoiser).fingerprint for wrap in WRAPPERS.values()]
    assert len({denoiser.fingerprint, *digests}) == len(WRAPPERS) + 1
    assert digests == [wrap(model()).fingerprint for wrap in WRAPPERS.values()]


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_keep_what_samplers_read(name: str) -> None:
    denoiser = model()
    wrapped = WRAPPERS[name](denoiser)
    for attribute in ("noise", "shape", "device", "dtype", "prediction", "null_condition"):
        assert getattr(wrapped, attribute) == getattr(denoiser, attribute)
    wrapped(states(), 0.4, LABELS)
    assert wrapped.calls == denoiser.calls == 1 and wrapped.evaluations == 4 * wrapped.batch_cost
    wrapped.reset_counters()
    assert denoiser.calls == 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: guided(d, 2.0, rescale=0.7, rescale_in="v", interval=(0.1, 0.5)),
        lambda d: clipped(guidance_channels(d)),
        lambda d: thresholded(guided(d, 2.0)),
    ],
)
def test_wrappers_compile_without_a_graph_break(wrap: Callable[[Denoiser], Denoiser]) -> None:
    # A small network: what is traced is the wrapper.
    inner = Denoiser(lambda x, t, c: torch.tanh(x + c[:, None]), noise=VPLinear(), shape=(6,), null_condition=-1)
    wrapped, x = wrap(inner), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(wrapped, fullgraph=True, backend="eager")
    for t in (0.3, torch.tensor(0.7, dtype=torch.float64)):
        ours, plain = compiled(x, t, LABELS), wrapped(x, t, LABELS)
        for a, b in zip(ours, plain, strict=True) if wrapped.channels > 1 else [(ours, plain)]:
            assert gap(a, b) < 1e-6
