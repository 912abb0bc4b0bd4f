"""Whatever bytes a file holds, reading it gives a data set or a `DataError`, and no other exception."""

import gzip
import io
import os
import pickle
import wave

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tacit.data import Dataset, load
from tacit.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
TABLE = RNG.normal(size=(12, 4))


def _written(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _wav(file):
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 50, "NONE", ""))
        sound.writeframes(bytes(range(100)))


def _idx() -> bytes:
    return b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in PIXELS.shape) + PIXELS.tobytes()


def _picture(form):
    return _written(lambda file: Image.fromarray(PIXELS[0]).save(file, form))


def _parquet() -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    return _written(lambda file: parquet.write_table(pa.table({"a": TABLE[:, 0], "b": TABLE[:, 1]}), file))


def _drawings(file):
    parts = {}
    for part, count in (("train", 6), ("test", 3)):
        parts[part] = np.empty(count, dtype=object)
        for i in range(count):
            parts[part][i] = np.tile(np.array([[3, -4, i % 2]], dtype=np.int16), (i + 1, 1))
    np.savez(file, **parts)


FILES = {
    "a.npy": lambda: _written(lambda file: np.save(file, TABLE)),
    "b.npy": lambda: _written(lambda file: np.save(file, PIXELS)),
    "a.npz": lambda: _written(lambda file: np.savez(file, x=TABLE, y=np.arange(12))),
    "b.npz": lambda: _written(lambda file: np.savez_compressed(file, x=TABLE)),
    "drawings.npz": lambda: _written(_drawings),
    "a.ndjson": lambda: b'{"word": "cat", "drawing": [[[0, 5, 9], [1, 2, 2]], [[7], [7]]]}\n' * 3,
    "a.mat": lambda: _written(lambda file: savemat(file, {"X": TABLE})),
    "b.mat": lambda: _written(lambda file: savemat(file, {"X": PIXELS}, do_compression=True)),
    "a-idx3-ubyte": _idx,
    "a-idx3-ubyte.gz": lambda: gzip.compress(_idx()),
    "data_batch_1.bin": lambda: RNG.integers(0, 10, 3073 * 2, dtype=np.uint8).tobytes(),
    "data_batch_1": lambda: pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, 4),
    "a.wav": lambda: _written(_wav),
    "a.png": lambda: _picture("PNG"),
    "a.jpg": lambda: _picture("JPEG"),
    "a.gif": lambda: _picture("GIF"),
    "a.tif": lambda: _picture("TIFF"),
    "a.bmp": lambda: _picture("BMP"),
    "a.csv": lambda: b"a,b\n1,2\n3,4\n5,6\n",
    "a.parquet": _parquet,
    "a.txt": lambda: "Größe und Maß. ".encode() * 10,
}


def _read(folder, name, data: bytes):
    path = folder / name
    path.write_bytes(data)
    for where in (path, folder):
        try:
            assert isinstance(load(where), Dataset)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 900


@pytest.mark.parametrize("name", FILES)
def test_truncated(tmp_path, name):
    data = FILES[name]()
    for cut in sorted({0, 1, 3, 8, len(data) // 3, len(data) // 2, len(data) - 9, len(data) - 1}):
        _read(tmp_path, name, data[: max(0, cut)])


@pytest.mark.parametrize("name", FILES)
def test_random_bytes(tmp_path, name):
    for length in (1, 50, 3073):
        _read(tmp_path, name, os.urandom(length))
        _read(tmp_path, name, FILES[name]()[:16] + os.urandom(length))


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(tmp_path, name):
    data = FILES[name]()
    rng = np.random.default_rng(1)
    for _ in range(25):
        changed = bytearray(data)
        # Headers are where damage does most, so half of the flips are there.
        for place in (*rng.integers(0, len(data), 2), *rng.integers(0, min(len(data), 128), 2)):
            changed[place] = rng.integers(0, 256)
        _read(tmp_path, name, bytes(changed))
