"""phi functions against exact rational series, and derivative weights against polynomials."""

import math
from fractions import Fraction

import pytest
import torch

from fewstep import phi as p


def exact_phi(k: int, z: float) -> float:
    """By the defining series in exact rational arithmetic."""
    zf, term, total = Fraction(z), Fraction(1, math.factorial(k)), Fraction(0)
    for j in range(1, 400):
        total += term
        term = term * zf / (j + k)
        if abs(term) < Fraction(1, 10**60):
            break
    return float(total)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("z", [0.0, 1e-12, -1e-8, 1e-3, -0.01, 0.5, -1.0, 1.999, -2.0, 2.001, -3.7, 5.0, -12.0, 20.0])
def test_phi_is_exact(k, z):
    want = exact_phi(k, z)
    assert abs(p.phi(k, z) - want) <= 2e-14 * abs(want)
    assert abs(p.phi(k, torch.tensor(z, dtype=torch.float64)).item() - want) <= 2e-14 * abs(want)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("h", [1e-6, 0.3, 1.9, 2.1, 9.0, 40.0])
def test_decayed_moment(k, h):
    x, w = p.gauss_legendre(200)
    u = x * h
    want = (w * h * torch.exp(-u) * u**k).sum().item() / math.factorial(k)
    assert abs(p.decayed_moment(k, h) - want) <= 1e-12 * want
    assert p.decayed_moment(k, math.inf) == 1.0


@pytest.mark.parametrize("offsets", [[-0.7], [0.5, -0.3], [-1.0, -2.5, -3.0], [1.0, -1.0, -2.0, -4.0]])
def test_derivative_weights_are_exact_for_polynomials(offsets):
    m = len(offsets)
    for k in range(1, m + 1):
        w = p.derivative_weights(k, offsets)
        for degree in range(1, m + 1):
            estimate = sum(wj * x**degree for wj, x in zip(w, offsets, strict=True))
            want = math.factorial(k) if degree == k else 0.0
            assert abs(estimate - want) < 1e-11


def test_gradients_of_scalars():
    for k in (1, 2, 3):
        for z in (0.3, -1.5, 4.0, -7.0):
            x = torch.tensor(z, dtype=torch.float64, requires_grad=True)
            (g,) = torch.autograd.grad(p.phi(k, x), x)
            d = 1e-6
            assert abs(g.item() - (p.phi(k, z + d) - p.phi(k, z - d)) / (2 * d)) < 1e-8 * (1 + abs(g.item()))


def test_root_of_rounding_noise_is_zero_and_has_no_nan_gradient():
    x = torch.tensor(-1e-18, dtype=torch.float64, requires_grad=True)
    y = p.root(x)
    (g,) = torch.autograd.grad(y, x)
    assert y.item() == 0 and g.item() == 0 and p.root(-1e-18) == 0.0
