"""Fill in the missing part of an image, a row of a table or a clip, or continue a text or a drawing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.capabilities import require
from tacit.data import Dataset, load
from tacit.errors import DataError, SpaceError, TacitError
from tacit.model import Model
from tacit.spaces import Images, Space, Strokes, Tokens
from tacit.tasks.run import Run
from tacit.tasks.sample import write
from tacit.training import pictures
from tacit.training.plan import reseed


def complete(
    run: Path,
    data: str | Dataset | None = None,
    *,
    known: str = "first",
    prompt: str | None = None,
    count: int = 8,
    each: int = 4,
    temperature: float = 1.0,
    new: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Path:
    """Draw what is missing of some observations, and write the completions as the kind of file the data was.

    Args:
        run: the run folder.
        data: whose observations to complete; by default the test part of the data that the model was fitted on.
        known: what is given: "first" (the upper half of an image, of drawings as many points as half of the shortest
            one has, the first half of anything else), "left", "frame" (all but the middle of an image), "random" (every
            other entry by chance), the numbers of columns such as "0,2", or an .npy file with a bool array of an
            observation's shape.
        prompt: a text to continue, instead of observations.
        count: how many observations.
        each: how many completions of each.
        temperature: below 1 for likelier and less varied completions, above 1 for the opposite.
        new: characters to add to the prompt; what is left of the window by default.
        seed: of the draw.
        out: the folder to write to; RUN/completions by default.

    Returns:
        The file that a person would look at. In a picture every line is the observation, what is known of it, and its
        completions.

    Raises:
        CapabilityError: the model cannot complete.
        TacitError: the model's order does not allow this part to be completed from that, or `known` says nothing.
    """
    found = Run(run)
    require(found.model, "complete", "complete")
    if count < 1 or each < 1:
        raise TacitError(f"count is {count} and each is {each}: both must be above 0")
    space = found.space
    if prompt is not None:
        x, mask = _prompted(found, prompt, new)
    else:
        given = load(data) if isinstance(data, str) else data or found.data().parts()[2]
        if given.space != space:
            raise SpaceError(f"{given.name} is {given.space}, but the model was fitted on {space}: give data like that")
        x, mask = given.observations(count), mask_of(known, space)
        if isinstance(space, Strokes) and known == "first":
            points = int((x[..., 2] != Strokes.END).sum(1).min()) // 2
            mask = mask & (torch.arange(space.length) < points)[:, None]
    reseed(seed, "complete")
    done = fill(found.model, x.repeat_interleave(each, 0), mask, temperature=temperature)

    folder = out or found.path / "completions"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "completions.npy", done.numpy())
    if isinstance(space, Images):
        path = folder / "completions.png"
        # What is unknown is shown half-way between black and white.
        shown = torch.where(mask, x, torch.full_like(x, space.levels // 2))
        lines = torch.cat([x[:, None], shown[:, None], done.unflatten(0, (-1, each))], 1)
        pictures.grid(lines.flatten(0, 1), space.levels, columns=2 + each).save(path)
        return path
    if isinstance(space, Strokes):
        # Of what is known, a drawing that ends there.
        shown = torch.where(mask, x, x.new_tensor([0, 0, Strokes.END]))
        lines = torch.cat([x[:, None], shown[:, None], done.unflatten(0, (-1, each))], 1)
        return write(lines.flatten(0, 1), space, folder, "completions", columns=2 + each)
    return write(done, space, folder, "completions", found.vocabulary)


def fill(model: Model, x: Tensor, known: Tensor, **options: Any) -> Tensor:
    """`x`, (rows, *shape), with what is not `known`, (*shape) bool, drawn by the model: (rows, *shape).

    Raises:
        CapabilityError: the model cannot complete.
        TacitError: the mask is of another shape, or the model's order does not allow it.
    """
    require(model, "complete", "complete")
    unknown = options.keys() - inspect.signature(model.complete).parameters.keys()  # type: ignore[arg-type]
    if unknown:
        raise TacitError(f"{type(model).__name__}.complete has no option {unknown.pop()!r}")
    with torch.no_grad():
        parts = [model.complete(part.to(model.device), known, **options).cpu() for part in x.split(256)]  # type: ignore[operator]
    return torch.cat(parts)


def mask_of(known: str, space: Space) -> Tensor:
    """The mask, (*shape) bool, that `known` names: see `complete`.

    Raises:
        TacitError: it names none.
        DataError: the file cannot be read, or holds no such mask.
    """
    if known.endswith(".npy"):
        try:
            mask = torch.from_numpy(np.load(known, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataError(f"{known} cannot be read as an array: save a bool mask with numpy.save") from error
        return mask if mask.dtype == torch.bool else mask != 0
    mask = torch.zeros(space.shape, dtype=torch.bool)
    if known == "first":
        axis = 1 if isinstance(space, Images) else 0
        mask.narrow(axis, 0, space.shape[axis] // 2).fill_(True)
    elif known == "random":
        mask = torch.rand(space.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    elif known in ("left", "frame") and isinstance(space, Images):
        height, width = space.height, space.width
        if known == "left":
            mask[..., : width // 2] = True
        else:
            mask[:] = True
            mask[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    elif all(part.strip().isdigit() for part in known.split(",")):
        columns = [int(part) for part in known.split(",")]
        if max(columns) >= space.dimensions:
            raise TacitError(f"known names column {max(columns)}, and there are {space.dimensions}: they start at 0")
        mask.view(-1)[columns] = True
    else:
        raise TacitError(
            f'known is {known!r}, which is no part of {space.kind}: give "first", "random", "left" or "frame" (of '
            f"images), numbers of columns such as 0,2 or an .npy file"
        )
    return mask


def _prompted(run: Run, prompt: str, new: int | None) -> tuple[Tensor, Tensor]:
    """The prompt and room behind it, (1, characters), and the mask of what is known."""
    space, symbols = run.space, {symbol: i for i, symbol in enumerate(run.vocabulary)}
    if not isinstance(space, Tokens):
        raise TacitError(f"prompt is {prompt!r}, and the model was fitted on {space.kind}: leave prompt out")
    words = list(prompt) if all(len(symbol) == 1 for symbol in symbols) else prompt.lower().split()
    strange = [word for word in words if word not in symbols]
    if strange:
        raise TacitError(f"prompt has {strange[0]!r}, which the model has never read: leave it out")
    if not words:
        raise TacitError("prompt is empty: give some text, or draw whole texts with tacit sample")
    unbounded = getattr(run.model, "unbounded", False)
    length = max(space.length, len(words)) if new is None else len(words) + new
    if not unbounded and (length > space.length or len(words) >= space.length):
        raise TacitError(
            f"prompt and what is new have {length} symbols, and the model was fitted on windows of {space.length}: "
            f"shorten them, or fit it with a longer --length"
        )
    x = torch.zeros(length if unbounded else space.length, dtype=torch.int64)
    x[: len(words)] = torch.tensor([symbols[word] for word in words])
    return x[None], torch.arange(len(x)) < len(words)
