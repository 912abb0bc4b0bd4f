"""Flow matching: a continuous flow learnt by regression, without solving anything.

Between noise z and an observation x lies the straight path x_t = (1 − t) x + t z, whose velocity is z − x. A network is
asked for that velocity at random points of random paths,

    L = E_{t, x, z} ‖v(x_t, t) − (z − x)‖² / D                                         (eq. 23, with σ_min = 0)

and what it learns, the mean velocity of all paths through a point, is the velocity of a flow from data (t = 0) to noise
(t = 1). Draws follow it backwards; the density comes from its divergence, as FFJORD's does.

References
----------
- Lipman, Chen, Ben-Hamu, Nickel & Le (2023), Flow matching for generative modeling, arXiv:2210.02747
- Liu, Gong & Liu (2023), Flow straight and fast: rectified flow, arXiv:2209.03003
- Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch optimal transport,
  arXiv:2302.00482
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from tacit.capabilities import Kind
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.flows._flow import Flow
from tacit.nn import noise
from tacit.nn.bijections import Chain, Dequantise, Flatten, Rescale
from tacit.nn.continuous import Continuous
from tacit.nn.unet import TimedPerceptron, UNet
from tacit.spaces import Images, Space, Vectors


class FlowMatching(Flow):
    """Flow matching.

    Args:
        space: vectors or images.
        width: hidden units of the velocity's network, or its channels at full resolution.
        multipliers: for images, of the width, one a level of the U-net.
        blocks: residual blocks, of each level for images.
        dropout: share of hidden units to drop while learning.
        transport: whether the noise of a batch is handed out by optimal transport, which straightens the paths.
        tolerance: of the solver.
        exact: the most columns of which the density is exact; above it, and for images, it is an estimate.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1, or `tolerance` is not positive.
    """

    spaces = (Vectors, Images)
    recipe = Recipe(batch_size=256, learning_rate=1e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Space,
        *,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 2,
        dropout: float = 0.0,
        transport: bool = True,
        tolerance: float = 1e-4,
        exact: int = 64,
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, width=width, blocks=blocks, multipliers=min(multipliers, default=0))
        if tolerance <= 0:
            raise TacitError(f"tolerance is {tolerance}: give a small positive number, such as 1e-4")
        # One pass of a U-net for every pixel would be too dear.
        self.transport, self.exact = transport, exact if isinstance(space, Vectors) else 0
        network: TimedPerceptron | UNet
        if isinstance(space, Images):
            self.reals = Chain(Dequantise(cast(int, space.levels)), Rescale(2.0, -1.0))
            network = UNet(
                space.channels,
                width=width,
                multipliers=multipliers,
                blocks=blocks,
                dropout=dropout,
                context=self.context,
            )
        else:
            network = TimedPerceptron(
                space.dimensions, width=width, blocks=blocks, dropout=dropout, context=self.context
            )
        self.velocity = Continuous(network, tolerance=10 * tolerance, exact=self.exact)
        self.flow = Chain(self.velocity, Flatten(*space.shape))

    @property
    def density(self) -> Kind:
        """Exact up to the solver's tolerance in few dimensions; with Hutchinson's trace an estimate."""
        return super().density if self.space.dimensions <= self.exact else "estimate"

    def loss(self, batch: Batch) -> Losses:
        """The mean squared error of the velocity, per dimension."""
        x = self.reals(self.space.check(batch.x))
        z = noise.randn_like(x)
        if self.transport:
            z = z[nearest(x.flatten(1), z.flatten(1))]
        # Stratified times: their mean varies less than that of independent ones.
        t = noise.stratified(len(x), device=x.device).to(x.dtype)
        along = t.view(-1, *[1] * (x.dim() - 1))
        context = self._context(self.learned_label(batch))
        found = self.velocity.velocity_at((1 - along) * x + along * z, t, context)
        return Losses(velocity=(found - (z - x)).square().mean())


@torch.compiler.disable
@torch.no_grad()
def nearest(x: Tensor, z: Tensor) -> Tensor:
    """Which row of `z` goes to each row of `x`, (batch,), so that the sum of squared distances is the least."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(torch.cdist(x, z).square().cpu().numpy())[1]).to(x.device)
