"""`fewstep models`, `fewstep solvers`, `fewstep times`: what there is to choose from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import AsJson, Commands, examples, guarded, show

if TYPE_CHECKING:
    from fewstep.solvers import Solver
    from fewstep.times import Published

Record = dict[str, Any]


def first_sentence(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring on one line."""
    target = function.func if isinstance(function, partial) else function
    return " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())


def aligned(rows: list[tuple[str, str]], indent: str = "  ") -> str:
    """Two columns; long texts are wrapped into the second."""
    import shutil
    import textwrap

    left = max((len(name) for name, _ in rows), default=0) + 2
    width = max(shutil.get_terminal_size().columns - left - len(indent), 40)
    lines: list[str] = []
    for name, text in rows:
        parts = textwrap.wrap(text, width) or [""]
        lines.append(f"{indent}{name:<{left}}{parts[0]}".rstrip())
        lines += [" " * (left + len(indent)) + part for part in parts[1:]]
    return "\n".join(lines)


@guarded
def models(as_json: AsJson = False) -> None:
    """List the models that a name can stand for."""
    from fewstep import problems
    from fewstep.models import NOISES

    described = [(f"problem:{name}", first_sentence(make)) for name, make in problems.NAMES.items()]
    rows = [
        ("mnist", "The class-conditional digit network that ships (EDM noise, 1 x 28 x 28, labels 0 to 9)."),
        *described,
    ]
    rows.append(("edm:FILE", "A network of EDM (Karras et al. 2022): .safetensors, or its .pkl with --trust-pickle."))
    rows.append(("diffusers:PATH_OR_ID", "A pipeline of diffusers, of a folder or the Hub; needs --prompts FILE."))
    rows.append(("python:MODULE:FACTORY", "Your own: FACTORY() of an importable MODULE returns a fewstep.Denoiser."))
    options = f"mnist?guidance=2, problem:grid_8x8?noise=flow (noise: {', '.join(NOISES)})"
    several = "edm:FILE?device=cuda:0,cuda:1 (every batch is shared out)"
    text = f"{aligned(rows)}\n\nOptions may follow a name: {options},\n{several}."
    show([{"name": name, "description": description} for name, description in rows], text, as_json=as_json)


@guarded
def solvers(as_json: AsJson = False) -> None:
    """List the named solvers."""
    from fewstep import solvers as known

    kinds = {"deterministic": known.DETERMINISTIC, "stochastic": known.STOCHASTIC}
    records = [_solver(name, make, kind) for kind, group in kinds.items() for name, make in group.items()]
    parts: list[str] = []
    for kind in kinds:
        rows = [(r["name"], r["description"]) for r in records if r["kind"] == kind and not r["variant_of"]]
        variants = [r["name"] for r in records if r["kind"] == kind and r["variant_of"]]
        parts.append(f"{kind}:\n{aligned(rows)}\n  with fixed options: {', '.join(variants)}")
    show(records, "\n\n".join(parts), as_json=as_json)


def _solver(name: str, make: Solver, kind: str) -> Record:
    base = make.func.__name__ if isinstance(make, partial) else ""
    options = {k: str(v) for k, v in make.keywords.items()} if isinstance(make, partial) else {}
    return {"name": name, "kind": kind, "description": first_sentence(make), "variant_of": base, "options": options}


@guarded
def times(as_json: AsJson = False) -> None:
    """List the hand-crafted times and the published lists.

    `sample` and `compare` take them all; a published list keeps the noise levels that it was made for.
    """
    from fewstep import times as known

    grids = [(name, first_sentence(make)) for name, make in known.NAMES.items()]
    aliases = [
        (name, f"= {make.__name__}" if make.__name__ != name else first_sentence(make))
        for name, make in known.ALIASES.items()
    ]
    lists = [(name, _published(entry)) for name, entry in known.PUBLISHED.items()]
    parts = {"grids": grids, "other names": aliases, "published lists": lists}
    text = "\n\n".join(f"{title}:\n{aligned(rows)}" for title, rows in parts.items())
    data = {"grids": dict(grids), "aliases": dict(aliases), "published": dict(lists)}
    show(data, text, as_json=as_json)


def _published(entry: Published) -> str:
    calls = ", ".join(map(str, entry.lists))
    return f"{entry.model} ({calls} calls). {entry.source}"


COMMANDS: Commands = (
    (
        "models",
        models,
        examples("fewstep models", "fewstep sample problem:grid_8x8 --solver dpmpp_2m --nfe 10 --out cloud.png"),
    ),
    ("solvers", solvers, examples("fewstep solvers", "fewstep solvers --json")),
    (
        "times",
        times,
        examples("fewstep times", "fewstep compare diffusers:my-sd15 --prompts p.txt --nfe 10 --times ays-sd15,karras"),
    ),
)
