"""Times: closed forms, hosts' own numbers, properties of every grid on every noise schedule, and bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

from fewstep import times
from fewstep.errors import ArgumentError, TimesError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear

SD = Discrete.scaled_linear()
SCHEDULES: dict[str, NoiseSchedule] = {
    "edm": EDM(),
    "svd": EDM(0.002, 700.0),
    "narrow": EDM(0.5, 1.0),
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "sd": SD,
    "zero_snr": SD.rescaled_to_zero_terminal_snr(),
    "ddpm_linear": Discrete.linear(),
    "ddpm_cosine": Discrete.cosine(),
    "flow": Flow(),
    "flow_shift": Flow(shift=3.0),
}
GRIDS = {**times.NAMES, **times.ALIASES}
TAN_HALF = [80, 3.05353, 1.51713, 0.973651, 0.685089, 0.498876, 0.363195, 0.255346, 0.163538, 0.0807178, 0.002]
TAN_ONE = [80, 5.89166, 2.98004, 1.92369, 1.35717, 0.989555, 0.720753, 0.506569, 0.323925, 0.158948, 0.002]
EDM_10 = [80, 45.3137, 24.4083, 12.3816, 5.83895, 2.51522, 0.965417, 0.318283, 0.0850872, 0.0167208, 0.002]


def close(actual: torch.Tensor, expected: object, relative: float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    assert float(((actual - expected).abs() / expected.abs().clamp_min(1e-12)).max()) < relative


# --------------------------------------------------------------------------------------------------- closed forms
def test_tangent_and_karras_against_printed_vectors() -> None:
    noise = EDM()
    close(times.tangent(noise, 10, c=0.5, end="min"), TAN_HALF, 1e-5)
    close(times.tangent(noise, 10, c=1.0, end="min"), TAN_ONE, 1e-5)
    close(times.karras(noise, 10, end="min"), EDM_10, 1e-5)
    # The peers' six-stamp grid, and the first three stamps of EDM's sampler with its own final zero.
    close(times.karras(noise, 5, end="min"), [80, 24.408342, 5.838948, 0.965417, 0.085087, 0.002], 1e-5)
    close(times.karras(noise, 3, end="min"), [80, 9.723201, 0.469979, 0.002], 1e-5)


def test_tangent_is_stationary_for_euler_on_gaussian_data() -> None:
    # Theorem 3.1: every inner time is the best one between its two neighbours.
    c, t = 0.5, times.tangent(EDM(), 7, c=0.5, end="min")
    left, mid, right = t[:-2], t[1:-1], t[2:]
    best = ((left * right - c**2) + ((left**2 + c**2) * (right**2 + c**2)).sqrt()) / (left + right)
    close(mid, best, 1e-11)


def test_time_uniform_of_the_few_step_literature() -> None:
    close(times.vp_uniform(EDM(), 3, end="min"), [80, 6.950235, 1.286669, 0.002], 1e-6)
    # On the VP-linear process itself it is uniform in time.
    close(times.vp_uniform(VPLinear(), 6, end="min"), times.uniform(VPLinear(), 6, end="min"), 1e-9)


def test_limits_of_the_families() -> None:
    noise = EDM()
    close(times.karras(noise, 6, rho=1.0, end="min"), times.uniform(noise, 6, end="min"), 1e-12)
    close(times.karras(noise, 6, rho=1e6, end="min"), times.logsnr(noise, 6, end="min"), 1e-4)
    close(times.polyexponential(noise, 6, end="min"), times.logsnr(noise, 6, end="min"), 1e-12)
    close(times.cosine_logsnr(SD, 6, end="min"), times.tangent(SD, 6, c=1.0, end="min"), 1e-12)
    close(times.flow_shift(Flow(3.0), 6, shift=3.0, end="min"), times.uniform(Flow(3.0), 6, end="min"), 1e-12)
    close(times.flow_shift(Flow(), 6, shift=1.0, end="min"), times.uniform(Flow(), 6, end="min"), 1e-12)
    close(times.beta(EDM(), 6, a=1.0, b=1.0, end="min"), times.uniform(EDM(), 6, end="min"), 1e-12)


def test_straight_in_their_variable() -> None:
    def bend(values: torch.Tensor) -> float:
        return float(values.diff().diff().abs().max() / values.diff().abs().max())

    t = times.logsnr(SD, 8, end="min")
    assert bend(SD.lam(t)) < 1e-10
    assert bend(times.quadratic(VPLinear(), 8, end="min").sqrt()) < 1e-12
    t = times.karras(Flow(), 8, rho=7.0, variable="flow", end="min")
    assert bend(Flow().sigma(t) ** (1 / 7)) < 1e-12
    t = times.exponential(Flow(), 8, variable="flow", end="append")
    assert bend(t[:-1].log()) < 1e-12
    s = EDM().sigma(times.flow_shift(EDM(), 8, shift=3.0, end="min"))
    s = s / (1 + s)
    assert bend(s / (3 - 2 * s)) < 1e-12


def test_beta_as_comfyui_and_as_diffusers() -> None:
    q = 1 - np.linspace(0, 1, 8, endpoint=False)
    comfyui = torch.tensor([*np.rint(beta_distribution.ppf(q, 0.6, 0.6) * 999), -1.0])
    ours = times.check(times.beta(SD, 8), SD, integer=True)
    assert torch.equal(ours, comfyui.double())
    sigma_max, sigma_min = SD.ratio(999.0).item(), SD.ratio(0.0).item()
    diffusers = sigma_min + beta_distribution.ppf(1 - np.linspace(0, 1, 8), 0.6, 0.6) * (sigma_max - sigma_min)
    close(SD.ratio(times.beta(SD, 8, variable="ratio", end="append"))[:-1], diffusers, 1e-9)


def test_laplace_quantiles_inside_the_cut() -> None:
    t = times.laplace(EDM(), 4, end="min").log()
    cumulative = torch.where(t < 0, 0.5 * torch.exp(2 * t), 1 - 0.5 * torch.exp(-2 * t))
    close(cumulative.diff(), ((cumulative[-1] - cumulative[0]) / 4).expand(4), 1e-9)


def test_spacings_of_diffusers() -> None:
    # numpy, as in DDIMScheduler and DPMSolverMultistepScheduler.
    for n in (1, 2, 5, 7, 10, 50):
        leading = (np.arange(0, n) * (1000 // n)).round()[::-1] + 1
        assert times.leading(SD, n, offset=1)[:-1].tolist() == leading.tolist()
        trailing = np.round(np.arange(1000, 0, -1000 / n))[:n] - 1
        assert times.trailing(SD, n)[:-1].tolist() == trailing.tolist()
        spaced = np.linspace(0, 999, n + 1).round()[::-1][:-1]
        assert times.linspace(SD, n, one_more=True)[:-1].tolist() == spaced.tolist()
        leading = (np.arange(0, n + 1) * (1000 // (n + 1))).round()[::-1][:-1]
        assert times.leading(SD, n, one_more=True)[:-1].tolist() == leading.tolist()
    assert times.linspace(SD, 5).tolist() == [999, 749, 500, 250, 0, -1]
    assert times.trailing(SD, 4, end="min").tolist() == [999, 749, 499, 249, 0]


# -------------------------------------------------------------------------------------------------- published lists
def test_ays_differs_between_hosts_as_documented() -> None:
    printed = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    paper = SD.ratio(times.published("ays-sd15"))
    assert float((paper - torch.tensor(printed, dtype=torch.float64)).abs().max()) < 5e-4
    diffusers = times.published("ays-sd15", host="diffusers")
    assert diffusers.tolist() == [999, 850, 736, 645, 545, 455, 343, 233, 124, 24, -1]
    comfyui = times.published("ays-sd15", host="comfyui")
    close(comfyui[:-1] + 1, diffusers[:-1] + 1, 1e-6)  # ComfyUI stores the sigmas of these very indices
    assert comfyui[-1] == -1
    a1111 = SD.ratio(times.published("ays-sd15", 10, host="a1111"))
    expected = torch.tensor([14.615, 6.114, 3.565, 2.394, 1.650, 1.136, 0.743, 0.445, 0.169, 0.029, 0])
    assert float((a1111 - expected).abs().max()) < 6e-4
    # ... and 11 of WebUI are the paper's 10 with a zero after them.
    eleven = times.published("ays-sd15", 11, host="a1111")
    assert torch.equal(eleven[:-1], times.published("ays-sd15")) and eleven[-1] == -1


def test_ays_resampled_to_five_steps() -> None:
    five = SD.ratio(times.published("ays-sdxl", 5))
    expected = torch.tensor([14.615, 3.771, 1.342, 0.555, 0.234, 0.029], dtype=torch.float64)
    assert float((five - expected).abs().max()) < 5e-4
    # numpy's interpolation, as in the quick start; 13 values are off the stored knots.
    stored = np.array(times.PUBLISHED["ays-sdxl"].comfyui)
    xs, new = np.linspace(0, 1, 11), np.linspace(0, 1, 14)
    expected = np.exp(np.interp(new, xs, np.log(stored[::-1])))[::-1].copy()
    close(SD.ratio(times.published("ays-sdxl", 13, host="comfyui"))[:-1], expected[:-1], 1e-9)


PRINTED = {  # Table 3 of the paper; the quick start's indices
    "ays-sd15": (
        "14.615 6.475 3.861 2.697 1.886 1.396 0.963 0.652 0.399 0.152 0.029",
        "999 850 736 645 545 455 343 233 124 24",
    ),
    "ays-sdxl": (
        "14.615 6.315 3.771 2.181 1.342 0.862 0.555 0.380 0.234 0.113 0.029",
        "999 845 730 587 443 310 193 116 53 13",
    ),
    "ays-if": (
        "160.41 8.081 3.315 1.885 1.207 0.785 0.553 0.293 0.186 0.030 0.006",
        "995 920 811 686 555 418 315 174 109 12",
    ),
    "ays-svd": ("700.00 54.5 15.886 7.977 4.248 1.789 0.981 0.403 0.173 0.034 0.002", ""),
}


@pytest.mark.parametrize("name", PRINTED)
def test_ays_as_printed_and_in_every_host(name: str) -> None:
    entry = times.PUBLISHED[name]
    sigmas, indices = ([float(v) for v in text.split()] for text in PRINTED[name])
    assert list(entry.lists[10]) == sigmas and list(entry.indices) == indices
    levels = EDM(1e-3, 1000.0)  # sigma itself, without the network's schedule in between
    paper = times.published(name, noise=levels)
    close(paper, sigmas, 1e-12)
    stored = list(entry.comfyui or sigmas)

    def at(values: list[float], count: int) -> list[float]:
        xs, new = np.linspace(0, 1, len(values)), np.linspace(0, 1, count)
        return np.exp(np.interp(new, xs, np.log(values[::-1])))[::-1].tolist()

    for n in (4, 10, 11, 25):
        close(times.published(name, n, levels, "comfyui"), [*at(stored, n + 1)[:-1], 0.0], 1e-9)
        close(times.published(name, n, levels, "a1111"), [*at(sigmas, n), 0.0], 1e-9)
    diffusers = times.published(name, noise=entry.noise, host="diffusers")
    if indices:
        assert diffusers.tolist() == [*indices, -1]
    else:
        close(diffusers, [*sigmas[:-1], 0.0], 1e-12)


def test_denoise_of_comfyui_keeps_the_last_steps() -> None:
    for n, denoise, kept in (
        (10, 0.5, 5),
        (10, 0.35, 4),
        (10, 0.25, 2),
        (20, 0.6, 12),
        (7, 0.99, 7),
    ):  # 2.5 rounds to 2
        whole = times.published("ays-sdxl", n, host="comfyui")
        assert torch.equal(times.published("ays-sdxl", n, host="comfyui", denoise=denoise), whole[-(kept + 1) :])
    for bad in (0.0, -1.0, 1.5, 0.04):
        with pytest.raises(ArgumentError, match="leaves none of 10 steps"):
            times.published("ays-sdxl", host="comfyui", denoise=bad)
    with pytest.raises(ArgumentError, match='give host="comfyui"'):
        times.published("ays-sdxl", denoise=0.5)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_ays_32_is_the_table_resampled(model: str) -> None:
    """No optimisation of its own: the ten steps, ended at 0.015, at 32 points."""
    table = [*times.PUBLISHED[f"ays-{model}"].lists[10][:-1], 0.015]
    stored = torch.tensor(times.PUBLISHED[f"ays32-{model}"].lists[31], dtype=torch.float64)
    again = np.exp(np.interp(np.linspace(0, 1, 32), np.linspace(0, 1, 11), np.log(table[::-1])))[::-1].copy()
    assert float((stored / torch.from_numpy(again) - 1).abs().max()) < 3e-7
    forge = times.published(f"ays32-{model}", 32, host="a1111")
    assert torch.equal(forge[:-1], stored) and forge[-1] == 0
    with pytest.raises(TimesError, match="outside the network's range"):
        times.published(f"ays32-{model}", 32, noise=SD, host="a1111")


def test_printed_sigmas_and_indices_agree() -> None:
    for name in ("ays-sd15", "ays-sdxl", "ays-if"):
        entry = times.PUBLISHED[name]
        index = entry.noise.time_of_ratio(torch.tensor(entry.lists[10][:-1], dtype=torch.float64))
        assert float((index - torch.tensor(entry.indices)).abs().max()) < 0.6, name  # 124 for 124.56 is the widest


def test_gits_lists_of_two_papers_agree() -> None:
    for n in (4, 5, 6, 7, 8):
        from_sigmas, from_times = times.published("gits-sd15-ipndm", n), times.published("gits-sd15-gas", n)
        assert float((from_sigmas[[0, -1]] - from_times[[0, -1]]).abs().max()) < 1e-9
        if n == 5:
            assert float((from_sigmas - from_times).abs().max()) < 0.2
    close(SD.ratio(times.published("gits-sd15-ipndm", 5)), [14.6146, 4.39, 1.5286, 0.6526, 0.2667, 0.0292], 2e-3)


def test_oss_in_comfyui() -> None:
    flux = times.published("oss-flux", host="comfyui")
    assert flux[0] == 0.9968 and flux[-1] == 0
    stored = np.array(times.PUBLISHED["oss-flux"].lists[10])
    four = np.exp(np.interp(np.linspace(0, 1, 5), np.linspace(0, 1, 11), np.log(stored[::-1])))[::-1].copy()
    close(times.published("oss-flux", 4, host="comfyui")[:-1], four[:-1], 1e-12)
    assert times.published("oss-wan")[0] == 1.0  # alpha = 0


@pytest.mark.parametrize("host", times.HOSTS)
@pytest.mark.parametrize("name", list(times.PUBLISHED))
def test_every_published_list_is_usable(name: str, host: str) -> None:
    entry = times.PUBLISHED[name]
    assert entry.source and entry.url.startswith("https://") and entry.convention and entry.model
    for n, numbers in entry.lists.items():
        assert len(numbers) == n + 1
        t = times.published(name, n, host=host)  # type: ignore[arg-type]
        assert t.dtype == torch.float64 and len(t) == n + 1 and bool((t.diff() < 0).all())
        assert t[-1] == (entry.noise.t_min if host == "paper" else entry.noise.t_clean)
    if host != "diffusers":
        for n in (1, 2, 3, 17):
            assert len(times.published(name, n, host=host)) == n + 1  # type: ignore[arg-type]


def test_published_times_on_another_noise_schedule() -> None:
    # The noise levels are kept; the level of SD's last index lies inside EDM's range.
    moved = times.published("ays-sd15", noise=EDM(), host="comfyui")
    close(moved[:-1], times.PUBLISHED["ays-sd15"].comfyui[:-1], 1e-12)
    same = times.published("oss-flux", noise=Flow(shift=3.0))
    close(Flow(shift=3.0).sigma(same), times.PUBLISHED["oss-flux"].lists[10], 1e-12)
    with pytest.raises(TimesError, match=r"time 0 = 80,.*range \[0.002, 1\]"):
        times.published("gits-cifar10", noise=EDM(0.002, 1.0))
    with pytest.warns(UserWarning, match="moved"), pytest.raises(TimesError, match="times 0 and 1 are equal"):
        times.published("gits-cifar10", noise=EDM(0.002, 1.0), clip=True)


def test_published_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ArgumentError, match="the names are ays-sd15"):
        times.published("ays")
    with pytest.raises(ArgumentError, match="give one of paper"):
        times.published("ays-sd15", host="webui")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="say which with n"):
        times.published("gits-sd15-ipndm")
    with pytest.raises(ArgumentError, match=r'steps only.*host="comfyui"'):
        times.published("ays-sd15", 8, host="diffusers")
    with pytest.raises(ArgumentError, match="n is 0"):
        times.published("ays-sd15", 0)


# ------------------------------------------------------------------------------------------------------- properties
@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    name=st.sampled_from(list(GRIDS)),
    n=st.integers(1, 40),
    end=st.sampled_from(["zero", "min", "append", "time", "clean"]),
    share=st.floats(0.2, 1.0),
)
def test_every_grid_on_every_schedule(schedule: str, name: str, n: int, end: str, share: float) -> None:
    noise = SCHEDULES[schedule]
    start = noise.t_min + share * (noise.t_max - noise.t_min) if share < 1 else None
    first = noise.t_max if start is None else start
    asked = noise.t_min + 0.1 * (first - noise.t_min) if end == "time" else noise.t_clean if end == "clean" else end
    t = GRIDS[name](noise, n, start=start, end=asked)
    assert t.shape == (n + 1,) and t.dtype == torch.float64 and t.device.type == "cpu"
    assert bool(torch.isfinite(t).all()) and bool((t.diff() < 0).all())
    assert t[0].item() == first
    assert t[-1].item() == (noise.t_min if end == "min" else asked if end == "time" else noise.t_clean)
    assert t[-2].item() >= noise.t_min  # the network is called there
    if end == "append":
        assert n == 1 or t[-2].item() == noise.t_min


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_grid_is_in_the_sweep_once(schedule: str) -> None:
    for name, grid in GRIDS.items():
        assert len(grid(SCHEDULES[schedule], 6)) == 7, name
    if schedule == "sd":
        rows = torch.stack([grid(SD, 6) for grid in times.NAMES.values()])
        gaps = torch.cdist(rows, rows) + torch.eye(len(rows), dtype=torch.float64) * 1e9
        assert gaps.min() > 1, "two names of the sweep are the same grid"


@settings(max_examples=40, deadline=None)
@given(
    schedule=st.sampled_from(list(SCHEDULES)),
    m=st.integers(1, 20),
    n=st.integers(1, 40),
    end=st.sampled_from(["zero", "min", "append"]),
)
def test_resample_keeps_ends_and_order(schedule: str, m: int, n: int, end: str) -> None:
    noise = SCHEDULES[schedule]
    t = times.cosine_logsnr(noise, m, end=end)  # type: ignore[arg-type]
    new = times.resample(t, n, noise)
    assert len(new) == n + 1 and new[0] == t[0] and new[-1] == t[-1]
    assert bool((new.diff() < 0).all()) and bool(torch.isfinite(new).all())
    if n == m:
        assert float(((new - t).abs() / (t.abs() + 1)).max()) < 1e-9


def test_resample_is_log_linear() -> None:
    new = times.resample([80.0, 5.0, 0.002], 4, EDM())
    close(new, [80, math.sqrt(80 * 5), 5, math.sqrt(5 * 0.002), 0.002], 1e-12)


# -------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("n", [0, -3, 2.5, True, "6", None])
def test_step_counts_that_are_none(n: object) -> None:
    for call in (times.karras, times.linspace, times.trailing):
        with pytest.raises(ValueError, match=r"n is .*whole number of steps, at least 1"):
            call(SD, n)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="n is"):
        times.resample([80.0, 1.0], n, EDM())  # type: ignore[arg-type]


def test_numpy_integers_are_step_counts() -> None:
    assert len(times.karras(EDM(), np.int64(6))) == 7  # type: ignore[arg-type]


def test_start_and_end_outside_the_range() -> None:
    noise = EDM()
    with pytest.raises(TimesError, match=r"start is 100, outside the network's range \[0.002, 80\].*clip=True"):
        times.karras(noise, 6, start=100.0)
    with pytest.warns(UserWarning, match=r"start moved from 100 to 80"):
        assert times.karras(noise, 6, start=100.0, clip=True)[0] == 80
    with pytest.raises(TimesError, match=r"end is 0\.001"):
        times.karras(noise, 6, end=0.001)
    with pytest.warns(UserWarning, match="end moved from 0.001 to 0.002"):
        assert times.karras(noise, 6, end=0.001, clip=True)[-1] == 0.002
    with pytest.raises(TimesError, match="start is 1, not above the end of the grid at 2"):
        times.karras(noise, 6, start=1.0, end=2.0)
    with pytest.raises(TimesError, match="start is nan"):
        times.karras(noise, 6, start=math.nan, clip=True)
    with pytest.raises(ArgumentError, match='give "zero", "min", "append" or a time'):
        times.karras(noise, 6, end="last")  # type: ignore[arg-type]
    with pytest.raises(TimesError, match=r"times \d+ and \d+ are equal once rounded to float32"):
        times.karras(EDM(1.0, 1.0001), 5000)


def test_options_outside_their_range() -> None:
    for call in (
        lambda: times.karras(SD, 6, rho=0.0),
        lambda: times.tangent(SD, 6, c=-1.0),
        lambda: times.beta(SD, 6, a=math.inf),
        lambda: times.flow_shift(SD, 6, shift=math.nan),
    ):
        with pytest.raises(ArgumentError, match="give a positive number"):
            call()
    with pytest.raises(ArgumentError, match="variable is 'sigma'"):
        times.karras(SD, 6, variable="sigma")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="need a Discrete noise schedule"):
        times.trailing(EDM(), 6)
    with pytest.raises(ArgumentError, match="only 1000 time steps"):
        times.trailing(SD, 1000)
    with pytest.raises(ArgumentError, match="smaller one"):
        times.leading(SD, 1, offset=1000)
    with pytest.raises(ArgumentError, match="the names are uniform"):
        times.named("karas")
    assert times.named("kl_optimal") is times.cosine_logsnr


def test_check_names_the_indices() -> None:
    noise = EDM()
    assert times.check([80, 1, 0], noise).tolist() == [80, 1, 0]
    assert times.check(torch.tensor([80.0, 1.0, 0.001]), noise)[-1] == pytest.approx(0.001)
    with pytest.raises(TimesError, match="times 1 and 2 are rising"):
        times.check([80, 1, 2, 0.5], noise)
    with pytest.raises(TimesError, match="times 2 and 3 are equal"):
        times.check([80, 4, 2, 2, 0.5], noise)
    with pytest.raises(TimesError, match="times 1 and 2 are equal once rounded to float32"):
        times.check([80, 2.00000001, 2, 0.5], noise)
    with pytest.raises(TimesError, match="time 1 is nan"):
        times.check([80, math.nan, 0.5], noise)
    with pytest.raises(TimesError, match="noisy to clean"):
        times.check([0.002, 1, 80], noise)
    with pytest.raises(TimesError, match="at least two"):
        times.check([80], noise)
    with pytest.raises(TimesError, match="flat list"):
        times.check(torch.ones(2, 2), noise)


def test_check_range_clip_round_and_merge() -> None:
    with pytest.raises(TimesError, match=r"time 0 = 1001, time 3 = -0.5 outside the network's range \[0, 999\]"):
        times.check([1001, 600, 200, -0.5, -1], SD)
    with pytest.warns(UserWarning, match="time 0 = 1001"):
        assert times.check([1001, 600, -1], SD, clip=True).tolist() == [999, 600, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert times.check([999.0000001, 600, -1], SD)[0] == 999  # rounding is not worth a warning
    with pytest.raises(TimesError, match="times 1 and 2 are equal"):
        times.check([999, 2.2, 1.9, -1], SD, integer=True)
    assert times.check([999, 2.2, 1.9, -1], SD, integer=True, merge=True).tolist() == [999, 2, -1]
    with pytest.raises(TimesError, match="two different ones"):
        times.check([2.2, 1.9], SD, integer=True, merge=True)


@pytest.mark.parametrize("name", ["ays-sd15", "ays-gits-sd15", "gits-sd15-dpmpp", "gits-sd15-gas", "oss-flux"])
@pytest.mark.parametrize("n", [4, 7, 10])
def test_published_lists_are_grids_like_others(name: str, n: int) -> None:
    """With zero noise in place of the last value as ComfyUI has them, or behind it as WebUI does."""
    noise = times.PUBLISHED[name].noise
    entry, grid = times.PUBLISHED[name], times.named(name)
    if not entry.comfyui:
        assert torch.equal(grid(noise, n), times.published(name, n, noise, host="comfyui"))
    assert torch.equal(grid(noise, n, end="append")[:-1], times.published(name, n - 1, noise))
    assert torch.equal(grid(noise, n, end="append")[-1:], grid(noise, n)[-1:])
    assert torch.equal(grid(noise, n)[:-1], times.published(name, n, noise)[:-1])
    assert grid(noise, n, end="min")[-1] == noise.t_min


def test_a_published_list_keeps_its_noise_levels_on_another_network() -> None:
    moved = times.named("ays-sd15")(EDM(0.002, 80.0), 10)
    close(moved[1:-1], SD.ratio(times.published("ays-sd15"))[1:-1], 1e-12)
    assert moved[0] == pytest.approx(14.615, rel=1e-12) and moved[-1] == 0
    with pytest.raises(ArgumentError, match=r"start is 5, and ays-sd15 starts at 999.*denoise="):
        times.named("ays-sd15")(SD, 10, start=5.0)
    with pytest.raises(TimesError, match="outside the network's range"):
        times.named("ays-if")(EDM(0.002, 80.0), 10)
    with pytest.raises(ArgumentError, match=r"the names are uniform.*ays-sd15"):
        times.named("ays-sd16")


def test_global_defaults_of_torch_do_not_matter() -> None:
    expected = {name: grid(SD, 6) for name, grid in GRIDS.items()}
    listed = times.published("ays-sd15", 7, host="comfyui")
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        for name, grid in GRIDS.items():
            assert torch.equal(grid(SD, 6), expected[name]), name
        assert torch.equal(times.published("ays-sd15", 7, host="comfyui"), listed)
        assert len(times.trailing(SD, 6)) == 7 and len(times.resample([999, 3, -1], 4, SD)) == 5
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
