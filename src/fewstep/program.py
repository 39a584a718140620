"""A table as the sampling loop wants it: per row, the few non-zero terms, and what may be forgotten afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

STATE, OUTPUT, NOISE, CONSTANT = range(4)

Weight = float | Tensor


class Term(NamedTuple):
    """`weight * source[index]`; the weight is a float, or a tensor when it is learned or per element."""

    source: int
    column: int
    weight: Weight


class RowProgram(NamedTuple):
    """One row: mix the terms, call the network if `evaluated`, then forget what no later row reads.

    States and outputs are kept in numbered slots: row i's state in slot i, its output in slot rows + i. `plain` has
    the (slot, weight) pairs of a row that needs no case distinctions: plain numbers, states and single outputs. It is
    empty for other rows.
    """

    row: int
    time: float
    model_time: Weight
    evaluated: bool
    terms: tuple[Term, ...]
    plain: tuple[tuple[int, float], ...]
    keep_state: bool
    keep_output: bool
    forget: tuple[int, ...]


def occupied(matrix: Tensor) -> Tensor:
    """`[rows, columns]`: where a matrix has a weight, whatever its trailing dimensions."""
    filled = matrix.detach().ne(0)
    return filled if filled.ndim == 2 else filled.flatten(2).any(2)


def compile_rows(t: Tableau) -> tuple[RowProgram, ...]:
    """The row programs of a table. Weights become Python floats unless they need gradients or are per element."""
    terms: list[list[Term]] = [[] for _ in range(t.rows)]
    for source, matrix in ((STATE, t.A), (OUTPUT, t.B), (NOISE, t.C), (CONSTANT, t.K)):
        for i, column, weight in _entries(matrix, t, source):
            terms[i].append(Term(source, column, weight))
    last: dict[int, int] = {}
    for i, row in enumerate(terms):
        last.update((slot_of(term, t), i) for term in row if term.source in (STATE, OUTPUT))
    times = t.times.detach().tolist()
    told: list[Weight] = list(t.model_times) if t.model_times.requires_grad else t.model_times.tolist()
    rows: list[RowProgram] = []
    for i, row in enumerate(terms):
        forget = tuple(place for place, reader in last.items() if reader == i)
        rows.append(
            RowProgram(
                row=i,
                time=times[i],
                model_time=told[i],
                evaluated=t.evaluated[i],
                terms=tuple(row),
                plain=_plain(row, t),
                keep_state=i in last,
                keep_output=t.rows + i in last,
                forget=forget,
            )
        )
    return tuple(rows)


def slot_of(term: Term, t: Tableau) -> int:
    """Where the run keeps what a state or output term reads."""
    return term.column if term.source == STATE else t.rows + term.column // t.channels


def _plain(terms: list[Term], t: Tableau) -> tuple[tuple[int, float], ...]:
    plain = [
        (slot_of(term, t), term.weight)
        for term in terms
        if term.source in (STATE, OUTPUT) and not isinstance(term.weight, Tensor)
    ]
    return tuple(plain) if t.channels == 1 and len(plain) == len(terms) else ()


def _entries(matrix: Tensor, t: Tableau, source: int) -> list[tuple[int, int, Weight]]:
    """Non-zero entries; of a learned matrix (a leaf that needs gradients) all legal ones, so that zeros learn."""
    learned = matrix.requires_grad and matrix.is_leaf
    if learned and source in (STATE, OUTPUT):
        per = t.channels if source == OUTPUT else 1
        places = [[i, j] for i in range(t.rows) for j in range(i * per) if source == STATE or t.evaluated[j // per]]
    elif matrix.ndim == 2 and not matrix.requires_grad:
        return [(i, j, w) for i, row in enumerate(matrix.tolist()) for j, w in enumerate(row) if w != 0]
    else:
        places = occupied(matrix).nonzero().tolist()
    if matrix.requires_grad:
        return [(i, j, matrix[i, j]) for i, j in places]
    return [(i, j, _plain_if_even(matrix[i, j])) for i, j in places]


def _plain_if_even(weight: Tensor) -> Weight:
    """A per-element weight that is the same everywhere, as a number: rows of mixed schedules often have them."""
    first = weight.flatten()[0]
    return first.item() if bool((weight == first).all()) else weight
