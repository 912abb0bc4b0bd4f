"""An autoregressive prior over a map of codes: gated PixelCNN layers, with what a coarser map and a label say.

p(c | y, c′) = ∏_i p(c_i | c_<i, y, c′) over the places of the map, row after row. Its codes enter as learnt vectors;
c′, the coarser map if there is one, passes residual blocks and joins every layer as a spatial context. Attention, where
asked for, lets the last features look at those of all places before.

References
----------
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2.3 (the layers)
- van den Oord, Vinyals & Kavukcuoglu (2017), arXiv:1711.00937, §3.3 (the prior); Razavi, van den Oord & Vinyals (2019),
  arXiv:1906.00446, §3.2 (attention at the top, the bottom given the top)
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Choose
from tacit.distributions import Categorical
from tacit.errors import TacitError, check_at_least
from tacit.models.latent._residual import Residual
from tacit.nn.gated import GatedLayer, LayerState, draw_through
from tacit.nn.shifted import Pointwise


class CodePrior(nn.Module):
    """p(codes | label, coarser codes).

    Args:
        codes: values that a place can take.
        size: height and width of the map.
        features: feature maps of each of the two stacks.
        layers: gated layers; the first sees two places to each side, every other one more.
        heads: of the attention after them; 0 for none.
        classes: of the labels; None takes no labels.
        coarser: values of the coarser map's places; None for no such map.

    Raises:
        TacitError: a number is below 1, or `heads` does not divide `features`.
    """

    def __init__(
        self,
        codes: int,
        size: tuple[int, int],
        *,
        features: int,
        layers: int,
        heads: int = 0,
        classes: int | None = None,
        coarser: int | None = None,
    ):
        super().__init__()
        check_at_least(1, prior_features=features, prior_layers=layers)
        self.size = size
        self.symbol = nn.Embedding(codes, features)
        one = torch.zeros(features, dtype=torch.int64)  # all features are of one channel
        self.layers = nn.ModuleList(
            GatedLayer(
                one,
                one,
                2 if i == 0 else 1,
                i == 0,
                None if classes is None else nn.Embedding(classes + 1, 4 * features),
                None if coarser is None else features,
                size if i == 0 else None,
            )
            for i in range(layers)
        )
        self.attention = CausalAttention(features, heads) if heads else None
        self.output = nn.Sequential(
            nn.ReLU(), Pointwise(features, 2 * features), nn.ReLU(), Pointwise(2 * features, codes)
        )
        nn.init.zeros_(cast(Pointwise, self.output[-1]).weight)
        self.coarser = None
        if coarser is not None:
            blocks = [Residual(features, features) for _ in range(2)]
            self.coarser = nn.Sequential(*blocks, nn.Upsample(size))
            self.coarser_symbol = nn.Embedding(coarser, features)

    def _context(self, coarser: Tensor | None) -> Tensor | None:
        """What a coarser map, (batch, *its size), says at every place: (batch, features, *size)."""
        if self.coarser is None:
            return None
        return self.coarser(self.coarser_symbol(coarser).movedim(-1, 1))

    def logits(self, codes: Tensor, label: Tensor | None = None, coarser: Tensor | None = None) -> Tensor:
        """Of every place given those before it: (batch, *size) int64 -> (batch, codes, *size)."""
        h = self.symbol(codes).movedim(-1, 1)
        v = F.pad(h, (0, 0, 1, -1))  # a row down: v sees the rows above
        context = self._context(coarser)
        for layer in self.layers:
            v, h = layer(v, h, label, context)
        if self.attention is not None:
            h = self.attention(h)
        return self.output(h).float()

    def log_prob(self, codes: Tensor, label: Tensor | None = None, coarser: Tensor | None = None) -> Tensor:
        """Log p(codes | label, coarser), (batch,) nats."""
        return -F.cross_entropy(self.logits(codes, label, coarser), codes, reduction="none").flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self, count: int, label: Tensor | None = None, coarser: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draws, (count, *size) int64, from caches: a place costs what it adds."""
        return self.visit(count, lambda head, logits, _: head.sample(logits, temperature), label, coarser)

    def visit(
        self, count: int, choose: Choose, label: Tensor | None = None, coarser: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """The map that `choose` makes, place after place, (count, *size) int64; `first` is the first's number."""
        head = Categorical(self.symbol.num_embeddings)
        height, width = self.size
        context = self._context(coarser)
        layers = [LayerState(cast(GatedLayer, layer), count, width, label, context) for layer in self.layers]
        attention = None if self.attention is None else AttentionState(self.attention, count, height * width)
        codes = torch.zeros(count, height, width, dtype=torch.int64, device=self.symbol.weight.device)
        for row in range(height):
            v = layers[0].horizontal.row()
            for layer in layers:
                v = layer.begin_row(v, row)
            for column in range(width):
                h = draw_through(layers, column, 0)
                if attention is not None:
                    h = attention(h, row * width + column)
                logits = self.output(h[:, :, None, None])[:, :, 0, 0]
                codes[:, row, column] = choose(head, logits, first + row * width + column)
                layers[0].horizontal.write(self.symbol(codes[:, row, column]), column, 0)
        return codes


class CausalAttention(nn.Module):
    """h_i + W Σ_{j≤i} softmax_j(q_i · k_j / √d) v_j, of several heads: features of a place know what came before it."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        if features % heads:
            raise TacitError(f"prior_features is {features}: give a multiple of the {heads} heads of its attention")
        self.heads = heads
        self.inside, self.outside = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def parts(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, places, features / heads) each, of (batch, places, features)."""
        query, key, value = self.inside(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def forward(self, h: Tensor) -> Tensor:
        """(batch, features, height, width), before and after."""
        places = h.flatten(2).transpose(1, 2)
        query, key, value = self.parts(places)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return h + self.outside(seen.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(h)


class AttentionState:
    """Keys and values of the places drawn."""

    def __init__(self, attention: CausalAttention, count: int, places: int):
        weight = attention.outside.weight
        self.attention = attention
        self.keys, self.values = weight.new_zeros(2, count, attention.heads, places, len(weight) // attention.heads)

    def __call__(self, h: Tensor, place: int) -> Tensor:
        """Features of a place, (batch, features), before and after."""
        query, key, value = self.attention.parts(h[:, None])
        self.keys[:, :, place], self.values[:, :, place] = key[:, :, 0], value[:, :, 0]
        seen = F.scaled_dot_product_attention(query, self.keys[:, :, : place + 1], self.values[:, :, : place + 1])
        return h + self.attention.outside(seen.flatten(1))
