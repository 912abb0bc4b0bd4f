"""Conformal p-values of anomaly scores, and which rows they let one call anomalies.

A score becomes a p-value by its rank among the scores of rows that nothing was fitted on: if a new row comes from where
those rows came from, P(p ≤ a) ≤ a for every a, whatever the score is and however many rows there are. Those p-values
depend on each other through the rows they share, but so (positively) that the procedure of Benjamini and Hochberg still
holds the share of false alarms among the alarms at the rate asked for.

References
----------
Bates, Candès, Lei, Romano, Sesia (2023). Testing for outliers with conformal p-values. Annals of Statistics 51.
    arXiv:2104.08279: eq. 1, and theorem 2 for the dependence.
Benjamini, Hochberg (1995). Controlling the false discovery rate. J. Royal Statistical Society B 57.
Vovk, Gammerman, Shafer (2005). Algorithmic Learning in a Random World. §2.2: the tie-break (smoothed p-values).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tacit.errors import DataError, TacitError


def p_values(scores: Tensor, calibration: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """The p-value of each score, (rows,) float64: p = (1 + #{calibration ≥ score}) / (n + 1).

    Args:
        scores: (rows,), higher is stranger.
        calibration: (n,), scores of rows that nothing was fitted on.
        tie_break: (rows,) numbers u in [0, 1], one a row, uniform and independent of the scores. With them
            p = (#{calibration > score} + u (1 + #{calibration = score})) / (n + 1), which is exactly uniform however
            many ties there are; without, ties make the p-value larger than it need be.

    Raises:
        DataError: there is no calibration row, or a score is NaN.
    """
    if not len(calibration) or scores.isnan().any() or calibration.isnan().any():
        raise DataError(
            f"p-values of {len(scores)} scores by {len(calibration)} held-out ones: have some of those, and no NaN"
        )
    ordered, scores = calibration.double().sort().values, scores.double().contiguous()
    below, not_above = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
    count = len(ordered)
    if tie_break is None:
        return (1 + count - below).double() / (count + 1)
    return ((count - not_above) + tie_break.double() * (1 + not_above - below)) / (count + 1)


def discoveries(p: Tensor, rate: float) -> Tensor:
    """Which rows Benjamini and Hochberg's procedure calls anomalies, (rows,) bool.

    Of all sets of rows so called, at most the share `rate` are expected to be false alarms.

    Args:
        p: (rows,) p-values.
        rate: the false discovery rate, in (0, 1).

    Raises:
        TacitError: `rate` is not between 0 and 1.
    """
    check_share(rate=rate)
    ordered = p.double().sort().values
    # A p-value at the bound itself counts, whatever rounding made of the two.
    allowed = (1 + 1e-12) * rate * torch.arange(1, len(p) + 1, dtype=torch.float64) / max(1, len(p))
    below = (ordered <= allowed).nonzero()
    return p <= ordered[below[-1]] if len(below) else torch.zeros(len(p), dtype=torch.bool)


def fewest_discoveries(rows: int, calibration: int, rate: float) -> int:
    """The least number of anomalies among `rows` that `discoveries` can tell by so many calibration rows.

    The smallest p-value is 1 / (n + 1), and k rows that have it are called anomalies if that is no more than
    rate · k / rows.
    """
    return max(1, math.ceil(rows / (rate * (calibration + 1)) - 1e-9))


def check_share(**arguments: float) -> None:
    """Check that each argument lies strictly between 0 and 1.

    Raises:
        TacitError: one does not.
    """
    for name, value in arguments.items():
        if not 0 < value < 1:
            raise TacitError(f"{name} is {value}: give a number between 0 and 1")
