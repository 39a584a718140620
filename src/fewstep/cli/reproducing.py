"""`fewstep reproduce ays-table5 | usf-cifar10 | cifar10-table | text-to-image`: experiments on your own networks."""

from __future__ import annotations

import typer

from fewstep.cli import reproducing_ays, reproducing_field, reproducing_images, reproducing_usf
from fewstep.cli.common import Command, paragraphs

app = typer.Typer(no_args_is_help=True, help="Run an experiment of a paper on your files. Nothing is downloaded.")

for module in (reproducing_ays, reproducing_usf, reproducing_field, reproducing_images):
    for name, function, epilog in module.COMMANDS:
        app.command(name, cls=Command, epilog=epilog, help=paragraphs(function))(function)
