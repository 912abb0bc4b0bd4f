"""The coupled mixture of logistics: a joint mass of all colours, the paper's formula, and draws that follow it."""

import itertools
import math

import pytest
import scipy.stats
import torch

from tacit.distributions import CoupledLogisticMixture, DiscretisedLogisticMixture

HEADS = [
    CoupledLogisticMixture(levels, channels, components)
    for levels, channels, components in [(9, 1, 2), (5, 2, 1), (2, 3, 3), (4, 3, 2), (3, 4, 2)]
]


def parameters(head, *positions, batch=1, wide=1.0):
    torch.manual_seed(0)
    return torch.randn(batch, head.parameters, *positions) * wide


def pixels(head):
    """Every pixel there is, (pixels, channels)."""
    return torch.tensor(list(itertools.product(range(head.levels), repeat=head.channels)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("wide", [1.0, 10.0, 100.0])
def test_masses_of_all_pixels_sum_to_one(head, wide):
    x = pixels(head)[:, :, None, None].expand(-1, -1, 3, 2)
    mass = head.log_prob(parameters(head, 3, 2, wide=wide).expand(len(x), -1, -1, -1), x).double().exp()
    assert mass.shape == (len(x), 3, 2)
    assert torch.allclose(mass.sum(0), torch.ones(3, 2).double(), atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_mass_is_the_papers_formula(head):
    """Component by component, colour by colour, as a difference of distribution functions."""
    given, k = parameters(head, 1)[0, :, 0].double(), head.components
    pairs = head.channels * (head.channels - 1) // 2
    sizes = [head.channels * k, head.channels * k, pairs * k]
    location, log_scale, coefficient, logits = given.split([*sizes, len(given) - sum(sizes)])
    half = 1 / (head.levels - 1)
    for x in pixels(head).tolist():
        place = [2 * half * level - 1 for level in x]
        mass = 0.0
        for i in range(k):
            weight = 1.0 if k == 1 else logits.softmax(0)[i].item()
            pair = 0
            for c in range(head.channels):
                centre = location[c * k + i].item()
                for j in range(c):
                    centre += math.tanh(coefficient[pair * k + i]) * place[j]
                    pair += 1
                scale = math.exp(log_scale[c * k + i])
                above = 1.0 if x[c] == head.levels - 1 else 1 / (1 + math.exp((centre - place[c] - half) / scale))
                below = 0.0 if x[c] == 0 else 1 / (1 + math.exp((centre - place[c] + half) / scale))
                weight *= above - below
            mass += weight
        found = head.log_prob(given[None, :, None], torch.tensor(x)[None, :, None]).exp().item()
        assert found == pytest.approx(mass, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("components", [1, 4])
def test_of_one_channel_it_is_the_plain_mixture(components):
    plain, head = DiscretisedLogisticMixture(256, components), CoupledLogisticMixture(256, 1, components)
    assert (head.parameters, head.locations) == (plain.parameters, plain.locations)
    given, x = parameters(plain, 5, batch=64), torch.randint(0, 256, (64, 5))
    assert torch.equal(head.log_prob(given, x[:, None]), plain.log_prob(given, x))
    assert torch.equal(head.mode(given)[:, 0], plain.mode(given))
    assert torch.equal(head.marginal(x[:, None].float()), plain.marginal(x.float()))


@pytest.mark.parametrize("head", HEADS)
def test_draws_follow_the_masses(head):
    given, x = parameters(head, 2), pixels(head)
    drawn = head.sample(given.expand(20_000, -1, -1)).long()
    assert drawn.shape == (20_000, head.channels, 2)
    base = torch.tensor([head.levels**i for i in reversed(range(head.channels))])
    for position in range(2):
        one = given[:, :, position : position + 1].expand(len(x), -1, -1)
        expected = 20_000 * head.log_prob(one, x[:, :, None])[:, 0].double().exp()
        observed = torch.bincount((drawn[:, :, position] * base).sum(1), minlength=len(x)).double()
        often = expected >= 5
        cells = [torch.cat([counts[often], counts[~often].sum()[None]]) for counts in (observed, expected)]
        observed, expected = (counts[: -1 if often.all() else None] for counts in cells)
        assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_low_temperature_draws_stay_at_the_mode(head):
    given = parameters(head, 5, batch=4)
    drawn = torch.stack([head.sample(given, temperature=1e-4) for _ in range(20)])
    # A logistic of a location between two levels may still round either way, and move those that follow.
    assert (drawn == head.mode(given)).float().mean() > 0.95


def test_colours_that_move_together_are_learnt_by_coupling():
    torch.manual_seed(0)
    grey = torch.randint(20, 230, (2000, 1))
    x = (grey + torch.tensor([0, 10, -15]) + torch.randint(-2, 3, (2000, 3))).clamp(0, 255)
    head = CoupledLogisticMixture(256, 3, 1)
    given = head.marginal(x).requires_grad_()
    optimiser = torch.optim.Adam([given], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        (-head.log_prob(given.expand(2000, -1), x).mean()).backward()
        optimiser.step()
    alone = DiscretisedLogisticMixture(256, 1)
    apart = alone.log_prob(alone.marginal(x).expand(2000, -1, -1), x).sum(1).mean()
    assert head.log_prob(given.expand(2000, -1), x).mean() > apart + 3
