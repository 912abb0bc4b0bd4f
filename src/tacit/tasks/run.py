"""A run: the folder a trained model lives in, and what can be done with it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tacit import catalogue, data, spaces
from tacit.data import Dataset
from tacit.errors import DataError, RunError
from tacit.model import Model
from tacit.training import checkpoint

if TYPE_CHECKING:
    from tacit.tasks.anomalies import Anomalies
    from tacit.tasks.detector import Detector
    from tacit.tasks.evaluate import Evaluation


class Run:
    """A trained model in its folder.

    Args:
        path: the folder that `fit` made.

    Raises:
        RunError: there is no run there, or its record is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.record = read_record(self.path)

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}: {self.record['model']} on {self.record['data']['name']}, {self.record['status']})"
        )

    @property
    def space(self) -> spaces.Space:
        """What one observation is."""
        return spaces.from_dict(self.record["space"])

    @functools.cached_property
    def model(self) -> Model:
        """The model in eval mode, with its weights for use: averaged or best, where the run kept such.

        Raises:
            RunError: no checkpoint is whole.
        """
        saved = checkpoint.load_newest(self.path / "checkpoints", lambda text: print(text, file=sys.stderr))
        if saved is None:
            raise RunError(f"{self.path} holds no checkpoint: `tacit resume {self.path}` trains it")
        model = build(self.record)
        model.load_state_dict(saved[0]["weights"])
        return model.eval()

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The symbols of a text model, by number; empty for other data."""
        path = self.path / "vocabulary.json"
        return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()

    def data(self) -> Dataset:
        """The data the run was fitted on, read again.

        Raises:
            DataError: it was given from Python, or has changed.
        """
        source = self.record["data"]["source"]
        if source is None:
            raise DataError(f"{self.path} was fitted on data given from Python: give the same data again")
        found = data.load(**source)
        if found.fingerprint() != self.record["data"]["fingerprint"]:
            raise DataError(f"{self.record['data']['name']} has changed since {self.path} was fitted: fit it again")
        return found

    def resume(self, given: Dataset | None = None) -> Run:
        """Go on from the last checkpoint; see `tacit.tasks.resume`."""
        from tacit.tasks.resume import resume

        return resume(self.path, given)

    def sample(self, count: int = 64, **options: Any) -> Tensor:
        """Draw observations, (count, *space.shape); see `tacit.tasks.sample`."""
        from tacit.tasks.sample import draw

        return draw(self.model, count, **options)

    def complete(self, x: Tensor, known: Tensor, **options: Any) -> Tensor:
        """Draw what is not known of observations, (rows, *space.shape); see `tacit.tasks.complete`."""
        from tacit.tasks.complete import fill

        return fill(self.model, x, known, **options)

    def evaluate(self, on: Dataset | None = None, **options: Any) -> Evaluation:
        """Measure the model on held-out data; see `tacit.tasks.evaluate`."""
        from tacit.tasks.evaluate import measure

        return measure(self, on, **options)

    def anomalies(self, on: Dataset | None = None, **options: Any) -> Anomalies:
        """Rank observations by how strange they are; see `tacit.tasks.anomalies`."""
        from tacit.tasks.anomalies import find

        return find(self, on, **options)

    def detector(self, **options: Any) -> Detector:
        """Anomaly scores and p-values of whatever rows come; see `tacit.tasks.detector`."""
        from tacit.tasks.detector import Detector

        return Detector.of(self, **options)

    def compress(self, source: str | Path, **options: Any) -> Path:
        """Store a file or a folder in one archive; see `tacit.tasks.compress`."""
        from tacit.tasks.compress import compress

        return compress(self.path, Path(source), **options)

    def embed(self, on: Dataset, fisher: bool = False) -> Tensor:
        """Features, or Fisher scores, (rows, features); see `tacit.tasks.embed`."""
        from tacit.tasks.embed import features, fisher_scores

        return fisher_scores(self, on) if fisher else features(self.model, on)


def build(record: dict[str, Any]) -> Model:
    """The model that a run's record describes, with fresh weights."""
    cls = catalogue.load(record["model"])
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in record["arguments"].items()}
    return cls(spaces.from_dict(record["space"]), **arguments)


def read_record(path: Path) -> dict[str, Any]:
    """The contents of `run.json`.

    Raises:
        RunError: it is missing or not a run's record.
    """
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is not a run (it has no run.json): give a folder that `tacit fit` made") from None
    except (ValueError, UnicodeDecodeError):
        raise RunError(f"{path / 'run.json'} is damaged (it is not JSON): restore it, or fit the model again") from None
    missing = {"model", "arguments", "space", "data", "plan", "status"} - (
        record.keys() if isinstance(record, dict) else set()
    )
    if missing:
        raise RunError(f"{path / 'run.json'} is damaged (it lacks {', '.join(sorted(missing))}): fit the model again")
    return record


def in_batches(data: Dataset, size: int, device: torch.device) -> Iterator[Tensor]:
    """Observations in order, `size` at a time, on `device`."""
    return (data[index.to(device)] for index in data.ordered(size))
