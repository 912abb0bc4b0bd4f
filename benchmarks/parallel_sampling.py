"""Seconds to draw 16 and 64 images of 28 × 28 in groups, beside Gated PixelCNN naively and from its caches.

Naively every pixel costs a pass over the whole image. Such passes are alike, so one is timed and multiplied by the
number of pixels. What is timed is taken in turns, `repeats` times, and the medians are compared; the time is that of
the processor, which on a shared machine is steadier than the clock's. Both models have their default sizes and
untrained weights: what is drawn does not matter to the time.

    python benchmarks/parallel_sampling.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import tyro

from record import record
from tacit.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from tacit.models.autoregressive.parallel_multiscale import ParallelMultiscale
from tacit.spaces import Images

SPACE = Images(1, 28, 28, 2)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    before = time.process_time()
    work()
    return time.process_time() - before


@torch.no_grad()
def main(counts: tuple[int, ...] = (16, 64), repeats: int = 5, threads: int = 1, seed: int = 0) -> None:
    """Measure and record the ratios.

    Args:
        counts: how many images to draw together.
        repeats: of everything that is timed.
        threads: torch's threads; processor time adds those of all.
        seed: of weights and draws.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parallel, gated = ParallelMultiscale(SPACE).eval(), GatedPixelCNN(SPACE).eval()
    sizes = [f"{sum(p.numel() for p in model.parameters()):,}" for model in (parallel, gated)]
    for count in counts:
        started = time.perf_counter()
        x = parallel.sample(count)
        work = {
            "groups": lambda count=count: parallel.sample(count),
            "from-caches": lambda count=count: gated.sample(count),
            "naive": lambda x=x: gated.conditionals(x, None),
        }
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(repeats + 1):
            for name, each in work.items():
                times[name].append(seconds(each))
        median = {name: statistics.median(each[1:]) for name, each in times.items()}  # the first warmed up
        median["naive"] *= SPACE.dimensions
        for peer in ("naive", "from-caches"):
            record(
                "parallel-multiscale",
                "random-28x28",
                f"speed-ratio:gated-pixelcnn-{peer}:sample-{count}",
                median[peer] / median["groups"],
                split="none: untrained weights",
                unit=f"seconds of gated-pixelcnn {peer} / in groups",
                better="higher",
                reference={"value": median[peer], "source": f"gated-pixelcnn {peer}, seconds, same run"},
                seed=seed,
                seconds=time.perf_counter() - started,
                note=f"{count} images together in {median['groups']:.3f} processor seconds: {len(parallel.groups)} "
                f"passes and a base of {parallel.base.space.height} × {parallel.base.space.width}; medians of "
                f"{repeats}; default sizes, {sizes[0]} parameters against {sizes[1]}",
            )


if __name__ == "__main__":
    tyro.cli(main)
