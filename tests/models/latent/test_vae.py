import math

import pytest
import torch
from torch import nn

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.latent.vae import VAE, gaussian_kl
from tacit.spaces import Images, Tokens, Vectors

BINARY = Images(1, 4, 3, levels=2)


def observations(space, rows=32):
    torch.manual_seed(2)
    if isinstance(space, Vectors):
        return torch.randn(rows, space.features) * 3 + 5
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def random_vae(space, **arguments):
    """A VAE whose decoder depends on z, at the scale of `observations`."""
    torch.manual_seed(0)
    model = VAE(space, **{"latent": 2, "hidden": (16,), "channels": (4, 6)} | arguments)
    model.adapt(Dataset(space, observations(space)))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
    return model.eval()


def integrated(model, x, reach=6.0, steps=241):
    """log p(x) by summing p(x|z) p(z) over a grid of the two latent dimensions."""
    line = torch.linspace(-reach, reach, steps)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        entries, log_det = model.likelihood.entries(x)
        log_prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(float(line[1] - line[0]))
        log_joint = model.likelihood.log_probs(model.decoder(z.repeat(len(x), 1)), entries) + log_prior
        return log_joint.logsumexp(1) + log_det


@pytest.mark.parametrize(
    ("space", "arguments"),
    [(BINARY, {}), (Images(2, 3, 3, levels=5), {}), (Vectors(3), {}), (Vectors(3), {"flow": 2, "flow_hidden": 8})],
    ids=["binary", "levels", "table", "flow"],
)
def test_bounds_rise_towards_the_integrated_density(space, arguments):
    model, x = random_vae(space, **arguments), observations(space, 4)
    exact = integrated(model, x).mean().item()
    with torch.no_grad():
        elbo = model.log_prob(x.repeat(5000, *(1,) * len(space.shape))).mean().item()
        ten = model.log_prob(x.repeat(1000, *(1,) * len(space.shape)), 10).mean().item()
    many = model.importance_weighted(x, 50_000).mean().item()
    assert elbo + 0.02 < ten < exact
    assert many == pytest.approx(exact, abs=0.05)
    assert abs(exact - many) < 0.5 * (exact - ten)


def test_linear_gaussian_case_has_its_closed_form():
    """x = W z + b + s e: with the true posterior in the encoder, every bound is log p(x) itself."""
    torch.manual_seed(0)
    model = VAE(Vectors(3), latent=1, hidden=(1,))
    weight, scale = torch.tensor([[0.9], [-0.4], [0.7]]), torch.tensor([0.5, 0.6, 0.7])
    precision = 1 + (weight.square() / scale.square()[:, None]).sum(0)
    model.decoder = nn.Linear(1, 3, bias=False)
    model.encoder = nn.Linear(3, 2)
    with torch.no_grad():
        model.decoder.weight.copy_(weight)
        model.likelihood.entry.copy_(torch.stack([torch.tensor([0.1, 0.2, 0.3]), scale.log()]))
        model.encoder.weight.zero_()
        model.encoder.weight[:1] = (weight / scale.square()[:, None]).T / precision
        model.encoder.bias[0] = -(model.encoder.weight[0] @ model.likelihood.entry[0])
        model.encoder.bias[1] = -precision.log()
    model.likelihood.standardise.mean.copy_(torch.tensor([5.0, 0.0, -2.0]))
    model.likelihood.standardise.scale.copy_(torch.tensor([2.0, 0.1, 1.0]))
    covariance = weight @ weight.T + torch.diag(scale**2)
    d = torch.diag(model.likelihood.standardise.scale)
    truth = torch.distributions.MultivariateNormal(
        model.likelihood.standardise.mean + d @ model.likelihood.entry[0].detach(), d @ covariance @ d
    )
    x = truth.sample((50,))
    with torch.no_grad():
        assert torch.allclose(model.log_prob(x), truth.log_prob(x), atol=1e-4)
        assert torch.allclose(model.importance_weighted(x, 7), truth.log_prob(x), atol=1e-4)


def test_loss_is_the_negative_elbo_in_the_user_s_units():
    model, x = random_vae(Vectors(3)), observations(Vectors(3)).repeat(2000, 1)
    with torch.no_grad():
        loss = model.loss(Batch(x, torch.arange(len(x)))).total
        elbo = model.log_prob(x).mean()
    assert loss.item() == pytest.approx(-elbo.item(), abs=0.05)


def test_kl_in_closed_form_is_the_sampled_one():
    torch.manual_seed(0)
    mean, log_var = torch.randn(3, 4), torch.randn(3, 4)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    p = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    z = q.sample((200_000,))
    sampled = (q.log_prob(z) - p.log_prob(z)).sum(2).mean(0)
    assert torch.allclose(gaussian_kl(mean, log_var), sampled, rtol=0.02)
    assert torch.allclose(gaussian_kl(mean, log_var), torch.distributions.kl_divergence(q, p).sum(1))


@pytest.mark.parametrize("space", [BINARY, Images(1, 4, 4, levels=16), Vectors(4)], ids=["binary", "levels", "table"])
def test_importance_weighted_equals_a_naive_loop(space, monkeypatch):
    model, x, samples = random_vae(space), observations(space, 5), 37
    noises = torch.randn(5, samples, 2)
    drawn = iter(noises.split([10, 10, 10, 7], 1))
    monkeypatch.setattr(
        "tacit.models.latent.vae._AT_ONCE", 10 * 5 * space.dimensions * model.likelihood.head.parameters
    )
    monkeypatch.setattr("tacit.models.latent.vae.noise.randn", lambda *shape, device: next(drawn))
    fast = model.importance_weighted(x, samples)

    naive = []
    for i in range(5):
        one = x[i : i + 1]
        entries, log_det = model.likelihood.entries(one)
        posterior = model._posterior(entries)
        mean, log_var = posterior.mean, posterior.log_var
        q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        p = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        weights = []
        for s in range(samples):
            z = mean + (0.5 * log_var).exp() * noises[i, s]
            log_likelihood = model.likelihood.log_prob(model.decoder(z), entries)[0]
            weights.append(log_likelihood + p.log_prob(z).sum() - q.log_prob(z).sum())
        naive.append(torch.stack(weights).double().exp().mean().log() + log_det[0])
    assert torch.allclose(fast.double(), torch.stack(naive), atol=1e-4)


@pytest.mark.parametrize(
    ("space", "arguments"),
    [
        (BINARY, {}),
        (BINARY, {"decoder": "logistic"}),
        (Images(3, 5, 7), {}),
        (Images(3, 5, 7), {"components": 2}),
        (Vectors(4), {"components": 3}),
        (Images(2, 6, 7, levels=5), {"network": "conv", "components": 2}),
        (Vectors(4), {"hidden": (8, 6)}),
        (Vectors(4), {"flow": 2, "flow_hidden": 8}),
        (Images(1, 28, 20, levels=2), {"network": "conv"}),
        (Images(4, 9, 5), {"network": "conv", "channels": (3, 4, 5)}),
        (Images(3, 1, 1), {"network": "conv"}),
    ],
)
def test_takes_any_size_and_gives_it_back(space, arguments):
    model, x = random_vae(space, **arguments), observations(space, 6)
    z = model.encode(x)
    assert z.shape == model.embed(x).shape == (6, 2)
    for drawn in (model.sample(6), model.decode(z), model.reconstruct(x)):
        assert drawn.shape == x.shape
        assert drawn.dtype == space.torch_dtype
        if isinstance(space, Images):
            assert drawn.max().item() < space.levels

    model.train()
    losses = model.loss(Batch(x, torch.arange(6)))
    assert set(losses) == {"reconstruction", "kl"}
    losses.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    again = VAE(space, **{"latent": 2, "hidden": (16,), "channels": (4, 6)} | arguments).eval()
    again.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    first = model.eval().log_prob(x)
    torch.manual_seed(5)
    assert torch.equal(again.log_prob(x), first)


def test_a_flow_of_the_posterior_makes_its_entries_depend_on_one_another():
    model, x = random_vae(BINARY, flow=2, flow_hidden=8), observations(BINARY, 1)
    posterior = model._posterior(model.likelihood.entries(x)[0])
    noises = torch.randn(1, 2, requires_grad=True)
    z, log_ratio = posterior.draw(noises)
    jacobian = torch.stack([torch.autograd.grad(z[0, d], noises, retain_graph=True)[0][0] for d in range(2)])
    assert jacobian[0, 1] != 0 or jacobian[1, 0] != 0
    normal = torch.distributions.Normal(0.0, 1.0)
    log_q = normal.log_prob(noises).sum() - jacobian.slogdet().logabsdet
    torch.testing.assert_close(log_ratio[0], normal.log_prob(z).sum() - log_q)


def test_density_gradient_is_that_of_the_elbo():
    model, x = random_vae(BINARY), observations(BINARY)
    model.log_prob(x, 3).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_starts_at_the_marginals():
    x = observations(Images(1, 3, 3, levels=2), 5000) * torch.tensor([0, 1, 1]).to(torch.uint8)
    model = VAE(Images(1, 3, 3, levels=2), latent=2, hidden=(8,))
    model.adapt(Dataset(model.space, x))
    p = torch.sigmoid(model.likelihood.entry[0]).detach()
    assert torch.allclose(p, x.double().mean(0).float(), atol=1e-3)


def test_samples_agree_with_the_density():
    space = Images(1, 2, 2, levels=2)
    model = random_vae(space)
    whole = torch.tensor([[i >> b & 1 for b in (3, 2, 1, 0)] for i in range(16)], dtype=torch.uint8).view(-1, 1, 2, 2)
    p = integrated(model, whole).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    count = 50_000
    drawn = torch.bincount((model.sample(count).long().flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    assert ((drawn - count * p) ** 2 / (count * p)).sum() < 15 + 5 * 30**0.5


def test_temperature_scales_the_latent_deviation():
    model = random_vae(Images(1, 4, 4, levels=2))
    with torch.no_grad():
        model.decoder[-1].weight.mul_(50)
    cold = model.sample(200, temperature=0.0).float()
    assert cold.std(0).mean() < 0.8 * model.sample(200).float().std(0).mean()


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (Images(1, 4, 4), {"decoder": "bernoulli"}, "decoder is 'bernoulli', no likelihood"),
        (Vectors(3), {"decoder": "logistic"}, "give 'gaussian'"),
        (Vectors(3), {"network": "conv"}, "network is 'conv'"),
        (Vectors(3), {"latent": 0}, "latent"),
        (Vectors(3), {"hidden": ()}, "hidden"),
        (Tokens(4, 3), {}, "takes images or vectors"),
    ],
)
def test_refuses_what_does_not_fit(space, arguments, message):
    with pytest.raises(TacitError, match=message):
        VAE(space, **arguments)


@pytest.mark.parametrize("space", [BINARY, Vectors(3)], ids=["binary", "table"])
def test_bfloat16_changes_little(space):
    model, x = random_vae(space), observations(space, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(Batch(x, torch.arange(4))).total.dtype == torch.float32
        rough = model.importance_weighted(x, 2000)
    assert torch.allclose(rough, model.importance_weighted(x, 2000), atol=0.3)
