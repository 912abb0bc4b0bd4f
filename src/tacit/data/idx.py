"""IDX, the format of MNIST: a magic number of type and rank, the shape, the values, all big-endian; usually gzipped."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tacit.data import storage
from tacit.data.arrays import from_arrays
from tacit.data.dataset import Dataset
from tacit.data.reading import by_part, one_file, reading
from tacit.errors import DataError

_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(
    root: Path,
    files: Sequence[Path],
    *,
    image_shape: tuple[int, ...] | None = None,
    class_names: Sequence[str] = (),
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """IDX files, gzipped or not: one file, or `train-*` and `t10k-*` images with their labels."""
    if len(files) == 1:
        # The labels of one file of images lie beside it, under its name with other words.
        path = files[0]
        beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        files = [path, beside] if beside != path and beside.exists() else files
    arrays = {path: array_of(path) for path in files}
    found = {}
    for part, of_part in by_part(files).items():
        images = [path for path in of_part if arrays[path].ndim > 1]
        labels = [path for path in of_part if arrays[path].ndim == 1]
        if not images and len(files) == 1:
            images, labels = labels, []
        if not images or len(labels) > 1:
            one_file(root.name, of_part, "IDX files")
        array = arrays[one_file(root.name, images, "IDX files of images")]
        found[part] = array, arrays[labels[0]] if labels else None
    return from_arrays(root.name, found, image_shape=image_shape, class_names=class_names, memory=memory)


def array_of(path: Path) -> np.ndarray:
    """The array of one IDX file.

    Raises:
        DataError: its magic number is another format's, or its length is not what its header says.
    """
    with reading(path.name, "an IDX file"), path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: BinaryIO = gzip.GzipFile(fileobj=raw) if gzipped else raw  # type: ignore[assignment]
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
            raise DataError(
                f"{path.name} is no IDX file: it begins with {magic.hex(' ')}, not with 00 00, a type and a rank"
            )
        header = file.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise DataError(f"{path.name} ends within its header: get or copy it anew")
        shape = struct.unpack(f">{magic[3]}I", header)
        dtype = np.dtype(_DTYPES[magic[2]])
        expected = math.prod(shape) * dtype.itemsize
        if gzipped:
            data = _read_at_most(file, expected)
            found = len(data)
        else:
            found = path.stat().st_size - 4 - len(header)
        if found != expected:
            raise DataError(
                f"{path.name} is truncated or damaged: its header announces {expected} bytes of data and it holds "
                f"{'more' if found > expected else found}; get or copy it anew"
            )
        if not gzipped and expected:
            return np.memmap(path, dtype, "r", 4 + len(header), shape)
        array = np.frombuffer(data if gzipped else b"", dtype).reshape(shape)
        return array.astype(dtype.newbyteorder("="), copy=False)


def _read_at_most(file: BinaryIO, count: int) -> bytearray:
    """`count` bytes, or one more where there are more, or what there is: memory grows with the file, not the header."""
    data = bytearray()
    while len(data) <= count and (block := file.read(min(2**24, count + 1 - len(data)))):
        data += block
    return data
