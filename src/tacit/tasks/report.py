"""The page of a comparison: one HTML file with its pictures inside, which needs nothing from anywhere else."""

from __future__ import annotations

import base64
import io
import math
import re
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from tacit import __version__
from tacit.data import Dataset
from tacit.spaces import Images, Tokens, Vectors
from tacit.tasks.advice import quality_of
from tacit.tasks.table import BASELINE, COLUMN, Column, Row, columns_of, competing, density_mark, marks
from tacit.training import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tacit.tasks.compare import Comparison

_TEMPLATE = Path(__file__).with_name("report.html")
_PICTURE_PIXELS = 512
# Drawn by matplotlib, replaced in the SVG by the page's own text colour, which follows light and dark.
_INK = "#010203"


def write_page(found: Comparison, data: Dataset, real: Tensor | None) -> Path:
    """Write the page to `found.path`, with samples of each model beside `real` observations; returns where."""
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Which model suits {found.data}?"),
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
        footer=escape(
            f"tacit {__version__}, torch {torch.__version__}, {found.device}; seed {found.seed}; "
            f"data sha256 {found.fingerprint[:16]}; the numbers are in comparison.json, the trained models in runs."
        ),
    )
    partial = found.path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(found.path)


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
    figures = [_figure(None, real, data, "real", "held-out data")]
    for row in found.rows:
        if row.samples is not None:
            keys = [key for key in (quality_of(found.rows), "samples_per_second") if key in row.figures]
            note = ", ".join(f"{COLUMN[key].heading} {COLUMN[key].show(row.figures[key])}" for key in keys)
            figures.append(_figure(row.samples, real, data, row.model, note))
    return "".join(figures)


def _figure(samples: Tensor | None, real: Tensor, data: Dataset, name: str, note: str) -> str:
    """One picture of samples, or of real observations where there are none, with its caption."""
    space, x = data.space, real if samples is None else samples.cpu()
    words = "real observations" if samples is None else f"samples of {name}"
    if isinstance(space, Images):
        columns = min(8, max(3, _PICTURE_PIXELS // (space.width + 1)))
        body = _image(pictures.grid(x[: columns**2], space.levels, columns), f"A grid of {words}")
    elif isinstance(space, Vectors):
        body = _image(_scatter(samples, real), f"A scatter plot of {words}")
        if space.features > 2:
            note += f"{'; ' if note else ''}first two principal components"
    elif isinstance(space, Tokens):
        lines = pictures.as_text(x[:8], data.vocabulary)
        body = f"<pre>{escape(chr(10).join(f'{line}{chr(10)}' for line in lines))}</pre>"
    else:
        return ""
    caption = f"<figcaption>{escape(name)}<small>{escape(note)}</small></figcaption>"
    return f"<figure{' class=real' if samples is None else ''}>{body}{caption}</figure>"


def _image(picture: Image.Image, words: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    code = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img alt="{escape(words)}" {size} src="data:image/png;base64,{code}">'


def _scatter(samples: Tensor | None, real: Tensor) -> Image.Image:
    """Drawn rows over real ones, in the real rows' first two principal components where there are more than two."""
    from matplotlib.figure import Figure

    sets = [real] if samples is None else [real, samples.cpu()]
    if real.shape[1] > 2:
        centre, deviation = real.mean(0), real.std(0).clamp(min=1e-12)
        _, _, axes = torch.linalg.svd((real - centre) / deviation, full_matrices=False)
        sets = [(x - centre) / deviation @ axes[:2].T for x in sets]
    elif real.shape[1] == 1:
        sets = [torch.cat([x, torch.zeros_like(x)], 1) for x in sets]
    # The same frame for every model, whatever far-off rows it draws.
    low, high = sets[0].quantile(0.005, 0), sets[0].quantile(0.995, 0)
    room = 0.15 * (high - low).clamp(min=1e-6)
    figure = Figure(figsize=(3, 3), dpi=160)
    plot = figure.add_axes((0, 0, 1, 1))
    plot.set_axis_off()
    for x, colour in zip(sets, ("#8a94a0", "#1f9d73"), strict=False):
        plot.scatter(x[:1000, 0], x[:1000, 1], s=5, c=colour, alpha=0.6, linewidths=0)
    plot.set_xlim(float(low[0] - room[0]), float(high[0] + room[0]))
    plot.set_ylim(float(low[1] - room[1]), float(high[1] + room[1]))
    return _raster(figure)


def _raster(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return Image.open(buffer)


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
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tacit",
        "font.family": "sans-serif",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        plot = figure.add_subplot()
        # Corrected for the number of rows, the distance of a very good model may come out below 0.
        plot.set_yscale("symlog", linthresh=max(floor, 1e-3))
        plot.axhline(floor, color=_INK, linewidth=0.8, linestyle=":")
        for i, row in enumerate(sorted(rows, key=lambda row: row.figures[quality].value)):
            x, y = row.figures["bits"], row.figures[quality]
            fill = "#1f9d73" if x.note == "exact" else "none"
            plot.errorbar(x.value, y.value, yerr=y.error, xerr=x.error, color="#1f9d73", linewidth=1)
            plot.plot(x.value, y.value, "o", markersize=8, color="#1f9d73", markerfacecolor=fill)
            # Neighbours in height get their names on opposite sides.
            offset, align = ((7, 5), "left") if i % 2 else ((-7, 5), "right")
            plot.annotate(row.model, (x.value, y.value), xytext=offset, textcoords="offset points", ha=align)
        plot.margins(x=0.25, y=0.15)
        plot.set_xlabel("bits per dimension of held-out data")
        plot.set_ylabel(f"{COLUMN[quality].heading} of samples")
        plot.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    drawn = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawn)
    models = ", ".join(row.model for row in rows)
    return drawn.replace(
        "<svg", f'<svg role="img" aria-label="Bits per dimension against sample quality of {models}"', 1
    )
