"""Whether drawn observations are copies of training rows.

A model that has learned by heart draws nearer to its training rows than other real data lies. The distance from drawn
rows to the training rows is therefore held against the distance from held-out rows to the same: by a rank test, which
asks nothing of the distances' shape. Functions take features, (rows, features), of any extractor.

References
----------
Meehan, Chaudhuri, Dasgupta (2020). A Non-Parametric Test to Detect Data-Copying in Generative Models.
    arXiv:2004.05675, §3–4: the statistic Z_U, and C_T over the cells of a partition.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tacit.errors import DataError
from tacit.metrics.anomalies import auroc

# Rows of one block of a distance matrix, and rows of which each is compared exactly.
_ROWS, _PROPOSED = 1024, 8


@dataclass(frozen=True)
class Copying:
    """The data-copying test.

    Attributes:
        nearer: share of pairs of a drawn and a held-out row in which the drawn one is nearer to the training rows,
            ties counting half: ½ is fair, 1 is copying, 0 is drawing far off.
        nearer_error: its standard error if nothing was copied.
        score: C_T, the mean over cells of the Mann-Whitney statistic in standard deviations: about 0 is fair, below −3
            is copying, above 3 is drawing farther off than real data lies. It grows with the number of rows.
        score_error: its standard deviation if nothing was copied.
        cells: how many had rows enough to count.
        distance: (drawn,), from each drawn row to its nearest training row.
        which: (drawn,), the number of that training row.
    """

    nearer: float
    nearer_error: float
    score: float
    score_error: float
    cells: int
    distance: Tensor = field(repr=False, compare=False)
    which: Tensor = field(repr=False, compare=False)


def nearest(train: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance from each row of `x` to its nearest row of `train`, and which that is: (rows,) each."""
    # The product form of cdist is quick, but off by ~1e-4 |x|: it proposes a few, of which the nearest is taken.
    centre = train.mean(0)
    near = torch.cat(
        [
            torch.cdist(rows, train - centre).topk(min(_PROPOSED, len(train)), largest=False).indices
            for rows in (x - centre).split(_ROWS)
        ]
    )
    found = (x[:, None].double() - train[near].double()).norm(dim=2).min(1)
    return found.values, near.gather(1, found.indices[:, None])[:, 0]


def copies(train: Iterable[Tensor], x: Tensor) -> Tensor:
    """Whether each row of `x`, (rows, *shape), is in the batches of training rows, number for number: (rows,) bool."""
    rows = [row.tobytes() for row in x.cpu().numpy()]
    wanted, found = set(rows), set()
    for batch in train:
        found |= wanted.intersection(row.tobytes() for row in batch.cpu().numpy())
    return torch.tensor([row in found for row in rows])


def copied_windows(train: Tensor, x: Tensor) -> Tensor:
    """Whether each window of `x`, (rows, length), stands anywhere in the stream `train`, (symbols,): (rows,) bool."""
    stream = "".join(map(chr, train.tolist()))
    return torch.tensor(["".join(map(chr, row)) in stream for row in x.tolist()])


def data_copying(
    train: Tensor, held_out: Tensor, drawn: Tensor, *, cells: int = 5, least: int = 20, seed: int = 0
) -> Copying:
    """The test of Meehan et al., C_T = Σ_π P(π) Z_U(π) / Σ_π P(π), with cells π from k-means of the training rows.

    P is the held-out rows' share. Cells with fewer than `least` held-out or drawn rows do not count; with none left,
    the whole space is the cell.

    Args:
        train: (rows, features).
        held_out: (rows, features), real and not learned from.
        drawn: (rows, features).
        cells: of the partition; 5 as in the paper's experiments on digits.
        least: rows of a cell.
        seed: of k-means.

    Raises:
        DataError: a side is empty.
    """
    if not min(len(train), len(held_out), len(drawn)):
        raise DataError(
            f"{len(train)} training, {len(held_out)} held-out and {len(drawn)} drawn rows: copying needs some of each"
        )
    real, (fake, which) = nearest(train, held_out)[0], nearest(train, drawn)
    n, m = len(real), len(fake)
    of_real, of_fake = _partition(train, [held_out, drawn], cells, seed)
    scores, shares = [], []
    for cell in range(cells):
        a, b = of_real == cell, of_fake == cell
        if min(int(a.sum()), int(b.sum())) >= least:
            # Distances to all training rows, not to the cell's alone: the nearest may lie across a border.
            scores.append(_z(real[a], fake[b]))
            shares.append(float(a.double().mean()))
    if not scores:
        scores, shares = [_z(real, fake)], [1.0]
    score = sum(s * p for s, p in zip(scores, shares, strict=True)) / sum(shares)
    error = math.sqrt((n + m + 1) / (12 * n * m))
    return Copying(1 - auroc(real, fake), error, score, math.hypot(*shares) / sum(shares), len(scores), fake, which)


def _z(real: Tensor, fake: Tensor) -> float:
    """The Mann-Whitney statistic in standard deviations: above 0 where `fake` is the larger."""
    n, m = len(real), len(fake)
    return (auroc(real, fake) - 0.5) * math.sqrt(12 * n * m / (n + m + 1))


def _partition(train: Tensor, sets: list[Tensor], cells: int, seed: int) -> list[Tensor]:
    """The cell of each row of each set, from k-means of the training rows."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than cells
        fitted = MiniBatchKMeans(min(cells, len(train)), random_state=seed, n_init=3).fit(train.double().numpy())
    return [torch.from_numpy(fitted.predict(x.double().numpy())).long() for x in sets]
