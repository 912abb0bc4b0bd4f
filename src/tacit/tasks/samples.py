"""How good a run's samples are: near to real data, of all its classes, and not copied from what it learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import TacitError, TrainingError
from tacit.metrics.copying import copied_windows, copies, data_copying
from tacit.metrics.extractor import ClassifierNet, Extractor, extractor_for, kept_as
from tacit.metrics.modes import modes
from tacit.metrics.transport import wasserstein
from tacit.spaces import Tokens, Vectors
from tacit.tasks.parts import Parts, some_rows
from tacit.tasks.quality import LEAST_ROWS, QUALITY, Figure, Figures, Yardstick, binomial, draw_in_time
from tacit.tasks.run import Run
from tacit.training.plan import reseed

Says = Callable[[str, int, int], None]

# Samples drawn, and real rows they are held against, unless a number is asked for; and the time this may then take.
_MOST, _SECONDS = 2000, 300.0
# The time an extractor may train, long enough for all its steps: cut short it would depend on the machine.
_EXTRACTOR_SECONDS = 3600.0
# Training rows among which the nearest to a sample is looked for, and those that a k-NN classifier of tables learns.
_MOST_TRAIN, _MOST_NEIGHBOURS = 100_000, 20_000
# Samples that are shown: beside real ones, and with their nearest training rows.
_SHOWN, _SHOWN_ROWS, _PAIRS = 64, 1000, 10


@dataclass(frozen=True)
class SampleQuality:
    """How near drawn observations are to real ones.

    Attributes:
        extractor: the features they are compared in, in words, with the hash of their weights.
        figures: by the columns of `tacit.tasks.table`.
        floor: the same of other real rows taken for samples: what no model can be told from.
        classes: of the data's classes, as a classifier tells them, the shares among real and among drawn ones.
        drawn, real: some of each, to be shown.
        pairs: (2, pairs, *shape): the samples nearest to training rows, and those rows; None where that is not known.
    """

    extractor: str
    figures: Figures
    floor: Figures
    classes: dict[str, tuple[float, float]] = field(default_factory=dict)
    drawn: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    real: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    pairs: Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        figures, floor = ({key: f.to_dict() for key, f in side.items()} for side in (self.figures, self.floor))
        return {"extractor": self.extractor, "figures": figures, "floor": floor, "classes": self.classes}


def sample_quality(run: Run, parts: Parts, count: int | None, says: Says) -> tuple[SampleQuality | None, list[str]]:
    """What can be said of a run's samples, and a sentence for each thing that cannot.

    Args:
        run: of a model that samples.
        parts: the rows they are held against.
        count: how many to draw, and how many real rows to take at most; None takes what there is, up to 2000, and
            draws as many, or what five minutes allow.
        says: hears what is being done, how much of it is done, and of how much.
    """
    space = run.model.space
    if space.kind not in QUALITY:
        return None, [f"Samples are not judged: no features are defined for {space.kind}."]
    real, other = _real(parts, count or _MOST)
    if min(len(real), len(other)) < LEAST_ROWS:
        return None, [
            f"Samples are not judged: {parts.rows.name} gives {len(real)} rows to hold them against and {len(other)} "
            f"for the floor, and fewer than {LEAST_ROWS} of each say nothing."
        ]
    most = count or len(real)
    drawn, rate = _drawn(run, most, math.inf if count else _SECONDS, says)
    if len(drawn) < LEAST_ROWS:
        return None, [f"Samples are not judged: {len(drawn)} are too few, draw {LEAST_ROWS} or more."]
    says("extractor", 0, 0)
    extractor = None if isinstance(space, Tokens) else _extractor(run, parts.ruler)
    says("sample quality", 0, 0)
    yardstick = Yardstick(space, real, other, extractor)
    figures, floor = yardstick.quality(drawn), yardstick.quality(other, "other real")
    left_out: list[str] = []
    if isinstance(space, Vectors):
        try:
            figures |= _transport(yardstick, drawn)
            floor |= _transport(yardstick, other)
        except TacitError as error:
            left_out.append(f"Left out: {error}.")
    shares: dict[str, tuple[float, float]] = {}
    told = None if extractor is None else _teller(extractor, parts)
    if told is not None:
        floor |= _classes(yardstick, parts.ruler, other, *told)[0]
        of_drawn, shares = _classes(yardstick, parts.ruler, drawn, *told)
        figures |= of_drawn
    pairs = None
    if parts.train is None:
        left_out.append(
            "Whether samples are copies is left out: the data that the run was fitted on was given from Python and is "
            "not given again."
        )
    else:
        says("nearest training rows", 0, 0)
        test = _CopyTest(yardstick, parts)
        fresh = cast(Dataset, parts.fresh)
        floor |= test.of(fresh[some_rows(fresh, most, "other")].cpu())[0]
        of_drawn, pairs = test.of(drawn)
        figures |= of_drawn
    figures["samples_per_second"] = rate
    shown = _SHOWN_ROWS if isinstance(space, Vectors) else _SHOWN
    found = SampleQuality(yardstick.extractor_name, figures, floor, shares, drawn[:shown], real[:shown], pairs)
    return found, left_out


def _real(parts: Parts, most: int) -> tuple[Tensor, Tensor]:
    """Real rows to hold samples against, and as many others for the floor."""
    if parts.other is not None:
        return tuple(part[some_rows(part, most, "real")].cpu() for part in (parts.rows, parts.other))  # type: ignore[return-value]
    index = some_rows(parts.rows, 2 * most, "real")
    half = len(index) // 2
    return parts.rows[index[:half]].cpu(), parts.rows[index[half : 2 * half]].cpu()


@torch.no_grad()
def _drawn(run: Run, count: int, seconds: float, says: Says) -> tuple[Tensor, Figure]:
    space = run.model.space
    says("samples", 0, count)
    reseed(0, "sample")
    drawn, rate = draw_in_time(run.model, count, seconds, lambda done: says("samples", done, count))
    space.check(drawn)
    if wrong := int((~drawn.flatten(1).isfinite()).any(1).sum()):
        raise TrainingError(f"{wrong} of {len(drawn)} samples are not finite")
    return drawn, rate


def _extractor(run: Run, ruler: Dataset) -> Extractor:
    """The extractor that `compare` has kept near the run, or else one of the run's own."""
    name = kept_as(ruler.parts()[0])
    folders = (run.path, run.path.parent, run.path.parent.parent)
    folder = next((folder for folder in folders if (folder / name).exists()), run.path)
    return extractor_for(ruler, folder, device=str(run.model.device), seconds=_EXTRACTOR_SECONDS)


def _transport(yardstick: Yardstick, x: Tensor) -> Figures:
    value, error = wasserstein(yardstick.real_features, yardstick.features(x))
    return {"transport": Figure(value, error, len(x), f"{len(yardstick.real)} real; error over both sides")}


# -- classes -----------------------------------------------------------------------------------------------------------


def _teller(extractor: Extractor, parts: Parts) -> tuple[Callable[[Tensor], Tensor], str] | None:
    """What tells the classes of observations, and in words what it is; None where the data has no classes."""
    if isinstance(extractor, ClassifierNet):
        return extractor.labels, f"told by the extractor's classifier, {float(extractor.accuracy):.1%} right"
    train = parts.ruler.parts()[0]
    known = torch.empty(0) if train.label is None else (train.label.cpu() >= 0).nonzero().squeeze(1)
    if train.label is None or len(known) < LEAST_ROWS or train.classes < 2:
        return None
    from sklearn.neighbors import KNeighborsClassifier

    some = known[torch.linspace(0, len(known) - 1, min(len(known), _MOST_NEIGHBOURS)).long()]
    nearby = KNeighborsClassifier(5).fit(extractor(train[some].cpu()).numpy(), train.label.cpu()[some].numpy())

    def labels(x: Tensor) -> Tensor:
        return torch.from_numpy(nearby.predict(extractor(x).numpy())).long()

    note = "told by 5 nearest neighbours among training rows"
    valid = parts.ruler.parts()[1]
    if valid.label is not None and (valid.label >= 0).any():
        at = (valid.label.cpu() >= 0).nonzero().squeeze(1)[:_MOST]
        note += f", {float((labels(valid[at].cpu()) == valid.label.cpu()[at]).double().mean()):.1%} right"
    return labels, note


def _classes(
    yardstick: Yardstick, ruler: Dataset, x: Tensor, labels: Callable[[Tensor], Tensor], note: str
) -> tuple[Figures, dict[str, tuple[float, float]]]:
    """Which classes are among `x`; and by name the shares of each among real rows and among these."""
    found = modes(labels(yardstick.real), labels(x), ruler.classes)
    names = ruler.class_names or tuple(map(str, range(ruler.classes)))
    figures = {
        "classes": Figure(found.reached, None, len(x), f"of {found.classes}; {note}"),
        "class_divergence": Figure(found.divergence, found.error, len(x), note),
    }
    return figures, dict(zip(names, zip(found.real, found.drawn, strict=True), strict=True))


# -- copies ------------------------------------------------------------------------------------------------------------


class _CopyTest:
    """Whether observations are copies of training rows, whose features are computed once."""

    def __init__(self, yardstick: Yardstick, parts: Parts):
        self.yardstick = yardstick
        self.train, held_out = cast(Dataset, parts.train), cast(Dataset, parts.held_out)
        if not isinstance(self.train.space, Tokens):
            self.index = some_rows(self.train, _MOST_TRAIN, "train")
            self.known = torch.cat([yardstick.features(self.train[i].cpu()) for i in self.index.split(4096)])
            self.held = yardstick.features(held_out[some_rows(held_out, _MOST, "held out")].cpu())

    def of(self, x: Tensor) -> tuple[Figures, Tensor | None]:
        """The figures of `x`; and the rows of it nearest to training rows, with them, (2, pairs, *shape)."""
        if isinstance(self.train.space, Tokens):
            share = float(copied_windows(self.train.x, x).double().mean())
            note = f"whole windows, anywhere in {len(self.train.x)} symbols"
            return {"copies": Figure(share, binomial(share, len(x)), len(x), note)}, None
        found = data_copying(self.known, self.held, self.yardstick.features(x))
        share = float(copies((self.train[i] for i in self.train.ordered(4096)), x).double().mean())
        note = f"{len(self.index)} training and {len(self.held)} held-out rows"
        figures = {
            "nearer": Figure(found.nearer, found.nearer_error, len(x), f"{note}; error if nothing is copied"),
            "copying": Figure(found.score, found.score_error, len(x), f"{note}, {found.cells} cells; likewise"),
            "copies": Figure(share, binomial(share, len(x)), len(x), f"in all {len(self.train)} training rows"),
        }
        closest = found.distance.argsort()[:_PAIRS]
        return figures, torch.stack([x[closest], self.train[self.index[found.which[closest]]].cpu()])
