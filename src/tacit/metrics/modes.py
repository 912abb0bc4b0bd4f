"""How many of the data's classes a model draws, and in what shares.

References
----------
Srivastava, Valkov, Russell, Gutmann, Sutton (2017). VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational
    Learning. arXiv:1705.07761, §4: classes reached, by a classifier, and the divergence of their shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tacit.errors import DataError
from tacit.metrics.frechet import jackknife


@dataclass(frozen=True)
class Modes:
    """Classes of drawn observations, as a classifier tells them, against those of real ones.

    Attributes:
        reached: classes of which at least one was drawn, of those that the real ones have.
        classes: how many the real ones have.
        divergence: KL(drawn ‖ real) of the shares of classes, nats; infinite where a class was drawn that no real one
            was told to be of. Above 0 for few draws, by about (classes − 1) / 2 draws; freed of that by the jackknife.
        error: its standard error over the drawing.
        real: shares of the real ones, by class.
        drawn: shares of the drawn ones, by class.
    """

    reached: int
    classes: int
    divergence: float
    error: float
    real: tuple[float, ...]
    drawn: tuple[float, ...]


def modes(real: Tensor, drawn: Tensor, classes: int) -> Modes:
    """Compare the classes of real and of drawn observations, (rows,) int64 each.

    Raises:
        DataError: a side is empty.
    """
    if not min(len(real), len(drawn)):
        raise DataError(f"{len(real)} real and {len(drawn)} drawn observations: comparing classes needs some of each")
    shares = _shares(real, classes)
    value, error = jackknife(lambda rows: _divergence(_shares(rows, classes), shares), drawn)
    found = _shares(drawn, classes)
    return Modes(
        reached=int(((found > 0) & (shares > 0)).sum()),
        classes=int((shares > 0).sum()),
        divergence=value,
        error=error,
        real=tuple(shares.tolist()),
        drawn=tuple(found.tolist()),
    )


def _shares(label: Tensor, classes: int) -> Tensor:
    return label.bincount(minlength=classes).double() / len(label)


def _divergence(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q), nats."""
    return float(torch.where(p > 0, p * (p / q).log(), 0.0).sum())
