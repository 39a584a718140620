"""A folder of ComfyUI nodes from tables: the two nodes, the schedules as plain numbers, and what a registry wants."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fewstep.adapters.frame import Framed, framed
from fewstep.errors import ArgumentError, LossyExport
from fewstep.files import atomic_write_text
from fewstep.program import CONSTANT, NOISE, OUTPUT, STATE
from fewstep.tableau import Tableau

SOURCE = Path(__file__).with_name("comfyui_pack.py")
KINDS = {STATE: "states", OUTPUT: "outputs", NOISE: "noise"}
MARK = "# made by `fewstep export --to comfyui-nodes`"

PROJECT = f"""{MARK}
[project]
name = "comfyui-fewstep-schedules"
version = "1.0.0"
description = "Samplers with few network calls, found by fewstep for one model each"
license = {{ text = "Apache-2.0" }}
dependencies = []

[tool.comfy]
PublisherId = ""
DisplayName = "fewstep schedules"
Icon = ""
"""

README = """# fewstep schedules for ComfyUI

Put this folder into `ComfyUI/custom_nodes` and start ComfyUI again. Under *sampling > custom_sampling* appear:

- **fewstep sigmas** (schedulers): the noise levels of a schedule;
- **fewstep sampler** (samplers): the sampler that belongs to them, exactly as it was found, with all its weights.

Choose the same schedule in both and connect them to `SamplerCustom` or `SamplerCustomAdvanced`. A schedule was found
for one model, one guidance scale and one number of network calls; on others it runs, and its quality is unknown.

The sampler refuses other sigmas than its own: do not split, shorten or rescale them. For image-to-image take a schedule
that was searched for that start. Models of discrete times (Stable Diffusion, SDXL) are told the nearest integer time by
ComfyUI, as with every sampler.

Schedules here:

{schedules}

To publish the folder on registry.comfy.org, write your publisher's id into `pyproject.toml`. Made with
[fewstep](https://pypi.org/project/fewstep/); the same command with the same folder adds or replaces a schedule.
"""


def export_nodes(tableau: Tableau, folder: str | Path, name: str = "") -> list[Path]:
    """Write the nodes with this table as schedule `name` into `folder`; other schedules there stay.

    Args:
        tableau: the sampler; it must know its noise schedule.
        folder: of the nodes, new or made by this function before.
        name: of the schedule, in the nodes' list; by default the solver and its number of network calls.

    Returns:
        The files written.

    Raises:
        LossyExport: per-element weights or several outputs of a call, which a list of plain numbers cannot hold.
        ArgumentError: no noise schedule, an infinite first noise level, or a folder that holds something else.
    """
    place = Path(folder)
    called = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or f"{tableau.name or 'sampler'}-{tableau.nfe}").strip("-.")
    if not called:
        raise ArgumentError(f"name={name!r}: give letters, digits, - or _")
    record = nodes_record(tableau, called)
    _require_own(place)
    written = [
        atomic_write_text(place / "schedules" / f"{called}.json", json.dumps(record, indent=1, allow_nan=False) + "\n"),
        atomic_write_text(place / "__init__.py", SOURCE.read_text(encoding="utf-8")),
    ]
    if not (place / "pyproject.toml").exists():  # it may hold the user's publisher id by now
        written.append(atomic_write_text(place / "pyproject.toml", PROJECT))
    listed = "\n".join(f"- {_about(path)}" for path in sorted((place / "schedules").glob("*.json")))
    written.append(atomic_write_text(place / "README.md", README.format(schedules=listed)))
    return written


def _require_own(place: Path) -> None:
    project = place / "pyproject.toml"
    if place.exists() and not place.is_dir():
        raise ArgumentError(f"{place} is a file: give a folder for the nodes")
    if place.is_dir() and any(place.iterdir()):
        if project.is_file() and project.read_text(encoding="utf-8").startswith(MARK):
            return
        raise ArgumentError(f"{place} holds something else: give a new folder, or one that this command made")


def _about(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    told = record["about"]
    model = f", for {told['model']}" if told.get("model") else ""
    return f"`{record['name']}`: {told['solver'] or 'sampler'}, {told['nfe']} network calls{model}"


def nodes_record(tableau: Tableau, name: str) -> dict[str, Any]:
    """The schedule as the nodes read it: plain numbers in ComfyUI's coordinates.

    Raises:
        LossyExport, ArgumentError: see `export_nodes`.
    """
    if tableau.channels > 1:
        raise LossyExport(
            f"the table mixes {tableau.channels} outputs of each call, and ComfyUI's models give one: guide in ComfyUI"
        )
    if any(c.ndim for c in tableau.constants) or any(m.ndim > 2 for m in (tableau.A, tableau.B, tableau.C, tableau.K)):
        raise LossyExport(
            "weights or constants of a sample's shape do not go into ComfyUI's nodes: run the file itself "
            "(Tableau.load), or find a sampler without statistics"
        )
    own = framed(tableau)
    assert tableau.noise is not None
    about = {
        "solver": tableau.name,
        "nfe": tableau.nfe,
        "digest": tableau.digest,
        "model": tableau.meta.get("model", ""),
        "noise": tableau.noise.family,
    }
    return {
        "format": "fewstep.comfyui",
        "version": 1,
        "name": name,
        "family": "flow" if tableau.noise.family == "flow" else "noise",
        "levels": list(own.levels),
        "intervals": [list(pair) for pair in own.intervals],
        "about": about,
        "rows": [_row(own, k) for k in range(own.table.rows)],
    }


def _row(own: Framed, k: int) -> dict[str, Any]:
    program = own.table.program[k]
    row: dict[str, Any] = {}
    for term in program.terms:
        if term.source == CONSTANT:
            row["offset"] = row.get("offset", 0.0) + float(term.weight) * own.table.constants[term.column].item()
        else:
            row.setdefault(KINDS[term.source], []).append([term.column, float(term.weight)])
    if program.evaluated:
        row |= {"told": float(program.model_time), "input": own.inputs[k], "step": own.step(k)}
    return row
