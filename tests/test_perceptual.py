"""LPIPS as a loss: what the package is given, what comes back, and what is said where it cannot be."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.objectives import Batch, Run


class StandIn(nn.Module):
    """The package's interface: `LPIPS(net=, verbose=)(x, y) -> [B, 1, 1, 1]`, unit features per pixel, weighted."""

    def __init__(self, net: str, verbose: bool = True) -> None:
        super().__init__()
        assert net == "vgg" and not verbose
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)
        self.weights = nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape[1] == 3 and x.dtype == y.dtype == torch.float32
        one, other = (f / f.square().sum(1, keepdim=True).sqrt() for f in (self.layer(x), self.layer(y)))
        return ((one - other).square() * self.weights[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)


def loss_of(student: Tensor, teacher: Tensor) -> Tensor:
    lowered = objective("lpips", shape=student.shape[1:])
    assert not lowered.whole and not lowered.along
    none = torch.zeros(0)
    return lowered(Run(student, {}, none, none), Batch(none, teacher, None, None))


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_is_the_packages_mean_with_its_gradient(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=StandIn))
    teacher = torch.randn(5, channels, 16, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    student = (teacher + 0.1 * teacher.roll(1, -1)).requires_grad_()
    value = loss_of(student, teacher)
    known = StandIn("vgg", verbose=False)
    wide = [x.float().repeat(1, 3 // channels, 1, 1) for x in (student, teacher)]
    torch.testing.assert_close(value, known(*wide).mean(), rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(value, student)
    step = 0.005 * slope / slope.abs().max()
    change = (loss_of(student + step, teacher) - loss_of(student - step, teacher)) / 2
    assert change.item() == pytest.approx((slope * step).sum().item(), rel=5e-3)
    assert loss_of(teacher, teacher).item() == 0


def test_lpips_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="choose l1"):
        objective("lpips", shape=(4, 64, 64))
    with pytest.raises(ArgumentError, match="16 x 16"):
        objective("lpips", shape=(3, 8, 8))
    missing: Any = None
    monkeypatch.setitem(sys.modules, "lpips", missing)
    with pytest.raises(ArgumentError, match=r"pip install .fewstep\[lpips\]"):
        objective("lpips", shape=(1, 28, 28))
