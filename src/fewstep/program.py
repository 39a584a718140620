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

    `plain` repeats the terms of a row that needs no case distinctions: plain numbers, a state first, then states and
    single outputs. It is empty for other rows.
    """

    row: int
    time: float
    model_time: Weight
    evaluated: bool
    terms: tuple[Term, ...]
    plain: tuple[tuple[int, int, float], ...]
    keep_state: bool
    keep_output: bool
    forget: tuple[tuple[int, int], ...]


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
    last: dict[tuple[int, int], int] = {}
    for i, row in enumerate(terms):
        for term in row:
            last[term.source, _owner(term, t.channels)] = i
    times = t.times.detach().tolist()
    told: list[Weight] = list(t.model_times) if t.model_times.requires_grad else t.model_times.tolist()
    rows: list[RowProgram] = []
    for i, row in enumerate(terms):
        forget = tuple(key for key, reader in last.items() if reader == i and key[0] in (STATE, OUTPUT))
        rows.append(
            RowProgram(
                row=i,
                time=times[i],
                model_time=told[i],
                evaluated=t.evaluated[i],
                terms=tuple(row),
                plain=_plain(row, t.channels),
                keep_state=(STATE, i) in last,
                keep_output=(OUTPUT, i) in last,
                forget=forget,
            )
        )
    return tuple(rows)


def _plain(terms: list[Term], channels: int) -> tuple[tuple[int, int, float], ...]:
    plain = [
        (source, column, weight)
        for source, column, weight in terms
        if source in (STATE, OUTPUT) and not isinstance(weight, Tensor)
    ]
    usual = channels == 1 and len(plain) == len(terms) > 0 and plain[0][0] == STATE
    return tuple(plain) if usual else ()


def _owner(term: Term, channels: int) -> int:
    return term.column // channels if term.source == OUTPUT else term.column


def _entries(matrix: Tensor, t: Tableau, source: int) -> list[tuple[int, int, Weight]]:
    """Non-zero entries; of a learned matrix (a leaf that needs gradients) all legal ones, so that zeros learn."""
    learned = matrix.requires_grad and matrix.is_leaf
    if learned and source in (STATE, OUTPUT):
        per = t.channels if source == OUTPUT else 1
        places = [[i, j] for i in range(t.rows) for j in range(i * per) if source == STATE or t.evaluated[j // per]]
    else:
        places = occupied(matrix).nonzero().tolist()
    if matrix.requires_grad or matrix.ndim > 2:
        return [(i, j, matrix[i, j]) for i, j in places]
    values = matrix.tolist()
    return [(i, j, values[i][j]) for i, j in places]
