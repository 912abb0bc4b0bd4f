"""What an evaluation found, as a record and as tables for a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tacit.metrics.calibration import Calibration
from tacit.tasks.likelihood import Likelihood
from tacit.tasks.quality import finite
from tacit.tasks.samples import SampleQuality
from tacit.tasks.table import COLUMN

# Names and what stands beside them.
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured; None where the model lacks the capability, or the data labels or factors.

    Attributes:
        model: its name.
        data: the data's name.
        split: "test", "valid", "train" or "all" of its rows.
        rows: how many those are; of a text, windows end to end.
        likelihood: of these rows.
        samples: against these rows.
        accuracy: share of labels told rightly, of a classifier.
        calibration: of a classifier's probabilities.
        probes: k-NN and linear probes of features, and of the raw data.
        disentanglement: of codes, where factors are known.
        left_out: a sentence for each thing that could not be measured.
        path: the page, where one was written.
    """

    model: str
    data: str
    split: str
    rows: int
    likelihood: Likelihood | None = None
    samples: SampleQuality | None = None
    accuracy: float | None = None
    calibration: Calibration | None = None
    probes: dict[str, Any] | None = None
    disentanglement: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; infinite and missing numbers are null."""
        calibrated = None
        if self.calibration is not None:
            calibrated = {k: finite(v) if isinstance(v, float) else v for k, v in asdict(self.calibration).items()}
        return {
            **{name: getattr(self, name) for name in ("model", "data", "split", "rows")},
            "likelihood": None if self.likelihood is None else self.likelihood.to_dict(),
            "samples": None if self.samples is None else self.samples.to_dict(),
            "accuracy": self.accuracy,
            "calibration": calibrated,
            "probes": self.probes,
            "disentanglement": self.disentanglement,
            "left_out": list(self.left_out),
            "path": None if self.path is None else str(self.path),
        }


def tables(measured: Evaluation) -> list[Table]:
    """What was measured, for a terminal."""
    facts: Facts = []
    if measured.likelihood is not None:
        facts += density_facts(measured.likelihood)
    if measured.calibration is not None:
        facts += calibration_facts(measured.calibration)
    facts += code_facts(measured)
    title = f"{measured.model} on {measured.data} ({measured.split}, {measured.rows} rows)"
    table = Table(title=title, show_header=False)
    for name, value in facts:
        table.add_row(name, value)
    if (density := measured.likelihood) is not None and density.by_class:
        shown = ", ".join(f"{c.name} {c.bits_per_dimension:.3f}" for c in density.by_class)
        table.add_row("bits per dimension by class", shown)
    tables = [table] if table.row_count else []
    if (quality := measured.samples) is not None:
        samples = Table(title="samples", caption=f"Compared in {quality.extractor}", caption_justify="left")
        for name in ("", "unit", "drawn", "other real", "N"):
            samples.add_column(name, justify="left" if name in ("", "unit") else "right")
        for key, figure in quality.figures.items():
            column, floor = COLUMN[key], quality.floor.get(key)
            shown, other = column.show(figure, error=True), column.show(floor, error=True)
            samples.add_row(column.heading, column.unit, shown, other, str(figure.count or ""))
        tables.append(samples)
    return tables


def density_facts(density: Likelihood) -> Facts:
    """The likelihood in words."""
    kind = {"exact": "exact", "bound": "a bound: the true value is no higher", "estimate": "an estimate"}[density.kind]
    if density.importance is not None:
        kind += f"; {density.importance} importance weights a row"
    if density.log_z_error is not None:
        kind += f"; log Z ± {density.log_z_error:.3g} nats is in the interval"
    low, high = density.interval
    found = [
        (
            "bits per dimension",
            f"{density.bits_per_dimension:.4f}, {density.bits_interval[0]:.4f} to {density.bits_interval[1]:.4f} with "
            f"95 % confidence ({kind})",
        ),
        ("nats an observation", f"{density.nats:.3f}, {low:.3f} to {high:.3f}, on {density.rows} rows"),
    ]
    if density.infinite:
        found.append(("without a finite likelihood", f"{density.infinite} of {density.rows} rows"))
    if (check := density.precision) is not None:
        found.append(
            (
                "float32 less float64",
                f"{check.mean:+.2g} nats an observation, {check.largest:.2g} at most, on {check.rows} rows",
            )
        )
    else:
        found.append(("float32 less float64", "not known: the model cannot run in float64"))
    return found


def calibration_facts(found: Calibration) -> Facts:
    """A classifier's accuracy and calibration in words."""
    return [
        ("classification accuracy", f"{found.accuracy:.2%} ± {found.accuracy_error:.2%} on {found.rows} rows"),
        (
            "expected calibration error",
            f"{found.error:.4f} in {len(found.bins)} bins; {found.error_floor:.4f} if it were calibrated perfectly",
        ),
        ("Brier score", f"{found.brier:.4f} ± {found.brier_error:.4f}"),
        ("nats a label", f"{found.nats:.4f} ± {found.nats_error:.4f}"),
    ]


def code_facts(measured: Evaluation) -> Facts:
    """Probes and disentanglement in words."""
    found: Facts = []
    for layer, probe in (measured.probes or {}).items():
        near, linear = probe["neighbours"], probe["linear"]
        found.append(
            (
                f"labels told from {'features' if layer == 'embed' else layer}",
                f"{near['accuracy']:.2%} by {near['k']} nearest neighbours, {linear['accuracy']:.2%} by logistic "
                "regression",
            )
        )
    if (codes := measured.disentanglement) is not None:
        found.append(
            (
                "disentanglement",
                f"β-VAE score {codes['beta_vae']:.3f}, mutual information gap {codes['gap']:.3f}, DCI "
                f"{codes['disentanglement']:.3f}, {codes['completeness']:.3f}, {codes['informativeness']:.3f}",
            )
        )
    return found
