"""Arrays of numbers: what they hold, and NumPy's files of them, `.npy` and `.npz`.

What an array is, is told by its shape and dtype: (rows, features) is a table; uint8 of (rows, height, width), (rows,
channels, height, width) or (rows, height, width, channels) are images, of (rows, frames, channels, height, width) or
(rows, frames, height, width, channels) clips. `image_shape` says that a table's rows are images or clips laid flat.
Those that hold only 0 and 1 are binary (`levels=2`). An array `factors`, (rows, factors), of an `.npz` says what the
observations were generated from.
"""

from __future__ import annotations

import io
import math
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.reading import PARTS, by_part, numbered, one_file, part_of, put_together, reading
from tacit.errors import DataError
from tacit.spaces import Images, Space, Vectors, Video

_DATA_KEYS = ("x", "data", "images", "image", "features", "arr_0")
_LABEL_KEYS = ("y", "label", "labels", "target", "targets")
_FACTOR_KEYS = ("factors",)
_BLOCK_BYTES = 2**26
_ROUNDING = 1e-3  # what float32 may have lost of a number below 256
_TORCH_DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8")

# name -> (the observations, the labels)
Parts = Mapping[str, tuple[np.ndarray, np.ndarray | None]]


def from_arrays(
    name: str,
    parts: Parts,
    *,
    image_shape: tuple[int, ...] | None = None,
    class_names: Sequence[str] = (),
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """A data set of arrays, which may be maps of files on disk.

    Raises:
        DataError: an array is of a shape or dtype that is no table, images or clips, or holds what is not finite.
    """
    for part, (array, label) in parts.items():
        if array.size == 0:
            raise DataError(f"{name} holds an array of shape {array.shape}: there is no observation in it")
        if label is not None and label.size != len(array):
            raise DataError(f"{name} has {len(array)} observations but {label.size} labels in its {part} part")
    first = next(iter(parts.values()))[0]
    as_images = image_shape is not None or first.ndim > 2
    tensors: dict[str, tuple[Tensor, bool]] = {}
    for part, (array, _) in parts.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} holds values of dtype {array.dtype}: save numbers instead")
        if as_images:
            array = _pictures(name, array, image_shape)
            tensors[part] = _as_images(name, array, memory)
        else:
            tensors[part] = _as_table(name, array, memory)
    row = tuple(next(iter(tensors.values()))[0].shape[1:])
    space: Space
    if as_images:
        binary = all(_at_most_one(x) for x, _ in tensors.values())
        levels = 2 if binary else 256
        space = Video(*row, levels) if len(row) == 4 else Images(row[0], row[1], row[2], levels)
    else:
        space = Vectors(row[0])
    labels, names = numbered({part: label for part, (_, label) in parts.items()}, f"the label of {name}", class_names)
    mapped = any(on_disk for _, on_disk in tensors.values())
    return put_together(name, space, {p: x for p, (x, _) in tensors.items()}, labels, class_names=names, mapped=mapped)


def _pictures(name: str, array: np.ndarray, image_shape: tuple[int, ...] | None) -> np.ndarray:
    """The array as (rows, channels, height, width) or (rows, frames, channels, height, width), a view."""
    if image_shape is not None:
        if math.prod(image_shape) != math.prod(array.shape[1:]) or len(image_shape) not in (2, 3, 4):
            raise DataError(
                f"{name} has rows of {math.prod(array.shape[1:])} values, which do not make images of shape "
                f"{image_shape}: give image_shape as height and width, or channels, height and width, or frames, "
                f"channels, height and width"
            )
        array = array.reshape(len(array), *image_shape)
        if len(image_shape) == 4:
            return array
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 5:
        return _clips(name, array)
    if array.ndim == 4 and array.shape[1] <= 4:
        return array
    if array.ndim == 4 and array.shape[3] <= 4:
        return array.transpose(0, 3, 1, 2)
    raise DataError(
        f"{name} holds an array of shape {array.shape}: images are (rows, height, width) or (rows, channels, height, "
        f"width) with at most 4 channels, clips (rows, frames, channels, height, width), a table is (rows, features)"
    )


def _clips(name: str, array: np.ndarray) -> np.ndarray:
    """The array as (rows, frames, channels, height, width), a view."""
    first, last = array.shape[2] <= 4, array.shape[4] <= 4
    if first == last:
        why = "of which either the third or the last may be the channels" if first else "none of which are the channels"
        frames = "frames, channels, height and width"
        raise DataError(
            f"{name} holds clips of shape {array.shape}, {why}, of which there are at most 4: save them as (rows, "
            f"frames, channels, height, width) and give image_shape as {frames}"
        )
    return array if first else array.transpose(0, 1, 4, 2, 3)


def _as_images(name: str, array: np.ndarray, memory: float) -> tuple[Tensor, bool]:
    if array.dtype == bool:
        array = array.view(np.uint8)
    if array.dtype == np.uint8 and isinstance(array, np.memmap) and not storage.fits(array.nbytes, memory):
        return storage.mapped_tensor(array), True
    # Reals in [0, 1] were whole numbers before they were divided by 255; zeros and ones alone are zeros and ones.
    real = array.dtype.kind == "f"
    scale = 255 if real and any((block != np.round(block)).any() for block in _blocks(array)) else 1
    return _stored(array, (_bytes(name, block, scale) for block in _blocks(array)), np.uint8, memory)


def _bytes(name: str, block: np.ndarray, scale: int) -> np.ndarray:
    if block.dtype == np.uint8:
        return block
    values = block.astype(np.float64) * scale
    whole = np.round(values)
    # Said with "not", because NaN is neither above nor below a bound.
    if not (whole.min() >= 0 and whole.max() <= 255 and np.abs(values - whole).max() <= _ROUNDING):
        raise DataError(
            f"{name} holds images of {block.dtype} between {block.min():g} and {block.max():g}: "
            f"save them as uint8, 0 to 255"
        )
    return whole.astype(np.uint8)


def _as_table(name: str, array: np.ndarray, memory: float) -> tuple[Tensor, bool]:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"{name} holds an array of shape {array.shape}: a table is (rows, features)")
    if (
        isinstance(array, np.memmap)
        and array.dtype.isnative
        and array.dtype.name in _TORCH_DTYPES
        and not storage.fits(array.size * 4, memory)
    ):
        for block in _blocks(array):
            _finite(name, block)
        return storage.mapped_tensor(array), True
    return _stored(array, (_finite(name, block) for block in _blocks(array)), np.float32, memory)


def _stored(array: np.ndarray, blocks: Iterable[np.ndarray], dtype: type, memory: float) -> tuple[Tensor, bool]:
    """Converted blocks of an array; those of an array that is in memory anyway stay there."""
    if not isinstance(array, np.memmap):
        return storage.store(blocks, len(array), array.shape[1:], dtype, key=(), memory=math.inf)
    key = (storage.stamp([Path(str(array.filename))]), array.shape)
    return storage.store(blocks, len(array), array.shape[1:], dtype, key=key, memory=memory)


def _finite(name: str, block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        block = block.astype(np.float32)
    bad = ~np.isfinite(block)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"{name} holds {bad.sum()} values that are not finite numbers, the first in column {column} (counted from "
            f"0): {block[row, column]}; replace them or leave those rows out"
        )
    return block


def _at_most_one(x: Tensor) -> bool:
    step = max(1, _BLOCK_BYTES // max(1, x[:1].numel()))
    return all(int(x[i : i + step].max()) <= 1 for i in range(0, len(x), step))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    return (array[i : i + step] for i in range(0, len(array), step))


def read_numpy(
    root: Path,
    files: Sequence[Path],
    *,
    key: str | None = None,
    label: str | None = None,
    image_shape: tuple[int, ...] | None = None,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """`.npy` (one array) and `.npz` (arrays by name; those called like parts, as `x_test`, are official parts)."""
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    factors: dict[str, np.ndarray] = {}
    for part, of_part in by_part(files).items():
        path = one_file(root.name, of_part, "array files")
        if path.suffix.lower() == ".npz":
            arrays = npz(path, memory)
            parts = choose(path.name, arrays, key, label)
            alone = list(parts) == ["train"]
            found.update({part: parts["train"]} if alone else parts)
            of_name = {k: a for k, a in arrays.items() if _of_names({k: a}, _FACTOR_KEYS)}
            factors.update({part if alone else part_of(k) or "train": a for k, a in of_name.items()})
        else:
            if label is not None or key is not None:
                raise DataError(
                    f"{path.name} is one array, without names such as {label or key!r}: save an .npz for labels"
                )
            found[part] = _npy(path), None
    data = from_arrays(root.name, found, image_shape=image_shape, memory=memory)
    return _with_factors(data, factors) if factors else data


def _with_factors(data: Dataset, factors: Mapping[str, np.ndarray]) -> Dataset:
    """The data with factors by part, each numbered in the order of its values.

    Raises:
        DataError: a part lacks factors, or they are no table of one row for each observation.
    """
    parts = {"train" if "train" in factors else next(iter(factors)): data, **data.official}
    for part, of_part in parts.items():
        shape = factors[part].shape if part in factors else None
        if shape is None or len(shape) != 2 or shape[0] != len(of_part):
            has = "none" if shape is None else f"an array of shape {shape}"
            raise DataError(
                f"{data.name} has {has} of factors for the {len(of_part)} rows of its {part} part: give (rows, factors)"
            )
    columns = np.concatenate([factors[part] for part in parts]).T
    numbers = np.stack([np.unique(column, return_inverse=True)[1] for column in columns], 1)
    split = dict(zip(parts, torch.from_numpy(numbers).long().split([len(of) for of in parts.values()]), strict=True))
    names = tuple(f"factor {i}" for i in range(len(columns)))
    official = {p: replace(of, factors=split[p], factor_names=names) for p, of in data.official.items()}
    return replace(data, factors=next(iter(split.values())), factor_names=names, official=official)


def _npy(path: Path) -> np.ndarray:
    with reading(path.name, "a NumPy array"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def npz(path: Path, memory: float = storage.DEFAULT_MEMORY) -> dict[str, np.ndarray]:
    """The arrays of an archive; one that does not fit in memory is unpacked to the cache once and mapped."""
    with reading(path.name, "an archive of NumPy arrays"), zipfile.ZipFile(path) as archive:
        arrays = {}
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            if storage.fits(member.file_size, memory):
                with archive.open(member) as file:
                    array = np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
            else:
                array = np.load(_unpacked(archive, member, path), mmap_mode="r", allow_pickle=False)
            arrays[member.filename.removesuffix(".npy")] = array
        return arrays


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Path:
    target = storage.cached("npz", storage.stamp([path]), member.filename)
    if not target.exists():
        with storage.TemporaryBeside(target) as temporary:
            with archive.open(member) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)
            temporary.replace(target)
    return target


def choose(
    name: str, arrays: Mapping[str, np.ndarray], key: str | None, label: str | None
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Which of several named arrays are the observations and which the labels, by part."""
    for wanted in (key, label):
        if wanted is not None and wanted not in arrays:
            raise DataError(f"{name} holds no array {wanted!r}: it holds {', '.join(sorted(arrays)) or 'none'}")
    if key is None and not arrays:
        raise DataError(f"{name} holds no array: save one with numpy.savez(…, x=…)")
    if key is not None:
        labels = _of_names(arrays, _LABEL_KEYS) if label is None else label
        return {"train": (arrays[key], arrays[labels] if labels else None)}
    by_name = {part: {k: a for k, a in arrays.items() if part_of(k) == part} for part in PARTS}
    if not by_name["train"]:
        by_name = {"train": dict(arrays)}
    parts = {}
    for part, some in by_name.items():
        if not some:
            continue
        of_label = label if part == "train" and label is not None else _of_names(some, _LABEL_KEYS)
        rest = {k: a for k, a in some.items() if k != of_label}
        chosen = next(iter(rest)) if len(rest) == 1 else _of_names(rest, _DATA_KEYS)
        if chosen is None:
            raise DataError(
                f"{name} holds several arrays, {', '.join(arrays)}: say which is the data with key='…' (--key)"
            )
        parts[part] = (some[chosen], some[of_label] if of_label else None)
    return parts


def _of_names(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> str | None:
    """The first array whose name, without the word for its part, is one of `names`."""
    for name in names:
        for key in arrays:
            words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if part_of(word) is None]
            if "_".join(words) == name or key.lower() == name:
                return key
    return None
