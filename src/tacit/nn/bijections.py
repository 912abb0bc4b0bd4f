"""Bijections between the user's data and the space in which a network works, with their Jacobians.

One direction is fixed: forward goes from data to noise. `forward_and_log_det` and `inverse_and_log_det` each return
the result and log |det| of that direction, (batch,), in nats, so that log p(x) = log p(z) + log_det for every chain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.nn import noise
from tacit.spaces import Images, Space


class Bijection(nn.Module):
    """An invertible map of (batch, *shape)."""

    def adapt(self, x: Tensor) -> None:
        """Take from data, (rows, *shape), what the map must know before learning."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data -> noise: the result and log |det| of its Jacobian, (batch,)."""
        raise NotImplementedError

    def inverse_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise -> data: the result and log |det| of its Jacobian, (batch,)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def inverse(self, z: Tensor) -> Tensor:
        return self.inverse_and_log_det(z)[0]


class Chain(Bijection):
    """Bijections one after the other, read top to bottom from data to noise."""

    def __init__(self, *bijections: Bijection):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def adapt(self, x: Tensor) -> None:
        for bijection in self.bijections:
            bijection.adapt(x)
            x = bijection(x)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x), dtype=torch.float32 if not x.is_floating_point() else x.dtype)
        for bijection in self.bijections:
            x, log_det = bijection.forward_and_log_det(x)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for bijection in reversed(self.bijections):
            z, log_det = bijection.inverse_and_log_det(z)
            total = total + log_det
        return z, total


class Standardise(Bijection):
    """Each feature to mean 0 and standard deviation 1, as `adapt` found them; constant features are only centred."""

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def adapt(self, x: Tensor) -> None:
        x = x.double()
        deviation = x.std(0, unbiased=False)
        self.mean.copy_(x.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-12, deviation, 1.0))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.scale, (-self.scale.log().sum()).expand(len(x))

    def inverse_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z * self.scale + self.mean, self.scale.log().sum().expand(len(z))


class Dequantise(Bijection):
    """Integers {0, …, levels − 1} to reals in [0, 1) by adding uniform noise: (x + u) / levels.

    A surjection: log P(x) ≥ E_u[log p((x + u) / levels)] − D log levels, so a density behind it is a bound on the
    integers' probability (Theis et al. 2016, arXiv:1511.01844, §3.1). The inverse rounds down and is exact.
    """

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x + noise.rand_like(x)) / self.levels
        return z, z.new_full((len(x),), -x[0].numel() * math.log(self.levels))

    def inverse_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (z * self.levels).floor().clamp(0, self.levels - 1)
        return x, z.new_full((len(z),), z[0].numel() * math.log(self.levels))


class Logit(Bijection):
    """[0, 1] to the reals: logit(λ + (1 − 2λ) x) (Dinh et al. 2017, arXiv:1605.08803, §4.1, with α = λ)."""

    def __init__(self, margin: float = 0.05):
        super().__init__()
        self.margin = margin

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.margin + (1 - 2 * self.margin) * x
        z = torch.logit(p)
        return z, (F.softplus(z) + F.softplus(-z)).flatten(1).sum(1) + x[0].numel() * math.log1p(-2 * self.margin)

    def inverse_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
        log_det = (F.softplus(z) + F.softplus(-z)).flatten(1).sum(1) + z[0].numel() * math.log1p(-2 * self.margin)
        return x, -log_det


def to_reals(space: Space, margin: float = 0.05) -> Chain:
    """The usual way from a space to the reals: images by dequantisation and logit, tables by standardisation."""
    if isinstance(space, Images):
        return Chain(Dequantise(space.levels), Logit(margin))
    return Chain(Standardise(*space.shape))


def adapt_to(bijection: Bijection, data: Dataset, most: int = 20_000) -> None:
    """Let `bijection` take what it must know from the first `most` observations of `data`."""
    bijection.adapt(data.observations(most))
