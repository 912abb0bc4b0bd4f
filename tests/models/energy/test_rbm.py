"""The RBM against enumeration: free energy, log Z, gradients, Gibbs samples, and the mass on grey levels."""

import itertools
import math

import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.energy.rbm import RBM
from tacit.nn import noise
from tacit.spaces import Images, Vectors

SMALL = {"hidden": 12, "chains": 20, "burn_in": 5, "bins": 6, "ais_chains": 5, "ais_steps": 10}


def roughened(model: RBM, scale: float = 0.7) -> RBM:
    """The model with weights far from zero, so that nothing cancels by luck."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return model


def every_image(space: Images) -> Tensor:
    """All images of a tiny space, (levels ** dimensions, *shape)."""
    states = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(states), dtype=torch.uint8).view(-1, *space.shape)


def digits(levels: int = 17) -> Dataset:
    """scikit-learn's digit scans; two levels cut them at half."""
    x = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    return Dataset(Images(1, 8, 8, levels), (x > 7).to(torch.uint8) if levels == 2 else x)


def trained(model: RBM, data: Dataset, steps: int, rate: float = 0.1) -> RBM:
    """Plain gradient descent with a linearly decaying rate."""
    model.train()
    model.adapt(data)
    optimiser = torch.optim.SGD(model.parameters())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        model.loss(data.batch(torch.randint(len(data), (100,)))).total.backward()
        optimiser.step()
    return model.eval()


def energies(model: RBM, k: Tensor, h: Tensor) -> Tensor:
    """−E(v, h) of one visible and one hidden state, straight from the equation, in float64."""
    weight, bias, c = (p.double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    t = model.value[k].double() - model.centre.double()
    beta = torch.stack([bias[i, v - 1] if v else bias.new_zeros(()) for i, v in enumerate(k.tolist())])
    h = h.double() - 0.5
    return beta.sum() + c @ h + t @ weight @ h


@pytest.mark.parametrize("levels", [2, 3])
def test_free_energy_sums_over_the_hidden_units(levels: int) -> None:
    model = roughened(RBM(Images(1, 2, 2, levels), hidden=3))
    x = every_image(model.space)
    hidden = [torch.tensor(h) for h in itertools.product((0.0, 1.0), repeat=3)]
    brute = torch.stack(
        [-torch.stack([energies(model, v.flatten().long(), h) for h in hidden]).logsumexp(0) for v in x]
    )
    torch.testing.assert_close(model.free_energy(x).double(), brute, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "hidden", "layer"),
    [(Images(1, 3, 3, 2), 4, "hidden"), (Images(1, 2, 2, 2), 9, "visible"), (Images(3, 1, 1, 5), 9, "visible")],
)
def test_masses_of_all_images_sum_to_one(space: Images, hidden: int, layer: str) -> None:
    model = roughened(RBM(space, hidden=hidden)).eval()
    assert model._enumerates() == layer
    assert model.density == "exact"
    assert model.log_prob(every_image(space)).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_grey_levels_in_bins_have_a_mass_that_sums_to_one() -> None:
    space = Images(1, 1, 2, 40)
    x = (40 * torch.rand(500, 1, 1, 2) ** 3).to(torch.uint8)
    model = RBM(space, hidden=4, bins=6)
    model.adapt(Dataset(space, x))
    assert model.bin_of.bincount().min() >= 1
    assert model.bin_of.diff().min() >= 0
    roughened(model).eval()
    assert model.log_prob(every_image(space)).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_without_hidden_influence_the_grey_model_is_the_pixels_histogram() -> None:
    data = digits()
    model = RBM(data.space, hidden=5)
    model.adapt(data)
    with torch.no_grad():
        model.weight.zero_()
    x = data.x[:50]
    smoothed = torch.stack([(data.x == level).flatten(1).double().sum(0) for level in range(17)], 1)
    pooled = smoothed.sum(0) + 1
    smoothed += 17 * pooled / pooled.sum()
    log_rate = (smoothed / smoothed.sum(1, keepdim=True)).log()
    expected = log_rate[torch.arange(64), x.flatten(1).long()].sum(1)
    torch.testing.assert_close(model.eval().log_prob(x).double(), expected, rtol=1e-4, atol=1e-3)


def test_annealed_log_z_agrees_with_enumeration_on_real_digits() -> None:
    model = trained(RBM(digits(2).space, hidden=12, ais_steps=600), digits(2), 500)
    assert model.weight.abs().mean() > 0.1
    exact = model.log_partition().item()
    estimate, error = model.annealed_log_z()
    assert estimate.item() == pytest.approx(exact, abs=0.1)
    assert 0 < error.item() < 0.1


def test_annealed_log_z_agrees_with_enumeration_on_grey_digits() -> None:
    model = trained(RBM(digits().space, hidden=8, ais_steps=200, bins=5), digits(), 200)
    estimate, _ = model.annealed_log_z()
    assert estimate.item() == pytest.approx(model.log_partition().item(), abs=0.1)


@pytest.mark.parametrize("persistent", [True, False])
def test_contrastive_divergence_is_the_likelihood_gradient_in_the_limit(persistent: bool) -> None:
    space = Images(1, 2, 2, 3)
    steps = 20
    model = roughened(RBM(space, hidden=3, persistent=persistent, gibbs_steps=steps, chains=20_000), 0.5).train()
    x = torch.tensor([2, 0, 0, 2], dtype=torch.uint8).view(1, 1, 2, 2).expand(20_000, -1, -1, -1)
    parameters = list(model.parameters())
    got = torch.autograd.grad(model.loss(Batch(x, torch.arange(len(x)))).total, parameters)
    exact = torch.autograd.grad(-model.log_prob(x).mean(), parameters)
    for g, e in zip(got, exact, strict=True):
        assert e.abs().max() > 0.05
        torch.testing.assert_close(g, e, rtol=0, atol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_enumerated_distribution(temperature: float) -> None:
    space = Images(1, 2, 2, 2)
    model = RBM(space, hidden=3, chains=50, burn_in=50)
    model.adapt(Dataset(space, torch.randint(2, (50, 1, 2, 2)).to(torch.uint8)))
    roughened(model, 0.3).eval()
    x = every_image(space)
    hidden = [torch.tensor(h) for h in itertools.product((0.0, 1.0), repeat=3)]
    joint = torch.stack([torch.stack([energies(model, v.flatten().long(), h) for h in hidden]) for v in x])
    p = (joint / temperature).flatten().softmax(0).view(len(x), -1).sum(1)
    drawn = model.sample(8000, temperature=temperature)
    assert drawn.dtype == torch.uint8
    count = (drawn.flatten(1).long() @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16)
    assert scipy.stats.chisquare(count.numpy(), 8000 * p.detach().numpy()).pvalue > 0.001


def test_binned_samples_follow_the_mass() -> None:
    space = Images(1, 1, 1, 40)
    model = RBM(space, hidden=3, bins=6, burn_in=20)
    model.adapt(Dataset(space, (40 * torch.rand(500, 1, 1, 1) ** 2).to(torch.uint8)))
    with torch.no_grad():
        model.weight.copy_(torch.randn_like(model.weight) / model.value.diff().sum())
    p = model.eval().log_prob(every_image(space)).double().exp()
    count = model.sample(8000).flatten().long().bincount(minlength=40)
    assert scipy.stats.chisquare(count.numpy(), (8000 * p / p.sum()).detach().numpy()).pvalue > 0.001


def test_learning_raises_the_exact_likelihood_and_every_parameter_has_a_gradient() -> None:
    data = digits()
    model = RBM(data.space, hidden=10)
    model.adapt(data)
    before = model.eval().log_prob(data.x).mean()
    trained(model, data, 200)
    after = model.log_prob(data.x).mean()
    assert after > before + 5
    model.loss(data.batch(torch.arange(100))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradient_of_the_estimated_likelihood_reaches_log_z() -> None:
    model = RBM(Images(1, 8, 8, 2), hidden=40, ais_steps=5, ais_chains=5).eval()
    x = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    assert model.density == "estimate"
    (gradient,) = torch.autograd.grad(model.log_prob(x).mean(), model.visible_bias)
    expected = -model.chains.float().mean(0).unsqueeze(1)
    torch.testing.assert_close(gradient, expected)


def test_log_z_is_kept_until_the_weights_change() -> None:
    model = roughened(RBM(Images(1, 6, 6, 2), hidden=40, ais_steps=20, ais_chains=10), 0.1).eval()
    x = torch.ones(2, 1, 6, 6, dtype=torch.uint8)
    with torch.no_grad():
        first = model.log_prob(x)
        kept = model.log_z.clone()
        assert math.isfinite(model.log_z_error)
        model.log_z.add_(1)
        torch.testing.assert_close(model.log_prob(x), first - 1)
        model.hidden_bias[0] += 0.5
        model.log_prob(x)
        assert abs(model.log_z - kept) > 0.01
        model.hidden_bias[0] -= 0.5
        torch.testing.assert_close(model.log_prob(x), first)


def test_saved_and_resumed_chains_learn_on_alike() -> None:
    data = digits(2)
    model = trained(RBM(data.space, hidden=6), data, 5).train()
    twin = RBM(data.space, hidden=6).train()
    twin.load_state_dict(model.state_dict())
    batch = data.batch(torch.arange(50))
    losses = []
    for each in (model, twin):
        torch.manual_seed(1)
        losses.append([each.loss(batch).total.item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 1
    assert torch.equal(model.chains, twin.chains)
    model.eval()
    assert model.loss(batch).total == model.loss(batch).total


def test_two_processes_keep_the_same_chains() -> None:
    data = digits(2)
    model = RBM(data.space, hidden=6).train()
    model.adapt(data)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chains = []
    for rank in range(2):
        model.load_state_dict(start)
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            model.loss(data.batch(torch.arange(10)))
        chains.append(model.chains.clone())
    assert torch.equal(*chains)
    assert not torch.equal(chains[0], start["chains"])


@pytest.mark.parametrize("space", [Images(3, 5, 7, 256), Images(4, 3, 3, 2), Images(1, 8, 8, 17)])
def test_shapes_and_ranges(space: Images) -> None:
    x = torch.randint(space.levels, (30, *space.shape)).to(torch.uint8)
    model = RBM(space, hidden=4, burn_in=3, persistent=False)
    model.adapt(Dataset(space, x))
    model.train().loss(Batch(x, torch.arange(30))).total.backward()
    model.eval()
    drawn = model.sample(5)
    assert drawn.shape == (5, *space.shape)
    assert drawn.dtype == torch.uint8
    assert drawn.int().max() < space.levels
    z = model.encode(x)
    assert z.shape == (30, 4)
    assert torch.equal(z, model.embed(x))
    mean = model.decode(z)
    assert mean.shape == x.shape
    assert 0 <= mean.min() <= mean.max() <= space.levels - 1
    assert model.log_prob(x).shape == (30,)


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="gibbs_steps is 0: give at least 1"):
        RBM(Images(1, 2, 2, 2), gibbs_steps=0)
    with pytest.raises(SpaceError, match="rbm takes images, not vectors"):
        RBM(Vectors(3))


def test_what_is_known_is_held_and_the_rest_follows_the_conditional() -> None:
    space = Images(1, 2, 2, 2)
    model = RBM(space, hidden=3, burn_in=50)
    roughened(model, 0.4).eval()
    x = every_image(space)
    known = torch.tensor([[[True, False], [True, False]]])
    p = model.log_prob(x).double().exp()
    given = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    agrees = (x == given)[:, known].all(1)
    expected = (p[agrees] / p[agrees].sum()).detach()
    drawn = model.complete(given.expand(8000, -1, -1, -1), known)
    assert torch.equal(drawn[:, known], given.expand(8000, -1, -1, -1)[:, known])
    count = torch.stack([(drawn == state).flatten(1).all(1).sum() for state in x[agrees]])
    assert scipy.stats.chisquare(count.numpy(), 8000 * expected.numpy()).pvalue > 0.001


def test_a_chain_starts_from_noise() -> None:
    model = RBM(Images(1, 4, 4, 30), hidden=3)
    frames = model.chain(5, 3)
    assert frames.shape == (5, 3, 1, 4, 4) and frames.dtype == torch.uint8 and frames.max() < 30
