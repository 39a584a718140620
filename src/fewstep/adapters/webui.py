"""An extension for the WebUI (AUTOMATIC1111, Forge): a schedule as one more entry in its list of schedule types."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.errors import ArgumentError
from fewstep.export import export
from fewstep.files import atomic_write_text
from fewstep.tableau import Tableau

SCRIPT = '''"""A schedule type found by fewstep: {about}.

Sampler: {sampler}, {steps} steps. Put this folder into `extensions` of the WebUI and start it again.
"""

import torch
from modules import sd_schedulers

NAME, LABEL = "{name}", "fewstep {name}"
LEVELS = [{levels}]


def schedule(n, sigma_min, sigma_max, device):
    """Noise levels of the run, the last one included."""
    if n != len(LEVELS) - 1:
        raise ValueError(f"{{LABEL}} was made for {{len(LEVELS) - 1}} steps, and {{n}} were asked for")
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


if LABEL not in sd_schedulers.schedulers_map:
    entry = sd_schedulers.Scheduler(NAME, LABEL, schedule)
    sd_schedulers.schedulers.append(entry)
    sd_schedulers.schedulers_map.update({{NAME: entry, LABEL: entry}})
'''


def export_extension(tableau: Tableau, folder: str | Path, name: str = "") -> list[Path]:
    """Write the extension with this schedule into `folder`; scripts of other schedules there stay.

    Args:
        tableau: a table that one of the WebUI's samplers makes of its times.
        folder: of the extension.
        name: of the schedule; by default the solver and its number of network calls.

    Raises:
        LossyExport: none of the WebUI's samplers makes the table.
        ArgumentError: a name without letters.
    """
    done = export(tableau, "a1111")
    called = re.sub(r"[^A-Za-z0-9_]+", "_", name or f"{tableau.name or 'sampler'}_{tableau.nfe}").strip("_")
    if not called:
        raise ArgumentError(f"name={name!r}: give letters, digits or _")
    model = tableau.meta.get("model", "")
    about = re.sub(r"[^\w .,:/?=&-]", "", f"{tableau.nfe} network calls" + (f", for {model}" if model else ""))
    text = SCRIPT.format(about=about, sampler=done.sampler, steps=done.text.count(","), name=called, levels=done.text)
    return [atomic_write_text(Path(folder) / "scripts" / f"fewstep_{called}.py", text)]
