"""The generator's entropy against a linear-Gaussian closed form, the players' gradients, and what is learnt."""

import pytest
import torch
from torch import nn

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress
from tacit.models.energy.generator_ebm import GeneratorEBM
from tacit.spaces import Images, Vectors
from tacit.training.learner import Learner

SMALL = {"channels": 4, "hidden": (8,), "latent": 3, "samples": 3, "burn_in": 2, "refine": 2}


def linear(samples: int) -> GeneratorEBM:
    """x = A z + b + σ ε: q = N(b, A Aᵀ + σ² I), and q(z|x) is Gaussian."""
    torch.manual_seed(0)
    model = GeneratorEBM(Vectors(3), latent=2, samples=samples)
    model.generator = nn.Linear(2, 3)
    with torch.no_grad():
        model.log_sigma.fill_(0.28).log_()
        model.generator.weight.copy_(torch.tensor([[0.9, 0.1], [-0.3, 0.6], [0.2, 0.4]]))
        model.log_eta.fill_(0.35).log_()
    return model


def covariance(model: GeneratorEBM) -> torch.Tensor:
    a = model.generator.weight
    return a @ a.T + model.sigma() ** 2 * torch.eye(3)


def test_the_score_is_that_of_a_gaussian() -> None:
    model = linear(3000)
    z = torch.randn(8, 2)
    x = model._drawn(z).detach()
    exact = -torch.linalg.solve(covariance(model), (x - model.generator.bias).T).T
    torch.testing.assert_close(model.score(x, z), exact, rtol=0.1, atol=0.25)


def test_the_entropy_gradient_is_that_of_the_closed_form() -> None:
    """H = ½ log det(A Aᵀ + σ² I) + constant, and the loss is −H where the energy is flat."""
    model = linear(200)
    for p in model.net.parameters():
        nn.init.zeros_(p)
    parameters = [model.generator.weight, model.log_sigma]
    got = torch.autograd.grad(model.generator_loss(20_000).total, parameters)
    exact = torch.autograd.grad(-0.5 * torch.logdet(covariance(model)), parameters)
    for g, e in zip(got, exact, strict=True):
        assert e.abs().max() > 0.1
        torch.testing.assert_close(g, e, rtol=0.05, atol=0.06)


def test_the_widths_that_the_bound_is_largest_at_are_the_posteriors() -> None:
    """The best η² of a factorised Gaussian is 1 / diag(I + Aᵀ A / σ²)."""
    model = linear(1)
    with torch.no_grad():
        a = model.generator.weight
        best = (1 + a.square().sum(0) / model.sigma() ** 2).rsqrt()
        model.log_eta.copy_(best.log())
    (gradient,) = torch.autograd.grad(model.posterior_loss(50_000).total, [model.log_eta])
    assert gradient.abs().max() < 0.05
    with torch.no_grad():
        model.log_eta.add_(0.3)
    assert torch.autograd.grad(model.posterior_loss(50_000).total, [model.log_eta])[0].min() > 0.3


def test_each_player_steps_by_the_gradient_of_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    model = GeneratorEBM(Vectors(2), **SMALL).train()
    learner = Learner(model, model.recipe)
    for player, closure in model.steps(Batch(torch.randn(8, 2), torch.arange(8))):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        learner._act(player, closure, "", 0)
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        mine = {name for name, p in model.named_parameters() if any(p is q for q in learner.members[player])}
        assert changed and changed <= mine


def test_it_learns_where_a_table_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]]) * 5 + 20
    data = Dataset(Vectors(2), x)
    model = GeneratorEBM(Vectors(2), latent=2, hidden=(32,), samples=10, energy_rate=2e-3).train()
    model.adapt(data)
    learner = Learner(model, model.recipe.__class__(learning_rate=2e-3, optimiser="Adam", betas=(0.0, 0.9)))
    for step in range(250):
        learner.step(data.batch(torch.randint(2000, (64,))), Progress(step, 0, step / 250))
    model.eval()
    drawn = model.sample(2000)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=4.0)
    assert drawn.T.corrcoef()[0, 1] > 0.6
    energy = model.energy(torch.tensor([[20.0, 20.0], [26.0, 13.0], [14.0, 27.0]]))
    assert energy[0] < energy[1:].mean()


def test_images_of_odd_sizes_stay_in_their_levels() -> None:
    space = Images(3, 9, 11, 5)
    model = GeneratorEBM(space, **SMALL).eval()
    frames = model.chain(2, 3)
    assert frames.shape == (2, 3, *space.shape) and frames.dtype == torch.uint8 and frames.max() <= 4
    assert model.decode(torch.randn(2, 3)).shape == (2, *space.shape)


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="samples is 0: give at least 1"):
        GeneratorEBM(Vectors(3), samples=0)
