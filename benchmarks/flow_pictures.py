"""The pictures of docs/flows.md.

python benchmarks/flow_pictures.py                               the plane: density, samples, warped grid
python benchmarks/flow_pictures.py --run runs/flow-images-glow   of a trained flow of images: temperatures, paths

They are written to docs/pictures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import tyro

import tacit
from record import fit
from tacit.models.flows._flow import Flow
from tacit.tasks.interpolate import path
from tacit.training import pictures
from tacit.training.plan import reseed

DOCS = Path(__file__).parent.parent / "docs" / "pictures"
TEMPERATURES = (0.4, 0.6, 0.8, 1.0)


def plane(steps: int, seed: int) -> None:
    """Splines learn two moons."""
    data = tacit.load("moons")
    with tempfile.TemporaryDirectory() as folder:
        options = {"steps": steps, "seed": seed, "pictures": 0, "out": Path(folder) / "run"}
        model = fit("neural-spline-flow", data, batch_size=512, layers=6, hidden=(64, 64), **options).model
    reseed(seed, "picture")
    pictures.plane(model, model.sample(1000), data.observations(2000), DOCS / "flow-moons.png")


def images(run: Path, seed: int) -> None:
    """A row for each temperature, of the same noise; a row for each pair of test images."""
    found = tacit.Run(run)
    model, levels = found.model, found.space.levels or 2
    assert isinstance(model, Flow)
    name = run.name.removeprefix("flow-images-")
    rows = []
    for temperature in TEMPERATURES:
        reseed(seed, "picture")
        rows.append(model.sample(12, temperature=temperature))
    pictures.grid(torch.cat(rows), levels, columns=12).save(DOCS / f"{name}-temperatures.png")
    x = found.data().parts()[2].observations(10)
    between = path(model, x[::2], x[1::2], 12)
    pictures.grid(between.flatten(0, 1), levels, columns=12).save(DOCS / f"{name}-paths.png")


def main(run: Path | None = None, steps: int = 3000, seed: int = 0) -> None:
    """Draw.

    Args:
        run: the run folder of a flow of images; the plane without one.
        steps: of learning the plane.
        seed: of learning and drawing.
    """
    DOCS.mkdir(parents=True, exist_ok=True)
    if run is None:
        plane(steps, seed)
    else:
        images(run, seed)


if __name__ == "__main__":
    tyro.cli(main)
