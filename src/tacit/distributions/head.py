"""What every head says: the log-probability of an entry, a draw, its mode, and the parameters that fit no context.

Shapes: parameters (batch, parameters, *positions), entries (batch, *positions). Log-probabilities are nats per entry.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor


class Head(Protocol):
    """A distribution of one entry at every position, given its parameters."""

    @property
    def parameters(self) -> int:
        """How many an entry takes."""
        ...

    @property
    def locations(self) -> int:
        """How many of them, the first, place the distribution; the rest are its shape."""
        ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log p(x), (batch, *positions), in nats."""
        ...

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        """One draw at every position; below temperature 1 draws keep nearer to the mode."""
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely value; of a mixture, the centre of its heaviest component."""
        ...

    def marginal(self, x: Tensor) -> Tensor:
        """Parameters, (parameters, *positions), for the rows of `x`, (rows, *positions), each entry by itself."""
        ...


def draw_index(logits: Tensor, temperature: float) -> Tensor:
    """One index along axis 1 at each of the other positions, drawn from softmax(logits / temperature): (batch, *).

    By the Gumbel-max trick: `torch.multinomial` takes neither an inner axis nor more than two.
    """
    gumbel = -torch.empty_like(logits).exponential_().log()
    return (logits / temperature + gumbel).argmax(1)


class LocationScaleMixture:
    """How a mixture of a location-scale family lies in its parameters: locations, log scales, logits of the weights.

    A single component has no logits. Temperature multiplies the scales and divides the logits.
    """

    components: int

    @property
    def parameters(self) -> int:
        return 3 * self.components if self.components > 1 else 2

    @property
    def locations(self) -> int:
        return self.components

    def split(self, parameters: Tensor, lowest: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """(location, log scale, no lower than `lowest`; logits or None), (batch, components, *positions) each."""
        k = self.components
        location, log_scale = parameters[:, :k], parameters[:, k : 2 * k].clamp(min=lowest)
        return location, log_scale, parameters[:, 2 * k :] if k > 1 else None

    @staticmethod
    def mix(log_probs: Tensor, logits: Tensor | None) -> Tensor:
        """Log Σ_i w_i p_i from log p_i, (batch, components, *positions), over axis 1."""
        if logits is None:
            return log_probs[:, 0]
        return torch.logsumexp(log_probs + logits, 1) - torch.logsumexp(logits, 1)

    def choose(self, parameters: Tensor, lowest: float, temperature: float | None) -> tuple[Tensor, Tensor]:
        """(location, scale) of one component at each position: a draw, or the heaviest if `temperature` is None."""
        location, log_scale, logits = self.split(parameters, lowest)
        if logits is None:
            return location[:, 0], log_scale[:, 0].exp()
        index = (logits.argmax(1) if temperature is None else draw_index(logits, temperature))[:, None]
        return location.gather(1, index)[:, 0], log_scale.gather(1, index)[:, 0].exp()

    def spread(self, mean: Tensor, deviation: Tensor, unit: float) -> Tensor:
        """Parameters, (parameters, *positions), of components at equal quantiles of a Gaussian with these moments.

        `unit` is the standard deviation of the family at scale 1.
        """
        k = self.components
        quantile = torch.tensor([NormalDist().inv_cdf((i + 0.5) / k) for i in range(k)], dtype=mean.dtype)
        within = max(1 - float(quantile.square().mean()), 0.1) ** 0.5
        quantile = quantile.view(-1, *(1,) * mean.dim()).to(mean.device)
        location = mean + deviation * quantile
        log_scale = (deviation * within / unit).log().expand_as(location)
        logits = [torch.zeros_like(location)] if k > 1 else []
        return torch.cat([location, log_scale, *logits]).float()
