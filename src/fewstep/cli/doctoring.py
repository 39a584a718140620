"""`fewstep doctor`: what goes wrong with the scheduler that somebody has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import AsJson, Commands, examples, guarded, show


@guarded
def doctor(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", show_default=False, help="Folder of a diffusers pipeline, or a scheduler_config.json."
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Network calls that you ask the pipeline for.")] = 8,
    mu: Annotated[
        float, typer.Option(help="Dynamic shifting: the exponent for your resolution (Flux: 0.5 to 1.15).")
    ] = 1.15,
    compiling: Annotated[
        bool, typer.Option("--compile", help="Also count the graphs of torch.compile(scheduler.step); takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine a diffusers scheduler: known traps, with their sizes on your configuration, and what to do.

    Shifts that are applied twice, times rounded for the network but not for the solver, repeated times, noise that
    stays, a step too many, waits for the device, a scheduler of the wrong family, and more. Only the configuration is
    read; no weights are loaded.
    """
    from fewstep.doctor import examine

    report = examine(place, steps, mu=mu, compiling=compiling)
    show(report.to_dict(), str(report), as_json=as_json)


COMMANDS: Commands = (
    (
        "doctor",
        doctor,
        examples(
            "fewstep doctor path/to/stable-diffusion-3 --steps 4",
            "fewstep doctor scheduler/scheduler_config.json --steps 10 --json",
        ),
    ),
)
