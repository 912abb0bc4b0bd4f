"""Networks that say what a coupling does with one half of its input, from the other half and a context.

Their last layers are begun small, so that a flow begins near the identity, yet not so small that no gradient passes to
the layers before.
"""

from __future__ import annotations

import itertools
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


class Perceptron(nn.Module):
    """A multi-layer perceptron; the context joins the input.

    Args:
        inputs: features that it takes.
        outputs: features that it gives.
        hidden: units of each hidden layer.
        dropout: share of the hidden units to drop while learning.
        context: features of the context; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, hidden: tuple[int, ...], dropout: float = 0.0, context: int = 0):
        super().__init__()
        sizes = (inputs + context, *hidden)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers = nn.Sequential(*layers, quiet(nn.Linear(sizes[-1], outputs)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, inputs), (batch, context) -> (batch, outputs)."""
        return self.layers(x if context is None else torch.cat((x, context), 1))


class ResidualConvolutions(nn.Module):
    """Pre-activated residual blocks of convolutions, without normalisation; the context biases the first layer.

    Args:
        inputs: channels that it takes.
        outputs: channels that it gives.
        width: channels of the blocks.
        blocks: x + conv₁(relu(conv₃(relu(x)))).
        dropout: share of the hidden units to drop while learning.
        context: features of the context; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, dropout: float = 0.0, context: int = 0):
        super().__init__()
        self.input = nn.Conv2d(inputs, width, 3, padding=1)
        self.context = nn.Linear(context, width) if context else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(blocks)
        )
        self.output = quiet(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, inputs, height, width), (batch, context) -> (batch, outputs, height, width)."""
        h = self.input(x)
        if self.context is not None:
            h = h + self.context(cast(Tensor, context))[:, :, None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.output(F.relu(h))


def quiet(layer: _Layer) -> _Layer:
    """Begin with an output near zero, yet not zero: gradients reach the layers before from the first step on."""
    with torch.no_grad():
        layer.weight.mul_(0.01)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
