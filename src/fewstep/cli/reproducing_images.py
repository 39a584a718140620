"""`fewstep reproduce text-to-image`: found schedules beside the published lists, on a pipeline of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Guidance,
    Quiet,
    examples,
    flat,
    guarded,
    whole_numbers,
    with_option,
)
from fewstep.cli.pipelines import with_pipeline_options
from fewstep.cli.reproducing_ays import deliver, going_on

Model = Annotated[str, typer.Option("--model", metavar="NAME", help="A model's name, diffusers:PATH_OR_ID.")]


@guarded
@with_pipeline_options
def text_to_image(
    model: Model,
    guidance: Guidance = None,
    nfe: Annotated[list[str] | None, typer.Option(help="Numbers of network calls.", show_default="6,8,10")] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="Named solvers, comma separated.", show_default="dpmpp_2m")
    ] = None,
    method: Annotated[str, typer.Option(help="Of the search, as in `fewstep optimize`.")] = "grids",
    images: Annotated[int, typer.Option(min=2, help="Images behind each score.")] = 256,
    minutes: Annotated[float | None, typer.Option(help="Time for each search.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Network calls for each search.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the pipeline runs.", show_default="its own")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images given to the network at once.")] = 32,
    out: Annotated[Path, typer.Option(help="Folder for the table and all scores.")] = Path("runs/text-to-image"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Times found for a pipeline, beside the published lists and the hand-crafted times.

    For each of --nfe the times of --model are searched, with the prompts of --prompts, and scored beside the lists of
    Align Your Steps, GITS and OSS by distance to a many-step teacher. Every score is on disk before the next is made:
    after Ctrl-C the same command goes on.
    """
    from fewstep.models import about, load
    from fewstep.reproduce.text_to_image import TextToImage

    name = model if guidance is None else with_option(model, f"guidance={guidance:g}")
    name = name if device is None else with_option(name, f"device={device}")
    network = load(name)
    with going_on(out, quiet or as_json) as report:
        experiment = TextToImage(
            network, out, whole_numbers(nfe, "--nfe") or (6, 8, 10), flat(solver) or ("dpmpp_2m",), method, images,
            minutes, max_calls, batch_size, report,
        )  # fmt: skip
        rows = experiment.run()
    note = f"RMS distance to a many-step teacher, {experiment.samples:,} samples, lower is better"
    record = {"model": name, "fingerprint": network.fingerprint, "network": about(network)}
    deliver(out, experiment.markdown(), note, record | {"rows": [row.to_dict() for row in rows]}, as_json=as_json)


COMMANDS: Commands = (
    (
        "text-to-image",
        text_to_image,
        examples(
            "fewstep reproduce text-to-image --model diffusers:my-sd15 --prompts prompts.txt --guidance 7.5 --nfe 6 8",
        ),
    ),
)
