"""Samples as a picture: a grid of images or drawings, film strips or films, points, lines of text, curves of sound.

A density of two columns is drawn as a map under its samples, and beside it what a grid in noise becomes in the data.
Of a model with codebooks (`code_shares()`) a picture of its own shows how much of them is used.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tacit.capabilities import has
from tacit.data import Dataset
from tacit.model import Model
from tacit.spaces import Images, Strokes, Tokens, Vectors, Video, Waveform

_FRAME_MILLISECONDS = 150
# Of a drawing's tile: its side, the margin that stays empty and the pen's width, and how much larger it is drawn first.
_TILE, _MARGIN, _PEN, _FINER = 96, 8, 1.5, 4


def grid(x: Tensor, levels: int, columns: int | None = None, smallest: int = 256) -> Image.Image:
    """Images (batch, channels, height, width) side by side, one pixel apart, enlarged to `smallest` pixels or more."""
    count, channels, height, width = x.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grey = x.float() / (levels - 1) * 255
    tiles = torch.full((rows * columns, channels, height + 1, width + 1), 255.0)
    tiles[:count, :, :height, :width] = grey
    sheet = tiles.view(rows, columns, channels, height + 1, width + 1).permute(2, 0, 3, 1, 4)
    sheet = sheet.reshape(channels, rows * (height + 1), columns * (width + 1)).round().to(torch.uint8)
    array = sheet.permute(1, 2, 0).numpy()
    # Two channels have no mode of their own: the first is shown. The fourth of four is transparency.
    picture = Image.fromarray(np.ascontiguousarray(array[..., 0] if channels < 3 else array[..., :4]))
    scale = max(1, math.ceil(smallest / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def strips(x: Tensor, levels: int) -> Image.Image:
    """Clips (batch, frames, channels, height, width) as film strips, one row a clip."""
    return grid(x.flatten(0, 1), levels, columns=x.shape[1], smallest=512)


def film(x: Tensor, levels: int, path: Path) -> None:
    """Write clips (batch, frames, channels, height, width), side by side, as an animated GIF without end."""
    first, *rest = (grid(frame, levels) for frame in x.unbind(1))
    first.save(path, save_all=True, append_images=rest, duration=_FRAME_MILLISECONDS, loop=0)


def lines(x: Tensor) -> list[np.ndarray]:
    """The lines of a drawing, (length, 3) as `Strokes` has it, each (points, 2); a lone dot is a line of one point."""
    points = x[x[:, 2] != Strokes.END].double()
    places = points[:, :2].cumsum(0).numpy()
    ends = (points[:, 2] == 1).nonzero()[:, 0] + 1
    return [line for line in np.split(places, ends.tolist()) if len(line)]


def _tiles(x: Tensor, columns: int | None) -> tuple[int, int, list[list[np.ndarray]]]:
    """Drawings (batch, length, 3), each scaled to its tile of a grid: the grid's width and height, and their lines."""
    columns = columns or math.ceil(math.sqrt(len(x)))
    placed = []
    for i, drawing in enumerate(x.cpu()):
        found = lines(drawing)
        corner = np.array([i % columns, i // columns]) * _TILE
        if found:
            low, high = (side(np.concatenate(found), axis=0) for side in (np.min, np.max))
            scale = (_TILE - 2 * _MARGIN) / max(1e-9, (high - low).max())
            found = [(line - (low + high) / 2) * scale + _TILE / 2 + corner for line in found]
        placed.append(found)
    return columns * _TILE, math.ceil(len(x) / columns) * _TILE, placed


def drawings(x: Tensor, columns: int | None = None) -> Image.Image:
    """Drawings (batch, length, 3) side by side, each as large as its tile; a line of one point is a dot."""
    width, height, placed = _tiles(x, columns)
    picture = Image.new("L", (width * _FINER, height * _FINER), 255)
    pen = ImageDraw.Draw(picture)
    for line in itertools.chain.from_iterable(placed):
        points = [(float(across), float(down)) for across, down in line * _FINER]
        if len(points) > 1:
            pen.line(points, fill=0, width=round(_PEN * _FINER), joint="curve")
        else:
            (across, down), radius = points[0], _PEN * _FINER
            pen.ellipse((across - radius, down - radius, across + radius, down + radius), fill=0)
    return picture.resize((width, height), Image.Resampling.BOX)


def svg(x: Tensor, columns: int | None = None) -> str:
    """The same as a scalable vector graphic."""
    width, height, placed = _tiles(x, columns)
    paths = []
    for found in placed:
        # A line from a point to itself is a dot.
        drawn = [line if len(line) > 1 else line.repeat(2, 0) for line in found]
        ways = ["M" + "L".join(f"{across:.2f} {down:.2f}" for across, down in line) for line in drawn]
        paths.append(f'<path d="{"".join(ways)}"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    style = f'<g fill="none" stroke="black" stroke-width="{_PEN}" stroke-linecap="round" stroke-linejoin="round">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, ground, style, *paths, "</g>", "</svg>"]) + "\n"


def as_text(x: Tensor, vocabulary: tuple[str, ...]) -> list[str]:
    """Tokens (batch, length) as strings: characters joined, words spaced."""
    joint = "" if all(len(symbol) == 1 for symbol in vocabulary) else " "
    return [joint.join(vocabulary[i] for i in row) for row in x.tolist()]


def draw(model: Model, samples: Tensor, data: Dataset, path: Path) -> Path:
    """Write `samples` of `model` to `path`: a PNG, or a text file beside it for text; returns where.

    Args:
        model: for densities of two columns, which are drawn as well.
        samples: (count, *shape), of the space of `data`.
        data: what it learns from.
        path: of the PNG.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data.space, Images):
        grid(samples, data.space.levels).save(path)
    elif isinstance(data.space, Video):
        strips(samples, data.space.levels).save(path)
    elif isinstance(data.space, Tokens):
        path = path.with_suffix(".txt")
        path.write_text("\n---\n".join(as_text(samples, data.vocabulary)) + "\n", encoding="utf-8")
    elif isinstance(data.space, Vectors):
        real = data.observations(2000)
        if data.space.features == 2 and has(model, "density"):
            plane(model, samples, real, path)
        else:
            _scatter(samples, real, path)
    elif isinstance(data.space, Strokes):
        drawings(samples).save(path)
    elif isinstance(data.space, Waveform):
        waves(samples, data.space.rate, path)
    shares = getattr(model, "code_shares", None)
    if shares is not None:
        usage(shares(), path.with_name(f"codes-{path.name}"))
    return path


def usage(shares: dict[str, Tensor], path: Path) -> None:
    """How much each vector of a codebook, (codes,), is used, the most used first: one plot for each codebook."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(shares), 3), layout="constrained")
    plots = figure.subplots(1, len(shares), squeeze=False)[0]
    for plot, (name, share) in zip(plots, shares.items(), strict=True):
        plot.bar(np.arange(len(share)), share.cpu().sort(descending=True).values.numpy(), width=1.0)
        plot.axhline(1 / len(share), color="0.5", linestyle=":", label="all alike")
        perplexity = float(torch.special.entr(share).sum().exp())
        plot.set_title(f"{name.replace('_', ', ')}: perplexity {perplexity:.0f} of {len(share)}")
        plot.set_xlabel("codes, the most used first")
        plot.set_ylabel("share of places")
        plot.legend()
    figure.savefig(path, dpi=100)


def waves(x: Tensor, rate: int, path: Path, most: int = 12) -> None:
    """The first `most` recordings (batch, samples) one below the other, against seconds, each to its own height."""
    from matplotlib.figure import Figure

    count = min(most, len(x))
    figure = Figure(figsize=(8, 0.8 * count + 0.6), layout="constrained")
    plots = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
    for row, plot in zip(x[:count].numpy(), plots, strict=True):
        plot.plot(np.arange(len(row)) / rate, row, linewidth=0.5)
        plot.set_yticks([])
    plots[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)


@torch.no_grad()
def plane(model: Model, samples: Tensor, real: Tensor, path: Path, side: int = 120) -> None:
    """The density of two columns as a map with samples over it; of a flow, also a grid of noise in the data.

    Args:
        model: has a density of two columns.
        samples: (count, 2), of it.
        real: (count, 2), which say how far the map goes.
        path: of the PNG.
        side: points of the map along each axis.
    """
    from matplotlib.figure import Figure

    low, high = real.quantile(0.005, 0), real.quantile(0.995, 0)
    low, high = low - 0.2 * (high - low), high + 0.2 * (high - low)
    axes = [torch.linspace(float(a), float(b), side) for a, b in zip(low, high, strict=True)]
    log_prob = model.log_prob(torch.cartesian_prod(*axes).to(model.device)).view(side, side).cpu()  # type: ignore[operator]
    warps = has(model, "encode") and has(model, "decode") and model.encode(real[:1].to(model.device)).shape == (1, 2)  # type: ignore[operator]
    figure = Figure(figsize=(10 if warps else 5, 5), layout="constrained")
    plots = figure.subplots(1, 1 + warps, squeeze=False)[0]
    extent = (*(float(v) for v in (low[0], high[0], low[1], high[1])),)
    plots[0].imshow(log_prob.exp().T.numpy(), origin="lower", extent=extent, cmap="Blues", aspect="auto")
    plots[0].scatter(*samples.numpy().T, s=4, c="tab:orange", label="samples")
    plots[0].legend()
    if warps:
        plots[1].scatter(*real.numpy().T, s=4, c="0.8", label="data")
        along, across = torch.linspace(-3, 3, 200), torch.linspace(-3, 3, 13)
        for at in across:
            for line in (torch.stack((along, at.expand(200)), 1), torch.stack((at.expand(200), along), 1)):
                there = model.decode(line.to(model.device)).cpu().numpy()  # type: ignore[operator]
                plots[1].plot(*there.T, c="tab:blue", linewidth=0.6)
        plots[1].legend()
    for plot in plots:
        plot.set_xlim(*extent[:2])
        plot.set_ylim(*extent[2:])
    figure.savefig(path, dpi=100)


def _scatter(samples: Tensor, real: Tensor, path: Path) -> None:
    """The first two features, or the first two principal components of the data where there are more."""
    from matplotlib.figure import Figure

    if real.shape[1] > 2:
        centre, deviation = real.mean(0), real.std(0).clamp(min=1e-12)
        _, _, axes = torch.linalg.svd((real - centre) / deviation, full_matrices=False)
        real, samples = ((x - centre) / deviation @ axes[:2].T for x in (real, samples))
    figure = Figure(figsize=(5, 5), layout="constrained")
    plot = figure.add_subplot()
    columns = (0, 1) if real.shape[1] > 1 else (0, 0)
    for x, label, colour in ((real, "data", "0.7"), (samples, "samples", "tab:blue")):
        plot.scatter(x[:, columns[0]], x[:, columns[1]], s=6, c=colour, label=label)
    plot.legend()
    figure.savefig(path, dpi=100)
