"""`tacit interpolate`: its ends are the observations, its ways what they say, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.spaces import Images, Vectors
from tacit.tasks.fit import fit
from tacit.tasks.interpolate import difference, interpolate, path, spherical


@pytest.fixture(scope="module")
def data():
    x = torch.randint(3, (60, 1, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(Images(1, 4, 6, 3), x, name="pictures")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("glow") / "run"
    return fit("glow", data, steps=2, out=out, quiet=True, pictures=0, depth=2, width=8)


def test_the_ends_of_a_flow_s_path_are_the_observations_and_the_picture_has_a_line_a_pair(run, data):
    shown = interpolate(run.path, data, pairs=3, steps=5)
    between = torch.from_numpy(np.load(shown.with_suffix(".npy")))
    assert between.shape == (3, 5, 1, 4, 6)
    assert torch.equal(between[:, [0, -1]].flatten(0, 1), data.observations(6))
    with Image.open(shown) as picture:
        assert picture.width / picture.height == pytest.approx(5 * 7 / (3 * 5), rel=0.1)


@pytest.mark.parametrize("along", ["spherical", "linear"])
def test_a_table_comes_as_a_table(along, tmp_path):
    data = Dataset(Vectors(3), torch.randn(40, 3), name="table")
    run = fit("realnvp", data, steps=2, out=tmp_path / "run", quiet=True, pictures=0)
    written = interpolate(run.path, data, pairs=2, steps=4, along=along)
    rows = np.loadtxt(written, delimiter=",", skiprows=1)
    assert rows.shape == (8, 3)
    np.testing.assert_allclose(rows[[0, 3, 4, 7]], data.observations(4), atol=1e-4)


def test_an_attribute_moves_every_observation_away_from_a_class_and_towards_it(tmp_path):
    label = torch.arange(40) % 2
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 4 * label[:, None]
    data = Dataset(Vectors(3), x, label, "table", ("low", "high"))
    run = fit("realnvp", data, steps=2, out=tmp_path / "run", quiet=True, pictures=0)
    direction = difference(run.model, data, 1)
    codes = run.model.encode(x)
    torch.testing.assert_close(direction, codes[label == 1].mean(0) - codes[label == 0].mean(0))
    moved = np.load(interpolate(run.path, data, pairs=2, steps=3, attribute="high").parent / "interpolations.npy")
    np.testing.assert_allclose(moved[:, 1], data.observations(2), atol=1e-4)
    expected = run.model.decode(run.model.encode(data.observations(2)) + direction)
    np.testing.assert_allclose(moved[:, 2], expected, atol=1e-4)
    with pytest.raises(TacitError, match="no class is called 'middle': there are low, high"):
        interpolate(run.path, data, attribute="middle")
    with pytest.raises(DataError, match="table has none of class 7: an attribute needs rows with it and without"):
        interpolate(run.path, data, attribute="7")


def test_the_circle_keeps_the_norm_and_goes_evenly():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    third = spherical(a, b, torch.full((1, 2), 1 / 3))
    torch.testing.assert_close(third, 3 * torch.tensor([[3**0.5 / 2, 0.5]]))
    for end in (a, 2 * a, -a):
        assert torch.equal(spherical(a, end, torch.full((1, 2), 0.5)), (a + end) / 2)


def test_refuses_with_one_sentence(run, data, tmp_path):
    with pytest.raises(TacitError, match="steps is 1: give at least 1 and 2"):
        interpolate(run.path, data, steps=1)
    with pytest.raises(DataError, match="pictures has 60 observations, and 62 are needed"):
        interpolate(run.path, data, pairs=31)
    with pytest.raises(TacitError, match="along is 'round': give spherical or linear"):
        path(run.model, data.x[:1], data.x[1:2], 3, "round")
    with pytest.raises(SpaceError, match="but the model was fitted on"):
        interpolate(run.path, Dataset(Vectors(3), torch.zeros(9, 3), name="table"))
    other = fit("made", data, steps=1, out=tmp_path / "made", quiet=True, pictures=0, hidden=(8,))
    with pytest.raises(CapabilityError, match="made cannot interpolate: it has no encode"):
        interpolate(other.path, data)
