"""The released search: asynchronous steady-state evolution without a surrogate, and random search beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.proposals import Proposal, Trial
from fewstep.search.s3.archive import BRED, Archive, Reader
from fewstep.search.s3.crossover import crossover, draw
from fewstep.search.s3.genes import Genes, Ints, concat
from fewstep.search.s3.initial import LIMIT, initial, name_of
from fewstep.search.s3.mutation import Random, mutate
from fewstep.search.s3.rates import Rates
from fewstep.search.s3.space import Space

TRIES = 20
PAIR_TRIES = 6


class Evolution:
    """Children of the best trials, as USF++ was released: see `Rates` for its numbers.

    Args:
        space: what may be chosen.
        rates: of mutation, crossover and selection.
        limit: size of the initial population, for each number of calls.
        seed: added to the seeds that the study gives.
    """

    name = "evolution"
    learn_every = 0
    lesson: Any = None

    def __init__(self, space: Space, rates: Rates, *, limit: int = LIMIT, seed: int = 0) -> None:
        self.space, self.rates, self.limit, self.seed = space, rates, limit, seed
        self.reader = Reader(space)

    @cached_property
    def population(self) -> dict[str, Proposal]:
        """The initial population by name."""
        return {name_of(p.schedule): p for p in initial(self.space, self.limit)}

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        """The rest of the initial population, then children."""
        first = self.waiting(trials)[:count]
        if len(first) == count:
            return first
        archive = self.reader.read(trials)
        rng = np.random.default_rng([self.seed, seed])
        stage = max((t.proposal.stage for t in trials), default=0)
        return first + self.bred(archive, count - len(first), rng, max(stage, 1))

    def waiting(self, trials: Sequence[Trial]) -> list[Proposal]:
        """What of the initial population has not been tried."""
        first = [t.proposal for t in trials if t.proposal.stage == 0]
        if len(first) >= len(self.population):
            return []
        tried = {name_of(p.schedule) for p in first}
        return [p for name, p in self.population.items() if name not in tried]

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Nothing to learn."""
        return {}

    def bred(self, archive: Archive, count: int, rng: Random, stage: int) -> list[Proposal]:
        """New children, none of them tried before."""
        out: list[Proposal] = []
        known = set(archive.known)
        for _ in range(TRIES):
            wanted = count - len(out)
            if wanted <= 0:
                break
            nfes = rng.choice(self.space.nfes, wanted)
            child, parents = self.children(archive, nfes, rng)
            for row, key in enumerate(child.names()):
                if key not in known:
                    known.add(key)
                    named = tuple(int(archive.numbers[p]) for p in parents[row] if p >= 0)
                    origin = f"{BRED} of {', '.join(map(str, named))}" if named else "drawn"
                    out.append(Proposal(self.space.decode(child, row), origin, stage, named))
        return out

    def children(self, archive: Archive, nfes: Ints, rng: Random) -> tuple[Genes, Ints]:
        """A child for each number of calls, and the rows of its one or two parents (-1: none)."""
        pools = {int(n): archive.best(int(n), self.rates.rank) for n in np.unique(nfes)}
        parents = np.full((len(nfes), 2), -1)
        rows: list[Genes] = []
        for k, n in enumerate(nfes):
            pool = pools[int(n)]
            if not len(pool):
                rows.append(draw(self.space, self.rates, nfes[k : k + 1], rng))
                continue
            parents[k, 0] = rng.choice(pool)
            rows.append(archive.genes.take(parents[k, :1]))
            if rng.random() < self.rates.cross:
                parents[k] = self._pair(archive, pool, rng)
                one, two = (archive.genes.take(parents[k, j : j + 1]) for j in (0, 1))
                rows[-1] = crossover(self.space, self.rates, one, two, rng)
        return mutate(self.space, self.rates, concat(rows), rng), parents

    def _pair(self, archive: Archive, pool: Ints, rng: Random) -> Ints:
        """Two parents, with equally many steps if that comes about in a few tries."""
        pair = rng.choice(pool, 2)
        for _ in range(PAIR_TRIES):
            if archive.genes.steps[pair[0]] == archive.genes.steps[pair[1]] and pair[0] != pair[1]:
                break
            pair = rng.choice(pool, 2)
        return pair


class RandomSearch(Evolution):
    """Without selection: "mutations" draws parents from all trials alike, "uniform" draws whole schedules.

    Raises:
        ArgumentError: another mode.
    """

    name = "random"

    def __init__(
        self,
        space: Space,
        rates: Rates,
        *,
        mode: Literal["mutations", "uniform"] = "mutations",
        limit: int = LIMIT,
        seed: int = 0,
    ) -> None:
        super().__init__(space, rates, limit=limit, seed=seed)
        if mode not in ("mutations", "uniform"):
            raise ArgumentError(f"mode={mode!r}: choose 'mutations' or 'uniform'")
        self.mode = mode

    def children(self, archive: Archive, nfes: Ints, rng: Random) -> tuple[Genes, Ints]:
        """Mutants of any trial, or fresh schedules."""
        parents = np.full((len(nfes), 2), -1)
        if self.mode == "mutations":
            for k, n in enumerate(nfes):
                pool = np.flatnonzero(archive.nfe == n)
                parents[k, 0] = rng.choice(pool) if len(pool) else -1
        none = parents[:, 0] < 0
        fresh = draw(self.space, self.rates, nfes[none], rng)
        mutants = mutate(self.space, self.rates, archive.genes.take(parents[~none, 0]), rng)
        order = np.argsort(np.concatenate([np.flatnonzero(none), np.flatnonzero(~none)]))
        return concat([fresh, mutants]).take(order), parents
