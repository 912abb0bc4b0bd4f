"""PixelRNN: pixel after pixel, each told by two-dimensional LSTMs of all that was drawn before it.

p(x) = ∏_i p(x_i | x_<i), the pixels row by row and a pixel's colours one after the other. Every layer is an LSTM that
walks over the image and computes many pixels a step, from its input x and the states of the step before:

    [o, f, i, g] = K_ss ⊛ h' + K_is ⊛ x,   c = σ(f) ⊙ c' + σ(i) ⊙ tanh g,   h = σ(o) ⊙ tanh c.

The Row LSTM takes a row a step: K_ss is a convolution of 3 over the row above, K_is one of 3 over the row itself,
masked. It sees a triangle above the pixel. The Diagonal BiLSTM takes a diagonal a step, from both upper corners: K_ss
joins the pixel's neighbour in its own row, whose c' it takes, and the one above. In the paper's words the image is
*skewed*, each row one column further than the last, so that a diagonal becomes a column. What comes from the right is
moved down a row before it is added, so that it shows no future: the two see all rows above and the row to the left.

One small thing stays hidden even so: the last pixel of the row above, wherever the first layer's kernel does not reach
it. No feature to its left may know its value, and those below it are later pixels'.

References
----------
- van den Oord, Kalchbrenner & Kavukcuoglu (2016), Pixel recurrent neural networks, arXiv:1601.06759, §3.1–3.4
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
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
from tacit.models.autoregressive._lstm2d import Scan, Walk
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Images


class PixelRNN(Pixelwise):
    """PixelRNN: residual layers of two-dimensional LSTMs.

    Args:
        kind: "diagonal", from both corners and with sight of everything, or "row", quicker and with a triangle's.
        features: h of the LSTMs, which read and add to 2h of the residual stream.
        layers: LSTM layers.
        first: side of the first, convolutional layer's kernel, which is odd.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, the kernel's side is even, or `kind` is neither of the two.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=16, learning_rate=5e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Images,
        *,
        kind: Literal["diagonal", "row"] = "diagonal",
        features: int = 32,
        layers: int = 1,
        first: int = 7,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers)
        check_kernels(first=first)
        if kind not in ("diagonal", "row"):
            raise TacitError(f"kind is {kind!r}: give 'diagonal' or 'row'")
        self.head = entry_head(space)
        self.register_buffer("order", raster(space), persistent=False)
        colours = torch.arange(space.channels)
        wide, narrow = (channel_groups(n * features, space.channels) for n in (2, 1))
        self.input = MaskedConv2d(colours, wide, above=first // 2, left=first // 2, right=first // 2, strict=True)
        self.walk = Walk(space.height, space.width, kind)
        self.layers = nn.ModuleList(
            Layer(wide, narrow, self.walk, self.label_embedding(2 * features)) for _ in range(layers)
        )
        self.outputs = nn.ModuleList(
            [MaskedConv2d(wide, wide), MaskedConv2d(wide, colours.repeat(self.head.parameters))]
        )

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The residual stream after the last layer, (batch, 2h, height, width)."""
        h = convolve(self.input, scaled(entries, self.space.levels or 2).permute(2, 3, 0, 1))
        for layer in self.layers:
            h = layer(h, label)
        return h.permute(2, 3, 0, 1)

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, channels, height, width)."""
        h = hidden.permute(2, 3, 0, 1)
        for layer in cast("list[MaskedConv2d]", self.outputs):
            h = convolve(layer, F.relu(h))
        return h.permute(2, 3, 0, 1).unflatten(1, (self.head.parameters, -1))

    def adapt(self, data: Dataset) -> None:
        """Start every output at its colour's own marginal."""
        super().adapt(data)
        start_at_marginal(self.outputs[-1], self, data)

    def init_state(self, count: int, label: Tensor | None) -> State:
        width = self.space.shape[2]
        return State(
            ConvCache(self.input, count, width),
            [LayerState(layer, count, width, label) for layer in cast("list[Layer]", self.layers)],
            [ConvCache(layer, count, width) for layer in cast("list[MaskedConv2d]", self.outputs)],
        )


# Between layers features lie innermost and pixels outermost, so that whatever an LSTM reads in one step is one block of
# memory: (height, width, batch, features). Convolutions are products of their windows and a matrix.


def windows(conv: MaskedConv2d, x: Tensor) -> Tensor:
    """What a convolution sees at each pixel, (height, width, batch, in_features) -> (…, taps · in_features)."""
    if conv.kernel_size == (1, 1):
        return x
    rows, columns = x.shape[:2]
    x = F.pad(x, (0, 0, 0, 0, conv.left, conv.right, conv.above, 0))
    taps = itertools.product(*(range(side) for side in conv.kernel_size))
    return torch.cat([x[i : i + rows, j : j + columns] for i, j in taps], -1)


def matrix(conv: MaskedConv2d) -> Tensor:
    """The kernel behind its mask as a matrix, (taps · in_features, out_features)."""
    return (conv.weight * conv.mask).permute(2, 3, 1, 0).flatten(0, 2)


def convolve(conv: MaskedConv2d, x: Tensor) -> Tensor:
    """(height, width, batch, in_features) -> (height, width, batch, out_features)."""
    return F.linear(windows(conv, x), matrix(conv).T, conv.bias)


class Layer(nn.Module):
    """x ← x + W h: the LSTMs of one walk, and back to the width of the residual stream (figure 5 of the paper)."""

    def __init__(self, wide: Tensor, narrow: Tensor, walk: Walk, label: nn.Embedding | None):
        super().__init__()
        self.walk, self.features, gates = walk, len(narrow), narrow.repeat(4)
        left = 0 if walk.diagonal else 1
        self.inputs = nn.ModuleList(MaskedConv2d(wide, gates, left=left) for _ in range(walk.directions))
        # States are of pixels before this one, all of whose colours are known: no mask.
        bound = (walk.taps * self.features) ** -0.5
        self.states = nn.Parameter(
            torch.empty(walk.directions, walk.taps * self.features, len(gates)).uniform_(-bound, bound)
        )
        self.up = MaskedConv2d(narrow, wide)
        self.label = label

    def weight(self) -> Tensor:
        """K_ss and K_is as matrices, one above the other: (directions, taps · h + inputs, 4h)."""
        inputs = torch.stack([matrix(conv) for conv in cast("list[MaskedConv2d]", self.inputs)])
        return torch.cat([self.states, inputs], 1)

    def bias(self) -> Tensor:
        """The gates' biases, (directions, 1, 4h)."""
        return torch.stack([cast(Tensor, conv.bias) for conv in self.inputs])[:, None]

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """(height, width, batch, 2h) -> the same."""
        told = x if self.label is None else x + self.label(label)
        inputs = windows(cast(MaskedConv2d, self.inputs[0]), told).flatten(0, 1)
        found = Scan.apply(inputs.to(self.states.dtype), self.weight(), self.bias(), self.walk)
        return x + convolve(self.up, found.unflatten(0, x.shape[:2]))


# -- one entry after another ------------------------------------------------------------------------------------------


class LayerState:
    """The LSTMs' states, of each pixel the latest: in the row being drawn, or still in the one above."""

    def __init__(self, layer: Layer, count: int, width: int, label: Tensor | None):
        self.diagonal, self.features = layer.walk.diagonal, layer.features
        weight = layer.weight()
        self.states, self.from_input = weight.tensor_split([layer.states.shape[1]], 1)
        self.bias = layer.bias()
        self.inputs = ConvCache(cast(MaskedConv2d, layer.inputs[0]), count, width)
        self.up = ConvCache(layer.up, count, width)
        self.up.begin_row()
        self.label = None if layer.label is None else layer.label(label)
        self.h = weight.new_zeros(len(weight), count, width, self.features)
        self.c = torch.zeros_like(self.h[0])
        self.beside = [self.states[0, self.features :, group].contiguous() for group in self.inputs.groups]

    def begin_row(self, row: int) -> None:
        """Compute what the row above gives to the whole of the next one."""
        if self.diagonal:
            if row > 0:
                self._from_the_right()
            above = self.h[0] @ self.states[0, : self.features]
        else:
            triples = F.pad(self.h[0], (0, 0, 1, 1)).unfold(1, 3, 1).transpose(2, 3)
            above = triples.flatten(2) @ self.states[0]
        self.inputs.begin_row(above.transpose(1, 2)[:, :, None])

    def _from_the_right(self) -> None:
        """The other direction's states along the row just drawn, which the next row may see."""
        gates = self.inputs.row()[:, :, 0].transpose(1, 2) @ self.from_input[1] + self.bias[1][:, None]
        gates = gates + self.h[1] @ self.states[1, : self.features]
        h = c = torch.zeros_like(self.h[1, :, 0])
        for column in reversed(range(gates.shape[1])):
            h, c = cell(torch.addmm(gates[:, column], h, self.states[1, self.features :]), c)
            self.h[1, :, column] = h

    def __call__(self, x: Tensor, column: int, channel: int) -> Tensor:
        """The residual stream's features of one colour of a pixel, (batch, features of the channel) -> the same."""
        own = self.up.slices[channel]
        told = x if self.label is None else x + self.label[:, self.inputs.slices[channel]]
        self.inputs.write(told, column, channel)
        gates, c = self.inputs.read(column, channel), self.c[:, column, own]
        if self.diagonal:
            c = torch.zeros_like(c)
            if column > 0:
                gates = torch.addmm(gates, self.h[0, :, column - 1], self.beside[channel])
                c = self.c[:, column - 1, own]
        h, self.c[:, column, own] = cell(gates, c)
        self.h[0, :, column, own] = h
        return x + self.up(h + self.h[1, :, column, own] if self.diagonal else h, column, channel)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's h and c of gates (batch, 4h) and the c before."""
    o, f, i, g = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@dataclass
class State(PixelState):
    """The caches of all layers."""

    input: ConvCache
    layers: list[LayerState]
    outputs: list[ConvCache]

    def write(self, x: Tensor, column: int, channel: int) -> None:
        self.input.write(x, column, channel)

    def begin_row(self, row: int) -> None:
        self.input.begin_row()
        for layer in self.layers:
            layer.begin_row(row)
        for output in self.outputs if row == 0 else ():
            output.begin_row()

    def read(self, column: int, channel: int) -> Tensor:
        h = self.input.read(column, channel)
        for layer in self.layers:
            h = layer(h, column, channel)
        for output in self.outputs:
            h = output(F.relu(h), column, channel)
        return h
