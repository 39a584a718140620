"""Files of other projects by name, as command lines write them: `peer:FILE?OPTION=VALUE&OPTION=VALUE`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fewstep.errors import ArgumentError
from fewstep.models import NOISES
from fewstep.noise import NoiseSchedule
from fewstep.peers import from_peer
from fewstep.tableau import Tableau

PREFIX = "peer:"


def named(name: str, noise: NoiseSchedule | None = None, options: Mapping[str, Any] | None = None) -> Tableau:
    """The table of a file of another project.

    Args:
        name: `peer:FILE`, with options of `fewstep.from_peer` behind a question mark:
            `peer:best_v2.pt?solver=uni_pc&order=3&variant=bh1&noise=sd`.
        noise: the network's, unless the name has one.
        options: more options; the name's win.

    Raises:
        ArgumentError, FileFormatError: as `fewstep.from_peer`; an unknown noise schedule.
    """
    place, _, query = name.removeprefix(PREFIX).partition("?")
    if not place:
        raise ArgumentError(f"{name!r} names no file: write peer:FILE")
    said = dict(options or {}) | dict(_option(part) for part in query.split("&") if part)
    wanted = said.pop("noise", None)
    if wanted is not None and wanted not in NOISES:
        raise ArgumentError(f"noise={wanted} in {name!r}: choose one of {', '.join(NOISES)}")
    return from_peer(Path(place), NOISES[wanted]() if wanted is not None else noise, **said)


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        return key, True
    try:
        return key, json.loads(unquote(value))
    except ValueError:
        return key, unquote(value)
