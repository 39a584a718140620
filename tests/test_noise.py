import math

import pytest
import torch

from fewstep import noise as ns
from fewstep.errors import ArgumentError, FileFormatError

SCHEDULES = {
    "vp": ns.VPLinear(),
    "cosine": ns.VPCosine(),
    "scaled": ns.Discrete.scaled_linear(),
    "linear": ns.Discrete.linear(n=50),
    "cos": ns.Discrete.cosine(),
    "zero": ns.Discrete.scaled_linear().rescaled_to_zero_terminal_snr(),
    "table": ns.Discrete.from_alphas_cumprod([0.9, 0.5, 0.01]),
    "edm": ns.EDM(),
    "flow": ns.Flow(),
    "flow3": ns.Flow(shift=3.0),
}


@pytest.fixture(params=SCHEDULES, name="noise")
def _noise(request):
    return SCHEDULES[request.param]


def interior(noise, n=401):
    return torch.linspace(noise.t_min, noise.t_max, n + 2, dtype=torch.float64)[1:-1]


def test_lam_falls_with_time_and_inverts(noise):
    t = interior(noise)
    lam = noise.lam(t)
    assert (lam.diff() < 0).all()
    back = noise.time_of_lam(lam)
    assert (back - t).abs().max() <= 1e-10 * max(1.0, noise.t_max)
    assert (noise.time_of_ratio(noise.ratio(t)) - t).abs().max() <= 1e-10 * max(1.0, noise.t_max)


def test_scalars_are_the_tensors(noise):
    """The float path that tables use agrees with the differentiable one."""
    times = [noise.t_clean, noise.t_max, *interior(noise, 37).tolist()]
    for t in times:
        for one, two in zip(noise.scalar_levels(t), noise.levels(t), strict=True):
            assert one == two.item() or abs(one - two.item()) <= 1e-14 * max(1.0, abs(one))
    ends = (-math.inf,) if noise.alpha(noise.t_max) == 0 else ()
    for lam in (*ends, -3.0, 0.1, 4.0, math.inf):
        assert abs(noise.scalar_time_of_lam(lam) - noise.time_of_lam(lam).item()) <= 1e-11 or noise.family == "edm"
    for ratio in (0.0, 0.01, 1.0, 9.0):
        assert abs(noise.scalar_time_of_ratio(ratio) - noise.time_of_ratio(ratio).item()) <= 1e-11


def test_ends(noise):
    assert noise.sigma(noise.t_clean) == 0
    assert noise.alpha(noise.t_clean) == 1
    assert noise.lam(noise.t_clean) == math.inf
    assert abs(noise.time_of_lam(math.inf) - noise.t_clean) < 1e-12
    assert abs(noise.time_of_ratio(0.0) - noise.t_clean) < 1e-12
    assert torch.isfinite(noise.lam(noise.t_min))


@pytest.mark.parametrize("name", ["flow", "flow3", "zero"])
def test_pure_noise_has_no_signal(name):
    noise = SCHEDULES[name]
    assert noise.alpha(noise.t_max) == 0 and noise.sigma(noise.t_max) == 1
    assert noise.lam(noise.t_max) == -math.inf
    assert abs(noise.time_of_lam(-math.inf) - noise.t_max) < 1e-12


def test_variance_preserving():
    for name in ("vp", "cosine", "scaled", "zero", "table"):
        noise = SCHEDULES[name]
        t = interior(noise)
        assert (noise.alpha(t) ** 2 + noise.sigma(t) ** 2 - 1).abs().max() < 1e-14


def test_discrete_is_exact_at_the_integers():
    noise = SCHEDULES["scaled"]
    table = torch.tensor(noise.alphas_cumprod, dtype=torch.float64)
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(noise.alpha(t), table.sqrt())
    assert torch.equal(noise.sigma(t), (1 - table).sqrt())
    assert abs(noise.ratio(999.0).item() - 14.6146412293) < 1e-4 and abs(noise.ratio(0.0).item() - 0.0291671582) < 1e-6


def test_vp_linear_against_published_inverse():
    noise = SCHEDULES["vp"]
    assert abs(noise.lam(1.0).item() - (-5.0250)) < 5e-4 and abs(noise.lam(1e-3).item() - 4.5577) < 5e-4


def test_shift_is_that_of_flow_models():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert (SCHEDULES["flow3"].sigma(t) - 3 * t / (1 + 2 * t)).abs().max() < 1e-15


def test_gradients(noise):
    t = interior(noise, 4).requires_grad_()
    for f in (noise.alpha, noise.sigma, noise.lam):
        (g,) = torch.autograd.grad(f(t).sum(), t)
        d = 1e-6 * max(1.0, noise.t_max / 10)
        fd = (f(t.detach() + d) - f(t.detach() - d)) / (2 * d)
        assert (g - fd).abs().max() <= 1e-5 * (1 + fd.abs().max())


def test_record_round_trip(noise):
    again = ns.from_dict(noise.to_dict())
    t = interior(noise)
    assert torch.equal(again.alpha(t), noise.alpha(t)) and torch.equal(again.sigma(t), noise.sigma(t))
    assert again.t_max == noise.t_max and again.t_min == noise.t_min


def test_default_dtype_and_device_do_not_leak(noise):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            value = ns.from_dict(noise.to_dict()).alpha(noise.t_min)
    finally:
        torch.set_default_dtype(before)
    assert value.dtype == torch.float64 and value.device.type == "cpu" and value == noise.alpha(noise.t_min)


def test_bad_input():
    with pytest.raises(ArgumentError, match="fall strictly"):
        ns.Discrete((0.9, 0.9))
    with pytest.raises(ArgumentError, match="sigma_min"):
        ns.EDM(2.0, 1.0)
    with pytest.raises(FileFormatError, match="unknown noise family"):
        ns.from_dict({"family": "nonsense"})
    with pytest.raises(FileFormatError, match="damaged"):
        ns.from_dict({"family": "discrete"})
