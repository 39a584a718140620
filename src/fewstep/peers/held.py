"""What a file of another project holds, decoded without running anything in it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.networks.edm_pickle import KNOWN, Held, Inert, Reader, Record
from fewstep.networks.edm_pickle import Refused as PickleRefused
from fewstep.torch_archive import LARGEST, Archive, Kept, explained, read_archive

WHAT = "a result file of a sampler"
LAYERS = ("activation.Sigmoid", "activation.Softmax", "activation.SiLU", "linear.Linear")
"""Layers without weights of their own that predictors carry along; AMED's has linear ones."""


@dataclass(frozen=True)
class Contents:
    """What a file says.

    Attributes:
        path: of the file.
        kind: "pickle" (modules as NVIDIA's persistence pickles them), "archive" (torch.save), "json" or "python".
        held: the outermost object; modules are `Record`s, tensors of an archive `Kept`.
        archive: from which tensors are read.
    """

    path: Path
    kind: str
    held: Any
    archive: Archive | None = None

    def get(self, *keys: str) -> Any:
        """What is under keys of nested dictionaries, tensors as lists; None where there is nothing."""
        found = self.held
        for key in keys:
            found = cast(dict[str, Any], found).get(key) if isinstance(found, dict) else None
        return self.numbers(found)

    def numbers(self, value: Any) -> Any:
        """A value with its tensors as lists of numbers."""
        if self.archive is None:
            return value.tensor.tolist() if isinstance(value, Held) else value
        with explained(self.path, WHAT):
            return self.archive.numbers(value) if isinstance(value, Kept) else self.archive.plain(value)

    def record(self, *names: str) -> Record | None:
        """The first module under one of these names."""
        held = cast(dict[str, Any], self.held) if isinstance(self.held, dict) else dict[str, Any]()
        return next((r for name in names if isinstance(r := held.get(name), Record)), None)

    @property
    def predictor(self) -> Record:
        """The module with the parameters of a snapshot.

        Raises:
            FileFormatError: it has none.
        """
        found = self.record("predictor", "model")
        if found is None:
            raise self.broken("has no predictor")
        return found

    def broken(self, why: str) -> FileFormatError:
        """An error about this file."""
        return FileFormatError(f"{self.path} {why}; get it again, or ask its authors")


def parameters(record: Record, group: str = "_parameters") -> dict[str, Any]:
    """The tensors of a module as lists."""
    held = cast(Mapping[str, Any], record.state.get(group) or {})
    return {name: value.tensor.tolist() for name, value in held.items() if isinstance(value, Held)}


def contents(path: Path) -> Contents:
    """What a file holds, recognised by its first bytes and its name.

    Raises:
        ArgumentError: no such file.
        FileFormatError: damaged, hostile, or none of the known kinds.
    """
    if not path.is_file():
        raise ArgumentError(f"no file {path}: give the result file of another project (.pkl, .pt, .pth, .json or .py)")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise ArgumentError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if head[:2] == b"PK":
        archive = read_archive(path, WHAT)
        return Contents(path, "archive", archive.held, archive)
    readers: dict[str, Callable[[Path], Any]] = {"pickle": _pickle, "json": _json, "python": _python}
    kind = "pickle" if head[:1] == b"\x80" else "python" if path.suffix == ".py" else "json"
    if path.stat().st_size > LARGEST:
        raise FileFormatError(f"{path} is too large for {WHAT}: give the file of the sampler, not of the network")
    return Contents(path, kind, readers[kind](path))


class _Reader(Reader):
    """Names of the predictors beside those of networks; their samplers are functions that nobody calls here."""

    known = KNOWN | {f"torch.nn.modules.{name}": Inert for name in LAYERS}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for a name of the file."""
        if module_name.startswith("solvers") and module_name.isidentifier() and global_name.endswith("_sampler"):
            return type(global_name, (Inert,), {}) if global_name.isidentifier() else Inert
        return super().find_class(module_name, global_name)


def _pickle(path: Path) -> Any:
    with explained(path, WHAT), path.open("rb") as file:
        try:
            return _Reader(file).load()
        except PickleRefused as error:
            raise FileFormatError(
                f"{path} holds {error}, which {WHAT} has no use for; it was not read further. Get the file from its "
                "authors"
            ) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is no pickle, no archive of torch.save and no JSON ({error}): give the result file of another "
            "project"
        ) from error


def _python(path: Path) -> Any:
    """The literals that a module assigns to names, by name; the module is parsed, and never run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = dict[str, Any]()
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = _literal(node.value)
                if isinstance(value, dict):
                    found[node.targets[0].id] = value
        return found
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"{path} cannot be read as Python ({error}): get it again") from error


def _literal(node: ast.expr) -> Any:
    """A literal; `dict(name=...)` counts as one. Anything else is None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {k.arg: _literal(k.value) for k in node.keywords if k.arg is not None}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
