"""Measure a trained model on data it has not seen: likelihood, samples, features and classes in one report."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from tacit.capabilities import Embeds, Encodes, HasDensity, Samples, has
from tacit.data import Dataset, load
from tacit.errors import CapabilityError, check_at_least
from tacit.metrics import probes
from tacit.metrics.calibration import Calibration, calibration
from tacit.metrics.disentanglement import disentanglement
from tacit.model import Model
from tacit.tasks.embed import features
from tacit.tasks.evaluation import Evaluation, tables
from tacit.tasks.evaluation_page import write_page
from tacit.tasks.likelihood import Likelihood, likelihood
from tacit.tasks.measure import sentence
from tacit.tasks.parts import Parts, Split, parts_of
from tacit.tasks.run import Run, in_batches
from tacit.tasks.samples import SampleQuality, Says, sample_quality
from tacit.training import checkpoint
from tacit.training.plan import reseed

# Logistic regression on more rows takes minutes and moves the accuracy by tenths of a point.
_PROBE_ROWS = 20_000
# Entries of a code that are asked which factors they say; in a code as large as the data each pixel would be.
_MOST_CODES = 256
# The time that the likelihood may take, unless a number of rows is asked for.
_SECONDS = 300.0


def evaluate(
    run: Path,
    data: str | Dataset | None = None,
    *,
    split: Split | None = None,
    rows: int | None = None,
    samples: int | None = None,
    importance: int = 64,
    json: bool = False,
) -> Evaluation:
    """One report of a run: likelihood, samples, features and classes on held-out data, as far as the model has them.

    It is printed, and written to RUN/evaluation-DATA as evaluation.json and, with pictures, index.html.

    Args:
        run: the run folder.
        data: a path, a name or a `Dataset`; by default the data the run was fitted on.
        split: the part of the data to measure on: test, valid, train, or all; by default test, and all of other data
            that brings no test part.
        rows: measure the likelihood of this many rows; by default of all, or as many as five minutes allow.
        samples: draw so many and hold them against as many real rows, 0 for none; by default 2000, or as many as five
            minutes allow.
        importance: tighten the bound of models that can by so many importance weights a row; 1 takes it as it is.
        json: print JSON instead of tables.

    Raises:
        CapabilityError: there is nothing about this model that evaluate can measure.
        SpaceError: the data is of another kind or shape than the model's.
        DataError: the data has no such part, or numbers that are not finite.
        TacitError: rows, samples or importance is too small a number.
    """
    found = Run(run)
    given = load(data) if isinstance(data, str) else data
    with _Display() as display:
        display.says("reading", 0, 0)
        parts = parts_of(found, given, split)
        measured = _measure(found, parts, rows, samples, importance, display.says)
    part = [] if measured.split == "test" else [measured.split]
    folder = found.path / "-".join(["evaluation", measured.data.replace("/", "-"), *part])
    folder.mkdir(parents=True, exist_ok=True)
    measured = replace(measured, path=folder / "index.html")
    checkpoint.write_json(folder / "evaluation.json", measured.to_dict())
    write_page(measured, found, parts)
    console = Console()
    if json:
        console.print_json(data=measured.to_dict())
        return measured
    for table in tables(measured):
        console.print(table)
    for said in measured.left_out:
        console.print(Text(said))
    console.print(Text(f"The page with pictures: {measured.path}"))
    return measured


def measure(
    run: Run,
    on: Dataset | None = None,
    *,
    split: Split | None = None,
    rows: int | None = None,
    samples: int | None = None,
    importance: int = 64,
    says: Says = lambda what, done, total: None,
) -> Evaluation:
    """`evaluate` from Python, without files; `says` hears what is being measured, how much is done and of how much.

    Raises:
        CapabilityError: there is nothing about this model that evaluate can measure.
        SpaceError: the data is of another kind or shape than the model's.
        DataError: the data has no such part, or numbers that are not finite.
        TacitError: rows, samples or importance is too small a number.
    """
    return _measure(run, parts_of(run, on, split), rows, samples, importance, says)


def _measure(run: Run, parts: Parts, rows: int | None, samples: int | None, importance: int, says: Says) -> Evaluation:
    check_at_least(1, importance=importance, rows=1 if rows is None else rows)
    check_at_least(0, samples=0 if samples is None else samples)
    model, part, train = run.model.eval(), parts.rows, parts.train
    found: dict[str, Any] = {}
    left_out: list[str] = []

    def attempt(what: str, work: Callable[[], Any]) -> None:
        says(what, 0, 0)
        reseed(0, "evaluate", what)
        try:
            found[what] = work()
        except Exception as error:
            # What fails leaves a sentence, and the rest stands.
            left_out.append(f"The {what} could not be measured: {sentence(error)}.")

    def density() -> Likelihood:
        seconds = _SECONDS if rows is None else math.inf
        said = functools.partial(says, "likelihood")
        return likelihood(model, part, rows, importance=importance, seconds=seconds, said=said)

    def drawn() -> SampleQuality | None:
        quality, without = sample_quality(run, parts, samples, says)
        left_out.extend(without)
        return quality

    if isinstance(model, HasDensity):
        attempt("likelihood", density)
    if isinstance(model, Samples) and samples != 0:
        attempt("samples", drawn)
    if has(model, "classify") and part.label is not None:
        attempt("calibration", lambda: _calibration(model, part))
    if isinstance(model, Embeds) and part.label is not None and train is not None and train.label is not None:
        if parts.learned:
            left_out.append("Probes are left out: they would be tested on rows that they learn from.")
        else:
            attempt("probes", lambda: _probes(model, train, part))
    if isinstance(model, Encodes) and part.factors is not None:
        attempt("disentanglement", lambda: _disentanglement(model, part))
    measured = {what: value for what, value in found.items() if value is not None}
    if not measured:
        why = " ".join(left_out) or f"it has no density, and {part.name} has no labels to probe its features with."
        raise CapabilityError(
            f"nothing about {run.record['model']} can be measured on {part.name}: {why.rstrip('.')}; give other data, "
            "or look at `tacit sample`"
        )
    return Evaluation(
        run.record["model"],
        part.name,
        parts.split,
        sum(map(len, part.ordered(2**20))),
        accuracy=measured["calibration"].accuracy if "calibration" in measured else None,
        left_out=tuple(left_out),
        **measured,
    )


def _calibration(model: Any, data: Dataset) -> Calibration:
    label = cast(Tensor, data.label).cpu()
    return calibration(torch.cat([model.classify(x).cpu() for x in in_batches(data, 512, model.device)]), label)


def _probes(model: Model, train: Dataset, test: Dataset) -> dict[str, Any]:
    """k-NN and linear probe of the model's features, and of the raw data beside them."""
    labels = cast(Tensor, train.label), cast(Tensor, test.label)
    learned = features(model, train), features(model, test)
    raw = train.observations().flatten(1).float(), test.observations().flatten(1).float()
    found: dict[str, Any] = {}
    for layer, (x, held_out) in {"embed": learned, "raw data": raw}.items():
        found[layer] = {
            "neighbours": asdict(probes.knn(x, labels[0], held_out, labels[1], layer=layer)),
            "linear": asdict(probes.linear_probe(x, labels[0], held_out, labels[1], layer=layer, most=_PROBE_ROWS)),
        }
    return found


def _disentanglement(model: Any, data: Dataset) -> dict[str, Any] | None:
    one = data[torch.arange(1)].to(model.device)
    if model.encode(one).numel() > _MOST_CODES:
        return None
    codes = torch.cat([model.encode(x).flatten(1) for x in in_batches(data, 512, model.device)])
    return asdict(disentanglement(codes, cast(Tensor, data.factors)))


class _Display(AbstractContextManager["_Display"]):
    """One line of progress on standard error: what is being measured, how far it is and how long it will take."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.what, self.task = "", self.bar.add_task("", total=None, count="")

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def says(self, what: str, done: int, total: int) -> None:
        """What is being measured, and how much of it is done; a `total` of 0 if that cannot be said."""
        if what != self.what:
            self.what = what
            self.bar.reset(self.task, description=what)
        count = f"{done:,} of {total:,}" if total else ""
        self.bar.update(self.task, completed=done, total=total or None, count=count)
