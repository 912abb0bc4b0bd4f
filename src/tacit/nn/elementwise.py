"""Monotone maps of one number by itself, whose parameters a network gives: what couplings and autoregressions do.

The parameters of (batch, *shape) entries are (batch, parameters, *shape), in one tensor with the entries last: a
softmax over a first axis is many times as fast as over a short last one. All zeros give the identity, or nearly.

References
----------
- Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803 (affine)
- Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032 (rational-quadratic splines)
- Ho, Chen, Srinivas, Duan & Abbeel (2019), Flow++, arXiv:1902.00275, §3.2 (mixtures of logistics)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

# Deviations beyond which a series is more exact than special functions.
_FAR = 20.0


class Elementwise:
    """An invertible map of every entry by itself; `parameters` numbers say which.

    Both directions return what they make of the entries, (batch, *shape), and log |derivative| of each.
    """

    parameters: ClassVar[int]

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data -> noise."""
        raise NotImplementedError

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Noise -> data."""
        raise NotImplementedError


@dataclass(frozen=True)
class Shift(Elementwise):
    """z = x + t: additive, of volume 1 (Dinh et al. 2015, NICE, arXiv:1410.8516, §3.2)."""

    parameters: ClassVar[int] = 1

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters[:, 0], torch.zeros_like(x)

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return z - parameters[:, 0], torch.zeros_like(z)


@dataclass(frozen=True)
class Affine(Elementwise):
    """z = x · exp(s) + t.

    Attributes:
        bound: largest |s|, a soft bound which should not bind on the data: the inverse stays finite far from them.
    """

    bound: float = 3.0
    parameters: ClassVar[int] = 2

    def _scale_and_shift(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return soft_bound(parameters[:, 0], self.bound), parameters[:, 1]

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(parameters)
        return torch.addcmul(t, x, s.exp()), s

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(parameters)
        return (z - t) * (-s).exp(), -s


@dataclass(frozen=True)
class Spline(Elementwise):
    """A monotone rational-quadratic spline on [−tail, tail] (Durkan et al. 2019, §3.1); outside it the identity.

    Attributes:
        bins: pieces.
        tail: where it ends and the identity begins.
        least: of a bin's width and height, as a share of the whole, and of a slope.
    """

    bins: int = 8
    tail: float = 5.0
    least: float = 1e-3

    @property
    def parameters(self) -> int:  # type: ignore[override]
        """Widths, heights, and the slopes between bins."""
        return 3 * self.bins - 1

    def _pieces(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knots in x and in z, and the slopes there, (batch, bins + 1, *shape) each."""
        widths, heights, slopes = parameters.split((self.bins, self.bins, self.bins - 1), 1)
        # Zeros give slopes of 1, which the ends always have.
        inner = self.least + F.softplus(slopes + math.log(math.expm1(1 - self.least)))
        ones = torch.ones_like(parameters[:, :1])
        return self._knots(widths), self._knots(heights), torch.cat((ones, inner, ones), 1)

    def _knots(self, sizes: Tensor) -> Tensor:
        share = self.least + (1 - self.least * self.bins) * sizes.softmax(1)
        inner = 2 * self.tail * share[:, :-1].cumsum(1) - self.tail
        end = torch.full_like(sizes[:, :1], self.tail)
        return torch.cat((-end, inner, end), 1)

    def _piece(self, at: Tensor, searched: Tensor, *knots: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What `knots` are at both ends of the piece of `searched` in which `at` lies."""
        left = (at[:, None] >= searched[:, 1:-1]).sum(1, keepdim=True)
        both = torch.cat((left, left + 1), 1)
        return [each.gather(1, both).unbind(1) for each in knots]  # type: ignore[misc]

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._pieces(parameters)
        (x0, x1), (z0, z1), (d0, d1) = self._piece(x, knots[0], *knots)
        width, height = x1 - x0, z1 - z0
        slope = height / width
        # Outside the spline no term may overflow: the gradient of what `where` leaves out must be finite.
        u = ((x - x0) / width).clamp(0, 1)
        v = u * (1 - u)
        below = slope + (d0 + d1 - 2 * slope) * v
        z = z0 + height * (slope * u.square() + d0 * v) / below
        inside = x.abs() < self.tail
        return torch.where(inside, z, x), torch.where(inside, self._log_slope(u, v, slope, d0, d1, below), 0.0)

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._pieces(parameters)
        (x0, x1), (z0, z1), (d0, d1) = self._piece(z, knots[1], *knots)
        width, height = x1 - x0, z1 - z0
        slope = height / width
        inside = z.abs() < self.tail
        above = torch.where(inside, z - z0, 0.0)
        # Of the two roots this one lies in the piece (appendix A.1, eqs. 6–8), written so that nothing cancels.
        bend = above * (d0 + d1 - 2 * slope)
        a, b, c = height * (slope - d0) + bend, height * d0 - bend, -slope * above
        u = (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1)
        v = u * (1 - u)
        below = slope + (d0 + d1 - 2 * slope) * v
        log_slope = self._log_slope(u, v, slope, d0, d1, below)
        return torch.where(inside, x0 + u * width, z), torch.where(inside, -log_slope, 0.0)

    @staticmethod
    def _log_slope(u: Tensor, v: Tensor, slope: Tensor, d0: Tensor, d1: Tensor, below: Tensor) -> Tensor:
        """Log dz/dx (eq. 5)."""
        above = d1 * u.square() + 2 * slope * v + d0 * (1 - u).square()
        return 2 * slope.log() + above.log() - 2 * below.log()


@dataclass(frozen=True)
class MixtureCDF(Elementwise):
    """z = logit(Σ_k π_k F((x − μ_k) / s_k)) · exp(a) + b, F the distribution function of a logistic or a Gaussian.

    One such map before a logistic base is the mixture itself; several can be more. Beyond all components it grows as
    the widest of them does. It is inverted by bisection between the components' own inverses, which bracket it, until
    the bracket is 2^−`halvings` of what it was; gradients pass through the inverse by the implicit function theorem.

    Attributes:
        components: of the mixture.
        gaussian: whether F is Gaussian; else it is logistic, as in Flow++.
        affine: whether there are a and b.
        spread: components begin evenly spaced on [−spread, spread].
        bound: largest |log s_k| and |a|, a soft bound.
        halvings: of the bisection.
    """

    components: int = 8
    gaussian: bool = False
    affine: bool = True
    spread: float = 2.0
    bound: float = 5.0
    halvings: int = 40

    @property
    def parameters(self) -> int:  # type: ignore[override]
        """Logits, means and log-scales, a and b."""
        return 3 * self.components + 2 * self.affine

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log π, μ and log s, (batch, components, *shape) each."""
        logits, means, log_scales = parameters[:, : 3 * self.components].chunk(3, 1)
        even = torch.linspace(-self.spread, self.spread, self.components, device=parameters.device)
        means = means + even.to(means.dtype).view(-1, *[1] * (means.dim() - 2))
        return logits.log_softmax(1), means, soft_bound(log_scales, self.bound)

    def _logit(self, x: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logit F(x) and the logarithm of its slope, (batch, *shape) each."""
        log_share, means, log_scales = mixture
        u = (x[:, None] - means) * (-log_scales).exp()
        log_cdf, log_hazard = (log_normal_cdf, log_normal_hazard) if self.gaussian else (F.logsigmoid, F.logsigmoid)
        low, high = log_share + log_cdf(u), log_share + log_cdf(-u)
        below, above = low.logsumexp(1), high.logsumexp(1)
        # d logit F = f / (F (1 − F)). Far away f and the smaller of F and 1 − F are both next to nothing: their ratio
        # is the mean of the components' own, weighted by what each has there.
        upper = (below > above)[:, None]
        weight = torch.where(upper, high, low).log_softmax(1)
        ratio = log_hazard(torch.where(upper, u, -u)) - log_scales
        return below - above, (weight + ratio).logsumexp(1) - torch.maximum(below, above)

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self._logit(x, self._mixture(parameters))
        if self.affine:
            a, b = soft_bound(parameters[:, -2], self.bound), parameters[:, -1]
            z, log_det = torch.addcmul(b, z, a.exp()), log_det + a
        return z, log_det

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            root = self._bisect(z, parameters)
        found, log_det = self.forward_and_log_det(root, parameters)
        # Newton's step corrects what the bisection left, and carries the gradients of z and the parameters.
        x = root - (found - z) * (-log_det.detach()).exp()
        return x, -self.forward_and_log_det(x, parameters)[1] if torch.is_grad_enabled() else -log_det

    def _bisect(self, z: Tensor, parameters: Tensor) -> Tensor:
        mixture = self._mixture(parameters)
        _, means, log_scales = mixture
        if self.affine:
            z = (z - parameters[:, -1]) * (-soft_bound(parameters[:, -2], self.bound)).exp()
        if self.gaussian:
            # F⁻¹(σ(z)); where it is infinite, |Φ⁻¹(σ(z))| < √(2|z|) + 1 still brackets.
            quantile = torch.special.ndtri(z.sigmoid())
            quantile = torch.where(z.abs() < 4, quantile, z.sign() * ((2 * z.abs()).sqrt() + 1))
            ends = means + log_scales.exp() * quantile[:, None]
            inner = means + log_scales.exp() * torch.where(z.abs() < 4, quantile, 0.0)[:, None]
            low, high = torch.minimum(ends, inner).amin(1), torch.maximum(ends, inner).amax(1)
        else:
            ends = means + log_scales.exp() * z[:, None]
            low, high = ends.amin(1), ends.amax(1)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            small = self._logit(middle, mixture)[0] < z
            low, high = torch.where(small, middle, low), torch.where(small, high, middle)
        return (low + high) / 2


def log_normal_cdf(u: Tensor) -> Tensor:
    """Log Φ(u); far below zero by its asymptotic series, where PyTorch's own has wrong gradients."""
    near, far = u.clamp(min=-_FAR), (-u).clamp(min=_FAR)
    tail = -0.5 * (far.square() + math.log(2 * math.pi)) - far.log() + _log_series(far)
    return torch.where(u > -_FAR, torch.special.log_ndtr(near), tail)


def log_normal_hazard(u: Tensor) -> Tensor:
    """Log φ(u) − log Φ(−u), without a difference of large numbers far above zero."""
    near, far = u.clamp(max=_FAR), u.clamp(min=_FAR)
    direct = -0.5 * (near.square() + math.log(2 * math.pi)) - torch.special.log_ndtr(-near)
    return torch.where(u < _FAR, direct, far.log() - _log_series(far))


def _log_series(u: Tensor) -> Tensor:
    """Log (1 − 1/u² + 3/u⁴ − 15/u⁶), what Mills's ratio is times u."""
    inverse = u.square().reciprocal()
    return torch.log1p(inverse * (-1 + inverse * (3 - 15 * inverse)))


def soft_bound(x: Tensor, bound: float) -> Tensor:
    """Near 0 the identity; |result| < bound."""
    return bound * torch.tanh(x / bound)
