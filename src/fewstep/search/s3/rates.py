"""How often and how far the operators change a schedule: the rates of the released searches."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule


@dataclass(frozen=True)
class Rates:
    """Probabilities and widths of mutation and crossover; the defaults are those of CIFAR-10, VP (USF++'s file).

    Attributes:
        insert, delete: chance that a child gets one step more, or one less.
        time, time_spread: chance per time, and its standard deviation: of `t_max`, or of the time itself if `relative`.
        order, order_weights: chance per step, and the weights of orders 1 to 4.
        scaling, scaling_spread: applied twice, as released: once to mark a step as relaxed, once to move r.
        estimate: chance per step that the points of the first derivative are redrawn.
        basis, basis_weights: chance per step, and the weights of data, noise, v3.
        corrector: chance per step.
        afs, afs_weights: chance per schedule, and the weights of none, zero, mean, unit.
        start, tau: chance per step; 0 in the released searches.
        cross, deep: chance of a crossover, and that it also mixes step by step.
        rank: parents are drawn from the best so many of their number of calls.
        ends: range of the last time in the released search (None: the space's own).
        nfes: lowest and highest number of calls there.
    """

    insert: float = 0.2
    delete: float = 0.2
    time: float = 0.3
    time_spread: float = 0.03
    relative: bool = False
    order: float = 0.3
    order_weights: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
    scaling: float = 0.3
    scaling_spread: float = 0.03
    estimate: float = 0.3
    basis: float = 0.3
    basis_weights: tuple[float, ...] = (0.3, 0.3, 0.4)
    corrector: float = 0.3
    afs: float = 0.3
    afs_weights: tuple[float, ...] = (0.3, 0.3, 0.4, 0.0)
    start: float = 0.0
    tau: float = 0.0
    cross: float = 0.5
    deep: float = 0.5
    rank: int = 15
    ends: tuple[float, float] | None = None
    nfes: tuple[int, int] = (3, 12)

    def __post_init__(self) -> None:
        for name in ("insert", "delete", "time", "order", "scaling", "estimate", "basis", "corrector", "afs", "start",
                     "tau", "cross", "deep"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"{name}={getattr(self, name)}: a chance lies between 0 and 1")
        if self.insert + self.delete > 1 or self.rank < 1:
            raise ArgumentError("insert + delete must not exceed 1, and rank must be at least 1")


PRESETS: dict[str, Rates] = {
    "cifar10_vp": Rates(ends=(1e-4, 1e-3)),
    "cifar10_edm": Rates(cross=0.3, time_spread=0.08, relative=True, ends=(0.002, 0.003)),
    "imagenet256": Rates(
        cross=0.3, time=0.5, time_spread=0.06, scaling=0.2, scaling_spread=0.06, estimate=0.2, basis=0.2,
        corrector=0.2, rank=30, ends=(1e-3, 1.5e-3), nfes=(8, 10),
    ),
    "latent": Rates(
        cross=0.3, deep=0.8, time=0.5, time_spread=0.08, scaling=0.2, scaling_spread=0.06, estimate=0.2, basis=0.2,
        corrector=0.2, afs_weights=(0.5, 0.5, 0.0, 0.0), ends=(1e-3, 1.8e-3), nfes=(4, 12),
    ),
}  # fmt: skip
"""The four released configurations; "latent" served LSUN-Bedroom and Stable Diffusion. Their skip coefficients are
network internals and not part of a sampler."""


def released(name: str) -> Rates:
    """The released configuration of a name.

    Raises:
        ArgumentError: no such configuration.
    """
    if name not in PRESETS:
        raise ArgumentError(f"there are no rates named {name!r}: the released ones are {', '.join(PRESETS)}")
    return PRESETS[name]


def default_rates(noise: NoiseSchedule) -> Rates:
    """The CIFAR-10 configuration whose coordinates suit a noise schedule."""
    return PRESETS["cifar10_edm" if isinstance(noise, EDM) else "cifar10_vp"]
