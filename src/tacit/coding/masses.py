"""What a coder needs of a head: the masses of all values of an entry, exact wherever its parameters are.

Nothing is summed but term after term in a fixed order, and every function is that of a table (`tacit.coding.exact`), so
that the same parameters give the same masses on any machine. They need not sum to one: the coder sees to that.

Mixtures of logistics know the mass of any interval from its two ends. Their values are coded in two digits, sixteen
intervals of sixteen levels where there are 256: 32 ends are then looked up for each component and not 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.coding.exact import between
from tacit.distributions import Bernoulli, Categorical, CoupledLogisticMixture, DiscretisedLogisticMixture, Head
from tacit.distributions.logistic import LOWEST
from tacit.errors import CapabilityError

# Of an interval too far from all logistics to have any: a coder can do nothing with no mass at all.
_LEAST = 1e-30


@dataclass(frozen=True)
class Masses:
    """Of an entry's values in one digit, or in two: value = first · base + second.

    Attributes:
        first: of the first digit, (rows, digits) float64, not normalised.
        second: those of the second, given the first, (rows,) -> (rows, base); None where there is one alone.
        base: how many values share a first digit.
    """

    first: Tensor
    second: Callable[[Tensor], Tensor] | None = None
    base: int = 1


def masses(head: Head, parameters: Tensor, before: Tensor) -> Masses:
    """The masses of an entry's values.

    Args:
        head: a distribution of whole numbers.
        parameters: of the site, (rows, parameters).
        before: what is known of the site's entries, those before this one, (rows, how many).

    Raises:
        CapabilityError: the entries are real numbers, or a parameter is not a number.
    """
    if bool(parameters.isnan().any()):
        raise CapabilityError("the model says of some entries what is not a number, which cannot be coded: fit it anew")
    parameters = parameters.double()
    if isinstance(head, Bernoulli):
        on = between("sigmoid", parameters[:, 0])
        return Masses(torch.stack([1 - on, on], 1))
    if isinstance(head, Categorical):
        return Masses(_raised(parameters))
    if isinstance(head, DiscretisedLogisticMixture):
        location, log_scale, logits = head.split(parameters, LOWEST)
        return _in_digits(_Logistics(head.levels, location, log_scale, _weights(location, logits)))
    if isinstance(head, CoupledLogisticMixture):
        return _in_digits(_coupled(head, parameters, before))
    raise CapabilityError("real numbers cannot be coded without loss: their last digits have no probability")


def _raised(logits: Tensor) -> Tensor:
    return between("exp", logits - logits.amax(1, keepdim=True))


def _weights(location: Tensor, logits: Tensor | None) -> Tensor:
    return torch.ones_like(location) if logits is None else _raised(logits)


class _Logistics:
    """A mixture of logistics over levels, the outermost of which take all beyond them: (rows, components) each."""

    def __init__(self, levels: int, location: Tensor, log_scale: Tensor, weights: Tensor):
        self.levels, self.location, self.weights = levels, location, weights
        self.inverse = between("exp", -log_scale)

    def below(self, levels: Tensor) -> list[Tensor]:
        """The mass of all below these levels under each component, (rows or 1, n) -> (rows, n) each."""
        edges = (levels.double() - 0.5) * (2 / (self.levels - 1)) - 1
        ends = zip(self.location.unbind(1), self.inverse.unbind(1), strict=True)
        found = [between("sigmoid", (edges - centre[:, None]) * inverse[:, None]) for centre, inverse in ends]
        return [each.masked_fill_(levels <= 0, 0.0).masked_fill_(levels >= self.levels, 1.0) for each in found]

    def between(self, levels: Tensor) -> Tensor:
        """The mass from each of these levels to the next of them, (rows or 1, n + 1) -> (rows, n)."""
        found: Tensor | float = 0.0
        for weight, below in zip(self.weights.unbind(1), self.below(levels), strict=True):
            found = found + weight[:, None] * below
        assert isinstance(found, Tensor)
        return found.diff(dim=1).clamp_(min=0).add_(_LEAST)


def _in_digits(mixture: _Logistics) -> Masses:
    base = math.isqrt(mixture.levels - 1) + 1
    starts = torch.arange(0, mixture.levels + base, base)

    def second(first: Tensor) -> Tensor:
        return mixture.between(first[:, None] * base + torch.arange(base + 1))

    return Masses(mixture.between(starts[None]), second, base)


def _coupled(head: CoupledLogisticMixture, parameters: Tensor, before: Tensor) -> _Logistics:
    """Of the colour after those `before`: the components' weights are what those leave of them."""
    n, k = head.locations, head.components
    location, log_scale, raw, logits = parameters.split(
        [n, n, head.parameters - 2 * n - k * (k > 1), k * (k > 1)], 1
    )  # fmt: skip
    location, log_scale = location.unflatten(1, (-1, k)), log_scale.clamp(min=LOWEST).unflatten(1, (-1, k))
    # tanh(a) = 2 σ(2a) − 1, of pairs (earlier colour, later colour) in the order of the later.
    coefficient = iter((2 * between("sigmoid", 2 * raw) - 1).unflatten(1, (-1, k)).unbind(1)) if raw.shape[1] else None
    weights, place = _weights(location[:, 0], logits if k > 1 else None), before.double() * (2 / (head.levels - 1)) - 1
    for c in range(before.shape[1] + 1):
        centre = location[:, c]
        for j in range(c):
            assert coefficient is not None
            centre = centre + next(coefficient) * place[:, j, None]
        mixture = _Logistics(head.levels, centre, log_scale[:, c], weights)
        if c < before.shape[1]:
            value = before[:, c, None]
            own = torch.cat([below.diff(dim=1) for below in mixture.below(torch.cat([value, value + 1], 1))], 1)
            # A value that no component gives any mass still has the coder's least.
            weights = weights * (own + 1e-12)
            weights = weights / weights.amax(1, keepdim=True)
    return mixture
