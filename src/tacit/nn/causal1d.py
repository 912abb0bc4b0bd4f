"""Causal dilated convolutions of sequences, and the caches by which one more position costs one product a layer.

References
----------
- van den Oord et al. (2016), WaveNet: A generative model for raw audio, arXiv:1609.03499, §2.1
- Paine et al. (2016), Fast WaveNet generation algorithm, arXiv:1611.09482 (the queues)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConv1d(nn.Conv1d):
    """y_t = b + Σ_j W_j x_{t − (kernel − 1 − j) · dilation}: a convolution that sees its position and those before it.

    It is computed as one matrix product over the taps side by side, which learns faster than a convolution with holes.

    Args:
        source: input features.
        target: output features.
        kernel: taps.
        dilation: positions from one tap to the next.
        bias: whether there is a b.
    """

    def __init__(self, source: int, target: int, kernel: int = 1, dilation: int = 1, bias: bool = True):
        super().__init__(source, target, kernel, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, source, positions) -> (batch, target, positions)."""
        dilation, positions = self.dilation[0], x.shape[2]
        # Taps that lie before the first position everywhere would multiply nothing but padding.
        taps = min(self.kernel_size[0], (positions - 1) // dilation + 1)
        if taps > 1:
            padded = F.pad(x, (dilation * (taps - 1), 0))
            x = torch.cat([padded[:, :, j * dilation : j * dilation + positions] for j in range(taps)], 1)
        weight = self.weight[:, :, -taps:].transpose(1, 2).flatten(1).expand(len(x), -1, -1)
        return torch.bmm(weight, x) if self.bias is None else torch.baddbmm(self.bias[:, None], weight, x)


def receptive_field(convolutions: Sequence[CausalConv1d]) -> int:
    """How many positions, its own included, an output of these layers on top of one another depends on."""
    return 1 + sum(conv.dilation[0] * (conv.kernel_size[0] - 1) for conv in convolutions)


class CausalCache:
    """A causal convolution position after position, from a ring of the inputs that it will see again.

    Positions that are seen together are a multiple of the dilation d apart: position t has its place in row t mod d of
    the ring, which holds the last k of its kind side by side. So the taps of a position are one stretch of memory, and
    its output is one product; instead of moving what is there, the newest takes the oldest's place and the weights'
    turn to match.

    Args:
        conv: the convolution.
        count: sequences drawn together.
        extra: what is added to all outputs, (count, target).
        scale: what they are multiplied by after that, (target,).
    """

    def __init__(self, conv: CausalConv1d, count: int, extra: Tensor | None = None, scale: Tensor | None = None):
        weight, bias = conv.weight.detach(), conv.bias.detach()  # type: ignore[union-attr]
        base = bias.expand(count, -1) if extra is None else bias + extra.detach()
        if scale is not None:
            weight, base = weight * scale[:, None, None], base * scale
        kernel, dilation = conv.kernel_size[0], conv.dilation[0]
        ring = weight.new_zeros(dilation, count, kernel, conv.in_channels)
        # Position t is the newest in place (t // d) mod k; the place after it is the oldest's, with the first tap.
        turns = [weight.roll(turn + 1, 2) for turn in range(kernel)]
        self.weights = [turned.permute(2, 1, 0).flatten(0, 1).contiguous() for turned in turns]
        self.base = base.contiguous()
        self.result = torch.empty_like(self.base)
        self.windows = ring.flatten(2).unbind(0)
        self.places = [place.unbind(0) for place in ring.unbind(2)]
        self.row = self.turn = 0

    @property
    def input(self) -> Tensor:
        """Where the next position's input is to be written, (count, source)."""
        return self.places[self.turn][self.row]

    def output(self) -> Tensor:
        """The outputs at the position just written, (count, target), which the next position's will overwrite."""
        torch.addmm(self.base, self.windows[self.row], self.weights[self.turn], out=self.result)
        self.row += 1
        if self.row == len(self.windows):
            self.row, self.turn = 0, (self.turn + 1) % len(self.weights)
        return self.result
