"""Gated PixelCNN: gated convolutions in two stacks, one for the rows above; no pixel is out of sight.

p(x) = ∏_i p(x_i | x_<i), the pixels row by row and a pixel's colours one after the other. The vertical stack v sees all
rows above, in full width; the horizontal stack h sees its own row to the left and, at every layer, what v has found
above. Both multiply a tanh by a gate, and the label's embedding biases both:

    y = tanh(W_f * x + V_f y) ⊙ σ(W_g * x + V_g y).

Since v never looks at its own row, it needs no mask, and its reach grows to all sides: PixelCNN's blind spot is gone.
Beyond the paper, the first layer has a bias for every place (`places`).

References
----------
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2 and figure 2
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
"""

from __future__ import annotations

from dataclasses import dataclass

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
from tacit.nn.gated import GatedLayer, LayerState, draw_through
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Images


class GatedPixelCNN(Pixelwise):
    """Gated PixelCNN.

    Args:
        features: feature maps p of each stack.
        layers: gated layers, the first included.
        first: side of the first layer's kernel, which is odd.
        kernel: side of the others', odd too.
        readout_features: feature maps of the two 1 × 1 layers that end it.
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
        layers: int = 8,
        first: int = 7,
        kernel: int = 5,
        readout_features: int = 64,
        places: bool = True,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers, readout_features=readout_features)
        check_kernels(first=first, kernel=kernel)
        self.head = entry_head(space)
        self.register_buffer("order", raster(space), persistent=False)
        colours = torch.arange(space.channels)
        maps, wide = (channel_groups(n, space.channels) for n in (features, readout_features))
        self.layers = nn.ModuleList(
            GatedLayer(
                maps if i else colours,
                maps,
                (kernel if i else first) // 2,
                i == 0,
                self.label_embedding(4 * features),
                size=(space.height, space.width) if places and i == 0 else None,
            )
            for i in range(layers)
        )
        self.outputs = nn.ModuleList(
            [MaskedConv2d(maps, wide), MaskedConv2d(wide, colours.repeat(self.head.parameters))]
        )

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The horizontal stack after the last layer, (batch, features, height, width)."""
        h = scaled(entries, self.space.levels or 2)
        v = F.pad(h, (0, 0, 1, -1))  # a row down: v sees the rows above
        for layer in self.layers:
            v, h = layer(v, h, label)
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

    def init_state(self, count: int, label: Tensor | None) -> State:
        width = self.space.shape[2]
        layers = [LayerState(layer, count, width, label) for layer in self.layers]  # type: ignore[arg-type]
        return State(layers, [ConvCache(layer, count, width) for layer in self.outputs])  # type: ignore[arg-type]


@dataclass
class State(PixelState):
    """The caches of all layers."""

    layers: list[LayerState]
    outputs: list[ConvCache]

    def write(self, x: Tensor, column: int, channel: int) -> None:
        self.layers[0].horizontal.write(x, column, channel)

    def begin_row(self, row: int) -> None:
        if row == 0:
            for output in self.outputs:
                output.begin_row()
        v = self.layers[0].horizontal.row()
        for layer in self.layers:
            v = layer.begin_row(v, row)

    def read(self, column: int, channel: int) -> Tensor:
        h = draw_through(self.layers, column, channel)
        for output in self.outputs:
            h = output(F.relu(h), column, channel)
        return h
