"""Networks that take noisy data and a time: the U-Net of diffusion models, and a perceptron of the same kind.

Shapes: (batch, channels, height, width) for images of any size, (batch, features) for vectors, (batch,) for times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.nn.conditioners import quiet


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Times (batch,) as sines and cosines of `width` / 2 frequencies from 1 to 1/10000 (Vaswani et al. 2017, §3.5)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t.float().unsqueeze(1) * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1)


class TimeEmbedding(nn.Module):
    """Times (batch,) to (batch, outputs) of `dtype`, by way of sinusoids; what a context says is added."""

    def __init__(self, width: int, outputs: int, context: int = 0):
        super().__init__()
        self.width = width
        self.context = nn.Linear(context, outputs) if context else None
        self.layers = nn.Sequential(nn.Linear(width, outputs), nn.SiLU(), nn.Linear(outputs, outputs), nn.SiLU())

    def forward(self, t: Tensor, dtype: torch.dtype, context: Tensor | None = None) -> Tensor:
        time = self.layers(sinusoids(t, self.width).to(dtype))
        return time if self.context is None else time + self.context(context)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions behind group norms, the time added between them (Ho et al. 2020, appendix B)."""

    def __init__(self, inputs: int, outputs: int, time: int, dropout: float):
        super().__init__()
        self.before = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Linear(time, outputs)
        self.after = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Dropout(dropout), quiet(nn.Conv2d(outputs, outputs, 3, padding=1))
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.before(x) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.after(h)


class SelfAttention(nn.Module):
    """Each position looks at every other one: one head, residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.looks = nn.Conv2d(width, 3 * width, 1)
        self.out = quiet(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.looks(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        h = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Down to a low resolution and up again, each level handing its results across; attention at the lowest.

    A level halves the size, rounding up, and the way back interpolates to exactly the size that was: any size goes.

    Args:
        channels: of what it takes.
        width: channels at full resolution.
        multipliers: of the width, one a level.
        blocks: residual blocks of a level, on the way down and on the way up.
        dropout: share of hidden channels dropped while learning.
        context: features of the context; 0 for none.
        outputs: channels of what it gives; as many as it takes by default.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        dropout: float,
        context: int = 0,
        outputs: int | None = None,
    ):
        super().__init__()
        self.blocks = blocks
        time = 4 * width
        widths = [width * m for m in multipliers]
        low = widths[-1]
        self.time = TimeEmbedding(width, time, context)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.shrink, self.grow, self.up = (nn.ModuleList() for _ in range(4))
        here = width
        for level, w in enumerate(widths):
            ins = [here, *[w] * (blocks - 1)]
            self.down.extend(ResidualBlock(i, w, time, dropout) for i in ins)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(w, w, 3, stride=2, padding=1))
            here = w
        self.middle = nn.ModuleList(ResidualBlock(low, low, time, dropout) for _ in range(2))
        self.attention = SelfAttention(low)
        for w in reversed(widths):
            # Narrowed before it is interpolated: at the higher resolution the same would cost four times as much.
            self.grow.append(nn.Conv2d(here, w, 1))
            self.up.extend(ResidualBlock(2 * w, w, time, dropout) for _ in range(blocks))
            here = w
        self.head = nn.Sequential(_norm(here), nn.SiLU(), quiet(nn.Conv2d(here, outputs or channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        time = self.time(t, x.dtype, context)
        h, across = self._descend(x, time)
        for i, block in enumerate(self.up):
            if i % self.blocks == 0:
                h = F.interpolate(self.grow[i // self.blocks](h), size=across[-1].shape[2:])
            h = block(torch.cat((h, across.pop()), 1), time)
        return self.head(h)

    def features(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The middle's activations, averaged over the positions: (batch, width · last multiplier)."""
        return self._descend(x, self.time(t, x.dtype, context))[0].mean((2, 3))

    def _descend(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        # Channels last: convolutions of few channels on a CPU are twice as fast.
        h, across = self.stem(x).contiguous(memory_format=torch.channels_last), []
        for i, block in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.shrink[i // self.blocks - 1](h)
            h = block(h, time)
            across.append(h)
        h = self.attention(self.middle[0](h, time))
        return self.middle[1](h, time), across


class TimedPerceptron(nn.Module):
    """Residual layers for vectors, each told the time.

    Args:
        features: of what it takes.
        width: hidden units.
        blocks: residual layers.
        dropout: share of hidden units dropped while learning.
        context: features of the context; 0 for none.
        outputs: features of what it gives; as many as it takes by default.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int,
        blocks: int,
        dropout: float,
        context: int = 0,
        outputs: int | None = None,
    ):
        super().__init__()
        self.time = TimeEmbedding(width, width, context)
        self.stem = nn.Linear(features, width)
        self.times = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.head = nn.Sequential(nn.SiLU(), quiet(nn.Linear(width, outputs or features)))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.head(self.features(x, t, context))

    def features(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The last hidden layer, (batch, width)."""
        time, h = self.time(t, x.dtype, context), self.stem(x)
        for told, layer in zip(self.times, self.layers, strict=True):
            h = h + layer(h + told(time))
        return h


def _norm(width: int) -> nn.GroupNorm:
    """Group norm with eight groups, or as many as divide the width."""
    return nn.GroupNorm(math.gcd(8, width), width)
