"""A data set in memory: one tensor in its smallest dtype, batched by indexing.

What does not fit in memory is the same object over a memory-mapped file: `x` then lies on disk (`mapped`), indexing
reads only the rows asked for, and parts of it are row numbers (`storage.Rows`) and not copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tacit.data.storage import Rows
from tacit.errors import DataError
from tacit.model import Batch
from tacit.spaces import Space, Tokens, Vectors

# Parts that the data does not bring are cut by a permutation of this seed, whatever the run's seed: two runs, and a
# later `evaluate`, see the same held-out rows.
_SPLIT_SEED = 20260101

# A fingerprint reads this much of the data at most, in stretches of this length.
_FINGERPRINT_BYTES = 2**26
_STRETCH_BYTES = 2**16


@dataclass(frozen=True, repr=False)
class Dataset:
    """Observations of one space, with labels where they exist.

    Attributes:
        space: what one observation is.
        x: (rows, *space.shape) in its smallest dtype; for `Tokens` the whole stream, (characters,), of which row i is
            the window that starts at i.
        label: (rows,) int64, −1 where unlabelled; None where there are no labels at all.
        target: (rows, …), what belongs to each row and is no observation, as the actions of a clip; None without.
        name: what the user called it.
        class_names: names of the labels 0, 1, …
        factors: (rows, factors) int64, the values of what the observations were generated from, each from 0; None where
            that is not known.
        factor_names: what each of them is.
        vocabulary: the symbols of a `Tokens` stream, by number.
        columns: names of a table's features, where it names them.
        files: of each row the file it was read from, where each has its own.
        official: parts that the data itself brings ("test", "valid"); `x` is then its training part.
        source: the arguments of the `load` that read it, so that a run can read it again; None for data made in Python.
        skipped: names of the files that could not be read and were left out.
        mapped: whether `x` lies on disk; what is computed from all of `x` then reads all of it: take `observations`.
    """

    space: Space
    x: Tensor
    label: Tensor | None = None
    name: str = "data"
    class_names: tuple[str, ...] = ()
    factors: Tensor | None = None
    factor_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    official: dict[str, Dataset] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    skipped: tuple[str, ...] = ()
    mapped: bool = False
    target: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise DataError(f"{self.name} holds no observations: give a file or folder that has some")
        if self.factors is not None and self.factors.shape != (len(self), len(self.factor_names)):
            raise DataError(
                f"{self.name} has factors of shape {tuple(self.factors.shape)} and {len(self.factor_names)} names of "
                f"factors for {len(self)} rows: give a row for each, and a name for each column"
            )

    def __repr__(self) -> str:
        of = f", {self.classes} classes" if self.classes else ""
        return f"Dataset({self.name!r}, {len(self)} rows of {self.space}{of})"

    def __len__(self) -> int:
        """Rows; for a stream, the number of windows."""
        if isinstance(self.space, Tokens):
            return len(self.x) - self.space.length + 1
        return len(self.x)

    @property
    def classes(self) -> int:
        """How many classes the labels name; 0 where there are none."""
        if self.class_names:
            return len(self.class_names)
        return 0 if self.label is None else int(self.label.max()) + 1

    def __getitem__(self, index: Tensor) -> Tensor:
        """Observations at `index` (batch,), on the index's device where the data is there, else copied to it."""
        if isinstance(self.space, Tokens):
            index = index.unsqueeze(-1) + torch.arange(self.space.length, device=index.device)
        rows = self.x[index.to(self.x.device)].to(index.device, non_blocking=True)
        return rows.to(self.space.torch_dtype)

    def batch(self, index: Tensor) -> Batch:
        """The batch of the rows `index` (batch,)."""
        label = None if self.label is None else self.label[index.to(self.label.device)].to(index.device)
        target = None if self.target is None else self.target[index.to(self.target.device)].to(index.device)
        return Batch(self[index], index, label, target)

    def take(self, index: Tensor | slice) -> Dataset:
        """The data set of these rows alone. For a stream, `index` must be a slice of characters."""
        beside = (self.label, self.target, self.factors)
        label, target, factors = (None if part is None else part[index] for part in beside)
        x = Rows.of(self.x, index) if self.mapped and isinstance(index, Tensor) else self.x[index]
        files = self.files
        if files:
            files = files[index] if isinstance(index, slice) else tuple(files[i] for i in index.tolist())
        return replace(self, x=x, label=label, target=target, factors=factors, files=files, official={})

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device; what lies on disk stays there, and only its batches move."""
        label, target = (None if part is None else part.to(device) for part in (self.label, self.target))
        return replace(self, x=self.x if self.mapped else self.x.to(device), label=label, target=target)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """One epoch of row numbers in random order, `size` at a time; what is left over waits for the next epoch.

        A stream's epoch is as many windows as cover it once, at random starts. Fewer rows than `size` make one batch.
        """
        if isinstance(self.space, Tokens):
            windows = max(1, len(self.x) // self.space.length)
            order = torch.randint(len(self), (windows,), generator=generator)
        else:
            order = torch.randperm(len(self), generator=generator)
        if len(order) < size:
            return iter((order,))
        return iter(order[: len(order) // size * size].split(size))

    def ordered(self, size: int) -> Iterator[Tensor]:
        """All rows once, in order, the last batch smaller; a stream's rows are its windows end to end."""
        step = self.space.length if isinstance(self.space, Tokens) else 1
        return iter(torch.arange(0, len(self), step).split(size))

    def observations(self, most: int | None = None) -> Tensor:
        """`most` observations (all of them by default) as one tensor, in order; a stream as windows end to end.

        They are evenly spaced: files are often sorted by class, and the first rows would then be of one class.
        """
        step = self.space.length if isinstance(self.space, Tokens) else 1
        index = torch.arange(0, len(self), step)
        if most is not None and most < len(index):
            index = index[torch.arange(most) * len(index) // most]
        return self[index]

    def parts(self, held_out: float = 0.1) -> tuple[Dataset, Dataset, Dataset]:
        """(train, valid, test): the official parts where the data brings them, the rest cut from it.

        Each missing part takes the fraction `held_out` of the rows, by a fixed permutation (labels keep their shares,
        as nearly as chance has it); a stream is cut in order, so that test text follows training text.

        Raises:
            DataError: there are too few rows to hold any out.
        """
        missing = [part for part in ("valid", "test") if part not in self.official]
        rows = len(self.x)
        count = round(rows * held_out)
        smallest = self.space.length if isinstance(self.space, Tokens) else 1
        if missing and count < smallest:
            raise DataError(
                f"{self.name} has too few rows ({rows}) to hold out {held_out:.0%} for each of {' and '.join(missing)}"
                f": bring at least {max(10, round(smallest / held_out))}"
            )
        kept = rows - count * len(missing)
        stream = isinstance(self.space, Tokens)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(_SPLIT_SEED)) if not stream else None

        def cut(start: int, stop: int) -> Dataset:
            return self.take(slice(start, stop) if order is None else order[start:stop].sort().values)

        parts = dict(self.official)
        for i, part in enumerate(missing):
            parts[part] = cut(kept + i * count, kept + (i + 1) * count)
        train = cut(0, kept) if missing else replace(self, official={})
        return train, parts["valid"], parts["test"]

    def fingerprint(self) -> str:
        """SHA-256 of the space, shape and contents: of all rows up to 64 MiB, of evenly spaced stretches beyond.

        It is the same whether the data lies in memory or on disk.
        """
        table = isinstance(self.space, Vectors)  # in memory float32, on disk whatever the file holds
        rows, row_bytes = len(self.x), max(1, self.x[:1].numel() * (4 if table else self.x.element_size()))
        stretch = rows if rows * row_bytes <= _FINGERPRINT_BYTES else max(1, _STRETCH_BYTES // row_bytes)
        count = max(1, min(rows, _FINGERPRINT_BYTES // row_bytes) // stretch)
        digest = hashlib.sha256(f"{self.space}{tuple(self.x.shape)}".encode())
        for i in range(count):
            start = i * (rows - stretch) // max(1, count - 1)
            part = self.x[start : start + stretch]
            digest.update((part.float() if table else part).cpu().contiguous().numpy().tobytes())
        if self.target is not None:
            digest.update(self.target.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
