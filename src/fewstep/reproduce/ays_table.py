"""The image experiment of Align Your Steps (Sabour, Fidler & Kreis, ICML 2024, Tables 5 and 6), for any network.

Seven solvers, each with its best hand-crafted times and with AYS's, at several numbers of steps:

- Hand-crafted: all grids are raced on selection seeds with the solver and number of steps in question, and the best is
  taken. (The paper takes one grid for each family of solvers.)
- AYS up to 10 steps: coordinate descent from every hand-crafted grid; snapshots of all ways are raced by what the
  solver's samples score (`Settings.objective`) on selection seeds, and the best few compared on fresh ones.
- AYS above: the paper's hierarchy, 10 steps to 20 to 40 without another score, read off log-linearly in between.

What is chosen is scored on report seeds, in several disjoint sets. Every score is on disk before the next is made; the
same command goes on where it was stopped. Cells where AYS loses stay in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.clean import Data
from fewstep.compare import Results
from fewstep.errors import ArgumentError
from fewstep.metrics import Statistics, frechet_with_error
from fewstep.progress import Event, Report, silent
from fewstep.randomness import ReportSeeds
from fewstep.remarks import SURE
from fewstep.reproduce.choosing import Choice, Chooser, Settings
from fewstep.sampling import sample
from fewstep.search.cache import Cache, digest

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.tableau import Tableau

KINDS = ("hand", "ays", "paper")
"""Best hand-crafted times, AYS's, and the paper's baseline: EDM's for stochastic solvers, LogSNR for the others."""
SET_STRIDE = 1_000_000
"""Offset between sets of report seeds: they stay disjoint whatever their sizes."""


@dataclass
class AysTable:
    """The experiment: `run()` makes what is missing, `markdown()` shows what there is.

    Args:
        model: the network, under its default conditions (balanced labels where it has classes).
        judge: features and reference statistics.
        data: clean samples for the KLUB table.
        folder: for `chosen.jsonl` and `scores.jsonl`.
        settings: how much is spent.
        others: further reference statistics by name (a teacher's samples, for one); all cells are scored against them
            too.
        cache: folder of the KLUB table and the selection's scores, by default `cache` in `folder`.
        progress: told what is going on.
    """

    model: Denoiser
    judge: Judge
    data: Data
    folder: Path
    settings: Settings = field(default_factory=Settings)
    others: Mapping[str, Statistics] = field(default_factory=dict[str, Statistics])
    cache: Path | None = None
    progress: Report = silent

    def __post_init__(self) -> None:
        s = self.settings
        for name in s.solvers:
            solvers.get(name)
        if min(s.nfes) < 2:
            raise ArgumentError(f"nfes={tuple(s.nfes)}: give numbers of steps from 2 on")
        self.folder = Path(self.folder)
        self._scores = Results(self.folder / "scores.jsonl")
        self.chooser = Chooser(
            self.model,
            self.judge,
            self.data,
            s,
            results=Results(self.folder / "chosen.jsonl"),
            cache=Cache(self.cache or self.folder / "cache"),
            progress=self.progress,
        )

    def run(self) -> None:
        """Make every choice and score that is missing: the whole table on one set of seeds, then on the next."""
        work = list(itertools.product(range(self.settings.seed_sets), self.plan()))
        for done, (k, (solver, nfe, kind)) in enumerate(work):
            self.progress(Event("cells", done, len(work), f"{solver}, {nfe} steps, {kind}"))
            self.score(solver, nfe, kind, k)
        self.progress(Event("cells", len(work), len(work)))

    def plan(self) -> Iterator[tuple[str, int, str]]:
        """The cells that there are: solver, steps, and `paper`, `hand` or `ays`."""
        for nfe, solver, kind in itertools.product(self.settings.nfes, self.settings.solvers, KINDS):
            if solvers.calls(solver, nfe) is not None:
                yield solver, nfe, kind

    def known(self, solver: str, nfe: int, kind: str) -> tuple[Choice, list[dict[str, Any]]] | None:
        """A cell's times and the scores that are there already; None where not even the times are."""
        choice = self.chooser.known(solver, nfe, kind)
        if choice is None:
            return None
        return choice, self.found(solver, choice.times)

    def found(self, solver: str, grid: Tensor) -> list[dict[str, Any]]:
        """The scores of a solver on these times that are there already, one for each seed set."""
        tableau = self.chooser.tableau(solver, grid)
        keys = [self._score_key(tableau, k) for k in range(self.settings.seed_sets)]
        return [scores for key in keys if (scores := self._scores.get(key)) is not None]

    def score(self, solver: str, nfe: int, kind: str, k: int) -> dict[str, Any]:
        """The scores of one cell on the k-th set of report seeds."""
        choice = self.chooser.chosen(solver, nfe, kind)
        return self.scored(solver, choice.times, choice.origin, k)

    def scored(self, solver: str, grid: Tensor, origin: str, k: int) -> dict[str, Any]:
        """The scores of a solver on any times: `fd`, `fd_error`, `as_label` and, for each of `others`, `fd NAME`."""
        tableau, seeds = self.chooser.tableau(solver, grid), self._seeds(k)
        key = self._score_key(tableau, k)
        found = self._scores.get(key)
        if found is None:
            found = self._measure(tableau, seeds)
            self._scores.add(key, found, solver=solver, nfe=tableau.nfe, times=origin, seeds=repr(seeds))
        return found

    def _seeds(self, k: int) -> ReportSeeds:
        return ReportSeeds(self.settings.images, self.settings.offset + k * SET_STRIDE)

    def _score_key(self, tableau: Tableau, k: int) -> str:
        references = [self.judge.reference.mean, *(other.mean for other in self.others.values())]
        return digest("score", self.model.fingerprint, references, *_numbers(tableau), repr(self._seeds(k)))

    @torch.no_grad()
    def _measure(self, tableau: Tableau, seeds: ReportSeeds) -> dict[str, Any]:
        features: list[Tensor] = []
        right = 0
        for start in range(0, len(seeds), self.settings.batch):
            part = seeds[start : start + self.settings.batch]
            labels = self.chooser.condition(part)
            images = sample(self.model, tableau, seeds=part, condition=labels)
            features.append(self.judge.features(images).double().cpu())
            classify = self.judge.classify
            if classify is not None and labels is not None:
                right += int((classify(images).cpu() == labels.cpu()).sum())
        rows = torch.cat(features)
        value, error = frechet_with_error(rows, self.judge.reference)
        found: dict[str, Any] = {"fd": value, "fd_error": error}
        if self.judge.classify is not None:
            found["as_label"] = right / len(seeds)
        for name, reference in self.others.items():
            found[f"fd {name}"], found[f"fd_error {name}"] = frechet_with_error(rows, reference)
        return {name: float(f"{number:.5g}") for name, number in found.items()}

    def markdown(self, score: str = "fd") -> str:
        """The table as far as it is there: means over the seed sets of the paper's baseline, the best hand-crafted
        times, and AYS's; lower is better.

        Bold is better on every set, of the last two (where there is one set: by two standard errors of the difference,
        as if the two were of other seeds); an asterisk marks AYS times that the selection would not have kept.
        """
        s = self.settings
        lines = ["| solver | " + " | ".join(f"{n} steps" for n in s.nfes) + " |", "|---" * (len(s.nfes) + 1) + "|"]
        for solver in s.solvers:
            lines.append(f"| {solver} | " + " | ".join(self._cell(solver, n, score) for n in s.nfes) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, solver: str, nfe: int, score: str) -> str:
        if solvers.calls(solver, nfe) is None:
            return "n/a"
        known = {kind: self.known(solver, nfe, kind) for kind in ("paper", "hand", "ays")}
        sets = {kind: [found[score] for found in cell[1]] if cell else [] for kind, cell in known.items()}
        words = {kind: f"{sum(values) / len(values):.3g}" if values else "..." for kind, values in sets.items()}
        if sets["hand"] and sets["ays"]:
            errors = [found[score.replace("fd", "fd_error", 1)] for cell in (known["hand"], known["ays"]) if cell
                      for found in cell[1]]  # fmt: skip
            apart = SURE * math.hypot(*errors) if min(len(sets["hand"]), len(sets["ays"])) == 1 else 0.0
            if max(sets["ays"]) + apart < min(sets["hand"]):
                words["ays"] = f"**{words['ays']}**"
            elif max(sets["hand"]) + apart < min(sets["ays"]):
                words["hand"] = f"**{words['hand']}**"
        ours = known["ays"]
        return " \N{RIGHTWARDS ARROW} ".join(words.values()) + ("*" if ours and ours[0].kept is False else "")


def _numbers(tableau: Tableau) -> list[Tensor]:
    """A table to ten digits: a score is found again on another machine, whose grids differ in their last bits."""
    t = tableau.unrolled()
    parts = [p.double() for p in (t.times, t.model_times, t.A, t.B, t.C, t.K)]
    return [(p / (1e-10 * p.abs().amax())).round().nan_to_num() + 0.0 for p in parts if p.numel()]
