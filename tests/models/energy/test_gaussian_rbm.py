"""The Gaussian RBM against quadrature and enumeration: free energy, log Z, gradients, samples, Jacobians."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.energy.gaussian_rbm import GaussianRBM
from tacit.nn import noise
from tacit.spaces import Images, Vectors

SMALL = {"hidden": 30, "chains": 20, "burn_in": 5, "ais_chains": 5, "ais_steps": 10}


def roughened(model: GaussianRBM, scale: float = 0.6) -> GaussianRBM:
    """The model with weights far from zero, so that nothing cancels by luck."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return model


def mixture(model: GaussianRBM) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, means and the standard deviations of the 2^H Gaussians that the model is, from the equation.

    E(v, h) with v_i' = v_i and h' = h − ½: Σ (v − b)² / 2σ² − c h' − Σ v W h' / σ² is a quadratic in v whose minimum
    is at b + W h'.
    """
    w, b, c, var = (
        p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias, model.log_variance.exp())
    )
    h = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=len(c))), dtype=torch.float64)
    means = b + h @ w.T
    log_weight = h @ c + 0.5 * ((means.square() - b.square()) / var).sum(1) + 0.5 * (2 * math.pi * var).log().sum()
    return log_weight, means, var.sqrt()


def grid(side: int = 400) -> tuple[Tensor, float]:
    axis = torch.linspace(-9, 9, side)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def test_the_density_integrates_to_one_in_the_users_units() -> None:
    model = GaussianRBM(Vectors(2), hidden=3)
    model.adapt(Dataset(Vectors(2), torch.randn(500, 2) * torch.tensor([2.0, 0.5]) + 3))
    roughened(model).eval()
    assert model.density == "exact"
    points, area = grid()
    x = model._observations(points)
    # An area of standardised space is one of the data's times both scales.
    area *= float(model.standardise.bijections[0].scale.prod())
    assert model.log_prob(x).double().exp().sum().item() * area == pytest.approx(1, abs=1e-3)


def test_it_is_the_mixture_of_gaussians_that_the_equation_says() -> None:
    model = roughened(GaussianRBM(Vectors(3), hidden=4)).eval()
    log_weight, means, deviation = mixture(model)
    x = torch.randn(20, 3)
    normal = torch.distributions.Normal(means, deviation).log_prob(x[:, None].double()).sum(-1)
    expected = (log_weight.log_softmax(0) + normal).logsumexp(1)
    torch.testing.assert_close(model.log_prob(x).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.enumerated_log_z().double(), log_weight.logsumexp(0), rtol=1e-5, atol=1e-4)


def test_annealed_log_z_is_within_three_standard_errors() -> None:
    model = roughened(GaussianRBM(Vectors(6), hidden=8, ais_steps=400, ais_chains=200), 0.5).eval()
    estimate, error = model.annealed_log_z()
    assert 0 < error < 0.2
    assert abs(estimate - model.enumerated_log_z()) < 3 * error


@pytest.mark.parametrize("persistent", [True, False])
def test_contrastive_divergence_is_the_likelihood_gradient_in_the_limit(persistent: bool) -> None:
    model = GaussianRBM(Vectors(2), hidden=3, persistent=persistent, gibbs_steps=30, chains=20_000)
    roughened(model, 0.5).train()
    x = torch.tensor([[1.0, -0.5]]).expand(20_000, -1)
    parameters = list(model.parameters())
    got = torch.autograd.grad(model.loss(Batch(x, torch.arange(len(x)))).total, parameters)
    exact = torch.autograd.grad(-model.log_prob(x).mean(), parameters)
    for g, e in zip(got, exact, strict=True):
        assert e.abs().max() > 0.05
        torch.testing.assert_close(g, e, rtol=0, atol=0.03)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_have_the_moments_of_the_mixture(temperature: float) -> None:
    model = roughened(GaussianRBM(Vectors(2), hidden=3, burn_in=40), 0.6).eval()
    points, _ = grid(200)
    a = model._hidden_input(points) / temperature
    quadratic = 0.5 * (points - model.visible_bias).square() @ model._precision() / temperature
    log_mass = (torch.logaddexp(a / 2, -a / 2).sum(1) - quadratic).detach()
    p = log_mass.softmax(0).double()
    mean = p @ points.double()
    covariance = (points - mean).double().T @ (p[:, None] * (points - mean))
    drawn = model.sample(20_000, temperature=temperature).double()
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.06, atol=0.06)


def test_what_is_known_is_held_and_the_rest_follows_the_conditional() -> None:
    model = roughened(GaussianRBM(Vectors(2), hidden=3, burn_in=30), 0.7).eval()
    x = torch.tensor([[0.8, 0.0]]).expand(20_000, -1)
    drawn = model.complete(x, torch.tensor([True, False]))
    assert torch.equal(drawn[:, 0], x[:, 0])
    axis = torch.linspace(-9, 9, 2000)
    p = model.log_prob(torch.stack((torch.full_like(axis, 0.8), axis), 1)).detach().double().softmax(0)
    mean = float(p @ axis.double())
    assert drawn[:, 1].mean().item() == pytest.approx(mean, abs=0.05)
    assert drawn[:, 1].var().item() == pytest.approx(float(p @ (axis - mean).double().square()), rel=0.06)


def test_nats_of_images_count_noise_and_standardisation() -> None:
    """Without hidden influence the model is a Gaussian for each pixel, whose mass of a level is known."""
    space = Images(1, 1, 2, 8)
    x = torch.randint(8, (4000, 1, 1, 2)).to(torch.uint8)
    model = GaussianRBM(space, hidden=2)
    model.adapt(Dataset(space, x))
    with torch.no_grad():
        model.weight.zero_()
    model.eval()
    assert model.density == "bound"
    real = x.double() + torch.rand(x.shape, dtype=torch.float64)
    scale, centre = (
        8 * t.double() for t in (model.standardise.bijections[1].scale, model.standardise.bijections[1].mean)
    )
    expected = torch.distributions.Normal(centre, scale).log_prob(real).flatten(1).sum(1).mean()
    assert model.log_prob(x).mean().item() == pytest.approx(expected.item(), abs=0.03)


def test_learning_finds_two_clusters() -> None:
    torch.manual_seed(0)
    sign = torch.randint(2, (2000, 1)) * 2.0 - 1
    x = (torch.randn(2000, 2) + 1.5 * sign) * torch.tensor([1.0, 10.0])
    normal = torch.distributions.Normal(torch.tensor([1.5, 15.0]), torch.tensor([1.0, 10.0]))
    best = (torch.logaddexp(normal.log_prob(x).sum(1), normal.log_prob(-x).sum(1)) - math.log(2)).mean().item()
    model = GaussianRBM(Vectors(2), hidden=4).train()
    data = Dataset(Vectors(2), x)
    model.adapt(data)
    before = model.log_prob(x).mean()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        optimiser.zero_grad()
        model.loss(data.batch(torch.randint(2000, (100,)))).total.backward()
        optimiser.step()
    assert before < best - 0.4
    assert model.eval().log_prob(x).mean() > best - 0.1


def test_two_processes_keep_the_same_chains() -> None:
    model = GaussianRBM(Vectors(3), hidden=6).train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    chains = []
    for rank in range(2):
        model.load_state_dict(start)
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            model.loss(Batch(torch.randn(10, 3), torch.arange(10)))
        chains.append(model.chains.clone())
    assert torch.equal(*chains) and not torch.equal(chains[0], start["chains"])


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="ais_chains is 1: give at least 2"):
        GaussianRBM(Vectors(3), ais_chains=1)
    with pytest.raises(TacitError, match="known is float32 of shape"):
        GaussianRBM(Vectors(3)).complete(torch.zeros(1, 3), torch.zeros(3))
