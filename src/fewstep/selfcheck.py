"""Does a network predict what its owner says, and is it told the time that it was trained on?

Most reports of a sampler that "gives noise" come from a network wrapped with the wrong prediction or time scale. Both
show at once when noised samples are denoised under every reading of the network's output: the right reading removes the
noise, the others do not. `diagnose` measures this; `from_callable` calls `require_consistent`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewstep.conditions import null_rows
from fewstep.errors import ArgumentError
from fewstep.readings import (
    Reading,
    all_readings,
    at_level,
    crude_samples,
    data_of,
    declared_reading,
    output_of,
    sample_rows,
    tested_levels,
    unit_normals,
    working_dtype,
)

if TYPE_CHECKING:
    from fewstep.denoiser import Network

CLEARLY = 1.1
"""How many times less error another reading must leave on given data before the declared one is doubted."""
SOUND = 1.15
"""A reading that a linear correction would improve by more, on its own samples, is wrong."""
LINEAR, STRUCTURE = 0.95, 0.77
"""A reading that leaves more error than LINEAR does no more than a linear denoiser, as a network at a fixed time would;
one that leaves STRUCTURE times less is then believed in its place."""


class Score(NamedTuple):
    """How a reading denoises.

    error: squared error in units of the best linear denoiser's for white data, geometric mean over the levels.
    excess: how many times larger the error is than that of the best `p x + q output + r`, worst case over the levels.
        Every reading is such a combination with coefficients that it prescribes, and the residual of a true posterior
        mean is orthogonal to x and to the output: the right reading has an excess of 1 at every level, on any data.
    """

    error: float
    excess: float


HOPELESS = Score(math.inf, math.inf)


@dataclass(frozen=True)
class Diagnosis:
    """The scores of every reading of a network."""

    declared: Reading
    scores: dict[Reading, Score]

    @property
    def best(self) -> Reading:
        """The reading with the least error."""
        return min(self.scores, key=self.scores.__getitem__)

    @property
    def doubted(self) -> bool:
        """Whether another reading denoises clearly better, and is better calibrated too."""
        declared, best = self.scores[self.declared], self.scores[self.best]
        return declared.error > CLEARLY * best.error and declared.excess > best.excess

    def __str__(self) -> str:
        rows = sorted(self.scores.items(), key=lambda item: item[1])
        return "\n".join(
            f"{score.error:10.3g} {score.excess:10.3g}  {reading}{'  (declared)' * (reading == self.declared)}"
            for reading, score in rows
        )


def diagnose(network: Network, data: Tensor, condition: Any = None, readings: Sequence[Reading] = ()) -> Diagnosis:
    """Score readings of a network (all, unless given) on clean data; one call per level and time scale.

    Args:
        network: what `from_callable` returns.
        data: clean samples `[N, *shape]`; used again with fresh noise where they are few.
        condition: a pytree whose leaves have N rows, or as many as the check uses.
        readings: those to score.
    """
    rows = sample_rows(network)
    pick = torch.arange(rows, device="cpu") % len(data)
    data = data.to(device=network.device, dtype=working_dtype(network))[pick]
    condition = pytree.tree_map(lambda leaf: leaf[pick % len(leaf)] if isinstance(leaf, Tensor) else leaf, condition)
    spread = float(data.std(correction=0))
    if not 0 < spread < math.inf:
        raise ArgumentError(f"data has a standard deviation of {spread:g}: give clean samples that differ, without NaN")
    tested = list(readings) or all_readings(network)
    errors: dict[Reading, list[tuple[float, float]]] = {reading: [] for reading in tested}
    for k, level in enumerate(tested_levels(network, spread)):
        t, alpha, sigma = at_level(network, level)
        x = alpha.to(data.dtype) * data + sigma.to(data.dtype) * unit_normals(network, rows, seed=k + 1)
        linear = spread**2 * level**2 / (spread**2 + level**2)
        for time in dict.fromkeys(reading.time for reading in tested):
            output = output_of(network, x, t, time, condition)
            least = _least_error(output, x, data) + 1e-9 * linear
            for reading in tested:
                if reading.time == time:
                    error = (data_of(output, x, reading.prediction, alpha, sigma) - data).square().mean()
                    errors[reading].append((float(error) / linear, float(error) / least))
    return Diagnosis(declared_reading(network), {reading: _score(pairs) for reading, pairs in errors.items()})


def _score(pairs: list[tuple[float, float]]) -> Score:
    if not all(math.isfinite(value) for pair in pairs for value in pair):
        return HOPELESS
    return Score(math.exp(sum(math.log(error + 1e-12) for error, _ in pairs) / len(pairs)), max(e for _, e in pairs))


def _least_error(output: Tensor, x: Tensor, data: Tensor) -> float:
    """Mean squared error of the best `p x + q output + r` for the data."""
    columns = torch.stack([x.flatten(), output.flatten(), torch.ones_like(x).flatten()], dim=1).double()
    columns = columns / columns.square().mean(0).sqrt().clamp_min(1e-12)
    wanted = data.flatten().double()
    gram = columns.T @ columns / len(wanted) + 1e-9 * torch.eye(3, dtype=columns.dtype, device=columns.device)
    weights = torch.linalg.solve_ex(gram, columns.T @ wanted / len(wanted)).result
    return float((columns @ weights - wanted).square().mean())


def require_consistent(network: Network, data: Tensor | None = None, condition: Any = None) -> None:
    """Raise, with data, or warn, without, if another reading of the network denoises clearly better than its own.

    Without data, samples are made by a crude run under the declared reading: if a linear correction denoises them
    better than the reading itself, it is wrong, and every other reading is tried in the same way. This finds most
    mistakes, but no reading that is a true denoiser of other data than the network's.

    Raises:
        ArgumentError: data of another shape, or, with data, a wrong declaration.
        DenoiserError: the network could not be called.
    """
    if condition is None and network.null_condition is not None:
        condition = null_rows(network.null_condition, sample_rows(network), device=network.device)
    if data is not None and (data.shape[1:] != network.shape or not len(data)):
        raise ArgumentError(f"data has shape {tuple(data.shape)}: give clean samples of shape [N, *{network.shape}]")
    try:
        with torch.no_grad():
            if data is None:
                _check_without_data(network, condition)
            else:
                _check_with_data(diagnose(network, data, condition))
    finally:
        network.reset_counters()


def _check_with_data(found: Diagnosis) -> None:
    if found.doubted:
        table = f"\n     error     excess  (see fewstep.selfcheck.Score)\n{found}"
        raise ArgumentError(_verdict(found.declared, found.best, table))


def _check_without_data(network: Network, condition: Any) -> None:
    declared = declared_reading(network)
    score = _own_score(network, declared, condition)
    rivals = [reading for reading in all_readings(network) if reading != declared]
    least_error = math.inf
    if score.excess <= SOUND:
        if score.error > LINEAR:
            least_error = STRUCTURE * score.error
        elif declared.prediction == "flow":
            # A noise prediction read as a flow makes images of less contrast, and nearly agrees with itself.
            rivals = [Reading("epsilon", declared.time)]
        else:
            return
    others = {reading: _own_score(network, reading, condition) for reading in rivals}
    limit = min(SOUND, score.excess)
    others = {r: s for r, s in others.items() if s.excess <= limit and s.error < least_error}
    # One mistake is likelier than two, so a reading that differs in both is believed only if no other is sound.
    best = min(others, key=lambda r: (r[0] != declared[0] and r[1] != declared[1], others[r].excess), default=declared)
    if best != declared:
        more = " Judged by samples that the network made: give data= to be sure."
        warnings.warn(_verdict(declared, best, more), stacklevel=5)
    elif score == HOPELESS:
        warnings.warn(
            f"declared as {declared}, this network does not remove noise, and no other reading of it does: check its "
            "noise schedule and condition, give data= (a dozen clean samples) to be sure, or pass check=False",
            stacklevel=5,
        )


def _verdict(declared: Reading, best: Reading, more: str) -> str:
    pairs = [
        (f"{name}={said!r}", f"{name}={looks!r}")
        for name, said, looks in zip(("prediction", "time"), declared, best, strict=True)
        if said != looks
    ]
    looks, said = " and ".join(b for _, b in pairs), " and ".join(a for a, _ in pairs)
    return f"this network looks like {looks}, you said {said}: declare {best}, or pass check=False.{more}"


def _own_score(network: Network, reading: Reading, condition: Any) -> Score:
    """The score of a reading on the samples that it makes itself; hopeless if they are no samples."""
    samples, noisiest = crude_samples(network, reading, condition)
    spread, between = float(samples.std(correction=0)), float(samples.std(0, correction=0).mean())
    # Noise that was never removed (or worse), nothing at all, or always the same sample.
    if not (1e-4 * noisiest < spread < 0.3 * noisiest and between > 0.05 * spread):
        return HOPELESS
    return diagnose(network, samples, condition, [reading]).scores[reading]
