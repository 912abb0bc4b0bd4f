"""Autoencoder: a code from which observations can be rebuilt; linear or deep, tied, stacked, denoising.

An encoder f and a decoder g learn the code z = f(x) by min E L(x, g(z)). Pixels are scaled to [0, 1] and rebuilt by a
sigmoid, whose loss is the cross-entropy; or, as standardised tables always are, by a linear layer with the squared
error:

    L = −Σ_d [x_d log g_d + (1 − x_d) log (1 − g_d)]        or        L = Σ_d (x_d − g_d)².

Without hidden layers and with the squared error the decoder spans the subspace of the first principal components
(Baldi & Hornik 1989). A code as large as the data could copy it; what makes it learn is corruption: entries set to 0 at
random, to be rebuilt from the others (a denoising autoencoder).

Deep ones can be stacked: every layer of the encoder first learns to rebuild what the layers below give, by the layer of
the decoder that mirrors it, one after the other from the data upwards; then all learn together.

References
----------
- Baldi & Hornik (1989), Neural networks and principal component analysis: learning from examples without local minima,
  Neural Networks 2(1)
- Hinton & Salakhutdinov (2006), Reducing the dimensionality of data with neural networks, Science 313 (tied weights;
  the cross-entropy; layers learnt one by one, there as RBMs)
- Bengio, Lamblin, Popovici & Larochelle (2007), Greedy layer-wise training of deep networks, NeurIPS (as autoencoders)
- Vincent, Larochelle, Lajoie, Bengio & Manzagol (2010), Stacked denoising autoencoders, JMLR 11 (corruption)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.nn import noise
from tacit.nn.bijections import Standardise
from tacit.spaces import Images, Space, Vectors

# The share of the budget that the layers have for themselves when they are stacked.
_ALONE = 0.5


class Autoencoder(Model):
    """Fully connected autoencoder with a linear code.

    Args:
        latent: numbers of the code; by default 32, or as many as the data has where that is fewer.
        hidden: units of the encoder's hidden layers, which the decoder has in reverse; () for none, a linear encoder.
        activation: of the hidden layers.
        error: "cross-entropy" (images) or "squared"; by default what comes first for the data.
        tied: whether the decoder's matrices are the encoder's, transposed.
        stacked: whether the layers learn one by one in the first half of the budget.
        corruption: share of the entries that are set to 0 while learning; of every layer's input while it is alone.

    Raises:
        TacitError: a width is below 1, the corruption not in [0, 1), or the error does not suit the space.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", ema=0.999)

    standardise: Standardise
    alone: Tensor
    down: Sequence[Down]

    def __init__(
        self,
        space: Space,
        *,
        latent: int | None = None,
        hidden: tuple[int, ...] = (500, 250),
        activation: Literal["silu", "sigmoid"] = "silu",
        error: Literal["cross-entropy", "squared"] | None = None,
        tied: bool = False,
        stacked: bool = False,
        corruption: float = 0.0,
    ):
        super().__init__(space)
        latent = min(32, space.dimensions) if latent is None else latent
        check_at_least(1, latent=latent, hidden=(*hidden, 1))
        if not 0 <= corruption < 1:
            raise TacitError(f"corruption is {corruption}: give the share of the entries to hide, from 0 to below 1")
        suiting = ("squared",) if isinstance(space, Vectors) else ("cross-entropy", "squared")
        if error is not None and error not in suiting:
            raise TacitError(f"error is {error!r}, which {space.kind} do not take: give {' or '.join(suiting)}")
        activations: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}
        if activation not in activations:
            raise TacitError(f"activation is {activation!r}: give {' or '.join(activations)}")
        self.activation = activations[activation]
        self.error, self.stacked, self.corruption = error or suiting[0], stacked, corruption
        if isinstance(space, Vectors):
            self.standardise = Standardise(*space.shape)
        sizes = (space.dimensions, *hidden, latent)
        # Layer i of both goes between sizes[i] and sizes[i + 1], one up and the other down.
        self.up = nn.ModuleList(nn.Linear(below, above) for below, above in itertools.pairwise(sizes))
        down = nn.ModuleList(Down(above, below, tied) for below, above in itertools.pairwise(sizes))
        self.down = down  # type: ignore[assignment]
        # Which layer is alone; as many as there are when all learn together.
        self.register_buffer("alone", torch.tensor(0 if stacked else len(self.up)))

    # -- the layers: `entries` are (batch, *shape) on [0, 1], or standardised -----------------------------------------

    def _entries(self, x: Tensor) -> Tensor:
        x = self.space.check(x)
        if self.space.levels is None:
            return self.standardise(x)
        return (x.float() / (self.space.levels - 1)).flatten(1)

    def _upwards(self, h: Tensor, layers: int) -> Tensor:
        """What the encoder's first layers give of entries: (batch, entries) -> (batch, units)."""
        for i, layer in enumerate(itertools.islice(self.up, layers)):
            h = layer(h)
            if i < len(self.up) - 1:
                h = self.activation(h)
        return h

    def _downwards(self, h: Tensor, layer: int) -> Tensor:
        """What one layer of the decoder gives, before the nonlinearity."""
        return self.down[layer](h, self.up[layer].weight)

    def _rebuilt(self, z: Tensor) -> Tensor:
        """What the decoder gives of a code, (batch, entries), before the sigmoid of the cross-entropy."""
        for i in reversed(range(len(self.down))):
            z = self._downwards(z, i)
            if i > 0:
                z = self.activation(z)
        return z.float()

    def _corrupted(self, h: Tensor) -> Tensor:
        if not (self.corruption and self.training):
            return h
        return h * (noise.rand_like(h) >= self.corruption)

    def _error(self, rebuilt: Tensor, entries: Tensor) -> Tensor:
        """L, averaged over the batch."""
        if self.error == "squared":
            return (rebuilt - entries).square().sum(1).mean()
        return F.binary_cross_entropy_with_logits(rebuilt, entries, reduction="none").sum(1).mean()

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own mean."""
        x = data.observations(20_000)
        if self.space.levels is None:
            self.standardise.adapt(x)
        with torch.no_grad():
            mean = self._entries(x).mean(0)
            # A pixel that is never on still has a finite logit.
            self.down[0].bias.copy_(mean if self.error == "squared" else mean.clamp(1e-3, 1 - 1e-3).logit())

    def loss(self, batch: Batch) -> Losses:
        """The error of observations rebuilt, summed over their entries; while a layer is alone, that layer's."""
        entries = self._entries(batch.x)
        alone = int(self.alone) if self.stacked and self.training else len(self.up)
        if alone < len(self.up):
            return Losses(reconstruction=self._error_of_layer(alone, entries))
        return Losses(
            reconstruction=self._error(self._rebuilt(self._upwards(self._corrupted(entries), alone)), entries)
        )

    def _error_of_layer(self, layer: int, entries: Tensor) -> Tensor:
        """How well a layer rebuilds what those below it give, which do not learn."""
        with torch.no_grad():
            below = self._upwards(entries, layer)
        code = self.up[layer](self._corrupted(below))
        code = self.activation(code) if layer < len(self.up) - 1 else code
        rebuilt = self._downwards(code, layer).float()
        if layer == 0:
            return self._error(rebuilt, below)
        return (self.activation(rebuilt) - below).square().sum(1).mean()

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Go on to the next layer when a layer's share of the budget is used."""
        if self.stacked:
            layers = len(self.up)
            self.alone.fill_(min(layers, int(progress.fraction / _ALONE * layers)))

    # -- capabilities -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes, (batch, latent)."""
        return self._upwards(self._entries(x), len(self.up)).float()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """What codes, (batch, latent), are rebuilt as: (batch, *shape) in the space's dtype, pixels rounded."""
        rebuilt = self._rebuilt(z)
        levels = self.space.levels
        if levels is None:
            return self.standardise.inverse(rebuilt)
        rebuilt = rebuilt.sigmoid() if self.error == "cross-entropy" else rebuilt.clamp(0, 1)
        return (rebuilt * (levels - 1)).round().to(self.space.torch_dtype).unflatten(1, self.space.shape)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What observations are rebuilt as, (batch, *shape)."""
        return self.decode(self.encode(x))

    def embed(self, x: Tensor) -> Tensor:
        """Codes, (batch, latent)."""
        return self.encode(x)

    @torch.no_grad()
    def squared_error(self, x: Tensor) -> Tensor:
        """Σ_d (x_d − g_d)² before any rounding, (batch,): pixels on [0, 1], tables standardised."""
        entries = self._entries(x)
        rebuilt = self._rebuilt(self._upwards(entries, len(self.up)))
        return ((rebuilt.sigmoid() if self.error == "cross-entropy" else rebuilt) - entries).square().sum(1)


class Down(nn.Module):
    """A layer of the decoder: its own matrix, or the transpose of the one it is given."""

    def __init__(self, above: int, below: int, tied: bool):
        super().__init__()
        own = nn.Linear(above, below)
        self.weight = None if tied else own.weight
        self.bias = own.bias

    def forward(self, h: Tensor, up: Tensor) -> Tensor:
        return F.linear(h, up.T if self.weight is None else self.weight, self.bias)
