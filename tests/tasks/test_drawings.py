"""The verbs on drawings of pen strokes."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import Dataset
from tacit.errors import SpaceError
from tacit.spaces import Strokes
from tacit.tasks.compare import compare
from tacit.tasks.complete import complete
from tacit.tasks.evaluate import measure
from tacit.tasks.fit import fit
from tacit.tasks.interpolate import interpolate
from tacit.tasks.sample import sample
from tacit.training import pictures

SVG = "{http://www.w3.org/2000/svg}"


def paths(file) -> list[str]:
    return [path.get("d") for path in ET.parse(file).iter(f"{SVG}path")]


@pytest.fixture(scope="module")
def data() -> Dataset:
    x = torch.randint(-9, 10, (60, 6, 3))
    x[..., 2] = torch.rand(60, 6) < 0.3
    x[1:, 4:] = torch.tensor([0, 0, 2])
    return Dataset(Strokes(6), x.to(torch.int16), torch.arange(60) % 2, "scribbles")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    options = {"latent": 4, "encoder": 6, "decoder": 8, "mixtures": 2, "steps": 2, "pictures": 1, "quiet": True}
    return fit("sketch-rnn", data, out=tmp_path_factory.mktemp("runs") / "run", **options)


def test_samples_are_scalable(run):
    file = sample(run.path, count=5, temperature=(0.5, 1.0))
    assert file.suffix == ".svg" and len(paths(file)) == 10
    drawn = torch.from_numpy(np.load(file.with_suffix(".npy")))
    assert drawn.shape == (10, 6, 3) and torch.equal(Strokes(6).check_values(drawn), drawn)


def test_completions_lie_beside_what_they_go_on_with(run, data):
    file = complete(run.path, data, count=3, each=2)
    found = paths(file)
    assert len(found) == 12
    done = np.load(file.with_suffix(".npy"))
    assert (done[:2, :2] == data.x[:1, :2].numpy()).all()
    # The shortest has four points, of which two are known.
    assert found[1].count(" ") < found[0].count(" ")


def test_interpolations_evaluation_and_features(run, data):
    assert len(paths(interpolate(run.path, data, pairs=2, steps=3))) == 6
    measured = measure(run, data)
    assert measured.likelihood.kind == "bound" and np.isfinite(measured.likelihood.nats)
    assert run.embed(data).shape == (60, 4)


def test_a_comparison_says_what_it_cannot(data, tmp_path):
    with pytest.raises(SpaceError, match=r"no measure of samples of strokes: fit each model .*sketch-rnn"):
        compare(data, out=tmp_path)


def test_a_drawing_fills_its_tile():
    square = torch.tensor([[[7.0, 7, 0], [50, 0, 0], [0, 50, 0], [-50, 0, 0], [0, -50, 1], [20, 20, 1]]])
    lines = pictures.lines(square[0])
    assert [line.tolist() for line in lines] == [[[7, 7], [57, 7], [57, 57], [7, 57], [7, 7]], [[27, 27]]]
    picture = np.asarray(pictures.drawings(square.expand(3, -1, -1)))
    assert picture.shape == (192, 192)
    tile = picture[:96, :96]
    dark = np.argwhere(tile < 128)
    assert (abs(dark.min(0) - 8) <= 1).all() and (abs(dark.max(0) - 88) <= 1).all()
    assert (picture[:96, 96:] == tile).all() and (picture[96:, 96:] == 255).all()
    assert tile[40, 40] < 200  # the dot
    assert pictures.svg(torch.tensor([[[0.0, 0, 2]]])).count('d=""') == 1  # of nothing


def test_training_shows_drawings(run, data):
    path = pictures.draw(run.model, data.observations(4), data, run.path / "shown.png")
    with Image.open(path) as picture:
        assert picture.size == (192, 192)
