"""Judges of samples, over any feature network: distances between distributions, and of pairs; likelihoods.

    reference = Statistics.of(features(batch) for batch in data)
    frechet(Statistics.of(features(images)), reference)

A feature network is any callable from images `[B, ...]` to `[B, d]`; `fewstep.metrics.inception` has the standard one.
All sums are in float64 on the CPU.
"""

from fewstep.metrics.frechet import frechet, frechet_jackknife, frechet_with_error
from fewstep.metrics.images import read_images, statistics_of_images
from fewstep.metrics.jackknife import Jackknife, jackknife
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.likelihood import (
    entropy,
    gaussian_kl,
    kl_of_samples,
    kl_to_density,
    negative_log_likelihood,
)
from fewstep.metrics.neighbours import PrecisionRecall, precision_recall
from fewstep.metrics.paired import paired_l2, paired_rmse
from fewstep.metrics.statistics import Estimate, Features, Statistics, mean_with_error
from fewstep.metrics.transport import sliced_wasserstein

__all__ = [
    "Estimate",
    "Features",
    "Jackknife",
    "PrecisionRecall",
    "Statistics",
    "entropy",
    "frechet",
    "frechet_jackknife",
    "frechet_with_error",
    "gaussian_kl",
    "jackknife",
    "kernel_distance",
    "kl_of_samples",
    "kl_to_density",
    "mean_with_error",
    "negative_log_likelihood",
    "paired_l2",
    "paired_rmse",
    "precision_recall",
    "read_images",
    "sliced_wasserstein",
    "statistics_of_images",
]
