"""Whether a classifier's probabilities are what they say: of what it calls 80 % sure, 80 % should be right.

References
----------
Guo, Pleiss, Sun, Weinberger (2017). On Calibration of Modern Neural Networks. arXiv:1706.04599, §2: the expected
    calibration error and the reliability diagram; 15 bins.
Brier (1950). Verification of Forecasts Expressed in Terms of Probability. Monthly Weather Review 78.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import DataError


@dataclass(frozen=True)
class Bin:
    """The rows whose most likely class was given a probability in (low, high].

    Attributes:
        low, high: its edges.
        rows: how many there are.
        confidence: the mean of those probabilities; 0 of no rows.
        accuracy: the share of them told rightly; 0 of no rows.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far class probabilities can be taken at their word.

    Attributes:
        error: the expected calibration error, Σ_b rows_b / rows |accuracy_b − confidence_b|, in [0, 1]. Of few rows it
            is above 0 also for a perfect classifier.
        error_floor: what a perfectly calibrated classifier of the same confidences has on as many rows, on average:
            labels drawn from them 200 times.
        brier: the mean over rows of Σ_c (p_c − [label is c])², in [0, 2].
        brier_error: its standard error over rows.
        nats: −log p(label), the mean over rows.
        nats_error: its standard error over rows.
        accuracy: share of rows told rightly.
        accuracy_error: its standard error over rows.
        rows: labelled rows it rests on.
        bins: the reliability diagram.
    """

    error: float
    error_floor: float
    brier: float
    brier_error: float
    nats: float
    nats_error: float
    accuracy: float
    accuracy_error: float
    rows: int
    bins: tuple[Bin, ...]


def calibration(probabilities: Tensor, label: Tensor, *, bins: int = 15, seed: int = 0) -> Calibration:
    """Calibration of class probabilities.

    Args:
        probabilities: (rows, classes), each row summing to 1.
        label: (rows,), −1 where unlabelled; such rows are left out.
        bins: of equal width on [0, 1].
        seed: of the labels drawn for the floor.

    Raises:
        DataError: no row has a label, a label is no class, or a probability is not in [0, 1].
    """
    known = label >= 0
    p, label = probabilities[known].double(), label[known].long()
    if not len(label):
        raise DataError(f"none of the {len(known)} rows has a label: calibration needs some")
    if int(label.max()) >= p.shape[1]:
        raise DataError(f"the labels go up to {int(label.max())}, and the classifier knows {p.shape[1]} classes")
    if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
        raise DataError("some class probabilities are not between 0 and 1: calibration needs such")
    confidence, guess = p.max(1)
    right = (guess == label).double()
    found = _bins(confidence, right, bins)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(200, len(confidence), generator=generator, dtype=torch.float64) < confidence).double()
    brier = (p - F.one_hot(label, p.shape[1])).square().sum(1)
    nats = -p.gather(1, label[:, None])[:, 0].log()
    return Calibration(
        error=_error(found),
        error_floor=sum(_error(_bins(confidence, row, bins)) for row in drawn) / len(drawn),
        brier=float(brier.mean()),
        brier_error=_of_mean(brier),
        nats=float(nats.mean()),
        nats_error=_of_mean(nats),
        accuracy=float(right.mean()),
        accuracy_error=_of_mean(right),
        rows=len(label),
        bins=tuple(found),
    )


def _bins(confidence: Tensor, right: Tensor, count: int) -> list[Bin]:
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    which = (torch.bucketize(confidence, edges) - 1).clamp(0, count - 1)
    rows = which.bincount(minlength=count)
    of_rows = rows.clamp(min=1)
    sure, told = (which.bincount(weights=x, minlength=count) / of_rows for x in (confidence, right))
    columns = (edges[:-1].tolist(), edges[1:].tolist(), rows.tolist(), sure.tolist(), told.tolist())
    return [Bin(*values) for values in zip(*columns, strict=True)]


def _error(bins: list[Bin]) -> float:
    return sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / sum(b.rows for b in bins)


def _of_mean(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
