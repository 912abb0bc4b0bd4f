"""FFJORD: a continuous flow with a free-form velocity and an unbiased estimate of its volume.

    z(1) = x + ∫₀¹ v(z(t), t) dt,        log p(x) = log p(z(1)) + ∫₀¹ tr ∂v/∂z dt

The velocity is any network; its divergence is estimated by Hutchinson's trace while learning, and computed exactly in
few dimensions afterwards. An adaptive solver goes along it, in either direction. Images take flows of convolutions in
RealNVP's multi-scale architecture; each scale squeezes first, as Glow's do: the paper's flows before that, at full
resolution, would take four times the time.

References
----------
- Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), FFJORD: Free-form continuous dynamics for scalable
  reversible generative models, arXiv:1810.01367
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Kind
from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow
from tacit.nn.bijections import ActNorm, Bijection, Chain, FactorOut, Flatten, Squeeze
from tacit.nn.continuous import Continuous
from tacit.spaces import Images, Space, Vectors


class FFJORD(Flow):
    """FFJORD.

    Args:
        space: vectors or images.
        blocks: continuous flows, one after the other; of images at each scale.
        hidden: units of each hidden layer of a velocity, or its channels.
        scales: of images, how often at most to squeeze; as often as height and width are even.
        tolerance: of the solver while learning; a tenth of it otherwise.
        exact: the most dimensions of which the density is exact; above it is an estimate.
        adjoint: gradients by solving backwards in time, which takes less memory and more time.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1, or `tolerance` is not positive.
    """

    spaces = (Vectors, Images)
    recipe = Recipe(batch_size=256, learning_rate=2e-3, schedule="cosine", warmup=100, clip=5.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Space,
        *,
        blocks: int = 1,
        hidden: tuple[int, ...] = (64, 64, 64),
        scales: int = 2,
        tolerance: float = 1e-4,
        exact: int = 64,
        adjoint: bool = False,
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, blocks=blocks, hidden=min(hidden, default=1), scales=scales)
        if tolerance <= 0:
            raise TacitError(f"tolerance is {tolerance}: give a small positive number, such as 1e-4")
        self.exact = exact

        def flows(shape: tuple[int, ...]) -> list[Bijection]:
            """Continuous flows of (channels, height, width) or (features,), normalised beforehand."""
            velocities = [Velocity(shape[0], hidden, self.context, images=len(shape) == 3) for _ in range(blocks)]
            continuous = [Continuous(v, tolerance=tolerance, exact=exact, adjoint=adjoint) for v in velocities]
            return [ActNorm(shape[0]), *continuous]

        if isinstance(space, Images):
            self.flow, self.last = _scale(space.shape, scales, flows)
        else:
            self.flow = Chain(*flows(space.shape))

    @property
    def density(self) -> Kind:
        """Exact up to the solver's tolerance in few dimensions; with Hutchinson's trace an estimate."""
        return super().density if self.space.dimensions <= self.exact else "estimate"


def _scale(
    shape: tuple[int, ...], scales: int, flows: Callable[[tuple[int, ...]], list[Bijection]]
) -> tuple[Chain, int]:
    """The bijections from one scale on, to flat noise, and the number of entries of the last."""
    c, h, w = shape
    if scales == 0 or h % 2 or w % 2:
        return Chain(*flows(shape), Flatten(*shape)), c * h * w
    squeezed = (4 * c, h // 2, w // 2)
    if scales == 1:
        return Chain(Squeeze(), *flows(squeezed), Flatten(*squeezed)), c * h * w
    rest, last = _scale((2 * c, h // 2, w // 2), scales - 1, flows)
    return Chain(Squeeze(), *flows(squeezed), FactorOut(squeezed, rest)), last


class Velocity(nn.Module):
    """Layers that are scaled and shifted by time and context, with softplus between: y = (W x + b) ⊙ σ(G c) + H c.

    Args:
        features: of the state; channels of an image.
        hidden: units of each hidden layer, or channels.
        context: features of the context; 0 for none.
        images: whether W is a 3 × 3 convolution, or a matrix.
    """

    def __init__(self, features: int, hidden: tuple[int, ...], context: int = 0, *, images: bool = False):
        super().__init__()
        sizes = (features, *hidden, features)
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) if images else nn.Linear(a, b) for a, b in pairs)
        self.gates = nn.ModuleList(nn.Linear(1 + context, 2 * b) for _, b in pairs)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, features, …), (batch,), (batch, context) -> (batch, features, …)."""
        given = t[:, None] if context is None else torch.cat((t[:, None], context), 1)
        for i, (layer, gate) in enumerate(zip(self.layers, self.gates, strict=True)):
            scale, shift = gate(given).view(len(x), -1, *[1] * (x.dim() - 2)).chunk(2, 1)
            x = torch.addcmul(shift, layer(x if i == 0 else F.softplus(x)), scale.sigmoid())
        return x
