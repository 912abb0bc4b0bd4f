"""Shifted convolutions, the gated blocks made of them, and the caches that make their sampling quick.

A convolution whose kernel lies wholly above, or above and to the left of, the pixel that it computes is causal without
a mask. Down-shifted ones see rows above and their own row, to both sides; down-right-shifted ones nothing to the right.
Their strided and transposed forms are causal too: pixel (i, j) of half the size sees what comes before (2i, 2j), and
feeds the four pixels from there on.

References
----------
- Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, arXiv:1701.05517, §2.3–2.5
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.nn import noise


class _UnitVariance(nn.Module):
    """Weights that give inputs of variance 1 outputs of variance 1: about where weight normalisation would start."""

    weight: Tensor
    bias: Tensor | None

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        nn.init.zeros_(cast(Tensor, self.bias))


class ShiftedConv2d(_UnitVariance, nn.Conv2d):
    """A convolution over an image that is padded by (left, right, top, bottom); below zero is cut off."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, pad: tuple[int, int, int, int]):
        super().__init__(inputs, outputs, kernel, stride)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, ⌈height / stride⌉, ⌈width / stride⌉)."""
        return super().forward(F.pad(x, self.pad))


class DownShiftedConv2d(ShiftedConv2d):
    """Sees the rows above and its own, centred on its column; if `strict` the rows above alone.

    Args:
        inputs: feature maps that it takes.
        outputs: feature maps that it gives.
        kernel: (rows, columns), an odd number of columns.
        stride: in both directions.
        strict: look one row higher.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 3), *, stride: int = 1, strict: bool = False
    ):
        rows, side = kernel[0], kernel[1] // 2
        super().__init__(
            inputs, outputs, kernel, stride, (side, side, rows, -1) if strict else (side, side, rows - 1, 0)
        )


class DownRightShiftedConv2d(ShiftedConv2d):
    """Sees the rows above and its own, up to its column; if `strict` up to the column before.

    Args:
        inputs: feature maps that it takes.
        outputs: feature maps that it gives.
        kernel: (rows, columns).
        stride: in both directions.
        strict: look one column further left.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (2, 2), *, stride: int = 1, strict: bool = False
    ):
        rows, columns = kernel
        super().__init__(
            inputs, outputs, kernel, stride, (columns, -1, rows - 1, 0) if strict else (columns - 1, 0, rows - 1, 0)
        )


class DownShiftedUpsample2d(_UnitVariance, nn.ConvTranspose2d):
    """Twice the size: a pixel feeds two rows from its own place on, and three columns around it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, (2, 3), 2, padding=(0, 1), output_padding=(0, 1))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """(batch, inputs, ⌈height / 2⌉, ⌈width / 2⌉) -> (batch, outputs, height, width), of which `size` tells."""
        return super().forward(x)[:, :, : size[0], : size[1]]


class DownRightShiftedUpsample2d(_UnitVariance, nn.ConvTranspose2d):
    """Twice the size: a pixel feeds two rows and two columns from its own place on."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 2, 2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """(batch, inputs, ⌈height / 2⌉, ⌈width / 2⌉) -> (batch, outputs, height, width), of which `size` tells."""
        return super().forward(x)[:, :, : size[0], : size[1]]


class GatedResidual(nn.Module):
    """h ← h + a ⊙ σ(b), (a, b) = K₂ φ(K₁ φ(h) + V φ(s)) + u_y: a gated block with skip connections s, a label y.

    φ is the concatenated ELU; half of its outputs may be dropped while training.

    Args:
        conv: gives a layer from (inputs, outputs).
        features: of h.
        skips: features of s; 0 for none.
        dropout: probability of dropping an input of the second layer.
        label: the labels' vectors, (labels, 2 · features), or None.
    """

    def __init__(
        self,
        conv: Callable[[int, int], nn.Module],
        features: int,
        skips: int = 0,
        dropout: float = 0.0,
        label: nn.Embedding | None = None,
    ):
        super().__init__()
        self.first, self.second = conv(2 * features, features), conv(2 * features, 2 * features)
        self.skip = Pointwise(2 * skips, features) if skips else None
        self.dropout, self.label = dropout, label
        with torch.no_grad():
            # A block begins close to the identity.
            self.second.weight.mul_(0.1)  # type: ignore[operator, union-attr]

    def forward(self, h: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """(batch, features, height, width), (batch, skips, height, width), (batch,) -> (batch, features, …)."""
        return self.through(self.first, self.second, h, s, label)

    def through(
        self,
        first: Callable[[Tensor], Tensor],
        second: Callable[[Tensor], Tensor],
        h: Tensor,
        s: Tensor | None,
        label: Tensor | None,
    ) -> Tensor:
        """As `forward`, with other means to compute the two layers, as caches are."""
        inside = first(concat_elu(h))
        if self.skip is not None:
            inside = inside + self.skip(concat_elu(cast(Tensor, s)))
        inside = concat_elu(inside)
        if self.training and self.dropout > 0:
            inside = inside * (noise.rand_like(inside) >= self.dropout) / (1 - self.dropout)
        out = second(inside)
        if self.label is not None:
            out = out + self.label(label)[:, :, None, None]
        return h + F.glu(out, 1)


class Pointwise(_UnitVariance, nn.Conv2d):
    """A 1 × 1 convolution as a matrix product, which on a CPU takes half the time."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height, width)."""
        weight, bias = self.weight[:, :, 0, 0], cast(Tensor, self.bias)
        if x.shape[2:] == (1, 1):
            return F.linear(x[:, :, 0, 0], weight, bias)[:, :, None, None]
        return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


class _ConcatELU(torch.autograd.Function):
    """One exponential serves both signs: elu(±x) = max(±x, e^(−|x|) − 1). As two ELUs it takes half as long again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        below = x.abs().neg_().exp_().sub_(1)
        both = torch.cat([torch.maximum(x, below), torch.maximum(-x, below)], 1)
        ctx.save_for_backward(both)
        return both

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (both,) = ctx.saved_tensors
        plus, minus = (gradient * (both.clamp(max=0) + 1)).chunk(2, 1)
        return plus - minus


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of −x, (batch, features, …) -> (batch, 2 · features, …); Shang et al. 2016, arXiv:1603.05201."""
    return _ConcatELU.apply(x)


def with_ones(x: Tensor) -> Tensor:
    """A channel of ones joins the image, (batch, channels, height, width), by which padding can be told from it."""
    return F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)


# -- sampling ---------------------------------------------------------------------------------------------------------


class RowCache:
    """A down-shifted convolution row by row. A strict one is read before its row is written.

    Args:
        conv: the convolution.
        count: images drawn together.
        width: of its input.
    """

    def __init__(self, conv: ShiftedConv2d, count: int, width: int):
        self.conv, (self.left, self.right, _, _) = conv, conv.pad
        self.rows = conv.weight.new_zeros(count, conv.in_channels, conv.kernel_size[0], self.left + width + self.right)

    def write(self, row: Tensor) -> None:
        """Take the inputs of the next row, (batch, inputs, 1, width)."""
        self.rows = torch.cat([self.rows[:, :, 1:], F.pad(row, (self.left, self.right))], 2)

    def read(self) -> Tensor:
        """The outputs of the row, (batch, outputs, 1, ⌈width / stride⌉)."""
        return F.conv2d(self.rows, self.conv.weight, self.conv.bias, self.conv.stride)

    def __call__(self, row: Tensor) -> Tensor:
        """`write`, then `read`."""
        self.write(row)
        return self.read()


class PixelCache:
    """A down-right-shifted convolution pixel by pixel, the rows above kept. A strict one is read before it is written.

    Args:
        conv: the convolution.
        count: images drawn together.
        width: of its input.
    """

    def __init__(self, conv: ShiftedConv2d, count: int, width: int):
        self.left, self.columns = conv.pad[0], conv.kernel_size[1]
        self.weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.bias = conv.bias
        self.lines = conv.weight.new_zeros(count, conv.kernel_size[0], self.left + width, conv.in_channels)
        self.column = 0

    def begin_row(self) -> None:
        """Put the row just drawn among those above."""
        # What is left of it in its old place is written over before it is read.
        self.lines[:, :-1] = self.lines[:, 1:].clone()

    def write(self, x: Tensor, column: int) -> None:
        """Take the inputs of a pixel, (batch, inputs, 1, 1)."""
        self.lines[:, -1, self.left + column] = x[:, :, 0, 0]

    def read(self, column: int) -> Tensor:
        """The outputs of a pixel, (batch, outputs, 1, 1); of a strided layer those that it completes."""
        window = self.lines[:, :, column : column + self.columns].flatten(1)
        return torch.addmm(self.bias, window, self.weight)[:, :, None, None]  # type: ignore[arg-type]

    def __call__(self, x: Tensor, column: int) -> Tensor:
        """`write`, then `read`."""
        self.write(x, column)
        return self.read(column)

    def row(self) -> Tensor:
        """The inputs of the row drawn last, (batch, inputs, 1, width)."""
        return self.lines[:, -1:, self.left :].permute(0, 3, 1, 2)
