"""`load`: from a path or a name to a `Dataset`, whatever the format."""

from __future__ import annotations

import inspect
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tacit.data import (
    arrays,
    audio,
    builtin,
    cifar,
    drawings,
    hub,
    idx,
    images,
    mat,
    named,
    register,
    storage,
    tables,
    text,
)
from tacit.data.dataset import Dataset
from tacit.errors import DataError

# kind -> (what a message calls it, the reader)
_READERS: dict[str, tuple[str, Callable[..., Dataset]]] = {
    "images": ("images", images.read_images),
    "numpy": ("NumPy arrays", arrays.read_numpy),
    "mat": ("MATLAB arrays", mat.read_mat),
    "idx": ("IDX arrays", idx.read_idx),
    "cifar": ("CIFAR batches", cifar.read_cifar),
    "tables": ("a table", tables.read_tables),
    "audio": ("recordings", audio.read_audio),
    "strokes": ("drawings", drawings.read_drawings),
    "text": ("text", text.read_text),
}
_SUFFIXES = {
    ".npy": "numpy",
    ".npz": "numpy",
    ".mat": "mat",
    ".csv": "tables",
    ".tsv": "tables",
    ".parquet": "tables",
    ".pq": "tables",
    ".wav": "audio",
    ".ndjson": "strokes",
    ".bin": "cifar",
    ".txt": "text",
    ".tokens": "text",
    **dict.fromkeys(images.SUFFIXES, "images"),
}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_READ = "folders of images or .wav, .npy, .npz, .mat, .csv, .tsv, .parquet, .txt, .ndjson, IDX and CIFAR files"

Found = tuple[str, Callable[..., Dataset]]


def load(
    path: str | os.PathLike[str],
    *,
    data_home: Path | None = None,
    label: str | None = None,
    key: str | None = None,
    drop_missing: bool = False,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    grey: bool = False,
    image_shape: tuple[int, ...] | None = None,
    words: bool = False,
    length: int | None = None,
    rows: int | None = None,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """Read a data set.

    A name (`tacit data` lists them) goes before a file or folder of the same name: write `./digits` for a folder.
    `hub:NAME` is a data set of Hugging Face's hub, and `A+B` is two texts as one.

    Args:
        path: a file, a folder, or a name.
        data_home: the folder in which named data sets are looked for; TACIT_DATA by default.
        label: the column of a table, or the array of an .npz or .mat, that is the label.
        key: the array of an .npz or .mat, or the column of a hub data set, that is the data.
        drop_missing: leave out rows of a table that lack a value, instead of refusing the table.
        size: height and width to which images are resized, or the side of a square.
        crop: cut images of another shape to their centre before resizing them, instead of stretching them.
        grey: make images grey.
        image_shape: height and width (or channels, height, width) of images that an array holds laid flat; of clips
            frames, channels, height, width.
        words: read a text as words instead of characters.
        length: of a window of text (64 characters or 16 words) or sound (the longest recording, at most a second); most
            points of a drawing (the longest one's).
        rows: how many rows of a toy of two columns to draw; 20,000 by default.
        memory: fraction of the available memory above which data stays on disk; 0 leaves there all that can be.

    Returns:
        The data set; its own train, valid and test parts come out of `parts()`, which cuts those it lacks.

    Raises:
        DataError: there is nothing of this name, it cannot be read, or an option does not apply to it.
    """
    given: dict[str, Any] = {
        "label": label,
        "key": key,
        "drop_missing": drop_missing,
        # A run's record is JSON, which gives tuples back as lists.
        "size": tuple(size) if isinstance(size, list) else size,
        "crop": crop,
        "grey": grey,
        "image_shape": None if image_shape is None else tuple(image_shape),
        "words": words,
        "length": length,
        "rows": rows,
        "memory": memory,
    }
    usual = {name: parameter.default for name, parameter in inspect.signature(load).parameters.items()}
    options = {name: value for name, value in given.items() if value != usual[name]}
    for name, number in (("length", length), ("rows", rows)):
        if number is not None and number < 1:
            raise DataError(f"{name}={number} leaves nothing: give a positive number")
    if memory < 0:
        raise DataError(f"memory={memory} is no fraction of the memory: give a number from 0 to 1")
    home = register.home(data_home)
    what, reader = _find(os.fspath(path), home)
    takes = inspect.signature(reader).parameters
    for name, value in options.items():
        if name not in takes and name != "memory":
            raise DataError(f"{name}={value!r} does not apply to {path}, which is {what}: leave it out")
    found = reader(**{name: value for name, value in options.items() if name in takes})
    name = os.fspath(path)
    source: dict[str, Any] = {"path": name, "data_home": None if home is None else str(home.resolve())}
    if _is_path(name, home):
        source = {"path": str(Path(path).resolve())}
    return replace(found, name=_short(name), source=source | options)


def _is_path(name: str, home: Path | None) -> bool:
    """Whether `_find` takes it for a file or folder, and not for a name."""
    known = name in builtin.READERS or (home is not None and _named(name, home / name) is not None)
    return Path(name).exists() and not known


def _short(path: str) -> str:
    """What a run's folder is called after: `adbench/6_cardio` -> `6_cardio`, `table.csv` -> `table`."""
    if Path(path).is_file():
        return Path(path.removesuffix(".gz")).stem
    return Path(path.removeprefix("hub:").partition(":")[0]).absolute().name


def _find(name: str, home: Path | None) -> Found:
    """What a path or a name is, in words, and the function of its options that reads it."""
    path = Path(name)
    if name.startswith("hub:"):
        return "a data set of the hub", partial(hub.read_hub, name.removeprefix("hub:"))
    if name in builtin.READERS:
        return "built in", builtin.READERS[name]
    if home is not None and (found := _named(name, home / name)):
        return found
    if _is_path(name, home):
        return _named(path.resolve().name, path) or _of_path(path)
    if name in register.REFUSED:
        raise DataError(f"{name} {register.REFUSED[name]}")
    if "+" in name:
        return "text", partial(text.from_texts, name, {"train": _texts(name, home)}, framed=True)
    if home is not None and (home / name).exists():
        return _of_path(home / name)
    raise DataError(_unknown(name, home))


def _named(name: str, path: Path) -> Found | None:
    """A named data set that lies at `path`, if it does."""
    if name.startswith("adbench/") and path.with_suffix(".npz").exists():
        return "a table", partial(named.adbench, path.with_suffix(".npz"))
    if name.startswith("sketchrnn/") and path.with_suffix(".npz").exists():
        return _of_path(path.with_suffix(".npz"))
    if not register.is_at(name, path):
        return None
    return (
        (register.describe(name).kind, partial(named.READERS[name], path)) if name in named.READERS else _of_path(path)
    )


def _of_path(path: Path) -> Found:
    """Any file or folder, by its suffixes and contents."""
    if path.is_file():
        kind = _kind(path)
        if path.suffix.lower() in _PICKLES:
            raise DataError(
                f"{path.name} is a pickle, which can run anything when read: save the array with numpy.save"
            )
        if kind is None:
            raise DataError(f"{path.name} is of a kind that cannot be read: tacit reads {_READ}")
        what, reader = _READERS[kind]
        return what, partial(reader, path, [path])
    if any((path / marker).exists() for marker in hub.MARKERS):
        return "a data set of Hugging Face's", partial(hub.read_hub, path)
    files = _files(path)
    kinds: dict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        kinds[_kind(file)].append(file)
    unknown = kinds.pop(None, [])
    if not kinds:
        such = f"{len(unknown)} files, such as {unknown[0].name}" if unknown else "nothing"
        raise DataError(f"{path} holds {such}, and no data: tacit reads {_READ}")
    # A picture folder's readme is not its data: text counts where there is nothing else.
    kind = max(kinds, key=lambda kind: (kind != "text", len(kinds[kind])))
    what, reader = _READERS[str(kind)]
    return what, partial(reader, path, kinds[kind])


def _files(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, in the order of their names."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        found += [Path(where, name) for name in files if name[0] != "."]
    return sorted(found)


def _kind(path: Path) -> str | None:
    """The kind of a file, by its name."""
    name = path.name.lower()
    if re.search(r"(idx\d[-.]ubyte|\.idx\d?)(\.gz)?$", name):
        return "idx"
    if re.fullmatch(r"data_batch_\d+|test_batch", name) or (
        name in ("train", "test") and (path.parent / "meta").exists()
    ):
        return "cifar"
    if name.endswith(".npz") and drawings.are_in(path):
        return "strokes"
    return _SUFFIXES.get(path.suffix.lower())


def _texts(name: str, home: Path | None) -> list[Path]:
    """The files of the texts joined by +; all of their parts, for a text so joined is a corpus to learn from."""
    files = []
    for one in name.split("+"):
        path = home / one if home is not None and (home / one).exists() else Path(one)
        of_one = [path] if path.is_file() else _files(path)
        of_one = [file for file in of_one if _kind(file) == "text"]
        if not of_one:
            raise DataError(f"{one}, in {name}, is no text that can be found: + joins text files, or folders of them")
        files += of_one
    return files


def _unknown(name: str, home: Path | None) -> str:
    entries = register.listing(home)
    known = next((entry for entry in entries if entry.name == name), None)
    if known is not None:
        where = f"it is not in {home}" if home is not None else "TACIT_DATA and data_home (--data-home) name no folder"
        return (
            f"{name} is looked for in the folder of data sets, and {where}: let one of them name a folder that holds it"
        )
    if re.search(r"[/\\]|\.\w+$", name):
        on_hub = f", or write hub:{name}" if re.fullmatch(r"[\w-]+/[\w.-]+", name) else ""
        return f"there is no file or folder {name}: check the path{on_hub}"
    present = [entry.name for entry in entries if entry.present]
    return f"no data set, file or folder is called {name!r}: {register.hint(name, present)}"
