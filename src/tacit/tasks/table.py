"""The table of a comparison: its columns, its rows, and which of them lead a column beyond chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table
from rich.text import Text
from torch import Tensor

from tacit.tasks.quality import Figure, Figures

BASELINE = "no model"


@dataclass(frozen=True)
class Column:
    """One column: which figure it shows, what it is called and what it means."""

    key: str
    heading: str
    unit: str
    better: Literal["lower", "higher"] | None
    meaning: str
    digits: int = 2
    percent: bool = False
    short: bool = True

    def show(self, figure: Figure | None, error: bool = False) -> str:
        """The figure as the table prints it."""
        if figure is None:
            return "–"
        if not math.isfinite(figure.value):
            return "∞"
        text = self.show_number(figure.value)
        if error and figure.error is not None and math.isfinite(figure.error):
            text += f" ± {self.show_number(figure.error)}"
        return text

    def show_number(self, value: float) -> str:
        """A number of this column as the table prints it."""
        return _number(100 * value if self.percent else value, self.digits)


def _number(value: float, digits: int) -> str:
    size = abs(value)
    if size >= 1e9:
        return f"{value:.1e}"
    if size >= 10_000:
        return f"{value / 1e6:.3g} M" if size >= 1e6 else f"{value / 1e3:.3g} k"
    if size >= 1000:
        return f"{value:.0f}"
    # A number too small for its column keeps two digits that say something.
    return f"{value:.2g}" if 0 < size < 10**-digits else f"{value:.{digits}f}"


COLUMNS = (
    Column(
        "bits",
        "bits/dim",
        "bits",
        "lower",
        "−log₂ p(x) of held-out rows over their number of values: what a value costs to store. Exact, an upper bound "
        "(≤) or an estimate (≈), as marked. For tables it is a density's, and may be negative.",
        3,
    ),
    Column("nats", "nats", "a row", "lower", "−log p(x) of held-out rows of a table.", 2),
    Column(
        "wasserstein",
        "sliced W₂²",
        "deviations²",
        "lower",
        "Squared 2-Wasserstein distance between drawn and held-out rows along 256 random directions of the "
        "standardised columns, corrected for the number of drawn rows by the jackknife.",
        3,
    ),
    Column(
        "frechet",
        "Fréchet",
        "features²",
        "lower",
        "Squared Fréchet distance between Gaussians fitted to the features of drawn and of held-out rows, corrected "
        "for the number of drawn rows by the jackknife. Not the FID of papers, which belongs to another extractor.",
    ),
    Column("ratio", "× floor", "", "lower", "The uncorrected distance over the floor: that between two real sets."),
    Column(
        "kid",
        "KID",
        "MMD²",
        "lower",
        "Unbiased kernel distance of the same features: fair between unequal numbers of rows, around 0 for real ones.",
        3,
    ),
    Column(
        "ngrams",
        "bigrams",
        "bits",
        "lower",
        "Jensen-Shannon divergence between the frequencies of pairs of neighbouring symbols; 0 is alike, 1 disjoint.",
        3,
    ),
    Column(
        "precision",
        "precision",
        "%",
        "higher",
        "Share of drawn rows that fall within the real ones' support: are samples plausible?",
        0,
        percent=True,
    ),
    Column(
        "recall",
        "recall",
        "%",
        "higher",
        "Share of real rows that fall within the drawn ones' support: is everything there?",
        0,
        percent=True,
    ),
    Column("density", "density", "", "higher", "How many real neighbourhoods hold a drawn row, over k.", short=False),
    Column(
        "coverage",
        "coverage",
        "%",
        "higher",
        "Share of real neighbourhoods that hold a drawn row.",
        0,
        percent=True,
        short=False,
    ),
    Column(
        "transport",
        "W₂²",
        "deviations²",
        "lower",
        "Squared 2-Wasserstein distance between drawn and real rows of the standardised columns, exact between these "
        "rows; of few rows in many columns it is large even between two real sets: look at the floor.",
        3,
    ),
    Column(
        "classes",
        "classes reached",
        "",
        "higher",
        "Classes of which at least one was drawn, as a classifier tells them, of those that the real rows have.",
        0,
    ),
    Column(
        "class_divergence",
        "KL of classes",
        "nats",
        "lower",
        "KL(drawn ‖ real) of the shares of classes, as a classifier tells them, corrected for the number of drawn rows "
        "by the jackknife.",
        4,
    ),
    Column(
        "nearer",
        "nearer to training",
        "%",
        None,
        "Share of pairs of a drawn and a held-out row in which the drawn one is nearer to the training rows: 50 is "
        "fair, 100 is learned by heart.",
        1,
        percent=True,
    ),
    Column(
        "copying",
        "data-copying C_T",
        "deviations",
        None,
        "The same as a rank test, mean over five regions of the data (Meehan et al. 2020): below −3 is copying, above "
        "3 is drawing farther off than real data lies; it grows with the number of rows.",
        1,
    ),
    Column(
        "copies",
        "exact copies",
        "%",
        "lower",
        "Share of drawn rows that are in the training rows, number for number.",
        2,
        percent=True,
    ),
    Column("samples_per_second", "samples/s", "a second", "higher", "Observations drawn a second.", 0),
    Column(
        "knn",
        "k-NN",
        "%",
        "higher",
        "Accuracy of nearest neighbours in the features; the first row is that of raw values.",
        1,
        percent=True,
    ),
    Column(
        "probe",
        "probe",
        "%",
        "higher",
        "Accuracy of logistic regression on the features; the first row is that of raw values.",
        1,
        percent=True,
    ),
    Column(
        "auroc",
        "AUROC",
        "%",
        "higher",
        "Probability that a spoilt row scores as more anomalous than a sound one, mean over the kinds of corruption.",
        1,
        percent=True,
    ),
    Column("rows_per_second", "trained/s", "rows a second", "higher", "Training rows gone through a second.", 0),
    Column("seconds", "seconds", "s", None, "Time it trained for.", 1, short=False),
    Column("parameters", "weights", "", None, "Numbers it learned.", 0),
)
COLUMN = {column.key: column for column in COLUMNS}


@dataclass
class Row:
    """One model of the comparison.

    Attributes:
        model: catalogue name.
        family: its family.
        status: "measured", "failed", "interrupted" or "not reached".
        reason: why it failed or stopped, or what could not be measured, in sentences.
        supervised: it learned from labels, so its features do not compete with the others'.
        exact: it learns without gradients.
        figures: by column.
        run: the run's folder, relative to the comparison's.
        samples: some of what it drew.
    """

    model: str
    family: str
    status: Literal["measured", "failed", "interrupted", "not reached"] = "not reached"
    reason: str = ""
    supervised: bool = False
    exact: bool = False
    figures: Figures = field(default_factory=dict)
    run: str = ""
    samples: Tensor | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; pictures are left to the page."""
        plain = {k: getattr(self, k) for k in ("model", "family", "status", "reason", "supervised", "exact", "run")}
        return plain | {"figures": {key: figure.to_dict() for key, figure in self.figures.items()}}


def columns_of(rows: list[Row]) -> list[Column]:
    """The columns in which some row has a figure."""
    return [column for column in COLUMNS if any(column.key in row.figures for row in rows)]


# Biased by the number of drawn rows: only models that were judged on as many compete.
_SIZED = ("ratio", "precision", "recall", "density", "coverage")


def competing(rows: list[Row], key: str) -> list[Row]:
    """The models that compete in a column: those with a finite figure, on fair terms.

    Features learned from labels do not compete where labels measure them, and distances that depend on the number of
    drawn rows only where that number is the most any model was judged on.
    """
    able = [r for r in rows if r.model != BASELINE and key in r.figures and math.isfinite(r.figures[key].value)]
    if key in ("knn", "probe"):
        able = [row for row in able if not row.supervised]
    if key in _SIZED:
        most = max((row.figures[key].count or 0 for row in able), default=0)
        able = [row for row in able if row.figures[key].count == most]
    return able


def leaders(rows: list[Row], key: str) -> list[Row]:
    """The best model of a column, and after it those within two standard errors of the difference from it."""
    better = COLUMN[key].better
    able = competing(rows, key)
    if not able or better is None:
        return []
    able.sort(key=lambda row: row.figures[key].value, reverse=better == "higher")
    first = able[0].figures[key]
    return [able[0]] + [r for r in able[1:] if not apart(first, r.figures[key])]


def apart(a: Figure, b: Figure) -> bool:
    """Whether two figures differ by more than two standard errors of their difference.

    Row by row where both have the same rows: what makes a row hard is then common to both and cancels. Figures
    without a standard error differ if their values do.
    """
    if a.values is not None and b.values is not None:
        rows = min(len(a.values), len(b.values))
        gap = a.values[:rows] - b.values[:rows]
        if rows > 1 and gap.isfinite().all():
            return abs(float(gap.mean())) > 2 * float(gap.std()) / math.sqrt(rows)
    return abs(a.value - b.value) > 2 * math.hypot(a.error or 0.0, b.error or 0.0)


def marks(rows: list[Row]) -> dict[str, set[str]]:
    """For each column, the models to mark as best: none where no two models compete."""
    found = {}
    for column in COLUMNS:
        if len(competing(rows, column.key)) > 1:
            found[column.key] = {row.model for row in leaders(rows, column.key)}
    return found


def terminal_tables(rows: list[Row], title: str, width: int) -> list[Table]:
    """The table for a terminal, in as many blocks of columns as its width asks for.

    The best of a column are green and bold, bounds and estimates are marked, and models without figures left out.
    """
    measured = [row for row in rows if row.status == "measured"]
    best = marks(rows)
    names = [row.model + (" †" if row.supervised else "") for row in measured]
    blocks: list[list[Column]] = [[]]
    used = first = max(map(len, ["model", *names])) + 1
    for column in (c for c in columns_of(rows) if c.short):
        cells = [density_mark(column, f := row.figures.get(column.key)) + column.show(f) for row in measured]
        needed = max(map(len, [column.heading, *cells])) + 3
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = first
        blocks[-1].append(column)
        used += needed
    tables: list[Table] = []
    for block in blocks:
        table = Table(
            title="" if tables else title, title_justify="left", header_style="bold", box=None, pad_edge=False
        )
        table.add_column("model", no_wrap=True)
        for column in block:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for name, row in zip(names, measured, strict=True):
            marked = [_cell(column, row, row.model in best.get(column.key, set())) for column in block]
            table.add_row(Text(name, style="italic" if row.model == BASELINE else "bold"), *marked)
        tables.append(table)
    return tables


def _cell(column: Column, row: Row, leads: bool) -> Text:
    figure = row.figures.get(column.key)
    style = "bold green" if leads else "dim" if figure is None else ""
    return Text(density_mark(column, figure) + column.show(figure), style=style)


def density_mark(column: Column, figure: Figure | None) -> str:
    """≤ before a bound, ≈ before an estimate: they must never pass for exact figures."""
    if figure is None or column.key not in ("bits", "nats"):
        return ""
    return {"an upper bound": "≤ ", "an estimate": "≈ "}.get(figure.note, "")
