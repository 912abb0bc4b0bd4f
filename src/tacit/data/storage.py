"""Where data lies: in memory while it fits there, otherwise in a memory-mapped file that batches are read from.

What a user's file cannot be mapped from as it stands (pictures to be decoded, tables to be parsed) is written once to a
`.npy` in the cache folder, `TACIT_CACHE` or `~/.cache/tacit`, and found there the next time. It is written under a
temporary name beside its place and renamed last, so that what the cache holds is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tacit.errors import DataError

DEFAULT_MEMORY = 0.5

_SLICE, _INDEX, _SELECT = torch.ops.aten.slice.Tensor, torch.ops.aten.index.Tensor, torch.ops.aten.select.int


class Rows(Tensor):
    """Some rows of a tensor that lies on disk, as row numbers: taking them copies nothing.

    Indexing reads the rows asked for. Any other operation is right too, and reads all of the rows.
    """

    whole: Tensor
    rows: Tensor

    @staticmethod
    def __new__(cls, whole: Tensor, rows: Tensor) -> Rows:
        """A tensor by shape and dtype alone, without memory of its own."""
        return Tensor._make_wrapper_subclass(cls, (len(rows), *whole.shape[1:]), dtype=whole.dtype)

    def __init__(self, whole: Tensor, rows: Tensor):
        self.whole = whole
        self.rows = rows

    @classmethod
    def of(cls, x: Tensor, index: Tensor) -> Rows:
        """The rows `index` of `x`, which may be rows of something already."""
        return cls(x.whole, x.rows[index]) if isinstance(x, Rows) else cls(x, torch.arange(len(x))[index])

    def read(self) -> Tensor:
        """All of the rows, in memory."""
        return self.whole[self.rows]

    def numpy(self, *, force: bool = False) -> np.ndarray:
        return self.read().numpy(force=force)

    def tolist(self) -> list[Any]:
        return self.read().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        x = args[0] if args else None
        if isinstance(x, Rows):
            if function is _SLICE and (len(args) < 2 or args[1] == 0):
                return cls(x.whole, x.rows[slice(*args[2:])])
            if function is _SELECT and args[1] == 0:
                return x.whole[x.rows[args[2]]]
            if function is _INDEX and len(args[1]) == 1 and args[1][0] is not None:
                return x.whole[x.rows[args[1][0]]]
        args, kwargs = tree_map_only(Rows, Rows.read, (args, kwargs or {}))
        return function(*args, **kwargs)


def available() -> int:
    """Bytes of memory that can be had now without pushing anything out to disk."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: half of what is built in, or 4 GiB where even that cannot be asked
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**21
        free = pages * (os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096) // 2
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may be given less than its machine has
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text))
    return free


def fits(size: int, memory: float) -> bool:
    """Whether `size` bytes are at most the fraction `memory` of what is available."""
    return size <= memory * available()


def mapped(path: Path) -> Tensor:
    """The array of a `.npy`, on disk."""
    return mapped_tensor(np.load(path, mmap_mode="r", allow_pickle=False))


def mapped_tensor(array: np.ndarray) -> Tensor:
    """A tensor over a read-only map; nothing writes to data, which is all that torch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def store(
    blocks: Iterable[np.ndarray],
    rows: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    key: Sequence[object],
    memory: float,
    about: dict[str, Any] | None = None,
) -> tuple[Tensor, bool]:
    """Put `blocks` end to end into one tensor, and say whether it lies on disk.

    Args:
        blocks: arrays (some rows, *shape); they are made one at a time, and not at all where the cache has them.
        rows: at least as many rows as there will be.
        shape: one row's shape.
        dtype: the dtype of the tensor.
        key: all that decides the contents: the files with their sizes and times, and the options.
        memory: fraction of the available memory above which the tensor is put on disk.
        about: filled while the blocks are made, and remembered with them.

    Raises:
        DataError: the disk is full.
    """
    about = {} if about is None else about
    dtype = np.dtype(dtype)
    if fits(rows * math.prod(shape) * dtype.itemsize, memory):
        array, done = np.empty((rows, *shape), dtype), 0
        for block in blocks:
            array[done : done + len(block)] = block
            done += len(block)
        return torch.from_numpy(array[:done]), False
    path = cached(*key, shape, dtype.str)
    notes = path.with_suffix(".json")
    if path.exists() and notes.exists():
        about.update(json.loads(notes.read_text(encoding="utf-8")))
        return mapped(path), True
    with TemporaryBeside(path) as temporary:
        _write(blocks, temporary, shape, dtype)
        notes.write_text(json.dumps(about), encoding="utf-8")
        temporary.replace(path)
    return mapped(path), True


def cache_folder() -> Path:
    """Where decoded data is kept: `TACIT_CACHE`, or `~/.cache/tacit`."""
    folder = Path(os.environ.get("TACIT_CACHE") or Path.home() / ".cache" / "tacit")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(*key: object) -> Path:
    """The cache's file for what `key` decides."""
    return cache_folder() / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npy"


def stamp(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of last change of each file: what tells a cache that they are the same."""
    return [(str(f.resolve()), (status := f.stat()).st_size, status.st_mtime_ns) for f in files]


class TemporaryBeside:
    """A temporary name in the folder of `path`, removed if it was not renamed; a full disk becomes a sentence."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"the disk of {self.path.parent} is full and the data does not fit in memory: free some space there, "
                f"let TACIT_CACHE name a folder on another disk, or load less of it"
            ) from error


def _write(blocks: Iterable[np.ndarray], path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write a `.npy` whose number of rows is known at its end: numpy leaves room in the header for that number."""
    done = 0
    with path.open("wb") as file:
        _header(file, (0, *shape), dtype)
        start = file.tell()
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            done += len(block)
        file.seek(0)
        _header(file, (done, *shape), dtype)
        if file.tell() != start:
            raise RuntimeError("numpy wrote headers of different lengths for different numbers of rows")
        file.flush()
        os.fsync(file.fileno())


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
