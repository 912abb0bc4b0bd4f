"""Layers through a mask, the masks that make a network autoregressive, and the caches that make its sampling quick.

Germain, Gregor, Murray & Larochelle (2015), MADE, arXiv:1502.03509: every unit carries a degree, and no path leads
from an input to the output of the same or a lower degree. In pictures a feature's degree is its colour channel.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
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


def channel_groups(features: int, channels: int) -> Tensor:
    """The colour channel that each feature map belongs to, (features,): as many for each as can be, in order."""
    return torch.arange(features) * channels // features


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees the rows above, the pixels to the left, and of the pixel itself some channels.

    van den Oord, Kalchbrenner & Kavukcuoglu (2016), arXiv:1601.06759, §3.4: mask A (`strict`) shows an output of
    channel c the channels before c, mask B also c itself.

    Args:
        source: the channel of each input feature, (in_features,), sorted.
        target: the channel of each output feature, (out_features,).
        above: rows above that it sees.
        left: columns to the left that it sees, in its own row too.
        right: columns to the right that it sees, in the rows above.
        strict: mask A instead of B.
    """

    mask: Tensor

    def __init__(
        self, source: Tensor, target: Tensor, *, above: int = 0, left: int = 0, right: int = 0, strict: bool = False
    ):
        super().__init__(len(source), len(target), (above + 1, left + 1 + right))
        self.above, self.left, self.right, self.strict = above, left, right, strict
        mask = torch.ones(self.weight.shape[2:]).expand_as(self.weight).clone()
        mask[:, :, -1, left + 1 :] = 0
        mask[:, :, -1, left] = degree_mask(source, target, strict=strict)
        self.register_buffer("mask", mask, persistent=False)
        self.source, self.target = source, target
        # He's variance, of the weights that the mask lets through; halved sums would make deep stacks slow to learn.
        nn.init.normal_(self.weight).data.mul_((2 / mask.flatten(1).sum(1).clamp(min=1)).sqrt().view(-1, 1, 1, 1))
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_features, height, width) -> (batch, out_features, height, width)."""
        if self.kernel_size != (1, 1):
            x = F.pad(x, (self.left, self.right, self.above, 0))
        return F.conv2d(x, self.weight * self.mask, self.bias)


class ConvCache:
    """A masked convolution pixel by pixel: what rows above give is computed once a row, the rest is one product.

    Args:
        conv: the convolution.
        count: images drawn together.
        width: of an image.
        scale: what its outputs are multiplied by, (out_features,).
    """

    def __init__(self, conv: MaskedConv2d, count: int, width: int, scale: Tensor | None = None):
        weight = (conv.weight * conv.mask).detach()
        self.conv, self.bias, self.scale = conv, cast(Tensor, conv.bias).detach(), scale
        self.weight_above = weight[:, :, :-1]
        self.groups = [(conv.target == c).nonzero().flatten() for c in conv.target.unique()]
        here = weight[:, :, -1, : conv.left + 1]
        if scale is not None:
            here = here * scale[:, None, None]
        self.here = [here[group].permute(2, 1, 0).flatten(0, 1).contiguous() for group in self.groups]
        ends = torch.bincount(conv.source).cumsum(0).tolist()
        self.slices = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]
        self.rows = weight.new_zeros(count, conv.in_channels, conv.above, conv.left + width + conv.right)
        self.line = weight.new_zeros(count, conv.left + width, conv.in_channels)  # this row, padded at the left
        # Of every column where its inputs of each channel belong, and what its outputs see of the row.
        self.slots = [[self.line[:, column + conv.left, part] for column in range(width)] for part in self.slices]
        self.windows = [self.line[:, column : column + conv.left + 1].flatten(1) for column in range(width)]
        self.first = True
        self.alone = len(self.slices) == 1 and conv.left == conv.above == 0  # a pixel needs no other's inputs
        self.base: list[tuple[Tensor, ...]] = []

    def begin_row(self, extra: Tensor | None = None) -> None:
        """Put the row just drawn among those above, and compute what they give to the next one.

        Args:
            extra: what else is added to the outputs of the next row, (batch, out_features, 1, width) or broadcastable.
        """
        conv = self.conv
        if conv.above and not self.first:
            row = F.pad(self.line.transpose(1, 2), (0, conv.right))
            self.rows = torch.cat([self.rows[:, :, 1:], row[:, :, None]], 2)
        self.first = False
        width = self.line.shape[1] - conv.left
        if conv.above:
            base = F.conv2d(self.rows, self.weight_above, self.bias)
        else:
            base = self.bias.view(1, -1, 1, 1).expand(len(self.line), -1, 1, width)
        if extra is not None:
            base = base + extra
        base = base[:, :, 0].permute(2, 0, 1)
        if self.scale is not None:
            base = base * self.scale
        parts = [base.contiguous()] if len(self.groups) == 1 else [base[:, :, group] for group in self.groups]
        self.base = [part.unbind(0) for part in parts]

    def write(self, x: Tensor, column: int, channel: int) -> None:
        """Take the inputs (batch, features of the channel) of a pixel."""
        self.slots[channel][column].copy_(x)

    def read(self, column: int, channel: int, out: Tensor | None = None) -> Tensor:
        """The outputs of a pixel that belong to a channel, (batch, features of the channel)."""
        return torch.addmm(self.base[channel][column], self.windows[column], self.here[channel], out=out)

    def row(self) -> Tensor:
        """The inputs of the row drawn last, (batch, in_features, 1, width)."""
        return self.line[:, self.conv.left :].transpose(1, 2)[:, :, None]

    def __call__(self, x: Tensor, column: int, channel: int) -> Tensor:
        """`write`, then `read`."""
        if self.alone:
            return torch.addmm(self.base[0][column], x, self.here[0])
        self.write(x, column, channel)
        return self.read(column, channel)
