"""Go from one observation to another through a model's latent space, or towards an attribute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tacit.capabilities import require
from tacit.data import Dataset, load
from tacit.errors import DataError, TacitError
from tacit.model import Model
from tacit.tasks.embed import check_space
from tacit.tasks.run import Run
from tacit.tasks.sample import class_number, write


def interpolate(
    run: Path,
    data: str | Dataset | None = None,
    *,
    pairs: int = 6,
    steps: int = 9,
    along: Literal["spherical", "linear"] = "spherical",
    attribute: str | None = None,
    strength: float = 1.0,
    out: Path | None = None,
) -> Path:
    """Encode pairs of observations, go from the one code to the other, and decode what lies between.

    With an attribute there are no pairs: every observation goes along one direction, the difference between the mean
    codes of the observations of a class and of all others, from away from the class to towards it.

    Args:
        run: the run folder.
        data: whose observations to pair, evenly spaced, the first with the second and so on; by default the test part
            of the data that the model was fitted on.
        pairs: how many pairs; with an attribute, how many observations.
        steps: observations from one end to the other, both included.
        along: "spherical" keeps to the norms that noise has, "linear" goes straight.
        attribute: a class of the data, by name or number, to go away from and towards.
        strength: how far, in differences of the mean codes.
        out: the folder to write to; RUN/interpolations by default.

    Returns:
        The file that a person would look at. In a picture every line is one pair, as the model decodes it; with an
        attribute, one observation, itself in the middle.

    Raises:
        CapabilityError: the model cannot encode, or not decode.
        SpaceError: the data is of another kind or shape than the model's.
        DataError: there are too few observations, or none of the class, or none that are not.
        TacitError: there are fewer than two steps, no pair, `along` is neither, or there is no such class.
    """
    found = Run(run)
    for capability in ("encode", "decode"):
        require(found.model, capability, "interpolate")
    if pairs < 1 or steps < 2:
        raise TacitError(f"pairs is {pairs} and steps is {steps}: give at least 1 and 2")
    given = load(data) if isinstance(data, str) else data or found.data().parts()[2]
    check_space(found.model, given)
    count = pairs if attribute is not None else 2 * pairs
    x = given.observations(count)
    if len(x) < count:
        raise DataError(f"{given.name} has {len(x)} observations, and {count} are needed: give fewer --pairs")
    if attribute is None:
        between = path(found.model, x[::2], x[1::2], steps, along)
    else:
        direction = strength * difference(found.model, given, class_number(attribute, list(given.class_names)))
        between = walk(found.model, x, direction, steps)

    folder = out or found.path / "interpolations"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "interpolations.npy", between.numpy())
    return write(between.flatten(0, 1), found.space, folder, "interpolations", found.vocabulary, steps)


@torch.no_grad()
def path(model: Model, a: Tensor, b: Tensor, steps: int, along: str = "spherical") -> Tensor:
    """What lies between observations `a` and `b`, (pairs, *shape): (pairs, steps, *shape).

    Raises:
        TacitError: `along` is neither "spherical" nor "linear".
    """
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"spherical": spherical, "linear": torch.lerp}
    if along not in ways:
        raise TacitError(f"along is {along!r}: give spherical or linear")
    ends = [model.encode(x.to(model.device)) for x in (a, b)]  # type: ignore[operator]
    start, end = (z.flatten(1)[:, None] for z in ends)
    weight = torch.linspace(0, 1, steps, device=model.device, dtype=start.dtype)[:, None]
    return _decoded(model, ways[along](start, end, weight.expand(len(a), -1, start.shape[2])), ends[0].shape)


@torch.no_grad()
def walk(model: Model, x: Tensor, direction: Tensor, steps: int) -> Tensor:
    """Observations, (count, *shape), moved by −1 to 1 times a direction of the code: (count, steps, *shape)."""
    z = model.encode(x.to(model.device))  # type: ignore[operator]
    weight = torch.linspace(-1, 1, steps, device=model.device, dtype=z.dtype)[:, None]
    return _decoded(model, z.flatten(1)[:, None] + weight * direction.flatten(), z.shape)


@torch.no_grad()
def difference(model: Model, data: Dataset, label: int, most: int = 5000) -> Tensor:
    """The direction of an attribute: the mean code of observations of class `label` less that of the others.

    Kingma & Dhariwal (2018), Glow, arXiv:1807.03039, §6; of the first `most` observations.

    Raises:
        DataError: there are none of the class, or none that are not.
    """
    labels = torch.full((len(data),), -1) if data.label is None else data.label
    means = []
    for what, rows in (("none of", labels == label), ("only", (labels != label) & (labels >= 0))):
        index = rows.nonzero()[:most, 0]
        if not len(index):
            raise DataError(f"{data.name} has {what} class {label}: an attribute needs rows with it and without")
        codes = [model.encode(data[some].to(model.device)) for some in index.split(200)]  # type: ignore[operator]
        means.append(torch.cat(codes).mean(0))
    return means[0] - means[1]


def _decoded(model: Model, z: Tensor, shape: torch.Size) -> Tensor:
    """Codes, (count, steps, features), of which the encoder gave `shape`: (count, steps, *shape of the data)."""
    return model.decode(z.flatten(0, 1).unflatten(1, shape[1:])).unflatten(0, z.shape[:2]).cpu()  # type: ignore[operator]


def spherical(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Points of the great circle through `a` and `b`, (…, features), where `weight`, likewise, is 0 and 1.

    Of ends whose directions are the same or opposite, those of the straight line (Shoemake 1985, SIGGRAPH, slerp).
    """
    cosine = torch.cosine_similarity(a, b, -1)[..., None].clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    on_circle = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / sine
    return torch.where(sine > 1e-3, on_circle, torch.lerp(a, b, weight))
