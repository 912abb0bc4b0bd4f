"""What the density of every model sums to on the plane.

    python benchmarks/masses.py

A sum over a fine grid, for every model of the catalogue that has an exact density of vectors (a bound need not sum to
one), after a short training.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import tyro

import tacit
from record import fit, record
from tacit import catalogue


def main(seed: int = 0, threads: int = 1, steps: int = 500, side: int = 800) -> None:
    """Sum every density.

    Args:
        seed: of weights and batches.
        threads: torch's threads.
        steps: of training before a density is summed.
        side: points on each side of the grid.
    """
    torch.set_num_threads(threads)
    for entry in catalogue.entries():
        if "density" in entry.capabilities and "vectors" in entry.spaces:
            mass(entry.name, seed, steps, side)


def mass(name: str, seed: int, steps: int, side: int) -> None:
    """Sum the density of model `name` over a grid that reaches a whole range beyond the data on every side."""
    started = time.perf_counter()
    train, _, _ = tacit.load("moons").parts()
    with tempfile.TemporaryDirectory() as folder:
        model = fit(name, "moons", steps=steps, seed=seed, pictures=0, quiet=True, out=Path(folder) / "run").model
    if model.density == "bound":
        return
    low, high = train.x.amin(0).double(), train.x.amax(0).double()
    width = 3 * (high - low) / side
    axes = [(2 * a - b) + w * (torch.arange(side) + 0.5) for a, b, w in zip(low, high, width, strict=True)]
    grid = torch.cartesian_prod(*axes).float()
    with torch.no_grad():
        total = (
            sum(model.log_prob(part).double().exp().sum().item() for part in grid.split(50_000)) * width.prod().item()
        )
    record(
        name,
        "moons",
        "mass-error",
        abs(total - 1),
        split="train",
        unit="probability",
        better="lower",
        kind="measured",
        target=1e-2,
        seed=seed,
        seconds=time.perf_counter() - started,
        note=f"|1 − Σ p(x) dx| with Σ = {total:.5f} on {side} × {side} points, three ranges of the data wide",
    )


if __name__ == "__main__":
    tyro.cli(main)
