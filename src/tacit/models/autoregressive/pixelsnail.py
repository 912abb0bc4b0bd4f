"""PixelSNAIL: causal convolutions that see what is near, and attention to every pixel before.

p(x) = ∏_i p(x_i | x_<i) over pixels in rows; a pixel's colours come together from a discretised mixture of logistics in
which earlier colours shift later ones, as in PixelCNN++, so that no layer needs a mask among colours and a pixel is one
step to draw. Each block of the network is a few gated residual blocks of down-right-shifted convolutions, then

    a_i = Σ_{j<i} α_ij v_j,   α_i = softmax_j(q_i · k_j / √d),   h_i ← h_i + gate(h_i, a_i),

attention from every pixel to all those before it. Its keys and values come from the features, the pixel itself and its
place; its queries from features and place. The convolutions alone never see to the upper right: what lies there
comes through the attention, which no distance weakens. The first pixel, which has nothing to attend to, and any other
that finds nothing worth it, attends to a nought: a key and a value of zero that stand before all others.

References
----------
- Chen, Mishra, Rohaninejad & Abbeel (2017), PixelSNAIL: An improved autoregressive generative model, arXiv:1712.09763
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
"""

from __future__ import annotations

import functools
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
    DownShiftedConv2d,
    GatedResidual,
    PixelCache,
    Pointwise,
    RowCache,
    with_ones,
)
from tacit.spaces import Images


class PixelSNAIL(Pixelwise):
    """PixelSNAIL.

    Args:
        features: feature maps of the network.
        layers: how often it attends.
        blocks: gated blocks of convolutions before it does.
        keys: entries of queries, keys and values.
        components: logistics of the mixture, for images of several colours or more than two levels.
        dropout: probability of dropping an input of a block's second convolution; the paper's 0.5 is for long training.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or `dropout` is outside [0, 1).
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=8, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    places: Tensor

    def __init__(
        self,
        space: Images,
        *,
        features: int = 32,
        layers: int = 3,
        blocks: int = 2,
        keys: int = 32,
        components: int = 10,
        dropout: float = 0.0,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers, blocks=blocks, keys=keys, components=components)
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        self.head = pixel_head(space, components)
        order, channels = raster(space), space.channels
        self.register_buffer("order", order if channels == 1 else order.view(-1, channels), persistent=False)
        rows, columns = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (space.height, space.width))
        self.register_buffer(
            "places", torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None], persistent=False
        )
        self.above = DownShiftedConv2d(channels + 1, features, (1, 3), strict=True)
        self.left = DownRightShiftedConv2d(channels + 1, features, (2, 1), strict=True)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            convolutions = [
                GatedResidual(DownRightShiftedConv2d, features, 0, dropout, self.label_embedding(2 * features))
                for _ in range(blocks)
            ]
            self.layers.append(Layer(convolutions, Attention(features, channels, keys, dropout)))
        self.output = Pointwise(features, self.head.parameters)

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Features after the last layer, (batch, features, height, width)."""
        x = scaled(entries, self.space.levels or 2)
        places, ones = self.places.expand(len(x), -1, -1, -1), with_ones(x)
        h = self.above(ones) + self.left(ones)
        for layer in self.layers:
            h = layer(h, x, places, label)
        return h

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


class Layer(nn.Module):
    """Gated blocks of convolutions, then attention to all pixels before."""

    def __init__(self, convolutions: list[GatedResidual], attention: Attention):
        super().__init__()
        self.convolutions, self.attention = nn.ModuleList(convolutions), attention

    def forward(self, h: Tensor, x: Tensor, places: Tensor, label: Tensor | None) -> Tensor:
        """(batch, features, height, width), (batch, channels, …), (batch, 2, …), (batch,) -> (batch, features, …)."""
        for block in self.convolutions:
            h = block(h, None, label)
        found = (self.attention.queries(h, places), *self.attention.memory(h, x, places))
        # PyTorch's fast kernel takes only pixels whose features lie side by side.
        query, key, value = (each.flatten(2).transpose(1, 2).contiguous() for each in found)
        # A place later, after the nought, they are those of the pixels before: the diagonal belongs to the causal mask.
        key, value = (F.pad(each, (0, 0, 1, -1)) for each in (key, value))
        seen = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], is_causal=True)[:, 0]
        return self.attention.merge(h, seen.transpose(1, 2).reshape(len(h), -1, *h.shape[2:]))


class Attention(nn.Module):
    """What of a pixel is asked, what is found there, and how what was found elsewhere joins its features."""

    def __init__(self, features: int, channels: int, keys: int, dropout: float):
        super().__init__()
        content, question = features + channels + 2, features + 2
        self.content = nn.Sequential(GatedResidual(Pointwise, content, 0, dropout), Pointwise(content, 2 * keys))
        self.question = nn.Sequential(GatedResidual(Pointwise, question, 0, dropout), Pointwise(question, keys))
        self.merge = GatedResidual(Pointwise, features, keys, dropout)

    def queries(self, h: Tensor, places: Tensor) -> Tensor:
        """(batch, features, height, width), (batch, 2, height, width) -> (batch, keys, height, width)."""
        return self.question(torch.cat([h, places], 1))

    def memory(self, h: Tensor, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (batch, keys, height, width) each, of pixels that are known."""
        key, value = self.content(torch.cat([h, x, places], 1)).chunk(2, 1)
        return key, value


# -- one pixel after another ------------------------------------------------------------------------------------------


class LayerState:
    """The caches of a layer's convolutions, and keys and values of all pixels drawn, after the nought."""

    def __init__(self, layer: Layer, count: int, size: tuple[int, int], label: Tensor | None):
        self.label, self.attention = label, layer.attention
        self.blocks = [
            (
                block,
                [
                    PixelCache(cast(DownRightShiftedConv2d, conv), count, size[1])
                    for conv in (block.first, block.second)
                ],
            )
            for block in cast("list[GatedResidual]", layer.convolutions)
        ]
        output = cast(Pointwise, self.attention.question[1])
        # The nought, and every pixel but the last, which nothing follows.
        self.keys, self.values = output.weight.new_zeros(2, count, size[0] * size[1], output.out_channels)

    def write(self, x: Tensor, place: Tensor, entry: int) -> None:
        """Remember a pixel just drawn, (batch, channels, 1, 1), by what was computed when it was to come."""
        if entry + 1 < self.keys.shape[1]:
            key, value = self.attention.memory(self.h, x, place)
            self.keys[:, entry + 1], self.values[:, entry + 1] = key[:, :, 0, 0], value[:, :, 0, 0]

    def begin_row(self) -> None:
        for _, caches in self.blocks:
            for cache in caches:
                cache.begin_row()

    def __call__(self, h: Tensor, place: Tensor, entry: int, column: int) -> Tensor:
        """Features of pixel number `entry` before and after the layer, (batch, features, 1, 1)."""
        for block, caches in self.blocks:
            first, second = (functools.partial(cache, column=column) for cache in caches)
            h = block.through(first, second, h, None, self.label)
        self.h = h
        query = self.attention.queries(h, place)[:, :, 0].transpose(1, 2)
        keys, values = self.keys[:, : entry + 1], self.values[:, : entry + 1]
        seen = F.scaled_dot_product_attention(query[:, None], keys[:, None], values[:, None])[:, 0]
        return self.attention.merge(h, seen.transpose(1, 2)[:, :, :, None])


class State(PixelState):
    """The caches of all layers."""

    def __init__(self, model: PixelSNAIL, count: int, label: Tensor | None):
        _, height, width = model.space.shape
        self.model, self.count, self.width = model, count, width
        self.above, self.left = RowCache(model.above, count, width), PixelCache(model.left, count, width)
        layers = cast("list[Layer]", model.layers)
        self.layers = [LayerState(layer, count, (height, width), label) for layer in layers]

    def write(self, x: Tensor, column: int, channel: int) -> None:
        x = x[:, :, None, None]
        self.left.write(with_ones(x), column)
        for layer in self.layers:
            layer.write(x, self.place, self.pixel)

    def begin_row(self, row: int) -> None:
        self.row = row
        if row > 0:
            self.above.write(self.left.row())
            self.left.begin_row()
            for layer in self.layers:
                layer.begin_row()
        self.from_above = self.above.read()

    def read(self, column: int, channel: int) -> Tensor:
        self.pixel = self.row * self.width + column
        self.place = self.model.places[:, :, self.row, None, column, None].expand(self.count, -1, -1, -1)
        h = self.from_above[:, :, :, column : column + 1] + self.left.read(column)
        for layer in self.layers:
            h = layer(h, self.place, self.pixel, column)
        return self.model.output(F.elu(h))[:, :, 0, 0]
