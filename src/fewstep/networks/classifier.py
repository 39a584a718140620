"""A small digit classifier; its last hidden layer is the feature space in which MNIST samples are judged.

Fréchet distance, kernel distance, precision and recall need features. The usual ones (Inception) mean little on
28x28 digits and cannot ship; a network trained on the digits themselves says more, and weighs 200 kB.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Classifier(nn.Module):
    """`images [B, channels, H, W]` in [-1, 1] to logits `[B, classes]`; `features` stops one layer earlier.

    Pixels are folded 2x2 into channels, then two 3x3 convolutions at half and three at quarter resolution, each with
    batch normalisation (folded into the convolutions by `folded` once trained) and ReLU, then the mean over positions.
    `scale` is a fixed number that gives the features unit mean variance on the training images: distances between
    feature clouds are then comparable from one classifier to the next.
    """

    def __init__(
        self, *, channels: int = 1, widths: Sequence[int] = (32, 64), classes: int = 10, normalised: bool = True
    ) -> None:
        super().__init__()
        wide, deep = widths
        sizes = [4 * channels, wide, wide, deep, deep, deep]
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(b) if normalised else nn.Identity() for b in sizes[1:]])
        self.head = nn.Linear(deep, classes)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        """Mean activations of the last convolution, `[B, widths[1]]`, times `scale`."""
        h = F.pixel_unshuffle(images, 2)
        for k, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            h = F.relu(norm(convolution(h)))
            if k == 1:
                h = F.max_pool2d(h, 2)
        return h.mean(dim=(2, 3)) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        return self.head(self.features(images) / self.scale)

    def folded(self) -> Classifier:
        """The same function without batch normalisation, for use: a third fewer passes over memory."""
        fused = copy.deepcopy(self).eval()
        pairs = zip(fused.convolutions, fused.norms, strict=True)
        fused.convolutions = nn.ModuleList(
            [fuse_conv_bn_eval(cast(nn.Conv2d, c), cast(nn.BatchNorm2d, n)) for c, n in pairs]
        )
        fused.norms = nn.ModuleList([nn.Identity() for _ in fused.norms])
        return fused
