"""What all commands share: errors without tracebacks, `--json`, lists in options, seeds, schedule files."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand

from fewstep.errors import ArgumentError, DenoiserError, FewstepError

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.tableau import Tableau

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
MANY = {"--nfe", "--schedule", "--solver", "--times"}
"""Options that take a list: `--nfe 4 6 8`, `--nfe 4,6,8` and `--nfe 4 --nfe 6 --nfe 8` are the same."""
PEER = "peer:"
FOREIGN = (".pkl", ".pt", ".pth", ".ckpt", ".py")

F = TypeVar("F", bound=Callable[..., None])
Commands = tuple[tuple[str, Callable[..., None], str], ...]
"""(name, function, epilog) of the commands of one file."""

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="mnist, problem:NAME, edm:FILE, diffusers:PATH_OR_ID or python:MODULE:FACTORY; see `fewstep models`.",
    ),
]
ScheduleFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", show_default=False, help="A schedule file, the folder of `optimize`, or peer:FILE."),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", "-g", help="Classifier-free guidance weight; 1 is none.", show_default="1; a pipeline's own"
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Read the .pkl of an edm: model. A pickle can carry code; none is run, but say that you know its origin.",
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Judge by these: python:MODULE:FACTORY returns images [B, C, H, W] in [-1, 1] -> [B, d]."
    ),
]
Reference = Annotated[
    Path | None, typer.Option(metavar="STATS", help="Statistics of --features on real images: npz with mu and sigma.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


class Stopped(Exception):
    """Ctrl-C in long work; says what was saved and how to go on."""


class Command(TyperCommand):
    """A command whose list options also take their values one after another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join `--nfe 4 6 8` to `--nfe 4,6,8` before the ordinary parsing."""
        return super().parse_args(ctx, joined(args))


def joined(args: Sequence[str]) -> list[str]:
    """Arguments with the values of list options joined by commas.

    With the MODEL in front, everything up to the next option is a value. Without it, only what is of the same kind as
    the value before (a number, a .json file), so that a MODEL behind is not taken for one.
    """
    model_first = bool(args) and not args[0].startswith("-")
    out: list[str] = []
    gathering = False
    for arg in args:
        if arg.startswith("-"):
            gathering = False
        elif gathering and (model_first or _kind(out[-1]) == _kind(arg) != ""):
            out[-1] += f",{arg}"
            continue
        elif out and out[-1] in MANY:
            gathering = True
        out.append(arg)
    return out


def _kind(values: str) -> str:
    last = values.split(",")[-1]
    return "number" if last.isdigit() else "file" if last.endswith(".json") else ""


def flat(values: Sequence[str] | None) -> list[str]:
    """The entries of repeated or comma-separated options."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def whole_numbers(values: Sequence[str] | None, option: str) -> list[int]:
    """Positive integers from a list option.

    Raises:
        ArgumentError: anything else.
    """
    found: list[int] = []
    for text in flat(values):
        if not text.isdigit() or int(text) < 1:
            raise ArgumentError(f"{option} {text}: give whole numbers from 1, as in {option} 4 6 8")
        found.append(int(text))
    return list(dict.fromkeys(found))


def seeds_of(text: str) -> list[int]:
    """`0-63`, `5`, `0-9,20-29` as integers.

    Raises:
        ArgumentError: anything else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ArgumentError(f"--seeds {text}: write 0-63 for a range, 5 for one seed, or both: 0-9,42")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def options_of(values: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` pairs; values are read as JSON where they are, else as text."""
    found: dict[str, Any] = {}
    for text in values or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ArgumentError(f"--option {text}: write NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def load_table(path: Path, network: Denoiser | None = None) -> Tableau:
    """The table of a file, or of `schedule.json` in a folder; remarks when it was found for another than `network`.

    `peer:FILE?OPTIONS` is a file of another project (see `fewstep.peers.names`), read for the network's noise schedule.

    Raises:
        ArgumentError: nothing there.
        FileFormatError, TableauError: not a sound schedule file.
    """
    from fewstep.tableau import Tableau

    if str(path).startswith(PEER):
        from fewstep.peers.names import named

        return named(str(path), None if network is None else network.noise)
    place = path / "schedule.json" if path.is_dir() else path
    if not place.is_file():
        raise ArgumentError(f"{place} does not exist: give a file that `fewstep optimize` or Tableau.save wrote")
    if place.suffix in FOREIGN:
        raise ArgumentError(f"{place} is no schedule file: if another project wrote it, read it as {PEER}{path}")
    try:
        table = Tableau.load(place)
    except OSError as error:
        raise ArgumentError(f"cannot read {place}: {error.strerror}; check its permissions") from error
    known = table.meta.get("fingerprint")
    if network is not None and known is not None and known != network.fingerprint:
        other = table.meta.get("model", known)
        say(f"note: {place} was found for another network ({other}): its quality here is unknown")
    return table


def model_option(name: str, guidance: float | None, trust_pickle: bool = False) -> Any:
    """The model of a command's arguments."""
    from fewstep.models import load

    return load(name, guidance=guidance, trust_pickle=trust_pickle)


def with_option(name: str, option: str) -> str:
    """A model's name with one more option behind it."""
    return f"{name}{'&' if '?' in name else '?'}{option}"


def show(data: Any, text: str, *, as_json: bool) -> None:
    """The result on standard output: `data` as JSON, or `text`."""
    typer.echo(json.dumps(_finite(data), indent=2, default=str, allow_nan=False) if as_json else text)


def _finite(data: Any) -> Any:
    """The same with null for numbers that JSON cannot say."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def say(text: str) -> None:
    """A remark on standard error, which leaves standard output to results."""
    typer.echo(text, err=True)


def paragraphs(function: Callable[..., None]) -> str:
    """The help text of a command: its docstring, each paragraph on one line, to be wrapped by the terminal's width."""
    text = inspect.cleandoc(function.__doc__ or "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def examples(*lines: str, note: str = "") -> str:
    """The end of a help page: one example a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + (f"\n\n{note}" if note else "")


def guarded(function: F) -> F:
    """A command that ends in one clear message: 2 for bad input, 1 for a failure, 130 after Ctrl-C."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            function(*args, **kwargs)
        except FewstepError as error:
            _end(type(error).__name__, str(error), FAILED if isinstance(error, DenoiserError) else BAD_INPUT, as_json)
        except Stopped as stop:
            _end("Interrupted", str(stop), INTERRUPTED, as_json)
        except KeyboardInterrupt:
            _end("Interrupted", "stopped; nothing was written. Start the same command again", INTERRUPTED, as_json)

    return run  # type: ignore[return-value]


def _end(kind: str, message: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"error": {"kind": kind, "message": message}}, indent=2))
    else:
        head = typer.style(
            "error:" if code != INTERRUPTED else "stopped:", fg="red" if code != INTERRUPTED else "yellow", bold=True
        )
        sys.stdout.flush()
        typer.echo(f"{head} {message}", err=True)
    raise typer.Exit(code)
