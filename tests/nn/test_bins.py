"""Cells of features: the density within them integrates to one, and what is drawn follows it."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit.nn.bins import Bins


def rows(count: int) -> Tensor:
    """A skewed feature, one with many zeros, one of categories, a constant one of each kind, and rounded numbers."""
    half = torch.rand(count) < 0.5
    return torch.stack(
        [
            torch.randn(count).exp() * 1000,
            torch.where(half, 0.0, torch.rand(count)),
            torch.randint(3, 7, (count,)).float(),
            torch.full((count,), 2.0),
            torch.full((count,), 0.37),
            (torch.randn(count) * 10).round() / 10,
        ],
        1,
    )


def cut(x: Tensor, how: str) -> Bins:
    bins = Bins(x.shape[1], 32)
    bins.cut(x, 12, by_rank=how == "by rank", categories=32 if how == "by rank" else 0)
    return bins


@pytest.mark.parametrize("how", ["equally", "by rank"])
def test_the_density_of_every_cell_integrates_to_one(how: str) -> None:
    bins = cut(rows(300), how)
    low, high = bins.ends()
    for feature in range(len(low)):
        edge = bins.edge[feature, : int(bins.cells[feature]) + 1]
        total = torch.zeros(len(edge) - 1, dtype=torch.float64)
        # Inside the density is even: one point a cell; outside a fine grid, twenty scales wide.
        inside = bins.middle(feature)
        step = bins.scale[feature] / 500
        reach = (torch.arange(10_000) + 0.5) * step
        for x, volume in (
            (inside, edge.diff()),
            (low[feature] - reach, step.expand(10_000)),
            (high[feature] + reach, step.expand(10_000)),
        ):
            every = torch.zeros(len(x), len(low), dtype=torch.float64)
            every[:, feature] = x
            index = bins.index(every)
            total.index_add_(0, index[:, feature], bins.log_density(every, index)[:, feature].exp() * volume)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["equally", "by rank"])
def test_draws_are_in_their_cells_and_beyond_the_ends_as_often_as_is_said(how: str) -> None:
    bins = cut(rows(300), how)
    index = (torch.rand(40_000, 6) * bins.cells).long()
    x = bins.draw(index)
    assert torch.equal(bins.index(x), index)
    assert torch.equal(x[:, bins.whole], x[:, bins.whole].round())
    low = bins.edge[:, 0]
    for feature in (0, 1):
        first = x[index[:, feature] == 0, feature]
        share = bins.beyond[feature, 0].item()
        expected = [share * len(first), (1 - share) * len(first)]
        outside = int((first < low[feature]).sum())
        assert scipy.stats.chisquare([outside, len(first) - outside], expected).pvalue > 1e-3
        reach = low[feature] - first[first < low[feature]]
        assert scipy.stats.kstest(reach, "expon", (0, bins.scale[feature].item())).pvalue > 1e-3
        inner = x[index[:, feature] == 1, feature]
        edge = bins.edge[feature]
        assert scipy.stats.kstest(inner, "uniform", (edge[1].item(), (edge[2] - edge[1]).item())).pvalue > 1e-3


def test_equal_cells_have_equal_widths_and_cells_by_rank_equal_numbers() -> None:
    x = rows(1200)
    bins = cut(x, "equally")
    torch.testing.assert_close(
        bins.edge[0, 1:13] - bins.edge[0, :12], ((x[:, 0].max() - x[:, 0].min()) / 12).expand(12).double()
    )
    bins = cut(x, "by rank")
    index = bins.index(x)
    assert index[:, 0].bincount().tolist() == [100] * 12
    # Half the rows are zero: they share a cell, and there are fewer cells.
    assert int(bins.cells[1]) < 12 and index[:, 1].bincount().max() >= (x[:, 1] == 0).sum()


def test_few_whole_numbers_are_categories() -> None:
    x = rows(300)
    bins = cut(x, "by rank")
    assert bins.whole.tolist() == [False, False, True, True, False, False]
    assert bins.middle(2).tolist() == [3, 4, 5, 6]
    index = bins.index(x)
    # One cell of width 1 each: the density at a number is its probability, but for what lies beyond.
    inner = (x[:, 2] > 3) & (x[:, 2] < 6)
    assert (bins.log_density(x, index)[inner, 2] == 0).all()
    assert bins.beyond[2].max().item() < (1 / 50) ** 2
    assert bins.middle(3).tolist() == [2]


def test_one_more_row_lies_beyond_with_the_chance_of_ranks() -> None:
    bins = Bins(1, 4)
    bins.cut(torch.arange(40.0)[:, None], 4, by_rank=False)
    assert bins.beyond.tolist() == [[1 / 11, 1 / 11]]
    # The end itself is inside; one row leaves a density, too.
    assert bins.index(torch.tensor([[39.0]])).item() == 3
    assert bins.log_density(torch.tensor([[39.0]]), torch.tensor([[3]])).item() == pytest.approx(
        math.log(10 / 11) - math.log(39 / 4)
    )
    alone = Bins(1, 4)
    alone.cut(torch.tensor([[0.3]]), 4, by_rank=True, categories=32)
    assert alone.log_density(torch.tensor([[0.3]]), torch.zeros(1, 1, dtype=torch.int64)).isfinite().all()


def test_categories_without_rows_are_closed() -> None:
    bins = Bins(3, 8)
    bins.cut_whole(slice(None), 5)
    bins.cut_whole(1, 2)
    assert bins.cells.tolist() == [5, 2, 5]
    assert bins.middle(1).tolist() == [0, 1]
    x = torch.tensor([[4.0, 1.0, 0.0], [5.0, 2.0, -1.0]])
    index = bins.index(x)
    assert torch.equal(bins.log_density(x, index)[0], torch.zeros(3, dtype=torch.float64))
    assert (bins.log_density(x, index)[1] == -math.inf).all()
    assert torch.equal(bins.draw(index)[0], x[0].double())
