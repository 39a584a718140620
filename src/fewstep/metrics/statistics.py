"""Mean and covariance of features, gathered a batch at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError

Features = Callable[[Tensor], Tensor]
"""Images `[B, ...]` to feature vectors `[B, d]`."""

SCHEMA = "1"


class Estimate(NamedTuple):
    """A measured number with its standard error."""

    value: float
    standard_error: float


def as_features(features: Tensor, name: str, least: int = 1) -> Tensor:
    """`features` as a float64 CPU matrix `[n, d]`; refuses other shapes, non-finite entries and fewer than `least`
    rows.
    """
    matrix = features.detach().to("cpu", torch.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ArgumentError(
            f"{name} has shape {tuple(matrix.shape)}; give a matrix [samples, features] (flatten images first)"
        )
    if len(matrix) < least:
        raise ArgumentError(f"{name} has {len(matrix)} samples, fewer than the {least} needed here; give more samples")
    if not bool(torch.isfinite(matrix).all()):
        row = int((~torch.isfinite(matrix)).any(dim=1).nonzero()[0])
        raise ArgumentError(f"{name} is not finite in row {row}; check that sample, or leave it out and say so")
    return matrix


def mean_with_error(values: Tensor) -> Estimate:
    """Mean of independent values `[n]` (n >= 2) and its standard error."""
    column = as_features(values.reshape(-1, 1), "values", least=2)[:, 0]
    return Estimate(float(column.mean()), float(column.std()) / math.sqrt(len(column)))


class Statistics:
    """Number, mean `[d]` and covariance `[d, d]` (float64, divided by n - 1) of feature vectors.

    Batches are joined by the pairwise update of Chan, Golub and LeVeque (1979), so the order and size of batches
    change the result only in the last digits, and nothing but one d x d matrix is held.
    `n` is None when it is unknown: a published statistics file holds only the two moments.
    """

    def __init__(self, d: int) -> None:
        if d < 1:
            raise ArgumentError(f"d = {d}: features need at least one dimension")
        self.n: int | None = 0
        self.mean = torch.zeros(d, dtype=torch.float64, device="cpu")
        self._scatter = torch.zeros(d, d, dtype=torch.float64, device="cpu")  # sum of outer products about the mean

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> Statistics:
        """Statistics of one matrix `[n, d]`, or of an iterable of such batches."""
        batches = iter([features] if isinstance(features, Tensor) else features)
        first = next(batches, None)
        if first is None:
            raise ArgumentError("features is empty; give at least one batch")
        result = cls(as_features(first, "features").shape[1])
        result.update(first)
        for batch in batches:
            result.update(batch)
        return result

    @classmethod
    def from_moments(cls, mean: Tensor, cov: Tensor, n: int | None = None) -> Statistics:
        """Statistics with a given mean `[d]` and covariance `[d, d]`; `n` None where nobody says how many samples
        they are of.
        """
        mean, cov = mean.detach().to("cpu", torch.float64), cov.detach().to("cpu", torch.float64)
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ArgumentError(f"mean {tuple(mean.shape)} and cov {tuple(cov.shape)} do not fit; give [d] and [d, d]")
        if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
            raise ArgumentError("mean or cov is not finite; compute the statistics again from finite features")
        if float((cov - cov.T).abs().max()) > 1e-6 * max(float(cov.abs().max()), 1e-300):
            raise ArgumentError("cov is not symmetric; give a covariance matrix")
        if n is not None and n < 2:
            raise ArgumentError(f"n = {n}: a covariance needs at least 2 samples; give None if their number is unknown")
        result = cls(len(mean))
        result.n, result.mean = n, mean.clone()
        result._scatter = (cov + cov.T) / 2 * (1 if n is None else n - 1)
        return result

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance `[d, d]`; its rank is at most n - 1."""
        if self.n is None:
            return self._scatter.clone()
        if self.n < 2:
            raise ArgumentError(
                f"these statistics hold {self.n} samples; a covariance needs at least 2: update them with more"
            )
        return self._scatter / (self.n - 1)

    def update(self, features: Tensor) -> None:
        """Take in a batch `[b, d]`."""
        batch = as_features(features, "features", least=0)
        if batch.shape[1] != self.d:
            raise ArgumentError(
                f"features has {batch.shape[1]} columns, these statistics {self.d}; use one feature network for both"
            )
        if len(batch) == 0:
            return
        mean = batch.mean(dim=0)
        centred = batch - mean
        self._join(len(batch), mean, centred.T @ centred)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets together, as a new object (what parallel workers send back)."""
        if other.d != self.d:
            raise ArgumentError(
                f"other has {other.d} features, these statistics {self.d}; use one feature network for both"
            )
        result = Statistics(self.d)
        for part in (self, other):
            if part.n != 0:
                result._join(part._known_n(), part.mean, part._scatter)
        return result

    def _known_n(self) -> int:
        if self.n is None:
            raise ArgumentError(
                "the number of samples behind these statistics is unknown (a published file), so nothing can be added "
                "to them"
            )
        return self.n

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        before = self._known_n()
        total = before + n
        gap = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(gap, gap) * (before * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n = total

    def save(self, path: str | Path) -> None:
        """Write as safetensors (float64)."""
        tensors = {"mean": self.mean.contiguous(), "cov": self.cov.contiguous()}
        save_file(tensors, path, metadata={"kind": "fewstep.statistics", "schema": SCHEMA, "n": str(self.n)})

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file of `save`, or a published statistics file: npz with `mu` and `sigma` (pickled files are
        refused).
        """
        path = Path(path)
        if not path.is_file():
            raise ArgumentError(
                f"path: no file {path}; give a statistics file (.safetensors of `save`, or .npz with mu and sigma)"
            )
        return cls._from_npz(path) if path.suffix == ".npz" else cls._from_safetensors(path)

    @classmethod
    def _from_npz(cls, path: Path) -> Statistics:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                missing = [key for key in ("mu", "sigma") if key not in data]
                if missing:
                    raise FileFormatError(
                        f"{path} lacks {' and '.join(missing)} (it holds {sorted(data)}); give a statistics file"
                    )
                n = int(data["n"]) if "n" in data else None
                mean, cov = (torch.from_numpy(np.asarray(data[key], dtype=np.float64)) for key in ("mu", "sigma"))
        except FileFormatError:
            raise
        except Exception as error:  # zip, zlib, numpy and pickle refusals all come as classes of their own
            raise FileFormatError(f"{path} cannot be read as npz ({error}); download or compute it again") from error
        return cls._checked(path, mean, cov, n)

    @classmethod
    def _from_safetensors(cls, path: Path) -> Statistics:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise FileFormatError(f"{path} cannot be read as safetensors ({error}); compute it again") from error
        if metadata.get("kind") != "fewstep.statistics" or not {"mean", "cov"} <= tensors.keys():
            raise FileFormatError(
                f"{path} is not a statistics file of this package; give one written by Statistics.save"
            )
        if metadata.get("schema") != SCHEMA:
            raise FileFormatError(
                f"{path} has schema {metadata.get('schema')}, this version reads {SCHEMA}; update fewstep"
            )
        count = metadata.get("n", "None")
        if count != "None" and not count.isdigit():
            raise FileFormatError(f"{path} says n = {count!r}, which is no number; compute it again")
        return cls._checked(path, tensors["mean"], tensors["cov"], None if count == "None" else int(count))

    @classmethod
    def _checked(cls, path: Path, mean: Tensor, cov: Tensor, n: int | None) -> Statistics:
        try:
            return cls.from_moments(mean, cov, n)
        except ArgumentError as error:
            raise FileFormatError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        return f"Statistics(n={self.n}, d={self.d})"
