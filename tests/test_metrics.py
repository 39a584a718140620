"""Metrics against closed forms, brute force and identities."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics import (
    Statistics,
    entropy,
    frechet,
    frechet_with_error,
    gaussian_kl,
    kernel_distance,
    kl_to_density,
    mean_with_error,
    negative_log_likelihood,
    paired_l2,
    paired_rmse,
    precision_recall,
    sliced_wasserstein,
)
from fewstep.metrics.transport import directions


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, rank: int, seed: int) -> Tensor:
    factor = normal(d, rank, seed=seed)
    return factor @ factor.T


# ------------------------------------------------------------------------------------------------------ statistics
@pytest.mark.parametrize("sizes", [(50,), (1, 49), (7, 1, 0, 20, 22)])
def test_streaming_equals_batch(sizes: tuple[int, ...]) -> None:
    x = normal(50, 5) * 3 + 1000  # a large mean: naive sums of squares would lose six digits
    stats = Statistics.of(x.split(list(sizes)))
    assert stats.n == 50
    assert (stats.mean - x.mean(0)).abs().max() < 1e-11
    assert (stats.cov - torch.from_numpy(np.cov(x.numpy().T))).abs().max() < 1e-10


def test_merge_equals_union() -> None:
    x = normal(40, 4)
    merged = Statistics.of(x[:13]).merge(Statistics.of(x[13:])).merge(Statistics(4))
    whole = Statistics.of(x)
    assert merged.n == 40
    assert (merged.mean - whole.mean).abs().max() < 1e-14
    assert (merged.cov - whole.cov).abs().max() < 1e-13


def test_float32_features_are_summed_in_float64() -> None:
    x = normal(1000, 3).float()
    assert (Statistics.of(x).cov - Statistics.of(x.double()).cov).abs().max() == 0


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    stats = Statistics.of(normal(20, 6))
    stats.save(tmp_path / "a.safetensors")
    back = Statistics.load(tmp_path / "a.safetensors")
    assert back.n == 20
    assert torch.equal(back.mean, stats.mean)
    assert (back.cov - stats.cov).abs().max() < 1e-15
    assert repr(back) == "Statistics(n=20, d=6)"


def test_published_file(tmp_path: Path) -> None:
    stats = Statistics.of(normal(20, 6))
    np.savez(tmp_path / "ref.npz", mu=stats.mean.numpy(), sigma=stats.cov.numpy())
    back = Statistics.load(tmp_path / "ref.npz")
    assert back.n is None
    assert frechet(stats, back) < 1e-12
    back.save(tmp_path / "ref.safetensors")
    assert Statistics.load(tmp_path / "ref.safetensors").n is None
    with pytest.raises(ArgumentError, match="unknown"):
        back.update(normal(2, 6))
    with pytest.raises(ArgumentError, match="unknown"):
        stats.merge(back)


def test_bad_statistics_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "keys.npz", mean=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "nan.npz", mu=np.array([np.nan]), sigma=np.eye(1))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(2))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    for name, words in [
        ("keys", "lacks mu and sigma"),
        ("pickle", "cannot be read"),
        ("nan", "not finite"),
        ("shape", "do not fit"),
        ("torn", "cannot"),
    ]:
        with pytest.raises(FileFormatError, match=words):
            Statistics.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileFormatError, match="cannot be read as safetensors"):
        Statistics.load(tmp_path / "torn.safetensors")
    tensors = {"mean": torch.zeros(2), "cov": torch.eye(2)}
    for metadata, words in [
        ({}, "not a statistics file"),
        ({"kind": "fewstep.statistics", "schema": "99"}, "schema 99, this version reads 1"),
        ({"kind": "fewstep.statistics", "schema": "1", "n": "many"}, "'many', which is no number"),
        ({"kind": "fewstep.statistics", "schema": "1", "n": "1"}, "n = 1"),
    ]:
        save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(FileFormatError, match=words):
            Statistics.load(tmp_path / "bad.safetensors")
    with pytest.raises(ArgumentError, match="no file"):
        Statistics.load(tmp_path / "absent.npz")


def test_bad_features() -> None:
    bad = normal(5, 3)
    bad[3, 1] = math.nan
    with pytest.raises(ArgumentError, match="not finite in row 3"):
        Statistics.of(bad)
    with pytest.raises(ArgumentError, match="flatten"):
        Statistics.of(normal(5, 1, 3))
    with pytest.raises(ArgumentError, match="4 columns, these statistics 3"):
        Statistics.of([normal(5, 3), normal(5, 4)])
    with pytest.raises(ArgumentError, match="empty"):
        Statistics.of([])
    with pytest.raises(ArgumentError, match="at least 2"):
        _ = Statistics.of(normal(1, 3)).cov
    with pytest.raises(ArgumentError, match="one dimension"):
        Statistics(0)
    with pytest.raises(ArgumentError, match="4 features, these statistics 3"):
        Statistics(3).merge(Statistics(4))
    with pytest.raises(ArgumentError, match="symmetric"):
        Statistics.from_moments(torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ArgumentError, match="n = 1"):
        Statistics.from_moments(torch.zeros(2), torch.eye(2), 1)


# --------------------------------------------------------------------------------------------------------- Fréchet
def of_moments(mean: Tensor, cov: Tensor) -> Statistics:
    return Statistics.from_moments(mean, cov)


def test_frechet_of_commuting_gaussians() -> None:
    """Diagonal covariances: the sum of squared differences of means and of standard deviations."""
    a, b = normal(6, seed=1).abs() + 0.1, normal(6, seed=2).abs() + 0.1
    shift = normal(6, seed=3)
    expected = float((shift**2).sum() + (a - b).square().sum())
    assert frechet(of_moments(shift, torch.diag(a**2)), of_moments(torch.zeros(6), torch.diag(b**2))) == pytest.approx(
        expected, abs=1e-12
    )


def test_frechet_equals_scipy_sqrtm() -> None:
    ca, cb = covariance(8, 8, 1), covariance(8, 8, 2)
    expected = float(np.trace(ca.numpy() + cb.numpy() - 2 * sqrtm(ca.numpy() @ cb.numpy()).real))
    zero = torch.zeros(8)
    assert frechet(of_moments(zero, ca), of_moments(zero, cb)) == pytest.approx(expected, abs=1e-10)
    assert frechet(of_moments(zero, cb), of_moments(zero, ca)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 3, 64])
def test_frechet_of_equal_inputs_is_zero_at_any_rank(rank: int) -> None:
    stats = of_moments(normal(64), covariance(64, rank, 5) if rank else torch.zeros(64, 64, dtype=torch.float64))
    assert frechet(stats, stats) < 1e-10


def test_frechet_of_orthogonal_low_rank_covariances() -> None:
    """No common direction: the cross term vanishes. A matrix square root of rounding noise would leave 1e-8 per "
    "direction."""
    basis = torch.linalg.qr(normal(40, 40)).Q
    ca, cb = basis[:, :5] @ basis[:, :5].T, 4 * basis[:, 5:8] @ basis[:, 5:8].T
    zero = torch.zeros(40)
    assert frechet(of_moments(zero, ca), of_moments(zero, cb)) == pytest.approx(5 + 12, abs=1e-12)


def test_frechet_with_fewer_samples_than_features() -> None:
    a, b = Statistics.of(normal(10, 32, seed=1)), Statistics.of(normal(12, 32, seed=2))
    gram_a, gram_b = a.cov.numpy(), b.cov.numpy()
    eigen = np.linalg.eigvals(gram_a @ gram_b).real.clip(min=0)
    expected = (
        float((a.mean - b.mean).square().sum())
        + np.trace(gram_a)
        + np.trace(gram_b)
        - 2 * np.sqrt(eigen[eigen > 1e-10]).sum()
    )
    assert frechet(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_frechet_with_error_has_the_plain_value() -> None:
    x, reference = normal(300, 4) + 0.3, Statistics.of(normal(500, 4, seed=9))
    value, _ = frechet_with_error(x, reference)
    assert value == pytest.approx(frechet(Statistics.of(x), reference), abs=1e-12)


@pytest.mark.parametrize("shift", [0.5, 0.0])
def test_frechet_error_is_the_spread_over_fresh_samples(shift: float) -> None:
    reference = of_moments(torch.zeros(3), torch.eye(3))
    runs = [frechet_with_error(normal(400, 3, seed=s) * 1.2 + shift, reference) for s in range(120)]
    spread = float(torch.tensor([r.value for r in runs]).std())
    claimed = float(torch.tensor([r.standard_error**2 for r in runs]).mean().sqrt())
    assert claimed == pytest.approx(spread, rel=0.2)


def test_frechet_jackknife_equals_leaving_out() -> None:
    """With as many groups as half the samples: the same as computing each leave-two-out distance from scratch."""
    x, reference = normal(12, 2), of_moments(torch.ones(2), torch.eye(2))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tensor_split(6)
    keep = [[i for i in range(12) if i not in rows] for rows in order]
    values = torch.tensor([frechet(Statistics.of(x[k]), reference) for k in keep], dtype=torch.float64)
    expected = math.sqrt(5 / 6 * float((values - values.mean()).square().sum()))
    assert frechet_with_error(x, reference, groups=6, seed=3).standard_error == pytest.approx(expected, rel=1e-10)


def test_frechet_bad_input() -> None:
    with pytest.raises(ArgumentError, match="3 features and b 4"):
        frechet(Statistics.of(normal(9, 3)), Statistics.of(normal(9, 4)))
    with pytest.raises(ArgumentError, match="fewer than the 48"):
        frechet_with_error(normal(40, 3), Statistics.of(normal(9, 3)))
    with pytest.raises(ArgumentError, match="groups = 1"):
        frechet_with_error(normal(40, 3), Statistics.of(normal(9, 3)), groups=1)
    with pytest.raises(ArgumentError, match="columns, reference"):
        frechet_with_error(normal(90, 3), Statistics.of(normal(9, 4)))


# ---------------------------------------------------------------------------------------------------------- kernel
def brute_kernel_distance(a: Tensor, b: Tensor) -> float:
    n, m, d = len(a), len(b), a.shape[1]

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / d + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_kernel_distance_equals_the_double_sum() -> None:
    a, b = normal(9, 4, seed=1) + 0.5, normal(12, 4, seed=2)
    assert kernel_distance(a, b).value == pytest.approx(brute_kernel_distance(a, b), abs=1e-12)


def test_kernel_distance_error_equals_leaving_out() -> None:
    a, b = normal(9, 4, seed=1) + 0.5, normal(12, 4, seed=2)

    def without(i: int, x: Tensor) -> Tensor:
        return torch.cat([x[:i], x[i + 1 :]])

    over_a = torch.tensor([brute_kernel_distance(without(i, a), b) for i in range(9)], dtype=torch.float64)
    over_b = torch.tensor([brute_kernel_distance(a, without(i, b)) for i in range(12)], dtype=torch.float64)
    expected = math.sqrt(8 * float(over_a.var(correction=0)) + 11 * float(over_b.var(correction=0)))
    assert kernel_distance(a, b).standard_error == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_and_its_error_true() -> None:
    runs = [kernel_distance(normal(60, 3, seed=s), normal(80, 3, seed=1000 + s)) for s in range(200)]
    values = torch.tensor([r.value for r in runs])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(200)
    shifted = [kernel_distance(normal(60, 3, seed=s) + 0.7, normal(80, 3, seed=1000 + s)) for s in range(200)]
    claimed = float(torch.tensor([r.standard_error**2 for r in shifted]).mean().sqrt())
    assert claimed == pytest.approx(float(torch.tensor([r.value for r in shifted]).std()), rel=0.2)


def test_kernel_distance_in_blocks_and_of_a_set_with_itself() -> None:
    a = normal(2100, 2)
    cross = 2 * ((a @ a.T / 2 + 1) ** 3).sum() / 2100**2
    within = (((a @ a.T / 2 + 1) ** 3).sum() - ((a * a).sum(1) / 2 + 1).pow(3).sum()) / (2100 * 2099)
    assert kernel_distance(a, a).value == pytest.approx(float(2 * within - cross), abs=1e-10)
    with pytest.raises(ArgumentError, match="one feature network"):
        kernel_distance(a, normal(5, 3))


# ------------------------------------------------------------------------------------------------------ neighbours
def brute_precision_recall(fake: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(points: Tensor, i: int) -> float:
        return sorted(float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i)[k - 1]

    def share(points: Tensor, manifold: Tensor) -> float:
        radii = [radius(manifold, i) for i in range(len(manifold))]
        return sum(any(float((p - q).norm()) <= r for q, r in zip(manifold, radii, strict=True)) for p in points) / len(
            points
        )

    radii = [radius(real, i) for i in range(len(real))]
    inside = [[float((f - q).norm()) <= r for q, r in zip(real, radii, strict=True)] for f in fake]
    density = sum(map(sum, inside)) / (k * len(fake))
    coverage = sum(any(column) for column in zip(*inside, strict=True)) / len(real)
    return share(fake, real), share(real, fake), density, coverage


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [4, 1000])
def test_precision_recall_equals_brute_force(k: int, block: int) -> None:
    fake, real = normal(14, 3, seed=1) * 0.6 + 0.3, normal(11, 3, seed=2)
    assert precision_recall(fake, real, k=k, block=block) == pytest.approx(
        brute_precision_recall(fake, real, k), abs=1e-12
    )


def test_precision_recall_of_extremes() -> None:
    x = normal(50, 4) + 1e4  # far from the origin: distances must not lose digits
    assert precision_recall(x, x)[:2] == (1.0, 1.0)
    assert precision_recall(x, x + 1e3) == (0.0, 0.0, 0.0, 0.0)
    narrow = precision_recall(x.mean(0) + 0.01 * normal(50, 4, seed=3), x)
    assert narrow.precision == 1.0
    assert narrow.recall < 0.1
    with pytest.raises(ArgumentError, match="k = 3 with 3 samples"):
        precision_recall(x[:3], x)
    with pytest.raises(ArgumentError, match="one feature network"):
        precision_recall(x, normal(9, 3))


# ------------------------------------------------------------------------------------------------------- transport
def test_sliced_wasserstein_of_a_shift() -> None:
    x, shift = normal(70, 5), normal(5, seed=4)
    along = directions(5, 16, seed=2) @ shift
    assert sliced_wasserstein(x + shift, x, projections=16, seed=2) == pytest.approx(
        float(along.square().mean().sqrt()), abs=1e-12
    )
    assert sliced_wasserstein(x, x.flip(0)) < 1e-14
    assert sliced_wasserstein(x + shift, x, projections=16, seed=2, p=1) == pytest.approx(
        float(along.abs().mean()), abs=1e-12
    )


def test_sliced_wasserstein_of_unequal_numbers_equals_repeated_samples() -> None:
    a, b = normal(6, 2, 2, seed=1), normal(4, 2, 2, seed=2)
    repeated = sliced_wasserstein(a.repeat_interleave(2, 0), b.repeat_interleave(3, 0))
    assert sliced_wasserstein(a, b) == pytest.approx(repeated, abs=1e-12)


def test_sliced_wasserstein_in_one_dimension_equals_scipy() -> None:
    from scipy.stats import wasserstein_distance

    a, b = normal(9, 1, seed=1), normal(7, 1, seed=2)
    assert sliced_wasserstein(a, b, p=1, projections=3) == pytest.approx(
        wasserstein_distance(a[:, 0], b[:, 0]), abs=1e-12
    )


def test_sliced_wasserstein_bad_input() -> None:
    with pytest.raises(ArgumentError, match="projections = 0"):
        sliced_wasserstein(normal(3, 2), normal(3, 2), projections=0)
    with pytest.raises(ArgumentError, match=r"p = 0\.5"):
        sliced_wasserstein(normal(3, 2), normal(3, 2), p=0.5)
    with pytest.raises(ArgumentError, match="one shape"):
        sliced_wasserstein(normal(3, 2), normal(3, 3))


# ---------------------------------------------------------------------------------------------------------- paired
def test_paired_distances() -> None:
    a, b = normal(4, 1, 3, 3, seed=1), normal(4, 1, 3, 3, seed=2)
    expected = torch.tensor(
        [math.sqrt(sum(float(v) ** 2 for v in (a[i] - b[i]).flatten())) for i in range(4)], dtype=torch.float64
    )
    assert (paired_l2(a, b) - expected).abs().max() < 1e-12
    assert (paired_rmse(a, b) - expected / 3).abs().max() < 1e-12

    def features(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]

    gap = features(a) - features(b)
    assert (paired_l2(a, b, features=features) - gap.norm(dim=1)).abs().max() < 1e-12
    assert (paired_rmse(a, b, features=features) - gap.norm(dim=1) / 2).abs().max() < 1e-12
    with pytest.raises(ArgumentError, match="not pairs"):
        paired_l2(a, b[:3])


def test_mean_with_error() -> None:
    assert mean_with_error(torch.tensor([1.0, 2.0, 3.0, 6.0])) == pytest.approx((3.0, math.sqrt(14 / 3 / 4)))
    with pytest.raises(ArgumentError, match="fewer than the 2"):
        mean_with_error(torch.tensor([1.0]))


# ------------------------------------------------------------------------------------------------------ likelihood
def test_gaussian_kl_equals_torch_distributions() -> None:
    from torch.distributions import MultivariateNormal, kl_divergence

    ca, cb = covariance(4, 6, 1), covariance(4, 6, 2)
    a, b = MultivariateNormal(normal(4, seed=3), ca), MultivariateNormal(normal(4, seed=4), cb)
    assert gaussian_kl(a.mean, ca, b.mean, cb) == pytest.approx(float(kl_divergence(a, b)), rel=1e-10)
    assert gaussian_kl(a.mean, ca, a.mean, ca) == pytest.approx(0, abs=1e-12)


def test_gaussian_kl_of_nearly_equal_keeps_its_digits() -> None:
    eps = 1e-7
    value = gaussian_kl(torch.zeros(1), torch.tensor([[1 + eps]], dtype=torch.float64), torch.zeros(1), torch.eye(1))
    assert value == pytest.approx(eps**2 / 4, rel=1e-5, abs=0)


def test_gaussian_kl_of_degenerate() -> None:
    flat = torch.diag(torch.tensor([1.0, 0.0]))
    assert gaussian_kl(torch.zeros(2), flat, torch.zeros(2), torch.eye(2)) == math.inf
    with pytest.raises(ArgumentError, match="cov_b is not positive definite"):
        gaussian_kl(torch.zeros(2), torch.eye(2), torch.zeros(2), flat)
    with pytest.raises(ArgumentError, match="shapes"):
        gaussian_kl(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


def log_normal(x: Tensor) -> Tensor:
    return -0.5 * (x**2 + math.log(2 * math.pi)).flatten(1).sum(1)


def test_negative_log_likelihood_entropy_and_kl() -> None:
    x = normal(4000, 2)
    true = 1 + math.log(2 * math.pi)
    for estimate in (negative_log_likelihood(x, log_normal), entropy(x)):
        assert abs(estimate.value - true) < 4 * estimate.standard_error < 0.1
    near, far = kl_to_density(x, log_normal), kl_to_density(0.5 * x + 1, log_normal)
    exact = gaussian_kl(torch.ones(2), 0.25 * torch.eye(2), torch.zeros(2), torch.eye(2))
    assert abs(near.value) < 4 * near.standard_error
    assert abs(far.value - exact) < 4 * far.standard_error < 0.2
    with pytest.raises(ArgumentError, match=r"must return \[B\]"):
        negative_log_likelihood(x, lambda x: x)
    with pytest.raises(ArgumentError, match="coincide"):
        entropy(torch.zeros(10, 2))
