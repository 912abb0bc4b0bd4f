"""MATLAB's `.mat` files of versions 5 to 7: the arrays of numbers in them.

Read here, and not by SciPy, whose reader crashes the process on some damaged files. Cells, structures, text and sparse
arrays are passed over.

References
----------
MathWorks, MAT-File Format, §1: Level 5 MAT-Files.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tacit.data import storage
from tacit.data.arrays import choose, from_arrays
from tacit.data.dataset import Dataset
from tacit.data.reading import by_part, one_file, reading
from tacit.errors import DataError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# How values lie in the file. MATLAB lays doubles that are small whole numbers down as bytes, and bytes they stay here.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = range(6, 16)  # double, single, and the integers
_COMPLEX = 8


def read_mat(
    root: Path,
    files: Sequence[Path],
    *,
    key: str | None = None,
    label: str | None = None,
    image_shape: tuple[int, ...] | None = None,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """MATLAB files; images may be (height, width, channels, rows), as MATLAB stacks them."""
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for part, of_part in by_part(files).items():
        path = one_file(root.name, of_part, ".mat files")
        with reading(path.name, "a MATLAB file"):
            arrays = {name: _rows_first(array) for name, array in matrices(path.name, path.read_bytes()).items()}
        parts = choose(path.name, arrays, key, label)
        found.update(parts if list(parts) != ["train"] else {part: parts["train"]})
    return from_arrays(root.name, found, image_shape=image_shape, memory=memory)


def _rows_first(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4 and array.shape[2] <= 4 and array.shape[3] > 4:
        return array.transpose(3, 0, 1, 2)
    return array


def matrices(name: str, data: bytes) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file, by name.

    Raises:
        DataError: the file is of another version, or ends before its time.
    """
    if data[:10] == b"MATLAB 7.3":
        raise DataError(f"{name} is a MATLAB 7.3 file: save it again with save(…, '-v7')")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise DataError(f"{name} is no MATLAB file of version 5 to 7: save it again with save(…, '-v7')")
    found = {}
    for kind, body in _elements(data[_HEADER:], order):
        if kind == _COMPRESSED:
            whole = zlib.decompressobj()
            size = struct.unpack(order + "I", whole.decompress(body, 8)[4:8])[0]
            body = whole.decompress(whole.unconsumed_tail, max(1, size))
            if len(body) != size:
                raise DataError(f"{name} ends within an array: get or copy it anew")
        elif kind != _MATRIX:
            continue
        read = _matrix(body, order)
        if read is not None:
            found[read[0]] = read[1]
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and contents of each element. One of up to four bytes is packed into the eight bytes of its own head."""
    start = 0
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, start)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[start + 4 : start + 4 + min(size, 4)]
            start += 8
            continue
        body = data[start + 8 : start + 8 + size]
        if len(body) != size:
            raise ValueError(f"an element of {size} bytes has {len(body)}")
        yield kind, body
        start += 8 + size + (-size % 8 if kind != _COMPRESSED else 0)


def _matrix(body: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values of one array; None where it is not one of real numbers."""
    elements = _elements(body, order)
    flags = struct.unpack(order + "I", next(elements)[1][:4])[0]
    shape = np.frombuffer(next(elements)[1], order + "i4").tolist()
    name = next(elements)[1].decode("ascii")
    if flags & 0xFF not in _NUMERIC or flags >> 8 & _COMPLEX or min(shape, default=-1) < 0:
        return None
    kind, stored = next(elements)
    values = np.frombuffer(stored, order + _STORED[kind])
    if math.prod(shape) != len(values):
        raise ValueError(f"an array of shape {tuple(shape)} has {len(values)} values")
    return name, values.astype(values.dtype.newbyteorder("=")).reshape(shape, order="F")
