"""Walk through a model's latent space: one dimension at a time, or both of a plane."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

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

# Codes of so many observations say where a dimension lies and how far it varies.
_OBSERVATIONS = 2000


def traverse(
    run: Path,
    data: str | Dataset | None = None,
    *,
    index: int = 0,
    dimensions: int = 10,
    steps: int = 9,
    reach: float = 3.0,
    out: Path | None = None,
) -> Path:
    """Decode what changes as one dimension of the code does; of a code of two dimensions, all of its plane.

    The unit of a dimension is the standard deviation of the data's codes along it, and its middle their mean: what a
    model does not use does not vary. With two dimensions the picture is a square of `steps` by `steps` codes that
    divide a Gaussian of these moments evenly (Kingma & Welling 2014, arXiv:1312.6114, fig. 4). With more, every line is
    the code of one observation with one dimension going through its reach, those that vary most first (Higgins et al.
    2017, ICLR, fig. 7).

    Args:
        run: the run folder.
        data: whose codes to take, of kind and shape as the model's; by default the test part of the data that it was
            fitted on.
        index: the observation that the lines start from, by its number in the data.
        dimensions: how many to go along, a line each.
        steps: observations in a line.
        reach: how far a line goes to both sides, in standard deviations.
        out: the folder to write to; RUN/traversals by default.

    Returns:
        The file that a person would look at; beside it all that was decoded, `traversals.npy`.

    Raises:
        CapabilityError: the model cannot encode, or not decode.
        SpaceError: the data is of another kind or shape than the model's.
        DataError: there is no such observation, or a single one.
        TacitError: there are fewer than two steps, no dimension, or no reach.
    """
    found = Run(run)
    for capability in ("encode", "decode"):
        require(found.model, capability, "traverse")
    if steps < 2 or dimensions < 1 or reach <= 0:
        raise TacitError(
            f"steps is {steps}, dimensions is {dimensions} and reach is {reach}: give at least 2, at least 1, above 0"
        )
    given = load(data) if isinstance(data, str) else data or found.data().parts()[2]
    check_space(found.model, given)
    if not 0 <= index < len(given) or len(given) < 2:
        raise DataError(f"{given.name} has {len(given)} observations: give two or more, and an --index among them")
    at, mean, deviation = codes(found.model, given, index)
    if mean.numel() == 2:
        lines = decoded(found.model, plane(mean.flatten(), deviation.flatten(), steps), at.shape)
    else:
        walked = along(at.flatten(), mean.flatten(), deviation.flatten(), dimensions, steps, reach)
        lines = decoded(found.model, walked, at.shape)

    folder = out or found.path / "traversals"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "traversals.npy", lines.numpy())
    return write(lines.flatten(0, 1), found.space, folder, "traversals", found.vocabulary, steps)


@torch.no_grad()
def codes(model: Model, data: Dataset, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The code of one observation, and the mean and standard deviation of many, in the code's shape."""
    x = data.observations(_OBSERVATIONS)
    z = torch.cat([model.encode(some.to(model.device)) for some in x.split(200)])  # type: ignore[operator]
    own = model.encode(data[torch.tensor([index])].to(model.device))[0]  # type: ignore[operator]
    return own, z.mean(0), z.std(0)


def plane(mean: Tensor, deviation: Tensor, steps: int) -> Tensor:
    """Codes, (steps, steps, 2), at the quantiles of a Gaussian: the first dimension upwards, the second rightwards."""
    quantiles = torch.tensor([NormalDist().inv_cdf((i + 0.5) / steps) for i in range(steps)], device=mean.device)
    up, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return mean + deviation * torch.stack([up, right], 2)


def along(at: Tensor, mean: Tensor, deviation: Tensor, dimensions: int, steps: int, reach: float) -> Tensor:
    """Codes, (lines, steps, features): of each line one dimension goes through its reach, the others stay."""
    varied = deviation.argsort(descending=True)[:dimensions]
    z = at.repeat(len(varied), steps, 1)
    offset = torch.linspace(-reach, reach, steps, device=at.device)
    z[torch.arange(len(varied)), :, varied] = mean[varied, None] + deviation[varied, None] * offset
    return z


@torch.no_grad()
def decoded(model: Model, z: Tensor, shape: torch.Size) -> Tensor:
    """Codes, (lines, steps, features), of which the encoder gives `shape`: (lines, steps, *shape of the data)."""
    return model.decode(z.flatten(0, 1).unflatten(1, shape)).unflatten(0, z.shape[:2]).cpu()  # type: ignore[operator]
