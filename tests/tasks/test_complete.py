"""`tacit complete`: every kind of mask, texts, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.spaces import Images, Tokens, Vectors
from tacit.tasks.complete import complete, mask_of
from tacit.tasks.fit import fit

SPACE = Images(1, 4, 6, 3)


def pictures(rows: int = 60) -> Dataset:
    return Dataset(SPACE, torch.randint(3, (rows, 1, 4, 6)).to(torch.uint8), torch.arange(rows) % 2, "pictures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    return fit("made", pictures(), steps=2, out=out, quiet=True, pictures=0, hidden=(20,), orderings=3)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    data = Dataset(Tokens(4, 12), torch.randint(4, (600,)).to(torch.uint8), vocabulary=tuple("ab c"), name="text")
    out = tmp_path_factory.mktemp("char") / "run"
    return fit("char-rnn", data, steps=2, out=out, quiet=True, pictures=0, features=8, batch_size=4)


@pytest.mark.parametrize("known", ["first", "left", "frame", "random", "0, 5,23"])
def test_known_entries_come_back_and_the_picture_shows_them(run, known):
    data = pictures()
    path = complete(run.path, data, known=known, count=3, each=2)
    done, mask = torch.from_numpy(np.load(path.with_suffix(".npy"))), mask_of(known, SPACE)
    x = data.observations(3).repeat_interleave(2, 0)
    assert done.shape == (6, 1, 4, 6) and 0 < int(mask.sum()) < 24
    assert torch.equal(done[:, mask], x[:, mask])
    with Image.open(path) as picture:
        assert picture.width / picture.height == pytest.approx(4 * 7 / (3 * 5), rel=0.1)
    complete(run.path, data, known=known, count=3, each=2, seed=0)
    assert torch.equal(done, torch.from_numpy(np.load(path.with_suffix(".npy")))), "the same seed draws the same"


def test_a_mask_from_a_file(run, tmp_path):
    mask = np.zeros(SPACE.shape, dtype=bool)
    mask[0, 1] = True
    np.save(tmp_path / "mask.npy", mask)
    assert torch.equal(mask_of(str(tmp_path / "mask.npy"), SPACE), torch.from_numpy(mask))
    np.save(tmp_path / "small.npy", mask[:, :2])
    with pytest.raises(TacitError, match=r"known is bool of shape \(1, 2, 6\): give a bool mask of shape \(1, 4, 6\)"):
        complete(run.path, pictures(), known=str(tmp_path / "small.npy"))
    (tmp_path / "no.npy").write_text("no")
    with pytest.raises(DataError, match=r"no\.npy cannot be read as an array"):
        mask_of(str(tmp_path / "no.npy"), SPACE)


def test_masks_that_say_nothing():
    with pytest.raises(TacitError, match="known is 'left', which is no part of vectors"):
        mask_of("left", Vectors(4))
    with pytest.raises(TacitError, match="known names column 4, and there are 4"):
        mask_of("0,4", Vectors(4))
    assert mask_of("first", Vectors(5)).tolist() == [True, True, False, False, False]


def test_a_text_goes_on(reader):
    path = complete(reader.path, prompt="abc", new=30, each=2)
    lines = path.read_text().split("\n---\n")
    assert len(lines) == 2 and all(line.startswith("abc") and len(line.rstrip("\n")) == 33 for line in lines)
    short = complete(reader.path, prompt="abc", each=1).read_text().rstrip("\n")
    assert len(short) == 12


def test_prompts_that_cannot_be_continued(run, reader, tmp_path):
    with pytest.raises(TacitError, match="prompt has 'z', which the model has never read"):
        complete(reader.path, prompt="abz")
    with pytest.raises(TacitError, match="prompt is empty"):
        complete(reader.path, prompt="")
    with pytest.raises(TacitError, match="the model was fitted on images: leave prompt out"):
        complete(run.path, prompt="abc")
    data = Dataset(Tokens(4, 12), torch.randint(4, (600,)).to(torch.uint8), vocabulary=tuple("ab c"), name="text")
    options = {"steps": 1, "quiet": True, "pictures": 0, "layers": 1, "heads": 1, "features": 8}
    bounded = fit("gpt", data, out=tmp_path / "gpt", **options)
    assert len(complete(bounded.path, prompt="ab", each=1).read_text().rstrip("\n")) == 12
    with pytest.raises(TacitError, match="have 42 symbols, and the model was fitted on windows of 12"):
        complete(bounded.path, prompt="ab", new=40)


def test_what_it_refuses(run, tmp_path):
    with pytest.raises(SpaceError, match="but the model was fitted on"):
        complete(run.path, Dataset(Images(1, 2, 2, 3), torch.zeros(40, 1, 2, 2, dtype=torch.uint8)))
    with pytest.raises(TacitError, match="both must be above 0"):
        complete(run.path, pictures(), count=0)
    other = fit("vae", pictures(), steps=1, out=tmp_path / "vae", quiet=True, pictures=0, hidden=(4,), latent=2)
    with pytest.raises(CapabilityError, match="vae cannot complete: it has no complete"):
        complete(other.path, pictures())
