"""The house: how long a file or a function may be, who may import what, what a start of the program may cost."""

import ast
import functools
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "fewstep"
FILES = sorted(SRC.rglob("*.py"))
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
# Files that may exceed the limit: the one that is copied to the Hub, where it must be a single file.
ALLOWED_LONGER = frozenset({"adapters/hub/fewstep_scheduler.py"})

# Heavy or optional packages, and the only places that may import them at all.
HOMES = {
    "diffusers": ("adapters/", "diffusers.py"),
    "ray": ("study/",),
    "matplotlib": ("report/",),
    "torch_fidelity": ("metrics/",),
    "typer": ("cli", "commands"),
    "rich": ("cli", "commands", "progress.py"),
    "scipy": ("search/", "metrics/", "times", "phi.py", "problems", "trace"),
}
# ... and of these, the ones that must not load with the file that imports them, but inside a function.
LAZY = ("diffusers", "ray", "matplotlib", "torch_fidelity", "scipy", "rich")
# Files that nobody imports before they are needed (lazily loaded as a whole) may import at the top.
LOADED_LATE = ("report/", "adapters/hub/", "diffusers.py")


def name(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _targets(node: ast.stmt, path: Path) -> Iterator[str]:
    """Dotted names that one import statement asks for; for ours, the most exact module that exists."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        base = f"{base}.{node.module}".strip(".") if node.module else base
        yield from (full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names)


@functools.cache
def imports(path: Path, *, at_load: bool) -> set[str]:
    """What a file imports: when it is loaded (the top level only), or anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.stmt) and _is_type_checking(node):
                continue
            if at_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found.update(_targets(node, path))
            waiting.append(node)
    return found


def find_loop(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a directed graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if loop := visit(other, [*path, node]):
                return loop
        done.add(node)
        return []

    return next((loop for start in sorted(graph) if (loop := visit(start, []))), [])


def test_files_are_short() -> None:
    lengths = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    too_long = {k: n for k, n in lengths.items() if n > LONGEST_FILE and k not in ALLOWED_LONGER}
    assert not too_long, f"files over {LONGEST_FILE} lines: {too_long}"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it is useful."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def test_functions_are_short() -> None:
    too_long = [
        f"{name(path)}:{node.lineno} {node.name} {length(node)}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length(node) > LONGEST_FUNCTION
    ]
    assert not too_long, f"functions over {LONGEST_FUNCTION} lines: {too_long}"


def test_repeated_lines_are_few() -> None:
    """Under 2 % of code lines stand in a run of six equal lines that stands again elsewhere."""
    window = 6
    texts = {}
    for path in FILES:
        docstrings = {
            line
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        texts[path] = [t for k, line in lines if (t := line.strip()) and not t.startswith("#") and k not in docstrings]
    runs = Counter(tuple(t[k : k + window]) for t in texts.values() for k in range(len(t) - window + 1))
    repeated, where = 0, []
    for path, t in texts.items():
        marked = {
            k + d for k in range(len(t) - window + 1) if runs[tuple(t[k : k + window])] > 1 for d in range(window)
        }
        repeated += len(marked)
        where += [f"{name(path)}: {t[min(marked)]}"] if marked else []
    total = sum(map(len, texts.values()))
    assert repeated <= 0.02 * total, f"{repeated} of {total} code lines are repeated: {where}"


def test_no_import_loop_at_load() -> None:
    graph = {m: {i for i in imports(p, at_load=True) if i in MODULES and i != m} for m, p in MODULES.items()}
    assert not (loop := find_loop(graph)), " -> ".join(loop)


@pytest.mark.parametrize("package", sorted(HOMES))
def test_heavy_packages_have_one_home(package: str) -> None:
    guests = [
        name(p)
        for p in FILES
        if any(i.split(".")[0] == package for i in imports(p, at_load=False)) and not name(p).startswith(HOMES[package])
    ]
    assert not guests, f"{package} is imported in {guests}; its home is {HOMES[package]}"


@pytest.mark.parametrize("package", LAZY)
def test_heavy_packages_are_imported_inside_functions(package: str) -> None:
    eager = [
        name(p)
        for p in FILES
        if not name(p).startswith(LOADED_LATE) and any(i.split(".")[0] == package for i in imports(p, at_load=True))
    ]
    assert not eager, f"{package} loads together with {eager}; import it where it is used"


def _loaded_by(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('|'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {module.split(".")[0] for module in out.splitlines()[-1].split("|")}


def test_import_is_light() -> None:
    """Reading the public face must cost nothing, whatever is installed beside it."""
    heavy = {"torch", *LAZY, "typer"} & _loaded_by("import fewstep")
    assert not heavy, f"`import fewstep` loads {sorted(heavy)}"


def test_help_does_not_load_torch() -> None:
    code = (
        "sys.argv = ['fewstep', '--help']\nfrom fewstep.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass"
    )
    heavy = {"torch", "scipy", "matplotlib", "numpy", "diffusers"} & _loaded_by(code)
    assert not heavy, f"`fewstep --help` loads {sorted(heavy)}"


def test_public_names_resolve_and_are_documented() -> None:
    import fewstep

    undocumented = [n for n in fewstep.__all__ if not n.startswith("__") and not (getattr(fewstep, n).__doc__ or "")]
    assert not undocumented, f"public names without a docstring: {undocumented}"


def test_checked_paths_exist() -> None:
    """A type checker pointed at a folder that is not there checks nothing, in silence."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    for path in [*tools["pyright"]["include"], *tools["pytest"]["ini_options"]["testpaths"]]:
        assert (ROOT / path).is_dir(), f"pyproject names {path}, which does not exist"
    assert tools["pyright"]["typeCheckingMode"] == "strict"
    for package in tools["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package).is_dir()


def test_pinned_torch_stays_pinned() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    assert pins["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio"} & set(pins), "these would choose a torch of their own"
