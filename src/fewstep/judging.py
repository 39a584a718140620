"""Who judges: the judge that selects, and those that the final figures add, so that no result rests on one judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.inputs import Data
from fewstep.models import Judge as ModelJudge
from fewstep.search.judges import FrechetJudge, ImageJudge, Judge, MatchedJudge, PairedJudge, SlicedJudge
from fewstep.search.teacher import Teacher

OBJECTIVES = ("auto", "matched", "frechet", "teacher")
Objective = str | Callable[[Tensor], Tensor]


def checked_objective(
    objective: Objective, known: ModelJudge | None, teacher_calls: int = 1, *, matched: bool = False
) -> Objective:
    """The objective with `auto` resolved: `frechet` where a feature network is known, else `matched`.

    With `matched` that is preferred, where there is a teacher: it needs far fewer images (docs/ays-results.md).

    Errors: `ArgumentError` for another word, `frechet` without a judge, or `matched` or `teacher` without a teacher.
    """
    if isinstance(teacher_calls, bool) or not isinstance(teacher_calls, int) or teacher_calls < 0:
        raise ArgumentError(
            f"teacher_calls is {teacher_calls!r}: give the reference's network calls, e.g. 60, or 0 for none"
        )
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise ArgumentError(
            f"objective is {objective!r}: choose one of {', '.join(OBJECTIVES)}, or give a function images -> [B]"
        )
    if objective == "auto":
        # The features of an analytic problem are its samples themselves: two moments say little about a mixture.
        taught = teacher_calls and (matched or (known is not None and known.nll is not None))
        objective = "frechet" if known is not None and not taught else "matched"
    if objective in ("matched", "teacher") and not teacher_calls:
        raise ArgumentError(
            "nothing judges without a teacher (teacher_calls=0): give judge=, or a function objective=, or leave "
            "teacher_calls out"
        )
    if objective == "frechet" and known is None:
        raise ArgumentError(
            "objective='frechet' needs a judge of this network's samples: give judge=, or objective='teacher'"
        )
    return objective


def taught(objective: Objective) -> bool:
    """Whether a resolved objective needs the teacher on every seed."""
    return objective in ("matched", "teacher")


def selection_judge(
    objective: Objective, known: ModelJudge | None, teacher: Teacher | None, seeds: Sequence[int]
) -> Judge:
    """The judge that a resolved objective names; `seeds` are those that the teacher will know."""
    if callable(objective):
        return ImageJudge(objective)
    if objective == "frechet" and known is not None:
        return _frechet(known)
    assert teacher is not None  # see `checked_objective`
    if objective == "teacher":
        return PairedJudge(teacher, seeds)
    return MatchedJudge(teacher, seeds, known.features if known is not None and known.nll is None else None)


def report_judges(
    selected: Judge, known: ModelJudge | None, data: Data | None, teacher: Teacher | None, paired: Sequence[int]
) -> list[Judge]:
    """Judges of the final figures: the one that selected, one of the whole distribution, and the paired one.

    Args:
        selected: the judge of the selection.
        known: of the network, where there is one; an analytic problem's samples are compared themselves.
        data: clean samples, to compare with where no judge is known.
        teacher: of the paired distance.
        paired: report seeds whose end points the teacher makes.
    """
    # Judges that need the teacher on every seed would make the report's end points dear.
    judges: list[Judge] = [] if isinstance(selected, PairedJudge | MatchedJudge) else [selected]
    if not isinstance(selected, FrechetJudge):
        if known is None:
            judges += (
                [SlicedJudge(data.samples, f"sliced Wasserstein distance to {data.note}")] if data is not None else []
            )
        elif known.nll is None:
            judges.append(_frechet(known))
        else:
            judges.append(SlicedJudge(known.reference_features, "sliced Wasserstein distance to exact samples"))
    if teacher is None or not paired:
        return judges
    first: list[Judge] = (
        [MatchedJudge(teacher, paired, selected.features)] if isinstance(selected, MatchedJudge) else []
    )
    return [*first, *judges, PairedJudge(teacher, paired)]


def _frechet(known: ModelJudge) -> FrechetJudge:
    return FrechetJudge(known.features, known.reference, f"Fréchet distance, {known.name}")
