"""NeuralSolver (MCG-NJU/NeuralSolver): the tables printed in its code, and checkpoints of its training.

Flow: `v <- sum_{j<i} c_ij v_j + (1 - sum_j c_ij) v_i`, `x' = x + dt_i v`. DDPM: the same of x0, with steps in alpha /
sigma: `x' = (sigma' / sigma) x + sigma' (alpha' / sigma' - alpha / sigma) x0`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

from fewstep.builder import Form
from fewstep.errors import ArgumentError
from fewstep.noise import Discrete, Flow, NoiseSchedule, VPLinear
from fewstep.peers.held import Contents
from fewstep.peers.sheet import Sheet, mix, read_at
from fewstep.tableau import Tableau

NAME = "NeuralSolver"
FIRST, LAST = 0.999, 1e-3
"""The first time of DDPM's samplers, and where its noise schedule is clipped."""
INDICES = 1000
RAW = ("timedeltas", "solver_coeffs")
Family = Literal["flow", "ddpm"]


class Table(NamedTuple):
    """Steps and coefficients, `c[i][j]` for `j < i`."""

    name: str
    steps: list[float]
    c: list[list[float]]


def read(
    contents: Contents,
    noise: NoiseSchedule | None,
    *,
    steps: int | None = None,
    table: str | None = None,
    family: Family | None = None,
    double_step: bool = False,
) -> Tableau:
    """A `*_sampling.py` with printed tables, a checkpoint (.ckpt), or JSON of `{"timedeltas": .., "coeffs": ..}`.

    Args:
        contents: of the file.
        noise: the network's; by default flow matching, or for `ddpm` the continuous schedule of 0.1 and 20.
        steps, table: which one, where the file has several: how many steps, and the name in the file (FM_DATA).
        family: what the solver was learned for, where the table's name does not say it (FM..., DDPM...).
        double_step: DDPM's as their `ns_sampling.py` runs it: a second, first-order step over the same interval after
            each, and every x0 twice in the history, so that the coefficients meet other points than they were learned
            for. Their diffusers version (`vp_scheduling.py`) has one step.
    """
    found = _chosen(contents, steps, table)
    if steps not in (None, len(found.steps)) or table not in (None, found.name):
        raise ArgumentError(
            f"{contents.path} holds one solver of {len(found.steps)} steps: leave steps= and table= out"
        )
    kind = family or ("ddpm" if "DDPM" in found.name else "flow" if found.name.startswith("FM") else None)
    if kind not in ("flow", "ddpm"):
        raise ArgumentError(
            f"{contents.path} does not say what its solver was learned for: give family=flow or family=ddpm"
        )
    if double_step and kind == "flow":
        raise ArgumentError("double_step is for DDPM's solvers: leave it out")
    meta: dict[str, Any] = {"file": contents.path.name, "table": found.name, "family": kind}
    return _flow(found, noise, meta) if kind == "flow" else _ddpm(found, noise, meta, double_step)


def _chosen(contents: Contents, steps: int | None, table: str | None) -> Table:
    if contents.kind == "archive":
        # Of a checkpoint that also has the network's weights, these two tensors alone are read.
        state = cast(dict[str, Any], contents.held["state_dict"])
        sizes, c = (contents.numbers(state.get(f"source_sampler._raw_{name}")) for name in RAW)
        return _as_trained(_checked(contents, "", sizes, c))
    held = cast(dict[str, Any], contents.held)
    if "timedeltas" in held:
        return _checked(contents, "", held["timedeltas"], held.get("coeffs", held.get("solver_coeffs")))
    known = {
        (name, key): entry
        for name, group in held.items() if isinstance(group, dict)
        for key, entry in cast(dict[str, Any], group).items()
        if isinstance(entry, dict) and "timedeltas" in entry
    }  # fmt: skip
    if not known:
        raise contents.broken("has no solver: no table of timedeltas and coeffs")
    fits = [k for k in known if (table is None or k[0] == table) and (steps is None or k[1] == f"step{steps}")]
    if len(fits) != 1:
        names = ", ".join(f"{name} {key.removeprefix('step')}" for name, key in known)
        raise ArgumentError(f"{contents.path} has the tables {names}: choose one with steps= and table=")
    entry = cast(dict[str, Any], known[fits[0]])
    return _checked(contents, fits[0][0], entry["timedeltas"], entry.get("coeffs"))


def _checked(contents: Contents, name: str, steps: Any, c: Any) -> Table:
    n = len(cast(list[Any], steps)) if isinstance(steps, list) else 0
    try:
        rows = [[float(v) for v in row] for row in c]
        sizes = [float(v) for v in steps]
    except (TypeError, ValueError):
        rows, sizes = [], []
    if n < 1 or len(rows) != n or any(len(row) < i for i, row in enumerate(rows)) or min(sizes) <= 0:
        raise contents.broken("has no solver: timedeltas of n positive steps and coeffs of n rows")
    return Table(name, sizes, rows)


def _as_trained(found: Table) -> Table:
    """With up to 6 steps the training uses only the newest coefficient of the last two rows."""
    n = len(found.steps)
    if n > 6:
        return found
    cut = lambda i, j: n - 2 <= i and j != i - 1  # noqa: E731
    return found._replace(c=[[0.0 if cut(i, j) else v for j, v in enumerate(row)] for i, row in enumerate(found.c)])


def _mixed(row: list[float], history: list[Form]) -> Form:
    """`sum_{j<i} c_j m_j + (1 - sum c) m` with m the newest of the history."""
    return mix(*zip(row, history, strict=False), (1 - sum(row), history[-1]))


def _flow(found: Table, noise: NoiseSchedule | None, meta: dict[str, Any]) -> Tableau:
    """Their time runs from 0 (noise) to 1, and their velocity is x0 less the noise."""
    flow = Flow()
    sheet = Sheet(flow, noise or flow)
    x, t, history = sheet.start(1.0), 1.0, list[Form]()
    for i, dt in enumerate(found.steps):
        if not t > 0:
            raise ArgumentError(f"its steps sum to more than 1 before the last one: timedeltas={found.steps}")
        x, x0 = sheet.ask(x, t)
        history.append(mix((1 / t, x0), (-1 / t, x)))
        x, t = mix((1.0, x), (dt, _mixed(found.c[i][:i], history))), t - dt
    # Printed steps are rounded to four digits; the end may be missed by one of them.
    return sheet.finished(x, max(t, 0.0), NAME, {"peer": meta})


def _ddpm(found: Table, noise: NoiseSchedule | None, meta: dict[str, Any], double_step: bool) -> Tableau:
    """In a continuous schedule; a network of integer times is asked at 1000 t, and its noise is read at t."""
    theirs = VPLinear()
    discrete = noise if isinstance(noise, Discrete) else None
    frame = discrete or theirs
    sheet = Sheet(frame, noise or theirs)
    place = (lambda t: discrete.scalar_time_of_ratio(theirs.ratio(t).item())) if discrete else (lambda t: t)
    x, t, history = sheet.start(place(FIRST), 1.0), FIRST, list[Form]()
    for i, dt in enumerate(found.steps):
        if not t > 0:
            raise ArgumentError(f"its steps sum to more than 1 before the last one: timedeltas={found.steps}")
        here, after = theirs.scalar_levels(max(t, LAST)), theirs.scalar_levels(max(t - dt, LAST))
        told = t * INDICES if discrete else t
        x, there = sheet.ask(x, place(t), told)
        x0 = read_at(here, frame.scalar_levels(told), x, there)
        history.append(x0)
        decay, gain = after[1] / here[1], after[1] * (after[0] / after[1] - here[0] / here[1])
        x = mix((decay, x), (gain, _mixed(found.c[i][:i], history)))
        if double_step:
            history.append(x0)
            x = mix((decay, x), (gain, x0))
        t -= dt
    return sheet.finished(x, place(max(t, LAST)), NAME, {"peer": meta})
