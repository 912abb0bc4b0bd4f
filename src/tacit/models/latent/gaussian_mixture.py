"""Gaussian mixture: full or diagonal covariances, learned by expectation maximisation.

An observation comes from one of K Gaussians, and which one is the latent variable:

    p(x) = Σ_k π_k N(x; μ_k, Σ_k).

Expectation maximisation (Dempster et al. 1977) alternates the responsibilities r_k(x) = P(k | x) with the weighted
moments of the data under them, from a start by k-means++ (Arthur & Vassilvitskii 2007); each round raises the
likelihood. Features are standardised first and the Jacobian is counted. To each covariance a ridge is added, in units
of the standardised features: the exact maximiser for data blurred by noise of that variance.

The integers of an image are dequantised by uniform noise u in [0, 1) (Theis et al. 2016), not by drawing it but in
closed form: E_u log N(x + u; μ, Σ) = log N(x + ½; μ, Σ) − tr(Σ⁻¹) / 24, and by Jensen's inequality

    log P(x) ≥ log Σ_k π_k exp(E_u log N(x + u; μ_k, Σ_k)).

This bound is deterministic, and expectation maximisation climbs it exactly: the covariance of u, I / 12, is added to
each Σ_k, so that a pixel that never changes needs no ridge.

References:
----------
Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm. Journal of the Royal
    Statistical Society B 39(1).
Arthur & Vassilvitskii (2007), k-means++: the advantages of careful seeding. SODA.
Theis, van den Oord & Bethge (2016), A note on the evaluation of generative models. arXiv:1511.01844.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TrainingError
from tacit.model import Model
from tacit.spaces import Images, Space, Vectors

# What `components=None` chooses from, on this share of the rows.
_COMPONENTS = (1, 2, 3, 5, 10, 20)
_HELD_OUT = 0.2
# Beyond this many dimensions the products of an E-step are taken in float32; all else is float64.
_WIDE = 128
# Multiplications of one E-step on full covariances: with more rows than that allows, EM runs on a random part of them
# and ends with one round over all of them.
_WORK = 1.2e11
# Largest number of elements of one temporary tensor.
_BLOCK = 2**23


class Mixture(NamedTuple):
    """log π (K,), μ (K, D), and the factor A of Σ⁻¹ = A Aᵀ: upper triangular (K, D, D), or a diagonal (K, D)."""

    log_weight: Tensor
    mean: Tensor
    factor: Tensor


# Σ r, Σ r z and Σ r z zᵀ of each component: (K,), (K, D) and (K, D, D) or its diagonal (K, D).
Moments = tuple[Tensor, Tensor, Tensor]


class GaussianMixture(Model):
    """Gaussian mixture.

    Args:
        space: rows of a table, or images.
        components: number K of Gaussians; None chooses by the likelihood of held-out rows.
        covariance: "full" or "diagonal".
        ridge: variance added to every feature, in units of its variance in the data.
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

    def __init__(
        self,
        space: Space,
        *,
        components: int | None = 10,
        covariance: Literal["full", "diagonal"] = "full",
        ridge: float = 1e-3,
        restarts: int = 1,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ):
        super().__init__(space)
        for name, given, least in (
            ("components", components or 1, 1),
            ("ridge", ridge, 0),
            ("restarts", restarts, 1),
            ("iterations", iterations, 1),
            ("tolerance", tolerance, 0),
        ):
            if given < least:
                raise SpaceError(
                    f"gaussian-mixture needs {name} of at least {least}, not {given}: give a larger number"
                )
        self.components, self.covariance, self.ridge = components, covariance, ridge
        self.restarts, self.iterations, self.tolerance = restarts, iterations, tolerance
        most, features = components or max(_COMPONENTS), space.dimensions
        unit = torch.eye(features) if covariance == "full" else torch.ones(features)
        # Where `components=None` chose fewer than there is room for, the rest have weight zero.
        self.register_buffer("log_weight", torch.full((most,), -math.log(most)))
        self.register_buffer("mean", torch.zeros(most, features))
        self.register_buffer("factor", unit.expand(most, *unit.shape).clone())
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @property
    def density(self) -> Kind:
        """Exact for rows of a table; a lower bound for images, which are dequantised."""
        return "bound" if isinstance(self.space, Images) else "exact"

    # -- the user's units and the mixture's --------------------------------------------------------------------------

    def _standardised(self, x: Tensor) -> Tensor:
        """Observations -> (batch, features), in which the mixture lives; images at the middle of their cells."""
        features = self.space.dimensions
        dtype = torch.float32 if features > _WIDE and self.covariance == "full" else torch.float64
        half = 0.5 if self.density == "bound" else 0.0
        return ((x.flatten(1).to(torch.float64) + half - self.shift) / self.scale).to(dtype)

    def _blur(self) -> float:
        """Variance of the dequantising noise in the mixture's units: 0 for rows of a table."""
        return 1 / 12 / self.scale[0].item() ** 2 if self.density == "bound" else 0.0

    def _measure(self, data: Dataset) -> None:
        """Shift and scale: each feature of a table by its own deviation, all pixels of an image by a common one."""
        total = torch.zeros(2, self.space.dimensions, dtype=torch.float64, device=self.device)
        shift = data[torch.zeros(1, dtype=torch.int64)].flatten().to(total)
        for index in data.ordered(4096):
            x = data[index].flatten(1).to(total) - shift
            total += torch.stack((x.sum(0), x.square().sum(0)))
        mean, square = total / len(data)
        variance = square - mean.square()
        if self.density == "bound":
            mean, variance = mean + 0.5, variance.mean().expand_as(variance)
        self.shift.copy_(shift + mean)
        self.scale.copy_(torch.where(variance > 1e-24 + 1e-12 * shift.square(), variance.sqrt(), 1.0))

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_exactly(self, data: Dataset) -> None:
        """Expectation maximisation, `restarts` times; with `components=None`, for each candidate first.

        Raises:
            DataError: there are fewer rows than components.
            TrainingError: a covariance is singular.
        """
        least = self.components or _COMPONENTS[0]
        if len(data) < least:
            raise DataError(
                f"{data.name} has {len(data)} rows, too few for {least} components: give {len(data)} or fewer"
            )
        self._measure(data)
        components = self.components or self._choose(data)
        features = self.space.dimensions
        work = features * components * (features if self.covariance == "full" else 1)
        rows = torch.arange(len(data))
        if len(data) > (most := max(int(_WORK / work), 10 * components)):
            rows = torch.randperm(len(data))[:most].sort().values
        z = self._standardised(data[rows].to(self.device))
        runs = [self._climb(z, self._start(z, components)) for _ in range(self.restarts)]
        mixture, _ = max(runs, key=lambda run: run[1])
        if len(rows) < len(data):
            mixture = self._maximise(self._all_moments(data, mixture))
        self.log_weight.fill_(-math.inf)
        for buffer, value in zip((self.log_weight, self.mean, self.factor), mixture, strict=True):
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

    def _choose(self, data: Dataset) -> int:
        """The candidate for K of the greatest likelihood on held-out rows."""
        order = torch.randperm(len(data))
        held_out = max(1, int(_HELD_OUT * len(data)))
        features = self.space.dimensions
        work = features * max(_COMPONENTS) * (features if self.covariance == "full" else 1)
        most = max(int(_WORK / work), 10 * max(_COMPONENTS))
        train, valid = order[held_out:][:most], order[:held_out][:most]
        z, held = (self._standardised(data[rows].to(self.device)) for rows in (train, valid))
        scores = {
            components: self._log_joint(held, self._climb(z, self._start(z, components))[0]).logsumexp(1).mean().item()
            for components in _COMPONENTS
            if components <= len(z)
        }
        return max(scores, key=scores.__getitem__, default=1)

    def _start(self, z: Tensor, components: int) -> Mixture:
        """The moments of clusters found by k-means, its centres drawn by k-means++."""
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
        return self._maximise(_moments(z, member, self.covariance))

    def _climb(self, z: Tensor, mixture: Mixture) -> tuple[Mixture, float]:
        """Rounds of expectation maximisation from `mixture`: the last one and its log-likelihood a row."""
        before = -math.inf
        for _ in range(self.iterations):
            log_joint = self._log_joint(z, mixture)
            now = log_joint.logsumexp(1).mean(dtype=torch.float64).item()
            if now - before < self.tolerance * z.shape[1]:
                break
            before = now
            mixture = self._maximise(_moments(z, log_joint.softmax(1), self.covariance))
        return mixture, now

    def _log_joint(self, z: Tensor, mixture: Mixture) -> Tensor:
        """Log π_k N(z; μ_k, Σ_k), less the cost of dequantisation, of rows (batch, features): (batch, K)."""
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
        trace = factor.flatten(1).square().sum(1)
        constant = log_weight + log_det - 0.5 * (z.shape[1] * math.log(2 * math.pi) + self._blur() * trace)
        return constant - 0.5 * square

    def _maximise(self, moments: Moments) -> Mixture:
        """The mixture of these moments: the M-step, in float64."""
        count, first, second = moments
        n = count.clamp(min=torch.finfo(count.dtype).tiny)
        mean = first / n[:, None]
        extra = self.ridge + self._blur()
        if second.dim() == 2:
            variance = (second / n[:, None] - mean.square()).clamp(min=0) + extra
            factor = variance.rsqrt()
            broken = ~factor.isfinite().all(1)
        else:
            covariance = second / n[:, None, None] - mean.unsqueeze(2) * mean.unsqueeze(1)
            covariance.diagonal(dim1=1, dim2=2).add_(extra)
            lower, info = torch.linalg.cholesky_ex(covariance)
            broken = info > 0
            eye = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
            if not broken.any():
                factor = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).mT
        if broken.any():
            raise TrainingError(
                f"the covariance of component {int(broken.nonzero()[0])} of gaussian-mixture is singular at "
                f"ridge={self.ridge:g}: give a larger ridge or fewer components"
            )
        return Mixture((count / count.sum()).log(), mean, factor)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _mixture(self) -> Mixture:
        return Mixture(self.log_weight, self.mean, self.factor)

    def _user_log_joint(self, x: Tensor) -> Tensor:
        """Log π_k p(x | k) in nats of the user's data: (batch, K)."""
        z = self._standardised(self.space.check(x))
        return self._log_joint(z, self._mixture()).double() - self.scale.double().log().sum()

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
            x = x.floor().clamp(0, self.space.levels - 1)
        return x.view(count, *self.space.shape).to(self.space.torch_dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The responsibilities P(k | x): (batch, K)."""
        return self._user_log_joint(x).softmax(1).float()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean observation of responsibilities (batch, K): (batch, *space.shape), float32."""
        mean = (z.to(self.mean) @ self.mean) * self.scale + self.shift
        return (mean - 0.5 if self.density == "bound" else mean).view(len(z), *self.space.shape)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Log p(x | k) of every component, in nats a dimension, (batch, K): responsibilities saturate, these do not."""
        mixture = self._mixture()._replace(log_weight=torch.zeros_like(self.log_weight))
        return (self._log_joint(self._standardised(self.space.check(x)), mixture) / self.space.dimensions).float()


def _closest(z: Tensor, centres: Tensor) -> Tensor:
    """The number of the nearest centre (K, D) of each row (batch, D): (batch,)."""
    return (centres.square().sum(1) - 2 * z @ centres.T).argmin(1)


def _moments(z: Tensor, responsibility: Tensor, covariance: str) -> Moments:
    """The sums over rows (batch, D) under their responsibilities (batch, K), in float64."""
    if covariance == "diagonal":
        second = (responsibility.T @ z.square()).double()
    else:
        weighted = []
        for r in responsibility.unbind(1):
            # Among many features nearly every row belongs to one component alone.
            rows = (r > 1e-9).nonzero()[:, 0]
            member = z[rows] * r[rows, None].sqrt()
            weighted.append((member.T @ member).double())
        second = torch.stack(weighted)
    return responsibility.sum(0, dtype=torch.float64), (responsibility.T @ z).double(), second
