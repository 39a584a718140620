"""The functions of exponential integrators, exact in float64 for any step, on floats and on 0-d tensors alike.

Tables are made of a few hundred scalars. On Python floats that costs microseconds each; on tensors the same lines are
differentiable. Every function here takes either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor

_SERIES_BELOW = 2.0
_TERMS = 32


def exp(z: Scalar) -> Scalar:
    """`e^z`."""
    return z.exp() if isinstance(z, Tensor) else math.exp(z)


def expm1(z: Scalar) -> Scalar:
    """`e^z - 1` without cancellation."""
    return z.expm1() if isinstance(z, Tensor) else math.expm1(z)


def log(z: Scalar) -> Scalar:
    """Natural logarithm."""
    return z.log() if isinstance(z, Tensor) else math.log(z)


def root(z: Scalar) -> Scalar:
    """Square root of the non-negative part (rounding can leave -1e-17), with a zero gradient at zero."""
    if isinstance(z, Tensor):
        return z.sqrt() if z.item() > 0 else 0.0 * z
    return math.sqrt(max(z, 0.0))


def value(z: Scalar) -> float:
    """The number itself, out of any graph."""
    return z.item() if isinstance(z, Tensor) else z


def phi(k: int, z: Scalar) -> Scalar:
    """`phi_k(z) = sum_j z^j / (j + k)!`, so that `phi_1(z) = (e^z - 1) / z`; by series near 0, by recursion elsewhere.

    Source: Hochbruck & Ostermann 2010, eq. 2.10.
    """
    if abs(value(z)) < _SERIES_BELOW:
        total: Scalar = 0.0 * z
        for j in range(_TERMS, -1, -1):
            total = total * z + 1.0 / math.factorial(j + k)
        return total
    current = expm1(z) / z if k else exp(z)
    for j in range(1, k):
        current = (current - 1.0 / math.factorial(j)) / z
    return current


def decayed_moment(k: int, h: Scalar) -> Scalar:
    """`int_0^h e^{-u} u^k / k! du`, which is finite for h = infinity (then 1)."""
    if math.isinf(value(h)):
        return 1.0
    if abs(value(h)) < _SERIES_BELOW:
        return exp(-h) * h ** (k + 1) * phi(k + 1, h)
    tail = sum(h**j / math.factorial(j) for j in range(k + 1))
    return 1.0 - exp(-h) * tail


def derivative_weights(k: int, offsets: Sequence[Scalar]) -> list[Scalar]:
    """Weights w with `F^(k)(0) ~ sum_j w_j (F(offsets[j]) - F(0))`, exact for polynomials of degree `len(offsets)`.

    They solve `sum_j w_j offsets_j^i / i! = [i = k]` (USF's Taylor difference) by Lagrange's formula.
    """
    m = len(offsets)
    weights: list[Scalar] = []
    for j, x in enumerate(offsets):
        others = [o for i, o in enumerate(offsets) if i != j]
        symmetric: list[Scalar] = [1.0, *(0.0 for _ in range(m - 1))]
        denominator: Scalar = x
        for o in others:
            denominator = denominator * (x - o)
            symmetric = [symmetric[0]] + [symmetric[i] - o * symmetric[i - 1] for i in range(1, m)]
        weights.append(math.factorial(k) * symmetric[m - k] / denominator)
    return weights


_NODES: dict[int, tuple[Tensor, Tensor]] = {}


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of n-point Gauss-Legendre quadrature on [0, 1], float64."""
    if n not in _NODES:
        import numpy as np

        x, w = np.polynomial.legendre.leggauss(n)
        _NODES[n] = (
            torch.tensor((x + 1) / 2, dtype=torch.float64, device="cpu"),
            torch.tensor(w / 2, dtype=torch.float64, device="cpu"),
        )
    return _NODES[n]
