import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tacit.errors import SpaceError
from tacit.nn import noise
from tacit.nn.augment import Augment, blur, colour_matrix, recolour, warp

LUMA = (0.299, 0.587, 0.114)
EVERYTHING = Augment(
    crop=0.3, flip=0.5, rotation=20, shift=0.1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    jitter=0.8, grey=0.2, blur=0.5, noise=0.05,
)  # fmt: skip


def images(*shape: int, levels: int = 256) -> torch.Tensor:
    return torch.randint(0, levels, shape, dtype=torch.uint8)


def affine(*rows: float) -> torch.Tensor:
    return torch.tensor(rows).view(1, 2, 3)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 3, 17, 9), (5, 4, 8, 8)])
@pytest.mark.parametrize("levels", [2, 256])
def test_without_strength_nothing_changes(shape, levels):
    x = images(*shape, levels=levels)
    assert torch.allclose(Augment(levels=levels)(x), x.float() / (levels - 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 17, 9)])
def test_the_identity_map_changes_nothing(shape):
    x = torch.rand(shape)
    assert torch.allclose(warp(x, affine(1, 0, 0, 0, 1, 0).expand(2, 2, 3)), x, atol=1e-5)


def test_a_mirror_is_index_reversal():
    x = torch.rand(3, 2, 7, 10)
    assert torch.allclose(warp(x, affine(-1, 0, 0, 0, 1, 0).expand(3, 2, 3)), x.flip(3), atol=1e-5)
    u = images(200, 1, 6, 5)
    mirrored = Augment(flip=0.5)(u) * 255
    same = (mirrored - u).flatten(1).abs().amax(1) < 0.01
    reversed_ = (mirrored - u.flip(3)).flatten(1).abs().amax(1) < 0.01
    assert (same | reversed_).all()
    assert 70 < same.sum() < 130


def test_a_shift_by_whole_pixels_is_a_slice():
    x = torch.rand(1, 1, 8, 10)
    # Three pixels right and two down in the source: 2 · 3 / width and 2 · 2 / height.
    shifted = warp(x, affine(1, 0, 0.6, 0, 1, 0.5))
    assert torch.allclose(shifted[..., :6, :7], x[..., 2:, 3:], atol=1e-5)
    assert torch.allclose(shifted[..., 6:, :7], x[..., -1:, 3:].expand(1, 1, 2, 7), atol=1e-5)


def test_a_crop_is_a_slice_scaled_up():
    x = torch.rand(1, 3, 16, 12)
    # The window of rows 4..11 and columns 0..5, half of each side.
    found = warp(x, affine(0.5, 0, -0.5, 0, 0.5, 0))
    expected = F.interpolate(x[..., 4:12, :6], scale_factor=2, mode="bilinear", align_corners=False)
    # The outermost pixels look half a pixel beyond the window, where `interpolate` sees nothing.
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5)


def test_a_quarter_turn_is_rot90_whatever_the_aspect():
    x = torch.rand(1, 1, 9, 9)
    assert torch.allclose(warp(x, affine(0, -1, 0, 1, 0, 0)), torch.rot90(x, 1, (2, 3)), atol=1e-5)
    # A disc turned by 30 degrees is the same disc, also where the picture is not square.
    rows, columns = torch.meshgrid(torch.arange(33) - 16.0, torch.arange(65) - 32.0, indexing="ij")
    disc = (255 * torch.sigmoid(12 - (rows**2 + columns**2).sqrt())).to(torch.uint8).expand(20, 1, 33, 65)
    assert (Augment(rotation=90)(disc) - disc.float() / 255).abs().max() < 0.1


def test_crops_lie_inside_the_image_and_keep_their_share():
    # Each pixel holds its own coordinates, so the corners of the output say which window was taken.
    rows = torch.arange(101.0).view(1, 1, -1, 1).expand(1, 1, 101, 101)
    x = torch.cat((rows, rows.transpose(2, 3)), 1).to(torch.uint8).expand(300, -1, -1, -1)
    found = Augment(levels=101, crop=0.25, ratio=4 / 3)(x) * 100
    height = (found[:, 0, -1, 50] - found[:, 0, 0, 50] + 1) / 101
    width = (found[:, 1, 50, -1] - found[:, 1, 50, 0] + 1) / 101
    area, ratio = height * width, width / height
    assert area.min() > 0.24
    assert area.max() < 1.01
    assert 0.58 < area.mean() < 0.67
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.35


def test_a_colour_matrix_an_image_equals_a_loop_over_images():
    x = torch.rand(6, 3, 5, 4)
    matrix, offset = torch.randn(6, 3, 3) * 0.3, torch.rand(6)
    found = recolour(x, matrix, offset)
    for b in range(6):
        expected = torch.einsum("ij,jhw->ihw", matrix[b], x[b]) + offset[b]
        assert torch.allclose(found[b], expected.clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_brightness_then_contrast_as_the_docstring_says(channels, monkeypatch):
    x = images(4, channels, 6, 5)
    u = torch.rand(4, 18)
    monkeypatch.setattr(noise, "rand", lambda *shape, device=None: u)
    found = Augment(brightness=0.5, contrast=0.8)(x)
    for b in range(4):
        brightness, contrast = 1 + 0.5 * (2 * u[b, 9] - 1), 1 + 0.8 * (2 * u[b, 10] - 1)
        bright = brightness * x[b].float() / 255
        weights = torch.tensor(LUMA) if channels == 3 else torch.full((channels,), 1 / channels)
        mean = (weights.view(-1, 1, 1) * bright).sum(0).mean()
        assert torch.allclose(found[b], (contrast * bright + (1 - contrast) * mean).clamp(0, 1), atol=1e-5)


def test_saturation_hue_and_grey():
    x = torch.rand(1, 3, 5, 5)
    one, zero = torch.ones(1), torch.zeros(1)
    no, yes = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    luma = (torch.tensor(LUMA).view(1, 3, 1, 1) * x).sum(1, keepdim=True).expand_as(x)

    def apply(saturation, turn, grey):
        return torch.einsum("bij,bjhw->bihw", colour_matrix(saturation, turn, grey), x)

    assert torch.allclose(apply(one, zero, no), x, atol=1e-3)
    assert torch.allclose(apply(one, zero, yes), luma, atol=1e-5)
    assert torch.allclose(apply(zero, zero, no), luma, atol=1e-3)
    assert torch.allclose(apply(one / 2, zero, no), (x + luma) / 2, atol=1e-3)
    # A full turn is none, two halves are a full one, and luma never changes.
    half = colour_matrix(one, math.pi * one, no)
    assert torch.allclose(half @ half, torch.eye(3), atol=1e-4)
    turned = apply(one, one, no)
    assert torch.allclose((torch.tensor(LUMA).view(1, 3, 1, 1) * turned).sum(1), luma[:, 0], atol=1e-3)
    assert (turned - x).abs().max() > 0.1


def test_blur_is_a_gaussian_and_keeps_constants():
    x = torch.zeros(2, 1, 21, 21)
    x[:, :, 10, 10] = 1
    found = blur(x, torch.tensor([0.0, 1.5]))
    assert torch.allclose(found[0], x[0])
    place = torch.arange(21.0) - 10
    expected = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    assert torch.allclose(found[1, 0], expected / expected.sum(), atol=1e-5)
    flat = torch.full((1, 3, 6, 9), 0.7)
    assert torch.allclose(blur(flat, torch.tensor([2.0])), flat, atol=1e-6)


@pytest.mark.parametrize(("shape", "levels"), [((6, 1, 28, 28), 2), ((6, 3, 20, 28), 256), ((6, 4, 8, 8), 256)])
def test_everything_at_once_stays_in_range(shape, levels):
    x = images(*shape, levels=levels)
    found = replace(EVERYTHING, levels=levels)(x)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.allclose(found[0], found[1])


def test_two_processes_change_images_as_one_does():
    x = images(8, 3, 10, 10)
    torch.manual_seed(3)
    whole = EVERYTHING(x)
    for rank in range(2):
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            assert torch.allclose(EVERYTHING(x[rank::2]), whole[rank::2], atol=1e-6)


def test_refuses_what_is_no_batch_of_images():
    with pytest.raises(SpaceError, match="batch"):
        EVERYTHING(images(3, 8, 8))
