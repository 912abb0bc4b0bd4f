"""PixelCNN: pixel after pixel, each given those above and to the left of it by masked convolutions.

p(x) = ∏_i p(x_i | x_<i), the pixels row by row and a pixel's colours one after the other; every conditional is a
softmax over all levels (a Bernoulli for binary images). A masked convolution of k × k multiplies the rows above, the
pixels to the left, and of the pixel itself the features of its earlier colours (mask A, the first layer) or of its
colour too (mask B, all others), so that one pass gives all conditionals.

Its blind spot: rows above reach a pixel only through convolutions that themselves look left, so that a cone to the
upper right, wider than the kernels' own slope, is never seen however many the layers; GatedPixelCNN has none.

Beyond the paper, the first layer has a bias for every place (`places`).

References
----------
- van den Oord, Kalchbrenner & Kavukcuoglu (2016), Pixel recurrent neural networks, arXiv:1601.06759, §3.3–3.5
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2.3 (labels)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import (
    PixelState,
    Pixelwise,
    check_kernels,
    entry_head,
    raster,
    scaled,
    start_at_marginal,
)
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Images


class PixelCNN(Pixelwise):
    """PixelCNN with residual blocks.

    Args:
        features: h of the blocks, which compute h feature maps between 2h of the residual stream.
        layers: residual blocks.
        first: side of the first layer's kernel, which is odd.
        kernel: side of the others', odd too.
        places: a bias of the first layer at every place; the paper's has none, and learns centred things more slowly.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or a kernel's side is even.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=16, learning_rate=5e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Images,
        *,
        features: int = 32,
        layers: int = 7,
        first: int = 7,
        kernel: int = 3,
        places: bool = True,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers)
        check_kernels(first=first, kernel=kernel)
        self.head = entry_head(space)
        self.register_buffer("order", raster(space), persistent=False)
        colours = torch.arange(space.channels)
        wide, narrow = (channel_groups(n * features, space.channels) for n in (2, 1))
        # A layer of k × k sees half of it to every side but below.
        self.input = MaskedConv2d(colours, wide, above=first // 2, left=first // 2, right=first // 2, strict=True)
        self.place = nn.Parameter(torch.zeros(1, len(wide), space.height, space.width)) if places else None
        self.blocks = nn.ModuleList(
            Block(wide, narrow, kernel // 2, self.label_embedding(features)) for _ in range(layers)
        )
        self.outputs = nn.ModuleList(
            [MaskedConv2d(wide, wide), MaskedConv2d(wide, colours.repeat(self.head.parameters))]
        )

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The residual stream after the last block, (batch, 2h, height, width)."""
        h = self.input(scaled(entries, self.space.levels or 2))
        if self.place is not None:
            h = h + self.place
        for block in self.blocks:
            h = block(h, label)
        return h

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, channels, height, width)."""
        for layer in self.outputs:
            hidden = layer(F.relu(hidden))
        return hidden.unflatten(1, (self.head.parameters, -1))

    def adapt(self, data: Dataset) -> None:
        """Start every output at its colour's own marginal."""
        super().adapt(data)
        start_at_marginal(self.outputs[-1], self, data)

    # -- one entry after another --------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        width = self.space.shape[2]
        return State(
            ConvCache(self.input, count, width),
            self.place,
            [BlockState(block, count, width, label) for block in cast("list[Block]", self.blocks)],
            [ConvCache(layer, count, width) for layer in cast("list[MaskedConv2d]", self.outputs)],
        )


class Block(nn.Module):
    """h ← h + W(relu(K(relu(V relu(h))) + u_y)): down to half the features, a k × k layer, and back."""

    def __init__(self, wide: Tensor, narrow: Tensor, reach: int, label: nn.Embedding | None):
        super().__init__()
        self.down = MaskedConv2d(wide, narrow)
        self.across = MaskedConv2d(narrow, narrow, above=reach, left=reach, right=reach)
        self.up = MaskedConv2d(narrow, wide)
        self.label = label

    def forward(self, h: Tensor, label: Tensor | None) -> Tensor:
        """(batch, 2h, height, width) -> the same."""
        inside = self.across(F.relu(self.down(F.relu(h))))
        if self.label is not None:
            inside = inside + self.label(label)[:, :, None, None]
        return h + self.up(F.relu(inside))


class BlockState:
    """The caches of a block."""

    def __init__(self, block: Block, count: int, width: int, label: Tensor | None):
        self.down, self.across, self.up = (ConvCache(c, count, width) for c in (block.down, block.across, block.up))
        self.label = None if block.label is None else block.label(label)[:, :, None, None]

    def __call__(self, h: Tensor, column: int, channel: int) -> Tensor:
        inside = self.across(F.relu(self.down(F.relu(h), column, channel)), column, channel)
        return h + self.up(F.relu(inside), column, channel)


@dataclass
class State(PixelState):
    """The caches of all layers."""

    input: ConvCache
    place: Tensor | None
    blocks: list[BlockState]
    outputs: list[ConvCache]

    def write(self, x: Tensor, column: int, channel: int) -> None:
        self.input.write(x, column, channel)

    def begin_row(self, row: int) -> None:
        self.input.begin_row(None if self.place is None else self.place[:, :, row : row + 1])
        for block in self.blocks:
            block.across.begin_row(block.label)
            if row == 0:
                # Caches that look no higher than their own row need no more than their first.
                block.down.begin_row()
                block.up.begin_row()
        for layer in self.outputs if row == 0 else ():
            layer.begin_row()

    def read(self, column: int, channel: int) -> Tensor:
        h = self.input.read(column, channel)
        for block in self.blocks:
            h = block(h, column, channel)
        for layer in self.outputs:
            h = layer(F.relu(h), column, channel)
        return h
