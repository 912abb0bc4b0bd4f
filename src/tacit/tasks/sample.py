"""Draw new observations from a trained model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.capabilities import require
from tacit.errors import TacitError
from tacit.model import Model
from tacit.spaces import Images, Tokens
from tacit.tasks.run import Run
from tacit.training import pictures
from tacit.training.plan import reseed

_AT_ONCE = 256


def sample(run: Path, *, count: int = 64, temperature: float = 1.0, seed: int = 0, out: Path | None = None) -> Path:
    """Draw observations and write them as the kind of file the data was: PNG grid and .npy, CSV, or text.

    Args:
        run: the run folder.
        count: how many to draw.
        temperature: below 1 for likelier and less varied samples, above 1 for the opposite.
        seed: of the draw; the same seed draws the same samples.
        out: the folder to write to; RUN/samples by default.

    Returns:
        The file that a person would look at.

    Raises:
        CapabilityError: the model cannot sample.
    """
    found = Run(run)
    samples = draw(found.model, count, temperature=temperature, seed=seed)
    folder = out or found.path / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples.npy", samples.numpy())
    space = found.space
    if isinstance(space, Images):
        path = folder / "samples.png"
        pictures.grid(samples, space.levels).save(path)
    elif isinstance(space, Tokens):
        path = folder / "samples.txt"
        path.write_text("\n---\n".join(pictures.as_text(samples, found.vocabulary)) + "\n", encoding="utf-8")
    else:
        path = folder / "samples.csv"
        names = found.record["data"].get("feature_names") or [f"x{i}" for i in range(samples.shape[1])]
        header = ",".join(json.dumps(name) if "," in name else name for name in names)
        np.savetxt(path, samples.numpy(), delimiter=",", header=header, comments="", fmt="%.7g")
    return path


def draw(model: Model, count: int = 64, *, temperature: float = 1.0, seed: int | None = None, **options: Any) -> Tensor:
    """`count` observations from a model, (count, *space.shape), drawn a few hundred at a time.

    Args:
        model: one that samples.
        count: how many.
        temperature: see `sample`.
        seed: of the draw; None goes on with torch's generator.
        options: the model's own options of `sample`.

    Raises:
        CapabilityError: the model cannot sample.
        TacitError: count or temperature is not above 0.
    """
    require(model, "sample", "draw samples")
    if count < 1 or temperature <= 0:
        raise TacitError(f"count is {count} and temperature is {temperature}: both must be above 0")
    unknown = options.keys() - inspect.signature(model.sample).parameters.keys()  # type: ignore[arg-type]
    if unknown:
        raise TacitError(f"{type(model).__name__}.sample has no option {unknown.pop()!r}")
    if seed is not None:
        reseed(seed, "sample")
    sizes = [min(_AT_ONCE, count - start) for start in range(0, count, _AT_ONCE)]
    with torch.no_grad():
        parts = [model.sample(size, temperature=temperature, **options).cpu() for size in sizes]  # type: ignore[operator]
    return torch.cat(parts)
