"""VQ-VAE and VQ-VAE-2 on Fashion-MNIST: bits per dimension (a bound), and samples by their Fréchet distance.

The distance is to test images in the features of a classifier of the data's own labels, named by its weights' hash
(not "FID"): of images as the decoder makes them from codes that the prior draws, each pixel the most likely one, as is
usual for these models. Beside it, in the note, that of reconstructions, which no prior could better; of draws of every
pixel, which is what the bound is about; and of as many real training images, the floor.

    python benchmarks/vq_vae.py                          # both models, one after the other
    python benchmarks/vq_vae.py vq-vae-2 --threads 2     # one, faster
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

import tacit
from judge import Judge
from record import fit, record

MODELS: tuple[Literal["vq-vae", "vq-vae-2"], ...] = ("vq-vae", "vq-vae-2")
# A mixture, whose scales depend on the codes: plain edges of cloth are certain where patterns are not.
SETTINGS = {"components": 5, "hidden": 96, "prior_features": 64, "prior_layers": 8}


def main(
    models: Annotated[tuple[Literal["vq-vae", "vq-vae-2"], ...], tyro.conf.Positional] = MODELS,
    *,
    steps: int = 12_000,
    batch_size: int = 32,
    rows: int = 10_000,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train each, then measure and record.

    Args:
        models: which.
        steps: the training budget.
        batch_size: images a step.
        rows: samples drawn, and test images they are compared with and that are measured.
        threads: that torch may use.
        seed: of everything.
        out: the folder of the run folders, in which the same command goes on; a temporary one by default.
    """
    torch.set_num_threads(threads)
    data = tacit.load("fashion-mnist")
    judge = Judge(data, rows, seed, Path("runs"))
    test = data.parts()[2].observations(rows)
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            run = fit(
                name, data, steps=steps, batch_size=batch_size, seed=seed, out=(out or Path(folder)) / name, **SETTINGS
            )
            measure(name, run, test, judge, seed)


@torch.no_grad()
def measure(name: str, run: tacit.Run, test: Tensor, judge: Judge, seed: int) -> None:
    """Record both figures of a run."""
    model = run.model
    started = time.perf_counter()
    torch.manual_seed(seed)
    bits = -torch.cat([model.log_prob(x) for x in test.split(100)]) / (math.log(2) * model.space.dimensions)
    codes, made, drawn, again = [], [], [], []
    for x in test.split(100):
        codes.append(model.sample_codes(len(x)))
        made.append(model.decode_codes(codes[-1]))
        drawn.append(model.sample(len(x)))
        again.append(model.reconstruct(x))
    of_again, of_drawn = (judge.distance(torch.cat(images)) for images in (again, drawn))
    used = [len(torch.cat([each[i] for each in codes]).unique()) for i in range(len(codes[0]))]
    how = (
        f"{SETTINGS}; {run.record['step']} steps of {run.record['plan']['recipe']['batch_size']}, "
        f"{run.record['seconds']:.0f} seconds of training; {' and '.join(map(str, used))} codes drawn of "
        f"{run.record['arguments']['codes']}"
    )
    seconds = run.record["seconds"] + time.perf_counter() - started
    record(
        name,
        "fashion-mnist",
        "bits-per-dimension",
        bits.mean().item(),
        split=f"{len(test)} test images",
        unit="bits",
        better="lower",
        kind="bound",
        uncertainty=bits.std().item() / math.sqrt(len(bits)),
        reference={
            "value": 2.958,
            "source": "an int8 pixel MLP of 149k parameters as an entropy coder, six minutes' training, measured by us",
        },
        note=f"{how}; uncertainty is the standard error over images",
        seed=seed,
        seconds=seconds,
    )
    judge.record(
        name,
        torch.cat(made),
        f"{how}; reconstructions {of_again:.3g}, samples with every pixel drawn {of_drawn:.3g}",
        seconds=seconds,
    )


if __name__ == "__main__":
    tyro.cli(main)
