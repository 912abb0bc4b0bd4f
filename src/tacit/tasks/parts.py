"""Which rows a run is measured on, and which other rows of its data those are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import DataError, SpaceError
from tacit.spaces import Tokens
from tacit.tasks.embed import check_space
from tacit.tasks.run import Run
from tacit.training.plan import generator_of

Split = Literal["test", "valid", "train", "all"]


@dataclass(frozen=True)
class Parts:
    """The rows to measure on and what belongs to them.

    Attributes:
        rows: what is measured.
        split: which part of its data they are.
        ruler: the data that the extractor learns from: the run's own, where it can be had.
        train, held_out, fresh: of the run's own data the training part, and two parts that were not learned from, the
            rows measured before the others; None where the data was given from Python and is not given again.
    """

    rows: Dataset
    split: Split
    ruler: Dataset
    train: Dataset | None = None
    held_out: Dataset | None = None
    fresh: Dataset | None = None

    @property
    def other(self) -> Dataset | None:
        """Other rows of the same source for the floor; None where `rows` must be halved for it."""
        return self.fresh if self.rows is self.held_out else None

    @property
    def learned(self) -> bool:
        """Whether the model has learned from these rows, or from some of them, as far as is known."""
        return self.train is not None and (self.rows is self.train or self.rows is self.ruler)


def parts_of(run: Run, on: Dataset | None, split: Split | None) -> Parts:
    """A part of the run's own data, by default its test part; or of `on`, by default its own test part or all of it.

    Raises:
        SpaceError: the data is of another kind or shape than the model's, or text of other symbols.
        DataError: the data has no such part, or numbers that are not finite.
    """
    if on is not None:
        _check_space(run, on)
    own = _own(run, on)
    train, valid, test = (None, None, None) if own is None else own.parts()
    if own is not None and (on is None or on is own):
        split = split or "test"
        rows = cast(Dataset, {"train": train, "valid": valid, "test": test, "all": own}[split])
        held_out, fresh = (valid, test) if split == "valid" else (test, valid)
        found = Parts(rows, split, own, train, held_out, fresh)
    else:
        other = cast(Dataset, on)
        split = split or ("test" if "test" in other.official else "all")
        rows = other if split == "all" else other.parts()[("train", "valid", "test").index(split)]
        found = Parts(rows, split, own or other, train, test, valid)
    _check_space(run, rows)
    _check_finite(rows)
    return found


def some_rows(data: Dataset, most: int | None, purpose: str) -> Tensor:
    """Numbers of at most `most` rows (windows end to end, for a stream), in a random order of that purpose's own."""
    every = torch.cat(list(data.ordered(2**20)))
    return every[torch.randperm(len(every), generator=generator_of(0, purpose))[:most]]


def _own(run: Run, on: Dataset | None) -> Dataset | None:
    """The data that the run was fitted on: `on` itself, or read again; None where neither can be."""
    if on is not None and on.fingerprint() == run.record["data"]["fingerprint"]:
        return on
    try:
        return run.data()
    except DataError:
        if on is None:
            raise
        return None


def _check_space(run: Run, data: Dataset) -> None:
    check_space(run.model, data)
    if isinstance(data.space, Tokens) and run.vocabulary and data.vocabulary != run.vocabulary:
        raise SpaceError(
            f"{data.name} has other symbols than the text that the model was fitted on: give text of the same symbols"
        )


def _check_finite(data: Dataset) -> None:
    if data.space.levels is not None:
        return
    wrong = sum(int((~data[i].flatten(1).isfinite().all(1)).sum()) for i in data.ordered(2**16))
    if wrong:
        raise DataError(
            f"{wrong} of the {len(data)} rows of {data.name} hold numbers that are not finite: leave them out, or mend "
            "them"
        )
