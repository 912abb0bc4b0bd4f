"""Softmax table: one logit for every observation there can be, the likelihood model before any network.

An observation of D entries of L levels is one of L^D cells, and every cell has a parameter of its own:

    p(x) = exp(θ_x) / Σ_y exp(θ_y).

Learned by gradient descent on −log p(x), whose minimum is the histogram of the training rows. The likelihood is looked
up, a draw inverts the distribution function, and what is unknown of an observation is drawn from the cells that agree
with the rest: everything is exact, and nothing generalises. A cell that was not seen learns nothing from its
neighbours, and there are L^D of them: the curse of dimensionality, which is why every other model of this family
factorises p(x) and shares parameters between the factors.

References
----------
Bengio & Bengio (2000), Modeling high-dimensional discrete data with multi-layer neural networks. NIPS 12 (the table and
    its curse, §1).
Bishop (2006), Pattern Recognition and Machine Learning, §2.2 (the multinomial), §1.4 (the curse). Springer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tacit.capabilities import Choose
from tacit.distributions import Categorical
from tacit.errors import SpaceError
from tacit.model import Batch, Losses, Model, Recipe
from tacit.models.autoregressive._tables import draw_cells
from tacit.spaces import Images, Space, Tokens

# Largest table, and largest number of elements of one temporary tensor, as powers of two.
_CELLS = 20
_BLOCK = 22


class SoftmaxTable(Model):
    """One logit for every cell of a small discrete space.

    Args:
        space: small images, or short windows of a text.

    Raises:
        SpaceError: the space has too many cells.
    """

    spaces = (Images, Tokens)
    recipe = Recipe(batch_size=1000, learning_rate=0.1, schedule="cosine")
    density = "exact"

    place: Tensor

    def __init__(self, space: Space):
        super().__init__(space)
        levels, dimensions = space.levels or 1, space.dimensions
        if dimensions * math.log2(levels) > _CELLS:
            raise SpaceError(
                f"softmax-table would need {levels}^{dimensions} cells for {space}, and {2**_CELLS:,} (2^{_CELLS}) are "
                f"the most: give fewer entries or fewer levels, or take a model without a table (made)"
            )
        self.logits = nn.Parameter(torch.zeros(levels**dimensions))
        self.head = Categorical(levels**dimensions)
        # What one level of each entry is worth in the number of a cell; the first entry is worth the most.
        place = torch.tensor([levels**d for d in reversed(range(dimensions))])
        self.register_buffer("place", place, persistent=False)

    def _cell(self, x: Tensor) -> Tensor:
        """The number of each observation's cell, (batch,)."""
        return (x.flatten(1) * self.place).sum(1)

    def _observation(self, cell: Tensor) -> Tensor:
        """The observations in cells (batch,): (batch, *shape)."""
        entries = cell[:, None] // self.place % (self.space.levels or 1)
        return entries.view(len(cell), *self.space.shape).to(self.space.torch_dtype)

    # -- learning -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """−log p(x), averaged over the batch."""
        return Losses(nll=-self._log_prob(self.space.check(batch.x)).mean())

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.logits[self._cell(x)] - self.logits.logsumexp(0)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) in nats, (batch,), exact.

        Raises:
            SpaceError: `x` is not of the space.
        """
        return self._log_prob(self.space.check_values(x))

    def sites(self, x: Tensor) -> Tensor:
        """The number of each observation's cell, (batch, 1)."""
        return self._cell(x)[:, None]

    @torch.no_grad()
    def visit(self, count: int, choose: Choose, label: Tensor | None = None) -> None:
        """Visit the one table; see `tacit.capabilities.Codes`."""
        choose(self.head, self.logits.expand(count, -1), 0)

    def from_sites(self, sites: Tensor) -> Tensor:
        """Observations from what `sites` makes of them, (batch, *shape)."""
        return self._observation(sites[:, 0].long())

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws, (count, *shape), by the inverse of the distribution function; temperature divides the logits.

        Raises:
            TacitError: `temperature` is not above zero.
        """
        return self._observation(draw_cells(self.logits[None], temperature, count)[0])

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Draw what is unknown of `x`, (batch, *shape), from p(unknown | known): the cells that agree with the known.

        Args:
            x: what is known, and anything elsewhere.
            known: (*shape) bool, True where `x` is given.
            temperature: divides the logits.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: the mask is of another shape, or `temperature` is not above zero.
        """
        self.space.check_known(known)
        known = known.to(x.device)
        base = self._cell(self.space.check_values(torch.where(known, x, 0)))
        # What every state of the unknown entries adds to the number of a cell.
        added = base.new_zeros(1)
        for worth in self.place[~known.flatten()]:
            added = (added[:, None] + worth * torch.arange(self.space.levels or 1, device=x.device)).flatten()
        cells = []
        for part in base.split(max(1, 2**_BLOCK // len(added))):
            drawn = draw_cells(self.logits[part[:, None] + added], temperature)
            cells.append(part + added[drawn[:, 0]])
        return self._observation(torch.cat(cells))
