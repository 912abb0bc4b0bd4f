"""Gaussian mixture: full or diagonal covariances, learned by expectation maximisation.

An observation comes from one of K Gaussians, and which one is the latent variable:

    p(x) = Σ_k π_k N(x; μ_k, Σ_k).

Expectation maximisation (Dempster et al. 1977) alternates the responsibilities r_k(x) = P(k | x) with the weighted
moments of the data under them, from a start by k-means++ (Arthur & Vassilvitskii 2007); each round raises the
likelihood. Features are standardised first and the Jacobian is counted. To each covariance a ridge is added, in units
of the standardised features: the exact maximiser for data blurred by noise of that variance; unless it is given, it is
the one that held-out rows like best.

The integers of an image are dequantised by uniform noise u in [0, 1) (Theis et al. 2016) and mapped to the reals by
y = logit(λ + (1 − 2λ) (x + u) / levels), which spreads the crowd of black pixels that no Gaussian can follow. The noise
is not drawn: y has a mean m and a variance v for each level, and

    E_u log N(y; μ, Σ) = log N(m; μ, Σ) − ½ Σ_i (Σ⁻¹)_ii v_i,
    log P(x) ≥ log Σ_k π_k exp(E_u log N(y; μ_k, Σ_k)) + E_u log |dy / dx|

by Jensen's inequality. This bound is deterministic, and expectation maximisation climbs it exactly: v is added to the
second moments, so that a pixel that never changes needs no ridge.

References
----------
Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm. Journal of the Royal
    Statistical Society B 39(1).
Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding. SODA.
Theis, van den Oord & Bethge (2016), A note on the evaluation of generative models. arXiv:1511.01844.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TrainingError
from tacit.model import Model
from tacit.spaces import Images, Space, Vectors

# What `components=None` and `ridge=None` choose from (the search begins at the first ridge), on this share of the rows;
# one component always, more while their factors have no more than `_ROOM` entries.
_COMPONENTS = (1, 2, 3, 5, 10, 20)
_ROOM = 2**23
_RIDGES = (1e-2, 1e-1, 1e-3, 1e-4)
_HELD_OUT = 0.2
# Beyond this many features a full covariance takes minutes and gigabytes.
_FULL = 4096
# Beyond this many dimensions the products of an E-step are taken in float32; all else is float64.
_WIDE = 128
# λ of the logit, for images.
_MARGIN = 1e-4
# Multiplications of one E-step: with more rows than that allows, EM runs on a random part of them and ends with one
# round over all of them. Where time is short, a search of about thirty such steps is to fit into it.
_WORK = 1.2e11
_WORK_A_SECOND = 1e10 / 30
# Largest number of elements of one temporary tensor.
_BLOCK = 2**23


class Mixture(NamedTuple):
    """log π (K,), μ (K, D), and the factor A of Σ⁻¹ = A Aᵀ: upper triangular (K, D, D), or a diagonal (K, D)."""

    log_weight: Tensor
    mean: Tensor
    factor: Tensor


class Reals(NamedTuple):
    """Observations as real numbers: their mean and, where they are dequantised, variance over the noise, (batch, D)."""

    mean: Tensor
    variance: Tensor | None


# Σ r, Σ r z and Σ r E[z zᵀ] of each component: (K,), (K, D) and (K, D, D) or its diagonal (K, D).
Moments = tuple[Tensor, Tensor, Tensor]


class GaussianMixture(Model):
    """Gaussian mixture.

    Args:
        space: rows of a table, or images.
        components: number K of Gaussians; None chooses by the likelihood of held-out rows, fewest first, as long as
            there is time.
        covariance: "full" or "diagonal"; by default full up to 4096 features.
        ridge: variance added to every feature, in units of its variance in the data; None chooses, likewise.
        restarts: how often to start anew; the run of the greatest likelihood is kept.
        iterations: most rounds of expectation maximisation.
        tolerance: the least gain of a round, in nats a dimension; below it the run ends.

    Raises:
        SpaceError: an argument is too small.
    """

    spaces: ClassVar = (Vectors, Images)

    log_weight: Tensor
    mean: Tensor
    factor: Tensor
    shift: Tensor
    scale: Tensor
    level: Tensor

    def __init__(
        self,
        space: Space,
        *,
        components: int | None = None,
        covariance: Literal["full", "diagonal"] | None = None,
        ridge: float | None = None,
        restarts: int = 1,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ):
        super().__init__(space)
        for name, given, least in (
            ("components", components or 1, 1),
            ("ridge", ridge or 0.0, 0),
            ("restarts", restarts, 1),
            ("iterations", iterations, 1),
            ("tolerance", tolerance, 0),
        ):
            if given < least:
                raise SpaceError(
                    f"gaussian-mixture needs {name} of at least {least}, not {given}: give a larger number"
                )
        features = space.dimensions
        self.components, self.ridge = components, ridge
        self.covariance = covariance or ("full" if features <= _FULL else "diagonal")
        self.restarts, self.iterations, self.tolerance = restarts, iterations, tolerance
        unit = torch.eye(features) if self.covariance == "full" else torch.ones(features)
        most = components or max(c for c in _COMPONENTS if c == 1 or c * unit.numel() <= _ROOM)
        # Where `components=None` chose fewer than there is room for, the rest have weight zero.
        self.register_buffer("log_weight", torch.full((most,), -math.log(most)))
        self.register_buffer("mean", torch.zeros(most, features))
        self.register_buffer("factor", unit.expand(most, *unit.shape).clone())
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        if space.levels:
            self.register_buffer("level", _of_levels(space.levels), persistent=False)

    @property
    def density(self) -> Kind:
        """Exact for rows of a table; a lower bound for images, which are dequantised."""
        return "bound" if isinstance(self.space, Images) else "exact"

    # -- the user's units and the mixture's --------------------------------------------------------------------------

    def _reals(self, x: Tensor) -> Reals:
        """Observations as real numbers, (batch, features), before they are standardised."""
        if not self.space.levels:
            return Reals(x.double(), None)
        mean, variance = self.level[:2, x.flatten(1).long()]
        return Reals(mean, variance)

    def _standardised(self, x: Tensor) -> Reals:
        """Observations as real numbers of mean 0 and variance 1 in the data, (batch, features)."""
        wide = self.space.dimensions > _WIDE and self.covariance == "full"
        dtype = torch.float32 if wide else torch.float64
        mean, variance = self._reals(x)
        z = ((mean - self.shift) / self.scale).to(dtype)
        return Reals(z, None if variance is None else (variance / self.scale.double().square()).to(dtype))

    def _log_det(self, x: Tensor) -> Tensor:
        """E_u log |dz / dx| in nats, (batch,)."""
        log_det = -self.scale.double().log().sum()
        return log_det + self.level[2, x.flatten(1).long()].sum(1) if self.space.levels else log_det.expand(len(x))

    def _measure(self, data: Dataset) -> None:
        """Shift and scale of each feature: its mean and deviation in the data, of a constant one 1."""
        total = torch.zeros(2, self.space.dimensions, dtype=torch.float64, device=self.device)
        shift = self._reals(data[torch.zeros(1, dtype=torch.int64)].to(self.device)).mean
        for index in data.ordered(4096):
            mean, variance = self._reals(data[index].to(self.device))
            square = (mean - shift).square() if variance is None else (mean - shift).square() + variance
            total += torch.stack(((mean - shift).sum(0), square.sum(0)))
        mean, square = total / len(data)
        variance = square - mean.square()
        self.shift.copy_((shift + mean)[0])
        self.scale.copy_(torch.where(variance > 1e-24, variance.sqrt(), 1.0))

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_exactly(self, data: Dataset, seconds: float = math.inf) -> None:
        """Expectation maximisation, `restarts` times for each number of components in question.

        What is to be chosen, components or ridge, is chosen by the likelihood of a fifth of the rows, held out; the
        winner then goes on from where it stands with all rows. When `seconds` are over the best so far is kept; one
        number of components is tried however long it takes.

        Raises:
            DataError: there are fewer rows than components.
            TrainingError: a covariance is singular.
        """
        if len(data) < (self.components or 1):
            raise DataError(
                f"{data.name} has {len(data)} rows, too few for {self.components} components: give {len(data)} or fewer"
            )
        end = time.monotonic() + seconds
        self._measure(data)
        room = min(len(data), len(self.mean))
        candidates = [self.components] if self.components else [c for c in _COMPONENTS if c <= room]
        ridges = _RIDGES if self.ridge is None else (self.ridge,)
        work = max(candidates) * self.factor[0].numel()
        most = max(int(min(_WORK, _WORK_A_SECOND * seconds) / work), 10 * max(candidates))
        every = torch.randperm(len(data))
        held_out = int(_HELD_OUT * len(data)) if len(candidates) * len(ridges) > 1 else 0
        rows = every[held_out:][:most]
        train = self._standardised(data[rows].to(self.device))
        judge = self._standardised(data[every[:held_out][:most]].to(self.device)) if held_out else train

        rivals: list[tuple[float, Mixture, float]] = []
        took = 0.0  # for each component
        for components in (c for c in candidates for _ in range(self.restarts)):
            if rivals and time.monotonic() + components * took > end:
                break
            started = time.monotonic()
            mixture = self._climb(train, self._start(train, components, ridges[0]), ridges[0], end)
            moments = _moments(train, self._log_joint(train, mixture).softmax(1), self.covariance)
            for choice in ridges:
                rival = _maximise(moments, choice)
                rivals.append((self._score(judge, rival), rival, choice))
            took = (time.monotonic() - started) / components
        _, best, ridge = max(rivals, key=lambda each: each[0])
        if held_out and time.monotonic() < end:
            rows = every[:most]
            best = self._climb(self._standardised(data[rows].to(self.device)), best, ridge, end)
        if len(rows) < len(data) and time.monotonic() < end:
            best = _maximise(self._all_moments(data, best), ridge)
        self.log_weight.fill_(-math.inf)
        for buffer, value in zip((self.log_weight, self.mean, self.factor), best, strict=True):
            buffer[: len(value)] = value

    def _all_moments(self, data: Dataset, mixture: Mixture) -> Moments:
        """The moments of all rows under the responsibilities of `mixture`."""
        parts = (self._standardised(data[index].to(self.device)) for index in data.ordered(4096))
        moments = (_moments(z, self._log_joint(z, mixture).softmax(1), self.covariance) for z in parts)
        total = next(moments)
        for added in moments:
            for sums, more in zip(total, added, strict=True):
                sums += more
        return total

    def _start(self, data: Reals, components: int, ridge: float) -> Mixture:
        """The moments of clusters found by k-means, its centres drawn by k-means++."""
        z = data.mean
        centres = z[torch.randint(len(z), (1,), device=z.device)]
        nearest = (z - centres).square().sum(1)
        for _ in range(components - 1):
            # Where all rows lie on centres already, any will do.
            chance = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
            drawn = torch.searchsorted(chance.cumsum(0), chance.sum() * torch.rand(1, device=z.device, dtype=z.dtype))
            centre = z[drawn.clamp(max=len(z) - 1)]
            centres = torch.cat((centres, centre))
            nearest = nearest.minimum((z - centre).square().sum(1))
        for _ in range(10):
            closest = _closest(z, centres)
            count = closest.bincount(minlength=components).to(z.dtype)
            total = torch.zeros_like(centres).index_add_(0, closest, z)
            centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centres)
        member = torch.nn.functional.one_hot(_closest(z, centres), components).to(z.dtype)
        return _maximise(_moments(data, member, self.covariance), ridge)

    def _climb(self, data: Reals, mixture: Mixture, ridge: float, end: float = math.inf) -> Mixture:
        """Rounds of expectation maximisation from `mixture` until they gain no more or it is `end`."""
        before = -math.inf
        for _ in range(self.iterations):
            if time.monotonic() > end:
                break
            log_joint = self._log_joint(data, mixture)
            now = log_joint.logsumexp(1).mean(dtype=torch.float64).item()
            if now - before < self.tolerance * self.space.dimensions:
                break
            before = now
            mixture = _maximise(_moments(data, log_joint.softmax(1), self.covariance), ridge)
        return mixture

    def _score(self, data: Reals, mixture: Mixture) -> float:
        """Mean log-likelihood of standardised rows, in nats."""
        return self._log_joint(data, mixture).logsumexp(1).mean(dtype=torch.float64).item()

    def _log_joint(self, data: Reals, mixture: Mixture) -> Tensor:
        """E_u log π_k N(z; μ_k, Σ_k) of rows (batch, features): (batch, K)."""
        z, variance = data
        log_weight, mean, factor = (value.to(z.dtype) for value in mixture)
        if factor.dim() == 3:
            log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
            at_mean = mean.unsqueeze(1) @ factor
            rows = max(1, _BLOCK // factor[..., 0].numel())
            square = torch.cat([(part @ factor - at_mean).square().sum(2).T for part in z.split(rows)])
        else:
            log_det = factor.log().sum(1)
            rows = max(1, _BLOCK // factor.numel())
            square = torch.cat([((part.unsqueeze(1) - mean) * factor).square().sum(2) for part in z.split(rows)])
        if variance is not None:
            square = square + variance @ (factor.square().sum(2) if factor.dim() == 3 else factor.square()).T
        return log_weight + log_det - 0.5 * (z.shape[1] * math.log(2 * math.pi) + square)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _mixture(self) -> Mixture:
        return Mixture(self.log_weight, self.mean, self.factor)

    def _user_log_joint(self, x: Tensor) -> Tensor:
        """Log π_k p(x | k) in nats of the user's data: (batch, K)."""
        log_joint = self._log_joint(self._standardised(self.space.check(x)), self._mixture())
        return log_joint.double() + self._log_det(x)[:, None]

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) in nats, (batch,): exact for rows of a table, a lower bound on the log mass of an image."""
        return self._user_log_joint(x).logsumexp(1).float()

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """A component, then its Gaussian: weights to the power 1 / `temperature`, covariances times `temperature`."""
        chance = (self.log_weight / temperature).softmax(0)
        component = torch.multinomial(chance, count, replacement=True)
        y = torch.randn(count, self.space.dimensions, device=self.device) * math.sqrt(temperature)
        z = torch.empty_like(y)
        for k in component.unique():
            rows = component == k
            factor = self.factor[k]
            if factor.dim() == 2:
                z[rows] = torch.linalg.solve_triangular(factor, y[rows], upper=True, left=False) + self.mean[k]
            else:
                z[rows] = y[rows] / factor + self.mean[k]
        x = z * self.scale + self.shift
        if self.space.levels:
            x = (_from_logit(x) * self.space.levels).floor().clamp(0, self.space.levels - 1)
        return x.view(count, *self.space.shape).to(self.space.torch_dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The responsibilities P(k | x): (batch, K)."""
        return self._user_log_joint(x).softmax(1).float()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The observation at the mean of the components under responsibilities (batch, K): (batch, *space.shape)."""
        x = (z.to(self.mean) @ self.mean) * self.scale + self.shift
        if self.space.levels:
            x = (_from_logit(x) * self.space.levels - 0.5).clamp(0, self.space.levels - 1)
        return x.view(len(z), *self.space.shape)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Log p(x | k) of every component, in nats a dimension, (batch, K): responsibilities saturate, these do not."""
        mixture = self._mixture()._replace(log_weight=torch.zeros_like(self.log_weight))
        return (self._log_joint(self._standardised(self.space.check(x)), mixture) / self.space.dimensions).float()


def _closest(z: Tensor, centres: Tensor) -> Tensor:
    """The number of the nearest centre (K, D) of each row (batch, D): (batch,)."""
    return (centres.square().sum(1) - 2 * z @ centres.T).argmin(1)


def _moments(data: Reals, responsibility: Tensor, covariance: str) -> Moments:
    """The sums over rows (batch, D) under their responsibilities (batch, K), in float64."""
    z, variance = data
    if covariance == "diagonal":
        second = (responsibility.T @ (z.square() if variance is None else z.square() + variance)).double()
    else:
        weighted = []
        for r in responsibility.unbind(1):
            # Among many features nearly every row belongs to one component alone.
            rows = (r > 1e-9).nonzero()[:, 0]
            member = z[rows] * r[rows, None].sqrt()
            weighted.append((member.T @ member).double())
        second = torch.stack(weighted)
        if variance is not None:
            second.diagonal(dim1=1, dim2=2).add_((responsibility.T @ variance).double())
    return responsibility.sum(0, dtype=torch.float64), (responsibility.T @ z).double(), second


def _maximise(moments: Moments, ridge: float) -> Mixture:
    """The mixture of these moments: the M-step, in float64."""
    count, first, second = moments
    n = count.clamp(min=torch.finfo(count.dtype).tiny)
    mean = first / n[:, None]
    if second.dim() == 2:
        variance = (second / n[:, None] - mean.square()).clamp(min=0) + ridge
        factor = variance.rsqrt()
        broken = ~factor.isfinite().all(1)
    else:
        covariance = second / n[:, None, None] - mean.unsqueeze(2) * mean.unsqueeze(1)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        lower, info = torch.linalg.cholesky_ex(covariance)
        broken = info > 0
        eye = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        if not broken.any():
            factor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).mT
    if broken.any():
        raise TrainingError(
            f"the covariance of component {int(broken.nonzero()[0])} of gaussian-mixture is singular at "
            f"ridge={ridge:g}: give a larger ridge or fewer components"
        )
    return Mixture((count / count.sum()).log(), mean, factor)


def _of_levels(levels: int) -> Tensor:
    """Mean and variance of y = logit(λ + (1 − 2λ) (x + u) / levels) over u, and E_u log |dy / dx|: (3, levels)."""
    # Nodes that crowd towards both ends of the interval, where the logit bends.
    angle = math.pi * (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    u, weight = (1 - angle.cos()) / 2, angle.sin() / angle.sin().sum()
    p = _MARGIN + (1 - 2 * _MARGIN) * (torch.arange(levels).unsqueeze(1) + u) / levels
    y = p.logit()
    mean = y @ weight
    slope = math.log((1 - 2 * _MARGIN) / levels) - (p.log() + (-p).log1p())
    return torch.stack((mean, (y - mean[:, None]).square() @ weight, slope @ weight))


def _from_logit(y: Tensor) -> Tensor:
    """The inverse of the logit, in [0, 1] for what observations can be."""
    return (y.sigmoid() - _MARGIN) / (1 - 2 * _MARGIN)
