"""`fewstep reproduce`: a paper's experiment on networks and data of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Guidance,
    Quiet,
    Stopped,
    TrustPickle,
    examples,
    flat,
    guarded,
    say,
    show,
    whole_numbers,
    with_option,
)
from fewstep.cli.pipelines import with_pipeline_options
from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.denoiser import Denoiser
    from fewstep.inputs import Data
    from fewstep.metrics import Features
    from fewstep.models import Judge
    from fewstep.reproduce.ays_table import AysTable
    from fewstep.reproduce.choosing import Settings

EXPERIMENTS = ("ays-table5", "text-to-image")


ExperimentOption = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT", show_default=False, help="ays-table5: Align Your Steps, Table 5; or text-to-image."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="text-to-image: a model's name, diffusers:PATH_OR_ID.")
]
DataOption = Annotated[
    Path | None, typer.Option(help="Its training images: a folder, a zip, or an npz of uint8 [N, H, W, C].")
]
ReferenceOption = Annotated[
    Path | None, typer.Option(metavar="STATS", help="Feature statistics of the data: npz with mu and sigma.")
]
InceptionOption = Annotated[
    Path | None, typer.Option(metavar="WEIGHTS", help="torch-fidelity's Inception weights (.pth).")
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Other features: python:MODULE:FACTORY returns images [B, C, H, W] -> [B, d]."),
]
ImagesOption = Annotated[
    int | None, typer.Option(min=2, help="Images behind each score.", show_default="50,000; text-to-image 256")
]
SolverOption = Annotated[
    list[str] | None,
    typer.Option(help="Named solvers, comma separated.", show_default="the paper's seven; text-to-image dpmpp_2m"),
]
NfeOption = Annotated[
    list[str] | None, typer.Option(help="Numbers of steps.", show_default="10,20,30,50; text-to-image 6,8,10")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the table and all scores.", show_default="runs/EXPERIMENT")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where the networks run.", show_default="cuda if there is one, else cpu")
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Images given to the network at once.", show_default="250; pipelines 32")
]


@guarded
@with_pipeline_options
def reproduce(
    experiment: ExperimentOption,
    model: ModelOption = None,
    guidance: Guidance = None,
    minutes: Annotated[float | None, typer.Option(help="text-to-image: time for each search.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="text-to-image: network calls for each search.")] = None,
    method: Annotated[str, typer.Option(help="text-to-image: dmn, ays or auto.")] = "auto",
    edm: Annotated[Path | None, typer.Option(metavar="FILE", help="An EDM network: .safetensors, or .pkl.")] = None,
    data: DataOption = None,
    reference: ReferenceOption = None,
    inception: InceptionOption = None,
    features: FeaturesOption = None,
    trust_pickle: TrustPickle = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in float16 inside the network (GPUs).")] = False,
    images: ImagesOption = None,
    seed_sets: Annotated[int, typer.Option(min=1, help="Repetitions on disjoint seeds.")] = 1,
    solver: SolverOption = None,
    nfe: NfeOption = None,
    paths: Annotated[int, typer.Option(min=2, help="Training images behind the KLUB table.")] = 4096,
    levels: Annotated[int, typer.Option(min=8, help="Its noise levels.")] = 96,
    selection: Annotated[int, typer.Option(min=96, help="Images behind the last scores that choose times.")] = 5000,
    out: OutOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a paper on your files. Nothing is downloaded.

    ays-table5: seven solvers, each with its best hand-crafted times and with those of Align Your Steps found here, by
    Fréchet distance to the reference. What loses stays in. Every choice and score is written to --out before the next
    is made: after Ctrl-C the same command goes on.

    text-to-image: searches the times of --model, a pipeline of diffusers with --prompts, for each of --nfe, and sets
    what was found beside the published lists (Align Your Steps, GITS, OSS) and the hand-crafted times, by distance to
    a many-step teacher.
    """
    out = out or Path("runs") / experiment
    if experiment not in EXPERIMENTS:
        raise ArgumentError(f"{experiment} is no experiment that is known here: give {', '.join(EXPERIMENTS)}")
    if experiment == "text-to-image":
        given = {"--edm": edm, "--data": data, "--reference": reference, "--inception": inception,
                 "--features": features}  # fmt: skip
        name = _model_name(model, given, guidance, device)
        return _text_to_image(name, flat(solver), whole_numbers(nfe, "--nfe"), method, images, minutes, max_calls, out,
                              batch_size or 32, quiet, as_json)  # fmt: skip
    if edm is None or data is None or reference is None or model is not None:
        raise ArgumentError("ays-table5 takes --edm FILE, --data and --reference, and no --model: give those")
    from fewstep.models import load
    from fewstep.reproduce.choosing import SOLVERS, Settings
    from fewstep.reproduce.pictures import clean_images

    place = device or _device()
    judge = judge_of(inception, features, reference, place)
    network = load(f"edm:{edm}", device=place, trust_pickle=trust_pickle, fp16=fp16)
    clean = clean_images(data, network, paths)
    check_features(judge, clean.samples[:2])
    settings = Settings(
        solvers=tuple(flat(solver)) or SOLVERS, nfes=tuple(whole_numbers(nfe, "--nfe")) or (10, 20, 30, 50),
        levels=levels, paths=min(paths, len(clean.samples)), rounds=rounds(selection), finals=selection,
        images=images or 50_000, seed_sets=seed_sets, batch=batch_size or 250,
    )  # fmt: skip
    _run_table(network, judge, clean, settings, out, quiet=quiet, as_json=as_json)


def _model_name(model: str | None, given: dict[str, Any], guidance: float | None, device: str | None) -> str:
    """The model of text-to-image with its options.

    Raises:
        ArgumentError: none, or options of the other experiment.
    """
    wrong = next((option for option, value in given.items() if value is not None), None)
    if model is None or wrong is not None:
        what = "needs --model diffusers:PATH_OR_ID" if model is None else f"does not take {wrong}: leave it out"
        raise ArgumentError(f"text-to-image {what}")
    for option, value in (("guidance", guidance), ("device", device)):
        model = model if value is None else with_option(model, f"{option}={value}")
    return model


def _text_to_image(
    name: str, names: list[str], nfes: list[int], method: str, images: int | None, minutes: float | None,
    max_calls: int | None, out: Path, batch: int, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    from fewstep.files import atomic_write_text
    from fewstep.models import about, load
    from fewstep.progress import shown
    from fewstep.reproduce.text_to_image import TextToImage

    network = load(name)
    try:
        with shown(quiet=quiet or as_json) as report:
            experiment = TextToImage(
                network, out, nfes or (6, 8, 10), names or ("dpmpp_2m",), method, images or 256, minutes, max_calls,
                batch, report,
            )  # fmt: skip
            rows = experiment.run()
    except KeyboardInterrupt:
        raise Stopped(f"{out} holds what was finished; start the same command again to go on") from None
    text = experiment.markdown()
    file = atomic_write_text(out / "table.md", text)
    if not as_json:
        say(f"RMS distance to a many-step teacher, {experiment.samples:,} samples, lower is better; also in {file}")
    record = {"model": name, "fingerprint": network.fingerprint, "network": about(network), "file": str(file)}
    show(record | {"rows": [row.to_dict() for row in rows]}, text, as_json=as_json)


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
            "fewstep reproduce text-to-image --model diffusers:my-sd15 --prompts prompts.txt --guidance 7.5 --nfe 6 8",
        ),
    ),
)
