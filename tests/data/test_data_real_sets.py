"""The real sets, against what their README says of them."""

import functools
import time

import pytest
import torch

from tacit.data import load, names
from tacit.spaces import Images, Strokes, Tokens, Vectors, Waveform


@functools.cache
def _load(name, home, **options):
    return load(name, data_home=home, **options)


SETS = {
    "fashion-mnist": (Images(1, 28, 28), 60000, {"test": 10000}, 10),
    "mnist": (Images(1, 28, 28), 60000, {"test": 10000}, 10),
    "binarized-mnist": (Images(1, 28, 28, levels=2), 50000, {"valid": 10000, "test": 10000}, 0),
    "freyfaces": (Images(1, 28, 20), 1965, {}, 0),
    "cifar10-subset": (Images(3, 32, 32), 4000, {"test": 1000}, 10),
    "omniglot": (Images(1, 105, 105, levels=2), 4840, {}, 242),
    "kodak": (Images(3, 64, 64), 12, {}, 0),
    "bsds300-subset": (Images(3, 64, 64), 40, {"test": 20}, 0),
    "facades": (Images(3, 256, 512), 80, {"test": 20}, 0),
    "fsdd": (Waveform(8000, 8000), 1200, {"test": 300}, 10),
    "tinyshakespeare": (Tokens(65, 64), 1115394 - 63, {}, 0),
    "miniboone-subset": (Vectors(43), 1234, {"valid": 137, "test": 152}, 0),
    "adbench/6_cardio": (Vectors(21), 1831, {}, 2),
    "adbench/32_shuttle": (Vectors(9), 49097, {}, 2),
    "sketchrnn/omniglot": (Strokes(157), 30000, {"valid": 1000, "test": 1000}, 0),
    "sketchrnn/short_kanji": (Strokes(88), 10000, {"valid": 600, "test": 500}, 0),
}


@pytest.mark.parametrize("name", SETS)
def test_shapes_and_parts(data_home, name):
    if name not in names(data_home):
        pytest.skip(f"{name} is not in TACIT_DATA")
    space, rows, official, classes = SETS[name]
    data = _load(name, data_home)
    assert data.space == space and len(data) == rows and data.classes == classes
    assert {part: len(found) for part, found in data.official.items()} == official
    assert data.x.is_contiguous() and not data.skipped
    if classes:
        assert data.label.min() == 0 and data.label.max() == classes - 1


def test_known_values(data_home):
    cifar = _load("cifar10-subset", data_home)
    assert cifar.x[0, :, 0, 0].tolist() == [59, 62, 63] and cifar.label[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar.official["test"].x[0, :, 0, 0].tolist() == [158, 112, 49]
    python = load(data_home / "cifar10-subset" / "cifar-10-batches-py")
    assert torch.equal(python.x, cifar.x[:200]) and torch.equal(python.label, cifar.label[:200])
    assert python.class_names == cifar.class_names and cifar.class_names[0] == "airplane"
    faces = _load("freyfaces", data_home)
    assert (faces.x.min(), faces.x.max()) == (8, 238)
    fashion = load(data_home / "fashion-mnist")
    assert fashion.label.bincount().tolist() == [6000] * 10 and fashion.class_names[0] == "T-shirt"
    assert _load("adbench/6_cardio", data_home).label.sum() == 176
    ink = _load("omniglot", data_home).x.float().mean()
    assert 0.02 < ink < 0.2  # ink is one, and there is little of it


def test_binarized_mnist_is_sorted_by_digit_and_upright(data_home):
    data = _load("binarized-mnist", data_home)
    test, mnist = data.official["test"].x[:980].float().mean(0), _load("mnist", data_home)
    zeros = (mnist.x[mnist.label == 0].float() / 255).mean(0)
    assert torch.nn.functional.cosine_similarity(test.flatten(), zeros.flatten(), 0) > 0.98


def test_texts(data_home):
    wiki = _load("wikitext-2", data_home, words=True)
    assert "<unk>" in wiki.vocabulary and wiki.official["test"].vocabulary == wiki.vocabulary
    assert len(_load("wikitext-2", data_home).x) > 1_000_000
    books = _load("gutenberg", data_home, words=True)
    assert books.vocabulary[0] == "the" and "sherlock" in books.vocabulary
    assert 0.9e6 < len(books.x) < 1.1e6
    parts = (_load("gutenberg", data_home), wiki := _load("wikitext-2", data_home), wiki.official["test"])
    both = _load("gutenberg+wikitext-2", data_home)
    assert len(both.x) == sum(len(part.x) for part in parts) and both.official == {}
    assert "trademark" not in books.vocabulary  # a word of the licence alone


def test_spoken_digits(data_home):
    data = _load("fsdd", data_home)
    assert data.label.bincount().tolist() == [120] * 10 and data.official["test"].label.bincount().tolist() == [30] * 10
    assert data.x.abs().max() > 5000


def test_fashion_mnist_loads_in_well_under_a_second(data_home):
    load("fashion-mnist", data_home=data_home)
    start = time.process_time()  # the time of this process, which other processes do not lengthen
    load("fashion-mnist", data_home=data_home)
    assert time.process_time() - start < 1
