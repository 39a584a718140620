"""`fewstep show`: look at a schedule file, a foreign sampler, or the result of another project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    PEER,
    AsJson,
    Commands,
    examples,
    guarded,
    load_table,
    options_of,
    say,
)
from fewstep.cli.common import show as put
from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau


@guarded
def show(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", show_default=False, help="A schedule file, the folder of `optimize`, or peer:FILE."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="A foreign sampler instead: diffusers:CLASS, k_diffusion:FUNCTION, python:MODULE:FUNCTION, peer:FILE.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the foreign sampler.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Options of the foreign sampler.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="scheduler_config.json, or the folder of a pipeline, for diffusers:CLASS.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Noise schedule of the network: edm, vp, cosine, flow or sd.", show_default="own")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare row by row with another file, or foreign sampler of the same steps.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the table to this schedule file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table into this .png or .svg file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a sampler on one screen: where its states are and what each is mixed from.

    With --from, any scheduler of diffusers, sampler of k-diffusion or function of yours is read as a table, exactly;
    --save makes a schedule file of it, for export, compare or `optimize --from`.

    peer:FILE reads what another project saved: DyWeight's and EPD's snapshots, AdaSDE's, GAS's checkpoints,
    NeuralSolver's tables, LD3's times, USF's schedules. Nothing in it is executed. What the file does not hold is asked
    for: --noise, and --option solver=uni_pc (or behind the name: 'peer:FILE?solver=uni_pc&noise=sd', as every command
    takes it).

    `--json` prints the whole record: times, weights, decisions, and how it was found.
    """
    read = _Reader(steps, option, config, noise)
    table = read.one(file, source)
    if plot is not None:
        say(f"drawn: {_drawn(table, plot)}")
    if save is not None:
        table.save(save)
        say(f"written: {save}")
    if against is not None:
        from fewstep.against import compared

        found = compared(table, read(against))
        put(found.to_dict(), str(found), as_json=as_json)
        return
    put(table.to_dict() | {"digest": table.digest}, str(table), as_json=as_json)


class _Reader:
    """Tables by file or foreign name; the foreign ones share steps, options and noise."""

    def __init__(self, steps: int | None, option: list[str] | None, config: Path | None, noise: str | None) -> None:
        self._steps, self._config = steps, config
        self._options = {name: _numbers(value) for name, value in options_of(option).items()}
        self._noise = _noise(noise)

    def one(self, file: str | None, source: str | None) -> Tableau:
        """The table of exactly one of the two."""
        if (file is None) == (source is None):
            raise ArgumentError("give a schedule FILE, or a foreign sampler with --from: one of them")
        if source is None and not str(file).startswith(PEER):
            used = {"--steps": self._steps, "--config": self._config, "--noise": self._noise}
            wrong = [name for name, value in used.items() if value is not None]
            if wrong or self._options:
                raise ArgumentError(f"{', '.join(wrong or ['--option'])} belongs to --from, and there is none")
        return self(source if source is not None else str(file))

    def __call__(self, name: str) -> Tableau:
        from fewstep.adapters.foreign import foreign, is_foreign

        if name.startswith(PEER):
            return self._peer(name)
        if is_foreign(name):
            return foreign(name, self._steps, options=self._options, config=self._config, noise=self._noise)
        return load_table(Path(name))

    def _peer(self, name: str) -> Tableau:
        from fewstep.peers.names import named

        if self._config is not None:
            raise ArgumentError(f"--config is for diffusers: schedulers, and {name} is none: leave it out")
        steps = {} if self._steps is None else {"steps": self._steps}
        return named(name, self._noise, self._options | steps)


def _numbers(value: Any) -> Any:
    """`14.6,3,0` as numbers; anything else as it is."""
    try:
        return [float(part) for part in value.split(",")] if isinstance(value, str) and "," in value else value
    except ValueError:
        return value


def _noise(name: str | None) -> NoiseSchedule | None:
    if name is None:
        return None
    from fewstep.models import NOISES

    if name not in NOISES:
        raise ArgumentError(f"--noise {name}: choose one of {', '.join(NOISES)}")
    return NOISES[name]()


def _drawn(table: Tableau, plot: Path) -> Path:
    if plot.suffix.lower() not in (".png", ".svg"):
        raise ArgumentError(f"--plot {plot}: end it in .png or .svg")
    from fewstep.files import atomic_write_bytes
    from fewstep.report.figures import tableau_figure
    from fewstep.report.style import png_of, svg

    figure = tableau_figure(table)
    return atomic_write_bytes(plot, png_of(figure) if plot.suffix.lower() == ".png" else svg(figure).encode())


COMMANDS: Commands = (
    (
        "show",
        show,
        examples(
            "fewstep show runs/mnist-6/schedule.json",
            "fewstep show runs/mnist-6 --plot table.png",
            "fewstep show --from diffusers:UniPCMultistepScheduler --steps 8 --option use_karras_sigmas=true",
            "fewstep show --from k_diffusion:sample_dpmpp_2m --steps 6 --noise sd --save start.json",
            "fewstep show runs/mnist-6 --against other.json",
            "fewstep show peer:network-snapshot-000010.pkl --save dyweight.json",
            "fewstep show peer:best_v2.pt --option solver=uni_pc --option order=3 --option variant=bh1",
        ),
    ),
)
