"""What the loop costs: training through `tacit` against a bare hand-written PyTorch loop, interleaved in one run.

Both sides have the same model, data, batches, optimiser and number of threads; the bare loop indexes one tensor, calls
the loss, the backward pass and a fused AdamW, and does nothing else. Aim 1.05, never above 1.10.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import tyro

from record import record
from tacit.data import Dataset
from tacit.model import Batch, Model, Recipe
from tacit.models.latent.vae import VAE
from tacit.spaces import Images
from tacit.training.loop import Loop
from tacit.training.plan import Plan


def bare(model: Model, data: Dataset, steps: int, size: int) -> float:
    """Seconds that a hand-written loop takes."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    model.train()
    started = time.perf_counter()
    done = 0
    while done < steps:
        for index in torch.randperm(len(data.x)).split(size)[: steps - done]:
            loss = model.loss(Batch(data.x[index], index)).total
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done += 1
    return time.perf_counter() - started


class Clock:
    """A watcher that remembers when the last step was logged, before the final save."""

    seconds = 0.0

    def logged(self, record: dict[str, float], fraction: float, seconds: float) -> None:
        self.seconds = seconds

    def said(self, message: str) -> None:
        print(message)


def through_tacit(model: Model, data: Dataset, steps: int, size: int) -> float:
    """Seconds that the loop takes, with its log, its checks and its reseeding."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(steps=steps, recipe=Recipe(batch_size=size), pictures=0, validate_every=steps * 2)
        Loop(model, data, data, plan, Path(folder), (clock,)).run()
    return clock.seconds


def main(rounds: int = 15, threads: int = 1, seed: int = 0) -> None:
    """Measure both nets and record the ratios.

    Args:
        rounds: interleaved repetitions; the medians are compared.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x = (torch.rand(12_800, 1, 28, 28) < 0.13).to(torch.uint8)
    data = Dataset(Images(1, 28, 28, 2), x, name="random binary pictures")
    nets = {
        "mlp": ({"network": "mlp", "hidden": (400,), "latent": 20}, 200),
        "conv": ({"network": "conv", "latent": 20}, 20),
    }
    for net, (arguments, steps) in nets.items():
        started = time.perf_counter()
        model = VAE(data.space, **arguments)
        sides = {"bare": bare, "tacit": through_tacit}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for name in [*sides, *list(sides) * rounds]:
            seconds[name].append(sides[name](model, data, steps, 128))
        # The first of each warmed up.
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        record(
            "vae",
            f"random-28x28-{net}",
            "speed-ratio:bare-loop:train-step",
            medians["tacit"] / medians["bare"],
            split="train",
            unit="times the bare loop's time",
            better="lower",
            target=1.05,
            seed=seed,
            seconds=time.perf_counter() - started,
            reference={"value": medians["bare"] / steps, "source": "the bare loop, seconds a step, same run"},
            note=f"medians of {rounds} interleaved rounds of {steps} steps, batch 128, {threads} thread(s); "
            f"tacit {medians['tacit'] / steps * 1e3:.3f} ms a step, bare {medians['bare'] / steps * 1e3:.3f} ms",
        )


if __name__ == "__main__":
    tyro.cli(main)
