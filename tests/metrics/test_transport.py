"""The exact Wasserstein distance against scipy's assignment, closed forms, and its own claims."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from tacit.errors import DataError, TacitError
from tacit.metrics.transport import wasserstein


def test_equal_numbers_of_rows_are_an_assignment():
    real, fake = torch.randn(40, 3), torch.randn(40, 3) + 1
    cost = torch.cdist(real.double(), fake.double()).square().numpy()
    assert wasserstein(real, fake)[0] == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)


def test_unequal_numbers_of_rows_are_a_linear_program():
    real, fake = torch.randn(9, 2), torch.randn(6, 2) + 1
    cost = torch.cdist(real.double(), fake.double()).square().numpy()
    rows = np.kron(np.eye(9), np.ones((1, 6)))
    columns = np.kron(np.ones((1, 9)), np.eye(6))
    dues = np.concatenate([np.full(9, 1 / 9), np.full(6, 1 / 6)])
    best = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=dues)
    assert wasserstein(real, fake)[0] == pytest.approx(best.fun, rel=1e-6)
    assert wasserstein(real, real + torch.tensor([3.0, 4.0]))[0] == pytest.approx(25, rel=1e-6)


def test_the_error_is_that_of_repetition():
    shift = torch.tensor([2.0, 0.0])
    found = [wasserstein(torch.randn(80, 2), torch.randn(60, 2) + shift) for _ in range(60)]
    values, errors = torch.tensor(found).T
    assert 0.7 < errors.mean() / values.std() < 1.4


def test_what_cannot_be_transported_is_refused(monkeypatch):
    x = torch.randn(5, 2)
    with pytest.raises(DataError, match="1 real and 5 drawn"):
        wasserstein(x[:1], x)
    with pytest.raises(DataError, match="not finite"):
        wasserstein(x, x * math.nan)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(TacitError, match=r"pip install 'tacit\[transport\]'"):
        wasserstein(x, x)
