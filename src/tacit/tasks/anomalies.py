"""Find what does not belong: rank observations by how strange they are, and say which are surely anomalies."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tacit.data import Dataset, load
from tacit.errors import DataError, TacitError
from tacit.metrics.conformal import check_share, fewest_discoveries
from tacit.spaces import Images, Tokens, Vectors, Video
from tacit.tasks.detector import MEANINGS, Detector, decide, parts
from tacit.tasks.embed import check_space
from tacit.tasks.run import Run

# What labels of anomalies, and of others, are called.
_STRANGE = ("1", "1.0", "anomaly", "anomalous", "outlier", "abnormal", "true", "yes")
_SOUND = ("0", "0.0", "normal", "inlier", "false", "no")
# Strangest rows whose columns are blamed in the file, where more are called anomalies than are shown.
_MOST_BLAMED = 100


@dataclass(frozen=True)
class Accuracy:
    """How well a score tells rows labelled as anomalies from the others, by scikit-learn's figures.

    Attributes:
        auroc: area under the receiver's operating curve.
        average_precision: the same of precision and recall, which chance brings to the share of anomalies.
    """

    auroc: float
    average_precision: float


@dataclass(frozen=True)
class Anomalies:
    """What was found.

    Attributes:
        data: the observations, of which `index` (rows,) are those that were looked at.
        index: their row numbers; of a text, the symbol at which each window starts.
        score: the name of the score that decides.
        scores: every score that applies, (rows,) each, higher is stranger.
        p_values: of every score, (rows,) each.
        flagged: which rows are called anomalies, (rows,) bool.
        rate: the share of false alarms among the alarms that is held; None where `contamination` was given.
        contamination: the share of rows that are called anomalies.
        calibration: how many held-out rows the p-values rest on.
        fewest: how many anomalies there must be for any to be told at this rate.
        members: the scores whose mean the default one is.
        order: row numbers within `index`, the strangest first.
        blame: (strangest rows, *shape), in that order: how much of the score each entry is to blame for.
        labels: (rows,) bool, whether the data says that a row is an anomaly; None where it does not.
        accuracy: of every score, where there are labels of both kinds.
    """

    data: Dataset
    index: Tensor
    score: str
    scores: dict[str, Tensor]
    p_values: dict[str, Tensor]
    flagged: Tensor
    rate: float | None
    contamination: float | None
    calibration: int
    fewest: int
    members: tuple[str, ...]
    order: Tensor
    blame: Tensor
    labels: Tensor | None = None
    accuracy: dict[str, Accuracy] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """In one sentence, how many were flagged by which rule, or that nothing was found."""
        count, rows = int(self.flagged.sum()), len(self.index)
        if self.contamination is not None:
            return (
                f"the strangest {count:,} of {rows:,} rows are called anomalies, as a contamination of "
                f"{self.contamination:g} was asked for"
            )
        at = f"at a false discovery rate of {self.rate:.3g}"
        if count:
            false = math.floor(count * (self.rate or 0))
            expected = "less than one of them is" if false < 1 else f"at most {false} of them are"
            return f"{count:,} of {rows:,} rows are anomalies {at}: {expected} expected to be a false alarm"
        said = f"nothing found: none of {rows:,} rows is an anomaly {at}"
        least = 1 / (self.calibration + 1)
        strangest = int((self.p_values[self.score] <= least * (1 + 1e-9)).sum())
        if 0 < strangest < self.fewest:
            said += (
                f", though {strangest:,} are as strange as {self.calibration:,} held-out rows can show, which tell "
                f"{self.fewest:,} or more among so many: the ranking stands"
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record, rows in order of strangeness."""
        order = self.order.tolist()
        return {
            "data": self.data.name,
            "rows": len(self.index),
            "verdict": self.verdict,
            "score": self.score,
            "default is the mean of": list(self.members),
            "rate": self.rate,
            "contamination": self.contamination,
            "calibration rows": self.calibration,
            "flagged": int(self.flagged.sum()),
            "accuracy": {name: vars(found) for name, found in self.accuracy.items()},
            "strangest": [self._row(place, i) for place, i in enumerate(order[: len(self.blame)])],
        }

    def _row(self, place: int, i: int) -> dict[str, Any]:
        finite = {name: float(s[i]) if s[i].isfinite() else None for name, s in self.scores.items()}
        return {
            "row": self.row_name(i),
            "scores": finite,
            "p": float(self.p_values[self.score][i]),
            "flagged": bool(self.flagged[i]),
            "blame": self.blamed(place),
        }

    def row_name(self, i: int) -> str:
        """What the i-th row is called: its file where it has one, else its number, counted from 0."""
        row = int(self.index[i])
        return self.data.files[row] if self.data.files else str(row)

    def blamed(self, place: int) -> str:
        """What is most to blame for the place-th strangest row; nothing where that was not asked."""
        if place >= len(self.blame) or not bool((self.blame[place] > 0).any()):
            return ""
        space, blame = self.data.space, self.blame[place]
        worst = int(blame.flatten().argmax())
        if isinstance(space, Vectors):
            return self.data.columns[worst] if self.data.columns else f"column {worst}"
        if isinstance(space, Tokens):
            symbol = int(self.data[self.index[self.order[place]]][worst])
            return (
                f"{self.data.vocabulary[symbol]!r} at {worst}"
                if self.data.vocabulary
                else f"symbol {symbol} at {worst}"
            )
        if isinstance(space, Images | Video):
            same = (parts(space) == parts(space).flatten()[worst]).flatten(0, -3).any(0).nonzero()
            (top, left), (bottom, right) = same.min(0).values.tolist(), same.max(0).values.tolist()
            return f"rows {top}-{bottom}, columns {left}-{right}"
        return f"entry {worst}"


def anomalies(
    run: Path,
    data: str | Dataset | None = None,
    *,
    rate: float | None = None,
    contamination: float | None = None,
    score: str = "default",
    background: Path | None = None,
    ensemble: tuple[Path, ...] = (),
    rows: int | None = None,
    count: int = 24,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> Anomalies:
    """Rank rows by how strange they are, say which are anomalies, and write a table and a page of the strangest.

    A row's p-value is its rank among held-out rows of the data that the model was fitted on. By default as many rows
    are called anomalies as keep the share of false alarms among them at 5 %, which may be none.

    Args:
        run: the run folder.
        data: a path, a name or a `Dataset`; by default the test part of the data the run was fitted on.
        rate: the share of false alarms among the alarms; 0.05 by default.
        contamination: call this share of rows anomalies instead, whatever they are.
        score: which score decides; every report shows all that apply.
        background: a run of the same model fitted on perturbed data, for the score "ratio".
        ensemble: further runs on the same data, for the score "waic".
        rows: look at this many rows at most, evenly spaced.
        count: how many of the strangest rows to show.
        seed: of the forest, and of the noise that bounds are estimated from.
        out: the folder to write to; RUN/anomalies-DATA by default.
        json: print JSON instead of a table.

    Raises:
        CapabilityError: the score does not apply to the model.
        DataError: the data has numbers that are not finite, or symbols that the model has never read.
        SpaceError: the data is of another kind or shape than the model's.
        TacitError: both rate and contamination are given, or one is not between 0 and 1.
    """
    from tacit.tasks.anomalies_page import write_page, write_picture

    found = Run(run)
    given = load(data) if isinstance(data, str) else data
    measured = find(
        found,
        given,
        rate=rate,
        contamination=contamination,
        score=score,
        background=None if background is None else Run(background),
        ensemble=tuple(map(Run, ensemble)),
        rows=rows,
        count=count,
        seed=seed,
    )
    folder = out or found.path / f"anomalies-{measured.data.name.replace('/', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(measured, folder / "anomalies.csv")
    page = write_page(measured, found, folder / "anomalies.html")
    if isinstance(found.space, Images):
        write_picture(measured, folder / "anomalies.png")
    console = Console()
    if json:
        console.print_json(data={**measured.to_dict(), "page": str(page)})
    else:
        console.print(_table(measured, found.record["model"]))
        console.print(f"{measured.verdict[0].upper()}{measured.verdict[1:]}.", highlight=False)
        print(page)
    return measured


def find(
    run: Run,
    on: Dataset | None = None,
    *,
    rate: float | None = None,
    contamination: float | None = None,
    score: str = "default",
    background: Run | None = None,
    ensemble: tuple[Run, ...] = (),
    rows: int | None = None,
    count: int = 24,
    seed: int = 0,
) -> Anomalies:
    """`anomalies` from Python, which writes nothing: of the test part of the run's own data, or of all of `on`.

    Raises:
        TacitError: as in `anomalies`.
    """
    if rate is not None and contamination is not None:
        raise TacitError(f"rate is {rate} and contamination is {contamination}: give one of them")
    rate = 0.05 if rate is None and contamination is None else rate
    check_share(**{k: v for k, v in {"rate": rate, "contamination": contamination}.items() if v is not None})
    if count < 1 or (rows is not None and rows < 1):
        raise TacitError(f"count is {count} and rows is {rows}: both must be above 0")
    data = _as_read(run, run.data().parts()[2] if on is None else on)
    check_space(run.model, data)
    labels = _labels(data)
    detector = Detector.of(run, score=score, background=background, ensemble=ensemble, seed=seed)
    index = torch.cat(list(data.ordered(2**20)))
    if rows is not None and rows < len(index):
        index = index[torch.arange(rows) * len(index) // rows]
    x = data[index]
    scores = detector.scores(x)
    p_values = {name: detector.p_values_of(name, s, x) for name, s in scores.items()}
    flagged = decide(scores[score], p_values[score], rate, contamination)
    order = scores[score].argsort(descending=True, stable=True)
    shown = min(len(order), max(count, min(int(flagged.sum()), _MOST_BLAMED)))
    found = Anomalies(
        data=data,
        index=index,
        score=score,
        scores=scores,
        p_values=p_values,
        flagged=flagged,
        rate=rate,
        contamination=contamination,
        calibration=len(detector.held_out),
        fewest=1 if rate is None else fewest_discoveries(len(index), len(detector.held_out), rate),
        members=detector.default_of(),
        order=order,
        blame=detector.blame(x[order[:shown]]),
    )
    if labels is None:
        return found
    truth = labels[index] if len(labels) > int(index.max()) else labels
    return replace(found, labels=truth, accuracy=_accuracy(truth, scores))


def _as_read(run: Run, data: Dataset) -> Dataset:
    """The data as the model reads it: another text with the symbols' numbers and the windows that the run has.

    Raises:
        DataError: the text has a symbol that the model has never read.
    """
    if not isinstance(run.space, Tokens) or not isinstance(data.space, Tokens) or not data.vocabulary:
        return data
    number = {symbol: i for i, symbol in enumerate(run.vocabulary)}
    unread = [symbol for symbol in data.vocabulary if symbol not in number]
    if unread:
        raise DataError(f"{data.name} has {unread[0]!r}, which the model has never read and cannot score: leave it out")
    x = torch.tensor([number[symbol] for symbol in data.vocabulary])[data.x.long()]
    if len(x) < run.space.length:
        raise DataError(f"{data.name} has {len(x)} symbols, and the model's windows have {run.space.length}: give more")
    return replace(data, x=x, space=run.space, vocabulary=run.vocabulary, official={})


def _labels(data: Dataset) -> Tensor | None:
    """Whether each row is an anomaly, (rows,) bool, where the data's labels are of at most two kinds and say so.

    Labels 0 and 1 do, and so do words of which one is in `_STRANGE`; others say something else.
    """
    if data.label is None or data.classes > 2 or bool((data.label < 0).any()):
        return None
    if not data.class_names:
        return data.label == 1
    named = [i for i, name in enumerate(data.class_names) if name.lower() in _STRANGE]
    sound = [i for i, name in enumerate(data.class_names) if name.lower() in _SOUND]
    if len(named) + len(sound) != len(data.class_names) or len(named) > 1:
        return None
    return data.label == named[0] if named else torch.zeros(len(data.label), dtype=torch.bool)


def _accuracy(labels: Tensor, scores: dict[str, Tensor]) -> dict[str, Accuracy]:
    """Of every score; nothing where labels are of one kind alone."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if labels.all() or not labels.any():
        return {}
    truth = labels.numpy()
    found = {}
    for name, score in scores.items():
        finite = _finite(score).numpy()
        found[name] = Accuracy(float(roc_auc_score(truth, finite)), float(average_precision_score(truth, finite)))
    return found


def _finite(score: Tensor) -> Tensor:
    """The ranks, for figures that go by nothing else and take no infinities."""
    return score.unique(return_inverse=True)[1]


def _write_csv(found: Anomalies, path: Path) -> None:
    """All rows, the strangest first."""
    p = found.p_values[found.score]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        labelled = [] if found.labels is None else ["label"]
        writer.writerow(["row", *found.scores, "p_value", "flagged", "blame", *labelled])
        for place, i in enumerate(found.order.tolist()):
            values = [f"{float(s[i]):.7g}" for s in found.scores.values()]
            label = [] if found.labels is None else [int(found.labels[i])]
            row = [found.row_name(i), *values, f"{float(p[i]):.6g}", int(found.flagged[i]), found.blamed(place)]
            writer.writerow([*row, *label])


def _table(found: Anomalies, model: str) -> Table:
    table = Table(title=f"{model} on {found.data.name}, {len(found.index):,} rows")
    for heading in ("score", "flagged", *(("AUROC", "AP") if found.accuracy else ()), "what it is"):
        table.add_column(heading, justify="left" if heading in ("score", "what it is") else "right")
    for name, score in found.scores.items():
        called = decide(score, found.p_values[name], found.rate, found.contamination)
        accuracy = found.accuracy.get(name)
        figures = [] if accuracy is None else [f"{accuracy.auroc:.3f}", f"{accuracy.average_precision:.3f}"]
        chosen = "bold" if name == found.score else ""
        table.add_row(name, f"{int(called.sum()):,}", *figures, meaning(found, name), style=chosen)
    if note := about_labels(found):
        table.caption = note
    return table


def about_labels(found: Anomalies) -> str:
    """Why there are labels and no AUROC; nothing where there is one, or no labels."""
    name = found.data.name
    if found.accuracy or found.data.label is None:
        return ""
    if found.labels is None:
        return f"The labels of {name} are not 0 and 1, or normal and anomaly: they say nothing of anomalies."
    kind = "anomalies" if bool(found.labels.any()) else "no anomalies"
    return f"The labels of {name} say that all rows are {kind}: AUROC takes some of each."


def meaning(found: Anomalies, name: str) -> str:
    """What a score is, in words."""
    if name == "default":
        if not found.members:
            return "the mean of the two highest of three distances to training rows and an isolation forest"
        if len(found.members) == 1:
            return f"{found.members[0]}, counted in the tail of the training rows' own"
        return f"the mean of {' and '.join(found.members)}, each counted in the tail of the training rows' own"
    return MEANINGS[name]
