"""What an optimisation starts from: the network, its conditions, its judge, and clean data to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewstep import models, networks, problems
from fewstep.clean import Data, clean_samples
from fewstep.conditions import rows
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.networks.labels import innermost
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.teacher import ConditionOf

MNIST_SHAPE = (1, 28, 28)


@dataclass(frozen=True)
class SeedsAsked:
    """What the user asked for; None leaves the number to the budget."""

    calibration: CalibrationSeeds | None
    selection: SelectionSeeds | None
    report: ReportSeeds | None

    @staticmethod
    def checked(calibration: Any, selection: Any, report: Any) -> SeedsAsked:
        """The three, each of its own kind.

        Errors: `SeedsError` for another kind.
        """
        for kind, seeds, argument in (
            (CalibrationSeeds, calibration, "calibration"),
            (SelectionSeeds, selection, "selection"),
            (ReportSeeds, report, "report"),
        ):
            if seeds is not None:
                kind.require(seeds, argument)
        return SeedsAsked(calibration, selection, report)

    @property
    def paths(self) -> int | None:
        """The number of noising paths asked for."""
        return None if self.calibration is None else len(self.calibration)


def resolve(model: Denoiser | str) -> tuple[Denoiser, str]:
    """The network and its name for reports.

    Errors: `ArgumentError` for a name that is not known and for anything that is not a Denoiser.
    """
    if isinstance(model, str):
        return models.load(model), model
    if not isinstance(model, Denoiser):
        raise ArgumentError(
            f"model is a {type(model).__name__}: give a Denoiser (from_callable makes one) or a name such as 'mnist'"
        )
    problem = problem_of(model)
    if is_mnist(model):
        return model, "mnist"
    about = models.about(model)
    if about:
        return model, f"{about['pipeline']} {about['weights']}"
    return model, f"problem:{problem.name}" if problem is not None and problem.name else f"network {model.fingerprint}"


def is_mnist(model: Denoiser) -> bool:
    """Whether it is the digit network that ships, perhaps guided."""
    return isinstance(innermost(model), networks.DigitNetwork) and tuple(model.shape) == MNIST_SHAPE


def problem_of(model: Denoiser) -> problems.Problem | None:
    """The analytic problem that a denoiser belongs to, if any."""
    owner = getattr(innermost(model), "__self__", None)
    return owner if isinstance(owner, problems.Problem) else None


def judge_of(model: Denoiser) -> models.Judge | None:
    """What judges its samples, where the package knows."""
    if is_mnist(model):
        return models.judge("mnist")
    problem = problem_of(model)
    if problem is not None and problem.name in problems.NAMES:
        return models.judge(f"problem:{problem.name}")
    return None


def condition_of(model: Denoiser, given: Any) -> ConditionOf:
    """A function of seeds from what the user gave.

    Args:
        model: the network.
        given: None (balanced labels where the network has classes), a function of seeds, or a pytree whose tensor
            leaves have one row for each condition: seed s gets row s modulo their number.
    """
    if given is None:
        return lambda seeds: models.default_condition(model, seeds)
    if callable(given):
        return given
    lengths = {len(leaf) for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(lengths) != 1:
        raise ArgumentError(
            f"the tensor leaves of condition have lengths {sorted(lengths)}: their first axis must be the conditions"
        )
    (count,) = lengths

    def pick(seeds: Sequence[int]) -> Any:
        return rows(given, torch.tensor([seed % count for seed in seeds], device="cpu"))

    return pick


def known_data(model: Denoiser, most: int) -> Data | None:
    """Up to `most` clean samples that come with the network, or None."""
    if is_mnist(model):
        shipped = networks.mnist_images(min(most, 1000))
        return Data(shipped.images.float() / 127.5 - 1, shipped.labels, "MNIST test images that ship with the package")
    problem = problem_of(model)
    if problem is not None:
        return Data(problem.sample(most, seed=1), None, "exact samples of the problem")
    return None


def given_data(
    model: Denoiser,
    data: Tensor | Data | str | Path,
    condition: Any,
    most: int,
    asked: ConditionOf | None = None,
    progress: Report = silent,
) -> Data:
    """The user's clean samples, checked; of a file (`fewstep.clean.clean_samples`) up to `most`.

    Args:
        model: the network.
        data: the samples, or where they are.
        condition: theirs, all of them.
        most: samples of a file.
        asked: conditions that the user gave by seed; those of a file's samples where it brings none: k has that of
            seed k.
        progress: told of long reading.

    Errors: `ArgumentError` for a shape that is not the network's, and for numbers that are not finite.
    """
    if isinstance(data, str | Path):
        own = None if condition is None else partial(_picked, condition)
        data = clean_samples(data, model, most, own or asked, progress)
    elif isinstance(data, Tensor):
        data = Data(data, condition, "data given by the caller")
    elif not isinstance(data, Data):
        raise ArgumentError(f"data is a {type(data).__name__}: give a tensor [N, *shape], or the path of a file")
    samples = data.samples
    if tuple(samples.shape[1:]) != tuple(model.shape) or len(samples) < 2:
        raise ArgumentError(
            f"data has shape {tuple(samples.shape)}: give two or more clean samples of shape "
            f"{tuple(model.shape)}, in the network's units"
        )
    if not (finite := samples.flatten(1).isfinite().all(1)).all():
        raise ArgumentError(f"data[{int((~finite).nonzero()[0])}] is not finite: leave such samples out")
    return data


def _picked(condition: Any, numbers: Sequence[int]) -> Any:
    return rows(condition, torch.tensor(list(numbers), device="cpu"))


Objective = str | Callable[[Tensor], Tensor]
