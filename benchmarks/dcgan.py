"""Samples of DCGAN on Fashion-MNIST, by their Fréchet distance to test images in a classifier's features.

Beside it, with the same extractor and the same numbers of rows: samples of tacit's Gaussian mixture of the pixels, and
as many real training images, whose distance is the floor below which a difference means nothing. The distance is not
"FID": its extractor is a small classifier of the data's own labels, named by the hash of its weights.

    python benchmarks/dcgan.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import tyro

import tacit
from judge import Judge
from record import fit


def main(steps: int = 10_000, channels: int = 32, rows: int = 10_000, seed: int = 0) -> None:
    """Train both models, draw from them and record the distance.

    Args:
        steps: of each of DCGAN's players.
        channels: of DCGAN at half the image's size.
        rows: samples drawn, and real images they are compared with.
        seed: of everything.
    """
    data = tacit.load("fashion-mnist")
    judge = Judge(data, rows, seed, Path("runs"))
    distances, minutes = {}, {}
    for name, options in (
        ("gaussian-mixture", {}),
        ("dcgan", {"steps": steps, "channels": channels}),
    ):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = fit(name, data, seed=seed, out=Path(folder) / "run", quiet=True, **options)
            torch.manual_seed(seed)
            fake = run.model.sample(rows)
        minutes[name] = (time.perf_counter() - started) / 60
        distances[name] = judge.distance(fake)
        print(f"{name}: {distances[name]:.2f} after {minutes[name]:.1f} minutes", flush=True)
    baseline = "tacit's Gaussian mixture of the pixels, this run"
    judge.record(
        "dcgan",
        fake,
        f"{steps} steps of batch 128, {channels} channels",
        seconds=60 * minutes["dcgan"],
        target=distances["gaussian-mixture"] / 2,
        reference={"value": distances["gaussian-mixture"], "source": baseline},
    )


if __name__ == "__main__":
    tyro.cli(main)
