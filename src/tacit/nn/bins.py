"""Features cut into cells: numbers of cells and back, and the density within a cell.

Every value x of a feature lies in one cell b, and p(x) = P(b) p(x | b): with `Bins` a distribution of the cells'
numbers is a density of the features. Within its cell x is uniform. The first and the last cell go on for ever: beyond
the smallest or the largest value seen, p(x | b) is a share ε of an exponential of half the range. Of n rows in such a
cell and one row more, each is the outermost with the same chance, so ε = 1 / (n + 1). The density is finite everywhere
and integrates to 1.

A feature that held few different whole numbers, and no others, is cut into one cell of width 1 for each: its density at
a whole number is that number's probability, and what is drawn is whole. Such a feature may as well be closed at its
ends as categories are; ε = 1 / (n + 1)², as after n rows none of which lay beyond.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Most of the mass of an end cell that may lie beyond the end.
_MOST_BEYOND = 0.25


class Bins(nn.Module):
    """Cells of each feature, as `cut` or `cut_whole` leaves them; one cell around 0 before.

    Args:
        features: columns of an observation laid flat.
        most: cells of a feature at most.
    """

    edge: Tensor
    cells: Tensor
    whole: Tensor
    beyond: Tensor
    scale: Tensor

    def __init__(self, features: int, most: int):
        super().__init__()
        # Edges of each feature's cells, in order; past the last they are infinite.
        edge = torch.full((features, most + 1), torch.inf, dtype=torch.float64)
        edge[:, 0], edge[:, 1] = -0.5, 0.5
        self.register_buffer("edge", edge)
        self.register_buffer("cells", torch.ones(features, dtype=torch.int64))
        self.register_buffer("whole", torch.ones(features, dtype=torch.bool))
        # The share of the first and of the last cell's mass that lies beyond the end, and how far it reaches.
        self.register_buffer("beyond", torch.zeros(features, 2, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(features, dtype=torch.float64))

    # -- cutting ------------------------------------------------------------------------------------------------------

    def cut_whole(self, feature: int | slice, cells: int) -> None:
        """A feature, or all of them, of the categories {0, …, cells − 1}, and nothing beyond them."""
        self._set(feature, torch.arange(cells + 1) - 0.5, whole=True)

    def cut(self, x: Tensor, cells: int, *, by_rank: bool, categories: int = 0) -> None:
        """Cut each column of `x`, (rows, features), from its smallest to its largest value.

        Args:
            x: what was seen.
            cells: of a feature; fewer by rank where values repeat.
            by_rank: cells that hold equally many rows, instead of cells of equal width.
            categories: a column of whole numbers that span no more than this has a cell for each of them instead.
        """
        for feature, column in enumerate(x.double().cpu().unbind(1)):
            column = column.sort().values
            first, last = column[0].item(), column[-1].item()
            whole = last - first < categories and bool((column == column.round()).all())
            # One that never changes is given a range of width 1.
            low, high = (first - 0.5, last + 0.5) if whole or first == last else (first, last)
            if whole:
                edge = torch.arange(low, high + 1, dtype=torch.float64)
            elif by_rank:
                at = torch.arange(1, cells) * len(column) // cells
                inner = (column[at] + column[(at - 1).clamp(min=0)]) / 2
                inner = inner[(inner > low) & (inner < high)].unique_consecutive()
                edge = torch.cat((inner.new_tensor([low]), inner, inner.new_tensor([high])))
            else:
                edge = torch.linspace(low, high, cells + 1, dtype=torch.float64)
            self._set(feature, edge, whole)
        index = self.index(x.to(self.edge.device))
        rows = torch.stack([(index == 0).sum(0), (index == self.cells - 1).sum(0)], 1)
        share = 1 / (rows + 1).double()
        self.beyond.copy_(torch.where(self.whole[:, None], share.square(), share).clamp(max=_MOST_BEYOND))

    def _set(self, feature: int | slice, edge: Tensor, whole: bool) -> None:
        self.edge[feature] = torch.inf
        self.edge[feature, : len(edge)] = edge.to(self.edge)
        self.cells[feature] = len(edge) - 1
        self.whole[feature] = whole
        self.beyond[feature] = 0.0
        self.scale[feature] = (edge[-1] - edge[0]) / 2

    # -- values to cells and back -------------------------------------------------------------------------------------

    def index(self, x: Tensor) -> Tensor:
        """The cell of each value (batch, features): int64; values beyond the ends are in the first or last cell."""
        found = torch.searchsorted(self.edge[:, 1:-1].contiguous(), x.double().T.contiguous(), right=True).T
        return found.minimum(self.cells - 1)

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each cell (batch, features): its lower edge, its width, and the shares of it below and above the ends."""
        feature = torch.arange(len(self.edge), device=index.device)
        lower = self.edge[feature, index]
        below = torch.where(index == 0, self.beyond[:, 0], 0.0)
        above = torch.where(index == self.cells - 1, self.beyond[:, 1], 0.0)
        return lower, self.edge[feature, index + 1] - lower, below, above

    def ends(self) -> tuple[Tensor, Tensor]:
        """The outermost edges of each feature, (features,) each."""
        return self.edge[:, 0], self.edge.gather(1, self.cells[:, None])[:, 0]

    def log_density(self, x: Tensor, index: Tensor) -> Tensor:
        """Log p(x | its cell) in nats of values in the cells `index`, (batch, features) both: float64."""
        x, (low, high) = x.double(), self.ends()
        _, width, below, above = self._at(index)
        inside = (1 - below - above).log() - width.log()
        under = below.log() - self.scale.log() - (low - x) / self.scale
        over = above.log() - self.scale.log() - (x - high) / self.scale
        return torch.where(x < low, under, torch.where(x > high, over, inside))

    def draw(self, index: Tensor) -> Tensor:
        """A value from each cell (batch, features): float64."""
        low, high = self.ends()
        lower, width, below, above = self._at(index)
        u, where = torch.rand_like(lower), torch.rand_like(lower)
        reach = self.scale * torch.empty_like(lower).exponential_()
        x = torch.where(where < below, low - reach, torch.where(where > 1 - above, high + reach, lower + u * width))
        return torch.where(self.whole, (x + 0.5).floor(), x)

    def middle(self, feature: int) -> Tensor:
        """The middle of each cell of a feature, (cells,): the number itself where a cell holds one whole number."""
        edge = self.edge[feature, : int(self.cells[feature]) + 1]
        return (edge[:-1] + edge[1:]) / 2
