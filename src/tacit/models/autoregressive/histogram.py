"""Histogram: counted frequencies with additive smoothing, one table a dimension or one for all.

The plainest density there is, and the floor under every other: a table of how often each value was seen,

    p(x) = Π_d (n_d(x_d) + α) / (N + α L),

one table for each dimension (the dimensions independent), or with `joint` a single one over every combination of
values. The positions of a text all follow one law, so its windows share one table: unigrams, or `joint` n-grams.

Real features are cut into B bins of equal width between the smallest and the largest value seen. One more observation
falls outside that range with probability 2 / (N + 1), were it drawn like the others; that much mass, ε, goes to a
Laplace density around the middle of the range, so that the density integrates to 1 over the whole line and is finite
on held-out data:

    p(x_d) = (1 − ε) p(bin of x_d) / width + ε Laplace(x_d; middle, half the range).

The number of bins and α, where they are not given, are those of the greatest leave-one-out log-likelihood (Stone 1974;
Rudemo 1982 for the choice of bins), which counts give in closed form: leaving out one observation of a cell that holds
n takes its cell to n − 1, so the sum is Σ_cells n log((n − 1 + α) / ((N − 1 + α L) width)).

References
----------
Stone (1974), Cross-validatory choice and assessment of statistical predictions. Journal of the Royal Statistical
    Society B 36(2).
Rudemo (1982), Empirical choice of histograms and kernel density estimators. Scandinavian Journal of Statistics 9(2).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.capabilities import Choose, Kind
from tacit.data import Dataset
from tacit.distributions import Categorical
from tacit.errors import SpaceError
from tacit.model import Model
from tacit.spaces import Images, Space, Tokens, Vectors

# What `bins=None` and `smoothing=None` choose from.
_BINS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_SMOOTHINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Largest joint table.
_CELLS = 2**22
_ROWS = 8192


class Histogram(Model):
    """Histogram with additive smoothing.

    Args:
        space: images, rows of a table, or windows of a text.
        joint: one table over all combinations of values instead of one for each dimension.
        bins: bins of equal width for each real feature; None chooses by the leave-one-out likelihood.
        smoothing: observations α added to each cell; None chooses by the leave-one-out likelihood.

    Raises:
        SpaceError: the joint table would have too many cells, `bins` is given for integers, or an argument is too
            small.
    """

    spaces: ClassVar = (Images, Vectors, Tokens)
    density: Kind = "exact"

    log_table: Tensor
    cut: Tensor
    low: Tensor
    width: Tensor
    outside: Tensor

    def __init__(self, space: Space, *, joint: bool = False, bins: int | None = None, smoothing: float | None = None):
        super().__init__(space)
        if bins is not None and space.levels:
            raise SpaceError(f"histogram takes bins for real features, not bins={bins} for {space.kind}: leave it out")
        if bins is not None and bins < 1:
            raise SpaceError(f"histogram needs at least 1 bin, not {bins}: give a larger number")
        if smoothing is not None and smoothing <= 0:
            raise SpaceError(f"histogram needs a smoothing above 0, not {smoothing}: give a small positive number")
        self.joint, self.bins, self.smoothing = joint, bins, smoothing
        self.head = Categorical(space.levels or 0)

        dimensions = space.dimensions
        # Candidates for the number of values of a dimension; a table is as wide as the largest.
        self.candidates: tuple[int, ...] = (space.levels,) if space.levels else (bins,) if bins else _BINS
        if joint:
            least = self.candidates[0] ** dimensions
            if least > _CELLS:
                raise SpaceError(
                    f"the joint histogram of {space} would have {_cells(self.candidates[0], dimensions)} cells, "
                    f"of which {_CELLS:,} are the most: use joint=False or fewer values"
                )
            self.candidates = tuple(c for c in self.candidates if c**dimensions <= _CELLS)
        # How many tables there are, and how many entries of an observation each one takes.
        self.tables, self.group = (1, dimensions) if joint else (dimensions, 1)
        if isinstance(space, Tokens):
            self.tables = 1
        cells = max(self.candidates) ** self.group

        # Unused cells of a table hold −inf. `cut` is the number of values of a dimension in use.
        self.register_buffer("log_table", torch.full((self.tables, cells), -math.log(cells), dtype=torch.float64))
        self.register_buffer("cut", torch.full((dimensions,), max(self.candidates)))
        self.register_buffer("low", torch.zeros(dimensions, dtype=torch.float64))
        self.register_buffer("width", torch.ones(dimensions, dtype=torch.float64))
        self.register_buffer("outside", torch.tensor(0.5, dtype=torch.float64))

    # -- values to cells and back -------------------------------------------------------------------------------------

    def _values(self, x: Tensor, cut: Tensor) -> Tensor:
        """The number of each entry's value or bin, (batch, dimensions), int64; outside the range, of the last bin."""
        x = x.flatten(1)
        if self.space.levels:
            return x.long()
        position = (x.double() - self.low) / self.width * cut
        return position.floor().clamp(min=0).minimum(cut - 1).long()

    def _cells(self, values: Tensor, cut: Tensor) -> Tensor:
        """Values (batch, dimensions) -> cells of the tables: the values themselves, or (batch, 1) when joint."""
        if not self.joint:
            return values
        # cut[0]: a joint table cuts every dimension alike.
        place = cut[0] ** torch.arange(self.space.dimensions, device=values.device)
        return (values * place).sum(1, keepdim=True)

    def _at(self, cells: Tensor) -> Tensor:
        """Log mass of each cell (batch, columns), in the table of its column."""
        if self.tables == 1:
            return self.log_table[0][cells]
        return self.log_table[torch.arange(self.tables, device=cells.device), cells]

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_exactly(self, data: Dataset, seconds: float = math.inf) -> None:
        """Count, and choose what was not given by the leave-one-out likelihood."""
        real = isinstance(self.space, Vectors)
        if real:
            chunks = [data[index].double() for index in data.ordered(_ROWS)]
            low = torch.stack([x.amin(0) for x in chunks]).amin(0)
            high = torch.stack([x.amax(0) for x in chunks]).amax(0)
            # A feature that never changes is given a range of width 1 around its value.
            constant = high <= low
            self.low.copy_(torch.where(constant, low - 0.5, low))
            self.width.copy_(torch.where(constant, torch.ones_like(low), high - low))
            self.outside.copy_(torch.tensor(min(0.5, 2 * self.group / (len(data) + 1))))

        best = self.log_table.new_full((self.tables,), -math.inf)
        for candidate in self.candidates:
            cut = torch.full_like(self.cut, candidate)
            count = self._count(data, cut, candidate**self.group)
            # Nats of an observation's volume: B bins in a unit of width are B times as dense.
            volume = self.group * math.log(candidate) if real else 0.0
            alphas = (self.smoothing,) if self.smoothing else _SMOOTHINGS
            scores = torch.stack([_left_out(count, alpha) for alpha in alphas])
            # Real features each choose for themselves; integers share one α, as they share their levels.
            choice = scores.argmax(0) if real else scores.sum(1).argmax().expand(self.tables)
            score = scores.gather(0, choice[None])[0] + count.sum(1) * volume
            better = score > best
            best = torch.where(better, score, best)
            alpha = self.log_table.new_tensor(alphas)[choice.to(self.device)][:, None]
            table = _log_frequencies(count.to(self.device), alpha)
            table = F.pad(table, (0, self.log_table.shape[1] - table.shape[1]), value=-math.inf)
            self.log_table.copy_(torch.where(better[:, None].to(self.device), table, self.log_table))
            self.cut.copy_(torch.where(better.to(self.device), candidate, self.cut))

    def _count(self, data: Dataset, cut: Tensor, cells: int) -> Tensor:
        """How many observations are in each cell of each table: (tables, cells), float64."""
        count = torch.zeros(self.tables * cells, dtype=torch.int64, device=self.device)
        # A text's n-grams are counted at every position, its characters once.
        every = isinstance(self.space, Tokens) and self.joint
        indices = torch.arange(len(data)).split(_ROWS) if every else data.ordered(_ROWS)
        for index in indices:
            cell = self._cells(self._values(data[index].to(self.device), cut), cut)
            if self.tables > 1:
                cell = cell + cells * torch.arange(self.tables, device=self.device)
            count += cell.flatten().bincount(minlength=self.tables * cells)
        return count.view(self.tables, cells).double()

    # -- capabilities -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) in nats, (batch,): a log mass of integers, a log density of real features."""
        self.space.check(x)
        log_mass = self._at(self._cells(self._values(x, self.cut), self.cut))
        if self.space.levels:
            return log_mass.sum(1).float()
        x = x.double()
        inside = (x >= self.low) & (x <= self.low + self.width)
        volume, scale = self.width / self.cut, self.width / 2
        laplace = -(x - self.low - scale).abs() / scale - (2 * scale).log()
        if self.joint:
            inside, volume, laplace = inside.all(1, keepdim=True), volume.prod(), laplace.sum(1, keepdim=True)
        density = torch.where(inside, log_mass - volume.log(), -math.inf)
        mixed = torch.logaddexp(density + (1 - self.outside).log(), laplace + self.outside.log())
        return mixed.sum(1).float()

    def sites(self, x: Tensor) -> Tensor:
        """The cell of each table, (batch, columns)."""
        return self._cells(self._values(x, self.cut), self.cut)

    @torch.no_grad()
    def visit(self, count: int, choose: Choose, label: Tensor | None = None) -> None:
        """Visit every table; see `tacit.capabilities.Codes`."""
        for t in range(self.space.dimensions // self.group):
            choose(self.head, self.log_table[min(t, self.tables - 1)].expand(count, -1), t)

    def from_sites(self, sites: Tensor) -> Tensor:
        """Observations from what `sites` makes of them, (batch, *shape)."""
        if self.joint:
            sites = sites // self.cut[0] ** torch.arange(self.space.dimensions, device=sites.device) % self.cut[0]
        return sites.reshape(len(sites), *self.space.shape).to(self.space.torch_dtype)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Cells by the inverse of their distribution function, the frequencies raised to 1 / `temperature`."""
        dimensions = self.space.dimensions
        columns = dimensions // self.group
        upper = (self.log_table / temperature).softmax(1).cumsum(1)
        u = torch.rand(self.tables, columns // self.tables * count, dtype=torch.float64, device=self.device)
        # Rounding may leave the last sum below 1: never past the last cell in use.
        last = (self.log_table > -math.inf).sum(1, keepdim=True) - 1
        cell = torch.searchsorted(upper, u, right=True).minimum(last)
        cell = cell.view(columns, count).T
        if self.space.levels:
            return self.from_sites(cell)
        if self.joint:
            cell = cell // self.cut[0] ** torch.arange(dimensions, device=self.device) % self.cut[0]
        x = self.low + (cell + torch.rand_like(self.low.expand(count, -1))) * self.width / self.cut
        scale = (self.width / 2).expand(count, -1)
        laplace = torch.distributions.Laplace(self.low + scale, scale).sample()
        tail = torch.rand(count, columns, device=self.device) < self.outside
        return torch.where(tail, laplace, x).to(self.space.torch_dtype)


def _log_frequencies(count: Tensor, alpha: Tensor) -> Tensor:
    """Log (n + α) / (N + α L) of counts (tables, cells)."""
    return (count + alpha).log() - (count.sum(1, keepdim=True) + alpha * count.shape[1]).log()


def _left_out(count: Tensor, alpha: float) -> Tensor:
    """The leave-one-out log-likelihood of counts (tables, cells), each observation left out in turn: (tables,)."""
    total, cells = count.sum(1), count.shape[1]
    seen = torch.xlogy(count, (count - 1 + alpha).clamp(min=alpha)).sum(1)
    return seen - total * (total - 1 + alpha * cells).log()


def _cells(values: int, dimensions: int) -> str:
    """How many cells a joint table has, readable when they are beyond counting."""
    digits = dimensions * math.log10(values)
    return f"{values**dimensions:,}" if digits < 15 else f"10^{digits:.0f}"
