"""`fewstep search start | resume | status | front | report`: whole solver schedules, in a study that survives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    AsJson,
    Command,
    Features,
    Guidance,
    ModelName,
    Quiet,
    Reference,
    Stopped,
    examples,
    flat,
    guarded,
    load_table,
    options_of,
    paragraphs,
    show,
    whole_numbers,
)  # fmt: skip
from fewstep.cli.pipelines import with_pipeline_options
from fewstep.cli.search_reporting import report
from fewstep.errors import ArgumentError
from fewstep.words import seconds_in_words, with_error

if TYPE_CHECKING:
    from fewstep.searching import Search, Workers

app = typer.Typer(
    no_args_is_help=True,
    help="Search whole solver schedules, every strategy at every step, as a study in one file that survives anything.",
    epilog=examples(
        "fewstep search start mnist --nfe 4-10 --budget 400 --out study.sqlite",
        "fewstep search resume study.sqlite",
        "fewstep search status study.sqlite",
        "fewstep search front study.sqlite --save schedules",
        "fewstep search report study.sqlite --out report",
    ),
)

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The file of the study.")]
Count = Annotated[int, typer.Option("--workers", "-w", min=1, help="Evaluations at the same time.")]
PoolName = Annotated[
    str, typer.Option("--pool", help="serial (this process), processes, ray; auto: one of the first two.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of each worker's network.", show_default="cores / workers")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds that an evaluation may take; then its worker is replaced.")
]
Address = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster (`auto`: this machine's).")
]
Gpus = Annotated[float, typer.Option(min=0.0, help="GPUs of each Ray worker; a fraction shares one.")]


def workers_of(
    count: int, pool: str, threads: int | None, timeout: float | None, address: str | None, gpus: float
) -> Workers:
    """Where evaluations run, from the options."""
    from fewstep.searching import Workers

    return Workers(count, "ray" if address is not None else pool, threads, timeout, address, gpus=gpus)


@guarded
@with_pipeline_options
def start(
    model: ModelName,
    nfe: Annotated[list[str], typer.Option(help="Network calls that are searched together: 5, 4-10 or 5,8.")],
    out: Annotated[Path, typer.Option(help="File of the study.")],
    budget: Annotated[int, typer.Option(min=1, help="Schedules to be evaluated in all.")] = 400,
    proposer: Annotated[str, typer.Option(help="s3, evolution, random, tpe, or python:MODULE:FUNCTION.")] = "s3",
    objective: Annotated[
        str,
        typer.Option(
            help="What selects: controlled (distance to the data, a teacher's samples as control variates), frechet "
            "(the plain one), matched (to the teacher's samples, as sets), faithful (the same in features and in the "
            "samples), teacher (one by one), python:MODULE:FUNCTION (images -> [B]); auto: controlled where features "
            "are known and there are four images for each, faithful where there are fewer, else matched."
        ),
    ] = "auto",
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images of an evaluation; 64,256: few first, more for the best third.", show_default="256"),
    ] = None,
    fresh: Annotated[
        int | None, typer.Option(min=0, help="Images for the winners on fresh seeds.", show_default="4 x --images")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Options of the proposer.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the proposals.")] = 0,
    offset: Annotated[int, typer.Option(min=0, help="Skip this many seeds of images: an independent repetition.")] = 0,
    features: Features = None,
    reference: Reference = None,
    guidance: Guidance = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A schedule file to try first: its decisions, or its times.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of the network (EMS.save): steps may take DPM-Solver-v3's basis too."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images given to the network at once.")] = 64,
    population: Annotated[int, typer.Option(min=2, help="Samples that controlled knows its teacher by.")] = 10_000,
    workers: Count = 1,
    pool: PoolName = "auto",
    threads: Threads = None,
    timeout: Timeout = None,
    ray: Address = None,
    gpus: Gpus = 0.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search the solver schedules of a network: times, orders, bases, correctors, each step on its own.

    One search covers all of --nfe and gives a front: the best schedule for each number of network calls. The winners
    are scored again on seeds that never selected, and both figures are shown.

    Every trial is on the disk soon after it is finished: after Ctrl-C or a crash `resume` goes on as if none had been.
    """
    from fewstep import searching

    opened = searching.start(
        out, model, nfes=ranges(nfe, "--nfe"), budget=budget, proposer=proposer, options=options_of(option),
        objective=objective, images=whole_numbers(images, "--images") or (256,), fresh=fresh, seed=seed,
        guidance=guidance, batch_size=batch_size, population=population, offset=offset,
        given=None if source is None else load_table(source), statistics=statistics, features=features,
        reference=reference,
    )  # fmt: skip
    _run(opened, workers_of(workers, pool, threads, timeout, ray, gpus), out, quiet, as_json)


@guarded
def resume(
    study: StudyFile,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Schedules to be evaluated in all.", show_default="as started")
    ] = None,
    workers: Count = 1,
    pool: PoolName = "auto",
    threads: Threads = None,
    timeout: Timeout = None,
    ray: Address = None,
    gpus: Gpus = 0.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a study, after Ctrl-C, a crash, or with a higher --budget.

    The model, the metric and the seeds must be those that the study was started with; workers may be others.
    """
    from fewstep import searching

    opened = searching.resume(study, budget=budget)
    _run(opened, workers_of(workers, pool, threads, timeout, ray, gpus), study, quiet, as_json)


def _run(opened: Search, workers: Workers, path: Path, quiet: bool, as_json: bool) -> None:
    from fewstep.progress import shown
    from fewstep.study.reading import read
    from fewstep.study.summary import status as summary

    try:
        with opened, shown(quiet=quiet or as_json) as report:
            opened.run(workers, report)
    except KeyboardInterrupt:
        told = summary(read(path), path)
        raise Stopped(
            f"{told['evaluated']} of {told['budget']} trials are done and kept; go on with: "
            f"fewstep search resume {path}"
        ) from None
    told = summary(read(path), path)
    show(told, _status_text(told), as_json=as_json)


@guarded
def status(study: StudyFile, as_json: AsJson = False) -> None:
    """How a study stands, also while another process runs it: counts, failures, what was learned, the best so far."""
    from fewstep.study.reading import read
    from fewstep.study.summary import status as summary

    told = summary(read(study), study)
    show(told, _status_text(told), as_json=as_json)


@guarded
def front(
    study: StudyFile,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the best schedules there, as nfe-N.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The best schedule for each number of network calls: quality against cost.

    The score that selected it is too good, for it was selected; beside it stand its scores on fresh seeds.
    """
    from fewstep.study.reading import read
    from fewstep.study.summary import front as rows_of

    rows = rows_of(read(study))
    files: list[Path] = []
    if save is not None:
        from fewstep.searching import save_front

        files = save_front(study, save)
    data = {"front": rows, "files": [*map(str, files)]}
    show(data, "\n".join([_front_text(rows), *map(str, files)]), as_json=as_json)


def ranges(values: list[str], option: str) -> list[int]:
    """`4-10`, `5,8` and `4-6,8` as integers.

    Raises:
        ArgumentError: anything else.
    """
    found: list[int] = []
    for text in flat(values):
        first, dash, last = text.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isdigit() for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]):
            raise ArgumentError(f"{option} {text}: write 5, 4-10 or 5,8")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return sorted(set(found))


def _status_text(told: dict[str, Any]) -> str:
    writer = told["writer"]
    state = (
        f"running (process {writer['pid']} on {writer['host']})"
        if writer
        else "finished" if told["finished"] else f"stopped; go on with: fewstep search resume {told['study']}"
    )  # fmt: skip
    lines = [
        f"{told['study']}: {told['model']}, {told['objective']}, {told['proposer']}; {state}",
        f"{told['evaluated']:,} of {told['budget']:,} trials, {told['images']:,} images, "
        f"{seconds_in_words(told['worker_seconds'])} of work",
    ]
    odd = [f"{count} {cause}" for cause, count in told["failures"].items()]
    odd += [f"{told['infinite']} not finite"] if told["infinite"] else []
    odd += [f"{told['retried']} retried"] if told["retried"] else []
    lines += [f"failed: {', '.join(odd)}"] if odd else []
    if told["learned"]:
        last = told["learned"][-1]
        words = ", ".join(f"{key} {_number(value)}" for key, value in last.items())
        lines.append(f"learned {len(told['learned'])} times, last: {words}".replace(" 1 times, last", " once"))
    return "\n".join([*lines, "", _front_text(told["front"])])


def _front_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no trial is finished yet"
    lines = [
        f"{'calls':>5}  {'score':<18} {'fresh, as many':<18} {'fresh, more':<22} {'start':<9} {'trial':>5}  origin"
    ]
    for row in rows:
        fresh = {int(count): told for count, told in row["fresh"].items()}
        same = fresh.pop(row["images"], None)
        more = [f"{with_error(told['score'], told['error'])} ({count})" for count, told in fresh.items()]
        start = "-" if row["start"] is None else f"{row['start']:.4g}"
        score = f"{row['score']:.4g} ({row['images']})"
        again = "-" if same is None else with_error(same["score"], same["error"])
        lines.append(
            f"{row['nfe']:>5}  {score:<18} {again:<18} {''.join(more) or '-':<22} {start:<9} {row['trial']:>5}  "
            f"{row['origin']}"
        )
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COMMANDS = (
    (
        "start",
        start,
        examples(
            "fewstep search start mnist --nfe 4-10 --budget 400 --out study.sqlite",
            "fewstep search start mnist --nfe 5,8 --budget 200 --images 64,256 --workers 2 --out study.sqlite",
            "fewstep search start problem:grid_8x8 --nfe 5 --proposer random --out grid.sqlite",
            "fewstep search start mnist --nfe 8 --ray auto --workers 16 --gpus 0.5 --out study.sqlite",
        ),
    ),
    ("resume", resume, examples("fewstep search resume study.sqlite", "fewstep search resume study.sqlite -w 2")),
    ("status", status, examples("fewstep search status study.sqlite")),
    ("front", front, examples("fewstep search front study.sqlite --save schedules")),
    ("report", report, examples("fewstep search report study.sqlite --out report")),
)  # fmt: skip

for _name, _function, _epilog in COMMANDS:
    app.command(_name, cls=Command, epilog=_epilog, help=paragraphs(_function))(_function)
