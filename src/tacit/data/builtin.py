"""Data that needs neither files nor network: scikit-learn's digits, still and moving, photographs, sprites, 2-D toys.

The toys are drawn with a fixed seed, so that everyone has the same rows. Their parameters are those of the papers in
which they are usual: 25 gaussians as in PacGAN (Lin et al. 2018, arXiv:1712.04086: a grid of spacing 2, σ = 0.05);
8 gaussians, checkerboard and rings as in FFJORD (Grathwohl et al. 2019, arXiv:1810.01367); moons as scikit-learn makes
them, with σ = 0.1. Moving digits are to scikit-learn's digits what Moving MNIST (Srivastava, Mansimov & Salakhutdinov
2015, arXiv:1502.04681) is to MNIST, and sprites are a small dSprites (Matthey et al. 2017).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tacit.data.dataset import Dataset
from tacit.data.images import check_size
from tacit.errors import DataError
from tacit.spaces import Images, Vectors, Video

_TOY_ROWS = 20_000
_TOY_SEED = 0
_PATCH = 32
_CLIPS = {"train": 5000, "valid": 1000, "test": 1000}
_HELD_OUT_SCANS = 200
_FRAMES, _SIDE = 10, 16
_INK = 8  # from this level up a pixel of a scan is ink
_SHAPES = ("square", "ellipse", "heart")
_SPRITE_SIDE, _SPRITE_RADIUS, _POSITIONS, _SCALES, _TURNS = 32, 7, 16, 6, 8


def digits() -> Dataset:
    """1797 scans of handwritten digits, 8 × 8, in the 17 grey levels they come in (0 to 16)."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = torch.from_numpy(scans.images.astype(np.uint8))[:, None]
    names = tuple(map(str, scans.target_names))
    return Dataset(Images(1, 8, 8, levels=17), x, torch.from_numpy(scans.target.astype(np.int64)), "digits", names)


def moving_digits() -> Dataset:
    """Binary clips of 10 frames, 16 × 16, in which one of the digits moves and bounces off the walls; its label.

    It begins anywhere and moves by a pixel a frame, straight or diagonally, so that the first two frames determine the
    others but for the blank margins of scans, which meet walls unseen. The parts share no scan: held-out clips show
    digits that were never seen.
    """
    still = digits()
    rng = np.random.default_rng(_TOY_SEED)
    ink = (still.x[:, 0].numpy() >= _INK).astype(np.uint8)
    different = np.unique(ink.reshape(len(ink), -1), axis=0, return_index=True)[1]  # a few are the same in ink
    scans = rng.permutation(different)
    ends = [len(scans) - 2 * _HELD_OUT_SCANS, len(scans) - _HELD_OUT_SCANS]
    parts = {}
    for (part, count), of_part in zip(_CLIPS.items(), np.split(scans, ends), strict=True):
        chosen = rng.choice(of_part, count)
        x = torch.from_numpy(_bouncing(ink[chosen], rng))
        space = Video(_FRAMES, 1, _SIDE, _SIDE, levels=2)
        parts[part] = Dataset(space, x, still.label[chosen], "moving-digits", still.class_names)  # type: ignore[index]
    return replace(parts.pop("train"), official=parts)


def _bouncing(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clips (rows, frames, 1, side, side) in which each of the pictures (rows, size, size) moves."""
    rows, size, _ = pictures.shape
    room = _SIDE - size
    velocities = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    start, velocity = rng.integers(0, room + 1, (rows, 1, 2)), velocities[rng.integers(0, len(velocities), rows)]
    way = (start + velocity[:, None] * np.arange(_FRAMES)[:, None]) % (2 * room)
    corner = np.minimum(way, 2 * room - way)  # (rows, frames, 2), there and back between 0 and room
    clips = np.zeros((rows, _FRAMES, 1, _SIDE, _SIDE), np.uint8)
    row, frame = np.ogrid[:rows, :_FRAMES]
    for y, x in np.ndindex(size, size):
        clips[row, frame, 0, corner[..., 0] + y, corner[..., 1] + x] = pictures[:, None, y, x]
    return clips


def sprites() -> Dataset:
    """Binary images, 32 × 32, of one white shape: every combination of five factors once, 36,864 rows.

    The factors are those of dSprites: the shape, which is also the label; 6 scales from half the largest; 8 rotations;
    16 positions from left to right, and 16 from top to bottom, a pixel apart. Rotations share a quarter turn and not
    a whole one: a square looks the same after a quarter, and what no image shows no code could tell.
    """
    at = np.arange(-_SPRITE_RADIUS, _SPRITE_RADIUS + 1)
    angle = np.arange(_TURNS) / _TURNS * np.pi / 2
    cos, sin = (f(angle)[:, None, None] / _SPRITE_RADIUS for f in (np.cos, np.sin))
    across, up = at[None, :], -at[:, None]
    scale = np.linspace(0.5, 1, _SCALES)[:, None, None, None]
    # Coordinates that turn with the shape and in which it fits into the unit circle: (scales, turns, side, side).
    u, v = (cos * across + sin * up) / scale, (cos * up - sin * across) / scale
    p, q = 1.25 * u, 1.25 * v + 0.25  # the heart's own curve, about the middle of the circle it fits into
    inside = [
        np.maximum(abs(u), abs(v)) <= 0.7,
        u**2 + (2 * v) ** 2 <= 1,
        (p**2 + q**2 - 1) ** 3 <= p**2 * q**3,
    ]
    patches = np.stack(inside).astype(np.uint8)
    sizes = (*patches.shape[:3], _POSITIONS, _POSITIONS)
    x = np.zeros((*sizes, 1, _SPRITE_SIDE, _SPRITE_SIDE), np.uint8)
    first, side = (_SPRITE_SIDE - _POSITIONS - len(at) + 1) // 2, len(at)
    for left, top in np.ndindex(_POSITIONS, _POSITIONS):
        rows, columns = slice(first + top, first + top + side), slice(first + left, first + left + side)
        x[:, :, :, left, top, 0, rows, columns] = patches
    factors = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    return Dataset(
        Images(1, _SPRITE_SIDE, _SPRITE_SIDE, levels=2),
        torch.from_numpy(x).flatten(0, 4),
        factors[:, 0].clone(),
        "sprites",
        _SHAPES,
        factors=factors,
        factor_names=("shape", "scale", "rotation", "x", "y"),
    )


def photographs(*, size: int | tuple[int, int] | None = None, grey: bool = False) -> Dataset:
    """Two photographs, 427 × 640, cut into patches end to end; the label says from which a patch is.

    Args:
        size: height and width of a patch, or the side of a square one; 32 by default.
        grey: one channel instead of three.
    """
    from sklearn.datasets import load_sample_images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = load_sample_images()
    height, width = check_size(_PATCH if size is None else size)
    patches = []
    for picture in pictures.images:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        if grey:
            weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # ITU-R 601, as Pillow does it
            pixels = (pixels * weights).sum(0, keepdim=True).round().to(torch.uint8)
        if height > pixels.shape[1] or width > pixels.shape[2]:
            raise DataError(
                f"patches of {height} × {width} do not fit into photographs of 427 × 640: give a smaller size"
            )
        tiles = pixels.unfold(1, height, height).unfold(2, width, width)
        patches.append(tiles.permute(1, 2, 0, 3, 4).reshape(-1, len(pixels), height, width))
    label = torch.arange(len(patches)).repeat_interleave(torch.tensor([len(part) for part in patches]))
    names = tuple(name.rpartition("/")[2].partition(".")[0] for name in map(str, pictures.filenames))
    x = torch.cat(patches).contiguous()
    return Dataset(Images(*x.shape[1:]), x, label, "photographs", names)


def moons(*, rows: int = _TOY_ROWS) -> Dataset:
    """Two interleaved half circles."""
    from sklearn.datasets import make_moons

    x, label = make_moons(rows, noise=0.1, random_state=_TOY_SEED)
    return _toy("moons", x, label)


def eight_gaussians(*, rows: int = _TOY_ROWS) -> Dataset:
    """Eight gaussians on a circle of radius 2√2."""
    return _mixture("8-gaussians", rows)


def twenty_five_gaussians(*, rows: int = _TOY_ROWS) -> Dataset:
    """Twenty-five narrow gaussians on a grid."""
    return _mixture("25-gaussians", rows)


def checkerboard(*, rows: int = _TOY_ROWS) -> Dataset:
    """The black squares of a 4 × 4 board, [−4, 4]²."""
    rng = np.random.default_rng(_TOY_SEED)
    first = rng.random(rows) * 4 - 2
    second = rng.random(rows) - rng.integers(0, 2, rows) * 2 + np.floor(first) % 2
    return _toy("checkerboard", 2 * np.stack([first, second], 1))


def rings(*, rows: int = _TOY_ROWS) -> Dataset:
    """Four concentric circles of radius 0.75, 1.5, 2.25 and 3, σ = 0.08."""
    rng = np.random.default_rng(_TOY_SEED)
    label = rng.integers(0, 4, rows)
    angle = rng.random(rows) * 2 * math.pi
    circle = 0.75 * (label + 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return _toy("rings", circle + 0.08 * rng.standard_normal((rows, 2)), label)


def modes(name: str) -> tuple[Tensor, float]:
    """The centres (modes, 2) and the σ of a toy that is a mixture of gaussians: "8-gaussians" or "25-gaussians".

    Raises:
        DataError: the toy is no such mixture.
    """
    if name == "8-gaussians":
        angle = torch.arange(8) * (math.pi / 4)
        return 2 * math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1), 0.5 / math.sqrt(2)
    if name == "25-gaussians":
        side = torch.arange(-4.0, 5.0, 2.0)
        return torch.cartesian_prod(side, side), 0.05
    raise DataError(f"{name} is no mixture of gaussians: 8-gaussians and 25-gaussians are")


def _mixture(name: str, rows: int) -> Dataset:
    rng = np.random.default_rng(_TOY_SEED)
    centres, sigma = modes(name)
    label = rng.integers(0, len(centres), rows)
    return _toy(name, centres.numpy()[label] + sigma * rng.standard_normal((rows, 2)), label)


def _toy(name: str, x: np.ndarray, label: np.ndarray | None = None) -> Dataset:
    label_of = None if label is None else torch.from_numpy(label.astype(np.int64))
    names = () if label is None else tuple(str(number) for number in range(int(label.max()) + 1))
    return Dataset(Vectors(2), torch.from_numpy(x.astype(np.float32)), label_of, name, names)


READERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "moving-digits": moving_digits,
    "photographs": photographs,
    "sprites": sprites,
    "moons": moons,
    "8-gaussians": eight_gaussians,
    "25-gaussians": twenty_five_gaussians,
    "checkerboard": checkerboard,
    "rings": rings,
}
