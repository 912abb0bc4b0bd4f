"""Flow++: couplings by mixtures of logistics, networks that attend, and dequantisation that is learnt.

Three changes to coupling flows. An entry that is mapped goes through the distribution function of a mixture of K
logistics, its logit, a scale and a shift, z = logit(Σ_k π_k σ((x − μ_k) / s_k)) · exp(a) + b, instead of scale and
shift alone. What gives their parameters are gated convolutions and self-attention over all pixels. And the noise that
makes integers real is not uniform but drawn from a flow conditioned on the image,

    log P(x) ≥ E_{u ~ q(u|x)} [log p((x + u) / levels) − log q(u | x)] − D log levels,

which is tight where uniform noise pays for making p flat on cubes. Couplings by chessboard, a squeeze, couplings by
channels, couplings by chessboard again (§4 of the paper); nothing is factored out.

References
----------
- Ho, Chen, Srinivas, Duan & Abbeel (2019), Flow++: Improving flow-based generative models with variational
  dequantization and architecture design, arXiv:1902.00275
"""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.errors import SpaceError, TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow
from tacit.nn.bijections import (
    ActNorm,
    Bijection,
    Chain,
    CheckerboardSplit,
    Coupling,
    Flatten,
    Inverse,
    InvertibleConv1x1,
    Logit,
    Squeeze,
    VariationalDequantise,
)
from tacit.nn.conditioners import quiet
from tacit.nn.elementwise import MixtureCDF
from tacit.spaces import Images


class FlowPlusPlus(Flow):
    """Flow++.

    Args:
        space: images of even height and width.
        dequantisation: of the integers, "variational" or "uniform".
        width: channels of the networks; the paper's 96.
        blocks: pairs of gated convolution and attention in the network of a coupling; the paper's 10.
        components: of each mixture; the paper's 32.
        couplings: by chessboard, by channels, by chessboard again.
        noise_couplings: of the flow that draws the noise; the paper's 4.
        dropout: share of the networks' hidden channels to drop while learning.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1, or `dequantisation` is neither.
        SpaceError: the images' height or width is odd.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=32, learning_rate=1e-3, schedule="cosine", warmup=500, clip=5.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Images,
        *,
        dequantisation: Literal["variational", "uniform"] = "variational",
        width: int = 32,
        blocks: int = 2,
        components: int = 4,
        couplings: tuple[int, int, int] = (4, 2, 3),
        noise_couplings: int = 2,
        dropout: float = 0.0,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, width=width, blocks=blocks, components=components, noise_couplings=noise_couplings)
        if space.height % 2 or space.width % 2:
            raise SpaceError(
                f"flow++ squeezes squares of 2 × 2 pixels, and images of {space.height} × {space.width} have an odd "
                f"side: crop them by one, or take realnvp"
            )
        c, h, w = space.shape
        entry = MixtureCDF(components)
        net = partial(GatedAttention, width=width, blocks=blocks, dropout=dropout, context=self.context)

        def stack(count: int, shape: tuple[int, int, int]) -> list[Bijection]:
            """Couplings of the first and the second half of the channels by turns."""
            channels, layers = shape[0], list[Bijection]()
            for i in range(count):
                half = channels // 2
                coupling = Coupling(
                    net(half, entry.parameters * half, shape[1:]), entry, (half, half), keep_first=i % 2 == 0
                )
                layers += [ActNorm(channels), InvertibleConv1x1(channels), coupling]
            return layers

        board, squeezed = (2 * c, h, w // 2), (4 * c, h // 2, w // 2)
        first, middle, last = couplings
        self.flow = Chain(
            CheckerboardSplit(),
            *stack(first, board),
            Inverse(CheckerboardSplit()),
            Squeeze(),
            *stack(middle, squeezed),
            Inverse(Squeeze()),
            CheckerboardSplit(),
            *stack(last, board),
            Flatten(*board),
        )
        if dequantisation == "variational":
            seen = GatedAttention(2 * c, width, board[1:], width=width, blocks=blocks, dropout=dropout)
            noisy = partial(GatedAttention, width=width, blocks=1, dropout=dropout, context=width)
            layers = [
                layer
                for i in range(noise_couplings)
                for layer in (
                    InvertibleConv1x1(2 * c),
                    Coupling(noisy(c, entry.parameters * c, board[1:]), entry, (c, c), keep_first=i % 2 == 0),
                )
            ]
            # From noise on the board to the unit interval at every pixel.
            noise_flow = Chain(*layers, Inverse(Logit(0.0)), Inverse(CheckerboardSplit()))
            dequantise = VariationalDequantise(
                cast(int, space.levels), noise_flow, nn.Sequential(CheckerboardSplit(), seen), board
            )
            self.reals = Chain(dequantise, Logit(0.05))
        elif dequantisation != "uniform":
            raise TacitError(f"dequantisation is {dequantisation!r}: give variational or uniform")


class GatedAttention(nn.Module):
    """Gated convolutions and self-attention by turns, each after concatenated ELUs and before a layer norm.

    Args:
        inputs: channels that it takes.
        outputs: channels that it gives.
        size: height and width, for the places' embeddings.
        width: channels between.
        blocks: pairs of both.
        dropout: share of the hidden channels to drop while learning.
        context: features of the context; 0 for none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        *,
        width: int,
        blocks: int,
        dropout: float = 0.0,
        context: int = 0,
    ):
        super().__init__()
        self.input = nn.Conv2d(inputs, width, 3, padding=1)
        self.context = nn.Conv2d(context, width, 1) if context else None
        self.place = nn.Parameter(0.01 * torch.randn(width, *size))
        self.blocks = nn.ModuleList(_Pair(width, dropout) for _ in range(blocks))
        self.output = quiet(nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, inputs, height, width), (batch, context[, height, width]) -> (batch, outputs, height, width)."""
        h = self.input(x)
        if self.context is not None:
            context = cast(Tensor, context)
            h = h + self.context(context if context.dim() == 4 else context[:, :, None, None])
        for block in self.blocks:
            h = block(h, self.place)
        return self.output(h)


class _Pair(nn.Module):
    """h ← norm(h + gated convolution(h)), h ← norm(h + attention(h))."""

    # The paper's four heads share 96 channels.
    HEAD = 24

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.heads = next(heads for heads in range(max(1, width // self.HEAD), 0, -1) if width % heads == 0)
        self.dropout = nn.Dropout(dropout)
        self.convolution = nn.Conv2d(2 * width, width, 3, padding=1)
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.looks, self.gathers = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, 2 * width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, h: Tensor, place: Tensor) -> Tensor:
        inner = self.dropout(both_signs(self.convolution(both_signs(h))))
        h = _normalised(self.norms[0], h + F.glu(self.gate(inner), 1))
        q, k, v = self.looks(h + place).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(3, 4).unbind(1)
        seen = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        seen = self.dropout(seen.transpose(2, 3).reshape(h.shape))
        return _normalised(self.norms[1], h + F.glu(self.gathers(seen), 1))


def both_signs(h: Tensor) -> Tensor:
    """Concatenated ELU: of h and of −h."""
    return F.elu(torch.cat((h, -h), 1))


def _normalised(norm: nn.Module, h: Tensor) -> Tensor:
    """Layer norm over the channels of each pixel."""
    return norm(h.movedim(1, -1)).movedim(-1, 1)
