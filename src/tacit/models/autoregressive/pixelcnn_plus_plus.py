"""PixelCNN++: pixels from mixtures of logistics, by two causal streams through a U-shaped network.

p(x) = ∏_i p(x_i | x_<i) over pixels in rows; a pixel's colours come together from a discretised mixture of logistics in
which earlier colours shift later ones (`tacit.distributions.coupled`), so that no layer needs a mask. Stream u sees all
rows above, by down-shifted convolutions; stream ul its own row to the left too, by down-right-shifted ones, and at
every block what u has found. Both consist of gated residual blocks

    h ← h + a ⊙ σ(b),   (a, b) = K₂ φ(K₁ φ(h) + V φ(s)) + u_y,   φ(z) = elu([z, −z]),

at one resolution after another, each half of the one before; on the way back up every block also receives, through s,
what the block opposite to it received on the way down. An image of odd sides is as if one row or column longer, which
nothing that counts can see.

The paper's weight normalisation with its data-dependent start is left out. In its stead weights begin with the variance
that keeps their inputs', blocks near the identity (second convolutions at a tenth, as in the paper), the output at the
colours' marginals, and the length of gradients is bounded.

References
----------
- Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++: Improving the PixelCNN with discretized logistic mixture
  likelihood and other modifications, arXiv:1701.05517
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import (
    PixelState,
    Pixelwise,
    pixel_head,
    raster,
    scaled,
    start_at_marginal,
)
from tacit.nn.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedUpsample2d,
    DownShiftedConv2d,
    DownShiftedUpsample2d,
    GatedResidual,
    PixelCache,
    Pointwise,
    RowCache,
    with_ones,
)
from tacit.spaces import Images


class PixelCNNPlusPlus(Pixelwise):
    """PixelCNN++.

    Args:
        features: feature maps of each stream, at every resolution.
        blocks: gated blocks of each stream and resolution on the way down; on the way up there is one more.
        resolutions: how many, each half of the one before.
        components: logistics of the mixture, for images of several colours or more than two levels.
        dropout: probability of dropping an input of a block's second convolution; the paper's 0.5 is for long training.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or `dropout` is outside [0, 1).
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=8, learning_rate=5e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Images,
        *,
        features: int = 32,
        blocks: int = 1,
        resolutions: int = 3,
        components: int = 5,
        dropout: float = 0.0,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, blocks=blocks, resolutions=resolutions, components=components)
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        self.head = pixel_head(space, components)
        order = raster(space)
        self.register_buffer(
            "order", order if space.channels == 1 else order.view(-1, space.channels), persistent=False
        )
        self.u = DownShiftedConv2d(space.channels + 1, features, (2, 3), strict=True)
        self.above = DownShiftedConv2d(space.channels + 1, features, (1, 3), strict=True)
        self.left = DownRightShiftedConv2d(space.channels + 1, features, (2, 1), strict=True)
        level: Level | None = None
        for _ in range(resolutions):
            level = Level(features, blocks, dropout, lambda: self.label_embedding(2 * features), level)
        self.level = cast(Level, level)
        self.output = Pointwise(features, self.head.parameters)

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Stream ul at the end, (batch, features, height, width)."""
        x = with_ones(scaled(entries, self.space.levels or 2))
        return self.level(self.u(x), self.above(x) + self.left(x), label)[1]

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, height, width), or of one colour (batch, parameters, 1, height, width)."""
        parameters = self.output(F.elu(hidden))
        return parameters if self.order.dim() == 2 else parameters[:, :, None]

    def adapt(self, data: Dataset) -> None:
        """Start every output at its colour's own marginal."""
        super().adapt(data)
        nn.init.zeros_(self.output.weight)
        start_at_marginal(self.output, self, data)

    def init_state(self, count: int, label: Tensor | None) -> State:
        return State(self, count, label)


class Level(nn.Module):
    """The blocks of one resolution on the way down and up; between them all that is `coarser`.

    Args:
        features: of each stream.
        blocks: pairs of blocks on the way down.
        dropout: of the blocks.
        label: makes an embedding of the labels for a block.
        coarser: the level at half the size, None at the bottom.
    """

    def __init__(
        self,
        features: int,
        blocks: int,
        dropout: float,
        label: Callable[[], nn.Embedding | None],
        coarser: Level | None,
    ):
        super().__init__()
        self.before = nn.ModuleList(Pair(features, False, dropout, label) for _ in range(blocks))
        ups = blocks if coarser is None else blocks + 1
        self.after = nn.ModuleList(Pair(features, True, dropout, label) for _ in range(ups))
        self.coarser = coarser
        if coarser is not None:
            self.down_u = DownShiftedConv2d(features, features, (2, 3), stride=2)
            self.down_ul = DownRightShiftedConv2d(features, features, (2, 2), stride=2)
            self.up_u = DownShiftedUpsample2d(features, features)
            self.up_ul = DownRightShiftedUpsample2d(features, features)

    def forward(self, u: Tensor, ul: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams, (batch, features, height, width), through the U from here on."""
        kept = []
        for pair in self.before:
            kept.append((u, ul))
            u, ul = pair(u, ul, None, label)
        if self.coarser is not None:
            kept.append((u, ul))
            size = u.shape[2:]
            u, ul = self.coarser(self.down_u(u), self.down_ul(ul), label)
            u, ul = self.up_u(u, size), self.up_ul(ul, size)
        for pair in self.after:
            u, ul = pair(u, ul, kept.pop(), label)
        return u, ul


class Pair(nn.Module):
    """A block of each stream: ul's also sees u, and on the way up both see what was kept of them on the way down."""

    def __init__(self, features: int, up: bool, dropout: float, label: Callable[[], nn.Embedding | None]):
        super().__init__()
        self.u = GatedResidual(DownShiftedConv2d, features, features if up else 0, dropout, label())
        self.ul = GatedResidual(DownRightShiftedConv2d, features, 2 * features if up else features, dropout, label())

    def forward(
        self, u: Tensor, ul: Tensor, kept: tuple[Tensor, Tensor] | None, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both streams, (batch, features, height, width), after their blocks."""
        if kept is None:
            u = self.u(u, None, label)
            return u, self.ul(ul, u, label)
        u = self.u(u, kept[0], label)
        return u, self.ul(ul, torch.cat([u, kept[1]], 1), label)


# -- one pixel after another ------------------------------------------------------------------------------------------


class PairState:
    """The caches of a pair, and its u of the row at hand."""

    def __init__(self, pair: Pair, count: int, width: int, label: Tensor | None):
        self.pair, self.label = pair, label
        self.rows = [RowCache(cast(DownShiftedConv2d, conv), count, width) for conv in (pair.u.first, pair.u.second)]
        self.pixels = [
            PixelCache(cast(DownRightShiftedConv2d, conv), count, width) for conv in (pair.ul.first, pair.ul.second)
        ]

    def begin_row(self, u: Tensor, kept: Tensor | None) -> Tensor:
        """U of the row before and after its block, (batch, features, 1, width)."""
        for cache in self.pixels:
            cache.begin_row()
        self.u = self.pair.u.through(self.rows[0], self.rows[1], u, kept, self.label)
        return self.u

    def __call__(self, ul: Tensor, kept: Tensor | None, column: int) -> Tensor:
        """Ul of a pixel before and after its block, (batch, features, 1, 1)."""
        u = self.u[:, :, :, column : column + 1]
        first, second = (functools.partial(cache, column=column) for cache in self.pixels)
        return self.pair.ul.through(first, second, ul, u if kept is None else torch.cat([u, kept], 1), self.label)


class LevelState:
    """The caches of a level and of those below: a coarser row is due at every second row, its pixels likewise."""

    def __init__(self, level: Level, count: int, width: int, label: Tensor | None):
        self.level, self.width = level, width
        self.before, self.after = (
            [PairState(cast(Pair, pair), count, width, label) for pair in pairs]
            for pairs in (level.before, level.after)
        )
        self.coarser: LevelState | None = None
        if level.coarser is not None:
            self.coarser = LevelState(level.coarser, count, (width + 1) // 2, label)
            self.down_u = RowCache(level.down_u, count, width)
            self.down_ul = PixelCache(level.down_ul, count, width)
            # What the coarser level gives to two rows.
            self.ul = level.up_ul.weight.new_empty(count, level.up_ul.out_channels, 2, self.coarser.width * 2)

    def begin_row(self, u: Tensor, row: int) -> Tensor:
        """U of the row from here to the end of the U, (batch, features, 1, width)."""
        self.row, kept = row, []
        for pair in self.before:
            kept.append(u)
            u = pair.begin_row(u, None)
        if self.coarser is not None:
            kept.append(u)
            self.down_u.write(u)
            self.down_ul.begin_row()
            if row % 2 == 0:
                self.u = self.level.up_u(self.coarser.begin_row(self.down_u.read(), row // 2), (2, self.width))
            u = self.u[:, :, row % 2, None]
        for pair in self.after:
            u = pair.begin_row(u, kept.pop())
        return u

    def __call__(self, ul: Tensor, column: int) -> Tensor:
        """Ul of a pixel from here to the end of the U, (batch, features, 1, 1)."""
        kept = []
        for pair in self.before:
            kept.append(ul)
            ul = pair(ul, None, column)
        if self.coarser is not None:
            kept.append(ul)
            self.down_ul.write(ul, column)
            if self.row % 2 == column % 2 == 0:
                four = self.level.up_ul(self.coarser(self.down_ul.read(column), column // 2), (2, 2))
                self.ul[:, :, :, column : column + 2] = four
            ul = self.ul[:, :, self.row % 2, None, column : column + 1]
        for pair in self.after:
            ul = pair(ul, kept.pop(), column)
        return ul


class State(PixelState):
    """The caches of all layers."""

    def __init__(self, model: PixelCNNPlusPlus, count: int, label: Tensor | None):
        width = model.space.shape[2]
        self.model = model
        self.u, self.above = (RowCache(conv, count, width) for conv in (model.u, model.above))
        self.left = PixelCache(model.left, count, width)
        self.level = LevelState(model.level, count, width, label)

    def write(self, x: Tensor, column: int, channel: int) -> None:
        self.left.write(with_ones(x[:, :, None, None]), column)

    def begin_row(self, row: int) -> None:
        if row > 0:
            for cache in (self.u, self.above):
                cache.write(self.left.row())
            self.left.begin_row()
        self.from_above = self.above.read()
        self.level.begin_row(self.u.read(), row)

    def read(self, column: int, channel: int) -> Tensor:
        ul = self.from_above[:, :, :, column : column + 1] + self.left.read(column)
        return self.model.output(F.elu(self.level(ul, column)))[:, :, 0, 0]
