"""Data sets of Hugging Face's `datasets`: the library itself where it is installed, and a stand-in for it."""

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from tacit.data import hub, load
from tacit.errors import DataError
from tacit.spaces import Images, Tokens, Vectors


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


class Image:
    pass


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Split:
    """As much of `datasets.Dataset` as the reader uses."""

    def __init__(self, columns, features):
        self.columns, self.features, self._fingerprint = columns, features, str(sorted(columns))

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return (
            self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}
        )

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def select_columns(self, names):
        return Split({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def with_format(self, form):
        assert form == "arrow"
        return self

    def iter(self, size):
        import pyarrow as pa

        return iter([pa.table(self.columns)])


def _read(parts, *, key=None, label=None):
    found = hub.Hub("set", parts, key, label, 0.5)
    return found, found.choose()


def _pictures(count, base):
    return [Picture.fromarray(np.full((4, 4), base + i, np.uint8)) for i in range(count)]


def test_pictures_with_class_labels():
    features = {"image": Image(), "label": ClassLabel(["cat", "dog"])}
    parts = {
        "train": Split({"image": _pictures(3, 0), "label": [0, 1, 0]}, features),
        "test": Split({"image": _pictures(2, 9), "label": [1, -1]}, features),
    }
    found, chosen = _read(parts)
    assert chosen == ("pictures", "image")
    data = found.pictures("image")
    assert data.space == Images(1, 4, 4) and data.class_names == ("cat", "dog") and data.label.tolist() == [0, 1, 0]
    assert data.official["test"].label.tolist() == [1, -1] and data.official["test"].x[:, 0, 0, 0].tolist() == [9, 10]
    assert found.pictures("image", size=2).space == Images(1, 2, 2)


def test_text_and_tables():
    found, chosen = _read({"train": Split({"text": ["one two", "", "three"] * 9}, {"text": Value("string")})})
    assert chosen == ("text", "text")
    data = found.text("text", words=True)
    assert isinstance(data.space, Tokens) and set(data.vocabulary) == {"one", "two", "three"} and len(data.x) == 27
    pytest.importorskip("pyarrow")
    features = {"a": Value("float32"), "b": Value("int64"), "kind": Value("string")}
    parts = {"train": Split({"a": [0.5, 1.5], "b": [1, 2], "kind": ["u", "v"]}, features)}
    found, chosen = _read(parts, label="kind")
    assert chosen[0] == "table"
    data = found.table(False)
    assert data.space == Vectors(2) and data.x.tolist() == [[0.5, 1], [1.5, 2]] and data.class_names == ("u", "v")
    with pytest.raises(DataError, match="text in column 'kind'"):
        _read(parts)[0].table(False)


def test_what_is_not_clear_is_asked():
    features = {"first": Value("string"), "second": Value("string")}
    parts = {"train": Split({"first": ["a"], "second": ["b"]}, features)}
    with pytest.raises(DataError, match="columns first, second: say which is the data with key"):
        _read(parts)
    assert _read(parts, key="second")[1] == ("text", "second")
    with pytest.raises(DataError, match="no column 'third': it has first, second"):
        _read(parts, key="third")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tacit\[hub\]'"):
        load("hub:mnist")


def test_the_library_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = {"image": _pictures(6, 0), "label": [0, 1] * 3}
    splits = {"train": datasets.Dataset.from_dict(pictures, features=features)}
    splits["validation"] = splits["train"].select([5, 4])
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pictures")
    for memory in (0.5, 0):
        data = load(tmp_path / "pictures", memory=memory)
        assert data.space == Images(1, 4, 4) and data.class_names == ("cat", "dog") and data.name == "pictures"
        assert data[torch.arange(6)][:, 0, 0, 0].tolist() == list(range(6)) and data.label.tolist() == [0, 1] * 3
        assert data.official["valid"].label.tolist() == [1, 0]

    datasets.Dataset.from_dict({"text": ["one two"] * 20}).save_to_disk(tmp_path / "text")
    assert load(tmp_path / "text", words=True, length=4).vocabulary == ("one", "two")

    table = datasets.Dataset.from_dict({"a": [1.0, None, 3.0], "b": [1, 2, 3], "y": ["u", "v", "w"]})
    table.save_to_disk(tmp_path / "table")
    assert load(tmp_path / "table", label="y", drop_missing=True).x.tolist() == [[1, 1], [3, 3]]
    with pytest.raises(DataError, match=r"lacks values in column 'a' \(1\)"):
        load(tmp_path / "table", label="y")
    with pytest.raises(DataError, match="Hugging Face"):
        load(f"hub:{tmp_path / 'nothing'}")
