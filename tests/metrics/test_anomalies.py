"""Corruptions keep the space and change what they say they change; AUROC equals scikit-learn's."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from tacit.errors import DataError, SpaceError
from tacit.metrics.anomalies import auroc, corruptions, mean_auroc, neighbour_distance
from tacit.spaces import Images, Tokens, Vectors, Waveform


@pytest.mark.parametrize("space", [Images(1, 8, 8, 17), Images(3, 9, 12), Images(4, 20, 28), Images(1, 28, 28, 2)])
def test_corrupt_images_stay_in_their_space_and_every_row_changes(space):
    x = torch.randint(space.levels, (12, *space.shape), dtype=torch.uint8)
    before = x.clone()
    found = corruptions(space, x)
    assert {"noise", "blur", "occluded block", "inverted", "upside down", "shuffled patches"} == set(found)
    for name, spoilt in found.items():
        assert spoilt.shape == x.shape
        assert spoilt.dtype == torch.uint8
        assert int(spoilt.max()) <= space.levels - 1
        assert (spoilt != x).flatten(1).any(1).all(), name
    assert torch.equal(x, before)
    assert torch.equal(found["inverted"], space.levels - 1 - x)
    assert torch.equal(found["upside down"], x.flip(2))


def test_shuffled_patches_move_every_quarter_and_lose_no_pixel():
    space = Images(2, 8, 6)
    x = torch.randint(256, (30, *space.shape), dtype=torch.uint8)
    spoilt = corruptions(space, x)["shuffled patches"]
    assert torch.equal(spoilt.flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 3), slice(3, 6)):
            assert (spoilt[:, :, rows, columns] != x[:, :, rows, columns]).flatten(1).any(1).all()


def test_occlusion_is_one_block_of_about_a_sixth():
    x = torch.zeros(5, 1, 10, 10, dtype=torch.uint8)
    hidden = corruptions(Images(1, 10, 10), x)["occluded block"] != x
    assert hidden.flatten(1).sum(1).tolist() == [16] * 5
    for row in hidden[:, 0]:
        i, j = row.nonzero(as_tuple=True)
        assert (i.max() - i.min(), j.max() - j.min()) == (3, 3)


def test_blur_keeps_a_constant_image_and_softens_an_edge():
    space = Images(1, 12, 12)
    flat = torch.full((1, 1, 12, 12), 100, dtype=torch.uint8)
    assert torch.equal(corruptions(space, flat)["blur"], flat)
    edge = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    edge[..., 6:] = 255
    blurred = corruptions(space, edge)["blur"].float()
    assert blurred[0, 0].std(0).max() == 0
    assert (blurred[0, 0, 0].diff() >= 0).all()
    assert 0 < blurred[0, 0, 0, 5] < 128 < blurred[0, 0, 0, 6] < 255


def test_permuted_columns_keep_marginals_and_lose_dependence():
    x = torch.randn(500, 1).repeat(1, 3) + 0.01 * torch.randn(500, 3)
    found = corruptions(Vectors(3), x)
    permuted = found["columns permuted"]
    assert torch.equal(permuted.sort(0).values, x.sort(0).values)
    assert torch.corrcoef(permuted.T)[0, 1].abs() < 0.2
    outliers = found["one feature at 3 deviations"]
    changed = outliers != x
    assert changed.sum(1).tolist() == [1] * 500
    standardised = (outliers - x.mean(0)) / x.std(0)
    assert standardised[changed].abs().sub(3).abs().max() < 1e-4


def test_text_is_shuffled_within_its_window_or_replaced_in_part():
    x = torch.arange(20).repeat(50, 1)
    found = corruptions(Tokens(20, 20), x)
    shuffled, replaced = found["shuffled symbols"], found["one symbol in five replaced"]
    assert torch.equal(shuffled.sort(1).values, x)
    assert (shuffled != x).any(1).all()
    # A replacement is the same symbol once in twenty.
    assert 0.15 < (replaced != x).float().mean() < 0.23
    assert int(replaced.min()) >= 0
    assert int(replaced.max()) < 20


def test_small_spaces_and_unknown_ones():
    assert "shuffled patches" not in corruptions(Images(1, 1, 5), torch.zeros(2, 1, 1, 5, dtype=torch.uint8))
    assert list(corruptions(Vectors(1), torch.randn(9, 1))) == ["one feature at 3 deviations"]
    with pytest.raises(SpaceError, match="waveform"):
        corruptions(Waveform(16, 8000), torch.zeros(2, 16))


def test_auroc_equals_scikit_learn_with_and_without_ties():
    for levels in (4, 100_000):
        sound = torch.randint(levels, (57,)).float()
        spoilt = torch.randint(levels, (41,)).float() * 1.2
        expected = roc_auc_score([0] * 57 + [1] * 41, torch.cat([sound, spoilt]).numpy())
        assert auroc(sound, spoilt) == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.zeros(3), torch.tensor([1.0, torch.inf])) == 1
    assert auroc(torch.zeros(3), torch.zeros(2)) == 0.5
    with pytest.raises(DataError, match="NaN"):
        auroc(torch.zeros(3), torch.tensor([torch.nan]))


def test_mean_auroc_is_the_mean_and_its_error_that_of_repeated_draws():
    def draw(rows):
        sound = torch.randn(rows)
        return sound, {"near": sound + 0.5, "far": torch.randn(rows) + 2}

    sound, spoilt = draw(300)
    value, error = mean_auroc(sound, spoilt)
    assert value == pytest.approx((auroc(sound, spoilt["near"]) + auroc(sound, spoilt["far"])) / 2)
    spread = torch.tensor([mean_auroc(*draw(300), resamples=2)[0] for _ in range(100)]).std()
    assert 0.6 < error / spread < 1.6


def test_neighbour_distance_equals_a_loop():
    train, x = torch.randn(30, 4), torch.randn(7, 4)
    expected = [sum(sorted(float((row - other).norm()) for other in train)[:5]) / 5 for row in x]
    assert neighbour_distance(train, x).tolist() == pytest.approx(expected, rel=1e-4)
