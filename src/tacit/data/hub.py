"""Data sets of Hugging Face's `datasets`, from the hub (`hub:NAME` or `hub:NAME:CONFIGURATION`) or saved in a folder.

Which column is the data is told by the features: an image; else the one column of text; else all columns of numbers.
A `ClassLabel` is the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from tacit.data import storage
from tacit.data.dataset import Dataset
from tacit.data.images import from_pictures
from tacit.data.reading import PARTS, part_of, reading
from tacit.data.tables import Columns, Table, from_arrow, from_tables
from tacit.data.text import from_texts
from tacit.errors import DataError

# The files by which a folder is known to be one that `datasets` saved.
MARKERS = ("dataset_dict.json", "dataset_info.json")
_ROWS = 20_000


def read_hub(
    source: str | Path,
    *,
    key: str | None = None,
    label: str | None = None,
    drop_missing: bool = False,
    size: int | tuple[int, int] | None = None,
    crop: bool = True,
    grey: bool = False,
    words: bool = False,
    length: int | None = None,
    memory: float = storage.DEFAULT_MEMORY,
) -> Dataset:
    """A folder that `datasets` saved, or a data set of the hub by name.

    Args:
        key: the column that is the data.
        label: the column that is the label.
        drop_missing: for tables: leave out rows that lack a value.
        size: for images: height and width.
        crop: for images: cut to the centre before resizing.
        grey: for images: one channel.
        words: for text: words instead of characters.
        length: for text: of a window.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source} needs Hugging Face's datasets to be read: pip install 'tacit[hub]'") from error
    with reading(str(source), "a data set of Hugging Face's"):
        if isinstance(source, Path):
            found = datasets.load_from_disk(str(source))
        else:
            name, _, configuration = source.partition(":")
            found = datasets.load_dataset(name, configuration or None)
    splits = found if isinstance(found, Mapping) else {"train": found}
    parts = {part: split for part in PARTS for name, split in splits.items() if part_of(name) == part}
    name = str(source).partition(":")[0].rstrip("/").rpartition("/")[2]
    if not parts:
        raise DataError(f"{name} has no split called train, valid or test: it has {', '.join(splits)}")
    hub = Hub(name, parts, key, label, memory)
    kind, column = hub.choose()
    if kind == "pictures":
        return hub.pictures(column, size=size, crop=crop, grey=grey)
    if kind == "text":
        return hub.text(column, words=words, length=length)
    return hub.table(drop_missing)


class Hub:
    """The splits of one data set, by part, and which of their columns is what."""

    def __init__(self, name: str, parts: dict[str, Any], key: str | None, label: str | None, memory: float):
        self.name = name
        self.parts = parts
        self.memory = memory
        self.features = next(iter(parts.values())).features
        for wanted in (key, label):
            if wanted is not None and wanted not in self.features:
                raise DataError(f"{name} has no column {wanted!r}: it has {', '.join(self.features)}")
        of_classes = [column for column in self.features if self.kind(column) == "ClassLabel"]
        self.label = of_classes[0] if label is None and len(of_classes) == 1 else label
        self.columns = [key] if key else [column for column in self.features if column != self.label]

    def kind(self, column: str) -> str:
        """`Image`, `ClassLabel`, …, or the dtype of plain values."""
        feature = self.features[column]
        return getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else type(feature).__name__

    def choose(self) -> tuple[str, str]:
        """Whether the data is pictures, text or a table, and the column that holds the first or the second."""
        pictures = [column for column in self.columns if self.kind(column) == "Image"]
        texts = [column for column in self.columns if "string" in self.kind(column)]
        if len(pictures) == 1:
            return "pictures", pictures[0]
        if len(texts) == 1 and len(self.columns) == 1:
            return "text", texts[0]
        if pictures or len(texts) == len(self.columns):
            raise DataError(
                f"{self.name} has columns {', '.join(self.columns)}: say which is the data with key='…' (--key)"
            )
        return "table", ""

    def table(self, drop_missing: bool) -> Dataset:
        """All columns of numbers."""
        tables: dict[str, Table] = {
            part: _Rows(self.name, split, self.columns, self.label) for part, split in self.parts.items()
        }
        return from_tables(self.name, tables, label=self.label, drop_missing=drop_missing, memory=self.memory)

    def pictures(self, column: str, **options: Any) -> Dataset:
        """A column of pictures, opened one by one."""
        where = {f"{part}/{i}": (part, i) for part, split in self.parts.items() for i in range(len(split))}
        alone = {part: split.select_columns([column]) for part, split in self.parts.items()}

        def opener(name: str) -> Image.Image:
            part, i = where[name]
            return alone[part][i][column]

        classes: dict[str, Any] = dict.fromkeys(where)
        if self.label is not None:
            labels = {part: list(split[self.label]) for part, split in self.parts.items()}
            classes = {name: labels[part][i] for name, (part, i) in where.items()}
        by_part = {part: [name for name, (p, _) in where.items() if p == part] for part in self.parts}
        names = getattr(self.features.get(self.label), "names", ())
        key = [fingerprint(split) for split in self.parts.values()]
        options |= {"class_names": names, "key": key, "memory": self.memory}
        return from_pictures(self.name, by_part, opener, classes, **options)

    def text(self, column: str, **options: Any) -> Dataset:
        """The column's rows as the lines of a text, which is kept in the cache as a file."""
        files = {}
        for part, split in self.parts.items():
            path = storage.cached("text", fingerprint(split), column).with_suffix(".txt")
            if not path.exists():
                with storage.TemporaryBeside(path) as temporary:
                    with temporary.open("w", encoding="utf-8") as file:
                        for row in split.select_columns([column]):
                            file.write((row[column] or "").rstrip("\n") + "\n")
                    temporary.replace(path)
            files[part] = [path]
        return from_texts(self.name, files, memory=self.memory, **options)


class _Rows:
    """Columns of numbers, and the label, as `tables.Table` wants them."""

    def __init__(self, name: str, split: Any, columns: list[str], label: str | None):
        self.name = name
        self.names = [*columns, *([label] if label else [])]
        self.split = split.select_columns(self.names).with_format("arrow")

    def key(self) -> object:
        return fingerprint(self.split)

    def most_rows(self) -> int:
        return len(self.split)

    def blocks(self, columns: Columns) -> Any:
        for batch in self.split.iter(_ROWS):
            yield from_arrow(batch.select(self.names), columns)


def fingerprint(split: Any) -> str:
    """What `datasets` says tells a split from others."""
    return split._fingerprint
