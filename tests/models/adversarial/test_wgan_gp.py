"""WGAN-GP: the penalty has the gradient that theory gives it, and the players take turns five to one."""

import math

import pytest
import torch
from torch import nn

from tacit.data import Dataset
from tacit.losses.adversarial import gradient_penalty
from tacit.model import Batch
from tacit.models.adversarial.wgan_gp import WGANGP
from tacit.nn import noise
from tacit.spaces import Images, Vectors


def vectors(rows: int = 40, **arguments) -> tuple[WGANGP, Dataset]:
    torch.manual_seed(0)
    model = WGANGP(Vectors(3), latent=2, hidden=(16, 16), **arguments)
    return model, Dataset(Vectors(3), torch.randn(rows, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5)


def test_penalty_of_a_linear_critic_is_known():
    """For D(x) = w·x the slope is w everywhere: the penalty is (‖w‖ − 1)², its gradient 2(‖w‖ − 1) w/‖w‖."""
    w = torch.tensor([3.0, 0.0, 4.0], requires_grad=True)
    value = gradient_penalty(lambda x: x @ w, torch.randn(7, 3), torch.randn(7, 3))
    assert value.item() == pytest.approx(16.0)
    (gradient,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(gradient, 8.0 * torch.tensor([0.6, 0.0, 0.8]))


def test_penalty_of_a_quadratic_critic_is_that_of_points_between_the_pairs():
    """For D(x) = ‖x‖²/2 the slope at x̂ is ‖x̂‖; with real = a and fake = −a it is |2ε − 1| ‖a‖, ε uniform."""
    a = torch.tensor([[6.0, 8.0]]).expand(200_000, 2)
    torch.manual_seed(0)
    value = gradient_penalty(lambda x: x.square().sum(1) / 2, a, -a)
    # E[(10 s − 1)²] with s uniform on [0, 1]: 100/3 − 10 + 1.
    assert value.item() == pytest.approx(100 / 3 - 9, rel=0.01)


def test_penalty_equals_a_loop_over_rows_and_its_gradient_is_autograds():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    real, fake = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    torch.manual_seed(1)
    value = gradient_penalty(critic, real, fake)
    torch.manual_seed(1)
    shares = noise.rand(5, 1)
    naive = 0.0
    for r, f, share in zip(real, fake, shares, strict=True):
        point = (share * r + (1 - share) * f).requires_grad_()
        (slope,) = torch.autograd.grad(critic(point[None])[0], point, create_graph=True)
        naive = naive + (slope.pow(2).sum().sqrt() - 1) ** 2 / 5
    torch.testing.assert_close(value, naive)
    weights = [p for p in critic.parameters() if p.dim() > 1]
    for ours, theirs in zip(torch.autograd.grad(value, weights), torch.autograd.grad(naive, weights), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_penalty_of_a_flat_critic_has_a_finite_gradient():
    w = torch.zeros(3, requires_grad=True)
    value = gradient_penalty(lambda x: x @ w, torch.randn(4, 3), torch.randn(4, 3))
    value.backward()
    assert value.item() == 1 and torch.isfinite(w.grad).all()


def test_five_critic_steps_on_fresh_rows_then_one_of_the_generator():
    model, data = vectors(40)
    model.adapt(data)
    seen = []
    model.critic_loss = seen.append
    (index,) = model.batches(data, 8, torch.Generator().manual_seed(0))
    players = []
    for player, closure in model.steps(data.batch(index)):
        closure()
        players.append(player)
    assert players == ["critic"] * 5 + ["generator"]
    assert [len(real) for real in seen] == [8] * 5
    rows = model.standardise.inverse(torch.cat(seen))
    torch.testing.assert_close(rows.sort(0).values, data.x.sort(0).values)  # every row once


def test_data_too_small_for_fresh_rows_is_drawn_again():
    model, data = vectors(11)
    (index,) = model.batches(data, 8, torch.Generator().manual_seed(0))
    assert index.shape == (40,)
    assert all(len(part.unique()) == 8 for part in index.chunk(5))
    (index,) = model.batches(data, 64, torch.Generator().manual_seed(0))
    assert index.shape == (55,) and all(len(part.unique()) == 11 for part in index.chunk(5))
    assert [player for player, _ in model.steps(data.batch(index))] == ["critic"] * 5 + ["generator"]


def test_losses_are_the_papers_and_each_player_gets_its_own_gradient():
    model, data = vectors(40, penalty=2.5)
    model.adapt(data)
    everyone = list(model.parameters())
    for player, closure in model.steps(data.batch(torch.arange(40))):
        own = model.players()[player]["params"]
        for p in everyone:
            p.grad = None
            p.requires_grad_(any(p is q for q in own))
        torch.manual_seed(1)
        losses = closure()
        losses.total.backward()
        assert all(p.grad is None for p in everyone if not p.requires_grad)
        assert all(p.grad.abs().sum() > 0 for p in own), player
        for p in everyone:
            p.requires_grad_(True)
        torch.manual_seed(1)
        fake = model.generator(model.noise(8))
        if player == "critic":
            torch.testing.assert_close(losses.total, losses["penalty"] - losses["wasserstein"])
            continue
        loss = -model.critic(fake).mean()
        torch.testing.assert_close(losses.total, loss)
        for p, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            torch.testing.assert_close(p.grad, gradient)


def test_critic_loss_by_hand():
    model, _ = vectors(penalty=2.5)
    real = torch.randn(9, 3)
    torch.manual_seed(5)
    losses = model.critic_loss(real)
    losses.total.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    torch.manual_seed(5)
    fake = model.generator(model.noise(9)).detach()
    between = (fake + noise.rand(9, 1) * (real - fake)).requires_grad_()
    (slope,) = torch.autograd.grad(model.critic(between).sum(), between)
    torch.testing.assert_close(losses["wasserstein"], model.critic(real).mean() - model.critic(fake).mean())
    torch.testing.assert_close(losses["penalty"].detach(), 2.5 * ((slope.norm(dim=1) - 1) ** 2).mean())


def test_critic_finds_the_distance_between_two_points_masses():
    """Data at 1, a generator stuck at 0: the optimal critic's estimate is the Wasserstein distance, 1."""
    torch.manual_seed(0)
    model = WGANGP(Vectors(1), latent=1, hidden=(32,), penalty=10.0)
    for p in model.generator.parameters():
        nn.init.zeros_(p)
    optimiser = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        losses = model.critic_loss(torch.ones(64, 1))
        losses.total.backward()
        optimiser.step()
    # With penalty λ the optimum is a slope of 1 + 1/(2λ): that much above the distance.
    assert losses["wasserstein"].item() == pytest.approx(1.05, abs=0.05)


@pytest.mark.parametrize(
    "space", [Images(1, 8, 8, 17), Images(1, 13, 20, 2), Images(3, 16, 16), Images(4, 9, 9)], ids=str
)
def test_images_of_any_form(space: Images):
    torch.manual_seed(0)
    model = WGANGP(space, latent=4, channels=4, critic_steps=2)
    x = torch.randint(space.levels, (6, *space.shape), dtype=torch.uint8)
    for _, closure in model.steps(Batch(x, torch.arange(6))):
        closure().total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    sample = model.eval().sample(5)
    assert sample.shape == (5, *space.shape) and sample.dtype == torch.uint8 and int(sample.max()) < space.levels
    assert model.embed(sample).shape[0] == 5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_vectors_come_back_in_the_users_units():
    model, data = vectors(400)
    model.adapt(data)
    sample = model.eval().sample(700)
    assert sample.shape == (700, 3) and sample.dtype == torch.float32
    z = model.noise(700)
    expected = model.generator(z) * data.x.std(0, unbiased=False) + data.x.mean(0)
    torch.testing.assert_close(model.decode(z), expected)
    assert model.embed(data.x).shape == (400, 16)


def test_rows_are_treated_apart():
    """No batch statistics anywhere: the critic's loss of a batch is the mean of the losses of its halves."""
    torch.manual_seed(0)
    model = WGANGP(Images(1, 8, 8), latent=3, channels=4)
    x, z = torch.randn(6, 1, 8, 8), model.noise(6)
    torch.testing.assert_close(model.critic(x)[2:3], model.critic(x[2:3]))
    torch.testing.assert_close(model.generator(z)[2:3], model.generator(z[2:3]))


def test_saved_and_loaded_it_gives_the_same_numbers():
    model, data = vectors()
    model.adapt(data)
    other = WGANGP(Vectors(3), latent=2, hidden=(16, 16))
    other.load_state_dict(model.state_dict())
    z = model.noise(3)
    assert torch.equal(model.decode(z), other.decode(z))
    assert math.isclose(other.standardise.scale[1].item(), model.standardise.scale[1].item())
