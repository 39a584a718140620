"""Spaces of samplers: from a point, which is a few numbers, to a table, differentiably.

A space is a product: times that move or stay, weights that are theory's or learned, model times of their own or not.
Each begins at a given sampler and reproduces it before it learns anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fewstep.errors import ArgumentError
from fewstep.noise import Flow, NoiseSchedule
from fewstep.rules import SolverSchedule
from fewstep.search.gradient.compensation import Compensated
from fewstep.search.gradient.corrections import Corrected, Generalised, Theory
from fewstep.search.gradient.drifting import Drifting
from fewstep.search.gradient.grids import Grid, Softmax, Sticks
from fewstep.search.gradient.midpoints import Midpoints
from fewstep.search.gradient.multistep import Multistep
from fewstep.search.gradient.numbers import Axis, Numbers
from fewstep.search.gradient.straight import NonStationary
from fewstep.search.gradient.told import Offsets
from fewstep.tableau import Tableau

ORDER = 3
"""Outputs that a step of S4S and DyWeight reads."""


@dataclass(frozen=True)
class Start:
    """Where a space begins: a sampler's decisions and its table, and the axis on which its times are moved."""

    schedule: SolverSchedule
    noise: NoiseSchedule
    axis: Axis

    @staticmethod
    def of(schedule: SolverSchedule, noise: NoiseSchedule, *, low: float | None = None) -> Start:
        """The start; its times move between its first and `low`, by default the network's least noise level."""
        last = schedule.times[-1].item()
        return Start(
            schedule, noise, Axis.of(noise, schedule.times[0].item(), max(noise.t_min if low is None else low, last))
        )

    @property
    def tableau(self) -> Tableau:
        """Its table."""
        return self.schedule.tabulate(self.noise)


class Space(nn.Module):
    """Times, weights, and model times; calling it gives the numbers of the table at its present point."""

    def __init__(self, grid: Grid, weights: nn.Module, noise: NoiseSchedule, offsets: Offsets | None = None) -> None:
        super().__init__()
        self.grid, self.weights, self.offsets, self.noise = grid, weights, offsets, noise
        if not any(len(p.flatten()) for p in self.parameters()):
            raise ArgumentError("this space has no free number: give more network calls, or another method")

    def forward(self) -> Numbers:
        """The numbers, in the graph of the parameters."""
        numbers: Numbers = self.weights(self.grid())
        return numbers if self.offsets is None else self.offsets(numbers)

    def tableau(self, name: str = "") -> Tableau:
        """The table at the present point, out of the graph."""
        return self().tableau(self.noise, name)

    @property
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that learn, as `times`, `told` and `weights`; empty ones are left out."""
        parts = {"times": self.grid, "told": self.offsets, "weights": self.weights}
        found = {name: [*part.parameters()] for name, part in parts.items() if part is not None}
        return {name: values for name, values in found.items() if any(p.numel() for p in values)}

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows that end a step, where others are points inside one; empty where all do."""
        return self.weights.ends if isinstance(self.weights, Midpoints) else ()

    @property
    def size(self) -> int:
        """Number of free numbers."""
        return sum(p.numel() for p in self.parameters())


def _theory(s: Start) -> Theory:
    return Theory(s.schedule, s.noise)


def times(s: Start) -> Space:
    """The times alone, their order kept by a softmax; the weights are the solver's."""
    return Space(Softmax(s.schedule.times, s.axis), _theory(s), s.noise)


def weights(s: Start) -> Space:
    """A free number added at every place of the table; the times stay."""
    return Space(Grid(s.schedule.times), Corrected(_theory(s)), s.noise)


def joint(s: Start) -> Space:
    """Times, model times, and a free number added at every place of the table."""
    theory = _theory(s)
    offsets = Offsets(s.axis, theory(s.schedule.times), bounded=True)
    return Space(Softmax(s.schedule.times, s.axis), Corrected(theory), s.noise, offsets)


def ld3(s: Start) -> Space:
    """LD3 (Tong et al. 2025): times and, bounded by half a step, the model times; the weights are the solver's."""
    theory = _theory(s)
    offsets = Offsets(s.axis, theory(s.schedule.times), bounded=True)
    return Space(Softmax(s.schedule.times, s.axis), theory, s.noise, offsets)


def s4s(s: Start) -> Space:
    """S4S (Frankel et al. 2025): the coefficients of a linear multistep method; the times stay."""
    return Space(Grid(s.schedule.times), Multistep(s.tableau, s.noise, window=ORDER), s.noise)


def s4s_alt(s: Start) -> Space:
    """S4S-Alt: those coefficients, and LD3's times and model times."""
    multistep = Multistep(s.tableau, s.noise, window=ORDER)
    grid = Softmax(s.schedule.times, s.axis)
    return Space(grid, multistep, s.noise, Offsets(s.axis, multistep(s.schedule.times), bounded=True))


def gs(s: Start) -> Space:
    """GS (2025): times, model times, and corrections of the solver's weights over all earlier states and outputs."""
    corrected = Generalised(_theory(s))
    grid = Sticks(s.schedule.times, s.axis) if len(s.schedule.times) > 2 else Grid(s.schedule.times)
    return Space(grid, corrected, s.noise, Offsets(s.axis, corrected(s.schedule.times), bounded=False))


def bns(s: Start) -> Space:
    """BNS (Shaul et al. 2024): times, and free weights on x_0 and all velocities."""
    whole = NonStationary(s.tableau, s.noise)
    moving = len(whole.times) > 2
    return Space(Softmax(whole.times, s.axis) if moving else Grid(whole.times), whole, s.noise)


def dyweight(s: Start) -> Space:
    """DyWeight (2026): mixtures of the last slopes with free sums, and factors on the times the network is told."""
    return Space(Grid(s.schedule.times), Drifting(s.tableau, s.noise, s.axis, window=ORDER), s.noise)


def neural_solver(s: Start) -> Space:
    """NeuralSolver (Wang et al. 2025): times, and coefficients over all outputs that sum to one.

    Of velocities for flow models, of x0 for the others.
    """
    basis = "velocity" if isinstance(s.noise, Flow) else "data"
    multistep = Multistep(s.tableau, s.noise, consistent=True, bases=(basis,))
    return Space(Softmax(s.schedule.times, s.axis), multistep, s.noise)


def dc(s: Start) -> Space:
    """DC-Solver (Zhao et al. 2024): one ratio a step shifts the newest output of a predictor-corrector."""
    return Space(Grid(s.schedule.times), Compensated(_theory(s), s.axis), s.noise)


def epd(s: Start) -> Space:
    """EPD (Zhu et al. 2025) with two parallel points a step, on the times of the start."""
    return Space(Grid(s.schedule.times), Midpoints(s.schedule.times, s.noise, s.axis, parallel=2), s.noise)


def epd_1(s: Start) -> Space:
    """EPD with one point a step: a midpoint method whose points, slopes and model times are learned."""
    return Space(Grid(s.schedule.times), Midpoints(s.schedule.times, s.noise, s.axis, parallel=1), s.noise)


MakeSpace = Callable[[Start], Space]
SPACES: dict[str, MakeSpace] = {
    "times": times, "weights": weights, "joint": joint, "ld3": ld3, "s4s": s4s, "s4s-alt": s4s_alt, "gs": gs,
    "bns": bns, "dyweight": dyweight, "neural-solver": neural_solver, "dc": dc, "epd": epd, "epd-1": epd_1,
}  # fmt: skip
"""Space by name; the function makes it from a start, and refuses starts that it cannot hold."""
