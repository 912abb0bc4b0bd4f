"""Measure a trained model on data it has not seen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tacit.capabilities import Embeds, Encodes, HasDensity, has
from tacit.data import Dataset, load
from tacit.errors import CapabilityError, SpaceError
from tacit.metrics import probes
from tacit.metrics.disentanglement import disentanglement
from tacit.model import Model
from tacit.tasks.embed import features
from tacit.tasks.run import Run, in_batches
from tacit.training.plan import reseed

# Logistic regression on more rows takes minutes and moves the accuracy by tenths of a point.
_PROBE_ROWS = 20_000
# Of a batch at most: networks that keep the resolution hold tens of features for every entry of it.
_ENTRIES = 2**20
# Entries of a code that are asked which factors they say; in a code as large as the data each pixel would be.
_MOST_CODES = 256


@dataclass(frozen=True)
class Likelihood:
    """Mean log-likelihood of held-out rows, in one unit.

    Attributes:
        nats: −log p(x) an observation.
        bits_per_dimension: the same divided by D ln 2.
        standard_error: of `nats`, over rows.
        kind: "exact", "bound" (the true value is no higher) or "estimate".
        rows: how many were measured.
    """

    nats: float
    bits_per_dimension: float
    standard_error: float
    kind: str
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured; None where the model lacks the capability, or the data labels or factors."""

    model: str
    data: str
    likelihood: Likelihood | None = None
    accuracy: float | None = None
    probes: dict[str, Any] | None = None
    disentanglement: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)


def evaluate(
    run: Path, data: str | Dataset | None = None, *, rows: int | None = None, json: bool = False
) -> Evaluation:
    """Bits per dimension, accuracy of classes and probes on held-out data, as far as the model has them.

    Of data with known factors, also how far codes of up to 256 numbers disentangle them.

    Args:
        run: the run folder.
        data: a path, a name or a `Dataset`; by default the test part of the data the run was fitted on.
        rows: measure the likelihood of this many rows at most.
        json: print JSON instead of a table.

    Raises:
        CapabilityError: there is nothing about this model that evaluate can measure.
    """
    found = Run(run)
    given = load(data) if isinstance(data, str) else data
    measured = measure(found, given, rows=rows)
    console = Console()
    if json:
        console.print_json(data=measured.to_dict())
    else:
        console.print(_table(measured))
    return measured


def measure(run: Run, on: Dataset | None = None, *, rows: int | None = None) -> Evaluation:
    """`evaluate` from Python: on the test part of the run's own data, or on all of `on`.

    Raises:
        CapabilityError: there is nothing about this model that evaluate can measure.
    """
    model = run.model
    test = run.data().parts()[2] if on is None else on
    measured: dict[str, Any] = {}
    if isinstance(model, HasDensity):
        measured["likelihood"] = likelihood(model, test, rows)
    if has(model, "classify") and test.label is not None:
        measured["accuracy"] = _accuracy(model, test)
    if isinstance(model, Embeds) and test.label is not None and run.record["data"]["source"] is not None:
        train = run.data().parts()[0]
        measured["probes"] = _probes(model, train, test)
    if isinstance(model, Encodes) and test.factors is not None:
        one = test[torch.arange(1)].to(model.device)
        if model.encode(one).numel() <= _MOST_CODES:
            codes = torch.cat([model.encode(x).flatten(1) for x in in_batches(test, 512, model.device)])
            measured["disentanglement"] = asdict(disentanglement(codes, test.factors))
    if not measured:
        raise CapabilityError(
            f"{run.record['model']} has no density, and {test.name} has no labels to probe its features with: "
            f"give labelled data, or look at `tacit sample`"
        )
    return Evaluation(model=run.record["model"], data=test.name, **measured)


@torch.no_grad()
def likelihood(model: Model, data: Dataset, rows: int | None = None, size: int = 256) -> Likelihood:
    """Mean negative log-likelihood of `data`, or of `rows` of it spread evenly, under a model with a density.

    Raises:
        SpaceError: the data is of another kind or shape than the model's.
    """
    if data.space != model.space:
        raise SpaceError(
            f"{data.name} is {data.space}, but the model was fitted on {model.space}: give data of that form"
        )
    model.eval()
    reseed(0, "likelihood")
    size = max(1, min(size, _ENTRIES // model.space.dimensions))
    index = torch.cat(list(data.ordered(len(data))))
    if rows is not None and rows < len(index):
        # Spread over the set: some sets are sorted by class.
        index = index[torch.linspace(0, len(index) - 1, rows).long()]
    nats = torch.cat([-model.log_prob(data[i].to(model.device)).double().cpu() for i in index.split(size)])  # type: ignore[operator]
    mean = nats.mean().item()
    return Likelihood(
        nats=mean,
        bits_per_dimension=mean / (model.space.dimensions * math.log(2)),
        standard_error=nats.std().item() / math.sqrt(len(nats)) if len(nats) > 1 else math.nan,
        kind=model.density,  # type: ignore[arg-type]
        rows=len(nats),
    )


def _accuracy(model: Model, data: Dataset) -> float:
    predicted = torch.cat([model.classify(x).argmax(-1).cpu() for x in in_batches(data, 512, model.device)])  # type: ignore[operator]
    known = data.label >= 0  # type: ignore[operator]
    return (predicted == data.label)[known].float().mean().item()  # type: ignore[index]


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


def _table(measured: Evaluation) -> Table:
    table = Table(title=f"{measured.model} on {measured.data}", show_header=False)
    if (density := measured.likelihood) is not None:
        kinds = {"exact": "", "bound": " (a bound: the true value is no higher)", "estimate": " (an estimate)"}
        table.add_row("bits per dimension", f"{density.bits_per_dimension:.4f}{kinds[density.kind]}")
        nats = f"{density.nats:.3f} ± {density.standard_error:.3f} on {density.rows} rows"
        table.add_row("nats an observation", nats)
    if measured.accuracy is not None:
        table.add_row("classification accuracy", f"{measured.accuracy:.2%}")
    for layer, found in (measured.probes or {}).items():
        knn, linear = found["neighbours"], found["linear"]
        table.add_row(
            f"labels told from {'features' if layer == 'embed' else layer}",
            f"{knn['accuracy']:.2%} by {knn['k']} nearest neighbours, {linear['accuracy']:.2%} by logistic regression",
        )
    if (found := measured.disentanglement) is not None:
        table.add_row(
            "disentanglement",
            f"β-VAE score {found['beta_vae']:.3f}, mutual information gap {found['gap']:.3f}, DCI "
            f"{found['disentanglement']:.3f}, {found['completeness']:.3f}, {found['informativeness']:.3f}",
        )
    return table
