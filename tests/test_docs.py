"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, nothing is left out."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fewstep as fs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
# What a page shows in minutes, a test runs in seconds; nothing else is changed.
SHORTER = {
    'fs.load("mnist")                                   # a real': 'fs.load("problem:gaussian_8x8")  # a real',
    'nfe=6, method="auto", minutes=5': (
        'nfe=2, method="auto", max_calls=6_000, teacher_calls=8, calibration=fs.CalibrationSeeds(16)'
    ),
    'nfe=6, method="auto", minutes=1': 'nfe=2, method="auto", max_calls=6_000, teacher_calls=8',
    "seeds=range(64)": "seeds=range(8)",
    'fs.load("mnist")\nplan': 'fs.load("problem:gaussian_8x8")\nplan',
    "nfes=(3, 4), images=200": "nfes=(3, 4), images=48",
    '"mnist", nfes=range(4, 11), budget=400': '"problem:gaussian", nfes=[3], budget=24, images=[16]',
    "Workers(2)": "Workers(1)",
}


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def in_tmp(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@pytest.mark.parametrize("page", with_blocks("python"), ids=label)
def test_python_blocks_run(page: Path, in_tmp: Path) -> None:
    """The blocks of one page share their names, as a reader's session would."""
    names: dict[str, object] = {"__name__": "__main__"}
    shown = io.StringIO()
    for k, block in enumerate(blocks(page, "python"), 1):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        with contextlib.redirect_stdout(shown):
            exec(compile(block, f"{label(page)} block {k}", "exec"), names)
    assert "False" not in shown.getvalue().splitlines(), "a block printed that a claim of its page does not hold"


def commands() -> list[tuple[str, str]]:
    """Every command line of every shell block, continued lines joined."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                found += [(label(page), part.strip()) for part in line.split("#")[0].split(";") if part.strip()]
    return found


def test_there_are_commands() -> None:
    assert any(command.startswith("fewstep optimize") for _, command in commands())


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_exist(page: str, command: str) -> None:
    """`fewstep` lines are parsed by the program itself, `make` targets and scripts must exist."""
    words = shlex.split(command)
    if words[0] == "fewstep":
        parse(words[1:])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in [w for w in words[1:] if "=" not in w]:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: no target {target} in the Makefile"
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), f"{page}: no script {words[1]}"
    elif words[0] == "python":
        home = ROOT if words[2].startswith("benchmarks.") else ROOT / "src"
        assert (home / words[2].replace(".", "/")).with_suffix(".py").is_file(), f"{page}: no module {words[2]}"
    else:
        assert words[0] in ("pip", "git", "cd"), f"{page}: what is {command!r}?"


def parse(arguments: list[str]) -> None:
    """Parse with the program's own parser, without running anything."""
    import typer

    from fewstep.cli import app

    group = typer.main.get_command(app)
    context = group.make_context("fewstep", list(arguments), resilient_parsing=False)
    words = [*getattr(context, "_protected_args", []), *context.args]  # click keeps the command apart from its options
    _, command, rest = group.resolve_command(context, words)
    assert command is not None
    command.make_context(command.name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = [
        target
        for target in LINK.findall(text)
        if not target.startswith(("http://", "https://", "mailto:")) and not (page.parent / target).exists()
    ]
    assert not broken, f"{label(page)} points at {broken}"


def all_of(folder: str) -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs" / folder).rglob("*.md")))


def test_every_public_name_is_in_the_reference() -> None:
    reference = all_of("api")
    missing = [name for name in fs.__all__ if not name.startswith("_") and not re.search(rf"\b{name}\b", reference)]
    assert not missing, f"docs/api does not mention {missing}"


def test_every_solver_has_its_place_in_the_theory() -> None:
    theory = all_of("theory")
    solvers = [n for n in fs.solvers.__all__ if callable(getattr(fs.solvers, n)) and n in fs.solvers.NAMES]
    missing = [name for name in solvers if not re.search(rf"\b{name}\b", theory)]
    assert not missing, f"docs/theory does not mention {missing}"


def test_every_grid_is_explained() -> None:
    page = (ROOT / "docs" / "theory" / "times.md").read_text(encoding="utf-8")
    missing = [name for name in [*fs.times.NAMES, *fs.times.ALIASES] if f"`{name}`" not in page]
    assert not missing, f"docs/theory/times.md does not explain {missing}"


def test_every_solver_is_cited() -> None:
    times = fs.times.karras(fs.noise.EDM(), 8, end="min")
    uncited = [name for name, solver in fs.solvers.NAMES.items() if name != "restart" and not solver(times).citation]
    assert not uncited


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_texts_are_current(figures: ModuleType) -> None:
    """What the command-line page shows is what the program prints; `make figures` writes it anew."""
    old = [c for c in figures.COMMANDS if figures.help_file(c).read_text("utf-8") != figures.help_text(c)]
    assert not old, f"run `make figures`: the help of {old} changed"


def test_printed_tables_are_current(figures: ModuleType) -> None:
    """The tables on the theory pages are those that the code makes today (but for the rounding in the last line)."""
    old = [
        name
        for name in figures.TABLES
        if (figures.OUT / f"{name}.txt").read_text("utf-8").splitlines()[:-1]
        != str(figures.table_of(name)).splitlines()[:-1]
    ]
    assert not old, f"run `make figures`: the tables of {old} changed"
