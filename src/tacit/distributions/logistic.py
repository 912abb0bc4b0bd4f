"""Mixture of discretised logistics: a probability mass on {0, …, levels − 1} from a few numbers.

The mass of a level is that of a logistic distribution between the midpoints to its neighbours; the lowest level takes
everything below, the highest everything above, so that the masses sum to one exactly. With σ the logistic sigmoid
and a < b the standardised edges,

    σ(b) − σ(a) = σ(b) σ(−a) (1 − e^(a − b)),

whose logarithm has no difference of near-equal numbers in it and needs no floor.

References
----------
- Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), Improving variational inference with inverse
  autoregressive flow, arXiv:1606.04934 (the discretised logistic)
- Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, arXiv:1701.05517 (the mixture)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.distributions.head import LocationScaleMixture

# A scale of e⁻⁷ is an eighth of a level of 256: sharper ones change no mass and overflow.
LOWEST = -7.0


@dataclass(frozen=True)
class DiscretisedLogisticMixture(LocationScaleMixture):
    """Entries in {0, …, levels − 1}, from `components` logistics placed on [−1, 1], where the levels lie evenly."""

    levels: int = 256
    components: int = 1

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        location, log_scale, logits = self.split(parameters, LOWEST)
        return self.mix(self.log_mass(x[:, None], location, log_scale), logits)

    def log_mass(self, x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
        """Log mass of the levels `x` of single logistics, whose shapes fit one another."""
        half = 1 / (self.levels - 1)
        inverse = (-log_scale).exp()
        z = (self.place(x) - location) * inverse
        reach = half * inverse
        below = F.logsigmoid(z + reach).masked_fill(x == self.levels - 1, 0.0)
        above = F.logsigmoid(reach - z).masked_fill(x == 0, 0.0)
        inside = torch.log(-torch.expm1(-2 * reach)).masked_fill((x == 0) | (x == self.levels - 1), 0.0)
        return below + above + inside

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        location, scale = self.choose(parameters, LOWEST, temperature)
        u = torch.rand_like(location).clamp_(1e-7, 1 - 1e-7)
        return self.level(location + temperature * scale * torch.logit(u))

    def mode(self, parameters: Tensor) -> Tensor:
        return self.level(self.choose(parameters, LOWEST, None)[0])

    def marginal(self, x: Tensor) -> Tensor:
        place = self.place(x.double())
        deviation = place.std(0, unbiased=False).clamp(min=1 / (self.levels - 1))
        return self.spread(place.mean(0), deviation, math.pi / math.sqrt(3))

    def place(self, x: Tensor) -> Tensor:
        """Levels {0, …, levels − 1} to [−1, 1]."""
        return x * (2 / (self.levels - 1)) - 1

    def level(self, place: Tensor) -> Tensor:
        """The level nearest to a place."""
        return ((place + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
