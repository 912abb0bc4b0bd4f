"""Convolutional encoders that are strong for the minutes they take on a processor without an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the side shrinks by `stride`, rounded up."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Basic block of a ResNet (He et al. 2016, arXiv:1512.03385, §4.2), with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def stages_for(height: int, width: int) -> int:
    """How many halvings bring the longer side to at most 4; never fewer than two."""
    return max(2, (max(height, width) - 1).bit_length() - 2)


class ConvEncoder(nn.Module):
    """Stages that halve the side and double the width: a 5×5 convolution, then pairs of 3×3 ones or residual blocks.

    The first stage has `width` channels at half the side, and each stage after it doubles the one and halves the other
    (sides are rounded up), so that any size of image is taken and a stage costs about as much as the one before.

    Args:
        channels: planes of the input.
        width: channels of the first stage.
        stages: how many; the map of stage i has sides of 1 / 2ⁱ⁺¹ and width · 2ⁱ channels.
        residual: blocks of a ResNet instead of plain convolutions.
    """

    def __init__(self, channels: int, *, width: int = 32, stages: int = 3, residual: bool = False):
        super().__init__()
        self.widths = [width * 2**i for i in range(stages)]
        blocks: list[nn.Module] = [convolution(channels, width, 5, 2)]
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            blocks.append(
                Residual(inputs, outputs, 2)
                if residual
                else nn.Sequential(convolution(inputs, outputs, 3, 2), convolution(outputs, outputs))
            )
        # Channels last is a third faster on a processor and at least as fast on a GPU.
        self.stages = nn.ModuleList(blocks).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, stages: int | None = None) -> Tensor:
        """(batch, channels, height, width) in [0, 1] -> the map of the last stage, or after `stages` of them."""
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages[:stages]:
            x = stage(x)
        return x
