"""What the readers of all formats share: naming what went wrong, parts and classes from names, joining parts."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.data.dataset import Dataset
from tacit.errors import DataError, TacitError
from tacit.spaces import Space, Tokens

PARTS = ("train", "valid", "test")
UNLABELLED = ("unlabelled", "unlabeled")

_PART_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}


def tell(text: str) -> None:
    """Say one line to the user, where it does not get between the numbers of `--json`."""
    print(text, file=sys.stderr)


@contextmanager
def reading(what: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into one sentence: decoders raise anything at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TacitError:
        raise
    except MemoryError as error:
        raise DataError(f"{what} asks for more memory than there is: it is damaged, or too large for {kind}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{what} cannot be opened: {error.strerror}; check its name and permissions") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{what} cannot be read as {kind} ({reason[:200]}): it is damaged or of another kind, get or save it anew"
        ) from error


def part_of(name: str) -> str | None:
    """The part that a file's or an array's name speaks of: `wiki.valid.tokens` -> "valid"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = {_PART_WORDS[word] for word in words if word in _PART_WORDS}
    return found.pop() if len(found) == 1 else None


def by_part(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the part that their names speak of; all of them are "train" where one speaks of none."""
    parts = [part_of(path.stem if path.suffix != ".gz" else path.name) for path in files]
    if None in parts:
        return {"train": list(files)}
    of_part = {part: [path for path, found in zip(files, parts, strict=True) if found == part] for part in PARTS}
    return {part: found for part, found in of_part.items() if found}


def one_file(name: str, files: Sequence[Path], kind: str) -> Path:
    """The only one of `files`.

    Raises:
        DataError: there are several.
    """
    if len(files) > 1:
        shown = ", ".join(path.name for path in files[:4]) + (", …" if len(files) > 4 else "")
        raise DataError(
            f"{name} holds {len(files)} {kind} of which none is said to be the data ({shown}): "
            f"name one of them, or call them train, valid and test"
        )
    return files[0]


def by_relative_name(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their paths below the data's root, of which a folder that holds but one folder is only a wrapping."""
    if list(files) == [root]:
        return {root.name: root}
    while len({path.relative_to(root).parts[0] for path in files}) == 1 and root not in (path.parent for path in files):
        root = root / files[0].relative_to(root).parts[0]
    return {path.relative_to(root).as_posix(): path for path in files}


def class_of(path: str) -> str | None:
    """The class of a file by the first folder in its path below the data's root; None where it has none."""
    folder, found, _ = path.partition("/")
    return folder if found and folder.lower() not in UNLABELLED else None


def numbered(
    values: Mapping[str, np.ndarray | None], what: str, class_names: Sequence[str] = ()
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Class numbers of each part's labels, and the classes' names; −1, NaN and empty text are unlabelled.

    Args:
        values: numbers or text, by part; None for a part without labels.
        what: where they are from, for the error message.
        class_names: the names, where the data says them; `values` are then numbers below their count.

    Raises:
        DataError: the labels are real numbers, or there are more than the names.
    """
    given = {part: np.asarray(value).reshape(-1) for part, value in values.items() if value is not None}
    if not given:
        return dict.fromkeys(values), ()
    everything = _plain(np.concatenate(list(given.values())), what)
    missing = "" if everything.dtype.kind == "U" else -1
    classes = np.unique(everything[everything != missing])
    names = tuple(map(str, classes))
    if class_names:
        if len(classes) and not (classes[0] >= 0 and classes[-1] < len(class_names)):
            raise DataError(f"{what} has labels up to {classes[-1]} but names for {len(class_names)} classes only")
        classes, names = np.arange(len(class_names)), tuple(class_names)
    number = np.where(everything == missing, -1, np.searchsorted(classes, everything)).astype(np.int64)
    ends = np.cumsum([len(value) for value in given.values()])
    labels: dict[str, Tensor | None] = dict.fromkeys(values)
    labels.update(zip(given, torch.from_numpy(number).tensor_split(ends[:-1].tolist()), strict=True))
    return labels, names


def _plain(values: np.ndarray, what: str) -> np.ndarray:
    """Labels as int64 or as text."""
    if values.dtype.kind in "SO":
        values = values.astype(str)
    if values.dtype.kind == "U":
        values = np.char.strip(values)
        try:
            numbers = np.where(values == "", "nan", values).astype(np.float64)
        except ValueError:
            return values
        values = numbers if (values != "").any() else np.full(len(values), -1.0)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1.0, values)
        odd = values[values != np.round(values)]
        if len(odd):
            raise DataError(
                f"{what} is no class: it holds {odd[0]:g}, and a label is a whole number or a word; "
                f"name another column, or leave it out"
            )
    if values.dtype.kind not in "fiub":
        raise DataError(f"{what} holds {values.dtype} values: a label is a whole number or a word")
    return values.astype(np.int64)


def put_together(
    name: str,
    space: Space,
    x: Mapping[str, Tensor],
    label: Mapping[str, Tensor | None] | None = None,
    files: Mapping[str, tuple[str, ...]] | None = None,
    **fields: Any,
) -> Dataset:
    """One `Dataset` of several parts: the training part (or the first there is), the others official.

    Raises:
        DataError: the parts' observations differ in shape.
    """
    parts = [part for part in PARTS if part in x]
    for part in parts:
        shape = tuple(x[part].shape[1:])
        if not isinstance(space, Tokens) and shape != space.shape:
            raise DataError(f"{name}: the {part} part has observations of shape {shape}, the others of {space.shape}")
    whole = {
        part: Dataset(
            space,
            x[part],
            None if label is None else label[part],
            name,
            files=() if files is None else files[part],
            **fields,
        )
        for part in reversed(parts)
    }
    main = whole.pop(parts[0])
    main.official.update({part: whole[part] for part in parts[1:]})
    return main


def tell_skipped(name: str, count: int, skipped: Mapping[str, str]) -> tuple[str, ...]:
    """Name the files that could not be read.

    Raises:
        DataError: none of the `count` files could be.
    """
    if skipped and len(skipped) == count:
        first, reason = next(iter(skipped.items()))
        raise DataError(
            f"{name}: none of the {count} files could be read ({first}: {reason}): bring some that can be opened"
        )
    if skipped:
        names = sorted(skipped)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        shown = ", ".join(names[:10]) + more
        tell(f"{len(names)} of {count} files of {name} could not be read and were left out: {shown}")
    return tuple(sorted(skipped))
