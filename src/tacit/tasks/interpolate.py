"""Go from one observation to another through a model's latent space."""

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
from tacit.tasks.sample import write


def interpolate(
    run: Path,
    data: str | Dataset | None = None,
    *,
    pairs: int = 6,
    steps: int = 9,
    along: Literal["spherical", "linear"] = "spherical",
    out: Path | None = None,
) -> Path:
    """Encode pairs of observations, go from the one code to the other, and decode what lies between.

    Args:
        run: the run folder.
        data: whose observations to pair, evenly spaced, the first with the second and so on; by default the test part
            of the data that the model was fitted on.
        pairs: how many pairs.
        steps: observations from one end to the other, both included.
        along: "spherical" keeps to the norms that noise has, "linear" goes straight.
        out: the folder to write to; RUN/interpolations by default.

    Returns:
        The file that a person would look at. In a picture every line is one pair, as the model decodes it.

    Raises:
        CapabilityError: the model cannot encode, or not decode.
        SpaceError: the data is of another kind or shape than the model's.
        TacitError: there are fewer than two steps, no pair, or `along` is neither.
    """
    found = Run(run)
    for capability in ("encode", "decode"):
        require(found.model, capability, "interpolate")
    if pairs < 1 or steps < 2:
        raise TacitError(f"pairs is {pairs} and steps is {steps}: give at least 1 and 2")
    given = load(data) if isinstance(data, str) else data or found.data().parts()[2]
    check_space(found.model, given)
    x = given.observations(2 * pairs)
    if len(x) < 2 * pairs:
        raise DataError(f"{given.name} has {len(x)} observations: {pairs} pairs need {2 * pairs}; give fewer --pairs")
    between = path(found.model, x[::2], x[1::2], steps, along)

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
    z = ways[along](start, end, weight.expand(len(a), -1, start.shape[2]))
    decoded = model.decode(z.flatten(0, 1).unflatten(1, ends[0].shape[1:]))  # type: ignore[operator]
    return decoded.unflatten(0, (-1, steps)).cpu()


def spherical(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Points of the great circle through `a` and `b`, (…, features), where `weight`, likewise, is 0 and 1.

    Of ends whose directions are the same or opposite, those of the straight line (Shoemake 1985, SIGGRAPH, slerp).
    """
    cosine = torch.cosine_similarity(a, b, -1)[..., None].clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    on_circle = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / sine
    return torch.where(sine > 1e-3, on_circle, torch.lerp(a, b, weight))
