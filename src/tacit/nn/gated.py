"""The gated layers of PixelCNN decoders, in one pass and pixel by pixel, given labels and spatial contexts.

A vertical stack v sees all rows above in full width; a horizontal stack h sees its own row to the left and, at every
layer, what v has found above. With r a label's embedding and s a context of the image's own height and width,

    y = tanh(W_f * x + U_f r + V_f * s) ⊙ σ(W_g * x + U_g r + V_g * s),

V being 1 × 1: van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2.3.
"""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.nn.masked import ConvCache, MaskedConv2d


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2 of the paper).

    Args:
        source: the colour channel of each input feature of h, (in_features,), sorted.
        maps: that of each of the p feature maps of v and of h, (p,).
        reach: rows above, and columns to each side, that the layer sees.
        first: whether it is the first: h then does not see its own pixel and has no residual connection.
        label: a vector of 4p for each label; None without labels.
        context: features of the spatial context; None without one.
        size: height and width, if every place has a bias of its own.
    """

    def __init__(
        self,
        source: Tensor,
        maps: Tensor,
        reach: int,
        first: bool,
        label: nn.Embedding | None,
        context: int | None = None,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.reach, self.first, both = reach, first, maps.repeat(2)
        self.vertical = nn.Conv2d(len(source), len(both), (reach + 1, 2 * reach + 1))
        self.through = nn.Conv2d(len(both), len(both), 1)
        self.horizontal = MaskedConv2d(source, both, left=reach, strict=first)
        self.mix = MaskedConv2d(maps, maps)
        for conv in (self.vertical, self.through):
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(cast(Tensor, conv.bias))
        self.label = label
        self.context = None if context is None else nn.Conv2d(context, 2 * len(both), 1)
        self.place = None if size is None else nn.Parameter(torch.zeros(1, 2 * len(both), *size))

    def biases(self, label: Tensor | None, context: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """What label, context and place add to v and to h: (batch, 2p, 1 or height, 1 or width) each, or 0."""
        found: list[Tensor] = [] if self.place is None else [self.place]
        if self.label is not None:
            found.append(self.label(label)[:, :, None, None])
        if self.context is not None:
            found.append(self.context(context))
        return functools.reduce(torch.add, found).chunk(2, 1) if found else (0.0, 0.0)  # type: ignore[return-value]

    def forward(
        self, v: Tensor, h: Tensor, label: Tensor | None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(batch, p, height, width) both, of the first layer images -> the same after this layer."""
        for_v, for_h = self.biases(label, context)
        above = self.vertical(F.pad(v, (self.reach, self.reach, self.reach, 0)))
        new = self.mix(gate(self.horizontal(h) + self.through(above) + for_h))
        return gate(above + for_v), new if self.first else h + new


class LayerState:
    """The rows that v still needs, and the caches of h.

    tanh(a) = 2 σ(2a) − 1: one sigmoid serves both halves, σ(b) (1 − 2 σ(2a)) = −y, and what reads y is negated.
    """

    def __init__(self, layer: GatedLayer, count: int, width: int, label: Tensor | None, context: Tensor | None = None):
        self.layer = layer
        self.for_v, self.for_h = layer.biases(label, context)
        reach, mix = layer.reach, layer.mix
        self.rows = layer.vertical.weight.new_zeros(count, layer.vertical.in_channels, reach + 1, width + 2 * reach)
        halves = torch.tensor([2.0, 1.0], device=self.rows.device).repeat_interleave(len(mix.source))
        self.horizontal = ConvCache(layer.horizontal, count, width, halves)
        # −y of a pixel's channels and a one, and the matrices to each channel's maps, the bias their last row.
        self.gated = self.rows.new_ones(count, len(mix.source) + 1)
        parts = self.gated[:, :-1].split(torch.bincount(mix.source).tolist(), 1)
        results = [torch.empty(count, 2 * part.shape[1], device=part.device) for part in parts]
        self.parts = [(both, *both.chunk(2, 1), part) for both, part in zip(results, parts, strict=True)]
        matrix = torch.cat([-(mix.weight * mix.mask)[:, :, 0, 0].T, mix.bias[None]]).detach()  # type: ignore[index]
        self.matrices = [matrix[:, mix.target == c].contiguous() for c in range(len(parts))]

    def begin_row(self, v: Tensor, row: int) -> Tensor:
        """V of the row to come, (batch, p, 1, width) -> v after this layer."""
        for_v, for_h = (_of_row(bias, row) for bias in (self.for_v, self.for_h))
        self.rows = torch.cat([self.rows[:, :, 1:], F.pad(v, (self.layer.reach, self.layer.reach))], 2)
        above = self.layer.vertical(self.rows)
        self.horizontal.begin_row(self.layer.through(above) + for_h)
        return gate(above + for_v)

    def __call__(self, h: Tensor | None, column: int, channel: int, out: Tensor | None) -> Tensor:
        """The horizontal stack's features of one pixel, written to `out`; its input has been written before.

        `h` is that input, None of the first layer, which has no residual connection.
        """
        both, a, b, part = self.parts[channel]
        self.horizontal.read(column, channel, both).sigmoid_()
        torch.addcmul(b, a, b, value=-2, out=part)
        matrix = self.matrices[channel]
        if h is None:
            return torch.mm(self.gated, matrix, out=out)
        return torch.addmm(h, self.gated, matrix, out=out)


def draw_through(layers: list[LayerState], column: int, channel: int) -> Tensor:
    """The last layer's features of one pixel, whose input the first has; each writes to where the next one reads."""
    h: Tensor | None = None
    for i, layer in enumerate(layers):
        last = i + 1 == len(layers)
        h = layer(h, column, channel, None if last else layers[i + 1].horizontal.slots[channel][column])
    return cast(Tensor, h)


def _of_row(bias: Tensor | float, row: int) -> Tensor | float:
    """A spatial bias at one row; any other is that of every row."""
    return bias if isinstance(bias, float) or bias.shape[2] == 1 else bias[:, :, row : row + 1]


def gate(x: Tensor) -> Tensor:
    """tanh(a) ⊙ σ(b) of the two halves of the features, axis 1."""
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)
