"""The scorer: it runs candidates on fixed seeds, shows the samples to judges, and keeps what they saw.

A candidate that is scored on 64 images and later on 256 costs 256 images, not 320: a judge keeps a short row for each
image, and rows are small enough to keep.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.batching import in_batches
from fewstep.brownian import motion
from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Estimate
from fewstep.sampling import sample
from fewstep.search.cache import Cache, Probe, SeedRows, digest, precision
from fewstep.search.judges import GROUPS, Judge
from fewstep.search.teacher import ConditionOf, InitOf

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.tableau import Tableau

BATCH = 64


class Scorer:
    """Runs candidates on fixed seeds and lets judges look at the samples, each sample once.

    Args:
        denoiser: the network.
        judges: the first gives the score, the others are told beside it.
        seeds: of the samples; a count takes the first of them.
        condition: condition of given seeds.
        cache: rows are kept there by network, table, judges and seeds.
        probe: guards the cache; shared by those who use one network.
        batch_size: samples at a time.
        init: clean images that the samples start from, where tables begin below the noisiest time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        judges: Sequence[Judge],
        seeds: Sequence[int],
        *,
        condition: ConditionOf,
        cache: Cache,
        probe: Probe | None = None,
        batch_size: int = BATCH,
        init: InitOf | None = None,
    ) -> None:
        self.denoiser, self.judges, self.seeds, self.condition = denoiser, tuple(judges), seeds, condition
        self.batch_size, self._init = batch_size, init
        named = all(judge.digest is not None for judge in judges)
        self._cache = cache if named else Cache(None)
        self._probe = probe or Probe(denoiser, condition(range(1)))
        self._stores: dict[str, SeedRows] = {}

    def rows(self, tableau: Tableau, count: int) -> list[Tensor]:
        """For each judge the rows of the first `count` seeds."""
        if count > len(self.seeds):
            raise ArgumentError(f"{count} samples asked for, but there are {len(self.seeds)} seeds: give more seeds")
        joined = self._store(tableau)(self.seeds[:count])
        widths = joined[0, -len(self.judges) :].long().tolist()
        return list(joined[:, : -len(self.judges)].split(widths, dim=1))

    def score(self, tableau: Tableau, count: int) -> float:
        """The first judge's score on the first `count` seeds."""
        return self.judges[0].score(self.rows(tableau, count)[0])

    def figures(self, tableau: Tableau, count: int) -> dict[str, Any]:
        """Every judge's figure on the first `count` seeds: `{name: {value, standard_error, samples}}`."""
        out: dict[str, Any] = {}
        for judge, rows in zip(self.judges, self.rows(tableau, count), strict=True):
            value, error = judge.figure(rows)
            used = int((~rows.isnan().any(1)).sum())
            out[judge.name] = {"value": value, "standard_error": error, "samples": used}
        return out

    def gains(self, before: Tableau, after: Tableau, count: int) -> dict[str, Any]:
        """Every judge's score of `before` less that of `after`, on the same seeds, with its standard error.

        Both samplers see the same noise, so the difference is surer than its two terms; its error is the jackknife's,
        over groups of seeds left out of both.
        """
        out: dict[str, Any] = {}
        for judge, one, two in zip(self.judges, self.rows(before, count), self.rows(after, count), strict=True):
            known = ~one.isnan().any(1)
            value, error = gained(judge, one[known], two[known])
            out[judge.name] = {"value": value, "standard_error": error, "samples": int(known.sum())}
        return out

    def _store(self, tableau: Tableau) -> SeedRows:
        key = tableau.digest
        if key not in self._stores:
            judged = [judge.digest for judge in self.judges]
            noise = motion(tableau)

            @functools.cache  # asked at reading and writing; conditions of a text encoder are megabytes
            def name(seeds: range) -> str:
                init = () if self._init is None else (self._init(seeds),)
                return "rows-" + digest(
                    self.denoiser.fingerprint,
                    key,
                    judged,
                    list(seeds),
                    self.condition(seeds),
                    *init,
                    *noise,
                    *precision(self.denoiser),
                )

            self._stores[key] = SeedRows(
                self._cache,
                name,
                lambda seeds: self._run(tableau, seeds),
                self._probe,
                chunk=4 * BATCH,
                batch=self.batch_size,
            )
        return self._stores[key]

    def seen(self, images: Tensor, seeds: list[int]) -> list[Tensor]:
        """What each judge keeps of the samples, which it sees in parts where features do not fit in memory."""
        look = lambda lo, hi: [judge.observe(images[lo:hi], seeds[lo:hi]) for judge in self.judges]  # noqa: E731
        parts = [part for _, _, part in in_batches(look, len(seeds), self.batch_size, seeds)]
        return [torch.cat(rows) for rows in zip(*parts, strict=True)]

    def _run(self, tableau: Tableau, seeds: list[int]) -> Tensor:
        images = sample(
            self.denoiser, tableau, seeds=seeds, init=None if self._init is None else self._init(seeds),
            condition=self.condition(seeds), batch_size=self.batch_size, brownian=True,
        )  # fmt: skip
        parts = self.seen(images, seeds)
        # The widths travel with the rows, so that a row read from a file can be cut up again.
        widths = torch.tensor([[part.shape[1] for part in parts]], dtype=torch.float64, device="cpu").expand(
            len(seeds), -1
        )
        return torch.cat([*parts, widths], dim=1)


def gained(judge: Judge, before: Tensor, after: Tensor) -> Estimate:
    """A judge's score of some rows less that of others of the same seeds, with the jackknife's error."""
    groups = min(GROUPS, len(before))
    # Dealt at random: neighbouring seeds have neighbouring labels, and a group must not be a set of classes.
    shuffled = torch.randperm(len(before), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    group = shuffled % groups
    parts = [judge.score(before[group != k]) - judge.score(after[group != k]) for k in range(groups)]
    spread = torch.tensor(parts, dtype=torch.float64, device="cpu").var(correction=0).item()
    return Estimate(judge.score(before) - judge.score(after), math.sqrt((groups - 1) * spread))
