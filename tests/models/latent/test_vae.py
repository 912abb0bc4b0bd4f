import itertools
import math

import pytest
import torch
from torch import nn

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress, Recipe
from tacit.models.latent.vae import VAE, gaussian_kl
from tacit.spaces import Images, Tokens, Vectors
from tacit.tasks.fit import fit
from tacit.training.learner import Learner
from tacit.training.plan import reseed

SMALL = {"latent": 4, "hidden": (16,)}
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


def linear_gaussian(latent, **arguments):
    """x = W z + b + s e of a table of three: the model, log p(x), and p(z|x) as a function of x."""
    torch.manual_seed(0)
    model = VAE(Vectors(3), latent=latent, hidden=(1,), **arguments).requires_grad_(False)
    weight = torch.tensor([[0.9, 0.3], [-0.4, 0.8], [0.7, 0.1]])[:, :latent]
    location, scale = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    model.decoder = nn.Linear(latent, 3, bias=False).requires_grad_(False)
    model.decoder.weight.copy_(weight)
    model.likelihood.entry.copy_(torch.stack([location, scale.log()]))
    mean, unit = torch.tensor([5.0, 0.0, -2.0]), torch.tensor([2.0, 0.1, 1.0])
    model.likelihood.standardise.mean.copy_(mean)
    model.likelihood.standardise.scale.copy_(unit)
    covariance = unit[:, None] * (weight @ weight.T + torch.diag(scale**2)) * unit
    precision = torch.eye(latent) + weight.T @ (weight / scale[:, None] ** 2)
    gain = torch.linalg.solve(precision, weight.T / scale**2)

    def posterior(x):
        return torch.distributions.MultivariateNormal(
            ((x - mean) / unit - location) @ gain.T, precision_matrix=precision
        )

    truth = torch.distributions.MultivariateNormal(mean + unit * location, covariance)
    # The encoder has the posterior's mean and the variances of its diagonal.
    model.encoder = nn.Linear(3, 2 * latent).requires_grad_(False)
    model.encoder.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
    model.encoder.bias.copy_(torch.cat([-gain @ location, -precision.diagonal().log()]))
    return model.eval(), truth, posterior


def test_linear_gaussian_case_has_its_closed_form():
    """With the true posterior in the encoder, every bound is log p(x) itself."""
    model, truth, _ = linear_gaussian(1)
    x = truth.sample((50,))
    assert torch.allclose(model.log_prob(x), truth.log_prob(x), atol=1e-4)
    assert torch.allclose(model.importance_weighted(x, 7), truth.log_prob(x), atol=1e-4)


def test_bounds_rise_with_samples_and_the_elbo_s_gap_is_the_posterior_s_divergence():
    model, truth, posterior = linear_gaussian(2)
    model.encoder.bias += torch.tensor([0.5, -0.3, 0.4, -0.5])
    x = truth.sample((2,))
    exact = truth.log_prob(x)
    repeats = 20_000
    bounds = []
    for samples in (1, 2, 3, 10, 100):
        count = repeats // max(1, samples // 4)
        found = model.log_prob(x.repeat(count, 1), samples).view(count, 2)
        bounds.append((found.mean(0), found.std(0) / count**0.5))
    for (lower, a), (upper, b) in itertools.pairwise([*bounds, (exact, torch.zeros(2))]):
        assert (lower < upper + 4 * (a + b)).all()
    assert (bounds[0][0] < bounds[1][0]).all() and (bounds[1][0] < bounds[2][0]).all()
    found = model._posterior(model.likelihood.entries(x)[0])
    q = torch.distributions.MultivariateNormal(found.mean, torch.diag_embed(found.log_var.exp()))
    gap = torch.distributions.kl_divergence(q, posterior(x))
    assert ((exact - bounds[0][0] - gap).abs() < 4 * bounds[0][1]).all()
    assert (gap > 0.2).all()


def test_the_loss_of_several_samples_has_the_gradient_of_a_naive_loop():
    model, x, samples = random_vae(BINARY, samples=4), observations(BINARY, 3), 4
    reseed(0)
    losses = model.loss(Batch(x, torch.arange(3)))
    fast = torch.autograd.grad(losses.total, list(model.parameters()))
    reseed(0)
    noises = torch.randn(3, samples, 2)
    standard, bounds, elbos = torch.distributions.Normal(0.0, 1.0), [], []
    for i in range(3):
        mean, log_var = model.encoder(x[i : i + 1].float() * 2 - 1).chunk(2, 1)
        weights = []
        for k in range(samples):
            q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
            z = mean + q.scale * noises[i, k]
            p = torch.distributions.Bernoulli(logits=model.likelihood.given(model.decoder(z))[:, 0])
            log_likelihood = p.log_prob(x[i : i + 1].float()).sum()
            weights.append((log_likelihood + standard.log_prob(z).sum() - q.log_prob(z).sum()).double())
        bounds.append(sum(w.exp() for w in weights).div(samples).log())
        elbos.append(sum(weights) / samples)
    naive = torch.autograd.grad(-sum(bounds) / 3, list(model.parameters()))
    assert losses["bound"].item() == pytest.approx(-sum(bounds).item() / 3, abs=1e-4)
    assert losses["elbo"].item() == pytest.approx(-sum(elbos).item() / 3, abs=1e-4)
    assert losses["bound"] < losses["elbo"]
    for a, b in zip(fast, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def learnt(model, x, steps, **recipe):
    """Losses by step of a model that learns from all of `x` at each."""
    learner = Learner(model.train(), Recipe(learning_rate=1e-2, **recipe))
    found = []
    for step in range(steps):
        reseed(0, step)
        found.append(learner.step(Batch(x, torch.arange(len(x))), Progress(step, step, step / steps)))
        model.after_step(Progress(step + 1, step + 1, (step + 1) / steps))
    return found, learner


@pytest.mark.parametrize("flow", [0, 1])
def test_the_multiplier_rises_while_the_divergence_is_too_large_and_falls_below(flow):
    for below, sign in ((1e-3, -1), (1e3, 1)):
        model = random_vae(BINARY, kl_below=below, flow=flow, flow_hidden=8)
        losses = model.loss(Batch(observations(BINARY), torch.arange(32)))
        losses.total.backward()
        assert model.log_multiplier.grad.sign() == sign
        excess = losses["multiplier"] * (losses["kl"] - below)
        torch.testing.assert_close(losses.total, losses["reconstruction"] + excess)


def test_the_divergence_settles_below_its_bound():
    torch.manual_seed(0)
    z = torch.randn(100, 2)
    x = z @ torch.tensor([[3.0, -1.0, 0.5, 1.0], [0.0, 2.0, 1.0, -1.0]]) + 0.1 * torch.randn(100, 4)
    values = {}
    for below in (None, 0.7):
        model = VAE(Vectors(4), latent=2, hidden=(16,), kl_below=below)
        model.adapt(Dataset(model.space, x))
        losses, _ = learnt(model, x, 250, schedule="cosine")
        values[below] = sum(step["kl"].item() for step in losses[-30:]) / 30
    assert values[None] > 3
    assert values[0.7] == pytest.approx(0.7, abs=0.07)


def test_beta_free_bits_and_annealing_weigh_the_divergence_as_they_say():
    x, index = observations(BINARY), torch.arange(32)
    plain = random_vae(BINARY)

    def total(training=True, **arguments):
        model = VAE(BINARY, latent=2, hidden=(16,), **arguments)
        model.load_state_dict(plain.state_dict() | {"annealed": model.annealed})
        reseed(0)
        return model.train(training).loss(Batch(x, index))

    one = total()
    kls = plain._posterior(plain.likelihood.entries(x)[0]).kls().mean(0)
    torch.testing.assert_close(one["kl"], kls.sum())
    torch.testing.assert_close(total(beta=4.0).total, one["reconstruction"] + 4 * one["kl"])
    level = kls.mean().item()
    torch.testing.assert_close(total(free_bits=level).total, one["reconstruction"] + kls.max() + level)
    torch.testing.assert_close(total(anneal=10).total, one["reconstruction"])
    torch.testing.assert_close(total(False, anneal=10, beta=2.0).total, one["reconstruction"] + 2 * one["kl"])

    model = random_vae(BINARY, anneal=8)
    weights = []
    for step in range(1, 11):
        model.after_step(Progress(step, 0, 0.1))
        weights.append(model.annealed.item())
    assert weights == pytest.approx([step / 8 for step in range(1, 9)] + [1, 1])


def test_with_a_flow_all_dimensions_share_their_free_bits():
    model, x = random_vae(BINARY, flow=1, flow_hidden=8, free_bits=50.0), observations(BINARY)
    losses = model.loss(Batch(x, torch.arange(32)))
    torch.testing.assert_close(losses.total, losses["reconstruction"] + 100)


@pytest.mark.parametrize("arguments", [{"kl_below": 0.5}, {"anneal": 12}, {"samples": 3}], ids=str)
def test_what_a_run_resumes_with_makes_it_go_on_as_if_never_stopped(arguments):
    x = observations(BINARY)
    torch.manual_seed(0)
    first = VAE(BINARY, latent=2, hidden=(8,), **arguments)
    whole, _ = learnt(first, x, 4)
    _, learner = learnt(first, x, 0)
    again = VAE(BINARY, latent=2, hidden=(8,), **arguments)
    Learner(again, Recipe()).restore(learner.state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert whole[0]["loss"] != whole[-1]["loss"]
    if "anneal" in arguments:
        assert again.annealed.item() == pytest.approx(4 / 12)
    if "kl_below" in arguments:
        assert again.log_multiplier.item() != 0
    for model in (first, again):
        reseed(7)
        model.after_loss = model.loss(Batch(x, torch.arange(32))).total
    assert torch.equal(first.after_loss, again.after_loss)


def test_a_latent_larger_than_the_data_is_warned_of_once_and_not_by_default(tmp_path):
    data = Dataset(Vectors(3), observations(Vectors(3)), name="table")
    assert VAE(Vectors(3)).latent == 3 and VAE(Images(1, 8, 8)).latent == 40
    VAE(Vectors(3)).adapt(data)
    with pytest.warns(UserWarning, match="latent is 5, but an observation has 3 numbers") as said:
        fit("vae", data, steps=2, out=tmp_path / "run", quiet=True, pictures=0, latent=5, hidden=(4,))
    assert len(said) == 1


@pytest.mark.parametrize("space", [BINARY, Vectors(3)], ids=["binary", "table"])
def test_a_single_observation_is_learnt_from_or_refused(space, tmp_path):
    data = Dataset(space, observations(space, 1), name="one")
    model = VAE(space, **SMALL | {"latent": 2})
    model.adapt(data)
    assert all(math.isfinite(step["loss"]) for step in learnt(model, data.x, 3)[0])
    with pytest.raises(TacitError, match=r"one has too few rows \(1\) to hold out 10% .*: bring at least 10"):
        fit("vae", data, steps=2, out=tmp_path / "run", quiet=True)


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
    assert torch.allclose(gaussian_kl(mean, log_var).sum(1), sampled, rtol=0.02)
    assert torch.allclose(gaussian_kl(mean, log_var), torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize("space", [BINARY, Images(1, 4, 4, levels=16), Vectors(4)], ids=["binary", "levels", "table"])
def test_importance_weighted_equals_a_naive_loop(space, monkeypatch):
    model, x, samples = random_vae(space), observations(space, 5), 37
    noises = torch.randn(5, samples, 2)
    drawn = iter(noises.split([10, 10, 10, 7], 1))
    monkeypatch.setattr(
        "tacit.models.latent._likelihood._AT_ONCE", 10 * 5 * space.dimensions * model.likelihood.head.parameters
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
        (Vectors(3), {"samples": 0}, "samples is 0: give at least 1"),
        (Vectors(3), {"beta": -1.0}, "beta is -1.0: give at least 0"),
        (Vectors(3), {"kl_below": 0.0}, "kl_below is 0.0: a KL divergence is never below 0"),
        (Vectors(3), {"kl_below": 1.0, "anneal": 5}, "kl_below and anneal are given"),
        (Vectors(3), {"kl_below": 1.0, "beta": 2.0}, "kl_below and beta are given"),
        (Vectors(3), {"samples": 5, "beta": 2.0}, "samples is 5 and beta is given"),
        (BINARY, {"components": 2}, "components is 2, but a mixture of Bernoullis"),
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
