"""PixelVAE on static binarized MNIST: nats by importance weights, and how they divide between z and the pixels.

Every importance sample costs a pass of the autoregressive decoder, so that they are few; more only raise the bound.

    python benchmarks/pixel_vae.py --threads 2
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import torch
import tyro

import tacit
from record import fit, record
from tacit.model import Batch


def main(
    *,
    steps: int = 8000,
    batch_size: int = 32,
    layers: int = 4,
    samples: int = 20,
    rows: int = 10_000,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train, then measure and record.

    Args:
        steps: the training budget.
        batch_size: images a step.
        layers: gated layers of the decoder.
        samples: importance samples an image.
        rows: test images measured.
        threads: that torch may use.
        seed: of everything.
        out: the run folder, in which the same command goes on; a temporary one by default.
    """
    torch.set_num_threads(threads)
    data = tacit.load("binarized-mnist")
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            "pixel-vae",
            data,
            steps=steps,
            batch_size=batch_size,
            layers=layers,
            seed=seed,
            validate_every=5000,
            out=out or Path(folder) / "run",
        )
        model = run.model
    started = time.perf_counter()
    test = data.parts()[2].observations(rows)
    torch.manual_seed(seed)
    bounds, in_z, in_pixels = [], 0.0, 0.0
    with torch.no_grad():
        for x in test.split(100):
            bounds.append(model.importance_weighted(x, samples))
            losses = model.loss(Batch(x, torch.arange(len(x))))
            in_z += losses["kl"].item() * len(x) / len(test)
            in_pixels += losses["reconstruction"].item() * len(x) / len(test)
    nats = -torch.cat(bounds).double()
    record(
        "pixel-vae",
        "binarized-mnist",
        f"nll-importance-weighted-{samples}",
        nats.mean().item(),
        split=f"{len(test)} test images",
        unit="nats",
        better="lower",
        kind="bound",
        uncertainty=nats.std().item() / math.sqrt(len(nats)),
        target=80.6,
        reference={"value": 79.02, "source": "Gulrajani et al. 2017, arXiv:1611.05013, the best of table 1"},
        seed=seed,
        seconds=run.record["seconds"] + time.perf_counter() - started,
        note=f"static binarisation; {run.record['arguments']}; {run.record['step']} steps of {batch_size}, "
        f"{run.record['seconds']:.0f} seconds of training; with one sample {in_z + in_pixels:.2f} nats, of which "
        f"{in_z:.2f} ({in_z / (in_z + in_pixels):.1%}) in z and {in_pixels:.2f} in the pixels given z; uncertainty is "
        "the standard error over images",
        reason="two cores see far less data in this time than the paper's training did, with smaller networks",
    )


if __name__ == "__main__":
    tyro.cli(main)
