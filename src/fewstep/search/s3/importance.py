"""Which components the surrogate ranks by: how much worse it ranks unseen trials whose component is another's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.search.s3.ablation import COMPONENTS
from fewstep.search.s3.features import features
from fewstep.search.s3.genes import Floats, Genes
from fewstep.search.s3.process import FOLDS, ProcessModel
from fewstep.search.s3.space import Space
from fewstep.search.s3.surrogate import FEWEST, rank_correlation

REPEATS = 5


@dataclass(frozen=True)
class Importance:
    """Of one component: by how much Kendall's tau on unseen trials drops when it is permuted among them.

    Attributes:
        component: its name.
        drop: mean over the repetitions; spread: their standard deviation.
    """

    component: str
    drop: float
    spread: float


def importances(
    space: Space, genes: Genes, scores: Floats, *, repeats: int = REPEATS, seed: int = 0
) -> tuple[float, list[Importance]]:
    """Kendall's tau on held-out trials, and each component's part of it, most important first.

    A process is made of four fifths of the trials and ranks the others, first as they are, then with one component
    taken from another trial with as many calls and steps. What it sees of a schedule, the errors on Gaussian data
    among it, is made anew, so that a component counts by all that it does. The first step follows from the number of
    steps and is not permuted. Fewer trials than 12 give (0, []).

    Args:
        space: of the schedules.
        genes, scores: finished trials.
        repeats: permutations for each fold.
        seed: of folds and permutations.
    """
    if len(genes) < max(FEWEST, 2 * FOLDS):
        return 0.0, []
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(genes)) % FOLDS
    known = features(space, genes)
    names = [name for name in COMPONENTS if name != "first step"]
    base = np.zeros(len(genes))
    moved = {name: np.zeros((repeats, len(genes))) for name in names}
    for k in range(FOLDS):
        rest, left = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        model = ProcessModel(known.take(rest), scores[rest])
        base[left] = model.predict(known.take(left))[0]
        for name in names:
            for r in range(repeats):
                changed = _permuted(space, genes.take(left), name, rng)
                moved[name][r, left] = model.predict(features(space, changed))[0]
    tau = rank_correlation(base, scores, known.nfe)
    drops = {name: tau - np.array([rank_correlation(row, scores, known.nfe) for row in moved[name]]) for name in names}
    found = [Importance(name, float(d.mean()), float(d.std())) for name, d in drops.items()]
    return tau, sorted(found, key=lambda f: -f.drop)


def _permuted(space: Space, g: Genes, name: str, rng: np.random.Generator) -> Genes:
    """The component dealt anew among schedules with as many calls and steps."""
    source = np.arange(len(g))
    for key in {(int(n), int(s)) for n, s in zip(g.nfe, g.steps, strict=True)}:
        rows = np.flatnonzero((g.nfe == key[0]) & (g.steps == key[1]))
        source[rows] = rng.permutation(rows)
    out = g.copy()
    for gene in COMPONENTS[name]:
        getattr(out, gene)[:] = getattr(g, gene)[source]
    return space.canonical(out)
