"""Text as characters and as words."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from tacit.data import load, text
from tacit.errors import DataError
from tacit.spaces import Tokens

TEXT = "The cat's whiskers; the CAT sat. Größe 42, don't <unk> 'quoted' snake_case!\r\nEnd\n"


def _file(tmp_path, content=TEXT * 20, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode())
    return path


def test_characters_come_back_as_they_are(tmp_path):
    data = load(_file(tmp_path))
    assert "".join(data.vocabulary[i] for i in data.x.tolist()) == TEXT.replace("\r\n", "\n") * 20
    assert data.space == Tokens(len(data.vocabulary), 64) and data.x.dtype == torch.uint8
    assert data.vocabulary == tuple(sorted(data.vocabulary))
    assert data[torch.tensor([5])].shape == (1, 64) and data[torch.tensor([5])].dtype == torch.int64
    assert torch.equal(data[torch.tensor([5])][0], data.x[5:69].long())


def test_words_by_frequency(tmp_path):
    data = load(_file(tmp_path), words=True)
    words = [
        "the",
        "cat's",
        "whiskers",
        "the",
        "cat",
        "sat",
        "größe",
        "42",
        "don't",
        "<unk>",
        "quoted",
        "snake",
        "case",
        "end",
    ] * 20
    assert [data.vocabulary[i] for i in data.x.tolist()] == words
    counts = Counter(words)
    assert data.vocabulary[0] == "the"
    assert [counts[word] for word in data.vocabulary] == sorted(counts.values(), reverse=True)
    assert data.space == Tokens(len(counts), 16)
    assert load(_file(tmp_path), words=True, length=5).space.length == 5


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_do_not_cut_words(tmp_path, monkeypatch, words, block):
    whole = load(_file(tmp_path), words=words)
    monkeypatch.setattr(text, "_BLOCK", block)
    pieces = load(_file(tmp_path), words=words)
    assert whole.vocabulary == pieces.vocabulary and torch.equal(whole.x, pieces.x)


def test_many_symbols_take_wider_dtypes(tmp_path):
    many = "".join(chr(0x4E00 + i) for i in range(300))
    assert load(_file(tmp_path, many)).x.dtype == torch.int16
    words = " ".join(f"w{i}" for i in range(2**15 + 1))
    data = load(_file(tmp_path, words), words=True)
    assert data.x.dtype == torch.int32 and len(data.vocabulary) == 2**15 + 1
    assert load(_file(tmp_path, "\U0001f600 smile " * 20)).vocabulary[-1] == "\U0001f600"


def test_parts_share_a_vocabulary(tmp_path):
    _file(tmp_path, "abc " * 30, "my.train.txt")
    _file(tmp_path, "abd " * 30, "my.test.txt")
    data = load(tmp_path)
    assert data.vocabulary == (" ", "a", "b", "c", "d") and data.official.keys() == {"test"}
    assert data.official["test"].vocabulary == data.vocabulary


def test_files_are_joined_in_order_with_line_ends_between(tmp_path):
    _file(tmp_path, "one", "1.txt")
    _file(tmp_path, "two\n", "2.txt")
    _file(tmp_path, "three", "3.txt")
    data = load(tmp_path, length=4)
    assert "".join(data.vocabulary[i] for i in data.x.tolist()) == "one\ntwo\nthree"
    assert load(f"{tmp_path / '1.txt'}+{tmp_path / '3.txt'}", words=True, length=1).vocabulary == ("one", "three")
    with pytest.raises(DataError, match="no text that can be found"):
        load(f"{tmp_path / '1.txt'}+{tmp_path / 'nothing.txt'}")


@pytest.mark.parametrize("content", ["", "short", " \n"])
def test_too_short_for_a_window(tmp_path, content):
    with pytest.raises(DataError, match=rf"only {len(content)} characters.*window takes 64.*--length"):
        load(_file(tmp_path, content))
    with pytest.raises(DataError, match="words in its train part and a window takes 16"):
        load(_file(tmp_path, content), words=True)


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes("Größe ".encode("latin-1") * 50)
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load(tmp_path / "t.txt")


def test_gutenbergs_frame_is_left_out(tmp_path):
    framed = "Licence\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nThe book.\n*** END OF THIS\nmore licence"
    data = text.from_texts("book", {"train": [_file(tmp_path, framed)]}, framed=True, length=3)
    assert "".join(data.vocabulary[i] for i in data.x.tolist()) == "The book.\n"


def test_words_agree_with_a_slow_count(tmp_path):
    rng = np.random.default_rng(0)
    content = "".join(rng.choice(list("ab' é9_\n-<unk>"), 5000))
    data = load(_file(tmp_path, content), words=True)
    slow = re.findall(r"<unk>|(?:[^\W_])+(?:'[^\W_]+)*", content.lower())
    assert [data.vocabulary[i] for i in data.x.tolist()] == slow
