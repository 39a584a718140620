"""`fewstep export`: take a schedule to another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import AsJson, Commands, Quiet, ScheduleFile, examples, guarded, load_table, say
from fewstep.cli.common import show as put
from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from fewstep.export import Export
    from fewstep.retuning import Retuned
    from fewstep.tableau import Tableau

FOLDERS = ("comfyui-nodes", "a1111-extension", "diffusers-hub")
"""Targets that are a folder of files, given by --out."""


@guarded
def export(
    file: ScheduleFile,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="comfyui, k-diffusion, a1111, sdcpp, sdnext, diffusers, sigmas or timesteps (text); comfyui-nodes, "
            "a1111-extension or diffusers-hub (a folder).",
        ),
    ],
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Export the times even if the target will run another solver on them.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --accept-loss: the network, with which the target's best sampler and times are found."),
    ] = None,
    trials: Annotated[int, typer.Option(min=2, help="With --model: tables that are tried.")] = 80,
    images: Annotated[
        int, typer.Option(min=2, help="With --model: samples that choose; four times as many judge.")
    ] = 256,
    snap: Annotated[
        bool, typer.Option("--snap", help="First move the times of a discrete network to integers, with new weights.")
    ] = False,
    shift: Annotated[
        float | None, typer.Option(help="Flow shift of the diffusers scheduler; by default the schedule's own.")
    ] = None,
    mu: Annotated[
        float | None, typer.Option(help="Instead of --shift: the exponent of a pipeline with dynamic shifting.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the schedule in a folder target.", show_default="solver-calls")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write the text to this file as well; the folder of a folder target.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Take a sampler to another program, by that program's conventions.

    Folder targets run it exactly, with all its weights: nodes for ComfyUI, a scheduler for the Hub. Text targets give a
    list of times to a sampler of the program's own. Where that would not make this table, the export is refused and
    tells what would be lost; `--accept-loss` gives the times all the same, with the nearest sampler, and with `--model`
    it tries the program's samplers and moves the times, and scores what remains on fresh seeds.
    Remarks go to standard error, the text alone to standard output.
    """
    from fewstep.export import snapped

    table = snapped(load_table(file)) if snap else load_table(file)
    if to in FOLDERS:
        written = _folder(table, to, out, name)
        put({"to": to, "files": [*map(str, written)]}, "\n".join(map(str, written)), as_json=as_json)
        return
    if model is not None and not accept_loss:
        raise ArgumentError("--model finds what the target can run instead: give it with --accept-loss")
    done, tuned = _text(table, to, accept_loss, model, trials, images, shift, mu, quiet or as_json)
    if out is not None:
        from fewstep.files import atomic_write_text

        atomic_write_text(out, done.text + "\n")
    if not as_json:
        _remarks(done, tuned)
    data: dict[str, Any] = {
        "to": done.target, "text": done.text, "sampler": done.sampler, "losses": done.losses, "notes": done.notes,
    }  # fmt: skip
    put(data | ({"retuned": tuned.to_dict()} if tuned is not None else {}), done.text, as_json=as_json)


def _text(
    table: Tableau,
    to: str,
    accept_loss: bool,
    model: str | None,
    trials: int,
    images: int,
    shift: float | None,
    mu: float | None,
    quiet: bool,
) -> tuple[Export, Retuned | None]:
    from fewstep.export import export as convert

    done = convert(table, to, accept_loss=accept_loss, shift=shift, mu=mu)
    if model is None or not done.losses:
        return done, None
    from fewstep.progress import shown
    from fewstep.retuning import retuned

    with shown(quiet=quiet) as report:
        tuned = retuned(
            table, to, model, shift=shift, mu=mu, trials=trials, images=images, fresh=4 * images, progress=report
        )
    return tuned.export, tuned


def _remarks(done: Export, tuned: Retuned | None) -> None:
    from fewstep.words import with_error

    for loss in done.losses:
        say(f"lost: {loss}")
    for note in (f"sampler: {done.sampler}" if done.sampler else "", *done.notes):
        if note:
            say(note)
    if tuned is None:
        return
    said = {"original": "this table", "nearest": "nearest sampler, same times", "retuned": "exported"}
    say(f"{tuned.judge}, {int(tuned.scores['retuned']['samples'])} fresh samples, lower is better:")
    for role, words in said.items():
        score = tuned.scores[role]
        say(f"  {words:<28} {with_error(score['value'], score['standard_error'])}")


def _folder(table: Tableau, to: str, out: Path | None, name: str) -> list[Path]:
    if out is None:
        raise ArgumentError(f"--to {to} writes a folder: say where with --out DIR")
    if to == "comfyui-nodes":
        from fewstep.adapters.comfyui import export_nodes

        return export_nodes(table, out, name)
    if to == "a1111-extension":
        from fewstep.adapters.webui import export_extension

        return export_extension(table, out, name)
    from fewstep.diffusers import save_to_hub_folder

    return save_to_hub_folder(table, out)


COMMANDS: Commands = (
    (
        "export",
        export,
        examples(
            "fewstep export schedule.json --to comfyui-nodes --out ComfyUI/custom_nodes/fewstep-schedules",
            "fewstep export schedule.json --to comfyui",
            "fewstep export schedule.json --to diffusers --shift 3",
            "fewstep export schedule.json --to sdcpp --accept-loss --model python:my_module:make_model",
            "fewstep export schedule.json --to sigmas --accept-loss --out sigmas.txt",
        ),
    ),
)
