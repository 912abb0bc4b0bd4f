"""Data on disk is the same data: batches, parts, fingerprints, and nothing read that was not asked for."""

import errno
import os

import numpy as np
import pytest
import torch

from tacit.data import Dataset, load, storage
from tacit.errors import DataError
from tacit.spaces import Images, Tokens, Vectors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))


def _both(path, **options):
    """The same data in memory and on disk."""
    here, there = load(path, **options), load(path, memory=0, **options)
    assert not here.mapped and there.mapped
    return here, there


def _assert_same(here: Dataset, there: Dataset):
    index = torch.tensor([3, 0, len(here) - 1, 3])
    assert torch.equal(here[index], there[index])
    assert here[index].dtype == there[index].dtype == here.space.torch_dtype
    assert here.fingerprint() == there.fingerprint()
    for a, b in zip(here.parts(), there.parts(), strict=True):
        assert len(a) == len(b)
        assert torch.equal(a.observations(), b.observations())
        assert torch.equal(a.observations(7), b.observations(7))
        assert a.fingerprint() == b.fingerprint()
        some = torch.arange(len(a))[::3]
        if not isinstance(here.space, Tokens):
            assert torch.equal(a.take(some).observations(), b.take(some).observations())
        assert torch.equal(a.take(slice(2, 90)).observations(), b.take(slice(2, 90)).observations())
        if a.label is not None:
            assert torch.equal(a.batch(some).label, b.batch(some).label)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", ">f8", "float16", "uint32"])
def test_a_mapped_table_is_the_table(tmp_path, dtype):
    x = (np.random.default_rng(0).normal(size=(200, 5)) * 50 + 200).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    here, there = _both(tmp_path / "x.npy")
    assert here.space == there.space == Vectors(5)
    np.testing.assert_array_equal(here.x.numpy(), x.astype(np.float32))
    _assert_same(here, there)


@pytest.mark.parametrize("shape", [(60, 8, 6), (60, 3, 8, 6), (60, 8, 6, 3)])
def test_mapped_images_are_the_images(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    here, there = _both(tmp_path / "x.npy")
    assert here.space == there.space == Images(3 if len(shape) == 4 else 1, 8, 6)
    _assert_same(here, there)


def test_mapped_binary_images_and_fortran_order(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (70, 4, 4), dtype=np.uint8))
    np.save(tmp_path / "x.npy", x)
    here, there = _both(tmp_path / "x.npy")
    assert here.space == there.space == Images(1, 4, 4, levels=2)
    _assert_same(here, there)


def test_mapped_npz_csv_and_text(tmp_path):
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "a.npz", X=rng.normal(size=(90, 3)), y=rng.integers(0, 3, 90))
    _assert_same(*_both(tmp_path / "a.npz"))
    rows = "".join(f"{a:.4f},{b:.4f},{'cat' if a > 0 else 'dog'}\n" for a, b in rng.normal(size=(120, 2)))
    (tmp_path / "t.csv").write_text("u,v,kind\n" + rows)
    here, there = _both(tmp_path / "t.csv", label="kind")
    _assert_same(here, there)
    assert here.class_names == there.class_names == ("cat", "dog")
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200, encoding="utf-8")
    _assert_same(*_both(tmp_path / "t.txt"))
    _assert_same(*_both(tmp_path / "t.txt", words=True))


def test_the_cache_is_used_and_follows_the_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 40)
    first = load(path, memory=0)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert torch.equal(load(path, memory=0)[torch.arange(40)], first[torch.arange(40)])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
    path.write_text("a,b\n" + "3,4\n" * 40)
    os.utime(path, ns=(1, 1))
    assert load(path, memory=0)[torch.tensor([0])].tolist() == [[3, 4]]
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 40)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(DataError, match=r"full.*TACIT_CACHE"):
        load(tmp_path / "t.csv", memory=0)
    assert not list((tmp_path / "cache").iterdir())


def test_rows_read_what_is_indexed_and_are_right_in_any_operation():
    whole = torch.arange(40.0).reshape(10, 4)
    rows = storage.Rows.of(whole, torch.tensor([1, 3, 5, 9]))
    expected = whole[[1, 3, 5, 9]]
    assert rows.shape == expected.shape and len(rows) == 4 and rows.nbytes == expected.nbytes
    assert isinstance(rows[1:3], storage.Rows)
    assert isinstance(storage.Rows.of(rows, torch.tensor([0, 2])), storage.Rows)
    assert torch.equal(storage.Rows.of(rows, torch.tensor([0, 2])) + 0, whole[[1, 5]])
    for read in (
        lambda x: x[torch.tensor([3, 0])],
        lambda x: x[1:3] * 1,
        lambda x: x[::2] * 1,
        lambda x: x[2],
        lambda x: x[torch.tensor([True, False, True, False])],
        lambda x: x.double().mean(0),
        lambda x: x.reshape(2, -1).amax(1),
        lambda x: torch.stack([x, x]),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.tensor(x.tolist()),
    ):
        assert torch.equal(read(rows), read(expected))


def test_parts_of_mapped_data_copy_nothing(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(4000.0).reshape(1000, 4))
    train, valid, test = load(tmp_path / "x.npy", memory=0).parts()
    assert all(isinstance(part.x, storage.Rows) for part in (train, valid, test))
    assert isinstance(train.take(torch.arange(10)).x, storage.Rows)
    assert train.to("cpu").x is train.x
    seen = torch.cat([part.observations()[:, 0] for part in (train, valid, test)])
    assert torch.equal(seen.sort().values, torch.arange(0.0, 4000, 4))


def test_a_fingerprint_of_much_data_reads_little_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tacit.data.dataset._FINGERPRINT_BYTES", 2**16)
    monkeypatch.setattr("tacit.data.dataset._STRETCH_BYTES", 2**12)
    x = torch.arange(2**18, dtype=torch.int32).reshape(-1, 4)
    read = []

    class Watched(torch.Tensor):
        def __getitem__(self, index):
            read.append(len(range(*index.indices(len(self)))) * 16)
            return super().__getitem__(index)

    data = Dataset(Images(1, 2, 2), x.as_subclass(Watched))
    before = data.fingerprint()
    assert 2**15 <= sum(read) <= 2**16 + 16
    x[-1] = 0  # the ends are always among what is read
    assert data.fingerprint() != before


def test_fingerprint_tells_data_apart():
    x = torch.rand(100, 3)
    one = Dataset(Vectors(3), x).fingerprint()
    assert one == Dataset(Vectors(3), x.clone()).fingerprint()
    other = x.clone()
    other[50, 1] += 1e-3
    assert one != Dataset(Vectors(3), other).fingerprint()


def test_observations_are_spread_over_sorted_rows():
    data = Dataset(Vectors(1), torch.arange(1000.0)[:, None])
    assert data.observations(4).flatten().tolist() == [0, 250, 500, 750]
    assert len(data.observations(5000)) == 1000


def test_available_memory_is_a_plausible_number():
    assert 2**20 < storage.available() < 2**50
    assert storage.fits(0, 0) and not storage.fits(1, 0)
