"""Divergence of n-gram frequencies against a count by dictionary."""

import math
from collections import Counter

import pytest
import torch

from tacit.metrics.ngrams import ngram_divergence


def by_dictionary(real, fake, n):
    counts = [
        Counter(tuple(row[i : i + n]) for row in x.tolist() for i in range(len(row) - n + 1)) for x in (real, fake)
    ]
    p, q = ({gram: c / sum(count.values()) for gram, c in count.items()} for count in counts)

    def against_middle(a):
        return sum(v * math.log2(2 * v / (p.get(gram, 0) + q.get(gram, 0))) for gram, v in a.items())

    return (against_middle(p) + against_middle(q)) / 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_equals_a_count_by_dictionary(n):
    real, fake = torch.randint(5, (20, 8)), torch.randint(3, (13, 8))
    assert ngram_divergence(real, fake, n) == pytest.approx(by_dictionary(real, fake, n))


def test_zero_for_the_same_and_one_for_disjoint_symbols():
    x = torch.randint(5, (20, 8))
    assert ngram_divergence(x, x) == pytest.approx(0, abs=1e-12)
    assert ngram_divergence(x, x + 5) == pytest.approx(1)


def test_sees_order_where_frequencies_agree():
    alternating, grouped = torch.tensor([[0, 1] * 8]), torch.tensor([[0] * 8 + [1] * 8])
    assert ngram_divergence(alternating, grouped, 1) == pytest.approx(0, abs=1e-12)
    assert ngram_divergence(alternating, grouped, 2) > 0.5
