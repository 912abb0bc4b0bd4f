"""Float64 of code written for float32: the same noise, the same answer to rounding, and no float32 on the way."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.metrics.double import float64, in_float64


class Noisy(nn.Module):
    """Everything that would fall back to float32, or draw other numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def log_prob(self, x: Tensor) -> Tensor:
        h = self.layer(x.float()) + torch.zeros(len(x), 4) + torch.full((4,), 0.1)
        h = h + torch.randn(len(x), 4) + torch.rand_like(h) + torch.empty(len(x), 4).normal_(0, 2).uniform_()
        h = h + torch.bernoulli(torch.full((len(x), 4), 0.5)) + torch.randn(len(x), 4, generator=torch.Generator())
        attended = F.scaled_dot_product_attention(h[None, None], h[None, None], h[None, None])[0, 0]
        return (attended.sum(1) + torch.normal(0.0, 1.0, (len(x),)) * 1e-3).to(torch.float32)


def test_the_noise_is_the_same_and_only_rounding_differs():
    model, x = Noisy(), torch.randint(0, 9, (50, 4))
    torch.manual_seed(3)
    narrow = model.log_prob(x)
    torch.manual_seed(3)
    wide = in_float64(model, "log_prob", x)
    assert wide.dtype == torch.float64
    assert 0 < (narrow - wide).abs().max() < 1e-4
    assert not torch.equal(wide, wide.float().double())
    assert model.layer.weight.dtype == torch.float32 == torch.get_default_dtype()
    after = torch.rand(1)
    torch.manual_seed(3)
    model.log_prob(x)
    assert torch.equal(after, torch.rand(1)), "as much noise was drawn"


def test_rounding_is_what_is_taken_off():
    x = torch.full((1000,), 0.1)
    with float64():
        wide = x.double().cumsum(0)[-1]
    assert wide == pytest.approx(1000 * float(torch.tensor(0.1)), rel=1e-12)
    assert abs(float(x.cumsum(0)[-1]) - float(wide)) > 1e-6


def test_the_default_comes_back_after_an_error():
    with pytest.raises(RuntimeError, match="lost"), float64():
        raise RuntimeError("lost")
    assert torch.get_default_dtype() == torch.float32
