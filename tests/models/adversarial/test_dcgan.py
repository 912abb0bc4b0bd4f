"""DCGAN: the losses are the paper's, each player's gradient is its own, and images of any form come back."""

import copy

import pytest
import torch

from tacit.errors import SpaceError
from tacit.losses.adversarial import told_as_fake, told_as_real
from tacit.model import Batch
from tacit.models.adversarial.dcgan import DCGAN
from tacit.nn.strided import to_levels, to_unit
from tacit.spaces import Images


def batch_of(space: Images, rows: int = 6) -> Batch:
    return Batch(torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8), torch.arange(rows))


def small(space: Images | None = None) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(space or Images(1, 12, 12), latent=5, channels=4)


def test_losses_are_the_log_probabilities_of_the_paper():
    logits = torch.tensor([-3.0, -0.2, 0.0, 1.5, 40.0], dtype=torch.float64)
    probability = torch.sigmoid(logits)
    torch.testing.assert_close(told_as_real(logits), -probability.log().mean())
    torch.testing.assert_close(told_as_fake(logits[:4]), -(1 - probability[:4]).log().mean())
    # The logit form stays finite where 1 − σ(x) has rounded to nothing.
    torch.testing.assert_close(told_as_fake(torch.tensor([200.0])), torch.tensor(200.0))


def test_generator_loss_is_non_saturating():
    """A generator seen through (D = 1e-13) still has a gradient of one a logit; E[log(1 − D)] would have none."""
    logit = torch.tensor([-30.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(told_as_real(logit), logit)
    assert gradient.item() == pytest.approx(-1.0)


def test_steps_are_discriminator_then_generator_with_their_own_losses():
    model, batch = small(), batch_of(Images(1, 12, 12))
    steps = list(model.steps(batch))
    assert [player for player, _ in steps] == ["discriminator", "generator"]
    torch.manual_seed(3)
    losses = steps[0][1]()
    assert set(losses) == {"real", "fake"}
    torch.testing.assert_close(losses.total, losses["real"] + losses["fake"])

    reference = copy.deepcopy(model)
    torch.manual_seed(4)
    loss = steps[1][1]().total
    torch.manual_seed(4)
    fake = reference.generator(reference.noise(6))
    torch.testing.assert_close(loss, -torch.sigmoid(reference.discriminator(fake)).log().mean())


def test_each_player_is_stepped_by_the_gradient_of_its_own_loss():
    """As the loop does it: everyone else frozen, backward; what was gathered is autograd's gradient of that loss."""
    model, batch = small(), batch_of(Images(1, 12, 12))
    everyone = list(model.parameters())
    for player, closure in model.steps(batch):
        own = model.players()[player]["params"]
        for p in everyone:
            p.grad = None
            p.requires_grad_(any(p is q for q in own))
        torch.manual_seed(1)
        closure().total.backward()
        assert all(p.grad is None for p in everyone if not p.requires_grad)
        assert all(p.grad.abs().sum() > 0 for p in own), player

        for p in everyone:
            p.requires_grad_(True)
        torch.manual_seed(1)
        real = to_unit(batch.x, model.space)
        z = model.noise(6)
        fake = model.generator(z)
        if player == "discriminator":
            d = torch.sigmoid(torch.cat([model.discriminator(real), model.discriminator(fake)])).double()
            loss = -d[:6].log().mean() - (1 - d[6:]).log().mean()
        else:
            loss = -torch.sigmoid(model.discriminator(fake)).log().mean()
        expected = torch.autograd.grad(loss, own)
        for p, gradient in zip(own, expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


def test_discriminator_loss_leaves_the_generator_alone_without_the_loops_help():
    model = small()
    model.discriminator_loss(torch.zeros(4, 1, 12, 12)).total.backward()
    assert all(p.grad is None for p in model.generator.parameters())


def test_players_are_all_parameters_once():
    model = small()
    named = [p for group in model.players().values() for p in group["params"]]
    assert len(named) == len({id(p) for p in named}) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "space",
    [
        Images(1, 8, 8, levels=17),
        Images(1, 28, 28, levels=2),
        Images(3, 32, 32),
        Images(4, 9, 31),
        Images(2, 21, 27),
        Images(1, 28, 20),
        Images(1, 8, 70),
        Images(1, 67, 64),
    ],
    ids=str,
)
def test_any_size_comes_back(space: Images):
    model = small(space)
    for _, closure in model.steps(batch_of(space, 3)):
        closure().total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    sample = model.sample(5)
    assert sample.shape == (5, *space.shape) and sample.dtype == torch.uint8
    assert int(sample.max()) < space.levels
    features = model.embed(sample)
    assert features.shape[0] == 5 and features.shape[1] % 16 == 0 and features.dtype == torch.float32


def test_the_papers_size_has_the_papers_grids():
    """64×64: four halvings down to 4×4, as in figure 1; features of §5.1 are 16 numbers a map of every layer."""
    model = DCGAN(Images(3, 64, 64), channels=8).eval()
    assert model.generator.coarsest == (64, 4, 4)
    assert model.embed(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 16 * (8 + 16 + 32 + 64))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_survive_the_way_to_the_network_and_back(levels: int):
    space = Images(1, 8, 8, levels)
    x = torch.arange(levels, dtype=torch.uint8)
    unit = to_unit(x, space)
    assert unit.min() == -1 and unit.max() == pytest.approx(1)
    assert torch.equal(to_levels(unit, space), x)


def test_decode_does_not_depend_on_how_many_are_decoded_together():
    model = small().eval()
    z = model.noise(1003)
    whole = model.decode(z)
    assert whole.shape == (1003, 1, 12, 12)
    torch.testing.assert_close(model.decode(z[990:1003]).int(), whole[990:].int(), atol=1, rtol=0)


def test_temperature_zero_is_the_image_at_the_centre():
    model = small().eval()
    assert len(model.sample(4, temperature=0.0).unique(dim=0)) == 1


def test_saved_and_loaded_it_gives_the_same_numbers():
    model, other = small(), DCGAN(Images(1, 12, 12), latent=5, channels=4)
    for _, closure in model.steps(batch_of(Images(1, 12, 12))):
        closure()
    other.load_state_dict(model.state_dict())
    z = model.noise(3)
    assert torch.equal(model.eval().decode(z), other.eval().decode(z))


def test_images_too_small_are_refused_in_one_sentence():
    with pytest.raises(SpaceError, match=r"7×28 pixels are too small.*at least 8×8"):
        DCGAN(Images(1, 7, 28))


def test_it_learns_where_the_light_is():
    """Noisy squares in the left half: eighty steps move the mean sample from grey to the mean image."""
    torch.manual_seed(0)
    model = DCGAN(Images(1, 8, 8), latent=4, channels=8)
    x = torch.randint(0, 40, (32, 1, 8, 8), dtype=torch.uint8)
    x[:, :, 2:6, :4] += 200
    optimisers = {
        name: torch.optim.Adam(**group, lr=5e-3, betas=(0.5, 0.999)) for name, group in model.players().items()
    }

    def distance() -> float:
        return (model.sample(200).float().mean(0) - x.float().mean(0)).abs().mean().item()

    before = distance()
    for step in range(80):
        torch.manual_seed(step)
        for player, closure in model.steps(Batch(x, torch.arange(32))):
            model.zero_grad()
            closure().total.backward()
            optimisers[player].step()
    model.eval()
    assert distance() < 0.3 * before
