"""Recordings: a folder of `.wav`, PCM of 8 to 32 bits, whose subfolders are classes.

Several channels are averaged into one and all samples become 16 bits. A row is a window of `length` samples: a longer
recording gives several, end to end, and what is left over at its end is dropped; a shorter one is followed by silence.
"""

from __future__ import annotations

import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.reading import by_relative_name, class_of, numbered, put_together, reading, tell_skipped
from tacit.errors import DataError
from tacit.spaces import Waveform

_LEAST_HEADER = 44  # bytes: RIFF, format, and the head of the data


class _Header(NamedTuple):
    rate: int
    frames: int


def read_audio(
    root: Path, files: Sequence[Path], *, length: int | None = None, memory: float = storage.DEFAULT_MEMORY
) -> Dataset:
    """A folder of recordings.

    Args:
        length: samples in a window; by default the longest recording's, but at most one second.
    """
    classes = {path: class_of(name) for name, path in by_relative_name(root, files).items()}
    return from_recordings(root.name, {"train": files}, classes, length=length, memory=memory)


def from_recordings(
    name: str,
    parts: Mapping[str, Sequence[Path]],
    classes: Mapping[Path, Any],
    *,
    length: int | None = None,
    whole: bool = False,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """A data set of recordings, by part.

    Args:
        classes: each recording's class, None where it is unlabelled.
        whole: one row a recording, cut where it is longer than `length`.

    Raises:
        DataError: none can be read, or their rates differ.
    """
    files = [path for part in parts.values() for path in part]
    headers: dict[Path, _Header] = {}
    skipped: dict[str, str] = {}
    for path in files:
        try:
            headers[path] = _header(path)
        except Exception as error:  # whatever the decoder makes of damaged bytes
            skipped[path.name] = " ".join(str(error).split())[:200] or type(error).__name__
    left_out = tell_skipped(name, len(files), skipped)
    rates = Counter(header.rate for header in headers.values())
    if len(rates) > 1:
        shown = " and ".join(f"{count} at {rate}" for rate, count in rates.most_common(2))
        raise DataError(
            f"{name} holds recordings of different rates ({shown} samples a second): bring them to one rate"
        )
    rate = next(iter(rates))
    length = length or min(rate, max(header.frames for header in headers.values()))
    counts = {path: 1 if whole else max(1, header.frames // length) for path, header in headers.items()}
    x: dict[str, Tensor] = {}
    values: dict[str, np.ndarray | None] = {}
    mapped = False
    labelled = len(set(classes.values()) - {None}) > 1
    for part, of_part in parts.items():
        readable = [path for path in of_part if path in headers]
        if not readable:
            continue
        rows = sum(counts[path] for path in readable)
        blocks = (_windows(path, counts[path], length) for path in readable)
        key = (storage.stamp(readable), length, whole)
        x[part], on_disk = storage.store(blocks, rows, (length,), np.int16, key=key, memory=memory)
        mapped |= on_disk
        names = [classes[path] or "" for path in readable]
        values[part] = np.repeat(names, [counts[path] for path in readable]) if labelled else None
    labels, class_names = numbered(values, f"the label of {name}")
    space = Waveform(length, rate)
    return put_together(name, space, x, labels, class_names=class_names, skipped=left_out, mapped=mapped)


def _header(path: Path) -> _Header:
    with wave.open(str(path)) as file:
        rate, frames, frame_bytes = file.getframerate(), file.getnframes(), file.getsampwidth() * file.getnchannels()
        if file.getsampwidth() not in (1, 2, 3, 4):
            raise DataError(f"it has {8 * file.getsampwidth()} bits a sample, not 8 to 32")
        if not frames or rate < 1:
            raise DataError("it holds no samples")
        if frames * frame_bytes + _LEAST_HEADER > path.stat().st_size:
            raise DataError(
                f"it announces {frames * frame_bytes} bytes of samples and has {path.stat().st_size} in all"
            )
        return _Header(rate, frames)


def _windows(path: Path, count: int, length: int) -> np.ndarray:
    """`count` windows of one recording, (count, length) int16."""
    with reading(path.name, "a recording"), wave.open(str(path)) as file:
        width, channels = file.getsampwidth(), file.getnchannels()
        data = np.frombuffer(file.readframes(count * length), np.uint8)
    samples = _as_int16(data, width)
    if channels > 1:
        samples = samples.reshape(-1, channels).mean(1).round().astype(np.int16)
    windows = np.zeros(count * length, dtype=np.int16)
    windows[: len(samples)] = samples[: len(windows)]
    return windows.reshape(count, length)


def _as_int16(data: np.ndarray, width: int) -> np.ndarray:
    """Little-endian samples of `width` bytes, by their two highest."""
    if width == 1:  # the only unsigned one
        return (data.astype(np.int16) - 128) << 8
    data = data[: len(data) // width * width].reshape(-1, width)
    return np.ascontiguousarray(data[:, -2:]).view("<i2")[:, 0].astype(np.int16)
