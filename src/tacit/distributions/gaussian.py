"""Mixture-of-Gaussians head for real entries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.distributions.head import LocationScaleMixture

# On features that repeat a value a density has no bound; below this scale it would only chase them.
_LOWEST = -7.0


@dataclass(frozen=True)
class GaussianMixture(LocationScaleMixture):
    """Real entries, of the order of 1, from `components` Gaussians; with one component a plain Gaussian."""

    components: int = 1

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mean, log_scale, logits = self.split(parameters, _LOWEST)
        z = (x[:, None] - mean) * (-log_scale).exp()
        return self.mix(-0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi), logits)

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        mean, scale = self.choose(parameters, _LOWEST, temperature)
        return mean + temperature * scale * torch.randn_like(mean)

    def mode(self, parameters: Tensor) -> Tensor:
        return self.choose(parameters, _LOWEST, None)[0]

    def marginal(self, x: Tensor) -> Tensor:
        x = x.double()
        return self.spread(x.mean(0), x.std(0, unbiased=False).clamp(min=1e-2), 1.0)
