"""How a decoder's output becomes a likelihood: masses that sum to 1, mixtures, several z, the way back to the data."""

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.models.latent._likelihood import Likelihood
from tacit.spaces import Images, Vectors

SPACES = {
    "binary": (Images(1, 3, 2, levels=2), {}),
    "binary logistic": (Images(1, 3, 2, levels=2), {"decoder": "logistic"}),
    "levels": (Images(2, 2, 2, levels=5), {}),
    "levels, mixture": (Images(2, 2, 2, levels=5), {"components": 3}),
    "table": (Vectors(3), {}),
    "table, mixture": (Vectors(3), {"components": 2}),
}


@pytest.fixture(params=SPACES)
def likelihood(request):
    space, arguments = SPACES[request.param]
    torch.manual_seed(0)
    found = Likelihood(space, **arguments)
    x = torch.randn(50, 3) * 3 + 5 if space.levels is None else torch.randint(space.levels, (50, *space.shape))
    found.adapt(Dataset(space, x.to(space.torch_dtype)))
    return found.requires_grad_(False)


def output(likelihood, rows):
    return torch.randn(rows, likelihood.outputs * likelihood.space.dimensions)


def test_masses_of_an_entry_sum_to_one_and_densities_integrate_to_one(likelihood):
    space, given = likelihood.space, output(likelihood, 1)
    if space.levels is not None:
        x = torch.arange(space.levels).view(-1, 1, 1, 1).expand(-1, *space.shape)
        each = likelihood.head.log_prob(likelihood.given(given.expand(len(x), -1)), x)
        torch.testing.assert_close(each.exp().sum(0), torch.ones(space.shape))
    else:
        x = torch.linspace(-60, 70, 40_001)[:, None].expand(-1, 3)
        entries, log_det = likelihood.entries(x)
        each = likelihood.head.log_prob(likelihood.given(given.expand(len(x), -1)), entries)
        width = 130 / 40_000
        total = each.double().exp().sum(0).log().sum() + log_det[0] + 3 * torch.tensor(width).log()
        assert total.item() == pytest.approx(0, abs=1e-3)


def test_several_latents_are_a_loop_over_them(likelihood):
    space = likelihood.space
    x = torch.randn(4, 3) if space.levels is None else torch.randint(space.levels, (4, *space.shape))
    entries, _ = likelihood.entries(x)
    given = output(likelihood, 4 * 5)
    rows = [[likelihood.log_prob(given[i * 5 + k][None], entries[i : i + 1])[0] for k in range(5)] for i in range(4)]
    torch.testing.assert_close(likelihood.log_probs(given, entries), torch.tensor(rows), rtol=1e-5, atol=1e-4)


def test_draws_follow_it_and_come_as_the_data(likelihood):
    space, given = likelihood.space, output(likelihood, 1)
    drawn = likelihood.sample(given.expand(20_000, -1))
    assert drawn.dtype == space.torch_dtype and drawn.shape == (20_000, *space.shape)
    if space.levels is not None:
        frequency = torch.stack([(drawn == level).float().mean(0) for level in range(space.levels)])
        x = torch.arange(space.levels).view(-1, 1, 1, 1).expand(-1, *space.shape)
        each = likelihood.head.log_prob(likelihood.given(given.expand(len(x), -1)), x).exp()
        assert (frequency - each).abs().max() < 0.02
    else:
        # E[log p] of draws is that of the entries' own densities, integrated.
        x = torch.linspace(-60, 70, 20_001)[:, None].expand(-1, 3)
        each = likelihood.head.log_prob(likelihood.given(given.expand(len(x), -1)), likelihood.entries(x)[0]).double()
        p = each.exp() / each.exp().sum(0)
        found = likelihood.log_prob(given.expand(20_000, -1), likelihood.entries(drawn)[0]).mean()
        assert found.item() == pytest.approx((p * each).sum().item(), abs=0.05)


def test_cold_draws_keep_to_the_mode(likelihood):
    given = output(likelihood, 1)
    drawn = [likelihood.sample(given.expand(2000, -1), t).float() for t in (1e-3, 1.0)]
    assert drawn[0].std(0).mean() < 0.1 * drawn[1].std(0).mean()
    agrees = (drawn[0] - likelihood.mode(given)).abs() < 0.05
    assert agrees.float().mean() > 0.95


def test_a_mixture_of_equals_is_the_single_one():
    space = Images(1, 2, 3, levels=7)
    single, mixture = Likelihood(space), Likelihood(space, components=3)
    place, x = torch.randn(4, 1, *space.shape), torch.randint(7, (4, *space.shape))
    equal = torch.cat([place.expand(-1, 3, -1, -1, -1), torch.zeros(4, 3, *space.shape), torch.randn(4, 3, 1, 2, 3)], 1)
    torch.testing.assert_close(mixture.log_prob(equal, x), single.log_prob(place, x))


def test_outputs_of_any_shape_and_precision_mean_the_same():
    likelihood = Likelihood(Images(2, 3, 4), components=2)
    given, x = torch.randn(5, 6 * 24), torch.randint(256, (5, 2, 3, 4))
    assert torch.equal(likelihood.log_prob(given, x), likelihood.log_prob(given.view(5, 12, 3, 4), x))
    assert likelihood.log_prob(given.bfloat16(), x).dtype == torch.float32


def test_refuses_what_does_not_fit():
    with pytest.raises(TacitError, match="components is 2, but a mixture of Bernoullis"):
        Likelihood(Images(1, 2, 2, levels=2), components=2)
    with pytest.raises(TacitError, match=r"decoder is 'gaussian', no likelihood of .*: give 'logistic'"):
        Likelihood(Images(1, 2, 2), "gaussian")
    with pytest.raises(TacitError, match="components is 0"):
        Likelihood(Vectors(2), components=0)
    with pytest.raises(SpaceError, match="do not fit"):
        Likelihood(Vectors(2)).entries(torch.zeros(3, 4))
