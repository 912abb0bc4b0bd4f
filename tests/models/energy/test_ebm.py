"""Deep energies: Langevin dynamics against a quadratic, the gradient of the contrast, and the replay buffer."""

import math

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.energy._deep import langevin
from tacit.models.energy.ebm import EBM
from tacit.nn import noise
from tacit.spaces import Images, Vectors

SMALL = {"channels": 4, "hidden": (8,), "langevin_steps": 2, "chains": 8, "buffer": 16, "burn_in": 2}


def test_langevin_on_a_quadratic_has_its_covariance() -> None:
    """E = xᵀ A x / 2: the chain x ← (I − s A) x + n ε has Σ = n² Σ_k (I − s A)^2k, near (n² / 2s) A⁻¹ for small s."""
    torch.manual_seed(0)
    a = torch.tensor([[2.0, 0.8], [0.8, 1.0]])
    size, deviation = 0.1, math.sqrt(0.2)
    x = langevin(
        lambda x: 0.5 * ((x @ a) * x).sum(1),
        torch.zeros(40_000, 2),
        150,
        size=size,
        noises=torch.randn,
        deviation=deviation,
    )
    damp = torch.eye(2) - size * a
    exact = deviation**2 * torch.linalg.inv(torch.eye(2) - damp @ damp)
    torch.testing.assert_close(x.T.cov(), exact, rtol=0.03, atol=0.02)
    torch.testing.assert_close(exact, torch.linalg.inv(a), rtol=0.15, atol=0.05)


def test_one_langevin_step_is_the_equation_and_is_held_in_bounds() -> None:
    x = torch.tensor([[1.0, -2.0, 30.0]])
    noises = lambda *shape, device: torch.full(shape, 2.0)  # noqa: E731
    energy = lambda x: 0.5 * x.square().sum(1)  # noqa: E731
    step = langevin(energy, x, 1, size=0.1, noises=noises, deviation=0.5)
    torch.testing.assert_close(step, 0.9 * x + 1)
    known = torch.tensor([True, False, False])
    step = langevin(energy, x, 1, size=0.1, noises=noises, deviation=0.5, reach=0.3, bound=25.0, known=known)
    torch.testing.assert_close(step, torch.tensor([[1.0, -0.8, 25.0]]))


def test_the_gradient_is_that_of_the_data_minus_that_of_the_chains() -> None:
    model = EBM(Vectors(2), **SMALL | {"magnitude": 0.0}).train()
    x = torch.randn(6, 2)
    gradients = torch.autograd.grad(model.loss(Batch(x, torch.arange(6))).total, list(model.net.parameters())[:2])
    chains = model.buffer[noise_free_rows(model)]
    naive = sum(model.net(row[None])[0] for row in x) / 6 - sum(model.net(row[None])[0] for row in chains) / 8
    for got, expected in zip(gradients, torch.autograd.grad(naive, list(model.net.parameters())[:2]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def noise_free_rows(model: EBM) -> torch.Tensor:
    """The rows of the buffer that the last step moved: those that are no longer as they were."""
    return (model.buffer != START).any(1).nonzero()[:, 0]


START = torch.zeros(16, 2)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    torch.manual_seed(0)
    begun = EBM._noise_of

    def zeros_at_first(self, count, noises):
        return START.clone() if count == 16 and isinstance(self.space, Vectors) else begun(self, count, noises)

    monkeypatch.setattr(EBM, "_noise_of", zeros_at_first)


def test_of_the_buffer_some_chains_move_and_a_share_of_them_starts_again() -> None:
    model = EBM(Vectors(1), hidden=(4,), langevin_steps=1, chains=1000, buffer=4000, restart=0.2).train()
    model.buffer.fill_(50.0)
    model.loss(Batch(torch.randn(4, 1), torch.arange(4)))
    moved = model.buffer[:, 0] != 50.0
    # Chains that went on are within a step of 50, those that began again are not.
    again = (model.buffer[:, 0] - 50).abs() > 5
    assert moved.sum() == 1000
    assert 0.16 < again.sum() / 1000 < 0.24
    model.eval()
    before = model.buffer.clone()
    model.loss(Batch(torch.randn(4, 1), torch.arange(4)))
    assert torch.equal(model.buffer, before)


def test_saved_and_resumed_chains_learn_on_alike_and_in_every_process() -> None:
    model = EBM(Vectors(3), **SMALL | {"buffer": 20}).train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = []
    for rank in (0, 0, 1):
        model.load_state_dict(start)
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            model.loss(Batch(torch.randn(4, 3), torch.arange(4)))
        buffers.append(model.buffer.clone())
    assert torch.equal(buffers[0], buffers[1]) and torch.equal(buffers[0], buffers[2])
    assert not torch.equal(buffers[0], start["buffer"])


def test_it_learns_the_energy_of_a_gaussian_in_nats() -> None:
    x = 10 * torch.randn(2000, 1) + 50
    data = Dataset(Vectors(1), x)
    model = EBM(Vectors(1), hidden=(32,), langevin_steps=10, chains=64, buffer=300, burn_in=50, magnitude=0.0).train()
    model.adapt(data)
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.0, 0.999))
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / 200)
        optimiser.zero_grad()
        model.loss(data.batch(torch.randint(2000, (64,)))).total.backward()
        optimiser.step()
    model.eval()
    # Langevin dynamics of temperature 1: two deviations away the energy is 2 nats higher.
    energy = model.energy(torch.tensor([[50.0], [30.0], [70.0]]))
    torch.testing.assert_close(energy[1:] - energy[0], torch.tensor([2.0, 2.0]), rtol=0, atol=1.0)
    drawn = model.sample(1000)
    assert drawn.mean().item() == pytest.approx(50, abs=4)
    assert drawn.std().item() == pytest.approx(10, abs=3)


def test_images_of_odd_sizes_stay_in_their_levels() -> None:
    space = Images(4, 9, 11, 17)
    model = EBM(space, **SMALL).eval()
    frames = model.chain(3, 4)
    assert frames.shape == (3, 4, *space.shape) and frames.dtype == torch.uint8 and frames.max() <= 16
    assert model.energy(frames[:, 0]).shape == (3,)


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="restart is 2: give the share of chains that start again, at most 1"):
        EBM(Vectors(3), restart=2)
    with pytest.raises(TacitError, match="chains is 64 and buffer is 10: remember at least as many"):
        EBM(Vectors(3), buffer=10)
    with pytest.raises(SpaceError, match="too small for strided convolutions"):
        EBM(Images(1, 4, 4))
