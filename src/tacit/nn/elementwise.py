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
        s, t = parameters.unbind(1)
        return soft_bound(s, self.bound), t

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(parameters)
        return torch.addcmul(t, x, s.exp()), s

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(parameters)
        back = -s
        return (z - t) * back.exp(), back


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

    def _piece(self, at: Tensor, parameters: Tensor, *, of_z: bool) -> tuple[Tensor, ...]:
        """Knots x₀, x₁, z₀, z₁ and slopes d₀, d₁ at the ends of the piece in which x, or z, is `at`."""
        sizes, slopes = parameters.split((2 * self.bins, self.bins - 1), 1)
        zero = torch.zeros_like(slopes[:, :1])
        zeros = zero[:, None].expand(-1, 2, *[-1] * at.dim())
        # Every bin has its least size, and the ends are exact.
        inner = sizes.unflatten(1, (2, self.bins)).softmax(2)[:, :, :-1].cumsum(2)
        start = [2 * self.tail * self.least * k - self.tail for k in range(self.bins)]
        knots = torch.add(
            at.new_tensor([*start, self.tail]).view(-1, *[1] * (at.dim() - 1)),
            torch.cat((zeros, inner, zeros), 2),
            alpha=2 * self.tail * (1 - self.least * self.bins),
        )
        left = (at[:, None] >= knots[:, int(of_z), 1:-1]).sum(1, keepdim=True)
        ends = torch.cat((left, left + 1), 1)
        x_ends, z_ends = knots.gather(2, ends[:, None].expand(-1, 2, *[-1] * at.dim())).unbind(1)
        # Zeros give slopes of 1, which the ends always have.
        raw = torch.cat((zero, slopes, zero), 1).gather(1, ends)
        d_ends = self.least + F.softplus(raw + math.log(math.expm1(1 - self.least)))
        (x0, x1), (z0, z1), (d0, d1) = x_ends.unbind(1), z_ends.unbind(1), d_ends.unbind(1)
        return x0, x1, z0, z1, d0, d1

    def forward_and_log_det(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        within = F.hardtanh(x, -self.tail, self.tail)
        x0, x1, z0, z1, d0, d1 = self._piece(within, parameters, of_z=False)
        width, height = x1 - x0, z1 - z0
        slope, u = height / width, (within - x0) / width
        # The slopes at the ends are 1: outside, x goes on from there.
        log_slope, rise = self._log_slope_and_rise(u, slope, d0, d1)
        return z0 + height * rise + (x - within), log_slope

    def inverse_and_log_det(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        within = F.hardtanh(z, -self.tail, self.tail)
        x0, x1, z0, z1, d0, d1 = self._piece(within, parameters, of_z=True)
        width, height = x1 - x0, z1 - z0
        slope, above = height / width, within - z0
        # Of the two roots this one lies in the piece (appendix A.1, eqs. 6–8), written so that nothing cancels.
        bend = above * (d0 + d1 - 2 * slope)
        a, b, c = height * (slope - d0) + bend, height * d0 - bend, -slope * above
        u = (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1)
        return x0 + u * width + (z - within), -self._log_slope_and_rise(u, slope, d0, d1)[0]

    @staticmethod
    def _log_slope_and_rise(u: Tensor, slope: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
        """Log dz/dx (eq. 5) and (z − z₀) / (z₁ − z₀) (eq. 4), at u = (x − x₀) / (x₁ − x₀); quadratics by lerps."""
        first, second = torch.lerp(d0, slope, u), torch.lerp(slope, d1, u)
        below = torch.lerp(second, first, u)
        return torch.lerp(first, second, u).log() + 2 * (slope / below).log(), u * first / below


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
    """Near 0 the identity, bound · tanh(x / bound); by the logistic function, which is computed in half the time."""
    return torch.sigmoid(x * (2 / bound)) * (2 * bound) - bound
