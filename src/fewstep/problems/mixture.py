"""Mixtures of Gaussians in any dimension: curved, multi-modal data whose denoiser is still exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule, Time, as_float64
from fewstep.problems.base import Problem, check_covariance, check_variances

NO_LABEL = -1
"""The condition of a sample without a label."""


class _Posterior(NamedTuple):
    """Everything that denoiser, score and density read: states y `[B, d]`, variances `[K, d]`, log joint `[B, K]`."""

    y: Tensor
    centred: Tensor | None
    alpha: Tensor
    sigma: Tensor
    variances: Tensor
    joint: Tensor


class GaussianMixture(Problem):
    """Data from `sum_k w_k N(mean_k, covariance_k)`, with labels if wanted.

    Components with a common basis (isotropic, diagonal, or diagonal in `basis`) cost three `[B, d] x [d, K]` products
    per call; full covariances cost `K` times `d^2` per state.

    Args:
        means: `[K, *shape]`, or `[K, d]` with `shape`.
        covariances: a variance; `[K]` variances; `[K, d]` variances along the axes; or `[K, d, d]` matrices.
        weights: `[K]`, positive; normalised here. Equal by default.
        labels: `[K]` the class of each component; a condition (LongTensor `[B]`, -1 for none) then keeps only one
            class.
        basis: orthogonal `[d, d]`, whose columns are the axes of variances `[K, d]`.
        shape: of one sample; by default that of one mean.
        noise: schedule of the states, EDM's by default.
        name: for messages.

    Raises:
        ArgumentError: shapes that do not fit, weights or covariances that are not positive.
    """

    def __init__(
        self,
        means: Tensor,
        covariances: float | Tensor,
        weights: Tensor | Sequence[float] | None = None,
        *,
        labels: Tensor | Sequence[int] | None = None,
        basis: Tensor | None = None,
        shape: Sequence[int] | None = None,
        noise: NoiseSchedule | None = None,
        name: str = "",
    ) -> None:
        if means.ndim < 2:
            raise ArgumentError(f"means have shape {tuple(means.shape)}: give [K, *shape], one row for each component")
        super().__init__(means.shape[1:] if shape is None else shape, noise, name)
        k, d = len(means), self.size
        self.means = as_float64(means).reshape(k, -1)
        if self.means.shape[1] != d:
            raise ArgumentError(
                f"means have {self.means.shape[1]} entries each, samples of shape {self.shape} have {d}"
            )
        w = torch.ones(k, dtype=torch.float64, device="cpu") if weights is None else as_float64(weights)
        if w.shape != (k,) or not float(w.min()) > 0:
            raise ArgumentError(f"weights must be {k} positive numbers, one for each component")
        self.log_weights = (w / w.sum()).log()
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.long, device="cpu")
        if self.labels is not None and (self.labels.shape != (k,) or int(self.labels.min()) < 0):
            raise ArgumentError(f"labels must be {k} integers from 0 on, one for each component")
        self.null_condition = None if labels is None else NO_LABEL
        self.variances, self.basis = _modes(as_float64(covariances), basis, k, d)

    def tensors(self) -> dict[str, Tensor]:
        """Means, log weights, variances along the principal axes; the axes and the labels where there are any."""
        named = {
            "means": self.means,
            "log_weights": self.log_weights,
            "variances": self.variances,
            "basis": self.basis,
            "labels": self.labels,
        }
        return {name: value for name, value in named.items() if value is not None}

    def denoise(self, x: Tensor, t: Time, condition: Any = None) -> Tensor:
        """The exact `E[x_0 | x]`; with a condition (LongTensor `[B]`), within each sample's class."""
        p = self._posterior(x, t, condition)
        r = p.joint.softmax(1)
        gain = p.alpha * self.variances / p.variances
        if p.centred is None:
            # mean + gain (y - alpha mean), with 1 - alpha gain = sigma^2 / variance: no cancellation at small sigma.
            modes = r @ (self._mean_modes() * (p.sigma**2 / p.variances)) + p.y * (r @ gain)
            return self._like(self._from_modes(modes), x)
        return self._like(r @ self.means + self._sum_components(r[:, :, None] * gain * p.centred), x)

    def score(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """The exact gradient of `log p_t`."""
        p = self._posterior(x, t, condition)
        r = p.joint.softmax(1)
        if p.centred is None:
            modes = r @ (p.alpha * self._mean_modes() / p.variances) - p.y * (r @ (1 / p.variances))
            return self._like(self._from_modes(modes), x)
        return self._like(-self._sum_components(r[:, :, None] * p.centred / p.variances), x)

    def log_density(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """The exact `log p_t(x)` `[B]`, in x's dtype."""
        return self._posterior(x, t, condition).joint.logsumexp(1).to(x.dtype)

    def sample(self, n: int, seed: int = 0, *, condition: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Exact samples `[n, *shape]`; with a condition (LongTensor `[n]`), of the wanted classes."""
        generator = torch.Generator("cpu").manual_seed(seed)
        here = self.to("cpu")
        chances = here._prior(condition, n).exp().expand(n, -1)
        component = torch.multinomial(chances, 1, replacement=True, generator=generator)[:, 0]
        z = (
            torch.randn(n, self.size, generator=generator, dtype=torch.float64, device="cpu")
            * here.variances[component].sqrt()
        )
        if here.basis is not None and here.basis.ndim == 3:
            for k in range(len(here.means)):
                z[component == k] = z[component == k] @ here.basis[k].T
        else:
            z = here._from_modes(z)
        return (here.means[component] + z).reshape(n, *self.shape).to(dtype)

    def ode_solution(self, x: Tensor, t_from: Time, t_to: Time) -> Tensor:
        """Where the probability-flow ODE takes states x `[B, 1]`, in one dimension, where it has a closed form.

        It keeps every state's quantile, `F_to(y) = F_from(x)`; y is found by bisection to the last digits. The smaller
        tail is compared, in logarithms, so that far states keep their precision. Not differentiable.
        """
        if self.size != 1:
            raise ArgumentError(
                f"the flow is closed in one dimension only, and samples have shape {self.shape}: integrate it finely"
            )
        with torch.no_grad():
            flat = self._flat(x)
            source, target = self._line(t_from), self._line(t_to)
            lower, upper = _log_tail(flat, *source), _log_tail(-flat, -source[0], source[1], source[2])
            side = torch.where(lower < upper, 1.0, -1.0)
            wanted = torch.minimum(lower, upper)
            mean, spread, log_weights = target
            low = (mean - 40 * spread).min().expand_as(flat)
            high = (mean + 40 * spread).max().expand_as(flat)
            for _ in range(100):
                middle = (low + high) / 2
                tail = torch.where(
                    side > 0,
                    _log_tail(middle, mean, spread, log_weights),
                    _log_tail(-middle, -mean, spread, log_weights),
                )
                too_low = (tail < wanted) == (side > 0)
                low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
            return self._like((low + high) / 2, x)

    def _line(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self._levels(t)
        return alpha * self.means[:, 0], torch.sqrt(alpha**2 * self.variances[:, 0] + sigma**2), self.log_weights

    def _posterior(self, x: Tensor, t: Time | None, condition: Any) -> _Posterior:
        alpha, sigma = self._levels(t)
        flat = self._flat(x)
        v = alpha**2 * self.variances + sigma**2
        centred = None
        if self.basis is not None and self.basis.ndim == 3:
            y = flat
            centred = torch.einsum("bkd,kde->bke", flat[:, None] - alpha * self.means, self.basis)
            distance = (centred**2 / v).sum(2)
        else:
            y = self._to_modes(flat)
            mean = alpha * self._mean_modes()
            distance = y**2 @ (1 / v).T - 2 * y @ (mean / v).T + (mean**2 / v).sum(1)
        density = -0.5 * (distance + v.log().sum(1) + self.size * math.log(2 * math.pi))
        return _Posterior(y, centred, alpha, sigma, v, self._prior(condition, len(x)) + density)

    def _prior(self, condition: Any, rows: int) -> Tensor:
        """Log weights `[1, K]`, or `[B, K]` of the components that each sample's class leaves, normalised."""
        if condition is None:
            return self.log_weights[None]
        if self.labels is None:
            raise ArgumentError(
                "this mixture has no labels, so it takes no condition: drop condition=, or give labels="
            )
        if not isinstance(condition, Tensor) or condition.shape != (rows,):
            raise ArgumentError(
                f"condition must be an integer tensor [{rows}]: the class of each sample, {NO_LABEL} for none"
            )
        wanted = condition.to(self.labels.device)[:, None]
        kept = (self.labels == wanted) | (wanted == NO_LABEL)
        return self.log_weights.masked_fill(~kept, -math.inf).log_softmax(1)

    def _mean_modes(self) -> Tensor:
        return self._to_modes(self.means)

    def _to_modes(self, flat: Tensor) -> Tensor:
        return flat if self.basis is None else flat @ self.basis

    def _from_modes(self, modes: Tensor) -> Tensor:
        return modes if self.basis is None else modes @ self.basis.T

    def _sum_components(self, modes: Tensor) -> Tensor:
        assert self.basis is not None
        return torch.einsum("bke,kde->bd", modes, self.basis)


def _log_tail(x: Tensor, mean: Tensor, spread: Tensor, log_weights: Tensor) -> Tensor:
    """Log of the mixture's mass below x `[B, 1]`."""
    return (log_weights + log_ndtr((x - mean) / spread)).logsumexp(1, keepdim=True)


def _modes(covariances: Tensor, basis: Tensor | None, k: int, d: int) -> tuple[Tensor, Tensor | None]:
    """Variances `[K, d]` along the principal axes, and the axes: none, common `[d, d]`, or one set each `[K, d, d]`."""
    if tuple(covariances.shape) not in ((), (k,), (k, d), (k, d, d)):
        raise ArgumentError(
            f"covariances have shape {tuple(covariances.shape)}: give (), ({k},), ({k}, {d}) or ({k}, {d}, {d})"
        )
    if covariances.ndim == 3:
        if basis is not None:
            raise ArgumentError("full covariances bring their own axes: drop basis=, or give variances [K, d] along it")
        return check_covariance(covariances, "covariances")
    variances = (covariances[:, None] if covariances.ndim == 1 else covariances).expand(k, d).clone()
    check_variances(variances, "covariances")
    if basis is None:
        return variances, None
    basis = as_float64(basis)
    if (
        basis.shape != (d, d)
        or float((basis.T @ basis - torch.eye(d, dtype=torch.float64, device="cpu")).abs().max()) > 1e-10
    ):
        raise ArgumentError(f"basis must be an orthogonal matrix [{d}, {d}]")
    return variances, basis
