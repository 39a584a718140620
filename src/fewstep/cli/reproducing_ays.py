"""`fewstep reproduce ays-table5`, and what all experiments share: networks, data and judges of your own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Quiet,
    Stopped,
    TrustPickle,
    examples,
    flat,
    guarded,
    say,
    show,
    whole_numbers,
)
from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.clean import Data
    from fewstep.denoiser import Denoiser
    from fewstep.metrics import Features
    from fewstep.models import Judge
    from fewstep.progress import Report
    from fewstep.reproduce.ays_table import AysTable
    from fewstep.reproduce.choosing import Settings

Edm = Annotated[Path, typer.Option("--edm", metavar="FILE", help="An EDM network: .safetensors, or .pkl.")]
Reference = Annotated[
    Path, typer.Option("--reference", metavar="STATS", help="Feature statistics of the data: npz with mu and sigma.")
]
Weights = Annotated[
    Path | None, typer.Option("--inception", metavar="WEIGHTS", help="torch-fidelity's Inception weights (.pth).")
]
OtherFeatures = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="NAME",
        help="Other features: python:MODULE:FACTORY returns images [B, C, H, W] -> [B, d].",
    ),
]
Fp16 = Annotated[bool, typer.Option("--fp16", help="Compute in float16 inside the network (GPUs).")]
Images = Annotated[int, typer.Option("--images", min=48, help="Images behind each score.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the table and all scores.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Where the networks run.", show_default="cuda if there is one, else cpu"),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Images given to the network at once.")]


@guarded
def ays_table5(
    edm: Edm,
    data: Annotated[Path, typer.Option(help="Its training images: a folder, a zip, or an npz of uint8 [N, H, W, C].")],
    reference: Reference,
    inception: Weights = None,
    features: OtherFeatures = None,
    trust_pickle: TrustPickle = False,
    fp16: Fp16 = False,
    images: Images = 50_000,
    seed_sets: Annotated[int, typer.Option(min=1, help="Repetitions on disjoint seeds.")] = 1,
    solver: Annotated[
        list[str] | None, typer.Option(help="Named solvers, comma separated.", show_default="the paper's seven")
    ] = None,
    nfe: Annotated[list[str] | None, typer.Option(help="Numbers of steps.", show_default="10,20,30,50")] = None,
    paths: Annotated[int, typer.Option(min=2, help="Training images behind the KLUB table.")] = 4096,
    levels: Annotated[int, typer.Option(min=8, help="Its noise levels.")] = 96,
    selection: Annotated[int, typer.Option(min=96, help="Images behind the last scores that choose times.")] = 5000,
    objective: Annotated[
        str,
        typer.Option(
            help="What chooses: frechet, the paper's, compares with the reference; faithful with a teacher of 60 calls "
            "from the same seeds, and needs far fewer images.",
        ),
    ] = "frechet",
    out: Out = Path("runs/ays-table5"),
    device: Device = None,
    batch_size: Batch = 250,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The image experiment of Align Your Steps, Table 5.

    Seven solvers, each with its best hand-crafted times and with those of Align Your Steps found here, by Fréchet
    distance to the reference. What loses stays in. Every choice and score is written to --out before the next is made:
    after Ctrl-C the same command goes on.
    """
    from fewstep.clean import clean_images
    from fewstep.judging import checked_objective
    from fewstep.models import load
    from fewstep.reproduce.choosing import SOLVERS, Settings

    place = device or device_of()
    judge = judge_of(inception, features, reference, place)
    checked_objective(objective, judge)
    network = load(f"edm:{edm}", device=place, trust_pickle=trust_pickle, fp16=fp16)
    clean = clean_images(data, network, paths)
    check_features(judge, clean.samples[:2])
    settings = Settings(
        solvers=tuple(flat(solver)) or SOLVERS, nfes=tuple(whole_numbers(nfe, "--nfe")) or (10, 20, 30, 50),
        levels=levels, paths=min(paths, len(clean.samples)), rounds=rounds(selection), finals=selection,
        objective=objective, images=images, seed_sets=seed_sets, batch=batch_size,
    )  # fmt: skip
    _run_table(network, judge, clean, settings, out, quiet=quiet, as_json=as_json)


def _run_table(
    network: Denoiser, judge: Judge, clean: Data, settings: Settings, out: Path, *, quiet: bool, as_json: bool
) -> None:
    from fewstep.reproduce.ays_table import AysTable

    with going_on(out, quiet or as_json) as report:
        table = AysTable(network, judge, clean, out, settings, progress=report)
        table.run()
    note = (
        f"Fréchet distance ({judge.name}), {settings.images:,} images x {settings.seed_sets} sets of seeds, lower is "
        "better"
    )
    deliver(out, table.markdown(), note, {"cells": cells(table)}, as_json=as_json)


@contextmanager
def going_on(out: Path, quiet: bool) -> Generator[Report]:
    """Progress of an experiment that goes on where Ctrl-C stopped it."""
    from fewstep.progress import shown

    try:
        with shown(quiet=quiet) as report:
            yield report
    except KeyboardInterrupt:
        raise Stopped(f"{out} holds what was finished; start the same command again to go on") from None


def deliver(out: Path, text: str, note: str, record: dict[str, Any], *, as_json: bool) -> None:
    """Write the table of an experiment, and show it with what it says."""
    from fewstep.files import atomic_write_text

    file = atomic_write_text(out / "table.md", text)
    if not as_json:
        say(f"{note}; also in {file}")
    show({"note": note, "file": str(file)} | record, text, as_json=as_json)


def judge_of(inception: Path | None, features: str | None, reference: Path, device: str) -> Judge:
    """The judge that the options name.

    Raises:
        ArgumentError: neither or both of --inception and --features.
    """
    import torch

    from fewstep.metrics import Statistics
    from fewstep.metrics.inception import Inception
    from fewstep.models import Judge, made_by

    if (inception is None) == (features is None):
        raise ArgumentError("give --inception WEIGHTS, or --features python:MODULE:FACTORY for features of your own")
    statistics = Statistics.load(reference)
    if inception is not None:
        try:
            return Judge("Inception", Inception(inception, device=device), statistics, torch.empty(0, statistics.d))
        except ImportError as error:
            raise ArgumentError(str(error)) from error
    made = made_by(str(features))
    if not callable(made):
        raise ArgumentError(f"--features {features}: the factory returned a {type(made).__name__}, not a function")
    return Judge(str(features), cast("Features", made), statistics, torch.empty(0, statistics.d))


def check_features(judge: Judge, images: Tensor) -> None:
    """Refuse features of another length than the reference's, before any work.

    Raises:
        ArgumentError: naming both lengths.
    """
    found = judge.features(images).shape[1:]
    if tuple(found) != (judge.reference.d,):
        raise ArgumentError(
            f"--reference has statistics of {judge.reference.d} features, and {judge.name} gives {tuple(found)}: both "
            "must come from one feature network"
        )


def rounds(last: int) -> tuple[tuple[int, float], ...]:
    """The rounds of the selection, growing to `last` images, and the share of the candidates that goes on: many on few
    images, few on many.
    """
    return (max(48, last // 8), 0.27), (max(48, 3 * last // 8), 0.33), (last, 0.0)


def cells(table: AysTable) -> list[dict[str, Any]]:
    """All cells of the finished table for machines: times, where they come from, scores of each set of seeds."""
    found: list[dict[str, Any]] = []
    for solver, nfe, kind in table.plan():
        known = table.known(solver, nfe, kind)
        if known is not None:
            choice, scores = known
            found.append(
                {
                    "solver": solver, "nfe": nfe, "kind": kind, "origin": choice.origin, "kept": choice.kept,
                    "times": choice.times.tolist(), "scores": scores,
                }
            )  # fmt: skip
    return found


def device_of() -> str:
    """A GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


COMMANDS: Commands = (
    (
        "ays-table5",
        ays_table5,
        examples(
            "fewstep reproduce ays-table5 --edm cifar10.safetensors --data cifar10-32x32.zip --reference "
            "cifar10-32x32.npz --inception weights-inception-2015-12-05-6726825d.pth",
        ),
    ),
)
