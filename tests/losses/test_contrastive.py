import math

import pytest
import torch
from torch.nn import functional as F

from tacit.losses.contrastive import nt_xent


def double_loop(z: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term."""
    half, total = len(z) // 2, 0.0
    for i in range(len(z)):
        j = (i + half) % len(z)
        similarity = [math.exp(F.cosine_similarity(z[i], z[k], dim=0).item() / temperature) for k in range(len(z))]
        total -= math.log(similarity[j] / sum(s for k, s in enumerate(similarity) if k != i))
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_double_loop(temperature):
    z = torch.randn(14, 5, dtype=torch.float64)
    assert nt_xent(z, temperature)[0].item() == pytest.approx(double_loop(z, temperature), abs=1e-9)


def test_a_view_is_not_its_own_negative():
    # With two images, other views equal and images opposite: each row's candidates are one at cosine 1, two at −1.
    # A row that competed with itself would double the first term.
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    loss, found = nt_xent(z, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-4)), abs=1e-6)
    assert found == 1


def test_identical_views_leave_a_uniform_choice():
    z = torch.ones(12, 3)
    assert nt_xent(z, 0.1)[0].item() == pytest.approx(math.log(11), abs=1e-5)


def test_length_does_not_matter_and_order_within_the_batch_does_not():
    z = torch.randn(16, 4)
    loss = nt_xent(z, 0.3)[0]
    assert torch.allclose(loss, nt_xent(z * torch.rand(16, 1).add(0.1), 0.3)[0], atol=1e-5)
    order = torch.randperm(8)
    assert torch.allclose(loss, nt_xent(z[torch.cat((order, order + 8))], 0.3)[0], atol=1e-6)
    assert not torch.allclose(loss, nt_xent(z[torch.cat((order, torch.arange(8) + 8))], 0.3)[0], atol=1e-3)
