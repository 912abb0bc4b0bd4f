"""Sample quality against closed forms, naive loops and independent implementations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from tacit.errors import DataError
from tacit.metrics.frechet import frechet_distance, jackknife, kernel_distance, sliced_wasserstein, support


def with_moments(rows: int, mean: Tensor, covariance: Tensor) -> Tensor:
    """Rows whose sample mean and covariance are exactly the ones given."""
    x = torch.randn(rows, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def random_covariance(features: int) -> Tensor:
    root = torch.randn(features, features, dtype=torch.float64)
    return root @ root.T / features + 0.1 * torch.eye(features, dtype=torch.float64)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    mean, shifted = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.0]).double()
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 0.5, 1.0]).double()
    closed = (mean - shifted).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    found = frechet_distance(with_moments(50, mean, a.diag()), with_moments(70, shifted, b.diag()))
    assert found == pytest.approx(float(closed), rel=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    real = with_moments(60, torch.zeros(8).double(), random_covariance(8))
    fake = with_moments(40, torch.ones(8).double(), random_covariance(8))
    root = scipy.linalg.sqrtm(np.cov(real.numpy().T) @ np.cov(fake.numpy().T)).real
    covariances = np.trace(np.cov(real.numpy().T) + np.cov(fake.numpy().T) - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(8 + covariances, rel=1e-8)


def test_frechet_distance_of_fewer_rows_than_features():
    x = torch.randn(5, 20)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 2) == pytest.approx(80, rel=1e-6)
    # In the orthogonal complement of the first's rows, the covariances share nothing: tr Σ_r + tr Σ_f is left.
    a, b = torch.zeros(6, 20), torch.zeros(6, 20)
    a[:, :5], b[:, 10:15] = torch.randn(6, 5), torch.randn(6, 5)
    a, b = a - a.mean(0), b - b.mean(0)
    traces = float(a.square().sum() / 5 + b.square().sum() / 5)
    assert frechet_distance(a, b) == pytest.approx(traces, rel=1e-5)


def naive_kid(real: Tensor, fake: Tensor) -> float:
    mean, scale = real.mean(0), real.std(0)
    x, y = ((real - mean) / scale).tolist(), ((fake - mean) / scale).tolist()

    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(i * j for i, j in zip(a, b, strict=True)) / len(a) + 1) ** 3

    among_x = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    among_y = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [kernel(a, b) for a in x for b in y]
    return float(np.mean(among_x) + np.mean(among_y) - 2 * np.mean(between))


def test_kid_equals_the_naive_double_loop():
    real, fake = torch.randn(14, 3).double(), 1.5 * torch.randn(9, 3).double() + 0.3
    assert kernel_distance(real, fake)[0] == pytest.approx(naive_kid(real, fake), rel=1e-9)


def test_kid_is_unbiased_and_its_error_is_honest():
    found = [kernel_distance(torch.randn(60, 4), torch.randn(60, 4)) for _ in range(200)]
    estimates = torch.tensor([value for value, _ in found])
    # The standardisation by the real side costs a bias of lower order than the error of these 200 estimates.
    assert abs(estimates.mean()) < 3 * estimates.std() / math.sqrt(len(estimates))
    claimed = torch.tensor([error for _, error in found]).mean()
    assert 0.5 < claimed / estimates.std() < 2.0
    shifted, error = kernel_distance(torch.randn(60, 4), torch.randn(60, 4) + 0.8)
    assert shifted > 3 * error


def test_kid_ignores_the_scale_of_a_feature():
    real, fake = torch.randn(50, 3).double(), torch.randn(50, 3).double() + 0.5
    scale = torch.tensor([1.0, 1000.0, 0.01]).double()
    assert kernel_distance(real * scale, fake * scale)[0] == pytest.approx(kernel_distance(real, fake)[0], rel=1e-6)


def naive_support(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    def reach(x: Tensor, i: int) -> float:
        return sorted(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i)[k - 1]

    real_reach = [reach(real, i) for i in range(len(real))]
    fake_reach = [reach(fake, i) for i in range(len(fake))]
    inside_real = np.array([[float((f - r).norm()) <= real_reach[i] for i, r in enumerate(real)] for f in fake])
    inside_fake = np.array([[float((r - f).norm()) <= fake_reach[i] for i, f in enumerate(fake)] for r in real])
    return (
        inside_real.any(1).mean(),
        inside_fake.any(1).mean(),
        inside_real.sum() / k / len(fake),
        inside_real.any(0).mean(),
    )


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_coverage_equal_brute_force(k):
    real, fake = torch.randn(23, 2).double(), 0.7 * torch.randn(17, 2).double() + 0.4
    found = support(real, fake, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(naive_support(real, fake, k))


def test_support_of_identical_and_of_disjoint_sets():
    x = torch.randn(40, 5)
    same = support(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    apart = support(x, x + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_support_tells_missing_modes_from_implausible_samples():
    real = torch.cat([torch.randn(60, 2), torch.randn(60, 2) + 50])
    one_mode = support(real, torch.randn(120, 2))
    assert one_mode.precision > 0.8
    assert one_mode.recall < 0.6
    scattered = support(real, 60 * torch.rand(120, 2))
    assert scattered.precision < 0.4


def test_support_is_the_same_over_several_blocks(monkeypatch):
    real, fake = torch.randn(30, 2), torch.randn(25, 2)
    whole = support(real, fake)
    monkeypatch.setattr("tacit.metrics.frechet._ROWS", 7)
    assert support(real, fake) == whole


def test_sliced_wasserstein_of_a_shift_is_the_mean_projection():
    x = torch.randn(200, 4).double()
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0]).double()
    # The mean square of a fixed vector's projection on random directions is its square norm over the dimension.
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(9 / 4, rel=0.1)
    assert sliced_wasserstein(x, x[torch.randperm(200)]) == 0
    one = torch.randn(50, 1).double()
    other = torch.randn(50, 1).double() * 2
    exact = (one.sort(0).values - other.sort(0).values).square().mean()
    assert sliced_wasserstein(one, other) == pytest.approx(float(exact))


def test_sliced_wasserstein_sees_what_moments_do_not():
    signs = torch.randn(2000, 2).sign() * 0.995 + 0.1 * torch.randn(2000, 2)
    gaussian = torch.randn(2000, 2)
    signs = (signs - signs.mean(0)) / signs.std(0)
    assert sliced_wasserstein(gaussian, signs) > 10 * sliced_wasserstein(gaussian, torch.randn(2000, 2))


def test_sliced_wasserstein_of_sets_of_different_sizes():
    x = torch.arange(6.0).view(-1, 1)
    assert sliced_wasserstein(x.repeat_interleave(3, 0), x) == 0


def test_jackknife_of_a_mean_is_the_mean_and_its_standard_error():
    x = torch.randn(400, 1)
    value, error = jackknife(lambda y: float(y.mean()), x, groups=400)
    assert value == pytest.approx(float(x.mean()), abs=1e-5)
    assert error == pytest.approx(float(x.std()) / math.sqrt(400), rel=1e-3)


def test_jackknife_of_a_biased_variance_is_the_unbiased_one():
    x = torch.randn(30, 1).double()
    value, _ = jackknife(lambda y: float(y.var(unbiased=False)), x, groups=30)
    assert value == pytest.approx(float(x.var()), rel=1e-9)


def test_jackknife_makes_frechet_distances_of_unequal_numbers_comparable():
    real = torch.randn(1500, 20)

    def distance(rows: int) -> tuple[float, float, float]:
        found = [
            (fake := 0.7 * torch.randn(rows, 20), *jackknife(lambda y: frechet_distance(real, y), fake))
            for _ in range(8)
        ]
        plain = [frechet_distance(real, fake) for fake, _, _ in found]
        return float(np.mean(plain)), float(np.mean([f[1] for f in found])), float(np.mean([f[2] for f in found]))

    few, many = distance(60), distance(1200)
    assert few[0] > 1.2 * many[0]
    assert few[1] == pytest.approx(many[1], abs=few[2])


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="too few"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(DataError, match="too few"):
        support(torch.zeros(3, 2), torch.zeros(9, 2), k=3)


def features_of(rows: int, shift: float = 0.0) -> Tensor:
    return (torch.randn(rows, 6) + shift).double() @ random_covariance(6)


def test_frechet_distance_is_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Passed(torch.nn.Module):
        num_features = 6

        def forward(self, x: Tensor) -> Tensor:
            return x

    real, fake = features_of(400), features_of(300, 0.5)
    peer = FrechetInceptionDistance(feature=Passed(), input_img_size=(6,)).set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    assert frechet_distance(real, fake) == pytest.approx(float(peer.compute()), rel=1e-5)


def test_kid_is_torchmetrics_on_standardised_features():
    from torchmetrics.image.kid import poly_mmd

    real, fake = features_of(90), features_of(90, 0.4)
    mean, scale = real.mean(0), real.std(0)
    peer = poly_mmd((real - mean) / scale, (fake - mean) / scale, degree=3, gamma=None, coef=1.0)
    assert kernel_distance(real, fake)[0] == pytest.approx(float(peer), rel=1e-5)


def test_support_is_that_of_prdc(capsys):
    from prdc import compute_prdc

    real, fake = features_of(120), features_of(90, 0.3)
    found, peer = support(real, fake, k=5), compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(peer[name], abs=1e-5), name


def test_the_error_of_density_is_that_of_repetition():
    real = torch.randn(300, 3)
    found = [support(real, torch.randn(200, 3), k=3) for _ in range(40)]
    spread = torch.tensor([f.density for f in found]).std()
    assert 0.6 < torch.tensor([f.density_error for f in found]).mean() / spread < 1.5
