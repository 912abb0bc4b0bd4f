"""Draw new observations from a trained model."""

from __future__ import annotations

import inspect
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit import catalogue
from tacit.capabilities import require
from tacit.errors import TacitError
from tacit.model import Model
from tacit.spaces import Images, Space, Strokes, Tokens, Video, Waveform
from tacit.tasks.run import Run
from tacit.training import pictures
from tacit.training.plan import reseed

_AT_ONCE = 256


def sample(
    run: Path,
    *,
    count: int = 64,
    temperature: tuple[float, ...] = (1.0,),
    label: str | None = None,
    guidance: float = 0.0,
    length: int | None = None,
    steps: int | None = None,
    solver: str | None = None,
    chain: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> Path:
    """Draw observations and write them as the kind of file the data was: PNG, GIF, SVG, .wav, CSV, or text; and .npy.

    Args:
        run: the run folder.
        count: how many to draw, at each temperature.
        temperature: below 1 for likelier and less varied samples, above 1 for the opposite; of several, `count` each,
            from the same random numbers, and a row of the picture for each.
        label: the class to draw, by name or number, of a model fitted with --classes.
        guidance: above 0 for samples more typical of their class, of a model fitted with --label-dropout.
        length: of a text or recording, where the model draws others than it was fitted on.
        steps: passes of the network for a draw, of diffusion models.
        solver: how a diffusion model goes from step to step: "ddim", or "dpm++" where steps are few.
        chain: frames of the way from noise to each draw, which makes a row of the picture, of models that go one.
        seed: of the draw; the same seed draws the same samples.
        out: the folder to write to; RUN/samples by default.

    Returns:
        The file that a person would look at; of recordings the first, beside a picture of them all.

    Raises:
        CapabilityError: the model cannot sample.
        TacitError: the model knows no such class, draws no other length, or has no such option.
    """
    found = Run(run)
    options: dict[str, Any] = {"guidance": guidance} if guidance else {}
    if label is not None:
        options["label"] = class_number(label, found.record["data"]["class_names"])
    given = {"length": length, "steps": steps, "solver": solver, "frames": chain}
    options |= {name: value for name, value in given.items() if value is not None}
    if not temperature:
        raise TacitError("there is no temperature: give one number or several, such as 0.5 0.7 1")
    samples = torch.cat([draw(found.model, count, temperature=t, seed=seed, **options) for t in temperature])
    folder = out or found.path / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "samples.npy", samples.numpy())
    columns = chain or (count if len(temperature) > 1 else None)
    return write(samples, found.space, folder, "samples", found.vocabulary, columns)


def class_number(label: str, names: list[str]) -> int:
    """The number of a class, by its name or number."""
    if label in names:
        return names.index(label)
    if label.isdigit():
        return int(label)
    raise TacitError(f"no class is called {label!r}: there are {', '.join(names) or 'none'}")


def write(
    x: Tensor,
    space: Space,
    folder: Path,
    stem: str,
    vocabulary: tuple[str, ...] = (),
    columns: int | None = None,
) -> Path:
    """Write observations (rows, *shape) as files that a person would look at; returns the first of them.

    Images and drawings lie in a square, or in rows of `columns`.
    """
    if isinstance(space, Images):
        path = folder / f"{stem}.png"
        pictures.grid(x, space.levels, columns).save(path)
    elif isinstance(space, Video):
        path = folder / f"{stem}.gif"
        pictures.film(x, space.levels, path)
    elif isinstance(space, Strokes):
        path = folder / f"{stem}.svg"
        path.write_text(pictures.svg(x, columns), encoding="utf-8")
    elif isinstance(space, Tokens):
        path = folder / f"{stem}.txt"
        path.write_text("\n---\n".join(pictures.as_text(x, vocabulary)) + "\n", encoding="utf-8")
    elif isinstance(space, Waveform):
        pictures.waves(x, space.rate, folder / f"{stem}.png")
        paths = [folder / f"{stem}-{i:0{len(str(len(x) - 1))}}.wav" for i in range(len(x))]
        for row, to in zip(x, paths, strict=True):
            _write_wav(row, space.rate, to)
        path = paths[0]
    else:
        path = folder / f"{stem}.csv"
        header = ",".join(f"x{i}" for i in range(x.shape[1]))
        np.savetxt(path, x.numpy(), delimiter=",", header=header, comments="", fmt="%.7g")
    return path


def _write_wav(x: Tensor, rate: int, path: Path) -> None:
    """One recording, (samples,) int16, as PCM of 16 bits, which is little-endian."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(x.numpy().astype("<i2").tobytes())


def draw(model: Model, count: int = 64, *, temperature: float = 1.0, seed: int | None = None, **options: Any) -> Tensor:
    """`count` observations from a model, (count, *space.shape), drawn a few hundred at a time.

    With the option `frames` they are the rows of chains that end in the draws, (count · frames, *space.shape).

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
    way = getattr(model, "chain", None) if "frames" in options else model.sample
    if way is None:
        raise TacitError(f"{catalogue.name_of(type(model))} has no chain from noise to draw: leave chain out")
    unknown = options.keys() - inspect.signature(way).parameters.keys()  # type: ignore[arg-type]
    if unknown:
        raise TacitError(f"{type(model).__name__}.sample has no option {unknown.pop()!r}")
    if seed is not None:
        reseed(seed, "sample")
    sizes = [min(_AT_ONCE, count - start) for start in range(0, count, _AT_ONCE)]
    with torch.no_grad():
        parts = [way(size, temperature=temperature, **options).cpu() for size in sizes]  # type: ignore[operator]
    return torch.cat(parts).flatten(0, 1) if "frames" in options else torch.cat(parts)
