"""What a method that learns by gradient lowers: from a name, what is known of the network's samples, and the method."""

from __future__ import annotations

from dataclasses import replace

import torch

from fewstep import models
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.objectives import FaithfulLoss, MatchedLoss
from fewstep.search.gradient.objectives import Objective as LearningObjective
from fewstep.search.gradient.recipes import RECIPES, Recipe
from fewstep.search.parts import Parts

Loss = str | LearningObjective
"""A name, or an objective of one's own."""

WHOLE_BATCH = 256
"""Pairs in an update by a distance of distributions."""
MATCHED_BATCH = 64
"""The same by a distance to the teacher's samples, where chance weighs less."""


def batched(recipe: Recipe, lowered: LearningObjective) -> Recipe:
    """The recipe with as many pairs in an update as a distance between distributions needs."""
    if not lowered.whole:
        return recipe
    matched = isinstance(lowered, MatchedLoss | FaithfulLoss)
    return replace(recipe, batch=max(recipe.batch, MATCHED_BATCH) if matched else WHOLE_BATCH)


def lowered_by(
    method: str, parts: Parts, loss: Loss, model: Denoiser, known: models.Judge | None
) -> LearningObjective | None:
    """What a method that learns by gradient lowers; None for the others.

    Errors: `ArgumentError` for a loss that is not known, needs features that are not there or cannot be differentiated,
        or is given in vain.
    """
    if not parts.learned:
        if loss != "auto":
            raise ArgumentError(
                f"loss={loss!r} is for methods that learn by gradient, and method {method} does not: "
                f"leave it out, or choose auto or one of {', '.join(RECIPES)}"
            )
        return None
    if not isinstance(loss, str):
        return loss
    followed = known is not None and _differentiable(model, known)
    # The features of an analytic problem are its samples themselves.
    set_apart = followed and known is not None and known.nll is None
    own = (parts.loss if set_apart else "") or RECIPES[parts.learned[-1]].loss
    name = own if loss == "auto" else loss
    if known is None:
        return objective(name, shape=model.shape)
    if not followed:
        if name in ("frechet", "kernel", "matched", "faithful") or loss == "features":
            raise ArgumentError(
                f"loss={loss!r} follows the gradient of features, and those of {known.name} have none (a pipeline's "
                "pictures are decoded without): leave loss out, or choose l2"
            )
        return objective(name, shape=model.shape)
    return objective(
        name, features=known.features, reference=known.reference, reference_features=known.reference_features,
        feature_name=known.name, shape=model.shape,
    )  # fmt: skip


def _differentiable(model: Denoiser, known: models.Judge) -> bool:
    with torch.enable_grad():
        samples = torch.zeros(2, *model.shape, device=model.device, dtype=model.dtype, requires_grad=True)
        return known.features(samples).requires_grad


def followed(model: Denoiser, known: models.Judge | None, loss: Loss) -> bool:
    """Whether a loss left to the method (`auto`) can follow features, or there are none to follow."""
    return loss != "auto" or known is None or _differentiable(model, known)
