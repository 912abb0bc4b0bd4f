"""What a coder needs of a head: the masses of all values of an entry, exact wherever its parameters are.

Nothing is summed but term after term in a fixed order, and every function is that of a table (`tacit.coding.exact`), so
that the same parameters give the same masses on any machine. They need not sum to one: the coder sees to that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.coding.exact import between
from tacit.distributions import Bernoulli, Categorical, CoupledLogisticMixture, DiscretisedLogisticMixture, Head
from tacit.distributions.logistic import LOWEST
from tacit.errors import CapabilityError


def masses(head: Head, parameters: Tensor, before: Tensor) -> Tensor:
    """The mass of each value of an entry, (rows, values) float64, not normalised.

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
        return torch.stack([1 - on, on], 1)
    if isinstance(head, Categorical):
        return _raised(parameters)
    if isinstance(head, DiscretisedLogisticMixture):
        location, log_scale, logits = head.split(parameters, LOWEST)
        return _mixed(_weights(location, logits), _logistics(head.levels, location, log_scale))
    if isinstance(head, CoupledLogisticMixture):
        return _coupled(head, parameters, before)
    raise CapabilityError("real numbers cannot be coded without loss: their last digits have no probability")


def _raised(logits: Tensor) -> Tensor:
    return between("exp", logits - logits.amax(1, keepdim=True))


def _weights(location: Tensor, logits: Tensor | None) -> Tensor:
    return torch.ones_like(location) if logits is None else _raised(logits)


def _logistics(levels: int, location: Tensor, log_scale: Tensor) -> list[Tensor]:
    """The levels' masses under each component, (rows, levels) each; the outermost take all beyond them."""
    edges = (torch.arange(1, levels, dtype=torch.float64) - 0.5) * (2 / (levels - 1)) - 1
    inverse, found = between("exp", -log_scale), []
    for k in range(location.shape[1]):
        below = between("sigmoid", (edges - location[:, k, None]) * inverse[:, k, None])
        zero = torch.zeros_like(below[:, :1])
        found.append((torch.cat([below, zero + 1], 1) - torch.cat([zero, below], 1)).clamp_(min=0))
    return found


def _mixed(weights: Tensor, parts: list[Tensor]) -> Tensor:
    found = torch.zeros_like(parts[0])
    for k, part in enumerate(parts):
        found = found + weights[:, k, None] * part
    return found


def _coupled(head: CoupledLogisticMixture, parameters: Tensor, before: Tensor) -> Tensor:
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
        parts = _logistics(head.levels, centre, log_scale[:, c])
        if c == before.shape[1]:
            return _mixed(weights, parts)
        own = torch.cat([part.gather(1, before[:, c, None].long()) for part in parts], 1)
        # A value that no component gives any mass still has the coder's least.
        weights = weights * (own + 1e-12)
        weights = weights / weights.amax(1, keepdim=True)
    raise AssertionError("unreachable")
