"""Bayes net: counted tables of each variable given its parents, with exact inference.

A directed acyclic graph says on which others each variable depends directly, and the joint distribution is

    p(x) = Π_d p(x_d | x_parents(d)),        p(x_d = k | π) = (n_d(k, π) + α) / (n_d(π) + α K_d),

counts of the training rows with α observations added to each cell. The graph is given, as edges; or it is the tree that
has the greatest likelihood of all trees, which is the maximum spanning tree under the mutual information of pairs (Chow
& Liu 1968); or a chain, each entry given the one before it; or it has no edges. α, unless it is given, has the greatest
leave-one-out likelihood, which the counts give in closed form: a row left out takes one from n_d(k, π) and n_d(π).

Columns of a table that hold few different whole numbers are categories; others are cut into cells within which they are
uniform, with exponential tails (`tacit.nn.bins`). Whether cells have equal widths or hold equally many rows, and how
many there are, unless that is given, is what a fifth of the rows, held out, likes best.

References
----------
Pearl (1988), Probabilistic Reasoning in Intelligent Systems. Morgan Kaufmann (and the burglar alarm).
Zhang & Poole (1994), A simple approach to Bayesian network computations. Canadian AI (variable elimination).
Koller & Friedman (2009), Probabilistic Graphical Models, chapters 9, 12 and 17. MIT Press.
"""

from __future__ import annotations

import graphlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Model
from tacit.models.autoregressive._chow_liu import mutual_information, spanning_tree
from tacit.models.autoregressive._elimination import Factor, eliminate, elimination_order, product
from tacit.models.autoregressive._tables import draw_cells
from tacit.nn.bins import Bins
from tacit.spaces import Images, Space, Vectors

# What `bins=None` and `smoothing=None` choose from.
_BINS = (2, 4, 8, 16, 32, 64)
_SMOOTHINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Most levels of a pixel, and most values of a column of whole numbers that each have a cell of their own.
_CATEGORIES = 32
# Largest table of a variable, and of one step of the elimination, as a power of two.
_CELLS = 24
_ROWS = 4096
# Rows from which the columns of a table are cut.
_CUT_ROWS = 200_000
# Multiplications for the counts of all pairs, and the fewest rows; where all rows would take more, some of them do.
_WORK = 2e11
_FEWEST = 200
# Largest number of elements of one temporary tensor.
_BLOCK = 2**23


class BayesNet(Model):
    """A Bayesian network over pixels or the columns of a table; variables go by their number, from 0.

    Args:
        space: images of few levels, or rows of a table.
        edges: the graph as "parent>child", such as 0>2 1>2, instead of a structure that is found.
        structure: what is found: "tree" (Chow–Liu), "chain" (each given the one before), or "independent".
        bins: cells of each real column of a table; None chooses on held-out rows.
        smoothing: observations α added to each cell of a table; None chooses by the leave-one-out likelihood.

    Raises:
        TacitError: an edge is not of that form, names no column or closes a cycle, or a number is too small.
        SpaceError: the images have too many levels, or a variable too many parents for a table.
    """

    spaces: ClassVar = (Images, Vectors)
    density: Kind = "exact"

    parent: Tensor
    stride: Tensor
    offset: Tensor
    log_table: Tensor

    def __init__(
        self,
        space: Space,
        *,
        edges: tuple[str, ...] | None = None,
        structure: Literal["tree", "chain", "independent"] = "tree",
        bins: int | None = None,
        smoothing: float | None = None,
    ):
        super().__init__(space)
        if structure not in ("tree", "chain", "independent"):
            raise TacitError(f"structure is {structure!r}: give tree, chain or independent")
        if bins is not None and bins < 2:
            raise TacitError(f"bins is {bins}: give at least 2")
        if smoothing is not None and smoothing <= 0:
            raise TacitError(f"smoothing is {smoothing}: give a small positive number")
        self.structure, self.smoothing = "given" if edges is not None else structure, smoothing
        nodes, levels = space.dimensions, space.levels
        if levels and levels > _CATEGORIES:
            raise SpaceError(
                f"bayes-net takes images of at most {_CATEGORIES} levels, not {levels}: bring them to fewer, or take "
                f"histogram or made"
            )
        if levels and bins:
            raise TacitError(f"bins is {bins}, which is for real columns, not for {space.kind}: leave it out")
        self.candidates = (bins,) if bins else _BINS
        self.bins = Bins(nodes, levels or max(*self.candidates, _CATEGORIES))
        if levels:
            self.bins.cut_whole(slice(None), levels)

        if edges is not None:
            parents = _parsed(edges, nodes)
        else:
            # A tree is not known before the data is seen: until then it is the chain.
            parents = [[d - 1] if d and structure != "independent" else [] for d in range(nodes)]
        most = max(map(len, parents))
        # Parents of each node, ascending, −1 where there are fewer than `most`; where its table starts, and how far
        # apart in it the values of each parent are.
        self.register_buffer("parent", torch.tensor([p + [-1] * (most - len(p)) for p in parents]).long())
        self.register_buffer("stride", torch.zeros(nodes, most, dtype=torch.int64))
        self.register_buffer("offset", torch.zeros(nodes, dtype=torch.int64))
        # All tables one after another, the node's own value innermost.
        self.register_buffer("log_table", torch.zeros(0, dtype=torch.float64))
        self._lay_out()

    # -- tables -------------------------------------------------------------------------------------------------------

    @property
    def parents(self) -> list[list[int]]:
        """The parents of each variable, ascending."""
        return [[p for p in row if p >= 0] for row in self.parent.tolist()]

    def _levels(self) -> list[int]:
        return self.bins.cells.tolist()

    def _lay_out(self) -> None:
        """Uniform tables of the sizes that the parents and the numbers of cells ask for."""
        levels, start, log_tables = self._levels(), 0, []
        self.stride.zero_()
        for node, parents in enumerate(self.parents):
            sizes = [levels[p] for p in (*parents, node)]
            if sum(map(math.log2, sizes)) > _CELLS:
                raise SpaceError(
                    f"the table of variable {node} given its {len(parents)} parents would have {math.prod(sizes):,} "
                    f"cells, and {2**_CELLS:,} are the most: give it fewer parents, or fewer bins"
                )
            self.offset[node] = start
            for i in range(len(parents)):
                self.stride[node, i] = math.prod(sizes[i + 1 :])
            start += math.prod(sizes)
            log_tables.append((math.prod(sizes), -math.log(levels[node])))
        count, value = torch.tensor([c for c, _ in log_tables]), torch.tensor([v for _, v in log_tables]).double()
        self.log_table = value.repeat_interleave(count).to(self.offset.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # How large the tables are is known from the data alone.
        if (saved := state_dict.get(f"{prefix}log_table")) is not None:
            self.log_table = self.log_table.new_zeros(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _shape(self, node: int) -> tuple[int, ...]:
        levels = self._levels()
        return tuple(levels[p] for p in (*self.parents[node], node))

    def table(self, node: int) -> Tensor:
        """p(x_node | parents): (cells of each parent, ascending, cells of the node), float64."""
        self._check_node(node)
        start, shape = int(self.offset[node]), self._shape(node)
        return self.log_table[start : start + math.prod(shape)].view(shape).exp()

    def set_table(self, node: int, table: Sequence[Any] | Tensor) -> None:
        """Give p(x_node | parents), the parents before the children; a column of a table then holds 0, 1, …

        Args:
            node: the variable.
            table: (cells of each parent, ascending, cells of the node); the last axis sums to 1.

        Raises:
            TacitError: the shape is not that, an entry is negative or a sum is not 1.
        """
        self._check_node(node)
        given, shape = torch.as_tensor(table, dtype=torch.float64), self._shape(node)
        free = isinstance(self.space, Vectors) and given.dim() == len(shape) and 1 <= given.shape[-1] <= _CATEGORIES
        if given.shape[:-1] != shape[:-1] or not (free or given.shape == shape):
            wanted = ", ".join(map(str, (*shape[:-1], "values" if isinstance(self.space, Vectors) else shape[-1])))
            raise TacitError(
                f"the table of variable {node} has shape {tuple(given.shape)}, not ({wanted}): give one axis for each "
                f"parent of {self.parents[node]}, whose tables come first, and one for itself"
            )
        if (given < 0).any() or not torch.allclose(given.sum(-1), torch.ones(()).double(), atol=1e-6):
            raise TacitError(f"the table of variable {node} is no distribution: let each of its last axis sum to 1")
        if given.shape != shape:
            kept = {other: self.table(other).log() for other in range(len(self.parent))}
            self.bins.cut_whole(node, given.shape[-1])
            self._lay_out()
            for other, log in kept.items():
                # The children's tables no longer fit: they stay uniform until they are given.
                if log.shape == self._shape(other):
                    self._put(other, log)
        self._put(node, given.log())

    def _put(self, node: int, log: Tensor) -> None:
        start = int(self.offset[node])
        self.log_table[start : start + log.numel()] = log.flatten().to(self.log_table)

    def values(self, node: int) -> Tensor:
        """What the cells of a variable stand for, (cells,): its whole numbers, or the middles of its intervals."""
        self._check_node(node)
        return self.bins.middle(node)

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_exactly(self, data: Dataset, seconds: float = math.inf) -> None:
        """Find the structure and count; cells of real columns are tried on held-out rows as long as there is time."""
        self._learn(data, self._best_cut(data, time.monotonic() + seconds) if isinstance(self.space, Vectors) else None)

    def _best_cut(self, data: Dataset, end: float) -> tuple[int, bool]:
        """How many cells real columns are best cut into, and whether by rank, by the likelihood of held-out rows."""
        order, held_out = torch.randperm(len(data)), len(data) // 5
        best, chosen = -math.inf, (self.candidates[0], True)
        if held_out == 0:
            return chosen
        train, valid = data.take(order[held_out:]), data.take(order[:held_out])
        for by_rank in (True, False):
            before = -math.inf
            for cells in self.candidates:
                # Where all columns are categories there is nothing to choose.
                if best > -math.inf and (time.monotonic() > end or bool(self.bins.whole.all())):
                    return chosen
                self._learn(train, (cells, by_rank))
                parts = [self.log_prob(valid[index].to(self.device)).double() for index in valid.ordered(_ROWS)]
                score = torch.cat(parts).mean().item()
                if score > best:
                    best, chosen = score, (cells, by_rank)
                # Beyond the best number of cells the likelihood only falls.
                if score <= before:
                    break
                before = score
        return chosen

    def _learn(self, data: Dataset, cut: tuple[int, bool] | None) -> None:
        """Cut real columns into so many cells, by rank or not; find the structure, count, smooth."""
        if cut is not None:
            self.bins.cut(data.observations(_CUT_ROWS), cut[0], by_rank=cut[1], categories=_CATEGORIES)
        if self.structure == "tree" and self.space.dimensions > 1:
            most = int(_WORK / (self.space.dimensions * max(self._levels())) ** 2)
            rows = data.observations(max(most, _FEWEST))
            found = torch.cat([self._cells(part.to(self.device)).to(torch.int16) for part in rows.split(_ROWS)])
            self.parent.copy_(spanning_tree(mutual_information(found, max(self._levels())))[:, None])
        self._lay_out()

        count = torch.zeros_like(self.log_table, dtype=torch.int64)
        for index in data.ordered(_ROWS):
            number = self._number(self._cells(data[index].to(self.device)))
            count += number.flatten().bincount(minlength=len(count))
        n = count.double()
        # The values of a variable given one state of its parents lie in a row: `row` is each cell's, `width` its cells.
        levels, ends = self.bins.cells, torch.cat((self.offset[1:], self.offset.new_tensor([len(n)])))
        in_row = levels.repeat_interleave((ends - self.offset) // levels)
        row = torch.arange(len(in_row), device=n.device).repeat_interleave(in_row)
        width = in_row[row].double()
        total = torch.zeros(len(in_row), dtype=n.dtype, device=n.device).index_add_(0, row, n)[row]

        def left_out(alpha: float) -> float:
            seen = n > 0
            return (n * ((n - 1 + alpha) / (total - 1 + alpha * width)).log())[seen].sum().item()

        alpha = self.smoothing or max(_SMOOTHINGS, key=left_out)
        self.log_table.copy_((n + alpha).log() - (total + alpha * width).log())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _cells(self, x: Tensor) -> Tensor:
        """The cell of each variable, (batch, nodes), int64."""
        return x.flatten(1).long() if self.space.levels else self.bins.index(x)

    def _observation(self, cells: Tensor) -> Tensor:
        """Observations, (batch, *shape), from the cells of their variables."""
        x = cells if self.space.levels else self.bins.draw(cells)
        return x.view(len(cells), *self.space.shape).to(self.space.torch_dtype)

    def _number(self, cells: Tensor) -> Tensor:
        """Where each variable's probability stands among all tables, (batch, nodes)."""
        number = self.offset + cells
        for parent, stride in zip(self.parent.T, self.stride.T, strict=True):
            number += cells[:, parent] * stride
        return number

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) in nats, (batch,): of images a log mass, of tables a density, which at categories is their mass.

        Raises:
            SpaceError: `x` is not of the space.
        """
        cells = self._cells(self.space.check_values(x))
        log_prob = self.log_table[self._number(cells)]
        if isinstance(self.space, Vectors):
            log_prob = log_prob + self.bins.log_density(x, cells)
        return log_prob.sum(1).float()

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws, (count, *shape), parents before children; temperature divides the logits of each variable.

        Raises:
            TacitError: `temperature` is not above zero.
        """
        cells = torch.zeros(count, len(self.parent), dtype=torch.int64, device=self.device)
        parents, levels = self.parents, self._levels()
        for node in _sorted(parents):
            start = self.offset[node] + (cells[:, parents[node]] * self.stride[node, : len(parents[node])]).sum(1)
            logits = self.log_table[start[:, None] + torch.arange(levels[node], device=self.device)]
            cells[:, node] = draw_cells(logits, temperature)[:, 0]
        return self._observation(cells)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Draw what is unknown of `x`, (batch, *shape), from p(unknown | known), exactly, whatever is known.

        Args:
            x: what is known, and anything elsewhere.
            known: (*shape) bool, True where `x` is given.
            temperature: divides the logits of each variable given the known and those drawn before it.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: the mask is of another shape, `temperature` is not above zero, what is known cannot be, or the
                network is too dense for an exact draw.
        """
        self.space.check_known(known)
        cells = self._cells(self.space.check_values(torch.where(known.to(x.device), x, 0)))
        unknown = (~known.flatten()).nonzero()[:, 0].tolist()
        every = set(range(len(self.parent)))
        order, rows = self._order(every, set(unknown), set(unknown))
        for part in cells.split(rows):
            left, trail = eliminate(self._factors(every, part, every.difference(unknown)), order)
            self._check_possible(product(left).log)
            for v, (variables, log) in reversed(trail):
                axis = variables.index(v)
                others = [u for u in variables if u != v]
                log = log.movedim(axis + 1, -1).expand(len(part), *log.shape[1 : axis + 1], *log.shape[axis + 2 :], -1)
                row = torch.arange(len(part), device=part.device)
                part[:, v] = draw_cells(log[(row, *part[:, others].unbind(1))], temperature)[:, 0]
        return torch.where(known.to(x.device), x, self._observation(cells))

    @torch.no_grad()
    def query(self, variables: int | tuple[int, ...], evidence: Mapping[int, float] | None = None) -> Tensor:
        """p(variables | evidence): one axis for each variable, in the order asked, float64; they sum to 1.

        Args:
            variables: one, or several for their joint distribution; `values(v)` says what the cells of v stand for.
            evidence: the value of each variable that is known, as the data has it.

        Raises:
            TacitError: a variable is unknown, both asked and given or asked twice, a value is none of its variable's,
                the evidence cannot be, or the network is too dense.
        """
        asked = (variables,) if isinstance(variables, int) else tuple(variables)
        evidence = dict(evidence or {})
        for v in (*asked, *evidence):
            self._check_node(v)
        if twice := [v for v in asked if v in evidence or asked.count(v) > 1]:
            raise TacitError(f"variable {twice[0]} is asked for twice, or given as evidence too: name it once")
        state = torch.zeros(1, len(self.parent), dtype=torch.float64, device=self.device)
        for v, value in evidence.items():
            self._check_value(v, value)
            state[0, v] = value
        parents = self.parents
        # What is neither asked, given nor an ancestor of such sums to 1.
        relevant, new = set(), [*asked, *evidence]
        while new:
            v = new.pop()
            if v not in relevant:
                relevant.add(v)
                new += parents[v]
        free = relevant.difference(evidence)
        order, _ = self._order(relevant, free, free.difference(asked))
        left, _ = eliminate(self._factors(relevant, self.bins.index(state), set(evidence)), order)
        found = product(left)
        log_z = found.log.flatten().logsumexp(0)
        self._check_possible(log_z)
        axes = [found.variables.index(v) for v in asked]
        return (found.log[0] - log_z).permute(axes).exp()

    def _factors(self, nodes: set[int], cells: Tensor, known: set[int]) -> list[Factor]:
        """The tables of `nodes`, (batch or 1, cells of each unknown variable), at what is `known` of `cells`."""
        factors, parents, levels = [], self.parents, self._levels()
        for node in sorted(nodes):
            scope = (*parents[node], node)
            start = int(self.offset[node])
            log = self.log_table[start : start + math.prod(levels[v] for v in scope)].view([levels[v] for v in scope])
            given, free = [v for v in scope if v in known], sorted(v for v in scope if v not in known)
            log = log.permute([scope.index(v) for v in (*given, *free)])
            factors.append(Factor(tuple(free), log[tuple(cells[:, given].unbind(1))] if given else log[None]))
        return factors

    def _order(self, nodes: set[int], free: set[int], away: set[int]) -> tuple[list[int], int]:
        """The order in which to sum out `away`, of what is `free` of `nodes`; and how many rows there is room for."""
        levels, parents = self._levels(), self.parents
        scopes = [free.intersection((*parents[v], v)) for v in nodes]
        order, sizes = elimination_order(scopes, away, levels)
        largest = max([*sizes, sum(math.log2(levels[v]) for v in free - away)])
        if largest > _CELLS:
            raise TacitError(
                f"this network is too dense: exact inference needs a table of 2^{largest:.0f} cells, and 2^{_CELLS} "
                f"are the most: give more evidence, ask for less, or give a graph of fewer edges"
            )
        return order, max(1, int(_BLOCK / (1 + sum(2**size for size in sizes))))

    # -- errors -------------------------------------------------------------------------------------------------------

    def _check_node(self, node: int) -> None:
        if not 0 <= node < len(self.parent):
            raise TacitError(f"there is no variable {node}: they are 0 to {len(self.parent) - 1}")

    def _check_value(self, node: int, value: float) -> None:
        low, high = (end[node].item() for end in self.bins.ends())
        if bool(self.bins.whole[node]) and not (value == round(value) and low < value < high):
            raise TacitError(
                f"variable {node} cannot be {value:g}: its values are {math.ceil(low)} to {math.floor(high)}"
            )

    @staticmethod
    def _check_possible(log_mass: Tensor) -> None:
        if (log_mass == -math.inf).any():
            raise TacitError("what is given has probability 0 under this network: give something that can be")


def _parsed(edges: tuple[str, ...], nodes: int) -> list[list[int]]:
    """The parents of each node, ascending, from edges as "0>2"."""
    parents: list[set[int]] = [set() for _ in range(nodes)]
    for edge in edges:
        ends = [end.strip() for end in str(edge).split(">")]
        if len(ends) != 2 or not all(end.isdecimal() for end in ends):
            raise TacitError(f"edges holds {edge!r}: write each as PARENT>CHILD, two numbers of columns, such as 0>2")
        parent, child = map(int, ends)
        if max(parent, child) >= nodes:
            raise TacitError(f"edges holds {edge!r}, but columns are 0 to {nodes - 1}: name one of these")
        parents[child].add(parent)
    found = [sorted(p) for p in parents]
    _sorted(found)
    return found


def _sorted(parents: list[list[int]]) -> list[int]:
    """All nodes, parents before children."""
    try:
        return list(graphlib.TopologicalSorter(dict(enumerate(parents))).static_order())
    except graphlib.CycleError as error:
        cycle = ">".join(map(str, error.args[1]))
        raise TacitError(f"edges closes the cycle {cycle}: leave one of its edges out") from None
