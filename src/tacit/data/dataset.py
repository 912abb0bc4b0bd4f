"""A data set in memory: one tensor in its smallest dtype, batched by indexing.

What does not fit in memory is the same object over a memory-mapped file: `x` is then backed by the disk and indexing
reads only the rows asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tacit.errors import DataError
from tacit.model import Batch
from tacit.spaces import Space, Tokens

# Parts that the data does not bring are cut by a permutation of this seed, whatever the run's seed: two runs, and a
# later `evaluate`, see the same held-out rows.
_SPLIT_SEED = 20260101


@dataclass(frozen=True)
class Dataset:
    """Observations of one space, with labels where they exist.

    Attributes:
        space: what one observation is.
        x: (rows, *space.shape) in its smallest dtype; for `Tokens` the whole stream, (characters,), of which row i is
            the window that starts at i.
        label: (rows,) int64, −1 where unlabelled; None where there are no labels at all.
        name: what the user called it.
        class_names: names of the labels 0, 1, …
        vocabulary: the symbols of a `Tokens` stream, by number.
        official: parts that the data itself brings ("test", "valid"); `x` is then its training part.
        source: the arguments of the `load` that read it, so that a run can read it again; None for data made in Python.
    """

    space: Space
    x: Tensor
    label: Tensor | None = None
    name: str = "data"
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    official: dict[str, Dataset] = field(default_factory=dict, repr=False)
    source: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise DataError(f"{self.name} holds no observations: give a file or folder that has some")

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
        return rows.long() if isinstance(self.space, Tokens) else rows

    def batch(self, index: Tensor) -> Batch:
        """The batch of the rows `index` (batch,)."""
        label = None if self.label is None else self.label[index.to(self.label.device)].to(index.device)
        return Batch(self[index], index, label)

    def take(self, index: Tensor | slice) -> Dataset:
        """The data set of these rows alone. For a stream, `index` must be a slice of characters."""
        label = None if self.label is None else self.label[index]
        return replace(self, x=self.x[index], label=label, official={})

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        label = None if self.label is None else self.label.to(device)
        return replace(self, x=self.x.to(device), label=label)

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
        """The first `most` observations (all of them by default) as one tensor; a stream as windows end to end."""
        step = self.space.length if isinstance(self.space, Tokens) else 1
        index = torch.arange(0, len(self), step)
        return self[index[:most]]

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
                f"{self.name} has {rows} rows, too few to hold out {held_out:.0%} for each of {' and '.join(missing)}: "
                f"bring at least {max(10, round(smallest / held_out))}"
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
        """SHA-256 of the space, shape and contents: of all rows up to 64 MiB, of evenly spaced ones beyond."""
        rows = self.x.reshape(len(self.x), -1)
        stride = max(1, rows.numel() * rows.element_size() // 2**26)
        digest = hashlib.sha256(f"{self.space}{tuple(self.x.shape)}{self.x.dtype}".encode())
        digest.update(rows[::stride].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
