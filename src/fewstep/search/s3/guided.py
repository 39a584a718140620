"""S³: stages of guided evolution, true evaluation, and learning from everything so far (Liu et al., section 4.2).

A stage: the surrogate guides an evolution over many generations, the best of its candidates and some plain children
are evaluated, and the surrogate learns again. A surrogate that does not rank, or whose candidates lose against plain
children, is not followed: what is left then is the released evolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.proposals import Proposal, Trial
from fewstep.search.s3.archive import GUIDED, Archive
from fewstep.search.s3.crossover import crossover
from fewstep.search.s3.evolution import Evolution
from fewstep.search.s3.features import Features, features
from fewstep.search.s3.genes import Floats, Genes, Ints, concat
from fewstep.search.s3.initial import LIMIT
from fewstep.search.s3.mutation import Random, mutate
from fewstep.search.s3.process import ProcessModel
from fewstep.search.s3.rates import Rates
from fewstep.search.s3.space import Space
from fewstep.search.s3.surrogate import FEWEST, Ensemble, Training, rank_correlation

RECENT = 80
"""So many of the newest children decide whether the surrogate's candidates are better than plain ones."""
ENOUGH = 6


class Model(Protocol):
    """What guides: the sequence models, or the process."""

    tau: float

    def predict(self, f: Features) -> tuple[Floats, Floats]:
        """Mean and spread."""
        ...


@dataclass(frozen=True)
class Guidance:
    """How the surrogate is used.

    Attributes:
        surrogate: "process", "sequence" (the model of the paper's ancestor), or "both".
        share: most guided proposals among all, where the surrogate is trusted fully.
        generations, children: of the guided evolution; `kept` survivors for each number of calls.
        bonus: how many deviations below its mean a candidate is judged: more explores more.
        pool: candidates for each number of calls that a stage may propose.
        trust: held-out rank correlations at which the share begins to rise, and is full.
        wins: chances of a guided child to beat a plain one at which the share begins to rise, and is full.
        training: of the sequence models.
    """

    surrogate: str = "process"
    share: float = 0.8
    generations: int = 25
    children: int = 160
    kept: int = 50
    bonus: float = 1.5
    pool: int = 40
    trust: tuple[float, float] = (0.1, 0.35)
    wins: tuple[float, float] = (0.35, 0.5)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.surrogate not in ("process", "sequence", "both"):
            raise ArgumentError(f"surrogate={self.surrogate!r}: choose 'process', 'sequence' or 'both'")
        if not 0 <= self.share <= 1:
            raise ArgumentError(f"share={self.share}: give a part between 0 and 1")

    @staticmethod
    def of(record: dict[str, Any]) -> Guidance:
        """From plain data, as a study keeps it."""
        options: dict[str, Any] = dict(record)
        if "training" in options:
            options["training"] = Training(**options["training"])
        return Guidance(**options)


class S3(Evolution):
    """The multi-stage search; all numbers of calls share one surrogate.

    Args:
        space, rates, limit, seed: as for `Evolution`.
        guidance: how the surrogate is used.
    """

    name, learn_every = "s3", 32

    def __init__(
        self, space: Space, rates: Rates, *, guidance: Guidance | None = None, limit: int = LIMIT, seed: int = 0
    ) -> None:
        super().__init__(space, rates, limit=limit, seed=seed)
        self.guidance = guidance or Guidance()
        self._pool: list[tuple[Genes, Floats]] = []
        self._share, self._stage = 0.0, 1

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        """The rest of the initial population, then the surrogate's candidates among plain children."""
        first = self.waiting(trials)[:count]
        if len(first) == count:
            return first
        rng = np.random.default_rng([self.seed, seed])
        archive = self.reader.read(trials)
        wanted = int((rng.random(count - len(first)) < self._share).sum())
        out = first + self._guided(archive, wanted, rng)
        return out + self.bred(archive, count - len(out), rng, self._stage)

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Fit the surrogate and let it guide an evolution; the report holds tau, the trust and the stage."""
        archive = self.reader.read(trials)
        self._stage = 1 + max((t.proposal.stage for t in trials), default=0)
        self._pool, self._share = [], 0.0
        if np.isfinite(archive.scores).sum() < FEWEST:
            return {}
        model = self._fitted(features(self.space, archive.genes), archive.scores)
        wins = _wins(archive)
        trusted = _ramp(model.tau, self.guidance.trust) * _ramp(wins, self.guidance.wins)
        self._share = self.guidance.share * trusted
        report = {
            "tau": model.tau, "wins": wins, "share": self._share, "stage": self._stage,
            "trials": len(archive.scores), "tau_of_predictions": _prospective(trials),
        }  # fmt: skip
        if self._share > 0:
            rng = np.random.default_rng([self.seed, len(archive.scores)])
            self._pool = self._evolved(model, archive, rng)
        return report

    @property
    def lesson(self) -> Any:
        """What `learn` found: the stage, how far the surrogate is followed, its candidates with their predictions."""
        return self._stage, self._share, self._pool

    @lesson.setter
    def lesson(self, lesson: Any) -> None:
        self._stage, self._share, self._pool = lesson

    def _fitted(self, known: Features, scores: Floats) -> Model:
        kind = self.guidance.surrogate
        if kind == "process":
            return ProcessModel(known, scores)
        sequence = Ensemble(known, scores, self.guidance.training, self.seed)
        return sequence if kind == "sequence" else Both(ProcessModel(known, scores), sequence)

    def _guided(self, archive: Archive, count: int, rng: Random) -> list[Proposal]:
        """The next candidates of the pool: of each number of calls in turn, in the pool's order."""
        lists = [list(zip(range(len(g)), g.names(), strict=True)) for g, _ in self._pool]
        waiting = [[row for row, key in rows if key not in archive.known] for rows in lists]
        out: list[Proposal] = []
        while len(out) < count and any(waiting):
            for k in rng.permutation(len(waiting)).tolist():
                if waiting[k] and len(out) < count:
                    row, (genes, predicted) = waiting[k].pop(0), self._pool[k]
                    schedule = self.space.decode(genes, row)
                    out.append(Proposal(schedule, GUIDED, self._stage, predicted=float(predicted[row])))
        return out

    def _evolved(self, model: Model, archive: Archive, rng: Random) -> list[tuple[Genes, Floats]]:
        """For each number of calls the candidates to be evaluated, in order, with their predicted scores."""
        g = self.guidance
        rows = np.concatenate([archive.best(n, g.kept) for n in self.space.nfes])
        if not len(rows):
            return []
        people = archive.genes.take(rows)
        mean, spread = model.predict(features(self.space, people))
        fitness = mean - g.bonus * spread
        for _ in range(g.generations):
            child = self._generation(people, fitness, rng)
            mean, spread = model.predict(features(self.space, child))
            people = concat([people, child])
            fitness = np.concatenate([fitness, mean - g.bonus * spread])
            kept = _survivors(people, fitness, g.kept)
            people, fitness = people.take(kept), fitness[kept]
        new = np.array([key not in archive.known for key in people.names()])
        people = people.take(new)
        return [self._ordered(model, people.take(people.nfe == n)) for n in self.space.nfes]

    def _generation(self, people: Genes, fitness: Floats, rng: Random) -> Genes:
        """Children of winners of tournaments of two, at the released rates or gentler ones."""
        count = self.guidance.children
        nfes = rng.choice(np.unique(people.nfe), count)
        pairs = [_tournament(people.nfe, nfes, fitness, rng) for _ in range(2)]
        one, two = (people.take(p) for p in pairs)
        cross = rng.random(count) < self.rates.cross
        crossed = crossover(self.space, self.rates, one.take(cross), two.take(cross), rng)
        mixed = concat([crossed, one.take(~cross)])
        gentle = gentler(self.rates, float(rng.choice((1.0, 0.5, 0.25))))
        return mutate(self.space, gentle, mixed, rng)

    def _ordered(self, model: Model, people: Genes) -> tuple[Genes, Floats]:
        """The best first, then in turn the best beside those before it: neighbours tell little new."""
        seen = features(self.space, people)
        if not len(people):
            return people, np.zeros(0)
        mean, spread = model.predict(seen)
        points = model.points(seen) if isinstance(model, ProcessModel) else None
        order: list[int] = []
        left = spread.copy()
        open_rows = np.ones(len(people), bool)
        for _ in range(min(self.guidance.pool, len(people))):
            value = np.where(open_rows, mean - self.guidance.bonus * left, np.inf)
            best = int(value.argmin())
            order.append(best)
            open_rows[best] = False
            if points is not None:
                near = np.exp(-np.linalg.norm(points - points[best], axis=1))
                left = left * np.sqrt(1 - 0.98 * near**2)
        return people.take(order), mean[order]


class Both:
    """The mean of the two surrogates, each by its held-out rank correlation."""

    def __init__(self, process: ProcessModel, sequence: Ensemble) -> None:
        self.parts = (process, sequence)
        weights = np.maximum([p.tau for p in self.parts], 1e-3)
        self.weights = weights / weights.sum()
        self.tau = max(p.tau for p in self.parts)

    def predict(self, f: Features) -> tuple[Floats, Floats]:
        """Weighted mean and spread."""
        found = [p.predict(f) for p in self.parts]
        mean = sum(w * m for w, (m, _) in zip(self.weights, found, strict=True))
        spread = sum(w * s for w, (_, s) in zip(self.weights, found, strict=True))
        return np.asarray(mean), np.asarray(spread)


def gentler(rates: Rates, factor: float) -> Rates:
    """Rates with fewer and smaller changes."""
    names = ("insert", "delete", "time", "time_spread", "order", "scaling_spread", "estimate", "basis", "corrector",
             "afs", "start", "tau")  # fmt: skip
    return replace(rates, **{name: getattr(rates, name) * factor for name in names})


def _tournament(nfe: Ints, nfes: Ints, fitness: Floats, rng: Random) -> Ints:
    """The better one of two drawn for each wanted number of calls."""
    out = np.empty(len(nfes), np.int64)
    for n in np.unique(nfes):
        rows, slots = np.flatnonzero(nfe == n), np.flatnonzero(nfes == n)
        pair = rng.choice(rows, (2, len(slots)))
        out[slots] = np.where(fitness[pair[0]] <= fitness[pair[1]], pair[0], pair[1])
    return out


def _survivors(people: Genes, fitness: Floats, kept: int) -> Ints:
    """The best rows of each number of calls, equal ones once."""
    counts: dict[int, int] = {}
    seen: set[bytes] = set()
    out: list[int] = []
    keys, nfe = people.names(), people.nfe
    for row in np.argsort(fitness, kind="stable").tolist():
        n = int(nfe[row])
        if keys[row] not in seen and counts.get(n, 0) < kept:
            seen.add(keys[row])
            counts[n] = counts.get(n, 0) + 1
            out.append(row)
    return np.array(out, np.int64)


def _wins(archive: Archive) -> float:
    """The chance that a recent guided child beats a recent plain one with as many calls; 1/2 where too few are."""
    rows = np.flatnonzero(archive.bred)[-RECENT:]
    wins = total = 0.0
    for n in np.unique(archive.nfe[rows]):
        here = rows[archive.nfe[rows] == n]
        ours, plain = (archive.scores[here[archive.guided[here] == k]] for k in (True, False))
        if len(ours) and len(plain):
            total += ours.size * plain.size
            wins += (ours[:, None] < plain).sum() + 0.5 * (ours[:, None] == plain).sum()
    guided = int(archive.guided[rows].sum())
    return float(wins / total) if total and min(guided, len(rows) - guided) >= ENOUGH else 0.5


def _prospective(trials: Sequence[Trial]) -> float | None:
    """Rank correlation of what was predicted of the last stages' candidates with what came out."""
    rows = [t for t in trials if t.proposal.predicted is not None and t.scores][-RECENT // 2 :]
    if len(rows) < ENOUGH:
        return None
    predicted = np.array([t.proposal.predicted for t in rows], float)
    scores = np.array([t.scores[min(t.scores)] for t in rows])
    return rank_correlation(predicted, scores, np.array([t.nfe for t in rows]))


def _ramp(value: float, ends: tuple[float, float]) -> float:
    """0 up to the first end, 1 from the second on."""
    return float(np.clip((value - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0))
