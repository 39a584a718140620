"""Align Your Steps on sets in the plane: `python -m benchmarks.toys search|score|report|figures|all`.

    search    times for every set, solver and number of calls, on selection samples
    score     they and the hand-crafted times on fresh samples, three sets of seeds
    report    the tables of docs/ays-toys.md, from the scores
    figures   histograms of the samples, docs/assets/tables/toys_*.png

The paper's three grids of Gaussians with exact denoisers, and two sets with the small trained networks that ship. All
results are in one file, each on disk before the next begins; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import toys_figures, toys_tables
from benchmarks.quality_cells import RESULTS, Deadline, work
from benchmarks.toys_cells import Sizes, jobs_of, places, search_all
from benchmarks.toys_sets import MIXTURES, TRAINED, toy
from fewstep.compare import Results


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.toys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phase", choices=["search", "score", "report", "figures", "all"])
    parser.add_argument("--names", nargs="+", choices=[*MIXTURES, *TRAINED], default=[*MIXTURES, *TRAINED])
    parser.add_argument("--minutes", type=float, help="begin nothing new after that many minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS / "toys.jsonl")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    for name, size in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"number of {name} samples or sets")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """One phase, or all of them."""
    sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes._fields})
    deadline, kept, left = Deadline(arguments.minutes), Results(arguments.results), 0
    wanted, phases = places(tuple(arguments.names)), [arguments.phase]
    if arguments.phase == "all":
        phases = ["search", "score", "report", "figures"]
    for name in arguments.names:
        a = toy(name)
        if "search" in phases:
            left += search_all(a, kept, deadline, sizes, wanted)
        if "score" in phases:
            left += work(list(jobs_of(a, kept, sizes, wanted)), kept, deadline)
        if "figures" in phases:
            toys_figures.draw_all(a, kept, sizes, arguments.docs / "assets" / "tables")
    if "report" in phases:
        toys_tables.write(arguments.docs / "ays-toys.md", kept, sizes)
    if left:
        print(f"{left} pieces are left: give the same command again")


if __name__ == "__main__":
    main()
