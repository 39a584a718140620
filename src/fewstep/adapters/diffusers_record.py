"""Records: what `FewStepScheduler` keeps of a table in its configuration.

A record has every weight on what a pipeline holds: the states, and the raw outputs of the network. The network's x0 is
written out as `skip * input + gain * output`, by what it predicts, so that a step only adds. The table itself lies
beside that under `table`, as `Tableau.to_dict` writes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.adapters.diffusers_network import Host, Meaning, host_of, meanings, spread
from fewstep.adapters.diffusers_rows import NOISE, OUTPUT, SHIFT, STATE, Form, rows_of, starts_of
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.noise import Discrete, Flow
from fewstep.tableau import Tableau

FORMAT, VERSION = "fewstep.scheduler", 1


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
        raise ArgumentError(
            "this table has no noise schedule, so nobody knows which network it is for: set Tableau.noise"
        )
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
        made_for["alphas_cumprod"] = {str(i): bar[i] for i in spread(len(bar))}
    # Searches on a pipeline say under "network" what their samples depended on.
    known = {"boundary_ratio": config.get("boundary_ratio"), **(table.meta.get("network") or {}), **table.meta}
    made_for |= {name: known[name] for name in ("shape", "guidance", "boundary_ratio") if known.get(name) is not None}
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
    row: dict[str, Any] = {name: {str(j): w * to for j, w in sorted(part.items()) if w} for name, part in named.items()}
    return row | {"shift": form.get((SHIFT, 0), 0.0) * to}


def config_of(item: Any) -> dict[str, Any]:
    """A scheduler's configuration from a table alone: the betas of its noise schedule, or a flow model.

    Raises:
        ArgumentError: the table's noise schedule is not that of a diffusers network.
    """
    several = list(item) if isinstance(item, list | tuple) else [item]
    first = next(one for single in several for one in _tables(single))
    if isinstance(first, dict):
        raise ArgumentError("a scheduler's record does not say all about its network: give config= too")
    noise = first.noise
    if isinstance(noise, Flow):
        return {"shift": noise.shift, "num_train_timesteps": 1000}
    if not isinstance(noise, Discrete):
        raise ArgumentError(
            f"{noise!r} is not the noise schedule of a diffusers network: write into the folder of its pipeline, or "
            "give config= of its scheduler"
        )
    known = {"num_train_timesteps": len(noise.alphas_cumprod)}
    if noise.recipe is not None and noise.recipe[0] != "cosine":
        kind, (first_beta, last_beta, _) = noise.recipe
        return known | {"beta_schedule": kind, "beta_start": first_beta, "beta_end": last_beta}
    bars = (1.0, *noise.alphas_cumprod)
    betas = [1 - here / before for before, here in itertools.pairwise(bars)]
    return known | {"beta_schedule": "linear", "trained_betas": betas}
