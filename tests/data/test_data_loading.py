"""`load` by path and by name, and the sentences that say what went wrong."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tacit.data import builtin, describe, listing, load, names
from tacit.errors import DataError
from tacit.spaces import Images, Vectors, Video


@pytest.fixture
def home(tmp_path):
    """A folder of data sets that has one of the table's names and one of its own."""
    folder = tmp_path / "home"
    for name in ("miniboone-subset", "mine"):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "data.npy", np.random.default_rng(0).normal(size=(100, 4)))
    (folder / "adbench").mkdir()
    np.savez(folder / "adbench" / "6_cardio.npz", X=np.random.default_rng(0).normal(size=(50, 3)), y=np.arange(50) % 2)
    return folder


@pytest.mark.parametrize("name", sorted(builtin.READERS))
def test_built_in(name, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    data = load(name)
    entry = describe(name)
    rows = [len(part) for part in (data, *data.official.values())]
    assert data.name == name and " + ".join(map(str, rows)) == entry.rows and entry.present
    assert torch.equal(data.x, load(name).x)
    train, valid, test = data.parts()
    assert len(train) + len(valid) + len(test) == sum(rows)
    if isinstance(data.space, Vectors):
        assert data.x.dtype == torch.float32 and data.x.isfinite().all()
        assert data.label is None or data.label.unique().tolist() == list(range(data.classes))


def test_digits_and_photographs():
    digits = load("digits")
    assert digits.space == Images(1, 8, 8, levels=17) and digits.x.max() == 16 and digits.classes == 10
    patches = load("photographs", size=(16, 20), grey=True)
    assert patches.space == Images(1, 16, 20) and len(patches) == 2 * 26 * 32
    from sklearn.datasets import load_sample_image

    china = torch.from_numpy(load_sample_image("china.jpg").copy())
    colour = load("photographs")
    assert torch.equal(colour.x[21].permute(1, 2, 0), china[32:64, 32:64])  # the second patch of the second row of 20
    assert colour.label[259:261].tolist() == [0, 1] and colour.class_names == ("china", "flower")
    with pytest.raises(DataError, match="do not fit"):
        load("photographs", size=500)


def test_sprites_are_every_combination_of_their_factors():
    data = load("sprites")
    sizes = [3, 6, 8, 16, 16]
    assert data.space == Images(1, 32, 32, levels=2) and data.x.max() == 1
    assert data.factor_names == ("shape", "scale", "rotation", "x", "y")
    assert torch.equal(data.factors, torch.cartesian_prod(*map(torch.arange, sizes)))
    assert torch.equal(data.label, data.factors[:, 0]) and data.class_names == ("square", "ellipse", "heart")
    x = data.x[:, 0].view(*sizes, 32, 32)
    # A step of x is a column to the right, a step of y a row down, and no ink is lost at a border.
    assert torch.equal(x[:, :, :, 1:, :, :, 1:], x[:, :, :, :-1, :, :, :-1])
    assert torch.equal(x[:, :, :, :, 1:, 1:, :], x[:, :, :, :, :-1, :-1, :])
    ink = x.sum((-1, -2))
    assert (ink == ink[:, :, :, :1, :1]).all()
    assert (ink[:, 1:].float().mean(2) > ink[:, :-1].float().mean(2)).all(), "scales rise"
    largest = ink[:, -1, :, 0, 0].float().mean(1)
    areas = 49 * torch.tensor([1.4**2, math.pi / 2, 3.662 / 1.25**2])  # 3.662 is that of the heart's own curve
    torch.testing.assert_close(largest, areas, rtol=0.05, atol=0)
    width_by_row = x[2, -1, 0, 0, 0].sum(1)
    assert width_by_row.argmax() < width_by_row.nonzero().median(), "a heart stands on its tip"
    # Images of different factors differ, but for the few turns that the smallest shapes have no pixels for.
    first = x[:, 2:, :, 0, 0].reshape(-1, 32 * 32)
    assert len(first.unique(dim=0)) >= 0.95 * len(first)


def test_factors_stay_with_their_rows():
    data = load("sprites")
    for part in data.parts():
        shape, scale, turn, left, top = part.factors.T
        assert torch.equal(part.x, data.x[(((shape * 6 + scale) * 8 + turn) * 16 + left) * 16 + top])
    assert data.take(slice(3, 9)).factors.shape == (6, 5)
    with pytest.raises(DataError, match=r"factors of shape \(36864, 5\) and 4 names of factors for 36864 rows"):
        replace(data, factor_names=data.factor_names[:4])


def test_moving_digits_are_digits_that_move():
    data = load("moving-digits")
    train, valid, test = data.parts()
    assert data.space == Video(10, 1, 16, 16, levels=2) and data.classes == 10

    def shapes(pictures):
        """The ink of each picture, (rows, height, width), without the margins."""
        rows = [(x, x.any(1).nonzero()[:, 0], x.any(0).nonzero()[:, 0]) for x in pictures.bool()]
        return {str(x[i[0] : i[-1] + 1, j[0] : j[-1] + 1].tolist()) for x, i, j in rows}

    learnt, *held_out = (shapes(part.x[:, 0, 0]) for part in (train, valid, test))
    assert learnt.union(*held_out) <= shapes(load("digits").x[:, 0] >= 8)
    assert all(len(learnt & shown) <= 2 for shown in held_out), "unseen, but for scans that differ in place alone"
    # A frame is the one before it, moved by a pixel along one axis or both, within the walls.
    x = test.x[:, :, 0].float()
    here, moved = x[:, 1:], torch.nn.functional.pad(x[:, :-1], (1, 1, 1, 1))
    ways = [(i, j) for i in range(3) for j in range(3)]
    same = [(here == moved[:, :, i : i + 16, j : j + 16]).all(-1).all(-1) for i, j in ways]
    assert torch.stack(same).any(0).all()
    assert (x.sum((2, 3)) == x[:, :1].sum((2, 3))).all(), "no ink is lost at a wall"


def test_toys_are_what_their_papers_say():
    for name, count in (("8-gaussians", 8), ("25-gaussians", 25)):
        data, (centres, sigma) = load(name), builtin.modes(name)
        assert len(centres) == count
        offset = (data.x - centres[data.label]) / sigma
        assert offset.mean(0).abs().max() < 0.03 and (offset.std(0) - 1).abs().max() < 0.03
    grid, _ = builtin.modes("25-gaussians")
    assert grid.min() == -4 and grid.max() == 4 and torch.cdist(grid, grid).fill_diagonal_(9).min() == 2
    board = load("checkerboard").x
    assert ((board[:, 0] / 2).floor() + (board[:, 1] / 2).floor()).remainder(2).unique().numel() == 1
    rings = load("rings")
    assert ((rings.x.norm(dim=1) - 0.75 * (rings.label + 1)).abs() < 0.5).all()
    with pytest.raises(DataError, match="no mixture"):
        builtin.modes("moons")


def test_names_and_what_is_present(home, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    assert names() == list(builtin.READERS)
    assert not describe("mnist").present
    found = {entry.name: entry for entry in listing(home)}
    assert found["miniboone-subset"].present and not found["mnist"].present
    assert found["mine"].present and found["adbench/6_cardio"].present
    monkeypatch.setenv("TACIT_DATA", str(home))
    assert set(names()) == {*builtin.READERS, "miniboone-subset", "mine", "adbench/6_cardio"}
    with pytest.raises(DataError, match="did you mean mnist"):
        describe("mnits")


def test_named_sets_by_home_and_by_path(home, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    data = load("miniboone-subset", data_home=home)
    assert (len(data), len(data.official["valid"]), len(data.official["test"])) == (81, 9, 10)
    assert load(home / "miniboone-subset").official.keys() == {"valid", "test"}
    assert load("mine", data_home=home).official == {}
    cardio = load("adbench/6_cardio", data_home=home)
    assert cardio.class_names == ("normal", "anomaly") and cardio.name == "6_cardio"


def test_a_name_goes_before_a_folder_of_that_name(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("moons", "mine", "miniboone-subset"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.zeros((30, 7)))
    assert load("moons").space == Vectors(2) and load("./moons").space == Vectors(7)
    data = load("miniboone-subset", data_home=home)
    assert data.space == Vectors(4) and data.source["path"] == "miniboone-subset"
    # A folder of the home that tacit does not know is a folder like any other, and the nearer one wins.
    assert load("mine", data_home=home).space == Vectors(7)


def test_a_run_can_load_it_again(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    data = load("mine/data.npy", memory=0.25)
    source = json.loads(json.dumps(data.source))
    monkeypatch.chdir(tmp_path)
    assert load(**source).fingerprint() == data.fingerprint()
    np.save(tmp_path / "x.npy", np.zeros((30, 6), np.uint8))
    data = load(tmp_path / "x.npy", image_shape=(2, 3))
    assert load(**json.loads(json.dumps(data.source))).space == data.space
    assert load(**json.loads(json.dumps(load("photographs", size=(9, 8)).source))).space == Images(3, 9, 8)
    monkeypatch.setenv("TACIT_DATA", "/nowhere")
    assert load(**source).fingerprint() == load(tmp_path.parent / source["path"]).fingerprint()
    named = load("mine", data_home=home)
    assert load(**json.loads(json.dumps(named.source))).fingerprint() == named.fingerprint()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("moon", "no data set, file or folder is called 'moon': did you mean moons"),
        ("zzz", "there are digits, "),
        ("mnist", "TACIT_DATA and data_home .* name no folder"),
        ("no/such/folder", "there is no file or folder no/such/folder: check the path$"),
        ("some/thing", "or write hub:some/thing"),
        ("table.csv", "there is no file or folder table.csv"),
        ("sketchrnn", "name one of them, such as sketchrnn/omniglot"),
        ("word-analogy", "is a test set"),
    ],
)
def test_unknown_names(name, says, monkeypatch):
    monkeypatch.delenv("TACIT_DATA", raising=False)
    with pytest.raises(DataError, match=says):
        load(name)


def test_folders_without_data(tmp_path, home):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty holds nothing, and no data"):
        load(empty)
    (empty / "a.xyz").touch()
    with pytest.raises(DataError, match="holds 1 files, such as a"):
        load(empty)
    with pytest.raises(DataError, match="xyz is of a kind that cannot be read"):
        load(empty / "a.xyz")
    with pytest.raises(DataError, match="is no folder: let data_home"):
        load("mnist", data_home=tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"it is not in {home}"):
        load("mnist", data_home=home)
    (empty / "a.pkl").touch()
    with pytest.raises(DataError, match="is a pickle"):
        load(empty / "a.pkl")


def test_options_that_do_not_apply(tmp_path):
    assert len(load("checkerboard", rows=300)) == 300 and len(load("8-gaussians")) == 20_000
    with pytest.raises(DataError, match="rows=0 leaves nothing: give a positive number"):
        load("moons", rows=0)
    with pytest.raises(DataError, match="rows=9 does not apply to digits"):
        load("digits", rows=9)
    with pytest.raises(DataError, match="words=True does not apply to moons, which is built in"):
        load("moons", words=True)
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    with pytest.raises(DataError, match=r"grey=True does not apply to .*, which is NumPy arrays"):
        load(tmp_path / "x.npy", grey=True)
    with pytest.raises(DataError, match="memory=-1"):
        load("moons", memory=-1)


def test_an_unreadable_file_is_a_sentence(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        load(tmp_path / "x.npy")


def test_listing_does_not_wait_for_torch():
    code = "import sys, tacit.data; tacit.data.listing(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
