"""What a reader of a result should know of its search: what was left out, why the winner won, its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fewstep.lowered import followed
from fewstep.search.diagnostics import SPLINE, diagnose
from fewstep.search.judges import MatchedJudge, PairedJudge
from fewstep.search.klub import Gram
from fewstep.search.objective import Scorer, gained
from fewstep.search.parts import HAND, PARTS
from fewstep.search.plan import Plan
from fewstep.search.select import Candidate
from fewstep.search.teacher import Teacher
from fewstep.words import with_error

if TYPE_CHECKING:
    from fewstep.setting import Setting
    from fewstep.tableau import Tableau

SURE = 2.0
"""Standard errors from which on a difference is told."""


def left_out(ground: Setting, plan: Plan) -> Iterator[str]:
    """Parts of the method that did not take part, and why; a loss that is not the method's own."""
    whole, parts = PARTS[ground.method], plan.parts
    if whole.learned and not parts.learned:
        if not ground.teacher_calls:
            yield "There is no teacher (teacher_calls=0): nothing was planned or learned."
        elif ground.model.channels != 1:
            yield f"The network gives {ground.model.channels} outputs, not one: nothing was planned or learned."
        else:
            yield f"{plan.max_calls:,} network calls are too few to plan or to learn: times and S³ alone."
    elif whole.plans and not parts.plans:
        yield f"A teacher of {ground.teacher_calls} calls is too coarse a grid to plan on: there are no plans."
    if whole.evolved and not parts.evolved:
        yield "The times do not span the whole range of noise: S³ took no part."
    if parts.learned and not followed(ground.model, ground.known, ground.loss):
        name = ground.known.name if ground.known is not None else "the features"
        yield f"{name} have no gradient: {ground.lowered and ground.lowered.name} is lowered in their place (loss=)."


def why(entries: Sequence[Candidate], winner: Candidate, samples: int) -> str:
    """Who met in the finals, the best first, and with which scores."""
    others = sorted((c for c in entries if c is not winner and _fresh(c) is not None), key=lambda c: _fresh(c) or 0.0)
    hand = [c for c in others[3:] if c.method == HAND][:1]
    told = [f"{_fresh(c):.4g} {c.solver}, {c.origin}" for c in others[:3]]
    told += [f"{_fresh(c):.4g} {c.solver}, {c.origin} (the best hand-crafted)" for c in hand]
    own = _fresh(winner)
    return f"Chosen on {samples} fresh samples, {own if own is None else f'{own:.4g}'}; behind it: {'; '.join(told)}."


def _fresh(candidate: Candidate) -> float | None:
    return candidate.about.get("fresh", {}).get("score")


def of_klub(gram: Gram, winner: Candidate, start: Candidate) -> Iterator[str]:
    """KLUBs of the times found and of the best hand-crafted, each with its standard error over the data, and the error
    that the table's levels leave. Nothing for samplers that are no grid of times.
    """
    if winner.schedule is None or start.schedule is None or len(gram.ratios) < SPLINE:
        return
    entered = {"times found": winner} if winner is start else {"times found": winner, "best hand-crafted": start}
    found = {name: diagnose(gram, c.log_ratios.exp()) for name, c in entered.items()}
    told = ", of the ".join(f"{name} {with_error(one.klub, one.standard_error)}" for name, one in found.items())
    worst = max(abs(one.interpolation_error) / max(one.klub, 1e-300) for one in found.values())
    yield (
        f"KLUB of the {told} nats per dimension ({gram.samples} noising paths; {len(gram.ratios)} levels leave an "
        f"error of {worst:.1%}). Samples chose, not the KLUB."
    )


def of_teacher(scorer: Scorer, table: Tableau, teacher: Teacher, paired: Sequence[int]) -> Iterator[str]:
    """Whether judges that look at data like the teacher less than the sampler found, on the same report seeds.

    Those that compare with the teacher cannot say. No network is called: the samples are there.
    """
    seen = scorer.seen(teacher(paired), list(paired))
    for judge, theirs, rows in zip(scorer.judges, seen, scorer.rows(table, len(paired)), strict=True):
        if isinstance(judge, PairedJudge | MatchedJudge):
            continue
        gain, error = gained(judge, theirs, rows)
        if gain > SURE * error:
            yield (
                f"{judge.name}: the teacher is at {judge.score(theirs):.3g} and the sampler found at "
                f"{judge.score(rows):.3g} on the same {len(rows)} seeds ({gain:.2g} ± {error:.1g} less). A better "
                "teacher (teacher_calls) could be followed, or none: objective='frechet'."
            )
