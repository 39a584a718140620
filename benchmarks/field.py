"""The field's table on any network: `python -m benchmarks.field run MODEL`, `python -m benchmarks.field report FOLDER`.

    python -m benchmarks.field run problem:grid_8x8 --nfe 3 4 5 6 8 10 --images 2000
    python -m benchmarks.field run mnist --methods hand gits oss ld3 auto --nfe 4 6 --seeds 0 1 2 --max-calls 80000
    python -m benchmarks.field run edm:cifar10.safetensors --features python:my:inception --reference stats.npz

Every method at every number of calls: what its search cost (teacher calls, search calls, backward calls, seconds,
memory), and on fresh seeds the distance to the data, its excess over the teacher's, the distance to the teacher's
samples, the paired error, precision and recall, with standard errors. Methods are solvers (dpmpp_2m), solvers on times
(ipndm_4:karras, ipndm_4:karras:min), methods of `fewstep.optimize` (gits, ld3:ipndm, auto), s3, and the groups hand,
published, planned, gradient, all.

Each cell is one line of FOLDER/cells.jsonl, written when it is whole; the same command goes on where it was stopped.
With another --max-calls or --minutes the searches are made anew in the same folder, and the figure of quality against
cost shows both. `run` writes field.md and both figures at its end and when it is stopped, `report` at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep import inputs, models
from fewstep.clean import clean_images
from fewstep.cli.reproducing_ays import judge_of
from fewstep.errors import FewstepError
from fewstep.progress import shown
from fewstep.reproduce import field_page
from fewstep.reproduce.field_methods import IMAGES, Effort
from fewstep.reproduce.field_table import NFES, FieldSettings, FieldTable
from fewstep.search.teacher import CALLS


def run(arguments: argparse.Namespace) -> int:
    """Make what is missing, then the page."""
    a = arguments
    model = models.load(a.model, device=a.device)
    place = str(model.device)
    judge = inputs.judge_of(model) if a.features is None else judge_of(None, a.features, a.reference, place)
    effort = Effort(
        solver=a.solver, objective=a.objective, minutes=a.minutes, max_calls=a.max_calls, teacher_calls=a.teacher,
        calibration=a.calibration, images=tuple(a.selection), batch=a.batch, loss=a.loss,
    )  # fmt: skip
    settings = FieldSettings(a.methods, a.nfe, a.seeds, effort, a.images, a.neighbours)
    data = None if a.data is None else clean_images(a.data, model, a.clean)
    folder = a.out or Path("runs/field") / a.model.replace(":", "-").replace("/", "-")
    with shown(quiet=a.quiet) as progress:
        table = FieldTable(model, a.model, folder, settings, judge, data, progress)
        try:
            files = field_page.filled(table)
        except KeyboardInterrupt:
            print(f"stopped; {folder} holds what was finished: the same command goes on", file=sys.stderr)
            return 130
    for cell, why in table.failed.items():
        print(f"left: {cell}: {why}", file=sys.stderr)
    show(files)
    return min(len(table.failed), 1)


def show(files: Sequence[Path]) -> None:
    """Print the first table of the page."""
    print(files[0].read_text().split("\n![")[0])
    print("written:", *files, file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks.field", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="make what is missing")
    one.add_argument("model", help="mnist, problem:NAME, edm:FILE, python:MODULE:FACTORY, diffusers:PATH?prompts=FILE")
    one.add_argument("--methods", nargs="+", default=["all"], help="names and groups; default: all")
    one.add_argument("--nfe", nargs="+", type=int, default=list(NFES), help="network calls per sample")
    one.add_argument("--seeds", nargs="+", type=int, default=[0], help="repetitions")
    one.add_argument("--images", type=int, default=5000, help="behind each score")
    one.add_argument("--neighbours", type=int, default=5000, help="of them, for precision and recall, at most")
    one.add_argument("--minutes", type=float, help="for each search")
    one.add_argument("--max-calls", type=int, help="network calls for each search; default: each method's own")
    one.add_argument("--solver", default="auto", help="of searches that take one; auto: several compete")
    one.add_argument("--objective", default="auto", help="what selects: auto, faithful, matched, frechet or teacher")
    one.add_argument("--loss", default="auto", help="what methods that learn lower, e.g. l2, lpips; auto: their own")
    one.add_argument(
        "--selection", nargs="+", type=int, default=list(IMAGES), help="images of S3's evaluations, rising"
    )
    one.add_argument("--teacher", type=int, default=CALLS, help="network calls of the teacher")
    one.add_argument("--calibration", type=int, help="seeds that a search learns from; default: by its budget")
    one.add_argument("--features", help="python:MODULE:FACTORY, with --reference: the judge of a network of your own")
    one.add_argument("--reference", type=Path, help="feature statistics of the data: npz with mu and sigma")
    one.add_argument("--data", type=Path, help="clean images: a folder, a zip, or an npz of uint8 [N, H, W, C]")
    one.add_argument("--clean", type=int, default=5000, help="of them, at most")
    one.add_argument("--device", help="where the network runs; default: its own")
    one.add_argument("--batch", type=int, default=250, help="images at a time")
    one.add_argument("--threads", type=int, help="of the processor")
    one.add_argument("--out", type=Path, help="folder; default: runs/field/MODEL")
    one.add_argument("--quiet", action="store_true", help="no progress")
    two = commands.add_parser("report", help="write the page and the figures from what there is")
    two.add_argument("folder", type=Path)
    return whole


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 where the table is whole, 1 where cells are left, 2 for bad input, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "report":
            show(field_page.write(arguments.folder))
            return 0
        if (arguments.features is None) != (arguments.reference is None):
            parser().error("--features and --reference belong together")
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        return run(arguments)
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
