"""`fewstep reproduce cifar10-table`: every method on an EDM network, with its cost and its quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import reproducing_ays as shared
from fewstep.cli.common import (
    AsJson,
    Commands,
    Quiet,
    TrustPickle,
    examples,
    flat,
    guarded,
    say,
    seeds_of,
    show,
    whole_numbers,
)
from fewstep.cli.reproducing_ays import Batch, Device, Edm, Fp16, Images, OtherFeatures, Out, Reference, Weights
from fewstep.errors import DenoiserError

if TYPE_CHECKING:
    from fewstep.reproduce.field_table import FieldTable

METHODS = (
    "Comma separated: solvers (dpmpp_2m), solvers on times (ipndm_4:karras, ipndm_4:karras:min), methods of `fewstep "
    "optimize` (gits, ld3:ipndm), s3, and the groups hand, published, planned, gradient, all."
)

TrainingImages = Annotated[
    Path | None,
    typer.Option(
        help="Training images (a folder, a zip, or an npz of uint8 [N, H, W, C]) for AYS, and for precision and "
        "recall; without, both take the teacher's samples."
    ),
]


@guarded
def cifar10_table(
    edm: Edm,
    reference: Reference,
    inception: Weights = None,
    features: OtherFeatures = None,
    data: TrainingImages = None,
    trust_pickle: TrustPickle = False,
    fp16: Fp16 = False,
    methods: Annotated[list[str] | None, typer.Option(help=METHODS, show_default="all")] = None,
    nfe: Annotated[
        list[str] | None, typer.Option(help="Numbers of network calls.", show_default="3,4,5,6,8,10")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Repetitions, as in 0-2: each has seeds of its own for everything.")] = "0",
    images: Images = 50_000,
    neighbours: Annotated[
        int, typer.Option(min=4, help="Images of them behind precision and recall, at most.")
    ] = 10_000,
    solver: Annotated[str, typer.Option(help="Of searches that take one; auto: several compete.")] = "auto",
    selection: Annotated[
        list[str] | None,
        typer.Option(help="Images of S³'s evaluations: few first, more for the best.", show_default="64,256"),
    ] = None,
    loss: Annotated[str, typer.Option(help="What methods that learn lower, e.g. lpips; auto: their own.")] = "auto",
    minutes: Annotated[float | None, typer.Option(help="Time for each search.")] = None,
    max_calls: Annotated[
        int | None, typer.Option(help="Network calls for each search.", show_default="each method's own")
    ] = None,
    teacher_calls: Annotated[int, typer.Option(min=2, help="Network calls of the teacher.")] = 60,
    out: Out = Path("runs/cifar10-table"),
    device: Device = None,
    batch_size: Batch = 250,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The field's table on an EDM network: every method at 3 to 10 network calls.

    For each method what its search cost, and on fresh seeds the Fréchet distance to the reference, its excess over a
    many-step teacher's, the distance to the teacher's samples, the paired error, precision and recall, all with
    errors; as a page and two figures. Every cell is written to --out before the next is begun: after Ctrl-C the same
    command goes on.
    """
    import torch

    from fewstep.clean import clean_images
    from fewstep.models import load
    from fewstep.reproduce import field_page
    from fewstep.reproduce.field_methods import IMAGES, Effort
    from fewstep.reproduce.field_table import NFES, FieldSettings, FieldTable

    settings = FieldSettings(
        tuple(flat(methods)) or ("all",), whole_numbers(nfe, "--nfe") or NFES, seeds_of(seeds),
        Effort(
            solver, minutes=minutes, max_calls=max_calls, teacher_calls=teacher_calls, batch=batch_size,
            images=whole_numbers(selection, "--selection") or IMAGES, loss=loss,
        ), images, neighbours,
    )  # fmt: skip
    place = device or shared.device_of()
    judge = shared.judge_of(inception, features, reference, place)
    network = load(f"edm:{edm}", device=place, trust_pickle=trust_pickle, fp16=fp16)
    shared.check_features(judge, torch.zeros(2, *network.shape))
    clean = None if data is None else clean_images(data, network, neighbours)
    with shared.going_on(out, quiet or as_json) as report:
        table = FieldTable(network, f"edm:{edm}", out, settings, judge, clean, report)
        files = field_page.filled(table)
    _deliver(table, files, as_json=as_json)


def _deliver(table: FieldTable, files: Sequence[Path], *, as_json: bool) -> None:
    """Show the first table, or all cells, and say what is left.

    Raises:
        DenoiserError: the network failed at some cells.
    """
    if not as_json:
        say(f"written: {', '.join(map(str, files))}")
    text = files[0].read_text("utf-8").partition("\n![")[0]
    show({"files": list(map(str, files)), "cells": list(table.cells)}, text, as_json=as_json)
    if table.failed:
        told = "; ".join(f"{cell}: {why}" for cell, why in table.failed.items())
        raise DenoiserError(f"the network failed at {len(table.failed)} cells ({told}): start the same command again")


COMMANDS: Commands = (
    (
        "cifar10-table",
        cifar10_table,
        examples(
            "fewstep reproduce cifar10-table --edm cifar10.safetensors --reference cifar10-32x32.npz --inception "
            "weights-inception-2015-12-05-6726825d.pth",
            "fewstep reproduce cifar10-table --edm cifar10.safetensors --reference cifar10-32x32.npz --inception "
            "weights-inception-2015-12-05-6726825d.pth --methods published,gits:ipndm,ld3,gs,s3,auto --nfe 4,6",
        ),
    ),
)
