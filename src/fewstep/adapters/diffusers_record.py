"""Tables for `FewStepScheduler`: every weight on what a diffusers pipeline holds, states and raw network outputs.

A pipeline calls its network and hands output and state to the scheduler, which answers with the next state. So a record
has one row for each network call. Four things are done to a table here, once, in float64:

* rows without a network call (a corrected state, a free first step) are put into the rows that read them;
* rows that do not read the state in the pipeline's hands, but older ones (correctors restart from their own last
  state), are written on that state, which is the same unless the pipeline has edited it;
* the network's x0 is written out as `skip * input + gain * output`, by what it predicts;
* states are scaled to be the network's input (a table in EDM's coordinates, run by a variance-preserving network).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.coordinates import Coordinates
from fewstep.errors import ArgumentError, TableauError
from fewstep.found import Found
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear
from fewstep.rules import SolverSchedule
from fewstep.tableau import Tableau

FORMAT, VERSION = "fewstep.scheduler", 1
PREDICTIONS: Mapping[str, Any] = {
    "epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"
}  # fmt: skip
NEAR = 1e-4  # of angles atan2(sigma, alpha): float32 tables differ from float64 ones by 1e-7

START, STATE, OUTPUT, NOISE, SHIFT = range(5)
Form = dict[tuple[int, int], float]
"""A linear form: (kind, index) -> weight; states and outputs are counted by network calls."""


# --------------------------------------------------------------------------------------------------- the network
class Host(NamedTuple):
    """A diffusers network: its family, its noise schedule, what it predicts."""

    family: str
    noise: NoiseSchedule
    prediction: str
    trained: int
    sigma_data: float


def host_of(config: Mapping[str, Any], table: Tableau) -> Host:
    """The network that a scheduler's configuration describes; what it leaves open is taken from the table."""
    family = config.get("family") or _family(table.noise)
    prediction = config.get("prediction_type") or ("flow_prediction" if family == "flow" else "epsilon")
    if prediction not in PREDICTIONS or (family == "flow") != (prediction == "flow_prediction"):
        raise ArgumentError(
            f"prediction_type={prediction!r} of a {family!r} network is not supported: one of "
            f"{', '.join(PREDICTIONS)} is, the last for flow models only"
        )
    trained = int(config.get("num_train_timesteps") or 1000)
    if family == "flow":
        noise: NoiseSchedule = Flow()
    elif family == "vp":
        noise = _discrete(config, trained)
    elif family in ("edm", "continuous"):
        noise = EDM(float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 80.0))
    else:
        raise ArgumentError(f"family={family!r} is not known: vp, flow, edm or continuous")
    return Host(family, noise, prediction, trained, float(config.get("sigma_data") or 0.5))


def _family(noise: NoiseSchedule | None) -> str:
    return "flow" if isinstance(noise, Flow) else "edm" if isinstance(noise, EDM) else "vp"


def _discrete(config: Mapping[str, Any], n: int) -> Discrete:
    first, last = float(config.get("beta_start") or 1e-4), float(config.get("beta_end") or 0.02)
    kind = config.get("beta_schedule") or "linear"
    if config.get("trained_betas") is not None:
        noise = Discrete.from_betas(list(config["trained_betas"]))
    elif kind in ("linear", "scaled_linear"):
        noise = getattr(Discrete, kind)(first, last, n)
    elif kind == "squaredcos_cap_v2":
        noise = Discrete.cosine(n)
    else:
        raise ArgumentError(f"beta_schedule={kind!r} is not known: give trained_betas, the list of its betas")
    return noise.rescaled_to_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else noise


class Meaning(NamedTuple):
    """Of one network call: what the network is told, its input's scale, and `x0 = skip * input + gain * output`."""

    told: float
    scale: float
    skip: float
    gain: float


def meanings(table: Tableau, host: Host) -> list[Meaning]:
    """What each network call of a table means to a network.

    Raises:
        ArgumentError: the table was made for another kind of network or another noise schedule.
    """
    assert table.noise is not None
    _require_same_noise(table.noise, host)
    calls = [t for t, e in zip(table.model_times.tolist(), table.evaluated, strict=True) if e]
    if host.family in ("edm", "continuous"):
        return [_continuous(*table.noise.scalar_levels(t)[:2], host) for t in calls]
    same = isinstance(table.noise, type(host.noise))
    own = Coordinates(table.noise, table.noise if same else host.noise, PREDICTIONS[host.prediction], "index")
    found: list[Meaning] = []
    for t in calls:
        told, scale, skip, gain = own.at(t)
        told = float(told) * (host.trained / 1000 if host.family == "flow" else 1.0)
        if not -1e-6 <= told <= (host.trained if host.family == "flow" else host.trained - 1) + 1e-6:
            raise ArgumentError(
                f"the table calls the network at timestep {told:.6g}, outside its training range 0 to {host.trained - 1}: "
                "make a table for this model's noise schedule"
            )
        told = round(told) if abs(told - round(told)) < 1e-9 * max(1.0, abs(told)) else told
        found.append(Meaning(float(told), 1.0 if scale is None else float(scale), float(skip), float(gain)))
    return found


def _continuous(alpha: float, sigma: float, host: Host) -> Meaning:
    """Networks that are told a quarter of log sigma: EDM's, and Stable Video Diffusion's."""
    level = sigma / alpha
    if not host.noise.t_min * (1 - 1e-6) <= level <= host.noise.t_max * (1 + 1e-6):
        raise ArgumentError(
            f"the table calls the network at noise level {level:.6g}, outside {host.noise.t_min:g} to {host.noise.t_max:g}: "
            "make a table for this model's range"
        )
    told = math.log(level) / 4
    if host.family == "continuous":
        root = math.hypot(1.0, level)
        if host.prediction == "v_prediction":
            return Meaning(told, 1 / root / alpha, 1 / root, -level / root)
        skip, gain = (0.0, 1.0) if host.prediction == "sample" else (root, -level)
        return Meaning(told, 1 / root / alpha, skip, gain)
    data, root = host.sigma_data, math.hypot(level, host.sigma_data)
    sign = -1.0 if host.prediction == "v_prediction" else 1.0
    return Meaning(told, 1 / root / alpha, data**2 / root, sign * level * data / root)


def _require_same_noise(noise: NoiseSchedule, host: Host) -> None:
    kinds = {"vp": (Discrete, VPLinear, VPCosine, EDM), "flow": (Flow,), "edm": (EDM,), "continuous": (EDM,)}
    if not isinstance(noise, kinds[host.family]):
        raise ArgumentError(
            f"the table was made for {noise!r}, this pipeline has a {host.family!r} network: use a table of this model"
        )
    if not isinstance(noise, Discrete):
        return
    assert isinstance(host.noise, Discrete)
    mine, theirs = len(noise.alphas_cumprod), len(host.noise.alphas_cumprod)
    if mine != theirs:
        raise ArgumentError(
            f"the table was made for {mine} training steps, this model has num_train_timesteps={theirs}: use a table of it"
        )
    angle = lambda bar: math.atan2(math.sqrt(1 - bar), math.sqrt(bar))  # noqa: E731
    for index in _spread(mine):
        one, two = noise.alphas_cumprod[index], host.noise.alphas_cumprod[index]
        if abs(angle(one) - angle(two)) > NEAR * angle(two):
            raise ArgumentError(
                f"the table was made for other betas: alphas_cumprod[{index}] is {one:.6g} there and {two:.6g} in this "
                "pipeline. Use a table of this model"
            )


def _spread(n: int) -> list[int]:
    return sorted({round(k * (n - 1) / 8) for k in range(9)})


# ---------------------------------------------------------------------------------------------------- the rows
class Rows(NamedTuple):
    """One form for each network call and the sample; the level of each state, and the spread of the first."""

    forms: list[Form]
    alpha: list[float]
    sigma: list[float]
    start: float


def rows_of(table: Tableau) -> Rows:
    """A table's rows from one network call to the next, each on the state that the pipeline holds."""
    _require_plain(table)
    calls = [i for i, e in enumerate(table.evaluated) if e]
    index = {row: k for k, row in enumerate(calls)}
    read: list[Form] = []
    forms: list[Form] = []
    for row in range(table.rows):
        form = {(START, 0): 1.0} if row == 0 else _eliminated(table, row, read, index)
        if row in index or row == table.rows - 1:
            forms.append(form)
            read.append({(STATE, len(forms) - 1): 1.0})
        else:
            read.append(form)
    forms = _on_present_states(_from_first_state(forms))
    levels = [[v[i].item() for i in (*calls, table.rows - 1)] for v in (table.alpha, table.sigma)]
    return Rows(forms[1:], levels[0], levels[1], _spread_of(forms[0], table.sigma[0].item()))


def _require_plain(table: Tableau) -> None:
    if table.channels > 1:
        raise ArgumentError(
            "this table has guidance inside (two output channels), and a pipeline guides before the scheduler: "
            "make a table of the guided network"
        )
    if any(m.ndim > 2 for m in (table.A, table.B, table.C, table.K)) or any(c.numel() > 1 for c in table.constants):
        raise ArgumentError(
            "this table has weights or constants for each element (DPM-Solver-v3's statistics, a mean image), which do "
            "not fit into a scheduler's configuration: choose another solver, or run it by fewstep.sample"
        )
    if not any(table.evaluated):
        raise TableauError("this table never calls the network: there is nothing for a pipeline to run")


def _eliminated(table: Tableau, row: int, read: Sequence[Form], index: Mapping[int, int]) -> Form:
    form: Form = {}
    for k in table.A[row].nonzero()[:, 0].tolist():
        _add(form, read[k], table.A[row, k].item())
    for j in table.B[row].nonzero()[:, 0].tolist():
        _add(form, {(OUTPUT, index[j]): 1.0}, table.B[row, j].item())
    for m in table.C[row].nonzero()[:, 0].tolist():
        _add(form, {(NOISE, m): 1.0}, table.C[row, m].item())
    for q in table.K[row].nonzero()[:, 0].tolist():
        _add(form, {(SHIFT, 0): float(table.constants[q])}, table.K[row, q].item())
    return form


def _add(form: Form, other: Form, weight: float) -> None:
    for key, w in other.items():
        form[key] = form.get(key, 0.0) + weight * w


def _from_first_state(forms: list[Form]) -> list[Form]:
    """What reads the start, written on the first state that the network sees (a free first step lies between)."""
    first = forms[0]
    draws, weight = {k for k in first if k[0] == NOISE}, first.get((START, 0), 0.0)
    out = [first]
    for form in forms[1:]:
        share = form.pop((START, 0), 0.0)
        if (share and (draws or (SHIFT, 0) in first or not weight)) or draws & set(form):
            raise ArgumentError(
                "later rows of this table read the start or its noise past a random first step, which a pipeline cannot "
                "repeat: use a table without one"
            )
        if share:
            _add(form, {(STATE, 0): 1.0}, share / weight)
        out.append(form)
    if first.get((SHIFT, 0)):
        raise ArgumentError("the first state of this table has a constant, which a pipeline's noise has not")
    return out


def _spread_of(first: Form, sigma: float) -> float:
    """The standard deviation of the first state, noise of a random first step included."""
    return math.hypot(first.get((START, 0), 0.0) * sigma, *(w for k, w in first.items() if k[0] == NOISE))


def _on_present_states(forms: list[Form]) -> list[Form]:
    """Rows that read older states but not the present one, as what the present one lacks of them.

    With everything written out (on the first state, outputs and noise) row i is `a_i x + ...` and the present state
    `a_p x + ...`, so `row_i - (a_i / a_p) present` has no first state left. Outputs that both share cancel to
    rounding; what is below it is dropped.
    """
    whole: list[Form] = [{(STATE, 0): 1.0}]
    out = [forms[0]]
    for i, form in enumerate(forms[1:], 1):
        full: Form = {}
        for key, w in form.items():
            _add(full, whole[key[1]] if key[0] == STATE else {key: 1.0}, w)
        older = any(key[0] == STATE and key[1] < i - 1 for key in form)
        there = whole[i - 1].get((STATE, 0), 0.0)
        if older and not form.get((STATE, i - 1)) and there:
            share = full.get((STATE, 0), 0.0) / there
            form = dict(full)
            _add(form, whole[i - 1], -share)
            floor = 1e-13 * max(map(abs, full.values()))
            form = {key: w for key, w in form.items() if abs(w) > floor and key != (STATE, 0)}
            form[STATE, i - 1] = share
        whole.append(full)
        out.append(form)
    return out


# -------------------------------------------------------------------------------------------- starting in the middle
def starts_of(table: Tableau, rows: Rows) -> dict[int, dict[int, Form]]:
    """For each later call that a run can begin with, the rows that need something else than in a whole run.

    A table with its decisions is tabulated again from there (their orders rise again from 1). Without them, rows that
    read what does not exist become first order: an old x0 is replaced by the present one, which for a row that reads
    old states too needs DDIM's formula.
    """
    n = len(rows.forms)
    return {k: changes for k in range(1, n) if (changes := _again(table, k, n) or _lowered(rows, k)) is not None}


def _again(table: Tableau, k: int, n: int) -> dict[int, Form] | None:
    """The rows of the same decisions from the k-th network call, where that is the beginning of an interval."""
    schedule, noise = table.schedule, table.noise
    if schedule is None or noise is None:
        return None
    calls = [i for i, e in enumerate(table.evaluated) if e]
    level = table.times[calls[k]].item()
    macro = schedule.times.tolist()
    ends = [i for i, move in enumerate(schedule.steps) if move.node is None]
    if level not in macro[1:-1] or table.times[calls].tolist().index(level) != k:
        return None
    m = macro.index(level)
    told = None if schedule.model_times is None else schedule.model_times[m:]
    try:
        rest = replace(
            schedule, times=schedule.times[m:], steps=schedule.steps[ends[m - 1] + 1 :], afs=None, model_times=told
        )
        return _differing(table, SolverSchedule.tabulate(rest, noise), k, n)
    except ArgumentError:  # decisions that name older points than there are
        return None


def _differing(table: Tableau, part: Tableau, k: int, n: int) -> dict[int, Form] | None:
    whole, fresh = rows_of(table).forms, rows_of(part).forms
    if len(fresh) != n - k:
        return None
    draws = sorted({key[1] for form in whole[k:] for key in form if key[0] == NOISE})
    moved = [_moved(form, k, draws) for form in fresh]
    return {k + i: form for i, form in enumerate(moved) if not _close(form, whole[k + i])}


def _moved(form: Form, k: int, draws: Sequence[int]) -> Form:
    """Counted from the k-th network call on; noise columns by the whole table's."""
    names = {STATE: lambda j: j + k, OUTPUT: lambda j: j + k, NOISE: lambda m: draws[m], SHIFT: lambda _: 0}
    return {(kind, names[kind](j)): w for (kind, j), w in form.items()}


def _close(one: Form, two: Form) -> bool:
    size = max(map(abs, [*one.values(), *two.values()]), default=0.0)
    return all(abs(one.get(key, 0.0) - two.get(key, 0.0)) <= 1e-12 * size for key in {*one, *two})


def _lowered(rows: Rows, k: int) -> dict[int, Form] | None:
    changed: dict[int, Form] = {}
    for i in range(k, len(rows.forms)):
        form = rows.forms[i]
        if not any(j < k for (kind, j) in form if kind in (STATE, OUTPUT)):
            continue
        states = {j for (kind, j) in form if kind == STATE}
        if states <= {i}:
            new = {key: w for key, w in form.items() if key[0] != OUTPUT}
            new[OUTPUT, i] = sum(w for key, w in form.items() if key[0] == OUTPUT)
        elif not any(kind == NOISE for kind, _ in form):
            share = rows.sigma[i + 1] / rows.sigma[i]
            new = {(STATE, i): share, (OUTPUT, i): rows.alpha[i + 1] - share * rows.alpha[i]}
        else:
            return None
        changed[i] = new
    return changed


# ------------------------------------------------------------------------------------------------------ the record
def records(tables: Sequence[Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record for each table: what `FewStepScheduler` keeps in its configuration.

    Args:
        tables: each a `Tableau`, a `Found`, the path of either's file or folder, a table's JSON record, or a record
            that an earlier call made.
        config: of the pipeline's scheduler; see `host_of`.
    """
    several = [one for item in tables for one in _tables(item)]
    return [one if isinstance(one, dict) else record(one, config) for one in several]


def _tables(item: Any) -> list[Tableau | dict[str, Any]]:
    if isinstance(item, Tableau):
        return [item]
    if isinstance(item, Found):
        return [item.tableau]
    if isinstance(item, str | Path):
        path = Path(item)
        if not path.exists():
            raise ArgumentError(f"tableau={str(item)!r}: there is no such file or folder")
        return [Tableau.load(path / "schedule.json" if path.is_dir() else path)]
    if isinstance(item, Mapping):
        return [dict(item)] if item.get("format") == FORMAT else [Tableau.from_dict(dict(item))]
    if isinstance(getattr(item, "results", None), Mapping):  # of several numbers of calls
        return [found.tableau for found in item.results.values()]
    raise ArgumentError(
        f"tableau is a {type(item).__name__}: give a Tableau, what optimize found, or the path of its file"
    )


def record(table: Tableau, config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one table for the network that `config` describes.

    Raises:
        ArgumentError: the table belongs to another network, or a pipeline cannot run it; says why.
    """
    if table.noise is None:
        raise ArgumentError("this table has no noise schedule, so nobody knows which network it is for: set Tableau.noise")
    host = host_of(config, table)
    calls = meanings(table, host)
    rows = rows_of(table)
    starts = starts_of(table, rows)
    scales = [c.scale for c in calls]
    scales.append(_last_scale(rows.alpha[-1], rows.sigma[-1], host))
    bar = host.noise.alphas_cumprod if isinstance(host.noise, Discrete) else None
    made_for: dict[str, Any] = {
        "family": host.family, "prediction_type": host.prediction, "num_train_timesteps": host.trained,
    }  # fmt: skip
    if bar is not None:
        made_for["alphas_cumprod"] = {str(i): bar[i] for i in _spread(len(bar))}
    made_for |= {name: table.meta[name] for name in ("shape", "guidance", "boundary_ratio") if name in table.meta}
    return {
        "format": FORMAT, "version": VERSION, "name": table.name, "calls": len(calls), "made_for": made_for,
        "start": rows.start * scales[0],
        "points": [
            {"time": c.told, "alpha": rows.alpha[i] * c.scale, "sigma": rows.sigma[i] * c.scale}
            for i, c in enumerate(calls)
        ] + [{"alpha": rows.alpha[-1] * scales[-1], "sigma": rows.sigma[-1] * scales[-1]}],
        "rows": [_row(form, i, calls, scales) for i, form in enumerate(rows.forms)],
        "starts": {
            str(k): {str(i): _row(form, i, calls, scales) for i, form in changes.items()}
            for k, changes in starts.items()
        },
        "table": table.to_dict(),
    }  # fmt: skip


def _last_scale(alpha: float, sigma: float, host: Host) -> float:
    """The sample is x0 where it is clean; a noisy last state is scaled like any other."""
    if host.family == "flow" or sigma == 0:
        return 1 / alpha if sigma == 0 else 1.0
    return 1 / math.hypot(alpha, sigma)


def _row(form: Form, i: int, calls: Sequence[Meaning], scales: Sequence[float]) -> dict[str, Any]:
    """Weights of state i + 1 on the scaled states and the raw outputs."""
    to = scales[i + 1]
    states = {j: w / scales[j] for (kind, j), w in form.items() if kind == STATE}
    outputs: dict[int, float] = {}
    for (kind, j), w in form.items():
        if kind == OUTPUT:
            states[j] = states.get(j, 0.0) + w * calls[j].skip
            outputs[j] = w * calls[j].gain
    named = {
        "states": states,
        "outputs": outputs,
        "noise": {j: w for (kind, j), w in form.items() if kind == NOISE},
    }
    row: dict[str, Any] = {
        name: {str(j): w * to for j, w in sorted(part.items()) if w} for name, part in named.items()
    }
    return row | {"shift": form.get((SHIFT, 0), 0.0) * to}
