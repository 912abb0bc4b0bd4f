"""Temporal convolutional network: residual blocks of dilated causal convolutions, for a recurrence.

p(x) = ∏_t p(x_t | x_<t). Block i of width d = 2^i applies twice a causal convolution with taps d apart, its weights
normalised, a ReLU and spatial dropout (whole feature maps), and adds its input:

    h_{i+1} = relu(h_i + F_i(h_i)),   F_i = dropout ∘ relu ∘ W'_i ∗_d dropout ∘ relu ∘ W_i ∗_d.

The reach grows with 2^layers: an entry depends on 1 + 2 (kernel − 1) (2^layers − 1) before it. Images are read as one
sequence in raster order, every site told its row, column and colour. All blocks have the same width here, so that no
1 × 1 convolution is needed beside them; a class, which the paper does not have, is added to every input.

References
----------
- Bai, Kolter & Koltun (2018), An empirical evaluation of generic convolutional and recurrent networks for sequence
  modeling, arXiv:1803.01271, §3
- Salimans & Kingma (2016), Weight normalization, arXiv:1602.07868
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._symbols import Seen, Symbols
from tacit.nn import noise
from tacit.nn.causal1d import CausalCache, CausalConv1d, receptive_field
from tacit.spaces import Images, Space, Tokens, Waveform


class TCN(Symbols):
    """Temporal convolutional network.

    Args:
        features: feature maps of every block.
        layers: blocks, with dilations 1, 2, 4, ….
        kernel: taps of each convolution.
        dropout: probability of dropping a feature map after each convolution, while learning.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or `dropout` is outside [0, 1).
    """

    spaces = (Tokens, Images, Waveform)
    recipe = Recipe(batch_size=16, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Space,
        *,
        features: int = 64,
        layers: int = 8,
        kernel: int = 3,
        dropout: float = 0.0,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        check_at_least(1, features=features, layers=layers, kernel=kernel)
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        super().__init__(space, features, classes, label_dropout)
        self.label = self.label_embedding(features)
        self.blocks = nn.ModuleList(Block(features, kernel, 2**i, dropout) for i in range(layers))
        self.output = nn.Sequential(CausalConv1d(features, self.head.parameters))

    @property
    def receptive_field(self) -> int:
        """How many entries before it an entry depends on."""
        return receptive_field([conv for convs in self._convs() for conv in convs])

    def _convs(self) -> list[list[CausalConv1d]]:
        """The two convolutions of every block."""
        return [list(cast(Block, block).convs) for block in self.blocks]  # type: ignore[arg-type]

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The last block's features, (batch, features, sites)."""
        h = self.inputs(entries)
        if self.label is not None:
            h = h + self.label(label)[:, :, None]
        for block in self.blocks:
            h = block(h)
        return h

    # -- one entry after another --------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        """Empty caches."""
        output = cast(nn.Conv1d, self.output[-1])
        return State(
            self.seen(),
            None if self.label is None else self.label(label).detach(),
            [[CausalCache(conv, count) for conv in convs] for convs in self._convs()],
            (output.bias.detach(), output.weight.detach()[:, :, 0].T),  # type: ignore[union-attr]
        )

    def step(self, state: State, x: Tensor | None) -> tuple[Tensor, State]:
        """The next site's parameters, (batch, parameters)."""
        h = state.caches[0][0].input
        state.seen.write(x, h)
        if state.label is not None:
            h += state.label
        for i, (first, second) in enumerate(state.caches):
            torch.clamp(first.output(), min=0, out=second.input)
            to = state.caches[i + 1][0].input if i + 1 < len(state.caches) else None
            h = torch.add(h, second.output().relu_(), out=to).relu_()
        bias, matrix = state.output
        return torch.addmm(bias, h, matrix), state


class Block(nn.Module):
    """Two causal convolutions, each with normalised weights, a ReLU and spatial dropout, beside the identity."""

    def __init__(self, features: int, kernel: int, dilation: int, dropout: float):
        super().__init__()
        self.convs = nn.ModuleList(weight_norm(CausalConv1d(features, features, kernel, dilation)) for _ in range(2))
        self.dropout = dropout

    def forward(self, h: Tensor) -> Tensor:
        """(batch, features, sites) -> the same."""
        y = h
        for conv in self.convs:
            y = F.relu(conv(y))
            if self.training and self.dropout > 0:
                y = y * (noise.rand(*y.shape[:2], 1, device=y.device) >= self.dropout) / (1 - self.dropout)
        return F.relu(h + y)


@dataclass
class State:
    """What has been seen, the label's embedding, two caches a block, and the read-out's bias and matrix."""

    seen: Seen
    label: Tensor | None
    caches: list[list[CausalCache]]
    output: tuple[Tensor, Tensor]
