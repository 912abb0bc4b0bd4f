"""Linear layers through a mask, and the masks that make a network autoregressive.

Germain, Gregor, Murray & Larochelle (2015), MADE, arXiv:1502.03509: every unit carries a degree, and no path leads
from an input to the output of the same or a lower degree.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLinear(nn.Linear):
    """y = (M ⊙ W) x + b; the mask M, (out_features, in_features), is given at the call, so that it may change."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight * mask, self.bias)


def degree_mask(source: Tensor, target: Tensor, *, strict: bool) -> Tensor:
    """Which connections may exist, (targets, sources), bool, between units of these degrees, (sources,), (targets,).

    Into a hidden unit from degrees up to its own; into an output (`strict`) only from lower ones.
    """
    return target[:, None] > source[None, :] if strict else target[:, None] >= source[None, :]
