"""`tacit compress` and `decompress`: files come back, and whatever is wrong is noticed and leaves nothing behind."""

from __future__ import annotations

import errno
import io
import lzma
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tacit.coding import archive, files
from tacit.data import Dataset
from tacit.errors import ArchiveError, CapabilityError
from tacit.spaces import Images, Tokens, Vectors, Waveform
from tacit.tasks import compress as task
from tacit.tasks import decompress as reading
from tacit.tasks.compress import compress
from tacit.tasks.decompress import decompress
from tacit.tasks.fit import fit

TEXT = "".join("abcd"[i * i * 7919 % 1009 % 4] for i in range(2000))


def grey(rows: int, seed: int = 0) -> torch.Tensor:
    """Images of two levels' neighbourhood, so that a histogram of each pixel is some good."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (rows, 1, 6, 7), generator=generator) + torch.arange(42).view(6, 7) * 5
    return x.to(torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that codes at once: a histogram of each pixel."""
    data = Dataset(Images(1, 6, 7), grey(300), name="grey")
    return fit("histogram", data, out=tmp_path_factory.mktemp("runs") / "grey", quiet=True).path


@pytest.fixture
def coded(monkeypatch):
    """Small archives keep to the model though xz would be smaller."""
    monkeypatch.setattr(task._Archive, "_count_raw", lambda self, data: setattr(self, "raw", 10**9))


@pytest.fixture
def folder(tmp_path):
    """Images that the model takes, two that it does not, and what is none, in folders."""
    found = tmp_path / "things"
    (found / "deep" / "er").mkdir(parents=True)
    for i, x in enumerate(grey(90, seed=1)):
        Image.fromarray(x[0].numpy()).save(found / ("deep" if i % 2 else "") / f"{i}.png")
    Image.fromarray(grey(1)[0, 0].numpy()).convert("RGB").save(found / "colours.png")
    Image.new("L", (9, 9)).save(found / "large.png")
    (found / "deep" / "er" / "notes.txt").write_text("words " * 40)
    (found / "empty").write_bytes(b"")
    (found / "deep" / "er" / "notes.txt").chmod(0o640)
    return found


def same(a: Path, b: Path) -> None:
    """The same names, modes, pixels and bytes."""
    assert sorted(p.relative_to(a) for p in a.rglob("*")) == sorted(p.relative_to(b) for p in b.rglob("*"))
    for p in a.rglob("*"):
        q = b / p.relative_to(a)
        if p.is_dir():
            continue
        assert p.stat().st_mode == q.stat().st_mode
        if p.suffix == ".png":
            with Image.open(p) as one, Image.open(q) as other:
                assert one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))
        else:
            assert p.read_bytes() == q.read_bytes()


def test_a_folder_comes_back(run, folder, tmp_path):
    packed = compress(run, folder, block_rows=7)
    assert packed == tmp_path / "things.tacit"
    assert packed.stat().st_size < sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    same(folder, decompress(packed, run, out=tmp_path / "back"))
    some = decompress(packed, run, out=tmp_path / "some", only=("deep/17.png", "empty"))
    assert sorted(p.name for p in some.rglob("*") if p.is_file()) == ["17.png", "empty"]
    assert not list(tmp_path.glob(".*"))


def test_an_archive_with_its_model_needs_no_run(run, folder, tmp_path, coded):
    np.save(folder / "many.npy", grey(3000, 2).numpy())
    packed = compress(run, folder, embed_model=True, out=tmp_path / "own.tacit")
    same(folder, decompress(packed, out=tmp_path / "back"))
    bare = compress(run, folder)
    assert bare.stat().st_size < packed.stat().st_size
    with pytest.raises(ArchiveError, match="holds no model: give the --run"):
        decompress(bare, out=tmp_path / "more")


def test_what_the_model_is_no_good_for_is_no_larger_than_by_xz(run, tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    np.save(noise / "x.npy", np.tile(np.random.default_rng(0).integers(0, 256, (8, 6, 7), dtype=np.uint8), (40, 1, 1)))
    (noise / "words.txt").write_text(TEXT)
    packed = compress(run, noise)
    plain = b"".join(p.read_bytes() for p in sorted(noise.rglob("*")))
    assert packed.stat().st_size <= len(lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)) + 600
    same(noise, decompress(packed, run, out=tmp_path / "back"))


@pytest.mark.parametrize("model", ["char-rnn", "made"])
def test_a_text_comes_back_byte_for_byte(model, tmp_path, coded):
    number = {symbol: i for i, symbol in enumerate(sorted(set(TEXT)))}
    x = torch.tensor([number[symbol] for symbol in TEXT]).to(torch.uint8)
    data = Dataset(Tokens(len(number), 10), x, vocabulary=tuple(number), name="text")
    run = fit(model, data, out=tmp_path / "run", steps=60, quiet=True, pictures=0).path
    path = tmp_path / "text.txt"
    path.write_text(TEXT[:1333])
    assert (
        decompress(compress(run, path), run, out=tmp_path / "back").joinpath("text.txt").read_bytes()
        == path.read_bytes()
    )
    path.write_text("Größe")  # symbols that the model does not know
    assert decompress(compress(run, path), run, out=tmp_path / "more").joinpath("text.txt").read_text() == "Größe"


def test_files_are_taken_apart_and_put_together():
    space, generator = Images(3, 4, 5), np.random.default_rng(0)
    x = generator.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    np.save(stream, x)
    cases = [(stream.getvalue(), space, "array"), (stream.getvalue()[:-1], space, "bytes")]
    stream = io.BytesIO()
    Image.fromarray(x[0]).save(stream, "PNG")
    cases.append((stream.getvalue(), space, "png"))
    idx = b"\0\0\x08\x03" + struct.pack(">III", 4, 4, 5) + bytes(range(80))
    cases += [(idx, Images(1, 4, 5), "array"), (idx, Images(1, 4, 5, 2), "bytes"), (b"\0\0\x08", space, "bytes")]
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(generator.integers(-999, 999, 70, dtype=np.int16).tobytes())
    cases += [(stream.getvalue(), Waveform(16, 8000), "wave"), (stream.getvalue(), Waveform(16, 4000), "bytes")]
    for data, kind, expected in cases:
        found = files.take_apart(data, kind, (), False)
        assert found.how["kind"] == expected
        if found.x is not None:
            assert tuple(found.x.shape[1:]) == kind.shape
            again = files.put_together(found.x, found.how, kind, ())
            assert files.checked_bytes(again, found.how) == found.checked
            assert expected == "png" or again == data
    for mode in ("1", "L"):
        stream = io.BytesIO()
        Image.fromarray(255 * generator.integers(0, 2, (4, 5), dtype=np.uint8)).convert(mode).save(stream, "PNG")
        found = files.take_apart(stream.getvalue(), Images(1, 4, 5, 2), (), False)
        again = files.put_together(found.x, found.how, Images(1, 4, 5, 2), ())
        assert found.how["mode"] == mode and files.checked_bytes(again, found.how) == found.checked


def small(run, tmp_path) -> Path:
    """The smallest archive that has everything."""
    things = tmp_path / "small"
    things.mkdir()
    for i in range(2):
        Image.fromarray(grey(2)[i, 0].numpy()).save(things / f"{i}.png")
    (things / "n.txt").write_text("n")
    return compress(run, things)


def test_no_byte_can_be_wrong_missing_or_too_many(run, tmp_path, coded):
    packed = small(run, tmp_path)
    good, spoilt = packed.read_bytes(), tmp_path / "spoilt.tacit"
    wrong = [good[:n] for n in range(len(good))] + [good + b"\0", good + good]
    wrong += [good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :] for i in range(len(good))]
    for data in wrong:
        spoilt.write_bytes(data)
        with pytest.raises(ArchiveError):
            decompress(spoilt, run)
        assert not (tmp_path / "spoilt").exists()
    assert not list(tmp_path.glob(".*"))


def forged(path: Path, tmp_path: Path, change) -> Path:
    """An archive with another index, and every checksum right."""
    reader = archive.Reader(path)
    change(reader.index)
    out = tmp_path / "forged.tacit"
    with out.open("wb") as file:
        writer = archive.Writer(file, reader.header)
        for name in ("blocks", "raw"):
            for place in reader.index[name]:
                place |= writer.section(reader._read(place["at"], place["length"]))
        writer.finish(reader.index)
    reader.close()
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["files"][0].update(name="../evil.png"), "leads out of its folder"),
        (lambda index: index["files"][0].update(name="/evil.png"), "leads out of its folder"),
        (lambda index: index["files"][0].update(name="C:\\evil"), "leads out of its folder"),
        (lambda index: index["blocks"][0].update(rows=10**9), "asks for 1000000000 rows"),
        (lambda index: index["blocks"][0].update(rows=-1), "no whole number"),
        (lambda index: index["raw"][0].update(size=10**12), "asks for 1000000000000 bytes"),
        (lambda index: index["files"][1].update(how={"kind": "new"}), "unknown to this version"),
        (lambda index: index["files"][0].update(check="0"), "does not come back as it was"),
        (lambda index: index.update(files=7), "no list of files"),
    ],
)
def test_a_forged_index_is_refused(run, tmp_path, coded, change, message):
    path = forged(small(run, tmp_path), tmp_path, change)
    with pytest.raises(ArchiveError, match=message):
        decompress(path, run)
    assert not (tmp_path / "forged").exists() and not list(tmp_path.glob("**/evil*"))


def test_a_newer_format_another_model_and_another_machine_are_refused(run, folder, tmp_path, monkeypatch):
    packed = compress(run, folder, this_machine_only=True, out=tmp_path / "here.tacit")
    same(folder, decompress(packed, run, out=tmp_path / "back"))
    other = fit("histogram", Dataset(Images(1, 6, 7), grey(50, 5), name="o"), out=tmp_path / "other", quiet=True).path
    with pytest.raises(ArchiveError, match="is not the model that wrote"):
        decompress(packed, other)
    monkeypatch.setattr(reading, "machine", lambda: {"processor": "abacus"})
    with pytest.raises(ArchiveError, match="on another machine"):
        decompress(packed, run)
    data = bytearray(packed.read_bytes())
    data[8:10] = struct.pack("<H", archive.FORMAT + 1)
    packed.write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match="upgrade tacit"):
        decompress(packed, run)
    with pytest.raises(ArchiveError, match="is no archive of tacit"):
        decompress(folder / "large.png", run)


def test_what_cannot_be_stored_leaves_no_archive(run, folder, tmp_path, monkeypatch):
    def refused(match, path=folder):
        with pytest.raises(ArchiveError, match=match):
            compress(run, path, out=tmp_path / "a.tacit")
        assert not list(tmp_path.glob("*.tacit")) and not list(tmp_path.glob(".*"))

    (tmp_path / "none").mkdir()
    refused("holds no files", tmp_path / "none")
    refused("cannot be read|is no plain file", tmp_path / "missing")
    link = folder / "link.png"
    link.symlink_to(folder / "large.png")
    refused("is a link")
    link.unlink()

    whole = Path.read_bytes
    with monkeypatch.context() as patch:

        def touched(path):
            data = whole(path)
            path.write_bytes(data + b"more")
            return data

        patch.setattr(Path, "read_bytes", touched)
        refused("changed while it was read")

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        opened = Path.open
        patch.setattr(
            Path,
            "open",
            lambda path, mode="r", *rest, **more: (
                Full(path, "x") if mode == "xb" else opened(path, mode, *rest, **more)
            ),
        )
        refused("No space left on device")


def test_models_that_cannot_code_say_which_can(tmp_path):
    data = Dataset(Vectors(2), torch.randn(50, 2), name="v")
    run = fit("gaussian-mixture", data, out=tmp_path / "run", quiet=True).path
    path = tmp_path / "x.txt"
    path.write_text("x")
    with pytest.raises(CapabilityError, match=r"gaussian-mixture cannot compress.*gated-pixelcnn"):
        compress(run, path)


def test_the_folder_that_is_there_is_left_alone(run, folder, tmp_path):
    packed = compress(run, folder)
    with pytest.raises(ArchiveError, match="is there already"):
        decompress(packed, run)
    with pytest.raises(ArchiveError, match=r"holds no nothing\.png"):
        decompress(packed, run, out=tmp_path / "b", only=("nothing.png",))
    assert not (tmp_path / "b").exists()
