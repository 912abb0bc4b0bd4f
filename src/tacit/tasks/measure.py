"""What a comparison measures of one trained model, and what all its models are measured against.

Every figure carries its standard error where it has one, the number of rows it rests on, and in words what else it
depends on. A slow model is measured on fewer rows, and says so, instead of holding up the rest.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tacit.capabilities import Embeds, HasDensity, HasEnergy, Samples
from tacit.data import Dataset
from tacit.errors import TrainingError
from tacit.metrics.anomalies import corruptions, mean_auroc, neighbour_distance
from tacit.metrics.extractor import extractor_for
from tacit.metrics.probes import knn, linear_probe
from tacit.model import Model
from tacit.spaces import Tokens, Vectors
from tacit.tasks.likelihood import KIND, nats
from tacit.tasks.quality import LEAST_ROWS, Figure, Figures, Yardstick, binomial, draw_in_time, in_time, mean
from tacit.training.plan import reseed

# Most held-out rows that a figure rests on, and most training rows that features are probed with.
_MOST_ROWS = 2000
_MOST_PROBED = 3000
# What takes so many times its share of the time is given up, though not before so many seconds.
_PATIENCE, _LEAST_SECONDS = 4, 30.0
# Drawn observations kept to be shown: pictures or texts, and points of a scatter plot.
_SHOWN, _SHOWN_ROWS = 64, 1000


class Judge:
    """The held-out rows, the extractor, the floors and the corruptions that every model of a comparison meets.

    Args:
        data: the user's data.
        folder: where a trained extractor is kept.
        device: where the extractor runs.
        seed: of the extractor and of which rows are taken.
        seconds: the longest the extractor may train.
    """

    def __init__(self, data: Dataset, folder: Path, *, device: str = "cpu", seed: int = 0, seconds: float = 60.0):
        self.data, self.seed = data, seed
        self.space = data.space
        self.train, valid, test = data.parts()
        generator = torch.Generator().manual_seed(seed)
        # Not the first rows: some files are sorted by class.
        index, other = _rows(test, _MOST_ROWS, generator), _rows(valid, _MOST_ROWS, generator)
        # As many of each, so that the floor is measured at the very sizes that samples are.
        self.count = min(len(index), len(other))
        self.test_index = index[: self.count]
        self.test, self.test_label = test, test.label
        self.real = test[self.test_index].cpu()
        self.train_index = _rows(self.train, _MOST_PROBED, generator)
        self.corrupted = corruptions(self.space, self.real, seed)
        extractor = None
        if not isinstance(self.space, Tokens):
            extractor = extractor_for(data, folder, device=device, seed=seed, seconds=seconds)
        self.yardstick = Yardstick(self.space, self.real, valid[other[: self.count]].cpu(), extractor)

    @property
    def extractor_name(self) -> str:
        """What samples are compared in, in words, with the hash of its weights."""
        return self.yardstick.extractor_name

    # -- the row that needs no model ---------------------------------------------------------------------------------

    def baseline(self) -> Figures:
        """The same columns with no model: a file compressor, other real data as samples, raw values as features."""
        found: Figures = {}
        if self.space.levels is not None:
            raw = self.real.to(torch.uint8 if self.space.levels <= 256 else torch.int32).numpy().tobytes()
            bits = 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / self.real.numel()
            found["bits"] = Figure(bits, count=self.count, note="the same rows compressed by xz -9e")
        found |= self.yardstick.quality(self.yardstick.other, "other real")
        if not isinstance(self.space, Tokens):
            train = self.train[self.train_index].flatten(1).float()
            found |= self.feature_quality(train, self.real.flatten(1).float(), "raw values")
            found |= self.neighbour_anomalies(lambda x: x.flatten(1).float(), train, "raw values")
        return found

    # -- features ----------------------------------------------------------------------------------------------------

    def feature_quality(self, train: Tensor, test: Tensor, layer: str) -> Figures:
        """k-NN and linear-probe accuracy of features of the probed training rows and of the held-out rows."""
        if self.train.label is None or self.test_label is None:
            return {}
        train_label = self.train.label[self.train_index].cpu()
        test_label = self.test_label[self.test_index].cpu()[: len(test)]
        if not (test_label >= 0).any() or len(train_label[train_label >= 0].unique()) < 2:
            return {}
        rows = int((test_label >= 0).sum())
        near = knn(train, train_label, test, test_label, layer=layer)
        probe = linear_probe(
            train, train_label, test, test_label, layer=layer, choose_rows=1000, iterations=100, strengths=_STRENGTHS
        )
        near_note = f"k = {near.k}, T = {near.temperature}, centred, {near.rows} training rows, {layer}"
        return {
            "knn": Figure(near.accuracy, binomial(near.accuracy, rows), rows, near_note),
            "probe": Figure(
                probe.accuracy,
                binomial(probe.accuracy, rows),
                rows,
                f"logistic regression, C = {probe.strength:g}, {probe.rows} training rows, {layer}",
            ),
        }

    # -- anomalies ---------------------------------------------------------------------------------------------------

    def anomalies(self, sound: Tensor, score: Callable[[Tensor], Tensor], note: str) -> Figures:
        """AUROC of telling each corruption of the first rows from the rows themselves, whose scores are `sound`."""
        spoilt = {name: score(x[: len(sound)]) for name, x in self.corrupted.items()}
        if any(not scores.isfinite().all() for scores in (sound, *spoilt.values())):
            # An observation judged impossible is the most anomalous there is; NaN would be no judgement at all.
            sound, spoilt = sound.nan_to_num(nan=math.inf), {k: v.nan_to_num(nan=math.inf) for k, v in spoilt.items()}
        value, error = mean_auroc(sound, spoilt, seed=self.seed)
        found = {"auroc": Figure(value, error, len(sound), note)}
        for name, scores in spoilt.items():
            found[f"auroc: {name}"] = Figure(*mean_auroc(sound, {name: scores}, seed=self.seed), len(sound), note)
        return found

    def neighbour_anomalies(
        self, features: Callable[[Tensor], Tensor], train: Tensor, layer: str, seconds: float = math.inf
    ) -> Figures:
        """The same by the distance from the features of probed training rows, on as many rows as time allows."""

        def score(x: Tensor) -> Tensor:
            return neighbour_distance(train, features(x))

        sound = in_time(score, self.real, seconds / (1 + len(self.corrupted)))
        return self.anomalies(sound, score, f"distance to the 5 nearest training rows in {layer}")


_STRENGTHS = (1e-2, 1e-1, 1.0)


def _rows(data: Dataset, most: int, generator: torch.Generator) -> Tensor:
    """Numbers of at most `most` rows (windows end to end, for a stream), in random order."""
    every = torch.cat(list(data.ordered(2**20)))
    return every[torch.randperm(len(every), generator=generator)[:most]]


# -- one model ------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What was found of one model.

    Attributes:
        figures: by column.
        samples: some of what it drew, for the page.
        troubles: one sentence for each thing that could not be measured.
    """

    figures: Figures = field(default_factory=dict)
    samples: Tensor | None = None
    troubles: list[str] = field(default_factory=list)


@torch.no_grad()
def measure(model: Model, judge: Judge, seconds: float) -> Measured:
    """Measure every capability of `model`, in about `seconds`; what fails leaves a sentence and the rest stands."""
    found = Measured()
    learned = model.state_dict().values() if model.learns_exactly() else model.parameters()
    found.figures["parameters"] = Figure(sum(tensor.numel() for tensor in learned))
    density, end = isinstance(model, HasDensity), time.monotonic() + seconds
    parts: list[tuple[str, Callable[[], None]]] = []
    if density:
        parts.append(("density", lambda: _density(model, judge, seconds / 4, found)))
        parts.append(("anomalies", lambda: _density_anomalies(model, judge, seconds / 4, found)))
    elif isinstance(model, HasEnergy):
        parts.append(("anomalies", lambda: _energy_anomalies(model, judge, seconds / 4, found)))
    if isinstance(model, Embeds):
        parts.append(("features", lambda: _features(model, judge, found)))
        if not density and not isinstance(model, HasEnergy):
            parts.append(("anomalies", lambda: _feature_anomalies(model, judge, seconds / 4, found)))
    if isinstance(model, Samples):
        # Last, with all that is left: the more is drawn, the surer the judgement.
        parts.append(("samples", lambda: _samples(model, judge, max(seconds / 4, end - time.monotonic()), found)))
    for what, part in parts:
        if what == "anomalies" and density and "bits" not in found.figures:
            continue  # its scores would fail, or take as long, as the density did
        reseed(judge.seed, "measure", what)
        try:
            with _given_up_after(max(_LEAST_SECONDS, _PATIENCE * seconds)):
                part()
        except Exception as error:
            found.troubles.append(f"{what} could not be measured: {sentence(error)}")
    return found


@contextlib.contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Raise `TrainingError` in this block once it has taken so long, where there are alarms: not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: object) -> None:
        raise TrainingError(f"it takes more than {seconds:.0f} seconds: allow more minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sentence(error: BaseException) -> str:
    """An exception as one line; tacit's own messages are written to be that."""
    from tacit.errors import TacitError

    text = " ".join(str(error).split())
    if isinstance(error, TacitError):
        return text
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _density(model: Any, judge: Judge, seconds: float, found: Measured) -> None:
    found_nats = in_time(lambda x: nats(model, x), judge.real, seconds)
    dimensions, count = judge.space.dimensions, len(found_nats)
    bits = found_nats / (dimensions * math.log(2))
    note = KIND[model.density]
    if not bits.isfinite().all():
        found.troubles.append(
            f"{int((~bits.isfinite()).sum())} of {count} held-out rows have no finite log-probability"
        )
    found.figures["bits"] = mean(bits, note)
    if isinstance(judge.space, Vectors):
        found.figures["nats"] = mean(found_nats, note)


def _density_anomalies(model: Any, judge: Judge, seconds: float, found: Measured) -> None:
    _score_anomalies(lambda x: nats(model, x), judge, seconds, found, f"−log p(x), {KIND[model.density]}")


def _energy_anomalies(model: Any, judge: Judge, seconds: float, found: Measured) -> None:
    _score_anomalies(lambda x: model.energy(x.to(model.device)), judge, seconds, found, "its energy")


def _score_anomalies(
    score_of: Callable[[Tensor], Tensor], judge: Judge, seconds: float, found: Measured, note: str
) -> None:
    def score(x: Tensor) -> Tensor:
        return torch.cat([score_of(part).double().cpu() for part in x.split(256)])

    # As many rows as time allows for them and all their corruptions.
    sound = in_time(score, judge.real, seconds / (1 + len(judge.corrupted)))
    found.figures |= judge.anomalies(sound, score, note)


def _samples(model: Any, judge: Judge, seconds: float, found: Measured) -> None:
    samples, rate = draw_in_time(model, judge.count, seconds)
    judge.space.check(samples)
    found.figures["samples_per_second"] = rate
    found.samples = samples[:_SHOWN_ROWS] if isinstance(judge.space, Vectors) else samples[:_SHOWN]
    if not samples.isfinite().all():
        raise TrainingError("some of its samples are not finite")
    found.figures |= judge.yardstick.quality(samples)
    if len(samples) < LEAST_ROWS:
        found.troubles.append(f"only {len(samples)} samples could be drawn in the time, too few to judge them")


def _features(model: Any, judge: Judge, found: Measured) -> None:
    if judge.train.label is None:
        return
    train, test = _embedded(model, judge.train[judge.train_index]), _embedded(model, judge.real)
    found.figures |= judge.feature_quality(train, test, f"{train.shape[1]} features")


def _feature_anomalies(model: Any, judge: Judge, seconds: float, found: Measured) -> None:
    train = _embedded(model, judge.train[judge.train_index])
    layer = f"its {train.shape[1]} features"
    found.figures |= judge.neighbour_anomalies(lambda x: _embedded(model, x), train, layer, seconds)


def _embedded(model: Any, x: Tensor) -> Tensor:
    """Features of observations, (rows, features), float32 in memory."""
    features = torch.cat([model.embed(part.to(model.device)).float().cpu() for part in x.split(256)])
    if not features.isfinite().all():
        raise TrainingError("some of its features are not finite")
    return features
