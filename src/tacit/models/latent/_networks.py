"""Encoders and decoders of the latent-variable models: fully connected, with or without convolutions outside."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import nn

from tacit.errors import TacitError
from tacit.spaces import Images, Space

Network = Literal["mlp", "conv"]


def dense(*sizes: int) -> list[nn.Module]:
    """Linear layers of these sizes, each followed by SiLU."""
    return [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]


def ends(
    space: Space, network: Network, channels: tuple[int, ...], outputs: int = 1
) -> tuple[list[nn.Module], list[nn.Module], int, int]:
    """What lies between the data and the fully connected layers, on both sides.

    Args:
        space: images or vectors.
        network: "mlp" for nothing, "conv" for convolutions.
        channels: of the convolutions, each of which halves height and width.
        outputs: numbers of an entry that the decoder gives, as `Likelihood` takes them.

    Returns:
        The encoder's first modules, the decoder's last, the units that the former give, and those that the latter take.

    Raises:
        TacitError: the network does not take the space.
    """
    if network == "mlp":
        return [nn.Flatten()], [], space.dimensions, outputs * space.dimensions
    if network == "conv" and isinstance(space, Images):
        return _convolutions(space, channels, outputs)
    raise TacitError(f"network is {network!r}, which does not take {space.kind}: give 'mlp'")


def _convolutions(
    space: Images, channels: tuple[int, ...], outputs: int
) -> tuple[list[nn.Module], list[nn.Module], int, int]:
    """Halving convolutions, and the doubling ones that undo their shapes exactly."""
    outside: list[nn.Module] = []
    inside: list[nn.Module] = []
    before, height, width = space.shape
    gives = outputs * before
    for after in channels:
        outside += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        # ⌈n / 2⌉ becomes n again: an even n needs one more row or column.
        even = (1 - height % 2, 1 - width % 2)
        inside = [
            nn.SiLU(),
            nn.ConvTranspose2d(after, gives, 3, stride=2, padding=1, output_padding=even),
            *inside,
        ]
        before, gives, height, width = after, after, (height + 1) // 2, (width + 1) // 2
    units = before * height * width
    return [*outside, nn.Flatten()], [nn.Unflatten(1, (before, height, width)), *inside], units, units
