"""The descent: updates, judgements on selection seeds, the best point so far, and a state from which it goes on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, DenoiserError
from fewstep.progress import Event, Report, silent
from fewstep.search.cache import Cache
from fewstep.search.gradient.objectives import Along, Objective
from fewstep.search.gradient.pairs import Pairs
from fewstep.search.gradient.recipes import OPTIMISERS, Phase, Recipe
from fewstep.search.gradient.slope import Slope
from fewstep.search.gradient.soft import Soft
from fewstep.search.gradient.space import Space
from fewstep.search.gradient.state import Progress, finite, optimiser_state
from fewstep.tableau import Tableau

CHECKS = 12
"""Judgements in a descent."""
HASTE = 10.0
"""With fewer updates than the paper's its rates are raised by the root of the ratio, at most by this."""
HALVED = 0.5
GIVEN_UP = 6
"""Failures in a row after which the descent ends with what it has."""
TIMED = 3
"""Updates by which the time of the others is estimated."""


@dataclass
class Fit:
    """One descent.

    Attributes:
        space, objective, pairs, recipe, slope: what is lowered, on what, how.
        judge: the score of a table on selection seeds; lower is better.
        iterations: updates, at most.
        seconds: time that they may take; the number of updates is then settled after the first few.
        cache, name: where the state is kept; nothing is without a folder.
        progress: told after every judgement.
        seed: of the order of the pairs.
        late: asked after every update whether there is no time for more; the descent then ends with a judgement.
    """

    space: Space
    objective: Objective
    pairs: Pairs
    recipe: Recipe
    slope: Slope
    judge: Callable[[Tableau], float]
    iterations: int
    seconds: float | None = None
    cache: Cache = field(default_factory=lambda: Cache(None))
    name: str = "gradient"
    progress: Report = silent
    seed: int = 0
    late: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        calls = len(self.space().calls)
        self.now = Progress(total=self.iterations)
        groups = self.space.groups
        if not set(groups) & set(self.recipe.rules):
            raise ArgumentError(f"recipe {self.recipe.name} has no rule for any of {', '.join(groups)}: give one")
        self.rates = {
            name: rule.rate / (calls if rule.per_call else 1)
            for name, rule in self.recipe.rules.items()
            if name in groups
        }
        self.optimisers = {n: OPTIMISERS[self.recipe.rules[n].optimiser](groups[n], r) for n, r in self.rates.items()}
        self.average = {n: p.detach().clone() for n, p in self.space.named_parameters()}
        self.kept = {n: p.detach().clone() for n, p in self.space.named_parameters()}
        self._remember()
        self.phases = self.recipe.phases(self.space)
        self.soft = Soft(self.pairs, calls) if self.recipe.soft else None

    def run(self) -> Tableau:
        """The best table that was judged; the start's own where nothing was better."""
        self._resume()
        now = self.now
        if not math.isfinite(now.best):
            now.best = self.judge(self.space.tableau())
            now.history.append((0, math.nan, now.best))
        while now.iteration < now.total and now.failed < GIVEN_UP:
            began = time.monotonic()
            loss = self._update()
            now.iteration += 1
            now.seconds += time.monotonic() - began
            self._settle()
            if self._due():
                began = time.monotonic()
                self._judged(loss)
                now.seconds += time.monotonic() - began
                self._save()
        self._take(self.kept)
        return self.space.tableau()

    def _due(self) -> bool:
        every = max(1, -(-self.now.total // CHECKS))
        return self.now.iteration % every == 0 or self.now.iteration == self.now.total

    def _settle(self) -> None:
        """The number of updates that the time is enough for, once it is known; and the end when it is over."""
        now = self.now
        if self.late():
            now.total = now.iteration
        elif self.seconds is None:
            return
        elif now.iteration == TIMED:
            now.total = max(TIMED, min(now.total, int(TIMED * self.seconds / max(now.seconds, 1e-9))))
        elif now.seconds > self.seconds:
            now.total = now.iteration

    # ---------------------------------------------------------------------------------------------------- one update
    def _update(self) -> float:
        now, batch = self.now, self._index()
        phase = self._phase()
        objective = phase.objective or self.objective
        if isinstance(objective, Along):
            objective = objective.on(self.space.rows)
        pairs = self.pairs.batch(batch, path=objective.along)
        for p in self.space.parameters():
            p.grad = None
        try:
            loss, first = self.slope(self.space, objective, pairs)
            good = math.isfinite(loss) and all(
                bool(torch.isfinite(p.grad).all()) for p in self.space.parameters() if p.grad is not None
            )
        except (DenoiserError, ArgumentError) as error:
            if now.iteration == 0 or (isinstance(error, DenoiserError) and error.sane):
                raise
            loss, first, good = math.nan, None, False
        if not good or first is None:
            self._undo()
            return math.nan
        now.failed = 0
        self._remember()
        if self.soft is not None:
            again = lambda: self.slope.value(self.space, objective, self.pairs.batch(batch, path=objective.along))  # noqa: E731
            self.soft(batch, first, loss, again)
        self._step(phase)
        return loss

    def _step(self, phase: Phase) -> None:
        now, groups = self.now, self.space.groups
        learning = [p for n in phase.groups if n in self.optimisers for p in groups[n]]
        held = [p.detach().clone() for p in learning]
        still = [torch.zeros_like(p, dtype=torch.bool) for p in learning]
        if phase.only is not None:
            still[0][:] = True
            still[0][phase.only] = False
        for p, mask in zip(learning, still, strict=True):
            if p.grad is not None:
                p.grad[mask] = 0
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(learning, self.recipe.clip)
        for name in phase.groups:
            if name in self.optimisers:
                rule = self.recipe.rules[name]
                self.optimisers[name].param_groups[0]["lr"] = max(rule.least, self.rates[name] * self._factor())
                self.optimisers[name].step()
        with torch.no_grad():  # momentum and weight decay must not move what stands still
            for p, before, mask in zip(learning, held, still, strict=True):
                p.copy_(torch.where(mask, before, p))
        keep = min(self.recipe.ema, (1 + now.iteration) / (10 + now.iteration))
        for name, p in self.space.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - keep)

    def _factor(self) -> float:
        """On all rates, at this update."""
        now, recipe = self.now, self.recipe
        haste = min(HASTE, math.sqrt(recipe.iterations / max(1, now.total))) if recipe.floor == 1 else 1.0
        return recipe.rate(now.iteration, now.total) * now.slower * max(1.0, haste)

    def _undo(self) -> None:
        """A loss or a gradient that is not finite: back to the last point that had one, and slower."""
        now = self.now
        self._take(self.before)
        self.average = {n: p.clone() for n, p in self.averaged.items()}
        for name, state in self.states.items():
            self.optimisers[name].load_state_dict(copy.deepcopy(state))
        now.failed += 1
        now.slower *= HALVED
        text = f"Update {now.iteration + 1} was not finite: it was undone and the rates halved."
        now.notes.append(text if now.failed < GIVEN_UP else f"{text} That was the last of {GIVEN_UP}: descent ended.")

    def _index(self) -> list[int]:
        """The pairs of this update: a pass over all of them in an order of its own, then another."""
        n, size = len(self.pairs), min(self.recipe.batch, len(self.pairs))
        per = n // size
        epoch, k = divmod(self.now.iteration, per)
        generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator, device="cpu").tolist()
        return order[k * size : (k + 1) * size]

    def _phase(self) -> Phase:
        part, upto = self.now.iteration / self.now.total, 0.0
        for phase in self.phases:
            upto += phase.share
            if part < upto - 1e-12:
                return phase
        return self.phases[-1]

    # ---------------------------------------------------------------------------------------------------- judgement
    def _judged(self, loss: float) -> None:
        now = self.now
        here = {n: p.detach().clone() for n, p in self.space.named_parameters()}
        point = {n: v.clone() for n, v in self.average.items()} if self.recipe.ema else here
        try:
            self._take(point)
            score = self.judge(self.space.tableau())
        except ArgumentError:  # the average of two tables need not be one
            score = math.inf
        self._take(here)
        now.history.append((now.iteration, loss, score))
        if score < now.best:
            now.best, now.at, now.waiting, self.kept = score, now.iteration, 0, point
        else:
            now.waiting += 1
            if now.waiting >= self.recipe.patience:
                now.waiting, now.slower = 0, now.slower * self.recipe.decay
                self._take(self.kept)
                self._remember()
        self.progress(Event(self.recipe.name, now.iteration, now.total, f"{now.best:.4g}"))

    def _remember(self) -> None:
        """This point, to come back to when a step from it fails."""
        self.before = {n: p.detach().clone() for n, p in self.space.named_parameters()}
        self.averaged = {n: p.clone() for n, p in self.average.items()}
        self.states = {n: copy.deepcopy(o.state_dict()) for n, o in self.optimisers.items()}

    def _take(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.space.named_parameters():
                p.copy_(values[name])

    # -------------------------------------------------------------------------------------------------------- state
    def _save(self) -> None:
        if self.cache.folder is None:
            return
        tensors: dict[str, Tensor] = {"moved": self.pairs.moved}
        for part, values in (("here", dict(self.space.named_parameters())), ("average", self.average),
                             ("kept", self.kept), ("before", self.before), ("averaged", self.averaged)):  # fmt: skip
            tensors |= {f"{part}.{name}": value for name, value in values.items()}
        for group, optimiser in self.optimisers.items():
            for part, whole in (("optimiser", optimiser.state_dict()), ("undo", self.states[group])):
                for k, state in whole["state"].items():
                    tensors |= {f"{part}.{group}.{k}.{n}": torch.as_tensor(v) for n, v in state.items()}
        record: dict[str, Any] = {k: v for k, v in vars(self.now).items()}
        record["history"] = [[finite(v) for v in row] for row in self.now.history]
        record["best"] = finite(self.now.best)
        self.cache.write(self.name, tensors, record)

    def _resume(self) -> None:
        stored = self.cache.read(self.name)
        if stored is None:
            return
        tensors, record = stored
        parts = {part: {n: tensors[f"{part}.{n}"] for n, _ in self.space.named_parameters()} for part in
                 ("here", "average", "kept", "before", "averaged")}  # fmt: skip
        self._take(parts["here"])
        self.average, self.kept = parts["average"], parts["kept"]
        self.before, self.averaged = parts["before"], parts["averaged"]
        self.pairs.moved = tensors["moved"]
        for group, optimiser in self.optimisers.items():
            optimiser.load_state_dict(optimiser_state(tensors, "undo", group, optimiser))
            self.states[group] = copy.deepcopy(optimiser.state_dict())
            optimiser.load_state_dict(optimiser_state(tensors, "optimiser", group, optimiser))
        record["best"] = math.inf if record["best"] is None else record["best"]
        record["history"] = [(int(i), *(math.nan if v is None else v for v in row)) for i, *row in record["history"]]
        self.now = Progress(**record)
