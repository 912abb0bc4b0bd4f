"""The ladder: exact where Bayes' theorem is linear, bounds in order, divergences, what it takes and what it refuses."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress
from tacit.models.latent.hierarchical_vae import Gaussian, HierarchicalVAE
from tacit.spaces import Images, Tokens, Vectors

SMALL = {"latent": (3, 2), "hidden": (16,), "between": (8,), "channels": (4, 6)}
BINARY = Images(1, 4, 3, levels=2)


def observations(space, rows=32):
    torch.manual_seed(2)
    if isinstance(space, Vectors):
        return torch.randn(rows, space.features) * 3 + 5
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def random_model(space, **arguments):
    """Everything depends on everything, at the scale of `observations`."""
    torch.manual_seed(0)
    model = HierarchicalVAE(space, **SMALL | arguments)
    model.adapt(Dataset(space, observations(space)))
    with torch.no_grad():
        for parameter in (*model.decoder.parameters(), *model.down.parameters()):
            parameter.mul_(2)
    return model.eval()


def linear_gaussian():
    """x = W z₁ + b + s e, z₁ = A z₂ + t e with exact inference: the model, log p(x), and p(z₂|x) as a function of x."""
    torch.manual_seed(0)
    model = HierarchicalVAE(Vectors(3), latent=(2, 1), hidden=(1,), between=(1,)).requires_grad_(False)
    scale = torch.tensor([0.5, 0.6, 0.7])
    # Columns orthogonal in the metric of the noise, so that what speaks for z₁ is diagonal.
    weight = scale[:, None] * torch.tensor([[1.0, 0.5], [1.0, -1.0], [1.0, 0.5]])
    location, a, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([[0.8], [-1.2]]), torch.tensor([0.4, 0.9])
    precision = (weight / scale[:, None]).square().sum(0)
    gain = (weight / scale[:, None] ** 2).T / precision[:, None]

    model.up = nn.ModuleList([nn.Identity(), nn.Identity()])
    model.decoder = nn.Linear(2, 3, bias=False)
    model.down = nn.ModuleList([nn.Linear(1, 4)])
    model.evidence = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 2)])
    model.requires_grad_(False)
    model.decoder.weight.copy_(weight)
    model.likelihood.entry.copy_(torch.stack([location, scale.log()]))
    model.down[0].weight.copy_(torch.cat([a, torch.zeros(2, 1)]))
    model.down[0].bias.copy_(torch.cat([torch.zeros(2), 2 * t.log()]))
    model.evidence[0].weight.copy_(torch.cat([gain, torch.zeros(2, 3)]))
    model.evidence[0].bias.copy_(torch.cat([-gain @ location, -precision.log()]))
    blurred = a / (t**2 + 1 / precision)[:, None]
    top_precision = 1 + (a * blurred).sum()
    top = blurred.T @ gain / top_precision
    model.evidence[1].weight.copy_(torch.cat([top, torch.zeros(1, 3)]))
    model.evidence[1].bias.copy_(torch.cat([-top @ location, -top_precision.log()[None]]))

    mean, unit = torch.tensor([5.0, 0.0, -2.0]), torch.tensor([2.0, 0.1, 1.0])
    model.likelihood.standardise.mean.copy_(mean)
    model.likelihood.standardise.scale.copy_(unit)
    covariance = weight @ (a @ a.T + torch.diag(t**2)) @ weight.T + torch.diag(scale**2)
    truth = MultivariateNormal(mean + unit * location, unit[:, None] * covariance * unit)
    posterior = lambda x: Normal(((x - mean) / unit - location) @ top.T, top_precision**-0.5)  # noqa: E731
    return model.eval(), truth, posterior


def test_where_all_is_linear_the_ladder_is_exact():
    model, truth, _ = linear_gaussian()
    x = truth.sample((50,))
    torch.testing.assert_close(model.log_prob(x), truth.log_prob(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.importance_weighted(x, 7), truth.log_prob(x), atol=1e-4, rtol=0)
    drawn = model.sample(40_000)
    torch.testing.assert_close(drawn.mean(0), truth.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), truth.covariance_matrix, atol=0.2, rtol=0.05)


def test_bounds_rise_with_samples_and_the_elbo_s_gap_is_the_posterior_s_divergence():
    model, truth, posterior = linear_gaussian()
    model.evidence[1].bias += torch.tensor([0.5, 0.8])
    x, repeats = truth.sample((2,)), 20_000
    exact, bounds = truth.log_prob(x), []
    for samples in (1, 2, 3, 10, 100):
        count = repeats // max(1, samples // 4)
        found = model.log_prob(x.repeat(count, 1), samples).view(count, 2)
        bounds.append((found.mean(0), found.std(0) / count**0.5))
    for (lower, a), (upper, b) in itertools.pairwise([*bounds, (exact, torch.zeros(2))]):
        assert (lower < upper + 4 * (a + b)).all()
    assert (bounds[0][0] < bounds[1][0]).all() and (bounds[1][0] < bounds[2][0]).all()
    # Below the top q is still exact, so all that is lost is lost there.
    top = model._gathered(model.likelihood.entries(x)[0])[-1]
    gap = kl_divergence(Normal(top.mean[:, 0], (0.5 * top.log_var[:, 0]).exp()), posterior(x)).sum(1)
    assert ((exact - bounds[0][0] - gap).abs() < 4 * bounds[0][1]).all() and (gap > 0.3).all()


@pytest.mark.parametrize("layers", [2, 3])
def test_the_divergences_in_closed_form_are_the_sampled_ones(layers):
    latent = (3, 2, 2)[:layers]
    model, x = random_model(BINARY, latent=latent), observations(BINARY, 2)
    with torch.no_grad():
        gathered = model._gathered(model.likelihood.entries(x)[0])
        _, log_ratio, kls = model._descend(gathered, model._noises(2, 40_000))
    error = log_ratio.std(1) / 200
    assert len(kls) == layers
    assert ((log_ratio.mean(1) + sum(kl.mean(1) for kl in kls)).abs() < 5 * error).all()


def test_gaussians_weigh_and_diverge_as_torch_s():
    a, b = Gaussian(torch.randn(4), torch.randn(4)), Gaussian(torch.randn(4), torch.randn(4))
    p, q = (Normal(g.mean, (0.5 * g.log_var).exp()) for g in (a, b))
    torch.testing.assert_close(a.divergence(b), kl_divergence(p, q))
    product = a.weighed_with(b)
    r = Normal(product.mean, (0.5 * product.log_var).exp())
    z = torch.randn(6, 4)
    constant = p.log_prob(z) + q.log_prob(z) - r.log_prob(z)
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 4])
def test_the_loss_is_that_of_a_naive_loop_over_samples_and_its_gradient_too(samples, monkeypatch):
    model, x = random_model(BINARY, samples=samples), observations(BINARY, 3)
    noises = [torch.randn(3, samples, size) for size in (3, 2)]
    monkeypatch.setattr(model, "_noises", lambda batch, count: noises)
    losses = model.loss(Batch(x, torch.arange(3)))
    parameters = list(model.parameters())
    fast = torch.autograd.grad(losses.total, parameters)
    bounds = []
    for i in range(3):
        h1 = model.up[0](2 * x[i : i + 1].float() - 1)
        mean1, log_var1 = model.evidence[0](h1).chunk(2, 1)
        mean2, log_var2 = model.evidence[1](model.up[1](h1)).chunk(2, 1)
        weights = []
        for k in range(samples):
            q2 = Normal(mean2, (0.5 * log_var2).exp())
            z2 = mean2 + q2.scale * noises[1][i, k]
            mean, log_var = model.down[0](z2).chunk(2, 1)
            p1 = Normal(mean, (0.5 * log_var).exp())
            precision = (-log_var).exp() + (-log_var1).exp()
            q1 = Normal((mean * (-log_var).exp() + mean1 * (-log_var1).exp()) / precision, precision**-0.5)
            z1 = q1.mean + q1.scale * noises[0][i, k]
            value = model.likelihood.log_prob(model.decoder(z1), x[i : i + 1]).sum()
            if samples == 1:
                value = value - kl_divergence(q1, p1).sum() - kl_divergence(q2, Normal(0.0, 1.0)).sum()
            else:
                value = value + p1.log_prob(z1).sum() - q1.log_prob(z1).sum()
                value = value + Normal(0.0, 1.0).log_prob(z2).sum() - q2.log_prob(z2).sum()
            weights.append(value.double())
        bounds.append(sum(w.exp() for w in weights).div(samples).log())
    assert losses.total.item() == pytest.approx(-sum(bounds).item() / 3, abs=1e-4)
    for a, b in zip(fast, torch.autograd.grad(-sum(bounds) / 3, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "arguments"),
    [
        (BINARY, {}),
        (Images(3, 5, 7), {"components": 2}),
        (Vectors(4), {"latent": (3, 2, 2), "between": (8, 6), "hidden": (9, 7)}),
        (Images(4, 9, 5, levels=17), {"network": "conv"}),
    ],
)
def test_takes_any_size_and_gives_it_back(space, arguments):
    model, x = random_model(space, **arguments), observations(space, 6)
    z = model.encode(x)
    assert z.shape == (6, 2) and model.embed(x).shape == (6, sum(model.latent))
    torch.testing.assert_close(model.embed(x)[:, -2:], z)
    for drawn in (model.sample(6, temperature=0.5), model.decode(z), model.reconstruct(x)):
        assert drawn.shape == x.shape and drawn.dtype == space.torch_dtype
    model.train().loss(Batch(x, torch.arange(6))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_temperature_cools_every_layer():
    model = random_model(BINARY)
    made = {}
    for temperature in (0.0, 1.0):
        noises = model._noises(5, 1, temperature)
        made[temperature] = model._made(noises[-1], noises)
    assert torch.equal(made[0.0], made[0.0][:1].expand_as(made[0.0]))
    assert made[1.0].std(0).min() > 0


def test_annealing_weighs_the_divergences_while_learning():
    model, x = random_model(BINARY, anneal=4), observations(BINARY)
    losses = model.train().loss(Batch(x, torch.arange(32)))
    assert losses.total == losses["reconstruction"]
    torch.testing.assert_close(losses["kl"], losses["kl_1"] + losses["kl_2"])
    model.after_step(Progress(3, 0, 0.5))
    again = HierarchicalVAE(BINARY, **SMALL, anneal=4)
    again.load_state_dict(model.state_dict())
    assert again.annealed == 0.75
    losses = model.eval().loss(Batch(x, torch.arange(32)))
    torch.testing.assert_close(losses.total, losses["reconstruction"] + losses["kl"])


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (Vectors(3), {"latent": (2,)}, r"latent is \(2,\): give the dimensions of two layers or more, or take vae"),
        (Vectors(3), {"between": ()}, "between is .*: give at least 1"),
        (Vectors(3), {"samples": 3, "anneal": 5}, "samples is 3 and anneal is given"),
        (Vectors(3), {"network": "conv"}, "network is 'conv'"),
        (Tokens(4, 3), {}, "takes images or vectors"),
    ],
)
def test_refuses_what_does_not_fit(space, arguments, message):
    with pytest.raises(TacitError, match=message):
        HierarchicalVAE(space, **arguments)
