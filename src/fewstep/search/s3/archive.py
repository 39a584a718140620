"""What proposers know of the trials: their genes and scores as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fewstep.proposals import Proposal, Trial
from fewstep.search.s3.genes import Floats, Genes, Ints, concat, empty
from fewstep.search.s3.space import Space


def score_of(trial: Trial) -> float:
    """The score at the fewest images, which all trials have; NaN without any."""
    return trial.scores[min(trial.scores)] if trial.scores else math.nan


@dataclass(frozen=True)
class Archive:
    """Finished trials whose schedules lie in the space, and the keys of all trials.

    Attributes:
        genes, scores, nfe, numbers: of the finished ones, by number.
        guided: whether the surrogate proposed them.
        bred: whether they are children of others, guided or not.
        known: keys of all trials' genes; nothing is proposed twice.
    """

    genes: Genes
    scores: Floats
    nfe: Ints
    numbers: Ints
    guided: np.ndarray[tuple[int], np.dtype[np.bool_]]
    bred: np.ndarray[tuple[int], np.dtype[np.bool_]]
    known: set[bytes]

    def best(self, nfe: int, count: int) -> Ints:
        """Rows of the best trials of a number of calls, best first."""
        rows = np.flatnonzero((self.nfe == nfe) & np.isfinite(self.scores))
        return rows[np.argsort(self.scores[rows], kind="stable")[:count]]


GUIDED = "guided"
BRED = "bred"


@dataclass
class Reader:
    """Trials to archives; remembers the encoding of each trial, which never changes."""

    space: Space
    kept: dict[int, tuple[Proposal, Genes | None, bytes | None]] = field(
        default_factory=dict[int, tuple[Proposal, Genes | None, bytes | None]]
    )

    def read(self, trials: Sequence[Trial]) -> Archive:
        """The archive of some trials."""
        rows: list[tuple[Trial, Genes]] = []
        known: set[bytes] = set()
        for trial in trials:
            genes, key = self._encoded(trial)
            if genes is None or key is None:
                continue
            known.add(key)
            if trial.scores:
                rows.append((trial, genes))
        genes = concat([g for _, g in rows]) if rows else empty(0, self.space.room)
        origins = [t.proposal.origin for t, _ in rows]
        return Archive(
            genes,
            np.array([score_of(t) for t, _ in rows]),
            np.array([t.nfe for t, _ in rows], np.int64),
            np.array([t.number for t, _ in rows], np.int64),
            np.array([o.startswith(GUIDED) for o in origins], bool),
            np.array([o.startswith((GUIDED, BRED)) for o in origins], bool),
            known,
        )

    def _encoded(self, trial: Trial) -> tuple[Genes | None, bytes | None]:
        kept = self.kept.get(trial.number)
        if kept is None or (kept[0] is not trial.proposal and kept[0].schedule != trial.proposal.schedule):
            genes = self.space.encode(trial.proposal.schedule)
            kept = (trial.proposal, genes, genes.names()[0] if genes is not None else None)
            self.kept[trial.number] = kept
        return kept[1], kept[2]
