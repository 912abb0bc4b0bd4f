"""PixelVAE: autoregressive by the Jacobian's zeros, the bounds below the integrated density, sampling from caches."""

import itertools
import math

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress
from tacit.models.latent.pixel_vae import PixelVAE
from tacit.spaces import Images

SMALL = {"latent": 3, "hidden": 6, "context": 4, "features": 8, "layers": 2, "first": 3, "readout_features": 8}


def random_model(space, std=0.3, **arguments):
    torch.manual_seed(0)
    model = PixelVAE(space, **SMALL | arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


def images(space, rows):
    torch.manual_seed(1)
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def everything(space):
    values = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, *space.shape)


@pytest.mark.parametrize("space", [Images(1, 2, 3, 2), Images(2, 1, 2, 3)], ids=["binary", "colours"])
def test_given_z_probabilities_sum_to_one(space):
    model, x = random_model(space), everything(space)
    with torch.no_grad():
        log_prob = model.likelihood.log_prob(model._output(x, torch.randn(1, 3).expand(len(x), -1)), x)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("space", [Images(1, 6, 5, 2), Images(3, 4, 5, 17)], ids=["binary", "colours"])
def test_an_entry_depends_on_z_and_on_what_came_before_alone(space):
    model = random_model(space, layers=3, features=24, readout_features=24)
    x, z = images(space, 1).float().requires_grad_(), torch.randn(1, 3, requires_grad=True)
    parameters = model.conditionals(x, z)
    order = torch.arange(space.dimensions).view(space.height, space.width, space.channels).movedim(-1, 0)
    for channel, row, column in ((0, 0, 0), (space.channels - 1, 2, 3), (0, 3, 1)):
        entry = parameters[0, :, channel, row, column].square().sum()
        by_x, by_z = torch.autograd.grad(entry, (x, z), retain_graph=True)
        before = order < order[channel, row, column]
        assert (by_x[0][~before] == 0).all()
        near = before.clone()
        near[:, : max(0, row - 1)] = near[:, :, : max(0, column - 1)] = near[:, :, column + 2 :] = False
        assert (by_x[0][near] != 0).all()
        assert (by_z != 0).all()


@pytest.mark.parametrize(("latent", "space"), [(1, Images(1, 2, 3, 2)), (2, Images(1, 3, 2, 5))])
def test_bounds_rise_towards_the_density_integrated_over_z(latent, space):
    model = random_model(space, latent=latent)
    x = images(space, 4)
    line = torch.linspace(-6, 6, 61)
    z = torch.cartesian_prod(*[line] * latent).view(-1, latent)
    log_prior = -0.5 * z.square().sum(1) + latent * math.log(float(line[1] - line[0]) / math.sqrt(2 * math.pi))
    with torch.no_grad():
        each = []
        for one in x:
            copies = one.expand(len(z), -1, -1, -1)
            each.append(model.likelihood.log_prob(model._output(copies, z), copies) + log_prior)
        exact = torch.stack(each).logsumexp(1)
        elbo = model.log_prob(x.repeat(1000, 1, 1, 1)).view(1000, 4).mean(0)
        ten = model.log_prob(x.repeat(200, 1, 1, 1), 10).view(200, 4).mean(0)
    many = model.importance_weighted(x, 5000)
    assert (elbo < ten).all() and (ten < exact + 0.05).all()
    torch.testing.assert_close(many, exact, rtol=0, atol=0.1)


def test_bound_sums_to_at_most_one_over_all_images():
    space = Images(1, 2, 2, 2)
    model = random_model(space)
    with torch.no_grad():
        elbo = model.log_prob(everything(space).repeat(1000, 1, 1, 1)).view(1000, 16).mean(0)
    assert elbo.exp().sum() <= 1


def test_importance_weights_equal_a_naive_loop(monkeypatch):
    space = Images(1, 3, 4, 2)
    model, x, noises = random_model(space), images(space, 3), torch.randn(3, 7, 3)
    drawn = iter(noises.split([2, 2, 2, 1], 1))
    monkeypatch.setattr("tacit.models.latent._likelihood._AT_ONCE", 2 * 3 * space.dimensions)
    monkeypatch.setattr("tacit.models.latent.pixel_vae.noise.randn", lambda *shape, device: next(drawn))
    fast = model.importance_weighted(x, 7)
    with torch.no_grad():
        mean, log_var = model.encoder(model.likelihood.seen(x)).chunk(2, 1)
        normal = torch.distributions.Normal
        weights = []
        for k in range(7):
            z = mean + (log_var / 2).exp() * noises[:, k]
            log_p = model.likelihood.log_prob(model._output(x, z), x) + normal(0.0, 1.0).log_prob(z).sum(1)
            weights.append(log_p - normal(mean, (log_var / 2).exp()).log_prob(z).sum(1))
        torch.testing.assert_close(fast, torch.stack(weights).logsumexp(0) - math.log(7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("space", "arguments"),
    [(Images(1, 5, 4, 2), {}), (Images(3, 4, 5, 17), {}), (Images(2, 3, 3, 4), {"components": 1})],
    ids=["binary", "colours", "one component"],
)
def test_caches_choose_what_full_passes_choose(space, arguments):
    """Entry by entry the mode, from caches and by a full pass for every entry; then draws with the same noise."""
    model, z = random_model(space, **arguments), torch.randn(4, 3)
    fast = model.decode(z)
    slow = torch.zeros_like(fast)
    with torch.no_grad():
        for i, j, c in itertools.product(range(space.height), range(space.width), range(space.channels)):
            slow[:, c, i, j] = model.likelihood.head.mode(model.conditionals(slow, z)[:, :, c, i, j]).to(torch.uint8)
    assert torch.equal(fast, slow)
    torch.manual_seed(5)
    drawn = model.sample(4, temperature=0.8)
    torch.manual_seed(5)
    z, again = 0.8 * torch.randn(4, 3), torch.zeros_like(drawn)
    with torch.no_grad():
        for i, j, c in itertools.product(range(space.height), range(space.width), range(space.channels)):
            parameters = model.conditionals(again, z)[:, :, c, i, j]
            again[:, c, i, j] = model.likelihood.head.sample(parameters, 0.8).to(torch.uint8)
    assert torch.equal(drawn, again)


def test_loss_is_the_negative_elbo():
    space = Images(1, 3, 3, 2)
    model = random_model(space)
    x = images(space, 1).repeat(10_000, 1, 1, 1)
    with torch.no_grad():
        losses = model.loss(Batch(x, torch.arange(len(x))))
        elbo = model.log_prob(x).mean()
    assert losses.total.item() == pytest.approx(-elbo.item(), abs=0.05)
    assert losses.total.item() == pytest.approx((losses["reconstruction"] + losses["kl"]).item(), rel=1e-5)


def test_the_divergence_weighs_less_in_the_beginning_and_never_in_what_is_compared():
    space = Images(1, 3, 3, 2)
    model, x = random_model(space, anneal=10), images(space, 5)
    for step, weight in ((0, 0.0), (4, 0.4), (10, 1.0), (50, 1.0)):
        model.after_step(Progress(step, 0, 0.5))
        for training in (True, False):
            losses = model.train(training).loss(Batch(x, torch.arange(5)))
            expected = losses["reconstruction"] + (weight if training else 1) * losses["kl"]
            torch.testing.assert_close(losses.total, expected)
            torch.testing.assert_close(losses["share_in_z"], losses["kl"] / (losses["kl"] + losses["reconstruction"]))


def test_it_starts_near_the_marginals():
    space = Images(1, 6, 6, 2)
    x = (torch.rand(300, 1, 6, 6) < 0.1).to(torch.uint8)
    torch.manual_seed(0)
    model = PixelVAE(space, **SMALL)
    model.adapt(Dataset(space, x))
    rate = x.double().mean(0)
    entropy = torch.special.entr(rate).sum() + torch.special.entr(1 - rate).sum()
    losses = model.loss(Batch(x, torch.arange(len(x))))
    assert losses["reconstruction"].item() == pytest.approx(entropy.item(), rel=0.1)


def test_what_it_cannot_do_it_says():
    with pytest.raises(TacitError, match="first is 4: give an odd number"):
        random_model(Images(1, 4, 4, 2), first=4)
    with pytest.raises(TacitError, match="features is 2: give at least 3"):
        random_model(Images(3, 4, 4, 2), features=2)
    with pytest.raises(TacitError, match="samples is 0: give at least 1"):
        random_model(Images(1, 4, 4, 2)).log_prob(images(Images(1, 4, 4, 2), 1), 0)
    with pytest.raises(TacitError, match="temperature is 0: give a number above 0"):
        random_model(Images(1, 4, 4, 2)).sample(1, temperature=0)
