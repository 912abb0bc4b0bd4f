"""The page of an evaluation: what the tables say, with pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from tacit import __version__
from tacit.data import Dataset
from tacit.metrics.calibration import Calibration
from tacit.spaces import Images, Tokens, Vectors
from tacit.tasks import page
from tacit.tasks.evaluation import Evaluation, calibration_facts, code_facts, density_facts
from tacit.tasks.likelihood import Likelihood
from tacit.tasks.parts import Parts
from tacit.tasks.run import Run
from tacit.tasks.samples import SampleQuality
from tacit.tasks.table import COLUMN
from tacit.training import pictures

# Columns of a table, and symbols of a text, shown of a row.
_MOST_COLUMNS, _MOST_SYMBOLS = 8, 120

_DENSITY = {
    "bits per dimension": "−log₂ p(x) of held-out rows over their number of values: what a value costs to store. For "
    "tables it is a density's, and may be negative.",
    "95 % confidence": "Student's interval of the mean over rows, with the standard error of log Z where a model "
    "estimates it. Another training of the same model may differ by more.",
    "a bound": "The true value is no higher. Importance weights tighten it: the more, the nearer.",
    "float32 less float64": "Some rows computed again in double precision with the same noise: what rounding does to "
    "the figure.",
}
_SAMPLES = {
    "other real": "Real rows taken for samples: the floor, from which no model can be told.",
}
_CLASSES = {
    "expected calibration error": "How far the accuracy of rows lies from the probability that the model gave its "
    "guess, in 15 bins (Guo et al. 2017). Of few rows it is above 0 also for a perfect classifier: what that would "
    "have stands beside it.",
    "Brier score": "Mean squared distance of class probabilities from the labels: 0 is perfect, 2 certain and wrong.",
}


def write_page(measured: Evaluation, run: Run, parts: Parts) -> None:
    """Write the page to `measured.path`."""
    assert measured.path is not None
    title = f"{measured.model} on {measured.data}"
    sections = [
        _head(title, measured, run, parts),
        "<main>",
        _likelihood(measured.likelihood, parts.rows),
        _samples(measured.samples, parts.rows),
        _calibration(measured.calibration),
        _features(measured),
        _left_out(measured),
        _meanings(measured),
        "</main>",
    ]
    footer = (
        f"tacit {__version__}, torch {torch.__version__}; data sha256 {parts.rows.fingerprint()[:16]}; the numbers are "
        "in evaluation.json."
    )
    page.write(measured.path, title, "\n".join(sections), footer)


def _head(title: str, measured: Evaluation, run: Run, parts: Parts) -> str:
    record = run.record
    learned = f"Fitted on {record['data']['name']}" + (f" for {record['step']:,} steps" if record.get("step") else "")
    where = {"all": "all rows"}.get(measured.split, f"the {measured.split} part")
    text = f"{learned}. Measured on {where} of {measured.data}: {measured.rows:,} rows."
    warning = "<p><strong>The model has learned from these rows.</strong></p>" if parts.learned else ""
    return f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(text)}</p>{warning}</header>'


def _section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>{body}</section>'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], words: str, text: tuple[int, ...] = ()) -> str:
    """A table whose first column are headings; the columns numbered in `text` hold words."""

    def cell(i: int, value: str, tag: str) -> str:
        return f"<{tag}{' class=text' if i in text else ''}>{escape(value)}</{tag}>"

    top = "".join(cell(i, value, "th") for i, value in enumerate(head))
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = []
    for first, *rest in rows:
        cells = "".join(cell(i + 1, value, "td") for i, value in enumerate(rest))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(words)}"><table>'
        f"{top}<tbody>{''.join(lines)}</tbody></table></div>"
    )


# -- likelihood --------------------------------------------------------------------------------------------------------


def _likelihood(found: Likelihood | None, data: Dataset) -> str:
    if found is None:
        return ""
    body = _table(("", ""), density_facts(found), "Likelihood", (1,))
    bits = found.values[found.values.isfinite()] / (data.space.dimensions * math.log(2))
    if len(bits) > 1:
        body += f'<figure class="plot">{_histogram(bits)}</figure>'
    if found.by_class:
        rows = [
            (c.name, f"{c.bits_per_dimension:.4f}", f"{c.nats:.3f}", f"{c.standard_error:.3f}", f"{c.rows:,}")
            for c in found.by_class
        ]
        head = ("class", "bits/dim", "nats", "± standard error", "rows")
        body += f"<h2>Likelihood by class</h2>{_table(head, rows, 'Likelihood by class')}"
    for heading, ranked in (("Most likely rows", found.most), ("Least likely rows", found.least)):
        body += f"<h2>{heading}</h2>{_ranked(ranked, data, heading)}"
    return _section("likelihood", "Likelihood", body)


def _histogram(bits: Tensor) -> str:
    def draw(plot: Any) -> None:
        plot.hist(bits.numpy(), bins=40, color=page.GREEN, alpha=0.8)
        plot.axvline(float(bits.mean()), color=page.INK, linewidth=0.8, linestyle=":")
        plot.set_xlabel("bits per dimension of a row")
        plot.set_ylabel("rows")

    return page.plot(draw, "Histogram of bits per dimension over rows", (7, 2.6))


def _ranked(ranked: tuple[tuple[int, float], ...], data: Dataset, words: str) -> str:
    """Rows of the data with their nats: pictures of images, the first columns of tables, the beginnings of texts."""
    index = torch.tensor([row for row, _ in ranked])
    x, space = data[index].cpu(), data.space
    if isinstance(space, Vectors):
        columns = min(_MOST_COLUMNS, space.features)
        head = ("row", "nats", *(f"x{i}" for i in range(columns)), *(["…"] if columns < space.features else []))
        rows = [
            (str(i), f"{nats:.2f}", *(f"{v:.4g}" for v in row[:columns].tolist()))
            for (i, nats), row in zip(ranked, x, strict=True)
        ]
        return _table(head, rows, words)
    if isinstance(space, Tokens):
        lines = pictures.as_text(x, data.vocabulary)
        texts = [(str(i), f"{nats:.2f}", line[:_MOST_SYMBOLS]) for (i, nats), line in zip(ranked, lines, strict=True)]
        return _table(("symbol", "nats", "text"), texts, words, (2,))
    nats = ", ".join(f"{value:.1f}" for _, value in ranked)
    numbers = ", ".join(str(row) for row, _ in ranked)
    shown = page.observations(x, x, data, words, f"nats {nats}; rows {numbers}", columns=len(ranked))
    return shown or _table(("row", "nats"), [(str(i), f"{value:.2f}") for i, value in ranked], words)


# -- samples -----------------------------------------------------------------------------------------------------------


def _samples(found: SampleQuality | None, data: Dataset) -> str:
    if found is None:
        return ""
    gallery = [page.observations(None, found.real, data, "real", "")]
    gallery.append(page.observations(found.drawn, found.real, data, "drawn", ""))
    body = f'<div class="gallery">{"".join(gallery)}</div>'
    rows = []
    for key, figure in found.figures.items():
        column, floor = COLUMN[key], found.floor.get(key)
        sense = {"lower": "↓", "higher": "↑", None: ""}[column.better]
        value, other = column.show(figure, error=True), column.show(floor, error=True)
        rows.append((f"{column.heading} {sense}", value, other, column.unit, str(figure.count or ""), figure.note))
    head = ("", "drawn", "other real", "unit", "N", "how")
    body += f'<p class="quiet">Compared in {escape(found.extractor)}. ± is one standard error.</p>'
    body += _table(head, rows, "Sample quality", (5,))
    if found.classes:
        shares = [(name, f"{real:.1%}", f"{drawn:.1%}") for name, (real, drawn) in found.classes.items()]
        body += f"<h2>Classes drawn</h2>{_table(('class', 'real', 'drawn'), shares, 'Shares of classes')}"
    if found.pairs is not None:
        body += f"<h2>Samples nearest to training rows</h2>{_pairs(found.pairs, data)}"
    return _section("samples", "Samples", body)


def _pairs(pairs: Tensor, data: Dataset) -> str:
    drawn, learned = pairs
    if isinstance(data.space, Images):
        note = "above the sample, below the training row nearest to it in these features; the nearest first"
        return page.observations(torch.cat([drawn, learned]), drawn, data, "pairs", note, columns=len(drawn))
    columns = min(_MOST_COLUMNS, data.space.dimensions)
    rows = []
    for i, (a, b) in enumerate(zip(drawn, learned, strict=True)):
        for name, row in ((f"{i + 1} drawn", a), (f"{i + 1} training", b)):
            rows.append((name, *(f"{v:.4g}" for v in row.flatten()[:columns].tolist())))
    return _table(("", *(f"x{i}" for i in range(columns))), rows, "Samples and their nearest training rows")


# -- classes and features ----------------------------------------------------------------------------------------------


def _calibration(found: Calibration | None) -> str:
    if found is None:
        return ""

    def draw(plot: Any) -> None:
        held = [b for b in found.bins if b.rows]
        plot.plot([0, 1], [0, 1], color=page.INK, linewidth=0.8, linestyle=":")
        width = 1 / len(found.bins)
        shares = [0.15 + 0.85 * b.rows / max(b.rows for b in held) for b in held]
        for b, share in zip(held, shares, strict=True):
            plot.bar((b.low + b.high) / 2, b.accuracy, width=0.9 * width, color=page.GREEN, alpha=share)
        plot.plot([b.confidence for b in held], [b.accuracy for b in held], "o-", color=page.INK, markersize=4)
        plot.set_xlim(0, 1)
        plot.set_ylim(0, 1.02)
        plot.set_xlabel("probability given to the guess")
        plot.set_ylabel("share that is right")

    picture = page.plot(draw, "Reliability diagram: accuracy against confidence", (4.6, 4.2))
    text = "On the dotted line probabilities are what they say; the darker a bar, the more rows it stands for."
    body = _table(("", ""), calibration_facts(found), "Calibration", (1,))
    body += f'<p class="quiet">{text}</p><figure class="plot">{picture}</figure>'
    return _section("calibration", "Classes", body)


def _features(measured: Evaluation) -> str:
    rows = code_facts(measured)
    return _section("features", "Features", _table(("", ""), rows, "Features", (1,))) if rows else ""


def _left_out(measured: Evaluation) -> str:
    if not measured.left_out:
        return ""
    items = "".join(f"<li>{escape(said)}</li>" for said in measured.left_out)
    return _section("left-out", "Left out", f"<ul>{items}</ul>")


def _meanings(measured: Evaluation) -> str:
    terms = _DENSITY if measured.likelihood is not None else {}
    terms = terms | (_CLASSES if measured.calibration is not None else {})
    if measured.samples is not None:
        terms |= _SAMPLES | {COLUMN[key].heading: COLUMN[key].meaning for key in measured.samples.figures}
    shown = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return _section("how", "What each number is", f"<dl>{shown}</dl>")
