"""`fewstep reproduce usf-cifar10`: whole schedules searched and scored on a network of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import reproducing_ays as shared
from fewstep.cli.common import AsJson, Commands, Quiet, TrustPickle, examples, guarded
from fewstep.cli.reproducing_ays import Batch, Device, Edm, Fp16, Images, OtherFeatures, Out, Reference, Weights
from fewstep.cli.searching import ranges


@guarded
def usf_cifar10(
    edm: Edm,
    reference: Reference,
    inception: Weights = None,
    features: OtherFeatures = None,
    trust_pickle: TrustPickle = False,
    fp16: Fp16 = False,
    images: Images = 50_000,
    nfe: Annotated[
        list[str] | None, typer.Option(help="Network calls, searched together.", show_default="4-10")
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Schedules evaluated for each number of calls.")] = 400,
    selection: Annotated[int, typer.Option(min=48, help="Images of each evaluation in the search.")] = 1000,
    proposer: Annotated[str, typer.Option(help="s3, evolution (the authors' released search), random or tpe.")] = "s3",
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of the network (EMS.save), for DPM-Solver-v3's basis as in USF++."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    out: Out = Path("runs/usf-cifar10"),
    device: Device = None,
    batch_size: Batch = 250,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The image experiment of a Unified Sampling Framework, Table 2.

    One search over whole solver schedules by the Fréchet distance of few images; then its winners, and the published
    solvers that were best on the same images, by that of many images of fresh seeds. The search is a study in --out,
    and every score is on disk before the next is made: after Ctrl-C the same command goes on.
    """
    import torch

    from fewstep.models import load
    from fewstep.reproduce.usf_table import UsfSettings, UsfTable

    place = device or shared.device_of()
    judge = shared.judge_of(inception, features, reference, place)
    network = load(f"edm:{edm}", device=place, trust_pickle=trust_pickle, fp16=fp16)
    shared.check_features(judge, torch.zeros(2, *network.shape))
    settings = UsfSettings(
        nfes=tuple(ranges(nfe or ["4-10"], "--nfe")), budget=budget, images=selection, finals=images,
        proposer=proposer, seed=seed, statistics=statistics, batch=batch_size,
    )  # fmt: skip
    with shared.going_on(out, quiet or as_json) as report:
        table = UsfTable(network, f"edm:{edm}", judge, out, settings, progress=report)
        table.run()
    note = (
        f"Fréchet distance ({judge.name}) of {images:,} images of fresh seeds, in brackets of the {selection:,} that "
        "selected; lower is better"
    )
    shared.deliver(out, table.markdown(), note, {"cells": list(table.cells())}, as_json=as_json)


COMMANDS: Commands = (
    (
        "usf-cifar10",
        usf_cifar10,
        examples(
            "fewstep reproduce usf-cifar10 --edm cifar10.safetensors --reference cifar10-32x32.npz --inception "
            "weights-inception-2015-12-05-6726825d.pth",
        ),
    ),
)
