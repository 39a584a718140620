"""USF's own encoding of solver schedules (Liu et al. 2024, and the code of USF++), read and written.

What their words are here:

* times: theirs run over (0, 1] for discrete networks, `t = (index + 1) / N`; ours are the index. Otherwise they agree.
* `zero_x0` is `eps(x_T) = x_T` in their code for variance-preserving networks (here "unit"), and `x_T / sigma_T` for
  EDM's (here "zero"), where x0 is 0. For EDM only their noise basis sees that: data and v3 steps that read this point
  are given another x0 by mistake, which is not repeated. No released schedule has such a step.
* `average_x0` is "mean"; `tabulate` then wants the mean image.
* `relaxation` is `scaling`, `active_points` are `active`, correctors are `pseudo` and `implicit` too. Their implicit
  corrector never calls the network again, by mistake; ours does. No released schedule has one.
* `skip_coefficients` scale the skip connections inside the U-Net. They are kept in `meta`, and not applied: they change
  the network and not the sampler, which skip each belongs to depends on its architecture, and without them it is the
  same sampler on the network as it was trained. To use them, scale the skips in the function that becomes the
  `Denoiser`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from fewstep.errors import ArgumentError, FileFormatError, LossyExport
from fewstep.noise import EDM, Discrete, NoiseSchedule
from fewstep.rules import SolverSchedule
from fewstep.steps import Active, Basis, Step
from fewstep.usf_file import read_pth, record_of

CITATION = (
    "Liu, Ning, Yang, Wang 2024, A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models"
)
BASIS: dict[str, Basis] = {
    "noise_prediction": "noise", "data_prediction": "data", "dpmsolver_v3_prediction": "v3",
}  # fmt: skip
SCALING: dict[Any, str] = {
    None: "none", "no_relaxation": "none", "unipc-bh1": "bh1", "unipc-bh2": "bh2", "dpmsolver-2": "bh2",
    "0.5exp": "+0.5exp", "-0.5exp": "-0.5exp",
}  # fmt: skip
RELAXATION = {"none": None, "bh1": "unipc-bh1", "bh2": "unipc-bh2", "+0.5exp": "0.5exp", "-0.5exp": "-0.5exp"}
NO_CORRECTOR = {"type": "no_corrector", "start_point": None, "taylor_order": None, "derivative_type": None}
FAR = 1.5
"""Times above this are EDM's, where no noise schedule is given: the others' end at 1."""

Record = dict[str, Any]


def from_usf(record: Record | str | Path, noise: NoiseSchedule | None = None) -> SolverSchedule:
    """A solver schedule of USF's authors.

    Args:
        record: their dictionary (tensors as tensors or lists), or the path of a `.pth` file, which is read without
            running what is in it.
        noise: the network's. Needed for a discrete one, whose times are the index here; else by default EDM's where
            times exceed 1, and variance preserving in continuous time elsewhere.

    Returns:
        The schedule. `meta["usf"]` has the skip coefficients, which are not applied (see above), and the score.

    Raises:
        FileFormatError: a damaged record: what is missing or does not fit, and at which step.
    """
    if isinstance(record, str | Path):
        return from_usf(read_pth(record), noise)
    found = record_of(record, "the record")
    try:
        times = [float(t) for t in found["timesteps"]]
        steps = tuple(_step(found, i, len(times) - 1) for i in range(len(times) - 1))
        meta = {name: _numbers(found[name]) for name in ("skip_coefficients", "score") if found.get(name) is not None}
        afs = _afs(found.get("afs") or "no_afs", _is_edm(times, noise))
        lengths = [len(found[n]) for n in ("orders", "prediction_types", "start_points", "derivative_types")]
        if set(lengths) != {len(steps)}:
            raise FileFormatError(f"the record has {len(steps)} steps, and lists of {lengths} entries for them")
        ours = torch.tensor([_our_time(t, noise) for t in times], dtype=torch.float64, device="cpu")
        return SolverSchedule(ours, steps, afs=afs, name="usf", citation=CITATION, meta={"usf": meta})
    except FileFormatError:
        raise
    except (ArgumentError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"this is no solver schedule of USF: {error!r}") from error


def to_usf(schedule: SolverSchedule, noise: NoiseSchedule | None = None) -> Record:
    """The record of a schedule in the encoding of USF's authors; `from_usf` reads it back.

    Args:
        schedule: with steps along its times only.
        noise: as in `from_usf`.

    Raises:
        LossyExport: decisions that the encoding has no words for, with the steps.
    """
    lost = _lost(schedule)
    edm = _is_edm(schedule.times.tolist(), noise)
    if schedule.afs == ("unit" if edm else "zero"):
        lost.append(f"afs={schedule.afs!r} on {'EDM' if edm else 'variance-preserving'} times")
    if lost:
        raise LossyExport(f"USF's encoding has no words for {'; '.join(lost)}")
    steps = [move for move in schedule.steps if isinstance(move, Step)]
    times = [_their_time(t, noise) for t in schedule.times.detach().tolist()]
    names = {ours: theirs for theirs, ours in BASIS.items()}
    usable = [step.derivative_points(i + 1)[: min(step.order, i + 1) - 1] for i, step in enumerate(steps)]
    record: Record = {
        "timesteps": times,
        "orders": [1 + len(sets) for sets in usable],
        "prediction_types": [names[step.basis] for step in steps],
        "start_points": [step.start for step in steps],
        "derivative_types": [_derivatives(sets, step.scaling) for sets, step in zip(usable, steps, strict=True)],
        "corrector_types": [_their_corrector(s, i + 1, i == len(steps) - 1) for i, s in enumerate(steps)],
        "afs": {None: "no_afs", "mean": "average_x0"}.get(schedule.afs, "zero_x0"),
    }
    return record | schedule.meta.get("usf", {})


def _numbers(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [float(v) for v in cast(list[Any], value)] if isinstance(value, list | tuple) else float(value)


def _is_edm(times: list[float], noise: NoiseSchedule | None) -> bool:
    return times[0] > FAR and not isinstance(noise, Discrete) if noise is None else isinstance(noise, EDM)


def _our_time(t: float, noise: NoiseSchedule | None) -> float:
    return t * len(noise.alphas_cumprod) - 1.0 if isinstance(noise, Discrete) else t


def _their_time(t: float, noise: NoiseSchedule | None) -> float:
    return (t + 1.0) / len(noise.alphas_cumprod) if isinstance(noise, Discrete) else t


def _afs(name: str, edm: bool) -> Any:
    found = {"no_afs": None, "zero_x0": "zero" if edm else "unit", "average_x0": "mean"}
    if name not in found:
        raise FileFormatError(f"afs is {name!r}: the known ones are {', '.join(found)}")
    return found[name]


def _step(record: Record, i: int, n: int) -> Step:
    try:
        return _read_step(record, i, n)
    except (FileFormatError, ArgumentError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"step {i} of the record does not fit: {error}") from error


def _read_step(record: Record, i: int, n: int) -> Step:
    start, order = int(record["start_points"][i]), int(record["orders"][i])
    active, scaling = _read_derivatives(record["derivative_types"][i], start, i + 1)
    if len(active) < order - 1:
        raise FileFormatError(f"order {order} with {len(active)} derivatives")
    step = Step(BASIS[record["prediction_types"][i]], order, active[: order - 1] or None, scaling, start=start)
    chosen: Record = record["corrector_types"][i]
    if chosen["type"] == "no_corrector" or i == n - 1:
        return step
    if int(chosen["start_point"]) != start - 1:
        raise FileFormatError(f"a corrector from point {chosen['start_point']}, and not from the step's own start")
    sets, relaxed = _read_derivatives(chosen["derivative_type"], start - 1, i + 2)
    values = dict[str, Any](corrector=chosen["type"], corrector_scaling=relaxed)
    usual = Step(step.basis, order, step.active, scaling, start=start, **values)
    sets = sets[: int(chosen["taylor_order"]) - 1]
    if usual.corrector_points(i + 1) == sets:
        return usual
    return Step(step.basis, order, step.active, scaling, start=start, corrector_active=sets, **values)


def _read_derivatives(types: list[Record], start: int, available: int) -> tuple[Active, str | float]:
    """The points of each derivative, by default the newer ones, then the older; and the scaling of the first."""
    sets: list[tuple[int, ...]] = []
    for entry in types:
        wanted = int(entry["estimate"].removeprefix("Difference_"))
        points = entry.get("active_points")
        if points is None:
            points = [*range(start + 1, 0), *range(start - 1, -available - 1, -1)][:wanted]
        if len(points) != wanted or min(points) < -available:
            raise FileFormatError(f"{entry['estimate']} with the points {points}, where {available} are known")
        sets.append(tuple(int(p) for p in points))
    first: Record = types[0] if types else {}
    if first.get("relaxation") == "linear":
        return tuple(sets), float(first.get("relaxation_coefficient", 0.0))
    return tuple(sets), SCALING[first.get("relaxation")]


def _derivatives(sets: Active, scaling: str | float) -> list[Record]:
    """Their record of derivatives estimated from these points."""
    out: list[Record] = [
        {"estimate": f"Difference_{len(points)}", "active_points": list(points), "relaxation": None} for points in sets
    ]
    if out and not isinstance(scaling, str):
        out[0] |= {"relaxation": "linear", "relaxation_coefficient": scaling}
    elif out:
        out[0]["relaxation"] = RELAXATION[str(scaling)]
    return out


def _their_corrector(step: Step, available: int, last: bool) -> Record:
    if step.corrector is None or last:
        return dict(NO_CORRECTOR)
    sets = step.corrector_points(available)
    derivatives = _derivatives(sets, step.corrector_scaling)
    order = len(sets) + 1
    return {
        "type": step.corrector,
        "start_point": step.start - 1,
        "taylor_order": order,
        "derivative_type": derivatives,
    }


def _lost(schedule: SolverSchedule) -> list[str]:
    """What the encoding cannot say."""
    lost = ["times told to the network that are not the states'"] if schedule.model_times is not None else []
    for i, move in enumerate(schedule.steps):
        if not isinstance(move, Step):
            lost.append(f"fresh noise (move {i})")
            continue
        odd = {
            "basis": move.basis not in BASIS.values(),
            "node": move.node is not None,
            "weights": move.weights is not None,
            "variable": move.order > 1 and move.variable != "lam",
            "second": move.order > 2 and move.second != 1.0,
            "noise": move.stochastic,
        }
        lost += [f"{name} (move {i})" for name, is_odd in odd.items() if is_odd]
    return lost
