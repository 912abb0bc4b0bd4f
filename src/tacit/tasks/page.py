"""What the pages of `compare`, `evaluate` and `anomalies` share: one HTML file each, pictures and style inside."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from tacit.data import Dataset
from tacit.spaces import Images, Strokes, Tokens, Vectors, Video
from tacit.training import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("page.html")
_PICTURE_PIXELS = 512
# Drawn by matplotlib, replaced in the SVG by the page's own text colour, which follows light and dark.
INK = "#010203"
GREEN, GREY = "#1f9d73", "#8a94a0"


def write(path: Path, title: str, body: str, footer: str) -> Path:
    """Write the page, whose `body` is HTML and whose title and footer are text; returns where."""
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), body=body, footer=escape(footer)
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def observations(
    x: Tensor | None, real: Tensor, data: Dataset, name: str, note: str, columns: int | None = None
) -> str:
    """One picture of samples, or of the `real` observations where there are none, with its caption.

    Images lie in rows of `columns`, or in a square. Kinds of data that have no picture give nothing.
    """
    space, shown = data.space, real if x is None else x.cpu()
    words = "real observations" if x is None else f"samples of {name}"
    if isinstance(space, Images):
        square = min(8, max(3, _PICTURE_PIXELS // (space.width + 1)))
        most = square**2 if columns is None else len(shown)
        body = image(pictures.grid(shown[:most], space.levels, columns or square), f"A grid of {words}")
    elif isinstance(space, Vectors):
        body = image(_scatter(x, real), f"A scatter plot of {words}")
        if space.features > 2:
            note += f"{'; ' if note else ''}first two principal components"
    elif isinstance(space, Tokens):
        lines = pictures.as_text(shown[:8], data.vocabulary)
        body = f"<pre>{escape(chr(10).join(f'{line}{chr(10)}' for line in lines))}</pre>"
    elif isinstance(space, Video):
        body = image(pictures.strips(shown[:8], space.levels), f"Film strips of {words}")
    elif isinstance(space, Strokes):
        body = image(pictures.drawings(shown[:36], columns), f"A grid of {words}")
    else:
        return ""
    caption = f"<figcaption>{escape(name)}<small>{escape(note)}</small></figcaption>"
    return f"<figure{' class=real' if x is None else ''}>{body}{caption}</figure>"


def image(picture: Image.Image, words: str) -> str:
    """A picture inside the page; `words` say what it shows to those who cannot see it."""
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
    for x, colour in zip(sets, (GREY, GREEN), strict=False):
        plot.scatter(x[:1000, 0], x[:1000, 1], s=5, c=colour, alpha=0.6, linewidths=0)
    plot.set_xlim(float(low[0] - room[0]), float(high[0] + room[0]))
    plot.set_ylim(float(low[1] - room[1]), float(high[1] + room[1]))
    return _raster(figure)


def _raster(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return Image.open(buffer)


def plot(draw: Callable[[Any], None], words: str, size: tuple[float, float] = (7, 4.2)) -> str:
    """What `draw` draws on a matplotlib axes, as an SVG in the page's own colours; `words` say what it shows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "tacit",
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    drawn = svg[svg.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
