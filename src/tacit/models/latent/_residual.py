"""Residual convolutional encoders and decoders, for maps that are a power of two smaller than an image of any size.

van den Oord, Vinyals & Kavukcuoglu (2017), arXiv:1711.00937, §4.1: strided 4 × 4 convolutions, then residual blocks of
ReLU, 3 × 3, ReLU, 1 × 1; the decoder is their mirror. An odd size n becomes (n + 1) / 2 and n again.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + K₂ relu(K₁ relu(x)), K₁ 3 × 3 to `inside` features and K₂ 1 × 1 back."""

    def __init__(self, features: int, inside: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(features, inside, 3, padding=1), nn.Conv2d(inside, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features, height, width), before and after."""
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class Halve(nn.Conv2d):
    """Half the height and width, rounded up."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, ⌈height / 2⌉, ⌈width / 2⌉)."""
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class Double(nn.ConvTranspose2d):
    """To the height and width that `Halve` came from."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]):
        super().__init__(inputs, outputs, 4, stride=2, padding=1)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, inputs, ⌈height / 2⌉, ⌈width / 2⌉) -> (batch, outputs, height, width)."""
        return super().forward(x)[:, :, : self.size[0], : self.size[1]]


def halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """`size`, its half rounded up, and so on: times + 1 of them."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def residual_encoder(inputs: int, features: int, halvings: int, blocks: int, inside: int) -> nn.Sequential:
    """(batch, inputs, height, width) -> (batch, features, …), halved so often; all but the last half as wide."""
    widths = [inputs, *[max(1, features // 2)] * (halvings - 1), features]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [Halve(before, after), nn.ReLU()]
    layers += [nn.Conv2d(features, features, 3, padding=1), *(Residual(features, inside) for _ in range(blocks))]
    return nn.Sequential(*layers, nn.ReLU())


def residual_decoder(
    inputs: int, features: int, outputs: int, sizes: list[tuple[int, int]], blocks: int, inside: int
) -> nn.Sequential:
    """The way back: (batch, inputs, *sizes[-1]) -> (batch, outputs, *sizes[0]), through all `sizes`."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, features, 3, padding=1)]
    layers += [Residual(features, inside) for _ in range(blocks)]
    widths = [features, *[max(1, features // 2)] * (len(sizes) - 2), outputs]
    for before, after, size in zip(widths[:-1], widths[1:], reversed(sizes[:-1]), strict=True):
        layers += [nn.ReLU(), Double(before, after, size)]
    return nn.Sequential(*layers)
