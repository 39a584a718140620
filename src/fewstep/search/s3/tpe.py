"""Optuna's tree-structured Parzen estimator on flat schedules: an outside baseline (Bergstra et al. 2011).

It needs the package optuna (`pip install fewstep[tpe]`), which nothing else here uses.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.proposals import Proposal, Trial
from fewstep.search.s3.evolution import Evolution
from fewstep.search.s3.genes import AFS, BASES, Floats, Genes, empty

WORST = 1e3


class TPE(Evolution):
    """Optuna's sampler, told all trials of a number of calls, asked for the next schedule with as many.

    A schedule is a flat list: for each step its share of the way in log(alpha / sigma), basis, order, estimate,
    relaxation and corrector; the analytical first step; the last time. Shares are gaps in proportion, so that every
    sample is a valid grid.
    """

    name = "tpe"

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        """The rest of the initial population, then the estimator's schedules."""
        first = self.waiting(trials)[:count]
        archive = self.reader.read(trials)
        rng = np.random.default_rng([self.seed, seed])
        stage = max([1, *(t.proposal.stage for t in trials)])
        out = list(first)
        for n in rng.choice(self.space.nfes, count - len(first)).tolist():
            rows = np.flatnonzero(archive.nfe == n)
            known = [(archive.genes.take([r]), float(archive.scores[r])) for r in rows]
            found = self._asked(known, int(n), int(rng.integers(2**31)))
            if found is not None and found.names()[0] not in archive.known:
                archive.known.add(found.names()[0])
                out.append(Proposal(self.space.decode(found), "Parzen estimator", stage))
        return out + self.bred(archive, count - len(out), rng, stage)

    def _asked(self, known: list[tuple[Genes, float]], nfe: int, seed: int) -> Genes | None:
        """One schedule; None if twenty samples were invalid."""
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=10)
        study = optuna.create_study(sampler=sampler)
        space = self._distributions(nfe)
        for genes, score in known:
            value = math.log(score) if 0 < score < math.inf else (score if score <= 0 else WORST)
            study.add_trial(optuna.create_trial(params=self._flat(genes, nfe), distributions=space, value=value))
        for _ in range(20):
            asked = study.ask(fixed_distributions=space)
            genes = self._genes(asked.params, nfe)
            if bool(self.space.valid(genes)[0]) and int(genes.nfe[0]) == nfe:
                return genes
        return None

    def _distributions(self, nfe: int) -> dict[str, Any]:
        d = _optuna().distributions
        categories = d.CategoricalDistribution
        names = [a or "none" for a in self.space.afs]
        out: dict[str, Any] = {"afs": categories(names), "end": d.FloatDistribution(0.0, 1.0)}
        for i in range(nfe + 1):
            out |= {
                f"gap{i}": d.FloatDistribution(-4.0, 4.0), f"order{i}": d.IntDistribution(1, self.space.orders),
                f"basis{i}": categories(list(self.space.bases)), f"low{i}": categories(["full", "1", "2"]),
                f"r{i}": d.FloatDistribution(-0.5, 0.5), f"corrector{i}": categories(["none", "pseudo"]),
            }  # fmt: skip
        return out

    def _flat(self, g: Genes, nfe: int) -> dict[str, Any]:
        """The parameters of a schedule; those of a step that it does not have are their middles."""
        low, high = self.space.last_times
        n = int(g.steps[0])
        lam = self._finite(g.times[0, : n + 1])
        gaps = np.log(np.diff(lam) / (lam[-1] - lam[0]) * n).clip(-4, 4)
        end = float(np.clip((g.times[0, n] - low) / max(high - low, 1e-300), 0, 1))
        out: dict[str, Any] = {"afs": AFS[g.afs[0]] or "none", "end": end}
        for i in range(nfe + 1):
            live = i < n
            out |= {
                f"gap{i}": float(gaps[i]) if live else 0.0, f"order{i}": int(g.order[0, i]) if live else 1,
                f"basis{i}": BASES[g.basis[0, i]], f"low{i}": ("full", "1", "2")[g.low[0, i]],
                f"r{i}": float(np.clip(g.r[0, i], -0.5, 0.5)),
                f"corrector{i}": "pseudo" if g.corrector[0, i] else "none",
            }  # fmt: skip
        return out

    def _genes(self, values: dict[str, Any], nfe: int) -> Genes:
        g = empty(1, self.space.room)
        g.afs[0] = AFS.index(None if values["afs"] == "none" else values["afs"])
        n = nfe + int(g.afs[0] > 0)
        g.steps[0] = n
        low, high = self.space.last_times
        last = low + values["end"] * (high - low)
        ends = self._finite(np.array([self.space.noise.t_max, last]))
        shares = np.exp([values[f"gap{i}"] for i in range(n)])
        lam = ends[0] + np.cumsum(shares) / shares.sum() * (ends[1] - ends[0])
        g.times[0, 0], g.times[0, n] = self.space.noise.t_max, last
        g.times[0, 1:n] = [self.space.noise.scalar_time_of_lam(float(v)) for v in lam[:-1]]
        g.start[0, :n] = 1
        for i in range(n):
            g.order[0, i], g.basis[0, i] = values[f"order{i}"], BASES.index(values[f"basis{i}"])
            g.low[0, i] = ("full", "1", "2").index(values[f"low{i}"])
            g.r[0, i], g.corrector[0, i] = values[f"r{i}"], values[f"corrector{i}"] == "pseudo"
        return self.space.canonical(g)

    def _finite(self, times: Floats) -> Floats:
        return np.clip(self.space.lam(times), -12.0, 12.0)


def _optuna() -> Any:
    try:
        optuna: Any = importlib.import_module("optuna")  # optional: type checkers need not have it
    except ImportError as error:
        raise ArgumentError("the proposer 'tpe' needs the package optuna: pip install fewstep[tpe]") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
