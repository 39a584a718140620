"""The gradient of an objective in the parameters of a space, a batch at a time.

The chain rule is taken in two parts. The table's numbers are cut out of the graph; the samples give the gradient in
each of them (also where a number is zero now and could learn), summed over as many small batches as memory asks for;
then one pass through the space gives the gradient in its parameters. With `checkpoint` the network's activations are
recomputed in the backward pass, so that memory holds those of one call, and the states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fewstep.conditions import rows
from fewstep.errors import DenoiserError
from fewstep.sampling import checkpointing, trajectory
from fewstep.search.gradient.numbers import LEARNED, Numbers
from fewstep.search.gradient.objectives import Batch, Objective, Run
from fewstep.search.gradient.space import Space
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

T = TypeVar("T")


class Slope:
    """Losses and gradients.

    Args:
        denoiser: the network.
        batch_size: samples through the network at a time; halved for good where they do not fit in memory.
        checkpoint: recompute activations in the backward pass: twice the forward calls, a fraction of the memory.
        autocast: run the network in this precision (bfloat16), the sums in that of the states.

    Attributes:
        backward: samples x network calls that were differentiated so far (rows of a doubled batch counted).
    """

    def __init__(
        self, denoiser: Denoiser, *, batch_size: int, checkpoint: bool = True, autocast: torch.dtype | None = None
    ) -> None:
        self.denoiser, self.batch_size, self.checkpoint, self.autocast = denoiser, batch_size, checkpoint, autocast
        self.backward = 0

    def value(self, space: Space, objective: Objective, batch: Batch) -> float:
        """The loss of a batch, without a gradient.

        Errors: `DenoiserError` where not even one sample fits in memory.
        """
        return self._fitting(lambda: self._value(space, objective, batch), len(batch.start))

    def __call__(self, space: Space, objective: Objective, batch: Batch) -> tuple[float, Tensor]:
        """Add the gradient to the parameters' `grad`; returns the loss and its gradient in the first states.

        Errors: as `value`.
        """
        return self._fitting(lambda: self._slope(space, objective, batch), len(batch.start))

    def _fitting(self, work: Callable[[], T], samples: int) -> T:
        """What `work` gives, with batches that fit: nothing of it is kept before it is whole."""
        while True:
            try:
                return work()
            except (torch.OutOfMemoryError, MemoryError) as error:
                size = min(self.batch_size, samples)
                if size == 1:
                    raise DenoiserError(
                        "out of memory with a single sample in a backward pass (or, with a loss of sets, with the "
                        "features of a whole batch): recompute activations (checkpoint=True), run the network in half "
                        "precision (autocast=torch.bfloat16), or take another loss"
                    ) from error
                self.batch_size = (size + 1) // 2

    def _value(self, space: Space, objective: Objective, batch: Batch) -> float:
        with torch.no_grad():
            numbers = space()
            table = _table(numbers, space)
            whole, total = len(batch.start), 0.0
            if objective.whole:
                run = self._gathered(table, numbers, objective, batch)
                return objective(run, batch).item()
            for lo in range(0, whole, self.batch_size):
                part = piece(batch, lo, lo + self.batch_size)
                loss = objective(self._run(table, numbers, objective, part), part)
                total += loss.item() * len(part.start) / whole
            return total

    def _slope(self, space: Space, objective: Objective, batch: Batch) -> tuple[float, Tensor]:
        with torch.enable_grad():
            numbers = space()
            leaves = numbers.mapped(lambda part: part.detach().clone().requires_grad_())
            found, loss, slopes = [torch.zeros_like(part) for part in leaves[:6]], 0.0, list[Tensor]()
            table, given = _table(leaves, space), self._given(leaves, space, objective, batch)
            for lo in range(0, len(batch.start), self.batch_size):
                part = piece(batch, lo, lo + self.batch_size)
                part = part._replace(start=part.start.detach().clone().requires_grad_())
                run = self._run(table, leaves, objective, part)
                if given is None:
                    value = objective(run, part) * (len(part.start) / len(batch.start))
                    loss += value.item()
                else:
                    value = (run.sample * given[1][lo : lo + self.batch_size]).sum()
                grads = torch.autograd.grad(value, [*leaves[:6], part.start], allow_unused=True)
                for total, grad in zip(found, grads[:6], strict=True):
                    total += 0 if grad is None else grad
                slopes.append(torch.zeros_like(part.start) if grads[6] is None else grads[6])
            live = [(part, grad) for part, grad in zip(numbers[:6], found, strict=True) if part.requires_grad]
            torch.autograd.backward([part for part, _ in live], [grad for _, grad in live])
        self.backward += len(batch.start) * len(numbers.calls) * self.denoiser.batch_cost
        return (loss if given is None else given[0]), torch.cat(slopes)

    def _given(self, leaves: Numbers, space: Space, objective: Objective, batch: Batch) -> tuple[float, Tensor] | None:
        """A loss of the whole batch that has to be cut: its value, and its gradient in the samples."""
        if not objective.whole or len(batch.start) <= self.batch_size:
            return None
        with torch.no_grad():
            fixed = leaves.mapped(torch.Tensor.detach)
            run = self._gathered(_table(fixed, space), fixed, objective, batch)
        sample = run.sample.detach().requires_grad_()
        loss = objective(run._replace(sample=sample), batch)
        return loss.item(), torch.autograd.grad(loss, sample)[0]

    def _gathered(self, table: Tableau, numbers: Numbers, objective: Objective, batch: Batch) -> Run:
        """The samples of a batch that is run in parts."""
        parts = [
            self._run(table, numbers, objective, piece(batch, lo, lo + self.batch_size)).sample
            for lo in range(0, len(batch.start), self.batch_size)
        ]
        return Run(torch.cat(parts), {}, numbers.alpha, numbers.sigma)

    def _run(self, table: Tableau, numbers: Numbers, objective: Objective, batch: Batch) -> Run:
        states: dict[int, Tensor] = {}
        sample = batch.start
        for point in trajectory(self._network(), table, batch.start, condition=batch.condition):
            sample = point.state
            if objective.along and 0 < point.row < table.rows - 1:
                states[point.row] = point.state
        return Run(sample, states, numbers.alpha, numbers.sigma)

    def _network(self) -> Callable[..., Any]:
        network = checkpointing(self.denoiser) if self.checkpoint else self.denoiser
        if self.autocast is None:
            return network

        def call(x: Tensor, t: Any, condition: Any) -> Any:
            with torch.autocast(x.device.type, self.autocast):
                return network(x, t, condition)

        return call


def _table(n: Numbers, space: Space) -> Tableau:
    """The numbers as a table; weights that are leaves keep learning."""
    return Tableau(
        A=n.A, B=n.B, times=n.times.detach(), model_times=n.told, alpha=n.alpha.detach(), sigma=n.sigma.detach(),
        evaluated=n.evaluated, noise=space.noise, expected=(LEARNED,),
    )  # fmt: skip


def piece(batch: Batch, lo: int, hi: int) -> Batch:
    """Some samples of a batch."""
    part = slice(lo, hi)
    path = None if batch.path is None else batch.path._replace(states=batch.path.states[:, part])
    return Batch(batch.start[part], batch.target[part], path, rows(batch.condition, part))
