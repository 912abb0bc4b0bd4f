"""Folders of pictures: sizes, modes, classes, parts, and what cannot be read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.data import load
from tacit.errors import DataError
from tacit.spaces import Images


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)


def _torn():
    """Half of a picture's file: its header is fine."""
    file = io.BytesIO()
    Image.fromarray(_noise(0, 8, 8)).save(file, "PNG")
    return file.getvalue()[: len(file.getvalue()) // 2]


def _noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_come_back_as_they_are(tmp_path):
    grey, colour, alpha = _noise(0, 5, 7), _noise(1, 5, 7, 3), _noise(2, 5, 7, 4)
    for name, pixels, channels in (("grey", grey, 1), ("colour", colour, 3), ("alpha", alpha, 4)):
        _save(tmp_path / name / "a.png", pixels)
        data = load(tmp_path / name)
        assert data.space == Images(channels, 5, 7) and data.x.dtype == torch.uint8
        np.testing.assert_array_equal(data.x[0].permute(1, 2, 0).numpy(), pixels.reshape(5, 7, channels))
        assert data.label is None and data.name == name


def test_classes_are_folders_and_files_beside_them_are_unlabelled(tmp_path):
    for i, name in enumerate(("cat/a.png", "cat/b.png", "dog/deep/c.png", "d.png", "unlabelled/e.png")):
        _save(tmp_path / name, np.full((4, 4), 10 * i, np.uint8))
    (tmp_path / "readme.txt").write_text("words")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and data.classes == 2
    assert dict(zip(data.x[:, 0, 0, 0].tolist(), data.label.tolist(), strict=True)) == {
        0: 0,
        10: 0,
        20: 1,
        30: -1,
        40: -1,
    }


def test_one_folder_in_a_folder_is_no_class(tmp_path):
    for i in range(3):
        _save(tmp_path / "photos" / "all" / f"{i}.png", _noise(i, 4, 4))
    assert load(tmp_path).label is None
    _save(tmp_path / "photos" / "some" / "x.png", _noise(9, 4, 4))
    assert load(tmp_path).class_names == ("all", "some")


def test_folders_called_like_parts_are_parts_with_common_classes(tmp_path):
    for part, classes in (("train", "ab"), ("val", "b"), ("test", "ac")):
        for i, name in enumerate(classes):
            _save(tmp_path / part / name / "x.png", np.full((4, 4), i, np.uint8))
    data = load(tmp_path)
    assert data.class_names == ("a", "b", "c")
    train, valid, test = data.parts()
    assert train.label.tolist() == [0, 1] and valid.label.tolist() == [1] and test.label.tolist() == [0, 2]
    assert test.files == ("test/a/x.png", "test/c/x.png") and test.take(torch.tensor([1])).files == ("test/c/x.png",)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
def test_formats(tmp_path, suffix):
    ramp = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 16, 1)
    _save(tmp_path / f"a.{suffix}", ramp)
    x = load(tmp_path, grey=True).x[0, 0].int()
    assert x.shape == (16, 16) and (x - torch.from_numpy(ramp).int()).abs().max() <= 8


def test_modes_are_brought_to_one(tmp_path):
    _save(tmp_path / "a" / "16bit.png", np.full((4, 4), 65535, np.uint16))
    _save(tmp_path / "a" / "dark16bit.png", np.full((4, 4), 128, np.uint16))
    _save(tmp_path / "a" / "float.tif", np.full((4, 4), 0.5, np.float32))
    data = load(tmp_path / "a")
    assert data.space == Images(1, 4, 4)
    assert data.x[:, 0, 0, 0].tolist() == [255, 0, 128]

    transparent = np.zeros((4, 4, 4), np.uint8)
    _save(tmp_path / "b" / "rgba.png", transparent)
    _save(tmp_path / "b" / "rgb.png", np.full((4, 4, 3), 7, np.uint8))
    Image.fromarray(np.full((4, 4), 9, np.uint8)).convert("P").save(tmp_path / "b" / "palette.png")
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "b" / "cmyk.tif")
    data = load(tmp_path / "b")
    assert data.space == Images(3, 4, 4)
    assert data.x[:, :, 0, 0].tolist() == [[0] * 3, [9] * 3, [7] * 3, [255] * 3]


def test_one_bit_pictures_are_binary_unless_resized(tmp_path):
    bits = _noise(0, 6, 6) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    data = load(tmp_path)
    assert data.space == Images(1, 6, 6, levels=2)
    np.testing.assert_array_equal(data.x[0, 0].numpy(), bits)
    assert load(tmp_path, size=3).space == Images(1, 3, 3)


def test_size_and_crop(tmp_path):
    picture = np.zeros((40, 100), np.uint8)
    picture[:, 25:75] = 200
    _save(tmp_path / "a.png", picture)
    cut, stretched = load(tmp_path, size=20), load(tmp_path, size=20, crop=False)
    assert cut.space == stretched.space == Images(1, 20, 20)
    assert (cut.x == 200).all()
    assert stretched.x[0, 0, 10, 0] == 0 and stretched.x[0, 0, 10, 10] == 200
    assert load(tmp_path, size=(10, 30)).space == Images(1, 10, 30)
    with pytest.raises(DataError, match="size=0"):
        load(tmp_path, size=0)


def test_several_sizes_become_a_square_and_say_so(tmp_path, capsys):
    for i, shape in enumerate(((100, 150), (150, 100), (100, 150), (1, 1))):
        _save(tmp_path / f"{i}.png", _noise(i, *shape))
    assert load(tmp_path).space == Images(1, 64, 64)
    said = capsys.readouterr()
    assert "3 sizes, most often 100 high and 150 wide" in said.err and "--size" in said.err and not said.out


def test_small_sizes_are_not_blown_up(tmp_path):
    for i, side in enumerate((20, 24, 28)):
        _save(tmp_path / f"{i}.png", _noise(i, side, side))
    assert load(tmp_path).space == Images(1, 24, 24)


def test_a_photograph_held_sideways_is_turned(tmp_path):
    picture = Image.fromarray(np.concatenate([np.zeros((32, 64), np.uint8), np.full((32, 64), 255, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    picture.resize((64, 32)).save(tmp_path / "a.jpg", exif=exif)
    data = load(tmp_path)
    assert data.space == Images(1, 64, 32)
    assert data.x[0, 0, :, 2].float().mean() > data.x[0, 0, :, -3].float().mean() + 200
    assert load(tmp_path, size=(16, 8)).x[0, 0, 8, 0] > 200


def test_unreadable_pictures_are_named_and_left_out(tmp_path, capsys):
    for i in range(4):
        _save(tmp_path / "ab"[i % 2] / f"{i}.png", np.full((8, 8), i, np.uint8))
    (tmp_path / "a" / "torn.png").write_bytes(_torn())
    (tmp_path / "b" / "words.jpg").write_text("not a picture")
    (tmp_path / "b" / "empty.gif").write_bytes(b"")
    data = load(tmp_path)
    assert data.skipped == ("a/torn.png", "b/empty.gif", "b/words.jpg")
    assert data.x[:, 0, 0, 0].tolist() == [0, 2, 1, 3] and data.label.tolist() == [0, 0, 1, 1]
    assert "3 of 7 files" in (said := capsys.readouterr().err) and "a/torn.png, b/empty.gif, b/words.jpg" in said


def test_unreadable_pictures_are_remembered_with_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    for i in range(4):
        _save(folder / "ab"[i % 2] / f"{i}.png", np.full((8, 8), i, np.uint8))
    (folder / "a" / "00.png").write_bytes(_torn())
    for _ in range(2):
        data = load(folder, memory=0)
        assert data.mapped and data.skipped == ("a/00.png",)
        assert data.x[:, 0, 0, 0].tolist() == [0, 2, 1, 3] and data.label.tolist() == [0, 0, 1, 1]


def test_a_folder_without_one_good_picture(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(DataError, match=r"none of the 1 files could be read \(a.png: "):
        load(tmp_path)


def test_a_decompression_bomb_is_left_out(tmp_path, monkeypatch):
    for i in range(3):
        _save(tmp_path / f"{i}.png", _noise(i, 8, 8))
    _save(tmp_path / "bomb.png", np.zeros((70, 70), np.uint8))
    _save(tmp_path / "worse.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    data = load(tmp_path)
    assert data.skipped == ("bomb.png", "worse.png") and len(data) == 3


def test_one_pixel(tmp_path):
    _save(tmp_path / "a.png", np.full((1, 1, 3), 5, np.uint8))
    assert load(tmp_path).x.tolist() == [[[[5]], [[5]], [[5]]]]
    assert load(tmp_path / "a.png").name == "a"


def test_big_jpegs_shrink_as_if_decoded_whole(tmp_path):
    side = np.linspace(0, 255, 512)
    smooth = (0.5 * side[:, None] + 0.5 * side[None]).astype(np.uint8)
    _save(tmp_path / "jpg" / "a.jpg", smooth, quality=95)
    _save(tmp_path / "png" / "a.png", smooth)
    quick, slow = load(tmp_path / "jpg", size=32).x.int(), load(tmp_path / "png", size=32).x.int()
    assert (quick - slow).abs().max() <= 3
