"""Drawings of pen strokes: sketch-rnn's `.npz` of the stroke-3 form, and Quick, Draw!'s `.ndjson`.

An `.npz` holds an array of drawings for each part, `train`, `valid` and `test`, a drawing being an array (points, 3) of
offsets and of whether the pen is lifted after the point (Ha & Eck 2018, arXiv:1704.03477). Such an array of arrays is
saved as a pickle, of which none is run (`pickles.arrays_in`). A line of an `.ndjson` is a drawing as lists of strokes,
each a list of x and one of y (and of times, which are left out). Several files are as many classes; where all their
names speak of parts, they are parts.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from tacit.data import pickles, storage
from tacit.data.dataset import Dataset
from tacit.data.reading import PARTS, by_part, numbered, part_of, put_together, reading, tell
from tacit.errors import DataError
from tacit.spaces import Strokes

_BLOCK = 1024
_MOST_HEADER = 2**16


def are_in(path: Path) -> bool:
    """Whether an `.npz` holds arrays of arrays, and nothing else: drawings, as no other data is saved like that."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            return bool(members) and all(_is_of_objects(archive, name) for name in members)
    except Exception:  # what is damaged is for the reader of arrays to name
        return False


def _is_of_objects(archive: zipfile.ZipFile, member: str) -> bool:
    with archive.open(member) as file:
        return _dtype(io.BytesIO(file.read(_MOST_HEADER))).hasobject


def _dtype(file: io.BytesIO) -> np.dtype:
    """The dtype in an array file's header, behind which the file then stands."""
    version = npy.read_magic(file)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return header(file)[2]


def read_drawings(
    root: Path, files: Sequence[Path], *, length: int | None = None, memory: float = storage.DEFAULT_MEMORY
) -> Dataset:
    """Files of drawings.

    Args:
        length: most points of a drawing; by default the longest one's. Longer ones are left out.

    Raises:
        DataError: a file holds no drawings, or there are none that are short enough.
    """
    found: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    classes: dict[str, list[str]] = {part: [] for part in PARTS}
    for of_files, of_part in by_part(files).items():
        for path in of_part:
            name = path.name.partition(".")[0] if len(of_part) > 1 else ""
            read = _ndjson(path, of_files, name) if path.suffix.lower() == ".ndjson" else _npz(path, of_files, name)
            for part, word, drawing in read:
                found[part].append(drawing)
                classes[part].append(word)
    longest = max((len(drawing) for some in found.values() for drawing in some), default=0)
    if not longest:
        raise DataError(f"{root.name} holds no drawings: give files that have some")
    length = length or longest
    fit = {part: [len(drawing) <= length for drawing in some] for part, some in found.items()}
    left_out, count = sum(not ok for some in fit.values() for ok in some), sum(map(len, fit.values()))
    if left_out == count:
        raise DataError(f"{root.name} holds no drawing of {length} points or fewer: give a length of up to {longest}")
    if left_out:
        tell(f"{left_out} of {count} drawings of {root.name} have more than {length} points and were left out")
    labelled = len({word for some in classes.values() for word in some} - {""}) > 1
    whole = all(_is_int16(drawing) for some in found.values() for drawing in some)
    x, values, mapped = {}, {}, False
    for part, drawings in found.items():
        kept = [drawing for drawing, ok in zip(drawings, fit[part], strict=True) if ok]
        if not kept:
            continue
        key = (storage.stamp(files), part, length)
        dtype = np.int16 if whole else np.float32
        x[part], on_disk = storage.store(_padded(kept, length), len(kept), (length, 3), dtype, key=key, memory=memory)
        mapped |= on_disk
        words = [word for word, ok in zip(classes[part], fit[part], strict=True) if ok]
        values[part] = np.array(words) if labelled else None
    labels, names = numbered(values, f"the class of {root.name}")
    return put_together(root.name, Strokes(length), x, labels, class_names=names, mapped=mapped)


def _npz(path: Path, part: str, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(part, class, drawing) of an archive, whose keys name the parts."""
    with reading(path.name, "an archive of drawings"), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            of_part = part_of(member.removesuffix(".npy")) or part
            file = io.BytesIO(archive.read(member))
            if not _dtype(file).hasobject:
                raise DataError(
                    f"{path.name} holds {member}, an array of numbers, among arrays of drawings: take it out"
                )
            for i, points in enumerate(pickles.arrays_in(file.read())):
                if points.ndim != 2 or points.shape[1] != 3 or not len(points):
                    raise DataError(
                        f"{path.name} holds an array of shape {points.shape} in {member}, at {i}: a drawing is of "
                        f"(points, 3), offsets and pen"
                    )
                if not np.isin(points[:, 2], (0, 1)).all():
                    raise DataError(f"{path.name} holds a pen that is neither 0 nor 1 in {member}, at {i}: make it so")
                yield of_part, name, _checked(path.name, points)


def _ndjson(path: Path, part: str, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(part, class, drawing) of each line that is not empty; the class is the line's word, else the file's."""
    with reading(path.name, "lines of drawings"), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = json.loads(line)
            strokes = record.get("drawing") if isinstance(record, dict) else None
            if not isinstance(strokes, list) or not any(strokes):
                raise DataError(
                    f"{path.name} has no drawing in line {number}: a line is {{'drawing': [[xs, ys], …], …}}"
                )
            word = record.get("word", name)
            yield part, str(word), _checked(path.name, _stroke3(path.name, number, strokes))


def _stroke3(name: str, number: int, strokes: list[Any]) -> np.ndarray:
    """Offsets and pen, (points, 3) float64, of strokes [[xs, ys], …]; of the first point from the origin."""
    parts = []
    for stroke in strokes:
        if len(stroke) < 2 or len(stroke[0]) != len(stroke[1]):
            raise DataError(f"{name} has a stroke without as many y as x in line {number}: leave it out")
        points = np.zeros((len(stroke[0]), 3))
        points[:, 0], points[:, 1] = stroke[0], stroke[1]
        points[-1:, 2] = 1
        parts.append(points)
    found = np.concatenate(parts)
    if not len(found):
        raise DataError(f"{name} has no point in line {number}: leave the line out")
    found[1:, :2] -= found[:-1, :2].copy()
    return found


def _checked(name: str, points: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        finite = np.isfinite(points.astype(np.float32)).all()
    if not finite:
        raise DataError(f"{name} holds offsets that are not finite: leave those drawings out")
    return points


def _is_int16(points: np.ndarray) -> bool:
    if points.dtype == np.int16:
        return True
    return bool((np.abs(points) < 2**15).all() and (points == np.round(points)).all())


def _padded(drawings: Sequence[np.ndarray], length: int) -> Iterable[np.ndarray]:
    """Blocks of (some, length, 3), filled up with the end."""
    for start in range(0, len(drawings), _BLOCK):
        some = drawings[start : start + _BLOCK]
        block = np.zeros((len(some), length, 3), np.float64)
        block[..., 2] = Strokes.END
        for row, drawing in zip(block, some, strict=True):
            row[: len(drawing)] = drawing
        yield block
