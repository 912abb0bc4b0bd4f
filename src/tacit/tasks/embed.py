"""Turn data into features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from tacit.capabilities import require
from tacit.data import Dataset, load
from tacit.errors import SpaceError
from tacit.metrics.probes import embed_all
from tacit.model import Model
from tacit.tasks.run import Run


def embed(run: Path, data: str | Dataset, *, out: Path | None = None) -> Path:
    """Write the features of every row of `data` as one .npy array, (rows, features).

    Args:
        run: the run folder.
        data: a path, a name or a `Dataset`, of the kind the model was fitted on.
        out: the file to write; RUN/embeddings-DATA.npy by default.

    Returns:
        The file.

    Raises:
        CapabilityError: the model has no features.
        SpaceError: the data is of another kind or shape than the model's.
    """
    found = Run(run)
    require(found.model, "embed", "embed")
    dataset = load(data) if isinstance(data, str) else data
    path = out or found.path / f"embeddings-{dataset.name.replace('/', '-')}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features(found.model, dataset).numpy())
    return path


def features(model: Model, data: Dataset) -> Tensor:
    """Features of all observations of `data`, in order, (rows, features), in eval mode.

    Raises:
        CapabilityError: the model has no features.
        SpaceError: the data is of another kind or shape than the model's.
    """
    require(model, "embed", "embed")
    if data.space != model.space:
        raise SpaceError(
            f"{data.name} is {data.space}, but the model was fitted on {model.space}: give data of that form"
        )
    return embed_all(model, data)  # type: ignore[arg-type]
