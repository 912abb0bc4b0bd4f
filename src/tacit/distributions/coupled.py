"""Mixture of discretised logistics over all colours of a pixel at once, coupled linearly.

One component is chosen for the whole pixel; in it the colours are discretised logistics one after the other, each
centred at μ_c + Σ_{j<c} tanh(α_cj) x_j, with the earlier colours x_j on [−1, 1]:

    p(x) = Σ_k π_k ∏_c p(x_c | μ_kc + Σ_{j<c} tanh(α_kcj) x_j, s_kc).

So colours that move together cost one draw of a component and a few numbers, and no network between them.

References
----------
- Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, arXiv:1701.05517, §2.1–2.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.distributions.head import draw_index
from tacit.distributions.logistic import LOWEST, DiscretisedLogisticMixture


@dataclass(frozen=True)
class CoupledLogisticMixture:
    """Pixels of `channels` entries in {0, …, levels − 1}, from `components` coupled logistics.

    Shapes: parameters (batch, parameters, *positions), pixels (batch, channels, *positions), log-probabilities
    (batch, *positions), nats per pixel. With one channel it is a `DiscretisedLogisticMixture`, parameters and all.
    """

    levels: int = 256
    channels: int = 3
    components: int = 10

    @property
    def parameters(self) -> int:
        shapes = self.channels * 2 + len(self._pairs)
        return self.components * (shapes + 1) if self.components > 1 else shapes

    @property
    def locations(self) -> int:
        return self.channels * self.components

    @property
    def _entry(self) -> DiscretisedLogisticMixture:
        """What a single channel is."""
        return DiscretisedLogisticMixture(self.levels, self.components)

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        """Colours (j, c), j before c, in the order of their coefficients."""
        return [(j, c) for c in range(self.channels) for j in range(c)]

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Locations and log scales, (batch, channels, components, *positions); coefficients, (batch, pairs, …); logits.

        The logits of the weights, (batch, components, *positions), are None for a single component.
        """
        k, n = self.components, self.locations
        location, log_scale, coefficient, logits = parameters.split(
            [n, n, k * len(self._pairs), self.parameters - 2 * n - k * len(self._pairs)], 1
        )
        each = (-1, k)
        return (
            location.unflatten(1, each),
            log_scale.clamp(min=LOWEST).unflatten(1, each),
            torch.tanh(coefficient).unflatten(1, (len(self._pairs), k)),
            logits if k > 1 else None,
        )

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        location, log_scale, coefficient, logits = self.split(parameters)
        entry, x = self._entry, x[:, :, None]
        place, centres = entry.place(x), list(location.unbind(1))
        for i, (j, c) in enumerate(self._pairs):
            centres[c] = centres[c] + coefficient[:, i] * place[:, j]
        return entry.mix(entry.log_mass(x, torch.stack(centres, 1), log_scale).sum(1), logits)

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        return self._draw(parameters, temperature)

    def mode(self, parameters: Tensor) -> Tensor:
        return self._draw(parameters, None)

    def _draw(self, parameters: Tensor, temperature: float | None) -> Tensor:
        """A draw, or the colours' centres in the heaviest component if `temperature` is None."""
        *shapes, logits = self.split(parameters)
        if logits is not None:
            index = logits.argmax(1) if temperature is None else draw_index(logits, temperature)
            shapes = [torch.take_along_dim(shape, index[:, None, None], 2) for shape in shapes]
        location, log_scale, coefficient = (shape[:, :, 0] for shape in shapes)
        if temperature is not None:
            u = torch.rand_like(location).clamp_(1e-7, 1 - 1e-7)
            location = location + temperature * log_scale.exp() * torch.logit(u)
        entry, pairs = self._entry, iter(coefficient.unbind(1))
        drawn: list[Tensor] = []
        for c in range(self.channels):
            centre = location[:, c]
            for x in drawn:
                centre = centre + next(pairs) * entry.place(x)
            drawn.append(entry.level(centre))
        return torch.stack(drawn, 1)

    def marginal(self, x: Tensor) -> Tensor:
        """Parameters, (parameters, *positions), for the rows of `x`, (rows, channels, *positions).

        Components go from dark to bright in all colours alike, as photographs do; no colour is coupled to another yet.
        """
        k = self.components
        each = self._entry.marginal(x).transpose(0, 1)  # (channels, of one channel, *positions)
        location, log_scale = each[:, :k].flatten(0, 1), each[:, k : 2 * k].flatten(0, 1)
        rest = location.new_zeros(self.parameters - 2 * len(location), *location.shape[1:])
        return torch.cat([location, log_scale, rest])
