"""When a host cannot run a table: the best that it can run, found and scored with the network.

A lossy export keeps the times and loses the weights they were found with. Here the host's own samplers are tried on
those times, as the host will read them (integers where it rounds), and the times are moved, one at a time, where that
helps. What is judged is always the table that the host really runs. Selection seeds choose; report seeds, which have
chosen nothing, say what it costs against the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.errors import ArgumentError, LossyExport
from fewstep.export import A1111, DIFFUSERS, DIFFUSERS_FLOW, K_DIFFUSION, SDCPP, SDNEXT, Export, export, grid_of
from fewstep.export_hosts import integer_times
from fewstep.export_text import Rules
from fewstep.judging import Objective, selection_judge
from fewstep.optimizing import prepared
from fewstep.progress import Event, Report, silent
from fewstep.randomness import ReportSeeds, SelectionSeeds
from fewstep.search.teacher import sde_of

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.noise import NoiseSchedule
    from fewstep.search.objective import Scorer
    from fewstep.tableau import Tableau

HOSTS: dict[str, Rules] = {
    "comfyui": K_DIFFUSION, "k-diffusion": K_DIFFUSION, "a1111": A1111, "sdcpp": SDCPP, "sdnext": SDNEXT,
    "diffusers": {**DIFFUSERS, **DIFFUSERS_FLOW},
}  # fmt: skip
INDEX_STEPS = (16, 4, 1)
"""Moves of a time of a discrete network, in indices; the coarse ones first."""
LOG_STEPS = (0.2, 0.05)
"""Moves of a time of any other network, in log sigma / alpha."""
ROUNDING = ("comfyui", "sdnext")
"""Hosts that round the times of discrete networks: moves go to integers."""
IMAGES, FRESH, TRIALS = 256, 1024, 80


@dataclass(frozen=True)
class Retuned:
    """What a host can do instead.

    Attributes:
        export: the text, with the losses of the original.
        tableau: the host's sampler on the new times; `export.runs` is what the host makes of it.
        judge: what the scores are; lower is better.
        scores: `original`, `nearest` (the host's nearest sampler on the old times) and `retuned`, each
            `{value, standard_error, samples}` on report seeds.
        gain: of `retuned` over `nearest`, on the same seeds, with its standard error.
        trials: tables that were scored on selection seeds.
    """

    export: Export
    tableau: Tableau
    judge: str
    scores: dict[str, dict[str, float]]
    gain: dict[str, float]
    trials: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record of the scores."""
        return {"judge": self.judge, "scores": self.scores, "gain": self.gain, "trials": self.trials,
                "times": grid_of(self.tableau)}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A host's sampler on some times: what is exported, and what the host then runs."""

    rule: str
    grid: Tensor
    tableau: Tableau
    export: Export

    @property
    def runs(self) -> Tableau:
        """What the host runs."""
        return self.tableau if self.export.runs is None else self.export.runs


@dataclass
class _Search:
    """Options on selection seeds; every one is scored once."""

    scorer: Scorer
    images: int
    limit: int
    progress: Report
    scores: dict[str, float] = field(default_factory=dict[str, float])

    def __call__(self, option: Option) -> float:
        key = option.runs.digest
        if key not in self.scores:
            self.scores[key] = self.scorer.score(option.runs, self.images)
            best = min(self.scores.values())
            self.progress(Event("retune", min(len(self.scores), self.limit), self.limit, f"{best:.4g} {option.rule}"))
        return self.scores[key]

    @property
    def spent(self) -> bool:
        """Whether no more may be tried."""
        return len(self.scores) >= self.limit


def retuned(
    tableau: Tableau,
    to: str,
    model: Denoiser | str,
    *,
    shift: float | None = None,
    mu: float | None = None,
    images: int = IMAGES,
    fresh: int = FRESH,
    trials: int = TRIALS,
    objective: Objective = "auto",
    judge: Judge | None = None,
    condition: Any = None,
    batch_size: int = 64,
    progress: Report = silent,
) -> Retuned:
    """The best table that a host's own samplers can run in place of this one.

    Args:
        tableau: the sampler that does not fit.
        to: a host of `HOSTS`.
        model: the network, or its name.
        shift, mu: as in `export`.
        images: samples that choose; fresh: samples of the final scores; trials: tables to be tried.
        objective, judge, condition, batch_size, progress: as in `optimize`.

    Raises:
        ArgumentError: an unknown host, or a table for another noise schedule than the network's.
        LossyExport: none of the host's samplers can make as many network calls.
    """
    if to not in HOSTS:
        raise ArgumentError(f"to={to!r} runs no sampler of its own: retune for one of {', '.join(HOSTS)}")
    ground = prepared(
        model, "dmn", objective=objective, judge=judge, condition=condition, batch_size=batch_size, progress=progress
    )
    if tableau.noise != ground.model.noise:
        raise ArgumentError(f"the table was made for {tableau.noise!r}, the network uses {ground.model.noise!r}")
    selection, report = SelectionSeeds(images), ReportSeeds(fresh)
    teacher = ground.teachers.of(sde_of(tableau.name))
    chosen = selection_judge(ground.objective, ground.known, teacher, [*selection, *report])
    how = {"shift": shift, "mu": mu}
    search = _Search(ground.scorer([chosen], selection), images, trials, progress)
    with torch.no_grad():
        options = sorted(_options(tableau, to, how), key=search)
        if not options:
            raise LossyExport(
                f"none of the samplers of {to} makes {tableau.nfe} network calls on {len(grid_of(tableau)) - 1} steps; "
                "search for a schedule of one of them (fewstep optimize --solver)"
            )
        original = export(tableau, to, accept_loss=True, **how)
        nearest = next((o for o in options if o.export.sampler == original.sampler), options[0])
        best = _moved(options[0], to, how, search)
        scorer = ground.scorer([chosen], report)
        tables = {"original": tableau, "nearest": nearest.runs, "retuned": best.runs}
        scores = {role: scorer.figures(table, fresh)[chosen.name] for role, table in tables.items()}
        gain = scorer.gains(nearest.runs, best.runs, fresh)[chosen.name]
    text = replace(best.export, losses=original.losses)
    return Retuned(text, best.tableau, chosen.name, scores, gain, len(search.scores))


def _options(tableau: Tableau, to: str, how: dict[str, Any]) -> list[Option]:
    """The host's samplers with as many network calls, on the times as they are and as the host's integers."""
    assert tableau.noise is not None
    own = torch.tensor(grid_of(tableau), dtype=torch.float64, device="cpu")
    found: list[Option] = []
    for grid in (integer_times(tableau.noise, own), own):
        for rule in HOSTS[to]:
            if solvers.calls(HOSTS[to][rule][0], tableau.nfe) != len(grid) - 1:
                continue
            option = _option(tableau.noise, to, rule, grid, how)
            random = tableau.C.shape[1] > 0
            if option is None or option.tableau.nfe != tableau.nfe or (option.tableau.C.shape[1] > 0) != random:
                continue
            if not any(option.runs.isclose(other.runs) for other in found):
                found.append(option)
    return found


def _option(noise: NoiseSchedule, to: str, rule: str, grid: Tensor, how: dict[str, Any]) -> Option | None:
    name, options = HOSTS[to][rule]
    try:
        table = solvers.get(name)(grid, **options).tabulate(noise)
        return Option(rule, grid, table, export(table, to, **how))
    except (ArgumentError, LossyExport):  # times that repeat, or a sampler that is not this network's
        return None


def _moved(start: Option, to: str, how: dict[str, Any], search: _Search) -> Option:
    """Times moved one by one, while that is better on the selection seeds."""
    noise = start.tableau.noise
    assert noise is not None
    best = start
    for step in INDEX_STEPS if noise.family == "discrete" else LOG_STEPS:
        better = True
        while better and not search.spent:
            better = False
            for moved in _neighbours(noise, best.grid, step):
                if search.spent:
                    break
                grid = integer_times(noise, moved) if to in ROUNDING else moved
                option = _option(noise, to, best.rule, grid, how)
                if option is not None and search(option) < search(best):
                    best, better = option, True
    return best


def _neighbours(noise: NoiseSchedule, grid: Tensor, step: float) -> Iterator[Tensor]:
    """Grids with one inner time moved up or down; the ends stay, and the order too."""
    for k in range(1, len(grid) - 1):
        if noise.sigma(grid[k]).item() <= 0:
            continue
        for sign in (1, -1):
            moved = grid.clone()
            if noise.family == "discrete":
                moved[k] = (grid[k] + sign * step).clamp_min(0)
            else:
                moved[k] = noise.time_of_ratio(noise.ratio(grid[k]) * torch.exp(torch.tensor(sign * step)))
            if bool((moved[:-1] > moved[1:]).all()):
                yield moved
