"""The loop: one for every table. It knows nothing about where the numbers came from."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint as checkpointed

from fewstep.batching import in_batches
from fewstep.brownian import brownian_noise
from fewstep.errors import ArgumentError
from fewstep.program import CONSTANT, NOISE, OUTPUT, STATE, RowProgram, Term, slot_of
from fewstep.randomness import START, unit_noise

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.tableau import Tableau

Noise = Callable[[int], Tensor]
"""`noise(m)`: the unit normals of noise column m, of the state's shape."""


class Point(NamedTuple):
    """One row of a run: the state, and the network's x0 there (None where it is not called; a tuple with channels)."""

    row: int
    time: float
    state: Tensor
    output: Tensor | tuple[Tensor, ...] | None


def trajectory(
    denoiser: Denoiser | Callable[..., Any],
    tableau: Tableau,
    start: Tensor,
    *,
    condition: Any = None,
    noise: Noise | None = None,
    accumulate: torch.dtype | None = None,
    checkpoint: bool = False,
) -> Generator[Point, None, None]:
    """Run a table, row by row; the state of the last point is the sample.

    Ordinary iteration is the per-step callback. States are kept in `accumulate` (float32 for 16-bit starts, else the
    start's own dtype); the network sees them in the start's dtype.

    Args:
        denoiser: `(x, t, condition) -> x0`.
        tableau: the sampler.
        start: the first state `[B, ...]`: noise times sigma, plus alpha times an image for image-to-image.
        condition: passed on to the denoiser.
        noise: gives noise column m; needed by stochastic tables.
        accumulate: dtype of the weighted sums.
        checkpoint: recompute network calls in the backward pass instead of storing their activations.
    """
    if tableau.C.shape[1] and noise is None:
        raise ArgumentError(
            f"this table draws {tableau.C.shape[1]} noise tensors: give `noise`, or call sample() with seeds"
        )
    dtype = start.dtype
    precise = accumulate or (torch.float32 if dtype.itemsize < 4 else dtype)
    constants = tuple(c.to(device=start.device, dtype=precise) for c in tableau.constants)
    rows = tableau.rows
    held: list[Any] = [None] * (2 * rows)
    call = checkpointing(denoiser) if checkpoint else denoiser
    same = precise == dtype
    for row in tableau.program:
        index, time, model_time, evaluated, _, plain, keep_state, keep_output, forget = row
        if plain and same:  # as `_mix`, without its case distinctions: they cost as much as a small sum
            (slot, weight), *others = plain
            state: Tensor = held[slot].mul(weight)
            for slot, weight in others:
                state.add_(held[slot], alpha=weight)
        else:
            state = _mix(row, held, noise, constants, precise, start, tableau)
        for slot in forget:
            held[slot] = None
        output = call(state if same else state.to(dtype), model_time, condition) if evaluated else None
        if keep_state:
            held[index] = state
        if keep_output:
            held[rows + index] = output
        yield Point(index, time, state, output)
        del state, output


def checkpointing(denoiser: Callable[..., Any]) -> Callable[..., Any]:
    """The same network, whose activations are recomputed in the backward pass; one that is spread over devices sees to
    it on each of them.
    """
    own = getattr(denoiser, "checkpointed", None)
    return own or (lambda x, t, condition: checkpointed(denoiser, x, t, condition, use_reentrant=False))


def _mix(
    row: RowProgram,
    held: list[Any],
    noise: Noise | None,
    constants: tuple[Tensor, ...],
    precise: torch.dtype,
    start: Tensor,
    tableau: Tableau,
) -> Tensor:
    """The weighted sum of one row: one `mul`, then in-place adds over its few non-zero terms."""
    if row.row == 0:
        return start if start.dtype == precise else start.to(precise)
    total: Tensor | None = None
    for term in row.terms:
        value = _value(term, held, noise, constants, start, tableau)
        weight = term.weight
        if isinstance(weight, Tensor):
            part = value.to(precise) * weight.to(device=value.device, dtype=precise)
            total = part if total is None else total + part
        elif total is None:
            total = torch.mul(value if value.dtype == precise else value.to(precise), weight)
        else:
            total.add_(value if value.dtype == precise else value.to(precise), alpha=weight)
    if total is None:
        return torch.zeros_like(start, dtype=precise)
    return total if total.shape == start.shape else total.expand_as(start).clone()


def _value(
    term: Term,
    held: list[Any],
    noise: Noise | None,
    constants: tuple[Tensor, ...],
    start: Tensor,
    tableau: Tableau,
) -> Tensor:
    source, column, _ = term
    if source in (STATE, OUTPUT):
        value = held[slot_of(term, tableau)]
        return value[column % tableau.channels] if isinstance(value, tuple) else value
    if source == NOISE:
        assert noise is not None
        return noise(column).to(start.device)
    assert source == CONSTANT
    return constants[column]


def sample(
    denoiser: Denoiser | Callable[..., Any],
    tableau: Tableau,
    *,
    seeds: Sequence[int] | None = None,
    start: Tensor | None = None,
    init: Tensor | None = None,
    condition: Any = None,
    batch_size: int | None = None,
    noise: Noise | None = None,
    brownian: bool = False,
    accumulate: torch.dtype | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Sample `[B, *shape]` with a table.

    One of `seeds` (one per sample; results do not depend on the batch) and `start` (an exact first state) is needed.
    A batch that does not fit in memory is halved until it does.

    Args:
        denoiser: the network, with its noise schedule and sample shape.
        tableau: the sampler; for image-to-image, one whose first time is the wanted noise level.
        seeds: integers, one per sample.
        start: the exact first state, instead of seeds; stochastic tables then need seeds too, or `noise`.
        init: clean images `[B, *shape]` to start from (image-to-image): the first state is
            `alpha(t_0) init + sigma(t_0) noise`.
        condition: a pytree whose tensor leaves have the sample axis first; it is sliced with the batch.
        batch_size: largest batch given to the network; all samples at once by default.
        noise: `noise(m)`, the normals of column m for the whole batch, instead of seeds.
        brownian: let stochastic tables follow one Brownian motion for each seed (`fewstep.brownian`), so that the
            sample of a seed changes little with the number of steps; the distribution is the same.
        accumulate: dtype of the weighted sums, by default float32 for 16-bit samples and the sample's own otherwise.
        checkpoint: recompute network calls in the backward pass.

    Raises:
        ArgumentError: nothing to start from, lengths that differ, or a table made for another noise schedule.
    """
    n = _count(seeds, start, init)
    _check_family(denoiser, tableau)
    if condition is not None:
        _check_condition(condition, n)
    if brownian and (noise is not None or seeds is None):
        raise ArgumentError("brownian=True draws the noise of each seed: give seeds, and no noise of your own")
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size}: give a positive integer, or None for all samples at once")
    run = _Run(denoiser, tableau, seeds, start, init, condition, noise, brownian, accumulate, checkpoint)
    done = [part for _, _, part in in_batches(run, n, batch_size, seeds)]
    return done[0] if len(done) == 1 else torch.cat(done)


class _Run(NamedTuple):
    """The arguments of one `sample` call; calling it runs samples lo..hi."""

    denoiser: Any
    tableau: Tableau
    seeds: Sequence[int] | None
    start: Tensor | None
    init: Tensor | None
    condition: Any
    noise: Noise | None
    brownian: bool
    accumulate: torch.dtype | None
    checkpoint: bool

    def __call__(self, lo: int, hi: int) -> Tensor:
        rows = slice(lo, hi)
        seeds = None if self.seeds is None else list(self.seeds[rows])
        start = self._start(rows, seeds)
        whole, shape = self.noise, tuple(start.shape[1:])
        draw: Noise | None = None
        if whole is not None:
            draw = lambda m: whole(m)[rows]  # noqa: E731
        elif seeds is not None and self.brownian:
            draw = brownian_noise(self.tableau, seeds, shape)
        elif seeds is not None:
            draw = lambda m: unit_noise(seeds, shape, m + 1)  # noqa: E731
        condition = pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, self.condition)
        points = trajectory(
            self.denoiser, self.tableau, start, condition=condition, noise=draw, accumulate=self.accumulate,
            checkpoint=self.checkpoint,
        )  # fmt: skip
        last = self.tableau.rows - 1
        for point in points:
            if point.row == last:
                return point.state.to(start.dtype)
            del point
        raise AssertionError("a table has a last row")

    def _start(self, rows: slice, seeds: list[int] | None) -> Tensor:
        if self.start is not None:
            return self.start[rows]
        assert seeds is not None
        return first_state(self.denoiser, self.tableau, seeds, None if self.init is None else self.init[rows])


def first_state(
    denoiser: Denoiser | Callable[..., Any], tableau: Tableau, seeds: Sequence[int], init: Tensor | None = None
) -> Tensor:
    """The state `[B, *shape]` that each seed starts from; `init` as in `sample`."""
    shape = tuple(cast("Denoiser", denoiser).shape) if init is None else tuple(init.shape[1:])
    dtype = getattr(denoiser, "dtype", torch.float32) if init is None else init.dtype
    device = getattr(denoiser, "device", "cpu") if init is None else init.device
    start = unit_noise(seeds, shape, START) * tableau.sigma[0].item()
    if init is not None:
        start = start + init.to(device="cpu", dtype=torch.float32) * tableau.alpha[0].item()
    return start.to(device=device, dtype=dtype)


def _count(seeds: Sequence[int] | None, start: Tensor | None, init: Tensor | None) -> int:
    if seeds is None and start is None:
        raise ArgumentError("nothing to start from: give seeds=range(8) or a start tensor")
    if start is not None and init is not None:
        raise ArgumentError("start is already the first state: give either start, or init with seeds")
    sizes = {name: len(v) for name, v in (("seeds", seeds), ("start", start), ("init", init)) if v is not None}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ArgumentError(f"these need equal, non-zero lengths, one entry for each sample: {sizes}")
    return next(iter(sizes.values()))


def _check_condition(condition: Any, n: int) -> None:
    for leaf in pytree.tree_leaves(condition):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or len(leaf) != n):
            raise ArgumentError(
                f"a leaf of condition has shape {tuple(leaf.shape)}; its first axis must be the {n} samples"
            )


def _check_family(denoiser: Any, tableau: Tableau) -> None:
    theirs = getattr(denoiser, "noise", None)
    if tableau.noise is not None and theirs is not None and tableau.noise != theirs:
        raise ArgumentError(
            f"the table was made for {tableau.noise!r}, the network uses {theirs!r}: tabulate the solver schedule with "
            "the network's own noise schedule"
        )
