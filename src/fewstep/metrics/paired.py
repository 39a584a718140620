"""Distances of a student's samples to the teacher's, from the same start noise, sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Features


def paired_l2(student: Tensor, teacher: Tensor, *, features: Features | None = None) -> Tensor:
    """Euclidean distance of each pair, `[B]` float64; in feature space if `features` is given, else over all elements.

    `student` and `teacher` are `[B, ...]` from the same seeds. Selecting by this distance rewards blur: report a
    distribution-level distance beside it.
    """
    if student.shape != teacher.shape or student.ndim < 2:
        raise ArgumentError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} are not pairs; give equal shapes [B, "
            "...]"
        )
    if features is not None:
        student, teacher = features(student), features(teacher)
    gap = student.detach().to("cpu", torch.float64) - teacher.detach().to("cpu", torch.float64)
    return gap.flatten(1).norm(dim=1)


def paired_rmse(student: Tensor, teacher: Tensor, *, features: Features | None = None) -> Tensor:
    """Root mean squared difference of each pair, `[B]` float64: `paired_l2` over the root of the number of elements."""
    size = student[0].numel() if features is None else features(student[:1]).shape[1]
    return paired_l2(student, teacher, features=features) / math.sqrt(size)
