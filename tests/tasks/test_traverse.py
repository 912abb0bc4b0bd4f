"""`tacit traverse`: lines along the dimensions that vary, the plane of two, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.spaces import Images, Vectors
from tacit.tasks.fit import fit
from tacit.tasks.traverse import along, plane, traverse


@pytest.fixture(scope="module")
def data():
    x = torch.randint(3, (60, 1, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(Images(1, 4, 6, 3), x, name="pictures")


def fitted(data, out, name="vae", **arguments):
    return fit(name, data, steps=2, out=out, quiet=True, pictures=0, **arguments)


def test_a_plane_is_shown_at_the_quantiles_of_a_gaussian(data, tmp_path):
    run = fitted(data, tmp_path / "run", latent=2, hidden=(8,))
    shown = traverse(run.path, data, steps=5)
    decoded = torch.from_numpy(np.load(shown.with_suffix(".npy")))
    assert decoded.shape == (5, 5, 1, 4, 6)
    with Image.open(shown) as picture:
        assert picture.width / picture.height == pytest.approx(7 / 5, rel=0.01)
    z = plane(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]), 5)
    normal = torch.distributions.Normal(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(normal.cdf(z[2, :, 1:])[:, 1], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    torch.testing.assert_close(normal.cdf(z[:, 2, :])[:, 0], torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1]))
    codes = run.model.encode(data.observations())
    middle = run.model.decode(codes.mean(0)[None])
    assert torch.equal(decoded[2, 2], middle[0])


def test_every_line_changes_one_dimension_of_one_observation_s_code():
    at, mean = torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])
    z = along(at, mean, torch.tensor([0.1, 3.0, 1.0]), dimensions=2, steps=3, reach=2.0)
    expected = [[[9, -4, 7], [9, 2, 7], [9, 8, 7]], [[9, 8, 1], [9, 8, 3], [9, 8, 5]]]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("name", ["vae", "glow"])
def test_lines_of_vectors_and_of_codes_with_a_shape(name, data, tmp_path):
    run = fitted(data, tmp_path / "run", name, **{"vae": {"latent": 5, "hidden": (8,)}, "glow": {"width": 8}}[name])
    shown = traverse(run.path, data, index=3, dimensions=4, steps=3)
    decoded = torch.from_numpy(np.load(shown.with_suffix(".npy")))
    assert decoded.shape == (4, 3, 1, 4, 6)
    code = run.model.encode(data.observations())
    at, mean, deviation = code[3].flatten(), code.mean(0).flatten(), code.std(0).flatten()
    first = at.clone()
    most = deviation.argmax()
    first[most] = mean[most] + 3 * deviation[most]
    torch.testing.assert_close(decoded[0, 2], run.model.decode(first.view(1, *code.shape[1:]))[0], rtol=0, atol=1)


def test_a_table_comes_as_a_table(tmp_path):
    data = Dataset(Vectors(3), torch.randn(40, 3), name="table")
    run = fitted(data, tmp_path / "run", "autoencoder", latent=4, hidden=(8,))
    assert np.loadtxt(traverse(run.path, data), delimiter=",", skiprows=1).shape == (4 * 9, 3)


def test_refuses_with_one_sentence(data, tmp_path):
    run = fitted(data, tmp_path / "run", latent=2, hidden=(8,))
    with pytest.raises(TacitError, match="steps is 1, dimensions is 10 and reach is 3"):
        traverse(run.path, data, steps=1)
    with pytest.raises(DataError, match="pictures has 60 observations: give two or more, and an --index among them"):
        traverse(run.path, data, index=60)
    with pytest.raises(SpaceError, match="but the model was fitted on"):
        traverse(run.path, Dataset(Vectors(3), torch.zeros(9, 3), name="table"))
    other = fitted(data, tmp_path / "made", "made", hidden=(8,))
    with pytest.raises(CapabilityError, match="made cannot traverse: it has no encode"):
        traverse(other.path, data)
