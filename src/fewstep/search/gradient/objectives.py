"""What a descent lowers: distances to the teacher's end points, along its trajectories, and between distributions.

All are differentiable in the samples, and lower is better. Distances of pairs reward blur where the student cannot
follow (see the theory of metrics); distances of distributions need large batches. Which one is lowered is one choice,
which judge selects is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.kernel import polynomial
from fewstep.metrics.statistics import Features, Statistics

Distance = Callable[[Tensor, Tensor], Tensor]
"""`(student [B, ...], teacher [B, ...]) -> 0-d` mean distance."""


class Track(NamedTuple):
    """Trajectories of the teacher: states `[T+1, B, *shape]` at noise levels alpha, sigma `[T+1]`."""

    states: Tensor
    alpha: Tensor
    sigma: Tensor

    def at(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The state at a level (0-d, float64), differentiable in it.

        Linear between the teacher's points on the straight path, `x / (alpha + sigma)` over `sigma / (alpha + sigma)`,
        where an exact trajectory to a single image is a straight line.
        """
        size = self.alpha + self.sigma
        place, wanted = self.sigma / size, sigma / (alpha + sigma)
        k = int((place > wanted.detach()).sum().clamp(1, len(place) - 1))
        f = ((place[k - 1] - wanted) / (place[k - 1] - place[k])).to(self.states)
        before, after = self.states[k - 1] / size[k - 1].item(), self.states[k] / size[k].item()
        return (before + f * (after - before)) * (alpha + sigma).to(self.states)


class Run(NamedTuple):
    """What a student did: its sample `[B, *shape]`, and where they are wanted its other states by row, with levels."""

    sample: Tensor
    states: dict[int, Tensor]
    alpha: Tensor
    sigma: Tensor


class Batch(NamedTuple):
    """What it is compared with: first states, the teacher's end points, and where they are wanted its trajectories."""

    start: Tensor
    target: Tensor
    path: Track | None
    condition: Any


class Objective(Protocol):
    """A loss of a batch."""

    @property
    def name(self) -> str:
        """In words."""
        ...

    @property
    def along(self) -> bool:
        """Whether it looks at the states along the way, and at the teacher's."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it is no mean over samples: the batch must then not be split."""
        ...

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The loss, 0-d."""
        ...


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference."""
    return (student - teacher).square().mean()


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference (GS on latents)."""
    return (student - teacher).abs().mean()


def log_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples of the logarithm of the mean squared difference: the negative PSNR (BNS)."""
    return (student - teacher).square().flatten(1).mean(1).log().mean()


def pseudo_huber(student: Tensor, teacher: Tensor) -> Tensor:
    """`sqrt(|d|^2 + c^2) - c` of each sample, `c = 0.00054 sqrt(size)` (Song and Dhariwal 2023), over the root size."""
    gap = (student - teacher).flatten(1)
    c2 = 0.00054**2 * gap.shape[1]
    return (((gap.square().sum(1) + c2).sqrt() - c2**0.5) / gap.shape[1] ** 0.5).mean()


def huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss with delta 0.001 (NeuralSolver's of the last state)."""
    return torch.nn.functional.huber_loss(student, teacher, delta=0.001)


DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "log-l2": log_l2, "pseudo-huber": pseudo_huber}


class EndPoints:
    """A distance of the samples to the teacher's end points."""

    along, whole = False, False

    def __init__(self, distance: Distance, name: str) -> None:
        self.distance, self.name = distance, name

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The distance."""
        return self.distance(run.sample, batch.target)


class FeaturePairs:
    """Mean squared difference of features to the teacher's, pair by pair, in any differentiable feature network."""

    along, whole = False, False

    def __init__(self, features: Features, name: str = "features") -> None:
        self.features, self.name = features, name

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The distance."""
        with torch.no_grad():
            wanted = self.features(batch.target)
        return l2(self.features(run.sample), wanted)


class Along:
    """Mean squared difference to the teacher's states at every state of the student, and another at the end.

    Args:
        end: of the last state; by default as the others.
        weight: of the last state's (NeuralSolver: 1000, with Huber's loss; EPD: 10, in features).
        rows: the rows to compare; by default all between the first and the last.
    """

    along, whole = True, False

    def __init__(self, end: Objective | None = None, *, weight: float = 1.0, rows: tuple[int, ...] = ()) -> None:
        self.end, self.weight, self.rows = end or EndPoints(l2, "l2"), weight, rows
        self.name = f"along the trajectory, then {weight:g} x {self.end.name}"

    def on(self, rows: tuple[int, ...]) -> Along:
        """The same at these rows, unless it has rows of its own."""
        return Along(self.end, weight=self.weight, rows=self.rows or rows)

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The sum."""
        if batch.path is None:
            raise ArgumentError("an objective along the trajectory needs the teacher's trajectories: give a teacher")
        total = self.weight * self.end(run, batch)
        for row in self.rows or sorted(run.states):
            total = total + l2(run.states[row], batch.path.at(run.alpha[row], run.sigma[row]))
        return total


class FrechetLoss:
    """Fréchet distance of the batch's features to reference statistics (the data's, or the teacher's).

    Biased upwards in small batches, like every Fréchet distance; its gradient still points along. float64.
    """

    along, whole = False, True

    def __init__(self, features: Features, reference: Statistics, name: str = "Fréchet distance") -> None:
        self.features, self.name = features, name
        self.mean, cov = reference.mean, reference.cov
        values, vectors = torch.linalg.eigh(cov)
        self._factor = vectors * values.clamp_min(0).sqrt()
        self._trace = cov.trace()

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The distance; the covariance's factor is the reference's."""
        mean, centred = _moments(self.features(run.sample).double().cpu())
        return _frechet(mean - self.mean, centred, self._factor, self._trace)


class MatchedLoss:
    """Fréchet distance between the features of the batch and those of the teacher's end points of the same noise.

    What a few samples say by chance is in both sets, and most of it cancels: 64 samples point the way that thousands
    would, and unlike a distance of pairs it does not reward blur. float64.
    """

    along, whole = False, True

    def __init__(self, features: Features, name: str = "matched Fréchet distance") -> None:
        self.features, self.name = features, name

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The distance."""
        mean, centred = _moments(self.features(run.sample).double().cpu())
        with torch.no_grad():
            wanted, around = _moments(self.features(batch.target).double().cpu())
        return _frechet(mean - wanted, centred, around.mT, around.square().sum())


class FaithfulLoss:
    """The geometric mean of two matched Fréchet distances: of the features, and of the samples themselves.

    Feature networks hardly see fine noise: learned on their distance alone, weights may leave some in the samples. In
    the samples themselves noise is a variance that the teacher's do not have. Both parts count by their ratio, whatever
    their units.
    """

    along, whole = False, True

    def __init__(self, features: Features, name: str = "faithful Fréchet distance") -> None:
        self.name = name
        self.parts = MatchedLoss(features), MatchedLoss(lambda x: x.flatten(1))

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The mean."""
        return (self.parts[0](run, batch) * self.parts[1](run, batch)).clamp_min(0).sqrt()


def _moments(f: Tensor) -> tuple[Tensor, Tensor]:
    """The mean `[d]` of features `[n, d]`, and a factor `[n, d]` of their covariance."""
    if len(f) < 2:
        raise ArgumentError("a Fréchet distance needs a batch of two samples or more")
    mean = f.mean(0)
    return mean, (f - mean) / (len(f) - 1) ** 0.5


def _frechet(gap: Tensor, own: Tensor, other: Tensor, trace: Tensor) -> Tensor:
    """Fréchet distance of covariances with the factors own^T own and other other^T (`trace`): the trace of the root is
    the nuclear norm of own @ other.
    """
    singular = torch.linalg.svdvals(own @ other)
    # The rest is rounding, where the root has no derivative.
    kept = singular[singular.detach() > 1e-9 * singular.detach().amax().clamp_min(1e-300)]
    return gap.square().sum() + own.square().sum() + trace - 2 * kept.sum()


class KernelLoss:
    """Squared maximum mean discrepancy of the batch's features to reference features, KID's polynomial kernel.

    Unbiased: also small batches point the right way on average.
    """

    along, whole = False, True

    def __init__(self, features: Features, reference: Tensor, name: str = "kernel distance") -> None:
        self.features, self.name = features, name
        self.reference = reference.double().cpu()
        within = polynomial(self.reference, self.reference)
        m = len(self.reference)
        self._within = (within.sum() - within.trace()) / (m * (m - 1))

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        """The distance."""
        f = self.features(run.sample).double().cpu()
        n = len(f)
        if n < 2:
            raise ArgumentError("a kernel distance needs a batch of two samples or more")
        within = polynomial(f, f)
        cross = polynomial(f, self.reference).mean()
        return (within.sum() - within.diagonal().sum()) / (n * (n - 1)) + self._within - 2 * cross
