"""How well a score tells spoilt observations from sound ones, on corruptions made from held-out data.

A corruption changes every observation of a batch and keeps the space: what comes out could have been in the user's
file. They were chosen to be of different natures, because a density can see one and be blind to another: noise and
shuffled patches break local structure and keep the histogram, contrast does the reverse, an image upside down keeps
everything but orientation, a table with its columns permuted keeps every marginal and loses all dependence.

References
----------
Nalisnick et al. (2019), Do deep generative models know what they don't know?, arXiv:1810.09136: why one corruption is
    not enough.
Hendrycks & Dietterich (2019), Benchmarking neural network robustness to common corruptions, arXiv:1903.12261.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import DataError, SpaceError
from tacit.spaces import Images, Space, Tokens, Vectors


def corruptions(space: Space, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The observations `x`, (rows, *space.shape), spoilt in each of the ways that suit their space.

    Raises:
        SpaceError: no corruptions are known for this kind of space.
    """
    generator = torch.Generator().manual_seed(seed)
    x = x.cpu()
    if isinstance(space, Images):
        return _images(x, space.levels, generator)
    if isinstance(space, Vectors):
        return _vectors(x, generator)
    if isinstance(space, Tokens):
        return _tokens(x, space.vocabulary, generator)
    raise SpaceError(f"no corruptions are defined for {space.kind}: use images, vectors or tokens")


def _images(x: Tensor, levels: int, generator: torch.Generator) -> dict[str, Tensor]:
    rows, _, height, width = x.shape
    top = levels - 1
    noise = torch.randn(x.shape, generator=generator) * max(0.2 * top, 1.0)
    # A binary image takes its noise by flipping one pixel in ten: rounded Gaussian noise would flip a third of them.
    noisy = torch.where(torch.rand(x.shape, generator=generator) < 0.1, top - x, x) if levels == 2 else x + noise
    side_h, side_w = max(1, round(height / 2.5)), max(1, round(width / 2.5))
    row = torch.randint(height - side_h + 1, (rows, 1, 1, 1), generator=generator)
    column = torch.randint(width - side_w + 1, (rows, 1, 1, 1), generator=generator)
    i, j = torch.arange(height).view(-1, 1), torch.arange(width)
    hidden = (i >= row) & (i < row + side_h) & (j >= column) & (j < column + side_w)
    found = {
        "noise": noisy,
        "blur": _blurred(x.float()),
        "occluded block": torch.where(hidden, top // 2 if levels > 2 else top - x, x),
        "inverted": top - x,
        "upside down": x.flip(2),
    }
    if min(height, width) >= 2:
        found["shuffled patches"] = _patches_shuffled(x, generator)
    return {name: spoilt.float().round().clamp(0, top).to(x.dtype) for name, spoilt in found.items()}


def _blurred(x: Tensor) -> Tensor:
    """Gaussian blur whose deviation is a sixteenth of the shorter side, at least 0.8 pixels."""
    deviation = max(0.8, min(x.shape[2:]) / 16)
    radius = math.ceil(2 * deviation)
    kernel = torch.exp(-torch.arange(-radius, radius + 1).square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=x.shape[1])


def _patches_shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """The quarters of each image in another order; what does not divide by two stays where it is."""
    rows, channels, height, width = x.shape
    h, w = height // 2, width // 2
    quarters = x[:, :, : 2 * h, : 2 * w].reshape(rows, channels, 2, h, 2, w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    # Along a random cycle of the four, every quarter moves.
    cycle = torch.rand(rows, 4, generator=generator).argsort(1)
    order = torch.empty_like(cycle).scatter_(1, cycle, cycle.roll(1, dims=1))
    moved = quarters.gather(1, order.view(rows, 4, 1, 1, 1).expand_as(quarters))
    whole = moved.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, 2 * h, 2 * w)
    spoilt = x.clone()
    spoilt[:, :, : 2 * h, : 2 * w] = whole
    return spoilt


def _vectors(x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    rows, features = x.shape
    order = torch.rand(rows, features, generator=generator).argsort(0)
    feature = torch.randint(features, (rows,), generator=generator)
    centre, spread = x.mean(0), x.std(0).nan_to_num()
    sign = torch.where(torch.rand(rows, generator=generator) < 0.5, -1.0, 1.0)
    outliers = x.clone()
    outliers[torch.arange(rows), feature] = centre[feature] + 3 * sign * spread[feature]
    found = {"columns permuted": x.gather(0, order), "one feature at 3 deviations": outliers}
    if features == 1:  # One column permuted is the same set of rows.
        del found["columns permuted"]
    return found


def _tokens(x: Tensor, vocabulary: int, generator: torch.Generator) -> dict[str, Tensor]:
    order = torch.rand(x.shape, generator=generator).argsort(1)
    strange = torch.randint(vocabulary, x.shape, generator=generator)
    replaced = torch.where(torch.rand(x.shape, generator=generator) < 0.2, strange, x)
    return {"shuffled symbols": x.gather(1, order), "one symbol in five replaced": replaced}


def auroc(sound: Tensor, spoilt: Tensor) -> float:
    """Probability that a spoilt observation scores above a sound one, ties counting half; scores are (rows,).

    Raises:
        DataError: either side is empty or holds a NaN.
    """
    if not len(sound) or not len(spoilt) or sound.isnan().any() or spoilt.isnan().any():
        raise DataError(f"AUROC of {len(sound)} sound and {len(spoilt)} spoilt scores: have some of each, and no NaN")
    ordered = sound.double().sort().values
    spoilt = spoilt.double().contiguous()
    below = torch.searchsorted(ordered, spoilt) + torch.searchsorted(ordered, spoilt, right=True)
    return float(below.double().mean()) / 2 / len(sound)


def mean_auroc(sound: Tensor, spoilt: dict[str, Tensor], resamples: int = 100, seed: int = 0) -> tuple[float, float]:
    """Mean of the AUROCs over corruptions of the same rows, and its standard error by resampling those rows."""
    generator = torch.Generator().manual_seed(seed)

    def mean(rows: Tensor) -> float:
        return sum(auroc(sound[rows], scores[rows]) for scores in spoilt.values()) / len(spoilt)

    rows = len(sound)
    draws = [mean(torch.randint(rows, (rows,), generator=generator)) for _ in range(resamples)]
    return mean(torch.arange(rows)), float(torch.tensor(draws).std())


def neighbour_distance(train: Tensor, x: Tensor, k: int = 5) -> Tensor:
    """Mean Euclidean distance of each row of `x` to its k nearest rows of `train`, (rows,): an anomaly score."""
    k = min(k, len(train))
    return torch.cat([torch.cdist(rows, train).topk(k, largest=False).values.mean(1) for rows in x.split(1024)])
