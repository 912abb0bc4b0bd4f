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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record
from tacit.metrics.extractor import extractor_for
from tacit.metrics.frechet import frechet_distance, jackknife

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
    train, _, test = (part.observations(rows) for part in data.parts())
    extractor = extractor_for(data, seed=seed, seconds=600)
    real = extractor(test)
    floor = frechet_distance(real, extractor(train))
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            run = fit(
                name, data, steps=steps, batch_size=batch_size, seed=seed, out=(out or Path(folder)) / name, **SETTINGS
            )
            measure(name, run, test, (real, extractor, floor), seed)


@torch.no_grad()
def measure(name: str, run: tacit.Run, test: Tensor, judge: tuple[Tensor, Callable, float], seed: int) -> None:
    """Record both figures of a run."""
    model, (real, extractor, floor) = run.model, judge
    started = time.perf_counter()
    torch.manual_seed(seed)
    bits = -torch.cat([model.log_prob(x) for x in test.split(100)]) / (math.log(2) * model.space.dimensions)
    codes, made, drawn, again = [], [], [], []
    for x in test.split(100):
        codes.append(model.sample_codes(len(x)))
        made.append(model.decode_codes(codes[-1]))
        drawn.append(model.sample(len(x)))
        again.append(model.reconstruct(x))
    features = {key: extractor(torch.cat(x)) for key, x in (("made", made), ("drawn", drawn), ("again", again))}
    distance = {key: frechet_distance(real, found) for key, found in features.items()}
    used = [len(torch.cat([each[i] for each in codes]).unique()) for i in range(len(codes[0]))]
    how = (
        f"{SETTINGS}; {run.record['step']} steps of {run.record['plan']['recipe']['batch_size']}, "
        f"{run.record['seconds']:.0f} seconds of training; {' and '.join(map(str, used))} codes drawn of "
        f"{run.record['arguments']['codes']}"
    )
    common = {"seed": seed, "seconds": run.record["seconds"] + time.perf_counter() - started}
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
        **common,
    )
    record(
        name,
        "fashion-mnist",
        "frechet-classifier-distance",
        distance["made"],
        split=f"{len(test)} samples against {len(real)} test images",
        unit=f"squared distance, extractor {extractor.hash()}",
        better="lower",
        uncertainty=jackknife(lambda part: frechet_distance(real, part), features["made"])[1],
        note=f"{how}; features: {extractor.description}; reconstructions {distance['again']:.3g}, samples with every "
        f"pixel drawn {distance['drawn']:.3g}, real training images {floor:.3g}; "
        "uncertainty is the jackknife's over the samples drawn",
        **common,
    )


if __name__ == "__main__":
    tyro.cli(main)
