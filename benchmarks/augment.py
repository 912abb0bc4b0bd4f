"""Throughput of whole-batch augmentation beside kornia's: crop, flip and colour jitter, interleaved in one run.

Both sides start from the same uint8 batch and end with floats in [0, 1]. The operations are the same in kind: a random
resized crop with bilinear sampling, a mirror with probability 1/2, brightness and contrast and, in RGB, saturation and
hue, which kornia turns in HSV and tacit in YIQ. Needs kornia: `pip install --no-deps kornia kornia_rs`.

    python benchmarks/augment.py
"""

from __future__ import annotations

import statistics
import time

import kornia.augmentation as K
import torch
import tyro
from torch import nn

from record import record
from tacit.nn.augment import Augment


def main(rounds: int = 41, batch: int = 256, threads: int = 1, seed: int = 0) -> None:
    """Measure both kinds of image and record the ratios.

    Args:
        rounds: interleaved repetitions; the medians are compared.
        batch: images at a time.
        threads: torch's threads.
        seed: of the images and of what is done to them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    for channels, side, target in ((1, 28, 2.0), (3, 32, 5.0)):
        started = time.perf_counter()
        x = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8)
        rgb = channels == 3
        colour = {"saturation": 0.4, "hue": 0.1} if rgb else {}
        ours = Augment(crop=0.4, flip=0.5, brightness=0.4, contrast=0.4, **colour)
        theirs = nn.Sequential(
            K.RandomResizedCrop((side, side), scale=(0.4, 1.0)),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(brightness=0.4, contrast=0.4, **colour, p=1.0),
        )

        # Bound as defaults: each pass of the loop times its own images.
        sides = {"tacit": lambda x=x, f=ours: f(x), "kornia": lambda x=x, f=theirs: f(x.float() / 255)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for name in list(sides) * (rounds + 3):
            # Processor time, which other programs on the machine do not lengthen as they do a long turn's wall time.
            before = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - before)
        # The first three of each warmed up.
        medians = {name: statistics.median(values[3:]) for name, values in seconds.items()}
        record(
            "augment",
            f"random-{side}x{side}x{channels}",
            "speed-ratio:kornia:crop-flip-jitter",
            medians["kornia"] / medians["tacit"],
            split="train",
            unit="times kornia's throughput",
            better="higher",
            target=target,
            seed=seed,
            seconds=time.perf_counter() - started,
            reference={"value": batch / medians["kornia"], "source": "kornia, images a processor second, same run"},
            note=f"medians of processor time, {rounds} interleaved rounds, batch {batch}, {threads} thread(s); "
            f"tacit {medians['tacit'] * 1e3:.2f} ms a batch, kornia {medians['kornia'] * 1e3:.2f} ms",
            packages=("kornia",),
        )


if __name__ == "__main__":
    tyro.cli(main)
