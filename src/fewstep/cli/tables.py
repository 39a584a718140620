"""`fewstep show` and `fewstep export`: look at a schedule file, and take it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import AsJson, Commands, ScheduleFile, examples, guarded, load_table, say
from fewstep.cli.common import show as put
from fewstep.errors import ArgumentError


@guarded
def show(
    file: ScheduleFile,
    plot: Annotated[Path | None, typer.Option(help="Draw the table into this .png or .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a sampler on one screen: where its states are and what each is mixed from.

    `--json` prints the whole record: times, weights, decisions, and how it was found.
    """
    table = load_table(file)
    if plot is not None:
        if plot.suffix.lower() not in (".png", ".svg"):
            raise ArgumentError(f"--plot {plot}: end it in .png or .svg")
        from fewstep.files import atomic_write_bytes
        from fewstep.report.figures import tableau_figure
        from fewstep.report.style import png_of, svg

        figure = tableau_figure(table)
        data = png_of(figure) if plot.suffix.lower() == ".png" else svg(figure).encode()
        say(f"drawn: {atomic_write_bytes(plot, data)}")
    put(table.to_dict() | {"digest": table.digest}, str(table), as_json=as_json)


@guarded
def export(
    file: ScheduleFile,
    to: Annotated[str, typer.Option("--to", help="sigmas, timesteps, comfyui, k-diffusion or diffusers.")],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Export the times even if the target will run another solver on them.")
    ] = False,
    shift: Annotated[
        float | None, typer.Option(help="Flow shift of the diffusers scheduler; by default the schedule's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the text to this file as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a sampler as text for another program, with fixed decimals and by that program's conventions.

    Other programs take a list of times and run a sampler of their own. Where theirs would not make this table, the
    export is refused and tells what would be lost; `--accept-loss` gives the times all the same.
    Remarks go to standard error, the text alone to standard output.
    """
    from fewstep.export import export as convert
    from fewstep.files import atomic_write_text

    done = convert(load_table(file), to, accept_loss=accept_loss, shift=shift)
    if out is not None:
        atomic_write_text(out, done.text + "\n")
    if not as_json:
        for loss in done.losses:
            say(f"lost: {loss}")
        for note in (f"sampler: {done.sampler}" if done.sampler else "", *done.notes):
            if note:
                say(note)
    data = {"to": done.target, "text": done.text, "sampler": done.sampler, "losses": done.losses, "notes": done.notes}
    put(data, done.text, as_json=as_json)


COMMANDS: Commands = (
    ("show", show, examples("fewstep show runs/mnist-6/schedule.json", "fewstep show runs/mnist-6 --plot table.png")),
    (
        "export",
        export,
        examples(
            "fewstep export schedule.json --to comfyui",
            "fewstep export schedule.json --to diffusers --shift 3",
            "fewstep export schedule.json --to sigmas --accept-loss --out sigmas.txt",
        ),
    ),
)
