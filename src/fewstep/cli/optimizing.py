"""`fewstep optimize`: find better times for a network; writes the schedule, a picture and a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Guidance,
    ModelName,
    Quiet,
    Stopped,
    TrustPickle,
    examples,
    guarded,
    show,
    with_option,
)
from fewstep.errors import ArgumentError
from fewstep.words import seconds_in_words, with_error

if TYPE_CHECKING:
    from fewstep.found import Found


@guarded
def optimize(
    model: ModelName,
    nfe: Annotated[int, typer.Option(help="Network calls per sample of the sampler to find.")],
    method: Annotated[
        str, typer.Option(help="dmn (no network calls), ays, or auto (both, from every start).")
    ] = "auto",
    solver: Annotated[str, typer.Option(help="A named solver (`fewstep solvers`), or auto for several.")] = "dpmpp_2m",
    minutes: Annotated[float | None, typer.Option(help="Time to spend; the number of calls follows from it.")] = None,
    max_calls: Annotated[
        int | None, typer.Option(help="Network calls to spend in all.", show_default="13,000 for each of --nfe")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What selects: frechet, teacher, or auto (frechet where features are known).")
    ] = "auto",
    guidance: Guidance = 1.0,
    trust_pickle: TrustPickle = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/MODEL-NFE")] = None,
    around: Annotated[
        bool,
        typer.Option(
            "--around/--no-around", help="Score the hand-crafted times at other --nfe too, for the report's chart."
        ),
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples given to the network at once.")] = 64,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find a better sampler with a fixed number of network calls, for this network.

    Hand-crafted times, DMN's and Align Your Steps' are raced on the same seeds, and the winner is judged again on fresh
    ones, beside the best hand-crafted times. Writes schedule.json (the sampler), samples.png (before and after, same
    seeds), report.html (figures, costs, how to use it) and search.json (the record).

    Ctrl-C keeps the best so far. What cost network calls is kept in .cache beside the results, so the same command goes
    on from there, and another --nfe or --solver with the same --out shares it.
    """
    from fewstep.cli.delivery import Delivery, own_calls
    from fewstep.optimizing import optimize as search
    from fewstep.progress import shown
    from fewstep.search.plan import default_calls

    name = model if guidance == 1 else with_option(model, f"guidance={guidance:g}")
    name = with_option(name, "trust-pickle") if trust_pickle else name
    folder = out or Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', model).strip('-')}-{nfe}"
    own = own_calls(nfe, around)
    calls = max_calls
    if nfe >= 1 and (max_calls is not None or minutes is None):
        calls = (default_calls(nfe) if max_calls is None else max_calls) - own
        if calls < 1:
            raise ArgumentError(f"--max-calls {max_calls}: the picture and the chart alone take {own}; give more calls")
    try:
        with shown(quiet=quiet or as_json) as report:
            found = search(
                name, nfe, method, solver=solver, minutes=minutes, max_calls=calls, objective=objective, out=folder,
                batch_size=batch_size, progress=report,
            )  # fmt: skip
            files = Delivery(found, name, folder, batch_size, report).write(around=around)
    except ArgumentError as error:
        if max_calls is None or f"max_calls={calls}" not in str(error):
            raise
        raise ArgumentError(
            f"--max-calls {max_calls}: the picture and the chart take {own} of them, and {error}"
        ) from None
    except KeyboardInterrupt as stop:
        raise Stopped(str(stop) or f"{folder} holds what was written; start the same command again to go on") from None
    show(_record(found, files), _text(found, files), as_json=as_json)


def _record(found: Found, files: Sequence[Path]) -> dict[str, Any]:
    keep = ("model", "nfe", "method", "solver", "origin", "start_origin", "selected_by", "selection", "report", "notes")
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
    lines += [f"  best hand-crafted {with_error(*before):<18} {found.solver}, {found.start_origin}"] if before else []
    lines += [verdict(page.entries[0], page.entries[1], page.gain_error), ""]
    seconds = sum(stage["seconds"] for stage in found.stages)
    lines.append(f"{found.calls:,} network calls, {seconds_in_words(seconds)}")
    return "\n".join(lines + [f"  {path}" for path in files])


COMMANDS: Commands = (
    (
        "optimize",
        optimize,
        examples(
            "fewstep optimize mnist --nfe 6",
            "fewstep optimize mnist --nfe 8 --solver auto --minutes 10 --out runs/mnist-8",
            "fewstep optimize problem:grid_8x8 --nfe 5 --method dmn",
            "fewstep optimize python:my_module:make_model --nfe 6 --guidance 4",
            note="Then: fewstep sample, compare, show and export take the folder's schedule.json.",
        ),
    ),
)
