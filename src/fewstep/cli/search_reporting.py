"""`fewstep search report`: the page of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.common import AsJson, Quiet, Stopped, guarded, show


@guarded
def report(
    study: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The file of the study.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page.")],
    images: Annotated[
        int | None, typer.Option(min=2, help="Images of each comparison on fresh seeds.", show_default="as --fresh")
    ] = None,
    ablations: Annotated[
        bool,
        typer.Option(help="Set back one component at a time, and evaluate truly: up to seven times a front point."),
    ] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The page of a search: the front, the best so far, what was chosen where, and what each component is worth.

    For each number of network calls the best mixed schedule is compared with the best constant strategy on seeds that
    never selected, and again with one component at a time set back to the constant strategy's. What was measured is
    kept in DIR, so a second page costs nothing.
    """
    from fewstep import search_report
    from fewstep.progress import shown

    try:
        with shown(quiet=quiet or as_json) as progress:
            page = search_report.write(study, out, images=images, ablations=ablations, progress=progress)
    except KeyboardInterrupt:
        raise Stopped(f"{out} keeps what was measured; the same command goes on") from None
    show({"report": str(page)}, str(page), as_json=as_json)
