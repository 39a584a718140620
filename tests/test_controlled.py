"""Few samples with a teacher's as control variates: exact where the teacher is, and nearer the truth elsewhere."""

import pytest
import torch

from fewstep.errors import ArgumentError
from fewstep.metrics import Statistics, frechet
from fewstep.metrics.controlled import controlled_frechet

D, N = 8, 96


def population(seed, n=40_000):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / D**0.5
    return torch.randn(n, D, generator=g, dtype=torch.float64) @ (mix + torch.eye(D))


def student(teacher, seed, noise=0.15):
    """A sampler near the teacher: squeezed, shifted, and its own noise."""
    g = torch.Generator().manual_seed(seed)
    own = noise * torch.randn(teacher.shape, generator=g, dtype=torch.float64)
    return teacher * torch.linspace(0.8, 1.1, D, dtype=torch.float64) + 0.2 + own


def test_estimates_gather_around_the_truth_far_closer_than_plain_distances():
    reference, everyone = Statistics.of(population(1)), population(2)
    truth = frechet(Statistics.of(student(everyone, 3)), reference)
    known = Statistics.of(everyone)
    plain, controlled = [], []
    for k in range(12):
        few = population(10 + k, N)
        ours = student(few, 50 + k)
        plain.append(frechet(Statistics.of(ours), reference) - truth)
        controlled.append(controlled_frechet(ours, few, known, reference) - truth)
    plain, controlled = (torch.tensor(x) for x in (plain, controlled))
    assert plain.mean() > 0.05 and controlled.mean().abs() < 0.25 * plain.mean()
    assert controlled.std() < 0.5 * plain.std()
    assert controlled.square().mean().sqrt() < 0.3 * plain.square().mean().sqrt()


def test_the_teacher_itself_scores_what_its_population_does():
    reference, everyone = Statistics.of(population(1)), population(2)
    truth = frechet(Statistics.of(everyone), reference)
    few = population(5, N)
    assert controlled_frechet(few, few, Statistics.of(everyone), reference, ridge=1e-9) == pytest.approx(
        truth, abs=1e-6
    )


def test_what_does_not_fit_is_refused():
    known = Statistics.of(population(1, 100))
    few = population(3, 20)
    with pytest.raises(ArgumentError, match="do not fit"):
        controlled_frechet(few, few[:16], known, known)
    with pytest.raises(ArgumentError, match="fewer than the 16"):
        controlled_frechet(few[:12], few[:12], known, known)
    with pytest.raises(ArgumentError, match="do not fit"):
        controlled_frechet(few[:, :4], few[:, :4], known, known)
