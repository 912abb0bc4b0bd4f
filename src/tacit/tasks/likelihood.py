"""The likelihood of held-out rows: of which kind it is, how sure, whose, and whether float32 was good enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import t
from torch import Tensor

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.metrics.double import in_float64
from tacit.model import Model
from tacit.spaces import Space
from tacit.tasks.quality import finite, in_time
from tacit.training.plan import generator_of, reseed

KIND = {"exact": "exact", "bound": "an upper bound", "estimate": "an estimate"}

# Of a batch at most: networks that keep the resolution hold tens of features for every entry of it.
_ENTRIES = 2**20
# Rows that are computed in float64 as well, fewer of them where float32 already takes longer than so many seconds.
_CHECKED, _CHECK_SECONDS = 32, 5.0
# Rows shown of the most and of the least likely.
_SHOWN = 12


@dataclass(frozen=True)
class ClassLikelihood:
    """Of the rows of one class: mean −log p(x) in nats an observation, its standard error, and how many there are."""

    name: str
    nats: float
    bits_per_dimension: float
    standard_error: float
    rows: int


@dataclass(frozen=True)
class Precision:
    """What float64 makes of some of the rows, with the same noise.

    Attributes:
        rows: how many were computed again.
        mean: of float32's nats less float64's, over them.
        largest: of the same, in size, of one row.
    """

    rows: int
    mean: float
    largest: float


@dataclass(frozen=True)
class Likelihood:
    """Mean log-likelihood of held-out rows, in one unit.

    Attributes:
        nats: −log p(x) an observation.
        bits_per_dimension: the same divided by D ln 2.
        standard_error: of `nats`, over rows and, where the model tells it, over its estimate of log Z.
        interval: 95 % confidence interval of `nats`: Student's, of the mean over rows. Windows of one text count as
            independent rows, though they are not quite.
        bits_interval: the same in bits per dimension.
        kind: "exact", "bound" (the true value is no higher) or "estimate".
        rows: how many were measured.
        importance: importance weights an observation that the bound was tightened with; None of other models.
        log_z_error: standard error of log Z in nats, of models that estimate it; None of others.
        infinite: rows without a finite likelihood; the mean is then infinite too.
        precision: the check in float64; None if the model cannot run in it.
        by_class: one for each class of the rows; empty without labels.
        most, least: the rows with the least and the most nats, as (row, nats), and those first.
        index: (rows,), the numbers of the rows measured.
        values: (rows,), the nats of each.
    """

    nats: float
    bits_per_dimension: float
    standard_error: float
    interval: tuple[float, float]
    bits_interval: tuple[float, float]
    kind: Kind
    rows: int
    importance: int | None = None
    log_z_error: float | None = None
    infinite: int = 0
    precision: Precision | None = None
    by_class: tuple[ClassLikelihood, ...] = ()
    most: tuple[tuple[int, float], ...] = ()
    least: tuple[tuple[int, float], ...] = ()
    index: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    values: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite and missing numbers are null."""

        def plain(value: Any) -> Any:
            if isinstance(value, float):
                return finite(value)
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            if isinstance(value, ClassLikelihood | Precision):
                return {name: plain(v) for name, v in vars(value).items()}
            return value

        return {name: plain(value) for name, value in vars(self).items() if not isinstance(value, Tensor)}


def nats(model: Model, x: Tensor, importance: int | None = None) -> Tensor:
    """−log p(x) of observations, (rows,) float64 on the processor; by importance weighting if so many are given."""
    x = x.to(model.device)
    log_prob = model.log_prob(x) if importance is None else model.importance_weighted(x, importance)  # type: ignore[operator]
    return -log_prob.double().cpu()


@torch.no_grad()
def likelihood(
    model: Model,
    data: Dataset,
    rows: int | None = None,
    *,
    importance: int = 1,
    seconds: float = math.inf,
    said: Callable[[int, int], None] = lambda done, total: None,
) -> Likelihood:
    """Mean negative log-likelihood of `data`, or of `rows` of it at random, under a model with a density.

    Args:
        model: one with a density, in eval mode, whose space is the data's.
        data: held-out rows.
        rows: measure this many at most; all by default.
        importance: weights an observation, of models that can weigh them; 1 takes the model's own bound.
        seconds: stop after about so many; the rows measured by then are a random choice too.
        said: hears how many rows are done, and of how many.

    Raises:
        TacitError: `rows` or `importance` is below 1.
    """
    if importance < 1 or (rows is not None and rows < 1):
        raise TacitError(f"rows is {rows} and importance {importance}: give 1 or more")
    weights = importance if importance > 1 and hasattr(model, "importance_weighted") else None
    every = torch.cat(list(data.ordered(2**20)))
    # In random order: some sets are sorted by class, and not all rows may be reached.
    index = every[torch.randperm(len(every), generator=generator_of(0, "likelihood"))[:rows]]
    done = 0

    def some(at: Tensor) -> Tensor:
        nonlocal done
        found = nats(model, data[at], weights)
        done += len(at)
        said(done, len(index))
        return found

    reseed(0, "likelihood")
    started = time.monotonic()
    values = in_time(some, index, seconds, most=max(1, min(256, _ENTRIES // model.space.dimensions)))
    a_row = (time.monotonic() - started) / len(values)
    index, order = index[: len(values)].sort()
    checked = max(1, min(_CHECKED, len(index), _ENTRIES // model.space.dimensions, int(_CHECK_SECONDS / a_row)))
    check = _checked(model, data, index[torch.linspace(0, len(index) - 1, checked).long()], weights)
    return _summary(model, data, index, values[order], weights, check)


def _summary(
    model: Model, data: Dataset, index: Tensor, values: Tensor, weights: int | None, check: Precision | None
) -> Likelihood:
    mean, error = _mean(values)
    log_z = getattr(model, "log_z_error", None)
    log_z_error = None if log_z is None or not math.isfinite(log_z) or log_z == 0 else float(log_z)
    spread = math.hypot(error, log_z_error or 0.0)
    reach = float(t.ppf(0.975, len(values) - 1)) * spread if len(values) > 1 else math.nan
    bit = model.space.dimensions * math.log(2)
    order = values.argsort()
    ranked = [(int(index[i]), float(values[i])) for i in order]
    return Likelihood(
        nats=mean,
        bits_per_dimension=mean / bit,
        standard_error=spread,
        interval=(mean - reach, mean + reach),
        bits_interval=((mean - reach) / bit, (mean + reach) / bit),
        kind=model.density,  # type: ignore[arg-type]
        rows=len(values),
        importance=weights,
        log_z_error=log_z_error,
        infinite=int((~values.isfinite()).sum()),
        precision=check,
        by_class=_by_class(data, index, values, model.space),
        most=tuple(ranked[:_SHOWN]),
        least=tuple(ranked[::-1][:_SHOWN]),
        index=index,
        values=values,
    )


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _by_class(data: Dataset, index: Tensor, values: Tensor, space: Space) -> tuple[ClassLikelihood, ...]:
    if data.label is None:
        return ()
    label, found = data.label.cpu()[index], []
    for i in range(data.classes):
        of_class = values[label == i]
        if len(of_class):
            mean, error = _mean(of_class)
            name = data.class_names[i] if data.class_names else str(i)
            bits = mean / (space.dimensions * math.log(2))
            found.append(ClassLikelihood(name, mean, bits, error, len(of_class)))
    return tuple(found)


def _checked(model: Model, data: Dataset, some: Tensor, weights: int | None) -> Precision | None:
    """These rows in float32 and in float64, with the same noise; None if the model cannot run in float64."""
    method, options = ("log_prob", {}) if weights is None else ("importance_weighted", {"samples": weights})
    reseed(0, "float64")
    narrow = nats(model, data[some], weights)
    reseed(0, "float64")
    try:
        wide = -in_float64(model, method, data[some].to(model.device), **options).cpu()
    except (RuntimeError, TypeError, NotImplementedError):  # an operation that exists in float32 alone
        return None
    difference = narrow - wide
    difference = difference[difference.isfinite()]
    if wide.dtype != torch.float64 or not len(difference):
        return None
    return Precision(len(difference), float(difference.mean()), float(difference.abs().max()))
