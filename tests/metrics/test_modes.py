"""Classes drawn against scipy, and how their divergence depends on the number of draws."""

import math

import pytest
import torch
from scipy.stats import entropy

from tacit.errors import DataError
from tacit.metrics.modes import modes


def test_the_divergence_is_scipys():
    real, drawn = torch.randint(5, (400,)), torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    found = modes(real, drawn, 5)
    p, q = drawn.bincount(minlength=5).numpy(), real.bincount(minlength=5).numpy()
    assert (found.reached, found.classes) == (3, 5)
    assert found.real == pytest.approx(q / q.sum())
    assert found.drawn == pytest.approx(p / p.sum())
    # The jackknife over ten groups, from scipy's own values.
    kept = [entropy(drawn[torch.arange(100) % 10 != g].bincount(minlength=5).numpy(), q) for g in range(10)]
    assert found.divergence == pytest.approx(10 * entropy(p, q) - 9 * sum(kept) / 10, abs=1e-9)


def test_the_bias_of_few_draws_is_taken_off():
    real = torch.arange(8).repeat(1000)
    found = [modes(real, torch.randint(8, (100,)), 8) for _ in range(200)]
    values = torch.tensor([f.divergence for f in found])
    plain = torch.tensor([entropy(f.drawn, f.real) for f in found])
    assert plain.mean() == pytest.approx(7 / 200, rel=0.2)
    assert abs(values.mean()) < 0.2 * plain.mean()
    assert 0.4 < torch.tensor([f.error for f in found]).mean() / values.std() < 2.5


def test_classes_that_the_data_lacks():
    found = modes(torch.tensor([0, 0, 1]), torch.tensor([0, 2]), 3)
    assert (found.reached, found.classes) == (1, 2)
    assert not math.isfinite(found.divergence)
    with pytest.raises(DataError, match="0 drawn"):
        modes(torch.tensor([0]), torch.tensor([], dtype=torch.long), 2)
