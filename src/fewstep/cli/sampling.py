"""`fewstep sample`: draw samples with a schedule file or a named solver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Guidance,
    ModelName,
    Stopped,
    TrustPickle,
    examples,
    guarded,
    load_table,
    model_option,
    seeds_of,
    show,
)
from fewstep.cli.pipelines import with_pipeline_options
from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.tableau import Tableau


@guarded
@with_pipeline_options
def sample(
    model: ModelName,
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", help="A schedule file, or peer:FILE; or give --solver and --nfe."),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="A named solver (`fewstep solvers`) instead of a file.")] = None,
    times: Annotated[str, typer.Option(help="Its times (`fewstep times`).")] = "karras",
    nfe: Annotated[int, typer.Option(help="Its network calls per sample.")] = 10,
    seeds: Annotated[str, typer.Option(help="One sample per seed: 0-63, 5, or 0-9,42.")] = "0-63",
    out: Annotated[
        Path, typer.Option(help="A .png picture, or .npy for the numbers (of a pipeline the latents).")
    ] = Path("samples.png"),
    label: Annotated[
        int | None, typer.Option(help="One class for all samples; by default seed modulo the number of classes.")
    ] = None,
    guidance: Guidance = None,
    trust_pickle: TrustPickle = False,
    columns: Annotated[int | None, typer.Option(min=1, help="Samples in a row of the picture.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples given to the network at once.")] = 64,
    brownian: Annotated[
        bool, typer.Option("--brownian", help="Stochastic solvers: one Brownian motion per seed, whatever the times.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples, one per seed, and write them as a picture.

    A sample depends on its seed alone: not on the batch, the machine's load, or the other seeds. So the same seeds
    with two schedules show what the schedule changes; with stochastic solvers give --brownian, or each schedule draws
    noise of its own.
    """
    import torch

    from fewstep.models import default_condition
    from fewstep.models import pictures as decoded
    from fewstep.report import samples as pictures
    from fewstep.sampling import sample as draw

    pictures.check_suffix(out)
    wanted = seeds_of(seeds)
    network = model_option(model, guidance, trust_pickle)
    table = chosen_table(network, schedule, solver, times, nfe)
    condition = default_condition(network, wanted)
    if label is not None:
        condition = _one_label(condition, label, model)
    try:
        with torch.no_grad():
            made = draw(network, table, seeds=wanted, condition=condition, batch_size=batch_size, brownian=brownian)
        made = decoded(network, made) if out.suffix.lower() == ".png" else made
    except KeyboardInterrupt:
        raise Stopped(
            "nothing was written; start the same command again, with fewer --seeds if it took too long"
        ) from None
    written = pictures.write(out, made, columns=columns)
    data: dict[str, Any] = {
        "out": str(written), "samples": len(wanted), "nfe": table.nfe, "calls": network.evaluations,
        "sampler": table.name, "digest": table.digest, "model": model, "fingerprint": network.fingerprint,
    }  # fmt: skip
    text = f"{written}: {len(wanted)} samples, {table.nfe} network calls each ({table.name or 'sampler'})"
    show(data, text, as_json=as_json)


def chosen_table(network: Denoiser, schedule: Path | None, solver: str | None, grid: str, nfe: int) -> Tableau:
    """The table of a file, or of a named solver on named times.

    Raises:
        ArgumentError: both or neither were named, or the solver cannot make that many calls.
    """
    from fewstep.compare import cell

    if (schedule is None) == (solver is None):
        raise ArgumentError("give either --schedule FILE, or --solver NAME with --times and --nfe")
    if schedule is not None:
        return load_table(schedule, network)
    assert solver is not None
    found = cell(network.noise, solver, grid, nfe)
    if found.tableau is None:
        raise ArgumentError(
            f"--solver {solver} --times {grid} --nfe {nfe}: {found.reason}; choose another number of calls"
        )
    return found.tableau


def _one_label(condition: Any, label: int, model: str) -> Any:
    if condition is None or isinstance(condition, dict):
        cure = "give it as a line of --prompts" if isinstance(condition, dict) else "leave --label out"
        raise ArgumentError(f"--label {label}: {model} has no labels; {cure}")
    return condition * 0 + label


COMMANDS: Commands = (
    (
        "sample",
        sample,
        examples(
            "fewstep sample mnist --schedule runs/mnist-6/schedule.json --out grid.png",
            "fewstep sample mnist --solver dpmpp_2m --times karras --nfe 8 --seeds 0-99 --label 3",
            "fewstep sample diffusers:my-sd15 --prompts prompts.txt --schedule runs/my-sd15-6 --seeds 0-7",
            "fewstep sample problem:grid_8x8 --solver unipc --nfe 10 --seeds 0-1999 --out cloud.png",
        ),
    ),
)
