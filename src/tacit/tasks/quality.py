"""Figures with all they rest on, and the sample quality that `compare` and `evaluate` measure alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tacit.metrics.extractor import Extractor
from tacit.metrics.frechet import Support, frechet_distance, jackknife, kernel_distance, sliced_wasserstein, support
from tacit.metrics.ngrams import ngram_divergence
from tacit.spaces import Space, Tokens, Vectors

# Fewer drawn or real observations than this say nothing about sample quality.
LEAST_ROWS = 32


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        value: in the unit of its column.
        error: standard error; None where the number has none (a count) or it could not be had.
        count: rows, or drawn observations, that it rests on.
        note: what else it depends on, in words.
        values: the number for each row, where it is their mean, so that two models are compared row by row.
    """

    value: float
    error: float | None = None
    count: int | None = None
    note: str = ""
    values: Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite and missing numbers are null."""
        return {
            "value": finite(self.value),
            "error": finite(self.error),
            "count": self.count,
            "note": self.note,
        }


Figures = dict[str, Figure]


# By kind of space, the column that ranks samples. A table's own columns may have any shape, of which a Fréchet
# distance sees no more than means and covariances; learned features are many, and nearer to Gaussian.
QUALITY = {"images": "frechet", "vectors": "wasserstein", "tokens": "ngrams"}


def finite(number: float | None) -> float | None:
    """A number as JSON has it: infinite and missing ones are null."""
    return number if number is not None and math.isfinite(number) else None


def mean(values: Tensor, note: str) -> Figure:
    """The mean over rows, with its standard error."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Figure(float(values.mean()), error, len(values), note, values)


def binomial(share: float, rows: int) -> float:
    """Standard error of a share of `rows`; of a share of 0 or 1 what half a row off would give."""
    return math.sqrt(max(share * (1 - share), 0.25 / rows) / rows)


class Yardstick:
    """What samples are held against: real rows, other real rows for the floor, and the features of both.

    Args:
        space: what one observation is.
        real: (rows, *shape).
        other: (rows, *shape), none of them among `real`.
        extractor: of the features; None for text, which is compared by its n-grams.
    """

    def __init__(self, space: Space, real: Tensor, other: Tensor, extractor: Extractor | None):
        self.space, self.real, self.other, self.extractor = space, real, other, extractor
        self.real_features = self.features(real)
        self._floors: dict[int, float] = {}

    @property
    def extractor_name(self) -> str:
        """What samples are compared in, in words, with the hash of its weights."""
        if self.extractor is None:
            return "the frequencies of pairs of neighbouring symbols"
        return f"{self.extractor.description}; sha256 {self.extractor.hash()}"

    def features(self, x: Tensor) -> Tensor:
        """What observations are compared in, (rows, features); those of text are compared as they are."""
        return x if self.extractor is None else self.extractor(x)

    def quality(self, samples: Tensor, drawn: str = "drawn") -> Figures:
        """How near `samples` are to the real rows; `drawn` says in a word where they come from. None of too few."""
        fakes, reals = len(samples), len(self.real)
        if min(fakes, reals) < LEAST_ROWS:
            return {}
        note = f"{reals} real, {fakes} {drawn}"
        fake, real = self.features(samples), self.real_features
        value, error = jackknife(self._distance, fake)
        plain, floor = self._distance(fake), self._floor(fakes)
        figure = Figure(value, error, fakes, f"{note}; {plain:.4g} before the correction for their number")
        found = {QUALITY[self.space.kind]: figure}
        if floor > 0:
            found["ratio"] = Figure(plain / floor, error / floor, fakes, f"{plain:.4g} over {floor:.4g}; {note}")
        if self.extractor is not None:
            if "frechet" not in found:
                found["frechet"] = Figure(*jackknife(lambda x: frechet_distance(real, x), fake), fakes, note)
            found["kid"] = Figure(*kernel_distance(real, fake), fakes, note)
            found |= _support_figures(support(real, fake, k=3), reals, fakes, note)
        return found

    def _distance(self, fake: Tensor) -> float:
        """Between the real rows and others, in the way that suits their space."""
        if isinstance(self.space, Tokens):
            return ngram_divergence(self.real_features, fake)
        if isinstance(self.space, Vectors):
            return sliced_wasserstein(self.real_features, fake)
        return frechet_distance(self.real_features, fake)

    def _floor(self, count: int) -> float:
        """That distance where `count` other real rows are taken for samples."""
        if count not in self._floors:
            self._floors[count] = self._distance(self.features(self.other[:count]))
        return self._floors[count]


def _support_figures(found: Support, reals: int, fakes: int, note: str) -> Figures:
    note = f"{note}, k = 3"
    return {
        "precision": Figure(found.precision, binomial(found.precision, fakes), fakes, note),
        "recall": Figure(found.recall, binomial(found.recall, reals), fakes, note),
        "density": Figure(found.density, found.density_error, fakes, note),
        "coverage": Figure(found.coverage, binomial(found.coverage, reals), fakes, note),
    }


def draw_in_time(
    model: Any, count: int, seconds: float, said: Callable[[int], None] = lambda done: None
) -> tuple[Tensor, Figure]:
    """`count` samples, or as many as `seconds` allow but at least `LEAST_ROWS`, and how many it draws a second.

    `said` hears how many there are after each batch.
    """
    drawn: list[Tensor] = []
    rate, size, end = 0.0, 16, time.monotonic() + seconds
    while (left := count - sum(map(len, drawn))) > 0:
        started = time.monotonic()
        drawn.append(model.sample(min(size, left)).cpu())
        now = time.monotonic()
        took = max(1e-9, now - started) / len(drawn[-1])
        said(sum(map(len, drawn)))
        # The first draw warms up; of the others the best, because a sequential sampler is quicker in large batches.
        rate = max(rate, 1 / took) if len(drawn) > 1 else 0.0
        if now > end and sum(map(len, drawn)) >= LEAST_ROWS:
            break
        # As if each took as long as in the last draw, which is the worst that happens.
        size = int(min(4 * size, 500, max(16, (end - now) / took)))
    samples = torch.cat(drawn)
    note = f"in batches of up to {max(map(len, drawn))}"
    return samples, Figure(rate or len(samples) / took, None, len(samples), note)


def in_time(work: Callable[[Tensor], Tensor], x: Tensor, seconds: float, most: int = 256) -> Tensor:
    """`work` over the rows of `x`, batch by batch, until all are done or `seconds` have passed; at least one batch.

    Batches grow to `most` rows, and are the same however much time there is.
    """
    done: list[Tensor] = []
    start, size, end = 0, min(16, most), time.monotonic() + seconds
    while start < len(x):
        started = time.monotonic()
        part = x[start : start + size]
        done.append(work(part))
        start += len(part)
        took = (time.monotonic() - started) / len(part)
        size = min(2 * size, most)
        if time.monotonic() + took * size > end:
            break
    return torch.cat(done)
