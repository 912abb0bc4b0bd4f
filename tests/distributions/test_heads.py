import math

import pytest
import torch

from tacit.distributions import Bernoulli, Categorical, DiscretisedLogisticMixture, GaussianMixture
from tacit.distributions.discrete import softplus_sum

DISCRETE = [
    (Bernoulli(), 2),
    (Categorical(7), 7),
    (DiscretisedLogisticMixture(256), 256),
    (DiscretisedLogisticMixture(256, components=3), 256),
    (DiscretisedLogisticMixture(2, components=2), 2),
]


def parameters(head, *positions, batch=1, wide=1.0):
    torch.manual_seed(0)
    return torch.randn(batch, head.parameters, *positions) * wide


@pytest.mark.parametrize(("head", "levels"), DISCRETE)
@pytest.mark.parametrize("wide", [1.0, 10.0, 100.0])
def test_masses_sum_to_one(head, levels, wide):
    """Also for logistics far sharper or wider than a level, and far outside the range of the levels."""
    given = parameters(head, 3, 2, wide=wide).expand(levels, -1, -1, -1)
    x = torch.arange(levels).view(-1, 1, 1).expand(-1, 3, 2)
    assert torch.allclose(head.log_prob(given, x).double().exp().sum(0), torch.ones(3, 2).double(), atol=1e-5)


@pytest.mark.parametrize("components", [1, 3])
def test_gaussian_density_integrates_to_one(components):
    head = GaussianMixture(components)
    x = torch.linspace(-30, 30, 60_001)[:, None].expand(-1, 2)
    density = head.log_prob(parameters(head, 2).expand(len(x), -1, -1), x).double().exp()
    assert torch.allclose(density.sum(0) * 1e-3, torch.ones(2).double(), atol=1e-4)


def test_discretised_logistic_is_a_difference_of_distribution_functions():
    head = DiscretisedLogisticMixture(8, components=2)
    given, x = parameters(head, 1).double().expand(8, -1, -1), torch.arange(8)[:, None]
    location, log_scale, logits = given[0, :2, 0], given[0, 2:4, 0], given[0, 4:, 0]
    edges = torch.cat([torch.tensor([-math.inf]), (torch.arange(7) + 0.5) * 2 / 7 - 1, torch.tensor([math.inf])])
    below = torch.sigmoid((edges[:, None] - location) / log_scale.exp())
    mass = ((below[1:] - below[:-1]) * logits.softmax(0)).sum(1)
    assert torch.allclose(head.log_prob(given, x)[:, 0].exp(), mass)


def test_discretised_logistic_has_gradients_where_a_difference_would_vanish():
    given = torch.tensor([[[-0.9], [-6.0]]], requires_grad=True)
    log_prob = DiscretisedLogisticMixture(256).log_prob(given, torch.tensor([[200]]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert log_prob.item() < -200
    assert given.grad.abs().min() > 1


@pytest.mark.parametrize(("head", "levels"), [*DISCRETE[:2], (DiscretisedLogisticMixture(9, components=2), 9)])
def test_draws_follow_the_masses(head, levels):
    given = parameters(head, 2)
    drawn = head.sample(given.expand(20_000, -1, -1)).long()
    for position in range(2):
        one = given[:, :, position : position + 1].expand(levels, -1, -1)
        p = head.log_prob(one, torch.arange(levels)[:, None])[:, 0].exp()
        counts = torch.bincount(drawn[:, position], minlength=levels)
        often = p * 20_000 > 5
        statistic = ((counts - 20_000 * p) ** 2 / (20_000 * p))[often].sum()
        assert statistic < levels + 5 * (2 * levels) ** 0.5


def test_gaussian_draws_follow_the_density():
    head = GaussianMixture(3)
    given = parameters(head, 1)
    drawn = head.sample(given.expand(20_000, -1, -1))[:, 0]
    mean, scale, weight = given[0, :3, 0], given[0, 3:6, 0].exp(), given[0, 6:, 0].softmax(0)
    expected = (weight * mean).sum()
    deviation = ((weight * (scale**2 + mean**2)).sum() - expected**2).sqrt()
    assert (drawn.mean() - expected).abs() < 5 * deviation / 20_000**0.5
    assert drawn.std().item() == pytest.approx(deviation.item(), rel=0.05)


@pytest.mark.parametrize("head", [head for head, _ in DISCRETE] + [GaussianMixture(), GaussianMixture(4)])
def test_low_temperature_draws_stay_at_the_mode(head):
    given = parameters(head, 5, batch=4)
    mode = head.mode(given)
    drawn = torch.stack([head.sample(given, temperature=1e-4).to(mode.dtype) for _ in range(20)])
    # A logistic of a location between two levels may still round either way.
    assert (drawn - mode).abs().max() <= (1 if isinstance(head, DiscretisedLogisticMixture) else 0.01)


@pytest.mark.parametrize("components", [1, 5])
def test_marginal_of_levels_is_better_than_uniform(components):
    torch.manual_seed(0)
    head = DiscretisedLogisticMixture(256, components)
    x = (torch.randn(1000, 4) * torch.tensor([5.0, 20, 40, 1e-3]) + torch.tensor([30.0, 128, 200, 0])).round()
    x = x.clamp(0, 255)
    given = head.marginal(x)
    assert given.shape == (head.parameters, 4)
    mean = head.log_prob(given.expand(1000, -1, -1), x).mean(0)
    best = -(torch.tensor([5.0, 20, 40]) * (2 * math.pi * math.e) ** 0.5).log()
    assert (mean[:3] > best - 0.3).all()
    assert mean[3] > -0.5


def test_marginals_of_symbols_and_bits_are_their_frequencies():
    torch.manual_seed(0)
    x = torch.randint(0, 3, (5000, 4)).clamp(max=1) * 2
    frequencies = torch.bincount(x.flatten(), minlength=3) / x.numel()
    assert torch.allclose(Categorical(3).marginal(x).softmax(0)[:, 0], frequencies, atol=1e-3)
    bits = (torch.rand(5000, 2) < torch.tensor([0.1, 0.8])).to(torch.uint8)
    assert torch.allclose(torch.sigmoid(Bernoulli().marginal(bits))[0], bits.float().mean(0), atol=1e-3)


@pytest.mark.parametrize("entries", [1, 16, 50])
def test_softplus_sum_is_a_sum_of_softplus(entries):
    torch.manual_seed(0)
    logits = (torch.randn(6, 5, entries) * 40).requires_grad_()
    expected = torch.nn.functional.softplus(logits.double()).sum(-1)
    for given in (logits, logits.detach()):
        assert torch.allclose(softplus_sum(given).double(), expected, atol=1e-4)
    assert torch.allclose(torch.autograd.grad(softplus_sum(logits).sum(), logits)[0], torch.sigmoid(logits), atol=1e-5)
