"""Arrays in files: .npy, .npz, .mat, IDX and CIFAR."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tacit.data import load, pickles
from tacit.errors import DataError
from tacit.spaces import Images, Vectors, Video

RNG = np.random.default_rng(0)


def _npy(path, array):
    np.save(path, array)
    return path


def _idx(path, array, *, shape=None):
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *(shape or array.shape))
    data = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.bool_, ">f4"])
def test_a_table_of_any_dtype(tmp_path, dtype):
    x = (RNG.random((20, 3)) * 5).astype(dtype)
    data = load(_npy(tmp_path / "a.npy", x))
    assert data.space == Vectors(3) and data.x.dtype == torch.float32 and data.name == "a"
    np.testing.assert_array_equal(data.x.numpy(), x.astype(np.float32))


def test_one_column(tmp_path):
    assert load(_npy(tmp_path / "a.npy", np.arange(5.0))).x.tolist() == [[0], [1], [2], [3], [4]]


def test_images_by_shape(tmp_path):
    x = RNG.integers(0, 256, (9, 6, 5), dtype=np.uint8)
    assert torch.equal(load(_npy(tmp_path / "a.npy", x)).x[:, 0], torch.from_numpy(x))
    x = RNG.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    data = load(_npy(tmp_path / "b.npy", x))
    assert data.space == Images(3, 6, 5) and data.x.is_contiguous()
    assert torch.equal(data.x, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert load(_npy(tmp_path / "c.npy", x.transpose(0, 3, 1, 2))).space == Images(3, 6, 5)
    assert load(_npy(tmp_path / "d.npy", x[..., 0] > 100)).space == Images(1, 6, 5, levels=2)


def test_image_shape_of_flat_rows(tmp_path):
    path = _npy(tmp_path / "a.npy", (x := RNG.integers(0, 256, (9, 60), dtype=np.uint8)))
    assert load(path).space == Vectors(60)
    assert load(path, image_shape=(6, 10)).space == Images(1, 6, 10)
    data = load(path, image_shape=(3, 4, 5))
    assert data.space == Images(3, 4, 5)
    np.testing.assert_array_equal(data.x.numpy(), x.reshape(9, 3, 4, 5))
    with pytest.raises(DataError, match=r"60 values.*\(7, 7\)"):
        load(path, image_shape=(7, 7))


def test_clips_by_shape(tmp_path):
    x = RNG.integers(0, 256, (9, 7, 3, 6, 5), dtype=np.uint8)
    data = load(_npy(tmp_path / "a.npy", x))
    assert data.space == Video(7, 3, 6, 5) and data.x.dtype == torch.uint8 and len(data) == 9
    assert torch.equal(data.x, torch.from_numpy(x))
    last = load(_npy(tmp_path / "b.npy", x.transpose(0, 1, 3, 4, 2)))
    assert last.space == data.space and torch.equal(last.x, data.x) and last.x.is_contiguous()
    assert load(_npy(tmp_path / "c.npy", x[:, :, :1] > 100)).space == Video(7, 1, 6, 5, levels=2)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(9) % 2)
    assert load(tmp_path / "d.npz").space == data.space and load(tmp_path / "d.npz").classes == 2
    assert torch.equal(load(tmp_path / "a.npy", memory=0)[torch.arange(3)], data.x[:3])
    with pytest.raises(DataError, match="between 0 and 1999: save them as uint8"):
        load(_npy(tmp_path / "e.npy", (np.arange(2000) * np.ones((2, 1))).reshape(2, 10, 1, 10, 20)))


def test_image_shape_tells_what_a_clip_is(tmp_path):
    x = RNG.integers(0, 256, (9, 7, 3, 6, 4), dtype=np.uint8)
    with pytest.raises(DataError, match="give image_shape as frames, channels"):
        load(_npy(tmp_path / "a.npy", x))
    for i, same in enumerate((x, x.reshape(9, -1))):
        data = load(_npy(tmp_path / f"{i}.npy", same), image_shape=(7, 3, 6, 4))
        assert data.space == Video(7, 3, 6, 4) and torch.equal(data.x, torch.from_numpy(x))


def test_images_of_other_dtypes_if_nothing_is_lost(tmp_path):
    x = RNG.integers(0, 256, (9, 6, 5), dtype=np.uint8)
    for i, same in enumerate((x.astype(np.int64), x.astype(np.float32), x / 255, (x / 255).astype(np.float32))):
        assert torch.equal(load(_npy(tmp_path / f"{i}.npy", same)).x[:, 0], torch.from_numpy(x))
    zeros_and_ones = load(_npy(tmp_path / "binary.npy", (x > 100).astype(np.float32)))
    assert zeros_and_ones.space.levels == 2
    for i, other in enumerate((x.astype(np.int64) + 1000, x - 300.0, x / 1000, RNG.normal(size=(9, 6, 5)), x * np.nan)):
        with pytest.raises(DataError, match="save them as uint8"):
            load(_npy(tmp_path / f"bad{i}.npy", other))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([[1.0, np.nan], [2, 3]]), "not finite numbers, the first in column 1"),
        (np.array([[1.0, 2], [np.inf, 3]]), "not finite numbers, the first in column 0"),
        (np.array([[1e300, 1.0]]), "not finite"),
        (np.array([["a", "b"]]), "dtype"),
        (np.array([[1j]]), "dtype"),
        (np.zeros((0, 3)), "no observation"),
        (np.zeros((3, 0)), "no observation"),
        (np.array(3.0), "rows"),
        (np.zeros((2, 3, 4, 5, 6, 7), np.uint8), "shape"),
        (np.zeros((2, 3, 5, 5, 6), np.uint8), "none of which are the channels"),
        (np.zeros((2, 3, 4, 5, 3), np.uint8), "either the third or the last may be the channels"),
        (np.zeros((2, 9, 9, 9), np.uint8), "at most 4 channels"),
    ],
)
def test_arrays_that_are_no_data(tmp_path, array, says):
    with pytest.raises(DataError, match=says):
        load(_npy(tmp_path / "a.npy", array))


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle of the user was run",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap()))
    savemat(tmp_path / "a.mat", {"x": np.array([["a"], [np.eye(2)]], dtype=object)})
    for name in ("a.npy", "a.npz", "a.pkl", "a.mat"):
        with pytest.raises(DataError):
            load(tmp_path / name)


def test_npz_finds_data_and_labels(tmp_path):
    x, y = RNG.random((12, 3)), np.repeat([2, 5, -1], 4)
    np.savez(tmp_path / "a.npz", X=x, y=y, feature_names=np.array(["a", "b", "c"]))
    data = load(tmp_path / "a.npz")
    assert data.class_names == ("2", "5") and data.label.tolist() == [0] * 4 + [1] * 4 + [-1] * 4
    np.savez(tmp_path / "b.npz", first=x, second=x + 1, kind=np.repeat(["u", "v", ""], 4))
    with pytest.raises(DataError, match="several arrays, first, second, kind"):
        load(tmp_path / "b.npz")
    data = load(tmp_path / "b.npz", key="second", label="kind")
    assert data.class_names == ("u", "v") and data.label.tolist() == [0] * 4 + [1] * 4 + [-1] * 4
    np.testing.assert_allclose(data.x.numpy(), x + 1, rtol=1e-6)
    with pytest.raises(DataError, match="no array 'third': it holds first, kind, second"):
        load(tmp_path / "b.npz", key="third")
    np.savez(tmp_path / "c.npz", x=x, y=y[:-1])
    with pytest.raises(DataError, match="12 observations but 11 labels"):
        load(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=x, y=RNG.random(12))
    with pytest.raises(DataError, match="no class"):
        load(tmp_path / "d.npz")


def test_npz_with_factors(tmp_path):
    x, value = RNG.random((30, 4)), RNG.choice([0.5, 2.0, 7.0], (30, 2))
    np.savez(tmp_path / "a.npz", x=x, factors=value)
    data = load(tmp_path / "a.npz")
    assert data.factor_names == ("factor 0", "factor 1")
    assert np.array_equal(np.array([0.5, 2.0, 7.0])[data.factors.numpy()], value)
    parts = {"x_train": x[:20], "x_test": x[20:], "factors_train": value[:20], "factors_test": value[20:]}
    np.savez(tmp_path / "b.npz", **parts)
    test = load(tmp_path / "b.npz").official["test"]
    assert np.array_equal(np.array([0.5, 2.0, 7.0])[test.factors.numpy()], value[20:])
    np.savez(tmp_path / "c.npz", **{name: part for name, part in parts.items() if name != "factors_test"})
    with pytest.raises(DataError, match="has none of factors for the 10 rows of its test part"):
        load(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=x, factors=value[:, 0])
    with pytest.raises(DataError, match=r"an array of shape \(30,\) of factors for the 30 rows of its train part"):
        load(tmp_path / "d.npz")


@pytest.mark.parametrize("form", ["x_{}", "{}_images"])
def test_npz_with_official_parts(tmp_path, form):
    x = RNG.integers(0, 256, (30, 4, 4), dtype=np.uint8)
    label = "y_{}" if form == "x_{}" else "{}_labels"
    arrays = {}
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        arrays |= {form.format(part): x[rows], label.format(part): np.arange(30)[rows] % 3}
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(tmp_path / "a.npz")
    assert len(data) == 20 and data.official.keys() == {"test"} and data.classes == 3
    assert torch.equal(data.official["test"].x[:, 0], torch.from_numpy(x[20:]))
    assert data.official["test"].label.tolist() == (np.arange(20, 30) % 3).tolist()


def test_a_folder_of_parts(tmp_path):
    for part in ("train", "valid", "test"):
        _npy(tmp_path / f"set_{part}.npy", RNG.random((10, 2)))
    assert load(tmp_path).official.keys() == {"valid", "test"}
    _npy(tmp_path / "set_test.npy", RNG.random((10, 3)))
    with pytest.raises(DataError, match=r"the test part has observations of shape \(3,\)"):
        load(tmp_path)
    _npy(tmp_path / "more.npy", RNG.random((10, 2)))
    with pytest.raises(DataError, match="4 array files of which none is said to be the data"):
        load(tmp_path)


def test_mat(tmp_path):
    savemat(tmp_path / "a.mat", {"X": (x := RNG.integers(0, 2, (20, 12), dtype=np.uint8)), "y": np.arange(20) % 2})
    data = load(tmp_path / "a.mat", image_shape=(3, 4))
    assert data.space == Images(1, 3, 4, levels=2) and data.label.tolist() == [0, 1] * 10
    np.testing.assert_array_equal(data.x.flatten(1).numpy(), x)
    savemat(tmp_path / "b.mat", {"X": (x := RNG.integers(0, 256, (6, 5, 3, 40), dtype=np.uint8))})
    data = load(tmp_path / "b.mat")
    assert data.space == Images(3, 6, 5)
    np.testing.assert_array_equal(data.x.numpy(), x.transpose(3, 2, 0, 1))
    savemat(tmp_path / "d.mat", {"X": (x := RNG.normal(size=(7, 3))), "s": "text", "c": np.array([{}], dtype=object)})
    np.testing.assert_array_equal(load(tmp_path / "d.mat").x.numpy(), x.astype(np.float32))
    for compress in (False, True):
        for dtype in ("u1", "i2", "u4", "i8", "f4", "f8", "?"):
            savemat(tmp_path / "e.mat", {"a": (x := (RNG.random((4, 3)) * 9).astype(dtype))}, do_compression=compress)
            np.testing.assert_array_equal(load(tmp_path / "e.mat").x.numpy(), x.astype(np.float32))
    (tmp_path / "c.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform".ljust(512))
    with pytest.raises(DataError, match="-v7"):
        load(tmp_path / "c.mat")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_of_any_type(tmp_path, dtype, suffix):
    x = (RNG.random((10, 4)) * 100).astype(dtype)
    data = load(_idx(tmp_path / f"a-idx2-ubyte{suffix}", x))
    np.testing.assert_array_equal(data.x.numpy(), x.astype(np.float32))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_in_mnists_layout(tmp_path, suffix):
    x, y = RNG.integers(0, 256, (30, 5, 4), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 10
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        _idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", x[rows])
        _idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", y[rows])
    data = load(tmp_path)
    assert data.space == Images(1, 5, 4) and data.classes == 10 and data.official.keys() == {"test"}
    assert torch.equal(data.official["test"].x[:, 0], torch.from_numpy(x[20:]))
    assert data.official["test"].label.tolist() == y[20:].tolist()
    alone = load(tmp_path / f"t10k-images-idx3-ubyte{suffix}")
    assert torch.equal(alone.x, data.official["test"].x) and alone.label.tolist() == y[20:].tolist()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx(tmp_path, suffix):
    x = RNG.integers(0, 256, (10, 5, 4), dtype=np.uint8)
    name = f"a-idx3-ubyte{suffix}"
    with pytest.raises(DataError, match="announces 220 bytes of data and it holds 200"):
        load(_idx(tmp_path / name, x, shape=(11, 5, 4)))
    with pytest.raises(DataError, match="announces 180 bytes of data and it holds more"):
        load(_idx(tmp_path / name, x, shape=(9, 5, 4)))
    with pytest.raises(DataError, match="truncated"):
        load(_idx(tmp_path / name, x, shape=(2**31, 2**31, 4)))
    (tmp_path / name).write_bytes(b"not an idx file at all")
    with pytest.raises(DataError, match="begins with 6e 6f 74 20"):
        load(tmp_path / name)
    _idx(tmp_path / f"b-idx3-ubyte{suffix}", x)
    data = (tmp_path / f"b-idx3-ubyte{suffix}").read_bytes()
    (tmp_path / f"b-idx3-ubyte{suffix}").write_bytes(data[:-30])
    with pytest.raises(DataError, match="b-idx3"):
        load(tmp_path / f"b-idx3-ubyte{suffix}")


def _records(rows, classes, *, head=1):
    x, y = RNG.integers(0, 256, (rows, 3, 32, 32), dtype=np.uint8), np.arange(rows, dtype=np.uint8) % classes
    heads = [np.zeros((rows, head - 1), np.uint8), y[:, None]]
    return np.concatenate([*heads, x.reshape(rows, -1)], 1).tobytes(), x, y


def test_cifar_binary_batches_of_any_length(tmp_path):
    first, x1, y1 = _records(13, 10)
    second, x2, y2 = _records(7, 10)
    test, xt, yt = _records(5, 10)
    for name, data in (("data_batch_1", first), ("data_batch_2", second), ("test_batch", test)):
        (tmp_path / f"{name}.bin").write_bytes(data)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    data = load(tmp_path)
    assert data.space == Images(3, 32, 32) and data.class_names == tuple("abcdefghij")
    np.testing.assert_array_equal(data.x.numpy(), np.concatenate([x1, x2]))
    assert data.label.tolist() == [*y1, *y2] and data.official["test"].label.tolist() == [*yt]
    np.testing.assert_array_equal(data.official["test"].x.numpy(), xt)
    (tmp_path / "data_batch_2.bin").write_bytes(second[:-1])
    with pytest.raises(DataError, match="holds 21510 bytes"):
        load(tmp_path)


def test_cifar_100(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.bin").write_bytes(_records(6, 100, head=2)[0])
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)))
    data = load(tmp_path)
    assert data.label.tolist() == [0, 1, 2, 3, 4, 5] and len(data.official["test"]) == 6 and data.classes == 100


def test_cifar_python_batches(tmp_path):
    x, y = RNG.integers(0, 256, (6, 3072), dtype=np.uint8), [0, 1, 2, 0, 1, 2]
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(_python2_pickle(x, y))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x", "y", "z"]}, protocol=2))
    data = load(tmp_path)
    np.testing.assert_array_equal(data.x.numpy(), x.reshape(6, 3, 32, 32))
    assert data.label.tolist() == y and data.class_names == ("x", "y", "z") and len(data.official["test"]) == 6


class _Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its text."""

    def save_bytes(self, data):
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def _python2_pickle(x, labels):
    file = io.BytesIO()
    _Python2(file, protocol=2).dump({"data": x, "labels": labels})
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize(
    "call", [b"cos\nsystem\n(S'true'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR."]
)
def test_restricted_pickles_run_nothing(tmp_path, call):
    (tmp_path / "data_batch_1").write_bytes(call)
    with pytest.raises(pickle.UnpicklingError, match="which no array needs"):
        pickles.unpickled(tmp_path / "data_batch_1")
    with pytest.raises(DataError, match="data_batch_1"):
        load(tmp_path)
