"""`tacit sample`: of a class, at one temperature or several."""

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.spaces import Images
from tacit.tasks.fit import fit
from tacit.tasks.sample import sample


def pictures(rows: int = 60) -> Dataset:
    x = torch.randint(3, (rows, 1, 4, 6)).to(torch.uint8)
    return Dataset(Images(1, 4, 6, 3), x, torch.arange(rows) % 2, "pictures")


def test_samples_of_a_class(tmp_path):
    options = {"steps": 2, "quiet": True, "pictures": 0, "hidden": (8,), "classes": 2, "label_dropout": 0.2}
    run = fit("made", pictures(), out=tmp_path / "run", **options)
    assert sample(run.path, count=4, label="1", guidance=1.0).exists()
    with pytest.raises(TacitError, match="no class is called 'cat'"):
        sample(run.path, label="cat")
    with pytest.raises(TacitError, match="2 is not a class of the model: they are 0 to 1"):
        sample(run.path, label="2")
    with pytest.raises(DataError, match="classes is 5, but pictures has 2: give that number"):
        fit("made", pictures(), steps=1, out=tmp_path / "five", quiet=True, classes=5)


def test_every_temperature_is_a_row_of_the_same_noise(tmp_path):
    run = fit("realnvp", pictures(), steps=2, out=tmp_path / "run", quiet=True, pictures=0)
    shown = sample(run.path, count=3, temperature=(1.0, 0.5, 1.0))
    drawn = torch.from_numpy(np.load(shown.with_suffix(".npy"))).unflatten(0, (3, 3))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    with Image.open(shown) as picture:
        assert picture.width / picture.height == pytest.approx(7 / 5, rel=0.1)
    with pytest.raises(TacitError, match="temperature is -1: both must be above 0"):
        sample(run.path, count=3, temperature=(1.0, -1))
    with pytest.raises(TacitError, match="there is no temperature"):
        sample(run.path, temperature=())


def test_a_chain_is_a_row_of_the_picture(tmp_path):
    options = {"steps": 2, "quiet": True, "pictures": 0}
    run = fit("ddpm", pictures(), out=tmp_path / "run", width=8, timesteps=10, **options)
    shown = sample(run.path, count=2, chain=5, steps=6, solver="dpm++")
    assert np.load(shown.with_suffix(".npy")).shape == (10, 1, 4, 6)
    with Image.open(shown) as picture:
        assert picture.width / picture.height == pytest.approx(5 * 7 / (2 * 5), rel=0.1)
    run = fit("made", pictures(), out=tmp_path / "made", hidden=(8,), **options)
    with pytest.raises(TacitError, match="made has no chain from noise to draw"):
        sample(run.path, chain=5)
    with pytest.raises(TacitError, match="has no option 'solver'"):
        sample(run.path, solver="ddim")
