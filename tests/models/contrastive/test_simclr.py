import math

import pytest
import torch

from tacit.errors import TrainingError
from tacit.losses.contrastive import nt_xent
from tacit.model import Batch
from tacit.models.contrastive.simclr import SimCLR
from tacit.spaces import Images


def model_and_batch(channels=1, height=12, width=12, levels=256, count=8, **arguments):
    space = Images(channels, height, width, levels)
    x = torch.randint(0, levels, (count, *space.shape), dtype=torch.uint8)
    return SimCLR(space, width=8, hidden=16, projection=8, **arguments), Batch(x, torch.arange(count))


def test_the_loss_is_nt_xent_of_two_views_in_one_pass():
    model, batch = model_and_batch()
    torch.manual_seed(5)
    losses = model.loss(batch)
    torch.manual_seed(5)
    views = [model.augment(batch.x) for _ in range(2)]
    assert not torch.allclose(*views)
    expected, found = nt_xent(model.projector(model.features(torch.cat(views))), model.temperature)
    assert torch.allclose(losses.total, expected)
    assert torch.allclose(losses["nt_xent"], expected)
    assert losses["accuracy"] == found


@pytest.mark.parametrize(
    ("channels", "height", "width", "levels"),
    [(1, 8, 8, 17), (1, 28, 28, 2), (3, 20, 28, 256), (4, 33, 15, 256), (1, 4, 5, 256)],
)
@pytest.mark.parametrize("residual", [False, True])
def test_every_parameter_learns_and_any_image_is_taken(channels, height, width, levels, residual):
    model, batch = model_and_batch(channels, height, width, levels, residual=residual, blur=0.5, layers=3)
    model.loss(batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert model.eval().embed(batch.x).shape == (8, model.projector[0].in_features)


def test_identical_images_cannot_be_told_apart():
    model, batch = model_and_batch(crop=1.0, flip=False, jitter=0.0)
    same = Batch(batch.x[:1].expand(6, -1, -1, -1), batch.index[:6])
    # All twelve rows are alike, so each of the eleven others is as good as the right one.
    assert model.loss(same).total.item() == pytest.approx(math.log(11), abs=1e-4)


def test_embedding_is_of_the_image_alone():
    model, batch = model_and_batch()
    model.loss(batch)
    model.eval()
    first = model.embed(batch.x)
    assert torch.equal(first, model.embed(batch.x))
    assert torch.allclose(first[3:4], model.embed(batch.x[3:4]), atol=1e-5)
    assert not first.requires_grad


def test_it_learns_to_tell_images_apart():
    model, _ = model_and_batch(crop=0.8, flip=False)
    x = torch.randint(0, 256, (32, 1, 3, 3), dtype=torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    batch = Batch(x, torch.arange(32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model.loss(batch).total.item()
    for _ in range(20):
        losses = model.loss(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert losses.total.item() < 0.5 * first
    assert losses["accuracy"] > 0.7


def test_saved_and_loaded_it_gives_the_same_features():
    model, batch = model_and_batch()
    model.loss(batch)
    other, _ = model_and_batch()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval().embed(batch.x), other.eval().embed(batch.x))


def test_a_batch_of_one_is_refused():
    model, batch = model_and_batch(count=1)
    with pytest.raises(TrainingError, match="at least 2"):
        model.loss(batch)
