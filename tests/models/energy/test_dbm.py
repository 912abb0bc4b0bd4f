"""The deep Boltzmann machine against enumeration: masses, log Z, the bound, gradients and Gibbs samples."""

import itertools

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.energy.dbm import DBM
from tacit.nn import noise
from tacit.spaces import Images

SMALL = {"hidden": (12, 10), "mean_field": 3, "chains": 20, "burn_in": 5, "ais_chains": 5, "ais_steps": 10}
SPACE = Images(1, 2, 2, 2)


def roughened(scale: float = 0.8, **arguments) -> DBM:
    """A model with weights far from zero, so that nothing cancels by luck."""
    torch.manual_seed(0)
    model = DBM(SPACE, **{"hidden": (3, 2), **arguments}).eval()
    model.centre.copy_(torch.rand(4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return model


def every(units: int) -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=units)), dtype=torch.uint8)


def images() -> Tensor:
    return every(4).view(-1, 1, 2, 2)


def joint(model: DBM) -> Tensor:
    """−E of every image and every hidden state, straight from the equation: (16, hidden states), float64."""
    weights, biases = ([p.detach().double() for p in part] for part in (model.weights, model.biases))
    found = []
    for v in every(4).double():
        row = []
        for h in every(sum(model.sizes[1:])).double():
            s = [v, *h.split(model.sizes[1:])]
            offsets = [model.centre.double(), *[0.5] * (len(s) - 1)]
            total = sum(b @ layer for b, layer in zip(biases, s, strict=True))
            for i, w in enumerate(weights):
                total = total + (s[i] - offsets[i]) @ w @ (s[i + 1] - offsets[i + 1])
            row.append(total)
        found.append(torch.stack(row))
    return torch.stack(found)


@pytest.mark.parametrize("hidden", [(3, 2), (2, 5), (2, 2, 2)])
def test_log_z_sums_over_all_states(hidden) -> None:
    model = roughened(hidden=hidden)
    assert model._enumerates() == ("even" if sum(hidden[::2]) > 4 + sum(hidden[1::2]) else "odd")
    torch.testing.assert_close(model.log_partition().detach(), joint(model).flatten().logsumexp(0), rtol=0, atol=1e-4)


def test_the_even_layers_can_be_enumerated_instead() -> None:
    model = roughened(hidden=(9, 1))
    assert model._enumerates() == "even"
    torch.testing.assert_close(model.log_partition().detach(), joint(model).flatten().logsumexp(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden", [(3, 2), (2, 2, 2)])
def test_the_bound_lies_below_the_exact_value_and_reaches_it_without_upper_layers(hidden) -> None:
    model = roughened(hidden=hidden, mean_field=50)
    assert model.density == "bound"
    exact = joint(model).logsumexp(1) - joint(model).flatten().logsumexp(0)
    gap = exact - model.log_prob(images()).detach().double()
    assert (gap > -1e-4).all() and gap.max() > 1e-3
    with torch.no_grad():
        for weight in list(model.weights)[1:]:
            weight.zero_()
    exact = joint(model).logsumexp(1) - joint(model).flatten().logsumexp(0)
    torch.testing.assert_close(model.log_prob(images()).detach().double(), exact, rtol=0, atol=1e-4)


def test_more_updates_of_the_mean_field_do_not_loosen_the_bound() -> None:
    model = roughened(1.2)
    bounds = []
    for updates in (1, 2, 5, 20):
        model.mean_field = updates
        bounds.append(model.log_prob(images()).detach())
    assert all((after > before - 1e-5).all() for before, after in itertools.pairwise(bounds))


@pytest.mark.parametrize("hidden", [(8, 5), (6, 4, 3)])
def test_annealed_log_z_is_within_three_standard_errors(hidden) -> None:
    model = roughened(0.6, hidden=hidden, ais_steps=300, ais_chains=200)
    model.base_rate.copy_(torch.randn(4))
    estimate, error = model.annealed_log_z()
    assert 0 < error < 0.2
    assert abs(estimate - model.enumerated_log_z()) < 3 * error


def test_the_chains_gradient_is_the_bounds_in_the_limit() -> None:
    model = roughened(0.5, gibbs_steps=30, chains=20_000).train()
    x = torch.tensor([1, 0, 0, 1], dtype=torch.uint8).view(1, 1, 2, 2)
    parameters = list(model.parameters())
    got = torch.autograd.grad(model.loss(Batch(x, torch.arange(1))).total, parameters)
    exact = torch.autograd.grad(-model.log_prob(x).mean(), parameters)
    for g, e in zip(got, exact, strict=True):
        assert e.abs().max() > 0.02
        torch.testing.assert_close(g, e, rtol=0, atol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_enumerated_distribution(temperature: float) -> None:
    model = roughened(0.5, burn_in=40)
    p = (joint(model) / temperature).flatten().softmax(0).view(16, -1).sum(1)
    drawn = model.sample(8000, temperature=temperature)
    assert drawn.dtype == torch.uint8
    count = (drawn.flatten(1).long() @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
    assert scipy.stats.chisquare(count.numpy(), 8000 * p.numpy()).pvalue > 0.001


def test_what_is_known_is_held_and_the_rest_follows_the_conditional() -> None:
    model = roughened(0.6, burn_in=40)
    known = torch.tensor([[[True, False], [True, False]]])
    given = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    agrees = (images() == given)[:, known].all(1)
    p = joint(model).logsumexp(1)[agrees].softmax(0)
    drawn = model.complete(given.expand(8000, -1, -1, -1), known)
    assert (drawn[:, known] == given[:, known]).all()
    count = torch.stack([(drawn == state).flatten(1).all(1).sum() for state in images()[agrees]])
    assert scipy.stats.chisquare(count.numpy(), 8000 * p.numpy()).pvalue > 0.001


def test_learning_raises_the_bound() -> None:
    torch.manual_seed(0)
    # Pixels in two pairs of copies: 2 log 2 nats; 4 log 2 for pixels by themselves.
    x = torch.randint(2, (500, 1, 2, 1)).expand(-1, -1, -1, 2).to(torch.uint8).contiguous()
    data = Dataset(SPACE, x)
    model = DBM(SPACE, hidden=(4, 3)).train()
    model.adapt(data)
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(300):
        optimiser.zero_grad()
        model.loss(data.batch(torch.randint(500, (50,)))).total.backward()
        optimiser.step()
    assert model.eval().log_prob(x).mean() > -1.8


def test_two_processes_keep_the_same_chains() -> None:
    model = roughened().train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chains = []
    for rank in range(2):
        model.load_state_dict(start)
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            model.loss(Batch(images()[:4], torch.arange(4)))
        chains.append(model.chains.clone())
    assert torch.equal(*chains) and not torch.equal(chains[0], start["chains"])


def test_clear_errors() -> None:
    with pytest.raises(SpaceError, match="dbm takes binary images, not 256 levels"):
        DBM(Images(1, 4, 4))
    with pytest.raises(TacitError, match=r"hidden is \(\): give at least 1"):
        DBM(SPACE, hidden=())
