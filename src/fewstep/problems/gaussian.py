"""Gaussian data: everything in closed form, the probability-flow ODE and every linear sampler's output included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule, Time, as_float64
from fewstep.problems.base import Problem, check_covariance, check_variances

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

StartLaw = Literal["noise", "exact"]


class Gaussian(Problem):
    """Data `N(mean, covariance)`.

    With a linear denoiser every linear sampler stays Gaussian, so `output_law` and `kl` judge a table without a single
    sample; both are differentiable in its weights.

    Args:
        mean: a number, or a tensor of the sample's shape (or flat, `[d]`).
        covariance: a variance, variances `[d]`, or a matrix `[d, d]`, over the flattened sample.
        shape: of one sample; by default that of `mean`.
        noise: schedule of the states, EDM's by default.
        name: for messages.

    Raises:
        ArgumentError: shapes that do not fit, or a covariance that is not symmetric positive definite.
    """

    def __init__(
        self,
        mean: float | Tensor,
        covariance: float | Tensor,
        *,
        shape: Sequence[int] | None = None,
        noise: NoiseSchedule | None = None,
        name: str = "",
    ) -> None:
        if shape is None:
            if not isinstance(mean, Tensor) or mean.ndim == 0:
                raise ArgumentError("the shape of a sample is unknown: give shape=, or a mean of that shape")
            shape = mean.shape
        super().__init__(shape, noise, name)
        d = self.size
        flat = as_float64(mean).flatten()
        covariance = as_float64(covariance)
        if flat.numel() not in (1, d) or tuple(covariance.shape) not in ((), (d,), (d, d)):
            raise ArgumentError(
                f"mean has {flat.numel()} entries and covariance shape {tuple(covariance.shape)}: samples of shape "
                f"{self.shape} need {d} (or one number) and (), ({d},) or ({d}, {d})"
            )
        self.mean = flat.expand(d).clone()
        self.basis: Tensor | None = None
        if covariance.ndim == 2:
            self.variances, self.basis = check_covariance(covariance, "covariance")
        else:
            self.variances = covariance.expand(d).clone()
            check_variances(self.variances, "covariance")

    def tensors(self) -> dict[str, Tensor]:
        """Mean `[d]`, eigenvalues `[d]` and eigenvectors `[d, d]` (where they are not the axes)."""
        return {"mean": self.mean, "variances": self.variances} | ({} if self.basis is None else {"basis": self.basis})

    @property
    def covariance(self) -> Tensor:
        """The covariance `[d, d]` of the clean data."""
        return (
            self._from_modes(torch.diag(self.variances))
            if self.basis is None
            else self.basis * self.variances @ self.basis.T
        )

    def denoise(self, x: Tensor, t: Time, condition: Any = None) -> Tensor:
        """`m + alpha C (alpha^2 C + sigma^2)^{-1} (x - alpha m)`."""
        alpha, sigma = self._levels(t)
        flat = self._flat(x)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self._like(self.mean + self._from_modes(gain * self._to_modes(flat - alpha * self.mean)), x)

    def score(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """`-(alpha^2 C + sigma^2)^{-1} (x - alpha m)`."""
        alpha, sigma = self._levels(t)
        centred = self._to_modes(self._flat(x) - alpha * self.mean)
        return self._like(self._from_modes(-centred / (alpha**2 * self.variances + sigma**2)), x)

    def log_density(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """`log N(x; alpha m, alpha^2 C + sigma^2)` `[B]`, in x's dtype."""
        alpha, sigma = self._levels(t)
        variance = alpha**2 * self.variances + sigma**2
        centred = self._to_modes(self._flat(x) - alpha * self.mean)
        return (-0.5 * (centred**2 / variance + variance.log() + math.log(2 * math.pi)).sum(1)).to(x.dtype)

    def sample(self, n: int, seed: int = 0, *, condition: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Exact samples `[n, *shape]`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        z = torch.randn(n, self.size, generator=generator, dtype=torch.float64, device="cpu").to(self.mean.device)
        flat = self.mean + self._from_modes(z.to(self.mean.dtype) * self.variances.sqrt())
        return flat.reshape(n, *self.shape).to(device="cpu", dtype=dtype)

    def ode_solution(self, x: Tensor, t_from: Time, t_to: Time) -> Tensor:
        """Where the probability-flow ODE takes states x `[B, *shape]` from one time to another, exactly.

        Each principal axis is stretched by the ratio of its standard deviations: the flow is linear, symmetric and
        keeps the marginals, which leaves only this.
        """
        (alpha, sigma), (alpha_to, sigma_to) = self._levels(t_from), self._levels(t_to)
        stretch = torch.sqrt((alpha_to**2 * self.variances + sigma_to**2) / (alpha**2 * self.variances + sigma**2))
        moved = self._from_modes(stretch * self._to_modes(self._flat(x) - alpha * self.mean))
        return self._like(alpha_to * self.mean + moved, x)

    def output_law(self, tableau: Tableau, start: StartLaw = "noise") -> tuple[Tensor, Tensor]:
        """Mean `[d]` and covariance `[d, d]` of the samples that a table makes of this problem's exact denoiser.

        Args:
            tableau: any table with scalar weights and one output channel.
            start: law of the first state: `noise`, pure noise of level sigma_T, which is what `sample` draws, or
                `exact`, the noised data themselves.
        """
        mean, variance = self._output_modes(tableau, start)
        return self._from_modes(mean), self._from_modes(self._from_modes(torch.diag(variance)).T)

    def kl(self, tableau: Tableau, start: StartLaw = "noise") -> Tensor:
        """`KL(exact || output of the table)` at the table's last time, in nats (0-d): what AYS's theorem minimises."""
        alpha, sigma = tableau.alpha[-1], tableau.sigma[-1]
        mean, variance = self._output_modes(tableau, start)
        exact_mean, exact = alpha * self._to_modes(self.mean), alpha**2 * self.variances + sigma**2
        return 0.5 * (exact / variance - 1 - torch.log(exact / variance) + (exact_mean - mean) ** 2 / variance).sum()

    def kl_of_samples(self, samples: Tensor) -> float:
        """`KL(exact || Gaussian fitted to clean samples [n, *shape])`; its bias is about `d (d + 3) / 4n` upwards."""
        from fewstep.metrics.likelihood import gaussian_kl

        flat = self._flat(samples)
        if len(flat) <= self.size:
            raise ArgumentError(
                f"{len(flat)} samples cannot fix a covariance in {self.size} dimensions: give more than {self.size}"
            )
        return gaussian_kl(self.mean, self.covariance, flat.mean(0), torch.cov(flat.T).reshape(self.size, self.size))

    def _output_modes(self, tableau: Tableau, start: StartLaw) -> tuple[Tensor, Tensor]:
        """Mean and variance `[d]` of the last state along the principal axes.

        A state is an affine function of the start's and the table's unit normals; `[d, 2 + M]` coefficients (the mean,
        the start, M noises) go through the rows like states.
        """
        C, K = tableau.C, tableau.K
        assert C is not None and K is not None  # a table has them, empty where they were not given
        if tableau.channels != 1 or max(w.ndim for w in (tableau.A, tableau.B, C, K)) > 2:
            raise ArgumentError(
                "this table has several output channels or per-element weights: sample it, and use kl_of_samples"
            )
        if start not in ("noise", "exact"):
            raise ArgumentError(f"start={start!r}: give 'noise' (what sample() draws) or 'exact' (noised data)")
        mean = self._to_modes(self.mean)
        constants = [self._to_modes(c.flatten().to(self.mean)) for c in tableau.constants]
        first = mean.new_zeros(self.size, 2 + C.shape[1])
        alpha, sigma = tableau.alpha[0], tableau.sigma[0]
        if start == "exact":
            first = _with_columns(first, alpha * mean, torch.sqrt(alpha**2 * self.variances + sigma**2))
        else:
            first = _with_columns(first, torch.zeros_like(mean), sigma * torch.ones_like(mean))
        told = tableau.times if tableau.model_times is None else tableau.model_times
        states, outputs = [first], list[Tensor]()
        for i in range(1, tableau.rows):
            outputs.append(self._denoised(states[-1], told[i - 1], mean))
            state = _weighted(tableau.A[i, :i], states) + _weighted(tableau.B[i, :i], outputs)
            shift = sum((w * c for w, c in zip(K[i], constants, strict=True)), torch.zeros_like(mean))
            drawn = C[i].expand(self.size, -1)
            states.append(state + torch.cat([shift[:, None], torch.zeros_like(shift)[:, None], drawn], dim=1))
        return states[-1][:, 0], states[-1][:, 1:].square().sum(1)

    def _denoised(self, state: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """The denoiser on coefficients: linear, and affine in the column of the mean."""
        alpha, sigma = self._levels(t)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return _with_columns(gain[:, None] * state, mean + gain * (state[:, 0] - alpha * mean), gain * state[:, 1])

    def _to_modes(self, flat: Tensor) -> Tensor:
        return flat if self.basis is None else flat @ self.basis

    def _from_modes(self, modes: Tensor) -> Tensor:
        return modes if self.basis is None else modes @ self.basis.T


def _with_columns(matrix: Tensor, *columns: Tensor) -> Tensor:
    """The matrix with its first columns replaced (out of place, for autograd)."""
    return torch.cat([torch.stack(columns, dim=1), matrix[:, len(columns) :]], dim=1)


def _weighted(weights: Tensor, terms: list[Tensor]) -> Tensor:
    """The weighted sum, over the non-zero weights unless they are to be learned."""
    keep = list(range(len(terms))) if weights.requires_grad else weights.nonzero()[:, 0].tolist()
    if not keep:
        return torch.zeros_like(terms[0])
    return torch.einsum("k,kdm->dm", weights[keep], torch.stack([terms[k] for k in keep]))
