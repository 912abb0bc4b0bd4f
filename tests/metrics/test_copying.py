"""Data-copying against scipy and scikit-learn, and on models that copy, generalise and miss."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from tacit.errors import DataError
from tacit.metrics.copying import copied_windows, copies, data_copying, nearest


def test_nearest_rows_are_scikit_learns():
    train, x = torch.randn(300, 5), torch.randn(70, 5)
    distance, which = nearest(train, x)
    peer_distance, peer_which = NearestNeighbors(n_neighbors=1).fit(train.numpy()).kneighbors(x.numpy())
    assert np.array_equal(which, peer_which[:, 0])
    assert np.allclose(distance, peer_distance[:, 0], atol=1e-6)
    assert nearest(100 + train, 100 + train)[0].abs().max() == 0


def test_the_rank_statistic_is_scipys():
    train, held_out, drawn = torch.randn(400, 3), torch.randn(90, 3), 1.1 * torch.randn(60, 3)
    found = data_copying(train, held_out, drawn, cells=1)
    real, fake = nearest(train, held_out)[0].numpy(), nearest(train, drawn)[0].numpy()
    u = mannwhitneyu(fake, real).statistic
    n, m = len(real), len(fake)
    assert found.nearer == pytest.approx(1 - u / (n * m), abs=1e-9)
    assert found.score == pytest.approx((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12), abs=1e-9)
    assert found.nearer_error == pytest.approx(np.sqrt((n + m + 1) / 12 / (n * m)))
    assert found.cells == 1 and found.score_error == 1


def halves(rows: int) -> Tensor:
    """Two far regions, half of the rows in each."""
    return torch.randn(rows, 2) + torch.where(torch.arange(rows) % 2 == 0, 0.0, 30.0)[:, None]


def test_fresh_rows_are_fair_and_scores_have_the_spread_they_claim():
    scores = []
    for seed in range(40):
        found = data_copying(halves(300), halves(200), halves(200), cells=2, seed=seed)
        assert found.cells == 2
        scores.append(found.score / found.score_error)
    assert abs(np.mean(scores)) < 4 / np.sqrt(40)
    assert 0.6 < np.std(scores) < 1.5


def test_copies_in_one_region_are_seen_though_the_other_makes_up_for_them():
    train, held_out = halves(400), halves(400)
    copied = train[::2][:200] + 0.01 * torch.randn(200, 2)
    far = 30 + 3 * torch.randn(200, 2)
    found = data_copying(train, held_out, torch.cat([copied, far]), cells=2)
    assert data_copying(train, held_out, train).nearer == 1
    assert data_copying(train, held_out, train).score < -10
    assert data_copying(train, held_out, 5 * halves(400)).score > 3
    assert data_copying(train, held_out, copied, cells=2).score < -10 < found.score


def test_cells_too_small_to_count_are_left_out():
    train = halves(100)
    only = halves(100)[::2]
    assert data_copying(train, halves(100), only, cells=2).cells == 1
    assert data_copying(train, halves(10), only, cells=2).cells == 1
    assert data_copying(torch.zeros(50, 2), torch.zeros(40, 2), torch.zeros(40, 2)).nearer == 0.5
    with pytest.raises(DataError, match="0 held-out"):
        data_copying(train, train[:0], only)


def test_exact_copies_are_counted():
    train = torch.randint(4, (200, 1, 3, 3), dtype=torch.uint8)
    x = torch.cat([train[5:8], torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)])
    assert copies(train.split(64), x).tolist() == [True] * 3 + [False] * 2
    stream = torch.arange(100) % 7
    windows = torch.stack([stream[3:9], stream[90:96], torch.zeros(6, dtype=torch.long)])
    assert copied_windows(stream, windows).tolist() == [True, True, False]
