"""Turn data into features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from tacit.capabilities import require
from tacit.data import Dataset, load
from tacit.errors import DataError, SpaceError
from tacit.metrics.fisher import FisherScore
from tacit.metrics.probes import embed_all
from tacit.model import Model
from tacit.tasks.run import Run
from tacit.training.plan import reseed


def embed(run: Path, data: str | Dataset, *, fisher: bool = False, out: Path | None = None) -> Path:
    """Write the features of every row of `data` as one .npy array, (rows, features).

    Args:
        run: the run folder.
        data: a path, a name or a `Dataset`, of the kind the model was fitted on.
        fisher: write Fisher scores, which every density that learns by gradients has, instead of the model's features.
        out: the file to write; RUN/embeddings-DATA.npy, or fisher-DATA.npy, by default.

    Returns:
        The file.

    Raises:
        CapabilityError: the model has no features, or no Fisher scores.
        SpaceError: the data is of another kind or shape than the model's.
    """
    found = Run(run)
    if not fisher:
        require(found.model, "embed", "embed")
    dataset = load(data) if isinstance(data, str) else data
    path = out or found.path / f"{'fisher' if fisher else 'embeddings'}-{dataset.name.replace('/', '-')}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, found.embed(dataset, fisher=fisher).numpy())
    return path


def features(model: Model, data: Dataset) -> Tensor:
    """Features of all observations of `data`, in order, (rows, features), in eval mode.

    Raises:
        CapabilityError: the model has no features.
        SpaceError: the data is of another kind or shape than the model's.
    """
    require(model, "embed", "embed")
    check_space(model, data)
    return embed_all(model, data)  # type: ignore[arg-type]


def fisher_scores(run: Run, data: Dataset) -> Tensor:
    """Fisher scores of all observations of `data` by the model's last layer, in order, (rows, features).

    What they are scaled by is estimated on the rows the run was fitted on; on `data` if those cannot be read again.

    Raises:
        CapabilityError: the model has no density, or none that gives gradients.
        SpaceError: the data is of another kind or shape than the model's.
    """
    found = FisherScore(run.model)
    check_space(run.model, data)
    try:
        learnt = run.data().parts()[0]
    except DataError:  # given from Python
        learnt = data
    reseed(0)  # a bound that is estimated from noise is estimated from the same noise every time
    return embed_all(found.fit(learnt), data)


def check_space(model: Model, data: Dataset) -> None:
    """Raise SpaceError unless `data` is of the model's space."""
    if data.space != model.space:
        raise SpaceError(
            f"{data.name} is {data.space}, but the model was fitted on {model.space}: give data of that form"
        )
