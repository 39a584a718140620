"""The whole sampler on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fewstep.phi import value
from fewstep.program import CONSTANT, NOISE, OUTPUT, STATE, Term

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

HEAD, TAIL = 26, 4
_NAMES = {STATE: "x", OUTPUT: "D", NOISE: "z", CONSTANT: "k"}


def tableau_text(t: Tableau) -> str:
    """One line a row: where the state is, what it is mixed from, and what was lowered or is special."""
    noise = f", {t.noise!r}" if t.noise is not None else ""
    lines = [
        f"{t.name or 'sampler'}: {t.nfe} network calls, {t.rows} states{noise}",
        "x = states, D = the network's x0, z = fresh unit noise, k = constants; * marks a network call",
        f"{'row':>4} {'time':>12} {'sigma/alpha':>12}   state",
    ]
    body = [_row(t, i) for i in range(t.rows)]
    if len(body) > HEAD + TAIL:
        body[HEAD:-TAIL] = [f"     ... {len(body) - HEAD - TAIL} rows more ..."]
    lines += body
    skips = (t.schedule.meta if t.schedule is not None else {}).get("usf", {}).get("skip_coefficients")
    if skips:
        lines.append(f"not applied: the record's {len(skips)} skip coefficients {min(skips):.4g} to {max(skips):.4g}")
    mean, variance = t.defects()
    lines.append(
        f"identities: mean {mean.abs().max().item():.1e}, variance {variance.abs().max().item():.1e}"
        + (f"; expected: {', '.join(t.expected)}" if t.expected else "")
    )
    return "\n".join(lines)


def _row(t: Tableau, i: int) -> str:
    row = t.program[i]
    alpha, sigma = t.alpha[i].item(), t.sigma[i].item()
    ratio = f"{sigma / alpha:12.6g}" if alpha > 0 else f"{'infinite':>12}"
    mix = " ".join(_term(term, t.channels) for term in row.terms) if i else "start"
    told = value(row.model_time)
    notes = [f"network told {told:.6g}"] if row.evaluated and abs(told - row.time) > 1e-12 * max(1.0, abs(told)) else []
    notes += [t.notes[i]] if t.notes[i] else []
    return f"{i:>4} {row.time:12.6g} {ratio} {'*' if row.evaluated else ' '} {mix}" + (
        f"   [{'; '.join(notes)}]" if notes else ""
    )


def _term(term: Term, channels: int) -> str:
    name = f"{_NAMES[term.source]}{term.column}"
    if term.source == OUTPUT and channels > 1:
        name = f"D{term.column // channels}.{term.column % channels}"
    w = term.weight
    if isinstance(w, Tensor) and w.ndim > 0:
        return f"(per element, mean {w.mean().item():+.4g}) {name}"
    return f"{value(w):+.6g} {name}"
