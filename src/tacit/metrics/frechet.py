"""How near drawn samples are to real data: distances between two sets of feature vectors.

Every function takes `real` and `fake`, (rows, features), from any extractor (`metrics/extractor.py`), and works in
float64. None of them is "FID": that name belongs to one particular Inception network. The numbers depend on the
extractor and, all but KID, on how many rows each side has, so print both beside them, and the distance between two
sets of real data: the floor, below which a difference means nothing.

References
----------
Heusel et al. (2017), GANs trained by a two time-scale update rule converge to a local Nash equilibrium,
    arXiv:1706.08500: the Fréchet distance of two Gaussians fitted to features.
Bińkowski et al. (2018), Demystifying MMD GANs, arXiv:1801.01401: KID.
Kynkäänniemi et al. (2019), Improved precision and recall metric for assessing generative models, arXiv:1904.06991.
Naeem et al. (2020), Reliable fidelity and diversity metrics for generative models, arXiv:2002.09797: density, coverage.
Chong & Forsyth (2020), Effectively unbiased FID and Inception score and where to find them, arXiv:1911.07023: the
    bias in the number of rows, which `jackknife` takes off.
Rabin et al. (2012), Wasserstein barycenter and its application to texture mixing: sliced Wasserstein.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.errors import DataError


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the two sets' means and covariances.

    |μ_r − μ_f|² + tr Σ_r + tr Σ_f − 2 tr (Σ_r Σ_f)^½. With centred rows X = Q R, Σ = RᵀR / (n − 1), and the last trace
    is the sum of the singular values of R_r R_fᵀ: no covariance is formed, so none loses half its digits to a square
    root, and rows may be fewer than features.

    Raises:
        DataError: either side has fewer than two rows.
    """
    real, fake = _check(real, fake)
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    root_real, root_fake = _root(real), _root(fake)
    overlap = torch.linalg.svdvals(root_real @ root_fake.T).sum()
    distance = shift + root_real.square().sum() + root_fake.square().sum() - 2 * overlap
    return max(0.0, float(distance))


def _root(x: Tensor) -> Tensor:
    """R with RᵀR the covariance of the rows of `x`."""
    return torch.linalg.qr(x - x.mean(0), mode="r").R / math.sqrt(len(x) - 1)


def kernel_distance(real: Tensor, fake: Tensor, *, most: int = 2000, groups: int = 10) -> tuple[float, float]:
    """KID: the squared maximum mean discrepancy of the kernel (x·y / features + 1)³, and its standard error.

    Both sides are first divided by the real side's standard deviations, for the cube lets the largest feature drown
    the others. The estimate is unbiased at any number of rows, and may therefore be negative. Where the paper averages
    it over random subsets, this is the average over all of them: the U-statistic of the first `most` rows. The error
    is the jackknife's, leaving out one group of rows on both sides at a time.

    Raises:
        DataError: either side has fewer than four rows.
    """
    real, fake = _check(real[:most], fake[:most], least=4)
    mean, scale = real.mean(0), real.std(0)
    scale = torch.where(scale > 1e-12, scale, 1.0)
    real, fake = (real - mean) / scale, (fake - mean) / scale
    among_real, among_fake, between = _cubic(real, real), _cubic(fake, fake), _cubic(real, fake)
    groups = min(groups, min(len(real), len(fake)) // 2)
    group_real = torch.arange(len(real), device=real.device) % groups
    group_fake = torch.arange(len(fake), device=fake.device) % groups
    left = []
    for g in range(groups):
        i, j = (group_real != g).nonzero().squeeze(1), (group_fake != g).nonzero().squeeze(1)
        left.append(_squared_mmd(among_real[i][:, i], among_fake[j][:, j], between[i][:, j]))
    estimate = _squared_mmd(among_real, among_fake, between)
    return float(estimate), _jackknife_error(torch.stack(left))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _squared_mmd(among_x: Tensor, among_y: Tensor, between: Tensor) -> Tensor:
    """The unbiased estimate from the three kernel matrices: no row is compared with itself."""

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    return off_diagonal(among_x) + off_diagonal(among_y) - 2 * between.mean()


@dataclass(frozen=True)
class Support:
    """How two supports, each a union of balls that reach to the k-th neighbour, cover one another.

    Attributes:
        precision: fraction of fakes within the real support: are samples plausible?
        recall: fraction of real rows within the fakes' support: is everything there?
        density: how many real balls hold a fake, over k; above 1 where fakes crowd around dense real regions.
        coverage: fraction of real balls that hold a fake; unlike recall, untouched by far-off fakes with large balls.
        density_error: the standard error of `density` over fakes; the others are shares, whose error is binomial.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    density_error: float


def support(real: Tensor, fake: Tensor, k: int = 3) -> Support:
    """Improved precision and recall, density and coverage, by k-nearest-neighbour balls.

    Raises:
        DataError: either side has too few rows to have a k-th neighbour.
    """
    real, fake = _check(real, fake, least=k + 1)
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)
    held = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    recalled, covered = [], []
    for rows, reach in zip(real.split(_ROWS), reach_real.split(_ROWS), strict=True):
        distance = _distances(rows, fake)
        inside = distance <= reach[:, None]
        held += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distance <= reach_fake).any(1))
    return Support(
        precision=float((held > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(held.double().mean()) / k,
        coverage=float(torch.cat(covered).double().mean()),
        density_error=float(held.double().std()) / k / math.sqrt(len(held)),
    )


# Rows of one block of a distance matrix: 1024 by 10,000 float64 are 80 MB.
_ROWS = 1024


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The product form of cdist is off by ~1e-7 |x|², which matters where a ball's edge is met exactly.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _reach(x: Tensor, k: int) -> Tensor:
    """Distance from each row to its k-th nearest other row, (rows,)."""
    return torch.cat([_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(_ROWS)])


def sliced_wasserstein(real: Tensor, fake: Tensor, *, projections: int = 256, seed: int = 0) -> float:
    """The squared 2-Wasserstein distance along random directions, on average.

    In one dimension the optimal plan matches quantiles; sets of different sizes are compared at the smaller's. Unlike
    the two distances above, which see means and covariances or three moments, it is zero for equal distributions
    alone: the one to use where the features are the data's own few columns.

    Raises:
        DataError: either side has fewer than two rows.
    """
    real, fake = _check(real, fake)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(real.shape[1], projections, generator=generator, dtype=torch.float64).to(real.device)
    directions = directions / directions.norm(dim=0)
    rows = min(len(real), len(fake))
    levels = (torch.arange(rows, dtype=torch.float64, device=real.device) + 0.5) / rows
    gap = _quantiles(real @ directions, levels) - _quantiles(fake @ directions, levels)
    return float(gap.square().mean())


def _quantiles(x: Tensor, levels: Tensor) -> Tensor:
    """Each column's quantiles, (levels, columns)."""
    ordered = x.sort(0).values
    return ordered[(levels * len(x)).long().clamp(max=len(x) - 1)]


def jackknife(metric: Callable[[Tensor], float], fake: Tensor, groups: int = 10) -> tuple[float, float]:
    """`metric(fake)` freed of its bias in the number of rows, and its standard error over the drawing of `fake`.

    Leaving out one group of rows at a time shows how the metric changes with their number: what falls as 1/rows is
    taken off (Quenouille). Two models judged on different numbers of samples, as long as these are more than the
    features, can then be compared; the Fréchet distance itself falls threefold between 80 and 500 rows.
    """
    groups = min(groups, len(fake))
    whole = metric(fake)
    if groups < 2:
        return whole, math.nan
    group = torch.arange(len(fake), device=fake.device) % groups
    left = torch.tensor([metric(fake[group != g]) for g in range(groups)], dtype=torch.float64)
    return groups * whole - (groups - 1) * float(left.mean()), _jackknife_error(left)


def _jackknife_error(left: Tensor) -> float:
    """Standard error from the estimates that each leave one group out, (groups,)."""
    return math.sqrt((len(left) - 1) / len(left) * float((left - left.mean()).square().sum()))


def _check(real: Tensor, fake: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    if min(len(real), len(fake)) < least:
        raise DataError(
            f"{len(real)} real and {len(fake)} drawn observations are too few to compare: have at least {least} of each"
        )
    return real.double(), fake.double()
