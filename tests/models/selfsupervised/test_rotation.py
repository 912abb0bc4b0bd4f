import math

import pytest
import torch
from torch.nn import functional as F

from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.selfsupervised.rotation import Rotation, rotations
from tacit.spaces import Images


def model_and_batch(channels=1, height=12, width=12, levels=256, count=6, **arguments):
    space = Images(channels, height, width, levels)
    x = torch.randint(0, levels, (count, *space.shape), dtype=torch.uint8)
    return Rotation(space, width=8, **arguments), Batch(x, torch.arange(count))


def test_rotations_are_index_arithmetic():
    x = torch.arange(2 * 9).view(2, 1, 3, 3)
    found = rotations(x).view(4, 2, 1, 3, 3)
    for i in range(3):
        for j in range(3):
            assert torch.equal(found[0, :, :, i, j], x[:, :, i, j])
            assert torch.equal(found[1, :, :, i, j], x[:, :, j, 2 - i])
            assert torch.equal(found[2, :, :, i, j], x[:, :, 2 - i, 2 - j])
            assert torch.equal(found[3, :, :, i, j], x[:, :, 2 - j, i])


def test_the_loss_is_the_mean_over_images_of_four_cross_entropies():
    model, batch = model_and_batch(flip=False)
    # Batch norm mixes the batch while learning; as it stands in evaluation mode a loop sees the same network.
    model.eval()
    expected = 0.0
    for image in batch.x:
        for y in range(4):
            turned = torch.rot90(image.float() / 255, y, (1, 2)).unsqueeze(0)
            expected += F.cross_entropy(model.classifier(model.encoder(turned).mean((2, 3))), torch.tensor([y])).item()
    losses = model.loss(batch)
    assert losses.total.item() == pytest.approx(expected / (4 * len(batch.x)), abs=1e-5)
    assert losses["cross_entropy"].item() == losses.total.item()


def test_pictures_that_look_alike_from_all_sides_cannot_be_told():
    model, batch = model_and_batch()
    same = Batch(torch.full_like(batch.x, 90), batch.index)
    losses = model.loss(same)
    # All rows are alike: one answer for all four, which is right for a quarter of them.
    assert losses["accuracy"] == 0.25
    assert losses.total.item() >= math.log(4) - 1e-5


@pytest.mark.parametrize(
    ("channels", "height", "width", "levels"),
    [(1, 8, 8, 17), (1, 28, 28, 2), (3, 20, 28, 256), (4, 33, 15, 256), (1, 4, 5, 256)],
)
@pytest.mark.parametrize("residual", [False, True])
def test_every_parameter_learns_and_any_image_is_taken(channels, height, width, levels, residual):
    model, batch = model_and_batch(channels, height, width, levels, residual=residual, crop=0.8, jitter=0.2)
    model.loss(batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    features = model.eval().embed(batch.x)
    assert features.shape == (6, model.encoder.widths[model.layer - 1] * model.pool**2)
    assert torch.allclose(features[2:3], model.embed(batch.x[2:3]), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5)])
def test_square_windows_are_slices_at_every_place(height, width):
    model, _ = model_and_batch(2, height, width)
    x = torch.randint(0, 256, (400, 2, height, width), dtype=torch.uint8)
    starts = set()
    for image, window in zip(x, model._square(x), strict=True):
        assert window.shape == (2, 5, 5)
        along = [
            i for i in range(5) if torch.equal(window, image[:, i : i + 5] if height > 5 else image[:, :, i : i + 5])
        ]
        assert along
        starts.update(along)
    assert starts == {0, 1, 2, 3, 4}


def test_the_layer_is_the_one_asked_for():
    model, batch = model_and_batch(layer=1, pool=2)
    model.eval()
    expected = F.adaptive_avg_pool2d(model.encoder.stages[0](batch.x.float() / 255), 2).flatten(1)
    assert torch.allclose(model.embed(batch.x), expected, atol=1e-6)
    with pytest.raises(TacitError, match="layer is 9"):
        model_and_batch(layer=9)


def test_saved_and_loaded_it_gives_the_same_features():
    model, batch = model_and_batch()
    model.loss(batch)
    other, _ = model_and_batch()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval().embed(batch.x), other.eval().embed(batch.x))


def test_it_learns_which_way_is_up():
    model, _ = model_and_batch()
    x = torch.randint(0, 60, (32, 1, 12, 12), dtype=torch.uint8)
    x[:, :, :4] += 150
    batch = Batch(x, torch.arange(32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        losses = model.loss(batch)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert losses["accuracy"] > 0.95
