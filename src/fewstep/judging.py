"""Who judges: the judge that selects, and those that the final figures add, so that no result rests on one judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fewstep.clean import Data
from fewstep.errors import ArgumentError
from fewstep.models import Judge as ModelJudge
from fewstep.search.control import AMPLE, LEAST, Control, ControlledJudge
from fewstep.search.judges import FrechetJudge, ImageJudge, Judge, MatchedJudge, PairedJudge, SlicedJudge
from fewstep.search.teacher import Teacher

OBJECTIVES = ("auto", "faithful", "matched", "frechet", "teacher")
CONTROLLED = "controlled"
"""Of searches over whole schedules only: its teacher's population costs too much for a single solver's times."""
Objective = str | Callable[[Tensor], Tensor]


def checked_objective(objective: Objective, known: ModelJudge | None, teacher_calls: int = 1) -> Objective:
    """The objective with `auto` resolved: `faithful` where a feature network is known and there is a teacher, `frechet`
    where there is none, and `matched` without features.

    Errors: `ArgumentError` for another word, `frechet` or `faithful` without features, or a comparison with a teacher
        that is not there.
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
        able = known is not None and (known.nll is None or not teacher_calls)
        objective = "matched" if not able else "faithful" if teacher_calls else "frechet"
    if objective in ("faithful", "matched", "teacher") and not teacher_calls:
        raise ArgumentError(
            "nothing judges without a teacher (teacher_calls=0): give judge=, or a function objective=, or leave "
            "teacher_calls out"
        )
    if (objective == "frechet" and known is None) or (objective == "faithful" and (known is None or known.nll)):
        raise ArgumentError(
            f"objective={objective!r} needs a judge with features of this network's samples: give judge=, or "
            "objective='matched'"
        )
    return objective


def searched_objective(
    objective: Objective, known: ModelJudge | None, teacher_calls: int, fewest: int, most: int
) -> Objective:
    """The same for a search over whole schedules, which has `controlled` too.

    There `auto` is `controlled` where a feature network is known and each selection ends on four images for a feature:
    hundreds of samplers are too many for what plain distances of so few images can tell. Else it is as above.

    Args:
        objective, known, teacher_calls: as above.
        fewest, most: images of an evaluation.

    Errors: `ArgumentError` as above, and for `controlled` without features, teacher or images enough.
    """
    if objective not in ("auto", CONTROLLED):
        return checked_objective(objective, known, teacher_calls)
    if objective == "auto":
        fits = known is not None and known.nll is None and most >= AMPLE * known.reference.d
        return (
            CONTROLLED
            if fits and fewest >= LEAST and teacher_calls
            else checked_objective("auto", known, teacher_calls)
        )
    if known is None or not teacher_calls:
        raise ArgumentError(
            "objective='controlled' needs features, statistics of the data, and a teacher: give judge=, leave "
            "teacher_calls out, or use objective='matched'"
        )
    if fewest < LEAST:
        raise ArgumentError(
            f"objective='controlled' on {fewest} images: it needs {LEAST}, and several for each feature"
        )
    return CONTROLLED


def taught(objective: Objective) -> bool:
    """Whether a resolved objective needs the teacher on every seed."""
    return objective in ("faithful", "matched", "teacher", CONTROLLED)


def selection_judge(
    objective: Objective,
    known: ModelJudge | None,
    teacher: Teacher | None,
    seeds: Sequence[int],
    control: Control | None = None,
) -> Judge:
    """The judge that a resolved objective names; `seeds` are those that the teacher will know, `control` is that of
    `controlled`.
    """
    if callable(objective):
        return ImageJudge(objective)
    if objective == "frechet" and known is not None:
        return _frechet(known)
    if control is not None and known is not None:
        return ControlledJudge(control, known.reference, known.name)
    assert teacher is not None  # see `checked_objective`
    if objective == "teacher":
        return PairedJudge(teacher, seeds)
    features = known.features if known is not None and known.nll is None else None
    return MatchedJudge(teacher, seeds, features, faithful=objective == "faithful")


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
        [MatchedJudge(teacher, paired, selected.features, faithful=selected.faithful)]
        if isinstance(selected, MatchedJudge)
        else []
    )
    return [*first, *judges, PairedJudge(teacher, paired)]


def _frechet(known: ModelJudge) -> FrechetJudge:
    return FrechetJudge(known.features, known.reference, f"Fréchet distance, {known.name}")
