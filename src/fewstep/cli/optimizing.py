"""`fewstep optimize`: find better times for a network; writes the schedule, a picture and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Features,
    Guidance,
    ModelName,
    Quiet,
    Reference,
    Stopped,
    TrustPickle,
    examples,
    guarded,
    show,
    with_option,
)
from fewstep.cli.pipelines import short_name, with_pipeline_options
from fewstep.errors import ArgumentError
from fewstep.words import seconds_in_words, with_error

if TYPE_CHECKING:
    from fewstep.found import Found


Calls = Annotated[list[str], typer.Option(help="Network calls per sample of the sampler to find, one or more: 5,6,8.")]
Solvers = Annotated[
    list[str] | None,
    typer.Option(
        help="Named solvers (`fewstep solvers`), or auto for several: they compete.",
        show_default="dpmpp_2m, or auto with --method auto",
    ),
]
Start = Annotated[
    float | None,
    typer.Option(
        help="Time of the first state; below the noisiest the search is for image-to-image.",
        show_default="the noisiest",
    ),
]
Strength = Annotated[
    float | None, typer.Option(help="Image-to-image strength instead of --start: that part of the range of times.")
]
Around = Annotated[
    bool,
    typer.Option(
        "--around/--no-around", help="Score the hand-crafted times at other --nfe too, for the report's chart."
    ),
]


MethodOption = Annotated[
    str,
    typer.Option(
        help="auto (all that pays off); times alone: dmn (no network calls), ays, grids (both, from every start); "
        "planned: gits, oss, local_error; or learned by gradient: times, weights, joint, ld3, s4s, s4s-alt, gs, bns, "
        "dyweight, neural-solver, dc, epd, epd-1."
    ),
]
LossOption = Annotated[
    str,
    typer.Option(
        help="What a method that learns lowers: l2, l1, log-l2, pseudo-huber, lpips (needs fewstep[lpips]), features, "
        "along, faithful, matched, frechet, kernel, or auto (the method's own)."
    ),
]
EndOption = Annotated[
    str, typer.Option(help="Where the times end: zero, min (the network's own least time) or a time.")
]
MaxCallsOption = Annotated[
    int | None,
    typer.Option(
        help="Network calls to spend in all.", show_default="130,000 to 150,000 by --nfe; 240,000 to 450,000 to learn"
    ),
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="What selects: faithful (geometric mean of matched in features and in samples), matched (distance to the "
        "teacher's samples of the same seeds, as sets), frechet (to the data), teacher (sample by sample), or auto "
        "(faithful where features are known, else matched)."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Clean samples behind the KLUB and image-to-image: a folder, zip or npz of pictures (labels of their "
        "classes in dataset.json), or numbers in the network's units (.npy, .safetensors).",
        show_default="what ships with the model, else the teacher's",
    ),
]
TeacherOption = Annotated[
    int | None,
    typer.Option(
        "--teacher-calls", min=0, help="Network calls of a sample of the teacher; 0 is none.", show_default="60"
    ),
]


@guarded
@with_pipeline_options
def optimize(
    model: ModelName,
    nfe: Calls,
    method: MethodOption = "auto",
    solver: Solvers = None,
    each: Annotated[bool, typer.Option("--each", help="A result for each solver, instead of one winner.")] = False,
    start: Start = None,
    strength: Strength = None,
    end: EndOption = "zero",
    minutes: Annotated[float | None, typer.Option(help="Time to spend; the number of calls follows from it.")] = None,
    max_calls: MaxCallsOption = None,
    objective: ObjectiveOption = "auto",
    data: DataOption = None,
    teacher_calls: TeacherOption = None,
    features: Features = None,
    reference: Reference = None,
    loss: LossOption = "auto",
    guidance: Guidance = None,
    trust_pickle: TrustPickle = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A schedule file (or peer:FILE) to start from; the result is not worse (`fewstep show --save`).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/MODEL-NFE")] = None,
    around: Around = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples given to the network at once.")] = 64,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find a better sampler with a fixed number of network calls, for this network.

    Hand-crafted times of several solvers, DMN's, Align Your Steps' and planned ones are raced on the same seeds, with
    children of their schedules; from the best of them a sampler is learned by gradient. The best of every part are
    judged again on fresh seeds. --method takes one part alone: grids for times that any host can take. Writes
    schedule.json (the sampler), samples.png (before and after, same seeds), report.html (figures, costs, how to use it)
    and search.json (the record).

    gits, oss and local_error plan the times by dynamic programming on a teacher's trajectories, which all --nfe share;
    local_error looks at the error of the solver's own steps.

    Ctrl-C keeps the best so far. What cost network calls is kept in .cache beside the results, so the same command goes
    on from there, and another --nfe or --solver with the same --out shares it.

    With several --nfe, or --each for several solvers, the data and the table of AYS are made once; each result has a
    folder SOLVER-NFE of its own, and a table sums up.
    """
    from fewstep.cli.asked import Asked
    from fewstep.cli.common import flat

    name = model if guidance is None else with_option(model, f"guidance={guidance:g}")
    name = with_option(name, "trust-pickle") if trust_pickle else name
    asked = Asked(
        name, method, objective, minutes, max_calls, start, strength, end, batch_size, around, quiet or as_json,
        source, features, reference, loss, data, teacher_calls,
    )  # fmt: skip
    nfes, names = _nfes(nfe), flat(solver)
    plain = short_name(model)
    several = each or len(nfes) > 1
    folder = out or Path("runs") / (plain if several else f"{plain}-{nfes[0]}")
    try:
        if several:
            many, text = asked.many(nfes, names, folder, each=each)
            show(many.to_dict(), text, as_json=as_json)
        else:
            found, files = asked.one(nfes[0], names[0] if len(names) == 1 else names or None, folder)
            show(_record(found, files), _text(found, files), as_json=as_json)
    except KeyboardInterrupt as stop:
        kept = f"{folder} holds what was written" if folder.exists() else "nothing was written yet"
        raise Stopped(str(stop) or f"{kept}; start the same command again to go on") from None


def _nfes(values: Sequence[str]) -> list[int]:
    from fewstep.cli.common import flat, whole_numbers

    if flat(values) == ["0"]:
        raise ArgumentError("--nfe 0: give the number of network calls per sample, e.g. --nfe 6")
    return whole_numbers(values, "--nfe")


def _record(found: Found, files: Sequence[Path]) -> dict[str, Any]:
    keep = (
        "model", "nfe", "method", "solver", "origin", "start_origin", "selected_by", "selection", "report", "window",
        "notes",
    )  # fmt: skip
    told = found.to_dict()
    return {k: told[k] for k in keep} | {
        "digest": found.tableau.digest, "calls": found.calls, "improved": found.improved, "files": [*map(str, files)],
    }  # fmt: skip


def _text(found: Found, files: Sequence[Path]) -> str:
    from fewstep.report.found import figure, judge_in_words, page_of
    from fewstep.report.page import verdict

    before, after = figure(found, "before"), figure(found, "after")
    page = page_of(found, samples={})
    lines = [f"{judge_in_words(found)}:"] if after else []
    lines += [f"  found             {with_error(*after):<18} {found.solver}, {found.origin}"] if after else []
    lines += (
        [f"  best hand-crafted {with_error(*before):<18} {found.start_solver}, {found.start_origin}"] if before else []
    )
    lines += [verdict(page.entries[0], page.entries[1], page.gain_error)]
    ordinary = found.window["end"] == "zero" and not found.window["image_to_image"]
    lines += [""] if ordinary else [f"window: {found.window['words']}", ""]
    seconds = sum(stage["seconds"] for stage in found.stages)
    learned = f" and {found.backward:,} backward" if found.backward else ""
    lines.append(f"{found.calls:,} network calls{learned}, {seconds_in_words(seconds)}")
    return "\n".join(lines + [f"  {path}" for path in files])


COMMANDS: Commands = (
    (
        "optimize",
        optimize,
        examples(
            "fewstep optimize mnist --nfe 6",
            "fewstep optimize mnist --nfe 8 --solver auto --minutes 10 --out runs/mnist-8",
            "fewstep optimize problem:grid_8x8 --nfe 5 --method dmn",
            "fewstep optimize python:my_module:make_model --nfe 6",
            "fewstep optimize mnist --nfe 6 --guidance 4",
            "fewstep optimize mnist --method ays --nfe 5,6,8,10 --solver dpmpp_2m,ddim,sde_dpmpp_2m --each",
            "fewstep optimize mnist --nfe 5 --start 2.5",
            "fewstep optimize mnist --nfe 6 --from runs/other/schedule.json",
            "fewstep optimize diffusers:my-sd15 --prompts prompts.txt --guidance 7.5 --nfe 6 --dtype float16",
            "fewstep optimize mnist --nfe 5 --method joint --loss frechet",
            note="Then: fewstep sample, compare, show and export take the folder's schedule.json.",
        ),
    ),
)
