"""Scores of rows of numbers that need no trained model: distance to near rows, isolation, and a crowd of judges.

References
----------
Angiulli, Pizzuti (2002). Fast outlier detection in high dimensional spaces. PKDD: the mean distance to the k nearest.
Liu, Ting, Zhou (2008). Isolation forest. ICDM.
Aggarwal, Sathe (2015). Theoretical foundations and algorithms for outlier ensembles. SIGKDD Explorations 17: §3, scores
    brought to one scale and combined between their mean and their maximum.
"""

from __future__ import annotations

import numpy as np

# The crowd asks among so many rows at most, evenly spaced.
_CROWD = 5000
# The near neighbours, and the far one as a share of the rows.
_NEAR, _FAR = 10, 0.03
# Rows are suspects if the far neighbour is among the most distant tenth; those whose distance to the other rows is so
# many times that to all rows are left out.
_SUSPECTS, _LEANS = 0.1, 1.5
_TINY = 1e-12


class Scaled:
    """Brings every column to [0, 1] over some rows, or to mean 0 and deviation 1; constant columns are only shifted.

    Args:
        rows: (rows, features).
        standard: to mean 0 and deviation 1.
    """

    def __init__(self, rows: np.ndarray, standard: bool = False):
        self.shift = rows.mean(0) if standard else rows.min(0)
        spread = rows.std(0) if standard else rows.max(0) - self.shift
        self.scale = np.where(spread > 0, spread, 1.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(rows, features) -> (rows, features)."""
        return (x - self.shift) / self.scale


class Tail:
    """Brings a score to units of its own upper tail: 0 is the median of usual rows, 1 their 90th percentile.

    Scores of different natures can then be added or compared where it matters, among the strange.

    Args:
        usual: (rows,) scores of rows that are mostly sound.
    """

    def __init__(self, usual: np.ndarray):
        usual = usual[np.isfinite(usual)]
        middle, high = np.quantile(usual, (0.5, 0.9)) if len(usual) else (0.0, 1.0)
        self.middle = float(middle)
        # A score that hardly varies among usual rows counts by its deviation, or not at all.
        self.spread = float(high - self.middle) or float(usual.std()) or 1.0

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """(rows,) -> (rows,)."""
        return (score - self.middle) / self.spread


class Near:
    """Distance to near rows: the mean over the `k` nearest of them (Angiulli & Pizzuti 2002).

    Args:
        rows: (rows, features), those that others are compared with.
        k: how many of the nearest count.
    """

    def __init__(self, rows: np.ndarray, k: int = 5):
        from sklearn.neighbors import NearestNeighbors

        self.k = min(k, len(rows) - 1)
        self._index = NearestNeighbors(n_neighbors=self.k).fit(rows)

    def __call__(self, x: np.ndarray, among: bool = False) -> np.ndarray:
        """Distances (rows,) of x (rows, features); `among` says that x are some of the rows themselves."""
        return self.nearest(x, among).mean(1)

    def nearest(self, x: np.ndarray, among: bool = False) -> np.ndarray:
        """Distances to each of the nearest, in order: (rows, k)."""
        found = self._index.kneighbors(x, n_neighbors=self.k + among)[0]
        return found[:, 1:] if among else found


class Forest:
    """Scikit-learn's isolation forest, with its defaults: higher is stranger.

    Args:
        rows: (rows, features) to grow it on.
        seed: of its cuts.
    """

    def __init__(self, rows: np.ndarray, seed: int = 0):
        from sklearn.ensemble import IsolationForest

        self._forest = IsolationForest(random_state=seed).fit(rows)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scores (rows,) of x (rows, features)."""
        return -self._forest.score_samples(x)


class Crowd:
    """Four judges of rows of a table, and no need to know how many anomalies are among those it learns from.

    Three are distances: the mean of the 10 nearest with columns scaled to [0, 1], the same with columns of unit
    deviation, and the distance to the row at 3 % of all, scaled to [0, 1], which sees groups of anomalies (up to that
    share) that near distances take for a place like any other. The fourth is an isolation forest. Each is brought to
    units of its own tail, distances by their logarithm, and the score is the mean of the two highest: a row is strange
    if two judges find it so.

    Groups of anomalies vouch for each other. Therefore the tenth of the rows that lie strangest by the far distance are
    suspects, and suspects that lean on each other (near distances among all rows, but 1.5 times as far or more from the
    rows above suspicion) are left out. Solitary suspects stay, as in clean data nearly all do: leaving a fixed share
    out costs clean data more.

    All of this was chosen on every second of ADBench's twelve classical sets, with splits that the record does not use;
    the record, on all of them, is written by `benchmarks/anomalies.py`.

    Args:
        rows: (rows, features), mostly sound.
        seed: of the forest.
    """

    def __init__(self, rows: np.ndarray, seed: int = 0):
        if len(rows) > _CROWD:
            rows = rows[np.arange(_CROWD) * len(rows) // _CROWD]
        self._scalings = Scaled(rows), Scaled(rows, standard=True)
        self.kept = self._above_suspicion(rows)
        rows = rows[self.kept]
        far = _far(len(rows))
        self._near = [Near(scaled(rows), max(far, min(_NEAR, len(rows) - 1))) for scaled in self._scalings]
        self._far = far
        self._forest = Forest(rows, seed)
        self._tails = [Tail(judged) for judged in self._judge(rows, among=True)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scores (rows,) of x (rows, features): higher is stranger, and 1 is what a tenth of usual rows exceed."""
        judged = [tail(score) for tail, score in zip(self._tails, self._judge(x), strict=True)]
        return np.sort(judged, axis=0)[-2:].mean(0)

    def _judge(self, x: np.ndarray, among: bool = False) -> list[np.ndarray]:
        """The scores of each judge, (rows,) each."""
        ranged, standard = (
            near.nearest(scaled(x), among) for near, scaled in zip(self._near, self._scalings, strict=True)
        )
        return [
            _log(ranged[:, :_NEAR].mean(1)),
            _log(standard[:, :_NEAR].mean(1)),
            _log(ranged[:, self._far - 1]),
            self._forest(x),
        ]

    def _above_suspicion(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the rows that are kept, in order."""
        far = _far(len(rows))
        scaled = [scaling(rows) for scaling in self._scalings]
        own = [Near(x, max(far, min(_NEAR, len(rows) - 1))).nearest(x, among=True) for x in scaled]
        distant = [_log(near[:, far - 1]) for near in own]
        suspicion = np.mean([Tail(far_off)(far_off) for far_off in distant], 0)
        suspect: np.ndarray = suspicion > np.quantile(suspicion, 1 - _SUSPECTS)
        if suspect.sum() == 0 or (~suspect).sum() <= _NEAR:
            return np.arange(len(rows))
        leans = [
            _log(Near(x[~suspect], _NEAR)(x[suspect])) - _log(near[suspect, :_NEAR].mean(1))
            for x, near in zip(scaled, own, strict=True)
        ]
        suspect[suspect] = np.mean(leans, 0) >= np.log(_LEANS)
        return np.flatnonzero(~suspect)


def _far(rows: int) -> int:
    """Which neighbour is the far one among so many rows."""
    return min(rows - 1, max(_NEAR, round(_FAR * rows)))


def _log(distance: np.ndarray) -> np.ndarray:
    """Of rows that are the same, the logarithm of next to nothing."""
    return np.log(np.maximum(distance, _TINY))
