"""Mean Teacher on MNIST with 100 labels, beside the same net that learns from the labels alone.

The labelled rows are those of `protocols/mnist.100-labels.SEED.txt`, ten of each digit; all other labels of the
training part are hidden. The supervised-only net is the same model with the consistency weight 0: same network,
augmentation, steps, schedule and weight averaging. Both are measured once, on the test set, with their last weights;
a recipe is chosen on the validation part with the labelled rows of seed 100, and then nothing is recorded.

    python benchmarks/few_labels.py
    python benchmarks/few_labels.py --part valid --seeds 100
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

import tacit
from record import fit, record
from tacit.data import Dataset
from tacit.model import Model

PROTOCOLS = Path(__file__).parent / "protocols"


def with_few_labels(data: Dataset, seed: int) -> Dataset:
    """`data` with the labels of one protocol file, its validation and test parts whole."""
    train, valid, test = data.parts()
    numbers = torch.arange(len(data))
    row, _, _ = dataclasses.replace(data, label=numbers, class_names=()).parts()  # which file row each one is
    known = torch.from_numpy(np.loadtxt(PROTOCOLS / f"mnist.100-labels.{seed}.txt", dtype=np.int64)).flatten()
    label = torch.where(torch.isin(row.label, known), train.label, -1)
    assert (label >= 0).sum() == len(known) == 100
    return dataclasses.replace(train, label=label, official={"valid": valid, "test": test})


def error(model: Model, data: Dataset) -> float:
    """Fraction of `data` that the model names wrongly."""
    found = torch.cat([model.classify(part).argmax(1) for part in data.x.split(500)])
    return (found != data.label).double().mean().item()


def main(seeds: tuple[int, ...] = (0, 1, 2), steps: int = 6000, part: Literal["test", "valid"] = "test") -> None:
    """Train both nets for every seed and record the means over seeds.

    Args:
        seeds: of the labelled rows, the weights, the noise and the order of data.
        steps: the budget of each net.
        part: what they are measured on; "valid" records nothing.
    """
    data = tacit.load("mnist")
    errors: dict[str, list[float]] = {"mean teacher": [], "supervised only": []}
    started = time.perf_counter()
    for seed in seeds:
        hidden = with_few_labels(data, seed)
        for name, weight in (("mean teacher", {}), ("supervised only", {"consistency": 0.0})):
            with tempfile.TemporaryDirectory() as folder:
                run = fit(
                    "mean-teacher", hidden, steps=steps, seed=seed, out=Path(folder) / "run", quiet=True, **weight
                )
                errors[name].append(error(run.model, hidden.official[part]))
            print(f"seed {seed}, {name}: {errors[name][-1]:.2%}, {time.perf_counter() - started:.0f} s", flush=True)
    if part == "valid":
        return
    seconds = time.perf_counter() - started
    means = {name: statistics.mean(values) for name, values in errors.items()}
    ratios = [a / b for a, b in zip(*errors.values(), strict=True)]
    note = f"mean of {len(seeds)} sets of labels, {steps} steps each; uncertainty is the standard deviation over them; "
    for metric, unit, values, target, reference in (
        (
            "error",
            "fraction of the test set",
            errors["mean teacher"],
            0.04,
            {"value": means["supervised only"], "source": "the same net without the unlabelled rows, this run"},
        ),
        ("error-ratio:supervised-only", "of the supervised-only error", ratios, 0.5, None),
    ):
        record(
            "mean-teacher",
            "mnist-100-labels",
            metric,
            statistics.mean(values),
            split="test",
            unit=unit,
            better="lower",
            seed=list(seeds),
            seconds=seconds,
            uncertainty=statistics.stdev(values) if len(values) > 1 else None,
            target=target,
            reference=reference,
            note=note + ", ".join(f"{name} {', '.join(f'{v:.2%}' for v in found)}" for name, found in errors.items()),
        )


if __name__ == "__main__":
    tyro.cli(main)
