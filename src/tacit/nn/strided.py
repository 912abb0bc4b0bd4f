"""Strided convolutions between an image and a vector, after DCGAN, and the perceptrons that serve tables instead.

An image is halved as long as both sides stay at least 4 (64 -> 4 as in the paper, 28 -> 7), and an odd size is met by
one more row or column where a generator doubles. Kernels are 4×4 as in the authors' Torch code, so that stride 2
covers every pixel equally often.

References
----------
Radford, Metz & Chintala (2016), Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks, arXiv:1511.06434.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.errors import SpaceError
from tacit.spaces import Images

Normalisation = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]


def leaky() -> nn.Module:
    """LeakyReLU(0.2)."""
    return nn.LeakyReLU(0.2)


def pyramid(space: Images, channels: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes and numbers of maps of an image's halvings, finest (the image itself) first.

    Maps double with each halving from `channels`, up to eight times as many.

    Raises:
        SpaceError: a side is shorter than 8, so that no halving leaves 4.
    """
    height, width = space.height, space.width
    if min(height, width) < 8:
        raise SpaceError(
            f"images of {height}×{width} pixels are too small for strided convolutions: "
            "resize or pad them to at least 8×8"
        )
    halvings = int(math.log2(min(height, width) / 4))
    sizes = [(height >> k, width >> k) for k in range(halvings + 1)]
    return sizes, [space.channels, *(channels * min(2**k, 8) for k in range(halvings))]


class Generator(nn.Module):
    """Noise (batch, latent) -> images in [−1, 1], (batch, channels, height, width)."""

    def __init__(self, space: Images, latent: int, channels: int, normalise: Normalisation = nn.BatchNorm2d):
        super().__init__()
        sizes, maps = pyramid(space, channels)
        biased = normalise is nn.Identity  # a normalisation would subtract the bias again
        self.coarsest = (maps[-1], *sizes[-1])
        self.project = nn.Linear(latent, math.prod(self.coarsest), bias=biased)
        layers: list[nn.Module] = [normalise(maps[-1]), nn.ReLU()]
        for k in reversed(range(1, len(maps) - 1)):
            layers += [self._double(maps[k + 1], maps[k], sizes[k], biased), normalise(maps[k]), nn.ReLU()]
        self.layers = nn.Sequential(*layers, self._double(maps[1], maps[0], sizes[0], True), nn.Tanh())

    @staticmethod
    def _double(maps_in: int, maps_out: int, size: tuple[int, int], bias: bool) -> nn.Module:
        odd = (size[0] % 2, size[1] % 2)
        return nn.ConvTranspose2d(maps_in, maps_out, 4, stride=2, padding=1, output_padding=odd, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z).unflatten(1, self.coarsest))


class Discriminator(nn.Module):
    """Images in [−1, 1], (batch, channels, height, width) -> logits, (batch,).

    `offset` is whether the output has a bias: a critic of which only differences matter could not learn one.
    """

    def __init__(
        self,
        space: Images,
        channels: int,
        normalise: Normalisation = nn.BatchNorm2d,
        *,
        activation: Activation = leaky,
        offset: bool = True,
    ):
        super().__init__()
        sizes, maps = pyramid(space, channels)
        biased = normalise is nn.Identity
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(maps[k], maps[k + 1], 4, stride=2, padding=1, bias=biased or k == 0),
                normalise(maps[k + 1]) if k else nn.Identity(),
                activation(),
            )
            for k in range(len(maps) - 1)
        )
        self.output = nn.Linear(maps[-1] * math.prod(sizes[-1]), 1, bias=offset)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.output(x.flatten(1)).squeeze(1)

    def features(self, x: Tensor) -> Tensor:
        """All layers' maps, each max-pooled to 4×4 and flattened side by side (Radford et al. 2016, §5.1)."""
        pooled = []
        for layer in self.layers:
            x = layer(x)
            pooled.append(F.adaptive_max_pool2d(x, 4).flatten(1))
        return torch.cat(pooled, 1)


def hidden_layers(inputs: int, hidden: tuple[int, ...], activation: Activation = nn.ReLU) -> nn.Sequential:
    """(batch, inputs) -> (batch, last width), the activation after every layer."""
    layers = [nn.Sequential(nn.Linear(a, b), activation()) for a, b in pairwise((inputs, *hidden))]
    return nn.Sequential(*layers)


class Critic(nn.Module):
    """Rows (batch, features) -> their values (batch,); without `offset` only differences of them matter."""

    def __init__(
        self, features: int, hidden: tuple[int, ...], activation: Activation = nn.ReLU, *, offset: bool = False
    ):
        super().__init__()
        self.features = hidden_layers(features, hidden, activation)
        self.output = nn.Linear((features, *hidden)[-1], 1, bias=offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x)).squeeze(1)


def to_unit(x: Tensor, space: Images) -> Tensor:
    """Levels {0, …, levels − 1} -> [−1, 1], the range of tanh."""
    return x.float() * (2 / (space.levels - 1)) - 1


def to_levels(x: Tensor, space: Images) -> Tensor:
    """[−1, 1] -> the nearest level, uint8."""
    return ((x + 1) * ((space.levels - 1) / 2)).round().clamp(0, space.levels - 1).to(space.torch_dtype)
