"""The surrogate: an ensemble of sequence models that learns to rank schedules (Liu et al., OMS-DPM, ICML 2023; S³).

The authors' predictor was never released; this is its documented ancestor with steps for models: a token a step, an
LSTM, the mean over the steps, a head, and a hinge loss over pairs. One model serves all numbers of calls, but only
schedules with equally many calls are compared. Each member leaves out one fold of the trials, so that every trial has
a prediction that never saw it: their rank correlation is what is reported and trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.search.s3.features import Features
from fewstep.search.s3.genes import Floats, Ints

FEWEST = 12
"""Trials with fewer scores than this teach nothing."""


@dataclass(frozen=True)
class Training:
    """How the members are made and trained.

    Attributes:
        members: as many as folds.
        hidden: width of the LSTM; `head` of the layers after it.
        epochs: passes over the trials, `pairs` random pairs for each trial and pass.
        margin: of the hinge, `least` the least difference of scores in a pair, in their spread.
        rate, decay: of Adam.
        errors: whether the errors on Gaussian data are shown to the head.
    """

    members: int = 4
    hidden: int = 48
    head: int = 64
    epochs: int = 150
    pairs: int = 2
    margin: float = 1.0
    least: float = 0.02
    rate: float = 4e-3
    decay: float = 1e-3
    errors: bool = True


class SequenceModel(nn.Module):
    """Tokens `[B, L, d]`, their number `[B]` and errors `[B, e]` to scores `[B]`; lower is better."""

    def __init__(self, token: int, errors: int, training: Training) -> None:
        super().__init__()
        t = training
        self.embed = nn.Sequential(nn.Linear(token, t.hidden), nn.SiLU())
        self.lstm = nn.LSTM(t.hidden, t.hidden, batch_first=True)
        self.errors = errors if t.errors else 0
        self.head = nn.Sequential(
            nn.Linear(t.hidden + self.errors, t.head), nn.SiLU(), nn.Linear(t.head, t.head), nn.SiLU(),
            nn.Linear(t.head, 1),
        )  # fmt: skip

    def forward(self, tokens: Tensor, steps: Tensor, errors: Tensor) -> Tensor:
        """The scores."""
        states = self.lstm(self.embed(tokens))[0]
        live = torch.arange(tokens.shape[1], device=tokens.device) < steps[:, None]
        mean = (nn.functional.normalize(states, dim=2) * live[:, :, None]).sum(1) / steps[:, None]
        seen = [mean * 4, errors] if self.errors else [mean * 4]
        return self.head(torch.cat(seen, 1))[:, 0]


class Ensemble:
    """Members trained on all folds but their own.

    Args:
        known: features of the scored trials.
        scores: their scores; infinite ones count as the worst.
        training: see there.
        seed: of weights, folds and pairs.

    Attributes:
        unseen: `[P]` each trial's prediction by the member that never saw it.
        tau: Kendall's rank correlation of these with the scores, averaged over the numbers of calls.
    """

    def __init__(self, known: Features, scores: Floats, training: Training | None = None, seed: int = 0) -> None:
        t = training or Training()
        values = normalised(scores, known.nfe)
        self._mean, self._scale = known.errors.mean(0), known.errors.std(0) + 1e-3
        inputs = self._inputs(known)
        fold = np.random.default_rng(seed).permutation(len(scores)) % t.members
        self.unseen: Floats = np.zeros(len(scores))
        self.members: list[SequenceModel] = []
        # The generator of the caller's own random numbers is left as it was.
        with torch.random.fork_rng(devices=[]):
            for k in range(t.members):
                torch.manual_seed(seed * 101 + k)
                model = SequenceModel(known.tokens.shape[2], known.errors.shape[1], t)
                _fit(model, [x[fold != k] for x in inputs], values[fold != k], known.nfe[fold != k], t)
                self.members.append(model)
                with torch.no_grad():
                    self.unseen[fold == k] = model(*(x[fold == k] for x in inputs)).double().numpy()
        self.tau = rank_correlation(self.unseen, values, known.nfe)

    def predict(self, f: Features) -> tuple[Floats, Floats]:
        """Mean and spread of the members' scores `[P]`."""
        inputs = self._inputs(f)
        with torch.no_grad():
            out = torch.stack([m(*inputs) for m in self.members]).double()
        return out.mean(0).numpy(), out.std(0).numpy()

    def _inputs(self, f: Features) -> list[Tensor]:
        errors = ((f.errors - self._mean) / self._scale).clip(-5, 5)
        return [torch.from_numpy(x).float() for x in (f.tokens, f.steps, errors)]


def normalised(scores: Floats, nfe: Ints) -> Floats:
    """Normal quantiles of the ranks among trials with as many calls: 0 is the median, the best of many lies far below.

    Ranks, for how scores are spread says little: where samples are judged on few images the best differ by their noise
    and the worst by factors of a thousand, and in units of such a spread the best are hardly better than the unknown,
    so that a search only explores. Infinite scores share the worst place.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    out = np.empty(len(scores))
    for n in np.unique(nfe):
        rows = np.flatnonzero(nfe == n)
        place = rankdata(np.where(np.isfinite(scores[rows]), scores[rows], np.inf))
        out[rows] = ndtri((place - 0.5) / len(rows))
    return out


def rank_correlation(predicted: Floats, values: Floats, nfe: Ints) -> float:
    """Kendall's tau-b within each number of calls, averaged over trials; 0 where nothing can be ranked."""
    total, weight = 0.0, 0
    for n in np.unique(nfe):
        rows = nfe == n
        if rows.sum() >= 3:
            total += int(rows.sum()) * kendall(predicted[rows], values[rows])
            weight += int(rows.sum())
    return total / weight if weight else 0.0


def kendall(one: Floats, two: Floats) -> float:
    """Kendall's tau-b of two lists by all pairs; 0 if one of them is constant."""
    a, b = (np.sign(x[:, None] - x) for x in (one, two))
    size = float((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / np.sqrt(size)) if size else 0.0


def _fit(model: SequenceModel, inputs: list[Tensor], values: Floats, nfe: Ints, t: Training) -> None:
    """Adam on the hinge loss of random pairs with equally many calls."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=t.rate, weight_decay=t.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, t.epochs)
    target = torch.from_numpy(values).float()
    groups = [torch.from_numpy(np.flatnonzero(nfe == n)) for n in np.unique(nfe)]
    for _ in range(t.epochs):
        one, two = _pairs(groups, t.pairs)
        gap = target[one] - target[two]
        kept = gap.abs() > t.least
        one, two, gap = one[kept], two[kept], gap[kept]
        if not len(one):
            return
        out = model(*inputs)
        # The margin grows with the difference, up to its full size: near ties need not be told far apart.
        wanted = t.margin * gap.abs().clamp(max=2.0)
        loss = torch.relu(wanted - gap.sign() * (out[one] - out[two])).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _pairs(groups: list[Tensor], pairs: int) -> tuple[Tensor, Tensor]:
    drawn = [g[torch.randint(len(g), (2, pairs * len(g)))] for g in groups]
    both = torch.cat(drawn, 1)
    return both[0], both[1]
