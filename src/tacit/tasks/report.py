"""The page of a comparison: one HTML file with its pictures inside, which needs nothing from anywhere else."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tacit import __version__
from tacit.data import Dataset
from tacit.tasks import page
from tacit.tasks.advice import quality_of
from tacit.tasks.table import BASELINE, COLUMN, Column, Row, columns_of, competing, density_mark, marks

if TYPE_CHECKING:
    from tacit.tasks.compare import Comparison

_TEMPLATE = Path(__file__).with_name("report.html")


def write_page(found: Comparison, data: Dataset, real: Tensor | None) -> Path:
    """Write the page to `found.path`, with samples of each model beside `real` observations; returns where."""
    title = f"Which model suits {found.data}?"
    body = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        facts=escape(_facts(found)),
        notice=_notice(found),
        summary=escape(found.advice.summary),
        table=_table(found.rows),
        failures=_failures(found.rows),
        gallery=_gallery(found, data, real),
        plot=_plot_section(found.rows),
        anomalies=_anomalies(found),
        rules=_rules(found),
        meanings=_meanings(found),
        everything=_everything(found.rows),
    )
    footer = (
        f"tacit {__version__}, torch {torch.__version__}, {found.device}; seed {found.seed}; "
        f"data sha256 {found.fingerprint[:16]}; the numbers are in comparison.json, the trained models in runs."
    )
    return page.write(found.path, title, body, footer)


# -- words -------------------------------------------------------------------------------------------------------------


def _facts(found: Comparison) -> str:
    train, valid, test = found.sizes
    count = sum(row.status == "measured" for row in found.rows if row.model != BASELINE)
    return (
        f"{count} models on {found.kind}: {train:,} rows to learn from, {valid:,} to validate and {test:,} held out. "
        f"{found.training_seconds:g} seconds of training for each model that learns by steps; "
        f"{found.seconds / 60:.1f} minutes in all."
    )


def _notice(found: Comparison) -> str:
    if not found.interrupted:
        return ""
    left = [row.model for row in found.rows if row.status in ("not reached", "interrupted")]
    return f"<p><strong>Interrupted.</strong> Not measured: {escape(', '.join(left) or 'none')}.</p>"


def _failures(rows: list[Row]) -> str:
    said = [row for row in rows if row.model != BASELINE and row.reason]
    items = "".join(f"<li><strong>{escape(row.model)}</strong>: {escape(row.reason)}</li>" for row in said)
    labels = any(row.supervised and row.status == "measured" for row in rows)
    note = "† learned from labels: its features are not ranked with those of models that saw none." if labels else ""
    return (f"<ul>{items}</ul>" if items else "") + (f'<p class="quiet">{note}</p>' if note else "")


def _rules(found: Comparison) -> str:
    return "".join(
        f'<li class="{rule.verdict.replace(" ", "-")}">'
        f"<strong>{rule.verdict.capitalize()}</strong>"
        f"<em>{escape(rule.claim)}</em><br>{escape(rule.evidence)}</li>"
        for rule in found.advice.rules
    )


def _meanings(found: Comparison) -> str:
    terms = [
        (
            BASELINE,
            "What needs no model: xz on the same rows for bits per dimension, other real rows taken for samples, raw "
            "values taken for features, distance to near training rows as the anomaly score.",
        ),
        ("extractor", f"Samples are compared in {found.extractor}. Figures of different extractors do not compare."),
        *((column.heading, column.meaning) for column in columns_of(found.rows)),
    ]
    if found.corruptions:
        terms.append(("corruptions", f"Made of the held-out rows: {', '.join(found.corruptions)}."))
    return "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms)


# -- tables ------------------------------------------------------------------------------------------------------------


def _head(columns: list[Column]) -> str:
    cells = ['<th scope="col" data-first="ascending"><button type="button">model</button></th>']
    for column in columns:
        first = "descending" if column.better == "higher" else "ascending"
        sense = {"lower": "↓ better", "higher": "↑ better", None: ""}[column.better]
        cells.append(
            f'<th scope="col" data-first="{first}"><button type="button" title="{escape(column.meaning)}">'
            f"{escape(column.heading)}</button><small>{escape(column.unit) or '&nbsp;'}</small>"
            f"<small>{sense}</small></th>"
        )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _table(rows: list[Row]) -> str:
    columns = [column for column in columns_of(rows) if column.short]
    best = marks(rows)
    lines = [_line(row, columns, best) for row in rows if row.status == "measured"]
    return f'<table class="sortable">{_head(columns)}<tbody>{"".join(lines)}</tbody></table>'


def _line(row: Row, columns: list[Column], best: dict[str, set[str]]) -> str:
    cells = []
    for column in columns:
        figure = row.figures.get(column.key)
        leads = row.model in best.get(column.key, set())
        value = "" if figure is None or math.isnan(figure.value) else repr(figure.value)
        small = ""
        if figure is not None and figure.error is not None and math.isfinite(figure.error):
            small = f"<small>± {column.show_number(figure.error)}</small>"
        star = '<span aria-label="best">★ </span>' if leads else ""
        cells.append(
            f'<td data-value="{value}"{" class=best" if leads else ""}>{star}{density_mark(column, figure)}'
            f"{column.show(figure)}{small}</td>"
        )
    name = f"{escape(row.model)}{' †' if row.supervised else ''}<small>{escape(row.family or row.reason)}</small>"
    kind = " class=none" if row.model == BASELINE else ""
    return f'<tr{kind}><th scope="row" data-value="{escape(row.model)}">{name}</th>{"".join(cells)}</tr>'


def _everything(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        for key, figure in row.figures.items():
            column = COLUMN.get(key) or COLUMN[key.partition(":")[0]]
            heading = escape(key if ":" in key else column.heading)
            lines.append(
                f'<tr><th scope="row">{escape(row.model)}</th><td class="text">{heading}</td>'
                f"<td>{column.show(figure, error=True)}</td><td>{escape(column.unit)}</td>"
                f'<td>{figure.count or ""}</td><td class="text">{escape(figure.note)}</td></tr>'
            )
    head = "".join(
        f'<th scope="col"{" class=text" if word in ("what", "how") else ""}>{word}</th>'
        for word in ("model", "what", "value", "unit", "N", "how")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _anomalies(found: Comparison) -> str:
    keys = [f"auroc: {name}" for name in found.corruptions]
    rows = [row for row in found.rows if "auroc" in row.figures]
    if not rows or len(keys) < 2:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("model", *found.corruptions, "mean"))
    head += '<th scope="col" class="text">score</th>'
    lines = []
    for row in rows:
        cells = "".join(f"<td>{COLUMN['auroc'].show(row.figures.get(key))}</td>" for key in (*keys, "auroc"))
        note = escape(row.figures["auroc"].note)
        lines.append(f'<tr><th scope="row">{escape(row.model)}</th>{cells}<td class="text">{note}</td></tr>')
    return (
        '<section aria-labelledby="anomalies"><h2 id="anomalies">Anomalies, by kind of corruption</h2>'
        '<p class="quiet">AUROC in %: 50 is blind; below 50 the spoilt rows look likelier than the sound ones, for '
        "which densities are known.</p>"
        '<div class="wide" tabindex="0" role="region" aria-labelledby="anomalies">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


# -- pictures ----------------------------------------------------------------------------------------------------------


def _gallery(found: Comparison, data: Dataset, real: Tensor | None) -> str:
    if real is None:
        return ""
    figures = [page.observations(None, real, data, "real", "held-out data")]
    for row in found.rows:
        if row.samples is not None:
            keys = [key for key in (quality_of(found.rows), "samples_per_second") if key in row.figures]
            note = ", ".join(f"{COLUMN[key].heading} {COLUMN[key].show(row.figures[key])}" for key in keys)
            figures.append(page.observations(row.samples, real, data, row.model, note))
    return "".join(figures)


def _plot_section(rows: list[Row]) -> str:
    quality = quality_of(rows)
    both = [row for row in competing(rows, "bits") if row in competing(rows, quality)]
    if len(both) < 2:
        return ""
    floor = next((row.figures.get(quality) for row in rows if row.model == BASELINE), None)
    return (
        '<section aria-labelledby="plot"><h2 id="plot">Density against samples</h2>'
        '<p class="quiet">Models with both: to the left they describe the data better, to the bottom they draw better '
        "samples. The dotted line is what real data reaches; a ring is a bound or an estimate.</p>"
        f'<figure class="plot">{_plot(both, quality, 0.0 if floor is None else floor.value)}</figure></section>'
    )


def _plot(rows: list[Row], quality: str, floor: float) -> str:
    def draw(plot: Any) -> None:
        # Corrected for the number of rows, the distance of a very good model may come out below 0.
        plot.set_yscale("symlog", linthresh=max(floor, 1e-3))
        plot.axhline(floor, color=page.INK, linewidth=0.8, linestyle=":")
        for i, row in enumerate(sorted(rows, key=lambda row: row.figures[quality].value)):
            x, y = row.figures["bits"], row.figures[quality]
            fill = page.GREEN if x.note == "exact" else "none"
            plot.errorbar(x.value, y.value, yerr=y.error, xerr=x.error, color=page.GREEN, linewidth=1)
            plot.plot(x.value, y.value, "o", markersize=8, color=page.GREEN, markerfacecolor=fill)
            # Neighbours in height get their names on opposite sides.
            offset, align = ((7, 5), "left") if i % 2 else ((-7, 5), "right")
            plot.annotate(row.model, (x.value, y.value), xytext=offset, textcoords="offset points", ha=align)
        plot.margins(x=0.25, y=0.15)
        plot.set_xlabel("bits per dimension of held-out data")
        plot.set_ylabel(f"{COLUMN[quality].heading} of samples")

    models = ", ".join(row.model for row in rows)
    return page.plot(draw, f"Bits per dimension against sample quality of {models}")
