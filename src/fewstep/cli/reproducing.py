"""`fewstep reproduce`: a paper's experiment on networks and data of your own."""

from __future__ import annotations

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

    from fewstep.denoiser import Denoiser
    from fewstep.inputs import Data
    from fewstep.metrics import Features
    from fewstep.models import Judge
    from fewstep.reproduce.ays_table import AysTable
    from fewstep.reproduce.choosing import Settings
    from fewstep.reproduce.usf_table import UsfSettings

AYS, USF = EXPERIMENTS = ("ays-table5", "usf-cifar10")


@guarded
def reproduce(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            show_default=False,
            help="ays-table5: Align Your Steps, Table 5; usf-cifar10: a Unified Sampling Framework, Table 2.",
        ),
    ],
    edm: Annotated[Path, typer.Option(metavar="FILE", help="An EDM network: .safetensors, or .pkl.")],
    reference: Annotated[
        Path, typer.Option(metavar="STATS", help="Feature statistics of the data: npz with mu and sigma.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="ays-table5: its training images: a folder, a zip, or an npz of uint8 [N, H, W, C]."),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="torch-fidelity's Inception weights (.pth).")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Other features: python:MODULE:FACTORY returns images [B, C, H, W] -> [B, d]."
        ),
    ] = None,
    trust_pickle: TrustPickle = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16 inside the network (GPUs).")] = False,
    images: Annotated[int, typer.Option(min=48, help="Images behind each score.")] = 50_000,
    seed_sets: Annotated[int, typer.Option(min=1, help="Repetitions on disjoint seeds.")] = 1,
    solver: Annotated[
        list[str] | None, typer.Option(help="Named solvers, comma separated.", show_default="the paper's seven")
    ] = None,
    nfe: Annotated[
        list[str] | None, typer.Option(help="Numbers of steps.", show_default="10,20,30,50; usf-cifar10: 4-10")
    ] = None,
    paths: Annotated[int, typer.Option(min=2, help="Training images behind the KLUB table.")] = 4096,
    levels: Annotated[int, typer.Option(min=8, help="Its noise levels.")] = 96,
    selection: Annotated[
        int | None,
        typer.Option(min=96, help="Images behind the scores that choose.", show_default="5000; usf-cifar10: 1000"),
    ] = None,
    budget: Annotated[
        int, typer.Option(min=1, help="usf-cifar10: schedules evaluated for each number of calls.")
    ] = 400,
    proposer: Annotated[str, typer.Option(help="usf-cifar10: s3, evolution, random or tpe.")] = "s3",
    ems: Annotated[
        Path | None, typer.Option(metavar="FILE", help="usf-cifar10: the network's statistics (EMS.save), as in USF++.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table and all scores.", show_default="runs/EXPERIMENT")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the networks run.", show_default="cuda if there is one, else cpu")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images given to the network at once.")] = 250,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a paper on your files. Nothing is downloaded.

    ays-table5: seven solvers, each with its best hand-crafted times and with those of Align Your Steps found here, by
    Fréchet distance to the reference. What loses stays in. Every choice and score is written to --out before the next
    is made: after Ctrl-C the same command goes on.

    usf-cifar10: one search over whole solver schedules, then its winners and the best published solvers on fresh seeds.
    """
    if experiment not in EXPERIMENTS:
        raise ArgumentError(f"{experiment} is no experiment that is known here: give {', '.join(EXPERIMENTS)}")
    if (data is None) != (experiment == USF):
        raise ArgumentError(
            "ays-table5 needs --data, its training images" if data is None else "usf-cifar10 takes no --data"
        )
    from fewstep.models import load
    from fewstep.reproduce.choosing import SOLVERS, Settings
    from fewstep.reproduce.pictures import clean_images

    place, out = device or _device(), out or Path("runs") / experiment
    judge = judge_of(inception, features, reference, place)
    network = load(f"edm:{edm}", device=place, trust_pickle=trust_pickle, fp16=fp16)
    if data is None:
        import torch

        from fewstep.cli.searching import ranges
        from fewstep.reproduce.usf_table import UsfSettings

        check_features(judge, torch.zeros(2, *network.shape))
        usf = UsfSettings(
            nfes=tuple(ranges(nfe or ["4-10"], "--nfe")), budget=budget, images=selection or 1000,
            finals=images, proposer=proposer, statistics=ems, batch=batch_size,
        )  # fmt: skip
        _run_usf(network, f"edm:{edm}", judge, usf, out, quiet=quiet, as_json=as_json)
        return
    clean = clean_images(data, network, paths)
    check_features(judge, clean.samples[:2])
    settings = Settings(
        solvers=tuple(flat(solver)) or SOLVERS, nfes=tuple(whole_numbers(nfe, "--nfe")) or (10, 20, 30, 50),
        levels=levels, paths=min(paths, len(clean.samples)), rounds=rounds(selection or 5000), finals=selection or 5000,
        images=images, seed_sets=seed_sets, batch=batch_size,
    )  # fmt: skip
    _run_table(network, judge, clean, settings, out, quiet=quiet, as_json=as_json)


def _run_table(
    network: Denoiser, judge: Judge, clean: Data, settings: Settings, out: Path, *, quiet: bool, as_json: bool
) -> None:
    from fewstep.files import atomic_write_text
    from fewstep.progress import shown
    from fewstep.reproduce.ays_table import AysTable

    try:
        with shown(quiet=quiet or as_json) as report:
            table = AysTable(network, judge, clean, out, settings, progress=report)
            table.run()
    except KeyboardInterrupt:
        raise Stopped(f"{out} holds what was finished; start the same command again to go on") from None
    text = table.markdown()
    file = atomic_write_text(out / "table.md", text)
    note = (
        f"Fréchet distance ({judge.name}), {settings.images:,} images x {settings.seed_sets} sets of seeds, lower is "
        "better"
    )
    if not as_json:
        say(f"{note}; also in {file}")
    show({"note": note, "file": str(file), "cells": cells(table)}, text, as_json=as_json)


def _run_usf(
    network: Denoiser, name: str, judge: Judge, settings: UsfSettings, out: Path, *, quiet: bool, as_json: bool
) -> None:
    from fewstep.files import atomic_write_text
    from fewstep.progress import shown
    from fewstep.reproduce.usf_table import UsfTable

    try:
        with shown(quiet=quiet or as_json) as report:
            table = UsfTable(network, name, judge, out, settings, progress=report)
            table.run()
    except KeyboardInterrupt:
        raise Stopped(f"{out} holds what was finished; start the same command again to go on") from None
    text = table.markdown()
    file = atomic_write_text(out / "table.md", text)
    note = (
        f"Fréchet distance ({judge.name}) of {settings.finals:,} images of fresh seeds, in brackets of the "
        f"{settings.images:,} that selected; lower is better"
    )
    if not as_json:
        say(f"{note}; also in {file}")
    show({"note": note, "file": str(file), "cells": list(table.cells())}, text, as_json=as_json)


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


def rounds(last: int) -> tuple[tuple[int, int], ...]:
    """The rounds of the selection, growing to `last` images: many candidates on few images, few on many."""
    return (max(48, last // 8), 12), (max(48, 3 * last // 8), 4), (last, 3)


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


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


COMMANDS: Commands = (
    (
        "reproduce",
        reproduce,
        examples(
            "fewstep reproduce ays-table5 --edm cifar10.safetensors --data cifar10-32x32.zip --reference "
            "cifar10-32x32.npz --inception weights-inception-2015-12-05-6726825d.pth",
            "fewstep reproduce usf-cifar10 --edm cifar10.safetensors --reference cifar10-32x32.npz --inception "
            "weights-inception-2015-12-05-6726825d.pth",
        ),
    ),
)
