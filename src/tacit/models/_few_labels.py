"""Learning from a few labels among many rows: what such models ask of the data, and how they draw it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import DataError


def check_labels(data: Dataset, classes: int, model: str) -> None:
    """Raise DataError unless every class has a labelled row; `model` is the name that the message gives."""
    known = torch.empty(0, dtype=torch.long) if data.label is None else data.label[data.label >= 0]
    if not len(known):
        raise DataError(f"{data.name} has no labels, and {model} needs some: label a few rows of each class")
    missing = (torch.bincount(known.cpu(), minlength=classes) == 0).nonzero().flatten().tolist()
    if missing:
        names = [data.class_names[c] if data.class_names else str(c) for c in missing]
        raise DataError(
            f"{data.name} has no labelled row of class {', '.join(names)}: label at least one of each class"
        )


def labelled_and_unlabelled(
    data: Dataset, size: int, labelled: int, generator: torch.Generator, model: str
) -> Iterator[Tensor]:
    """One epoch's batches as row numbers: `labelled` labelled rows (at most half a batch), then unlabelled ones.

    The unlabelled rows make the epoch. Labelled rows are dealt round and round, each as often as any other; where every
    row is labelled, the unlabelled part of a batch is drawn from all of them.

    Args:
        data: with labels, −1 where unlabelled.
        size: rows of a batch.
        labelled: labelled rows of each.
        generator: of all random choices.
        model: the name that the message gives.

    Raises:
        DataError: the data has no labels.
    """
    if data.label is None:
        raise DataError(f"{data.name} has no labels, and {model} needs some: label a few rows of each class")
    known = (data.label >= 0).cpu()
    with_label = known.nonzero().flatten()
    rest = (~known).nonzero().flatten() if not known.all() else with_label
    share = min(labelled, max(1, size // 2))
    dealt = with_label[:0]
    for unlabelled in rest[torch.randperm(len(rest), generator=generator)].split(max(1, size - share)):
        while len(dealt) < share:
            dealt = torch.cat([dealt, with_label[torch.randperm(len(with_label), generator=generator)]])
        yield torch.cat([dealt[:share], unlabelled])
        dealt = dealt[share:]
