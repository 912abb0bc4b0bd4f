"""The page of the strangest observations: one HTML file with its pictures inside, and nothing from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tacit import __version__
from tacit.spaces import Images, Strokes, Tokens, Vectors, Video, Waveform
from tacit.tasks import page
from tacit.tasks.anomalies import Anomalies, about_labels, meaning
from tacit.tasks.detector import decide
from tacit.tasks.run import Run
from tacit.training import pictures

_PICTURE = 112  # pixels that the longer side of an item's picture has at least
_MARK = (214, 69, 44)  # the colour of blame
_MOST_COLUMNS = 12  # of a table that are shown, the most to blame


def write_page(found: Anomalies, run: Run, path: Path) -> Path:
    """Write the page; returns where."""
    model, learned = run.record["model"], run.record["data"]["name"]
    facts = (
        f"{len(found.index):,} rows, scored by {model} fitted on {learned}; p-values by {found.calibration:,} "
        "rows of that which it was not fitted on."
    )
    title = f"What does not belong in {found.data.name}?"
    body = f"""<header>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(facts)}</p>
<p class="advice">{escape(found.verdict[0].upper())}{escape(found.verdict[1:])}.</p>
</header>
<main>
<section aria-labelledby="scores">
<h2 id="scores">Scores</h2>
<p class="quiet">The shaded one decides; beside each, how many rows it would flag by the same rule.</p>
<div class="wide" tabindex="0" role="region" aria-labelledby="scores">{_scores(found)}</div>
<p class="quiet">{escape(about_labels(found))}</p>
</section>
<section aria-labelledby="items">
<h2 id="items">The strangest</h2>
<p class="quiet">A red edge marks what was flagged. Red within a row: what, had it been as it is in training rows that
are alike in everything else, would have made the row less strange. Below each score is its p-value.</p>
<div class="wide" tabindex="0" role="region" aria-labelledby="items">{_items(found)}</div>
</section>
</main>
"""
    footer = f"tacit {__version__}, torch {torch.__version__}; every row is in anomalies.csv beside this page."
    return page.write(path, title, body, footer)


def _scores(found: Anomalies) -> str:
    figures = ("AUROC", "AP") if found.accuracy else ()
    head = "".join(
        f"<th{' class=text' if i in (0, len(figures) + 2) else ''}>{word}</th>"
        for i, word in enumerate(("score", "flagged", *figures, "what it is"))
    )
    lines = []
    for name, score in found.scores.items():
        called = int(decide(score, found.p_values[name], found.rate, found.contamination).sum())
        accuracy = found.accuracy.get(name)
        cells = "" if accuracy is None else f"<td>{accuracy.auroc:.3f}</td><td>{accuracy.average_precision:.3f}</td>"
        chosen = ' class="chosen"' if name == found.score else ""
        lines.append(
            f'<tr{chosen}><th scope="row" class="text">{name}</th><td>{called:,}</td>{cells}'
            f'<td class="text">{escape(meaning(found, name))}</td></tr>'
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _items(found: Anomalies) -> str:
    names = list(found.scores)
    head = ["row", *(["label"] if found.labels is not None else []), "what it is, and what is to blame", *names]
    cells = "".join(f"<th{' class=text' if word.startswith('what') else ''}>{escape(word)}</th>" for word in head)
    lines = []
    for place, i in enumerate(found.order[: len(found.blame)].tolist()):
        kind = " class=flagged" if bool(found.flagged[i]) else ""
        label = f"<td>{'anomaly' if found.labels[i] else '–'}</td>" if found.labels is not None else ""
        scores = "".join(
            f"<td>{_number(float(found.scores[name][i]))}<small>p {float(found.p_values[name][i]):.2g}</small></td>"
            for name in names
        )
        blamed = found.blamed(place)
        note = f"<small>{escape(blamed)}</small>" if blamed else ""
        lines.append(
            f'<tr{kind}><th scope="row">{escape(found.row_name(i))}</th>{label}'
            f'<td class="text">{_shown(found, place, i)}{note}</td>{scores}</tr>'
        )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "∞"


def _shown(found: Anomalies, place: int, i: int) -> str:
    """An observation with its blame: pictures side by side, a row or a text with marks, or a curve."""
    space, x = found.data.space, found.data[found.index[i][None]][0]
    share = _share(found.blame[place])
    if isinstance(space, Images):
        return _pictures(x, space.levels, share)
    if isinstance(space, Video):
        return _pictures(torch.cat(list(x), 2), space.levels, torch.cat(list(share), 2))
    if isinstance(space, Vectors):
        return _row(found, x, share)
    if isinstance(space, Tokens):
        joint = "" if all(len(symbol) == 1 for symbol in found.data.vocabulary) else " "
        words = [found.data.vocabulary[s] if found.data.vocabulary else str(s) for s in x.tolist()]
        marked = [_marked(word, float(s)) for word, s in zip(words, share, strict=True)]
        return f"<pre>{joint.join(marked)}</pre>"
    if isinstance(space, Waveform):
        return _curve(x, share)
    if isinstance(space, Strokes):
        return page.image(pictures.drawings(x[None]), "the drawing")
    return ""


def _share(blame: Tensor) -> Tensor:
    """Blame as a share of the most, in [0, 1]."""
    blame = torch.where(blame.isinf(), blame.new_tensor(1.0), blame) if blame.isinf().any() else blame
    return (blame / blame.max().clamp(min=1e-12)).clamp(0, 1)


def write_picture(found: Anomalies, path: Path, columns: int = 6) -> Path:
    """Write the strangest images, each beside what is to blame, as one picture; returns where."""
    space = found.data.space
    x = found.data[found.index[found.order[: len(found.blame)]]]
    pairs = [_pair(one, space.levels or 2, _share(blame)) for one, blame in zip(x, found.blame, strict=True)]
    tiles = torch.stack([torch.cat(pair, 2) for pair in pairs])
    pictures.grid(tiles, 256, columns, smallest=1024).save(path)
    return path


def _pictures(x: Tensor, levels: int, share: Tensor) -> str:
    first, second = (_raster(image) for image in _pair(x, levels, share))
    return f'<span class="pair">{page.image(first, "the image")}{page.image(second, "what is to blame, in red")}</span>'


def _pair(x: Tensor, levels: int, share: Tensor) -> tuple[Tensor, Tensor]:
    """The image, and the same in grey under the colour of blame: (3, height, width) each, 0 to 255."""
    grey = x[:3].double() if len(x) >= 3 else x[:1].double()
    plain = (grey / (levels - 1) * 255).round().expand(3, -1, -1)
    weight = 0.75 * share.amax(0, keepdim=True)
    faded = plain.mean(0, keepdim=True).expand(3, -1, -1)
    blamed = (1 - weight) * faded + weight * torch.tensor(_MARK, dtype=torch.float64)[:, None, None]
    return plain, blamed


def _raster(x: Tensor) -> Image.Image:
    picture = Image.fromarray(x.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    scale = max(1, round(_PICTURE / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _row(found: Anomalies, x: Tensor, share: Tensor) -> str:
    """The values of a row, the most to blame first and marked."""
    order = share.argsort(descending=True, stable=True)[:_MOST_COLUMNS].tolist()
    names = [found.data.columns[j] if found.data.columns else f"column {j}" for j in range(len(x))]
    cells = [f"<span>{escape(names[j])} {_marked(f'{float(x[j]):.5g}', float(share[j]))}</span>" for j in order]
    more = f" <span>and {len(x) - len(order)} more</span>" if len(x) > len(order) else ""
    return f'<span class="values">{" ".join(cells)}{more}</span>'


def _marked(text: str, share: float) -> str:
    if share < 0.1:
        return escape(text)
    return f'<mark style="background: rgba{(*_MARK, round(0.1 + 0.6 * share, 2))}">{escape(text)}</mark>'


def _curve(x: Tensor, share: Tensor) -> str:
    """A recording as a curve, over stretches coloured by blame."""
    points = x.double() / 32768
    width, height, count = 480, 80, min(480, len(points))
    at = torch.arange(count) * len(points) // count
    line = " ".join(f"{i * width / count:.1f},{(1 - float(v)) * height / 2:.1f}" for i, v in enumerate(points[at]))
    bars = "".join(
        f'<rect x="{i * width / count:.1f}" width="{width / count + 0.5:.1f}" height="{height}" '
        f'fill="rgb{_MARK}" opacity="{0.6 * float(s):.2f}"/>'
        for i, s in enumerate(share[at])
        if s >= 0.1
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="the recording">'
        f'{bars}<polyline points="{line}" fill="none" stroke="currentColor"/></svg>'
    )
