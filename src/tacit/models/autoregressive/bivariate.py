"""Bivariate: a table for the first of two features, a network for the second given the first.

Both features are cut into B bins of equal width over the range that was seen, and with bins b₁ and b₂

    P(b₁) = softmax(θ)_b₁,    P(b₂ | b₁) = softmax(f(b₁))_b₂,    p(x₁, x₂) = P(b₁) P(b₂ | b₁) p(x₁ | b₁) p(x₂ | b₂).

f is a multilayer perceptron: what a table of B × B cells would learn for every b₁ apart, it shares between neighbours.
It sees where the middle of b₁ lies on [−1, 1], one number. A one-hot b₁ would share nothing and be the table again, and
sines and cosines of the place, too, learned the training rows of moons and checkerboard by heart.

Within its bin a feature is uniform, with an exponential tail beyond either end (`tacit.nn.bins`): p is a density of the
user's own features, finite everywhere. Any part given, the rest is drawn exactly: with x₁ unknown by Bayes' rule over
its B bins, P(b₁ | b₂) ∝ P(b₁) P(b₂ | b₁).

References
----------
- Bengio & Bengio (2000), Modeling high-dimensional discrete data with multi-layer neural networks, NIPS 12 (the chain
  rule with a network for each factor)
- van den Oord, Kalchbrenner & Kavukcuoglu (2016), Pixel recurrent neural networks, arXiv:1601.06759 (a softmax over
  the values of a numeric entry)
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import SpaceError, check_at_least
from tacit.model import Batch, Losses, Model, Recipe
from tacit.models.autoregressive._tables import draw_cells
from tacit.nn.bins import Bins
from tacit.spaces import Vectors

# Rows from which the range of the bins is taken.
_ROWS = 1_000_000


class Bivariate(Model):
    """A softmax table for the first of two features, a perceptron for the second given the first.

    Args:
        space: rows of two features.
        bins: bins of equal width of each feature.
        hidden: units of each hidden layer.

    Raises:
        SpaceError: the rows do not have two features.
        TacitError: a number is below 1.
    """

    spaces = (Vectors,)
    recipe = Recipe(batch_size=500, learning_rate=1e-2, schedule="cosine", ema=0.995)
    density = "exact"

    place: Tensor

    def __init__(self, space: Vectors, *, bins: int = 64, hidden: tuple[int, ...] = (64, 64, 64)):
        super().__init__(space)
        if space.features != 2:
            raise SpaceError(
                f"bivariate takes rows of 2 features, not {space.features}: keep two columns, or take made or realnvp"
            )
        check_at_least(1, bins=bins, hidden=min(hidden, default=0))
        self.bins = Bins(2, bins)
        self.first = nn.Parameter(torch.zeros(bins))
        sizes = (1, *hidden)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.second = nn.Sequential(*layers, nn.Linear(sizes[-1], bins))
        # What the network sees of each of the first feature's bins.
        self.register_buffer("place", (torch.arange(bins)[:, None] + 0.5) * (2 / bins) - 1, persistent=False)

    def adapt(self, data: Dataset) -> None:
        """Cut both features over the range of the data."""
        self.bins.cut(data.observations(_ROWS), len(self.first), by_rank=False)

    # -- the two factors ----------------------------------------------------------------------------------------------

    def _log_first(self) -> Tensor:
        """Log P(b₁), (bins,)."""
        return self.first.log_softmax(0)

    def _log_second(self, first: Tensor) -> Tensor:
        """Log P(b₂ | b₁), (batch, bins), of the bins `first`, (batch,)."""
        return self.second(self.place[first]).float().log_softmax(1)

    # -- learning -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """−log p(x), averaged over the batch."""
        return Losses(nll=-self.log_prob(batch.x).mean())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), (batch,): the density of both features in nats.

        Raises:
            SpaceError: `x` is not of the space.
        """
        cells = self.bins.index(self.space.check(x))
        first, second = cells.unbind(1)
        log_mass = self._log_first()[first] + self._log_second(first).gather(1, second[:, None])[:, 0]
        return log_mass + self.bins.log_density(x, cells).sum(1).float()

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws, (count, 2): the first feature, then the second; temperature divides the logits of both.

        Raises:
            TacitError: `temperature` is not above zero.
        """
        first = draw_cells(self.first[None], temperature, count)[0]
        second = draw_cells(self._log_second(first), temperature)
        return self.bins.draw(torch.cat((first[:, None], second), 1)).float()

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Draw what is unknown of `x`, (batch, 2), from p(unknown | known), exactly, whichever feature is known.

        Args:
            x: what is known, and anything elsewhere.
            known: (2,) bool, True where `x` is given.
            temperature: divides the logits of what is drawn.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: the mask is of another shape, or `temperature` is not above zero.
        """
        self.space.check_known(known)
        known = known.to(x.device)
        if not known.any():
            return self.sample(len(x), temperature=temperature)
        index = self.bins.index(self.space.check(torch.where(known, x, 0.0)))
        if known[0]:
            drawn = draw_cells(self._log_second(index[:, 0]), temperature)
        else:
            every = torch.arange(len(self.first), device=x.device)
            joint = self._log_first()[:, None] + self._log_second(every)
            drawn = draw_cells(joint.T[index[:, 1]], temperature)
        return torch.where(known, x, self.bins.draw(torch.where(known, index, drawn)).to(x.dtype))
