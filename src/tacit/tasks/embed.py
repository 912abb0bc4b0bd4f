"""Turn data into features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.capabilities import require
from tacit.data import Dataset, load
from tacit.errors import SpaceError
from tacit.model import Model
from tacit.tasks.run import Run, in_batches


def embed(run: Path, data: str, *, out: Path | None = None, **options: Any) -> Path:
    """Write the features of every row of `data` as one .npy array, (rows, features).

    Args:
        run: the run folder.
        data: a path or a name, of the kind the model was fitted on.
        out: the file to write; RUN/embeddings-DATA.npy by default.
        options: how to read the data (`tacit data` lists them).

    Returns:
        The file.

    Raises:
        CapabilityError: the model has no features.
        SpaceError: the data is of another kind or shape than the model's.
    """
    found = Run(run)
    require(found.model, "embed", "embed")
    dataset = load(data, **options)
    path = out or found.path / f"embeddings-{dataset.name.replace('/', '-')}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features(found.model, dataset).numpy())
    return path


@torch.no_grad()
def features(model: Model, data: Dataset | Tensor, size: int = 512) -> Tensor:
    """Features of observations, (rows, features), `size` at a time, in eval mode.

    Raises:
        CapabilityError: the model has no features.
        SpaceError: the data is of another kind or shape than the model's.
    """
    require(model, "embed", "embed")
    if isinstance(data, Dataset) and data.space != model.space:
        raise SpaceError(
            f"{data.name} is {data.space}, but the model was fitted on {model.space}: give data of that form"
        )
    model.eval()
    parts = [model.embed(x).float().cpu() for x in in_batches(data, size, model.device)]  # type: ignore[operator]
    return torch.cat(parts)
