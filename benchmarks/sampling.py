"""Seconds to draw 16 and 64 images, from caches and naively, for every model that draws site after site.

Naively every site costs a pass over the whole image. Such passes are alike, so that the time of one is multiplied by
the number of sites. From caches the whole draw is timed. Of both it is the median of three, after a first that warms
up. Weights are untrained: what is drawn does not matter to the time.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --models gpt --counts 16
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import tyro
from rich.console import Console
from rich.table import Table

from record import record
from tacit import catalogue
from tacit.models.autoregressive._autoregressive import Sequential
from tacit.spaces import Images

# The sizes of the prototype whose ratios are the targets; the others have their own defaults.
SIZES: dict[str, dict[str, Any]] = {
    "gated-pixelcnn": {"features": 64, "layers": 8, "kernel": 3},
    "wavenet": {"stacks": 1, "dilations": tuple(2**i for i in range(9))},
    "gpt": {"layers": 4, "heads": 4, "features": 128},
}
TARGETS = {"gated-pixelcnn": 300.0, "wavenet": 250.0, "gpt": 120.0}
# Why a target may be missed, other than by the second thread.
REASONS = {"gpt": "every step reads the keys and values of all sites before it, in every layer"}
SPACES = {"28x28": Images(1, 28, 28, 2), "32x32x3": Images(3, 32, 32, 256)}


@torch.no_grad()
def measure(model: Sequential, count: int) -> tuple[float, float]:
    """(seconds from caches, seconds naively) to draw `count` observations."""
    entries = model.entries(model.sample(count))
    naive = seconds_of(lambda: model.conditionals(entries, None)) * len(model.order)
    return seconds_of(lambda: model.sample(count)), naive


def seconds_of(work: Callable[[], object]) -> float:
    """The median of three times, after a first that warms up."""
    seconds = []
    for _ in range(4):
        before = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds[1:])


def main(
    models: tuple[str, ...] = ("gated-pixelcnn", "wavenet", "gpt"),
    spaces: tuple[str, ...] = ("28x28", "32x32x3"),
    counts: tuple[int, ...] = (16, 64),
    threads: tuple[int, ...] = (2, 1),
    seed: int = 0,
) -> None:
    """Measure, print a table and record the ratios.

    Args:
        models: names of models that draw site after site.
        spaces: 28x28, of two levels, and 32x32x3, of 256.
        counts: how many images to draw together.
        threads: torch's, of both; the targets are for two. They quicken full passes and slow a step's small products.
        seed: of weights and draws.
    """
    table = Table("model", "space", "threads", "images", "naive (s)", "cached (s)", "ratio")
    for name, space, of_torch, count in itertools.product(models, spaces, threads, counts):
        torch.set_num_threads(of_torch)
        torch.manual_seed(seed)
        model = cast(Sequential, catalogue.load(name)(SPACES[space], **SIZES.get(name, {})).eval())
        started = time.perf_counter()
        cached, naive = measure(model, count)
        cells = (name, space, str(of_torch), str(count), f"{naive:.1f}", f"{cached:.2f}", f"{naive / cached:.0f}")
        table.add_row(*cells)
        aimed = space == "28x28" and of_torch == 2
        record(
            name,
            f"random-{space}",
            f"speed-ratio:full-passes:sample-{count}{'' if of_torch == 2 else f'-{of_torch}-thread'}",
            naive / cached,
            split="none: untrained weights",
            unit="naive seconds / cached",
            better="higher",
            target=TARGETS.get(name) if aimed else None,
            reference={"value": naive, "source": "a full pass for every site, seconds, same run"},
            reason=REASONS.get(name, "a second thread quickens a full pass more than it does a step's small products"),
            seed=seed,
            seconds=time.perf_counter() - started,
            note=f"{count} images together, {cached:.2f} s from caches, {of_torch} thread(s), "
            f"{SIZES.get(name, 'default sizes')}, {len(model.order)} sites; medians of three, the naive time that "
            "of a pass times the sites",
        )
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
