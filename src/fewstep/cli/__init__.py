"""The command line: `fewstep optimize | search | sample | compare | show | export | reproduce | models | ...`.

Nothing heavy is imported before a command needs it, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli import comparing, doctoring, exporting, listing, optimizing, reproducing, sampling, searching, tables
from fewstep.cli.common import Command, examples, paragraphs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "fewstep optimize mnist --nfe 6 --out runs/mnist-6",
        "fewstep compare mnist --nfe 4 6 8 --schedule runs/mnist-6/schedule.json",
        "fewstep sample mnist --schedule runs/mnist-6/schedule.json --out grid.png",
        "fewstep export runs/mnist-6/schedule.json --to comfyui",
        note="fewstep COMMAND --help tells more. Every command takes --json.",
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from fewstep import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Few-step sampling of diffusion and flow models: find the best sampler for your network, save it, run it."""


for module in (optimizing, sampling, comparing, tables, exporting, doctoring, listing):
    for name, function, epilog in module.COMMANDS:
        app.command(name, cls=Command, epilog=epilog, help=paragraphs(function))(function)


app.add_typer(searching.app, name="search")
app.add_typer(reproducing.app, name="reproduce")


def main() -> None:
    """The entry point of the console script."""
    app()
