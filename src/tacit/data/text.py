"""Plain text, as a stream of characters or of words.

Characters are Unicode's, numbered in their order; all line ends become line feeds. Words are lower-cased runs of
letters and digits with apostrophes inside them (and the token `<unk>`, which some corpora have in place of rare words),
numbered by falling frequency; all are kept. Several files make one stream, each part's files in the order of their
names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.reading import by_part, put_together, reading
from tacit.errors import DataError
from tacit.spaces import Tokens

CHARACTER_WINDOW = 64
WORD_WINDOW = 16

_WORD = re.compile(r"<unk>|[^\W_]+(?:['’][^\W_]+)*")
_BLOCK = 2**22
_UNICODE = 0x110000


def read_text(
    root: Path,
    files: Sequence[Path],
    *,
    words: bool = False,
    length: int | None = None,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """Text files; those called train, valid and test are official parts.

    Args:
        words: a stream of words instead of characters.
        length: of a window; by default 64 characters or 16 words.
    """
    return from_texts(root.name, by_part(files), words=words, length=length, memory=memory)


def from_texts(
    name: str,
    parts: dict[str, list[Path]],
    *,
    words: bool = False,
    length: int | None = None,
    framed: bool = False,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """A data set of text files, by part, with one vocabulary.

    Args:
        framed: leave out what Project Gutenberg puts before `*** START OF` and after `*** END OF`.

    Raises:
        DataError: a file is not UTF-8, or a part has not enough text for one window.
    """
    length = length or (WORD_WINDOW if words else CHARACTER_WINDOW)
    unit = "words" if words else "characters"
    counts = {part: _count(files, words, framed) for part, files in parts.items()}
    for part, count in counts.items():
        if count.total() < length:
            raise DataError(
                f"{name} has only {count.total()} {unit} in its {part} part and a window takes {length}: give more "
                f"text, or a shorter window with length=… (--length)"
            )
    total: Counter[str] = sum(counts.values(), Counter())
    vocabulary = sorted(total, key=lambda word: (-total[word], word)) if words else sorted(total)
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int16 if len(vocabulary) <= 2**15 else np.int32
    x: dict[str, Tensor] = {}
    mapped = False
    everything = [path for files in parts.values() for path in files]  # of which the vocabulary is made
    for part, files in parts.items():
        key = (storage.stamp(files), storage.stamp(everything), words, framed)
        blocks = _numbers(files, vocabulary, words, framed)
        x[part], on_disk = storage.store(blocks, counts[part].total(), (), dtype, key=key, memory=memory)
        mapped |= on_disk
    return put_together(name, Tokens(len(vocabulary), length), x, vocabulary=tuple(vocabulary), mapped=mapped)


def _count(files: Sequence[Path], words: bool, framed: bool) -> Counter[str]:
    """How often each symbol occurs."""
    if words:
        counter: Counter[str] = Counter()
        for text in _texts(files, words, framed):
            counter.update(_WORD.findall(text.lower()))
        return counter
    counts = np.zeros(_UNICODE, dtype=np.int64)
    for text in _texts(files, words, framed):
        points = _code_points(text)
        counts[: points.max() + 1] += np.bincount(points)
    return Counter({chr(point): int(counts[point]) for point in np.flatnonzero(counts)})


def _numbers(files: Sequence[Path], vocabulary: Sequence[str], words: bool, framed: bool) -> Iterator[np.ndarray]:
    """The symbols' numbers, block by block."""
    if words:
        number = {word: i for i, word in enumerate(vocabulary)}
        for text in _texts(files, words, framed):
            found = _WORD.findall(text.lower())
            yield np.fromiter(map(number.__getitem__, found), np.int32, len(found))
        return
    table = np.zeros(_UNICODE, dtype=np.int32)
    table[[ord(character) for character in vocabulary]] = np.arange(len(vocabulary))
    for text in _texts(files, words, framed):
        yield table[_code_points(text)]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)


def _texts(files: Sequence[Path], words: bool, framed: bool) -> Iterator[str]:
    """The text in blocks, which cut no words; a file's last line is ended before the next file begins."""
    last = "\n"
    for path in files:
        if not last.endswith("\n"):
            yield "\n"
        with reading(path.name, "text"), path.open(encoding="utf-8-sig") as file:
            rest = ""
            while block := _within_frame(file.read()) if framed else file.read(_BLOCK):
                last = rest + block
                body = _up_to_space(last) if words else last
                rest = last[len(body) :]
                yield body
            if rest:
                yield rest


def _up_to_space(text: str) -> str:
    """The text up to its last white space."""
    return text if text[-1].isspace() else text[: len(text) - len(text.rsplit(None, 1)[-1])]


def _within_frame(text: str) -> str:
    """The book itself; all of a text that has no such frame."""
    if end := re.search(r"^\*\*\* ?END OF.*$", text, re.MULTILINE):
        text = text[: end.start()]
    if start := re.search(r"^\*\*\* ?START OF.*$", text, re.MULTILINE):
        text = text[start.end() :].lstrip()
    return text
