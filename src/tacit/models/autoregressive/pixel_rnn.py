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
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import (
    PixelState,
    Pixelwise,
    check_kernels,
    check_sizes,
    entry_head,
    raster,
    scaled,
    start_at_marginal,
)
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Images

aten = torch.ops.aten


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
    recipe = Recipe(batch_size=16, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)

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
        check_sizes(features=features, layers=layers)
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


# -- the walk over the image ------------------------------------------------------------------------------------------


class Walk(nn.Module):
    """The order in which a layer's LSTMs visit the pixels; a step's visits lie together, direction after direction.

    A step visits a span of lanes: the columns of one row, or the rows that one diagonal crosses. Lane r is told the
    state of the step before in the lanes r − taps // 2, …, `taps` of them, where it had any. This is the paper's skewed
    image, packed: what skewing adds to a row is left out, and with it half of the work.

    Args:
        height: of the images.
        width: of the images.
        kind: of the LSTMs.
    """

    path: Tensor
    back: Tensor
    lands: Tensor

    def __init__(self, height: int, width: int, kind: Literal["diagonal", "row"]):
        super().__init__()
        pixels = torch.arange(height * width).view(height, width)
        self.width, self.diagonal = width, kind == "diagonal"
        if self.diagonal:
            self.directions, self.taps = 2, 2  # from the row above, and from the row itself, a column back
            self.spans = [(max(0, t - width + 1), min(t, height - 1) + 1) for t in range(height + width - 1)]
            rows, images = [torch.arange(*span) for span in self.spans], (pixels, pixels.flip(1))
            visits = [(image[r, t - r], d * width) for t, r in enumerate(rows) for d, image in enumerate(images)]
        else:
            self.directions, self.taps = 1, 3  # from the row above: the columns to the left, here and to the right
            self.spans, visits = [(0, width)] * height, [(row, 0) for row in pixels]
        path = torch.cat([pixel for pixel, _ in visits])
        down = torch.cat([torch.full_like(pixel, places) for pixel, places in visits])
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("lands", path + down, persistent=False)
        self.register_buffer("back", (path + down * height).argsort(), persistent=False)

    def skew(self, x: Tensor) -> Tensor:
        """(pixels, …) -> (visits, …), every pixel being visited once in each direction."""
        return x.index_select(0, self.path)

    def unskew(self, x: Tensor) -> Tensor:
        """(visits, …) -> (directions, pixels, …)."""
        return x.index_select(0, self.back).unflatten(0, (self.directions, -1))

    def merge(self, x: Tensor) -> Tensor:
        """(visits, …) -> (pixels, …): what comes from the left and, a row further down, what comes from the right."""
        left, *right = self.unskew(x)
        for each in right:
            left[self.width :] += each[: -self.width]
        return left

    def spread(self, x: Tensor) -> Tensor:
        """(pixels, …) -> (visits, …), the transpose of `merge`: what each visit's result is added to, or zero."""
        return torch.cat([x, x.new_zeros(self.width, *x.shape[1:])]).index_select(0, self.lands)

    def steps(self, *visits: Tensor) -> list[tuple[Tensor, ...]]:
        """Tensors of all visits, (visits, batch, …), as views of each step, (directions, lanes · batch, …)."""
        sizes = [self.directions * (end - start) for start, end in self.spans]
        parts = ([part.view(self.directions, -1, x.shape[2]) for part in x.split(sizes)] for x in visits)
        return list(zip(*parts, strict=True))

    def links(self, t: int, batch: int) -> list[tuple[slice, slice]]:
        """For each tap the rows of step t − 1 whose state is told, and the rows of step t that are told it."""
        (start, end), (first, last) = self.spans[t], self.spans[t - 1]
        found = []
        for offset in (tap - self.taps // 2 for tap in range(self.taps)):
            a, b = max(start, first - offset), min(end, last - offset)
            source, target = (slice(batch * (a - i), batch * (b - i)) for i in (first - offset, start))
            found.append((source, target))
        return found


class Scan(torch.autograd.Function):
    """The LSTMs along a walk: (pixels, batch, inputs) -> (pixels, batch, h), in full precision.

    A step is one product over all its visits, K_ss and K_is side by side, and so is its derivative; what lies between
    is done in place. Autograd would keep ten tensors a step and take twice the time.

    `weight` is (directions, taps · h + inputs, 4h), `bias` (directions, 1, 4h), the gates in the order o, f, i, g.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, walk: Walk) -> Tensor:
        features, batch = weight.shape[2] // 4, x.shape[1]
        told, visits = walk.taps * features, (len(walk.path), batch)
        seen = x.new_empty(*visits, weight.shape[1])
        seen[..., :told], seen[..., told:] = 0, walk.skew(x)
        gates, squashed = x.new_empty(*visits, 4 * features), x.new_empty(*visits, features)
        before, found = x.new_zeros(*visits, features), x.new_empty(*visits, features)
        steps = walk.steps(seen, gates, before, squashed, found)
        c_last = h_last = x
        for t, (inputs, gate, c_before, c, h) in enumerate(steps):
            if t > 0:
                links = walk.links(t, batch)
                for tap, (source, target) in enumerate(links):
                    inputs[:, target, tap * features : (tap + 1) * features] = h_last[:, source]
                source, target = links[walk.taps // 2]
                c_before[:, target] = c_last[:, source]
            torch.baddbmm(bias, inputs, weight, out=gate)
            gate[..., : 3 * features].sigmoid_()
            o, f, i, g = gate.split(features, -1)
            tanh_(g)
            torch.mul(f, c_before, out=c).addcmul_(i, g)
            c_last, h_last = c.clone(), h
            torch.mul(o, tanh_(c), out=h)
        ctx.save_for_backward(seen, gates, before, squashed, weight)
        ctx.walk = walk
        return walk.merge(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        seen, gates, before, squashed, weight = ctx.saved_tensors
        walk, features, batch = ctx.walk, weight.shape[2] // 4, seen.shape[1]
        d_found, d_seen = walk.spread(d_out), torch.empty_like(seen)
        d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight), 1, 4 * features)
        steps = walk.steps(seen, gates, before, squashed, d_found, d_seen)
        d_c_later = d_inputs_later = d_out
        for t in reversed(range(len(steps))):
            inputs, gate, c_before, c, d_h, d_inputs = steps[t]
            o, f, i, g = gate.split(features, -1)
            links = walk.links(t + 1, batch) if t + 1 < len(steps) else []
            for tap, (source, target) in enumerate(links):
                d_h[:, source] += d_inputs_later[:, target, tap * features : (tap + 1) * features]
            d_c = aten.tanh_backward(d_h * o, c)
            for source, target in links[walk.taps // 2 :][:1]:
                d_c[:, source] += d_c_later[:, target]
            d_sigmoids = torch.cat([d_h * c, d_c * c_before, d_c * g], -1)
            d_sigmoids = aten.sigmoid_backward(d_sigmoids, gate[..., : 3 * features])
            d_gate = torch.cat([d_sigmoids, aten.tanh_backward(d_c * i, g)], -1)
            d_weight.baddbmm_(inputs.transpose(1, 2), d_gate)
            d_bias += d_gate.sum(1, keepdim=True)
            torch.bmm(d_gate, weight.transpose(1, 2), out=d_inputs)
            d_c_later, d_inputs_later = d_c.mul_(f), d_inputs
        return walk.unskew(d_seen[..., walk.taps * features :]).sum(0), d_weight, d_bias, None


def tanh_(x: Tensor) -> Tensor:
    """Tanh in place, as 2σ(2x) − 1: torch's own takes three times as long on a CPU."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


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
        self.states, self.from_input = weight.split([layer.states.shape[1], weight.shape[1] - layer.states.shape[1]], 1)
        self.bias = layer.bias()
        self.inputs = ConvCache(cast(MaskedConv2d, layer.inputs[0]), count, width)
        self.up = ConvCache(layer.up, count, width)
        self.up.begin_row()
        self.label = None if layer.label is None else layer.label(label)
        self.h = weight.new_zeros(len(weight), count, width, self.features)
        self.c = torch.zeros_like(self.h)
        self.beside = [self.states[0, self.features :, group].contiguous() for group in self.inputs.groups]

    def begin_row(self, row: int) -> None:
        """Compute what the row above gives to the whole of the next one."""
        if self.diagonal:
            if row > 0:
                self._from_the_right()
            above = self.h[0] @ self.states[0, : self.features]
        else:
            windows = F.pad(self.h[0], (0, 0, 1, 1)).unfold(1, 3, 1).transpose(2, 3)
            above = windows.flatten(2) @ self.states[0]
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
        gates, c = self.inputs.read(column, channel), self.c[0, :, column, own]
        if self.diagonal:
            c = torch.zeros_like(c)
            if column > 0:
                gates = torch.addmm(gates, self.h[0, :, column - 1], self.beside[channel])
                c = self.c[0, :, column - 1, own]
        h, self.c[0, :, column, own] = cell(gates, c)
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
