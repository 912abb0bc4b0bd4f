"""M1+M2 and M2 on MNIST with 100 labels, beside the published errors.

The labelled rows are those of `protocols/mnist.100-labels.SEED.txt`, ten of each digit; all other labels of the
training part are hidden. Images are binarised at one half, and the decoder is Bernoulli; the paper took grey levels as
probabilities. The error is that of q(y|x) on the test set, with the last weights; a recipe is chosen on the validation
part with the labelled rows of seed 100, and then nothing is recorded.

    python benchmarks/semi_supervised_vae.py m1+m2
    python benchmarks/semi_supervised_vae.py m2 --part valid --seeds 100

A run that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import tacit
from few_labels import error, with_few_labels
from record import fit, record
from tacit.data import Dataset

_KINGMA = "Kingma et al. 2014, arXiv:1406.5298, table 1"


@dataclass(frozen=True)
class Entry:
    """How a kind is trained, what is aimed at, and what was published."""

    metric: str
    target: float
    published: float
    recipe: dict[str, Any]
    reason: str


ENTRIES: dict[str, Entry] = {
    "m1+m2": Entry(
        "error",
        0.045,
        0.0333,
        # Chosen on the validation part: a fully connected M1 keeps less of a digit, and M2 errs twice as often.
        {
            "steps": 18_000,
            "share": 0.25,
            "network": "conv",
            "m1_hidden": (256,),
            "weight": 10.0,
            "learning_rate": 3e-3,
            "schedule": "cosine",
        },
        "the validation error still fell: the paper took thousands of passes, and reproductions reach 4.3 to 9.3 %",
    ),
    "m2": Entry(
        "error-m2",
        0.12,
        0.1197,
        # Chosen on the validation part: fully connected, of any weight, it errs three times as often.
        {
            "steps": 2500,
            "network": "conv",
            "channels": (16, 32),
            "hidden": (256,),
            "weight": 10.0,
            "learning_rate": 3e-3,
            "schedule": "cosine",
        },
        "the paper's training took thousands of passes; a reproduction reaches 17.75 %",
    ),
}


def binarised(data: Dataset) -> Dataset:
    """Grey images as binary ones, on from one half."""
    official = {part: binarised(held) for part, held in data.official.items()}
    space = dataclasses.replace(data.space, levels=2)  # type: ignore[type-var]
    return dataclasses.replace(data, space=space, x=(data.x > 127).to(torch.uint8), official=official)


def main(
    kind: tyro.conf.Positional[str],
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    steps: int | None = None,
    part: Literal["test", "valid"] = "test",
    threads: int = 1,
    out: Path = Path("runs"),
) -> None:
    """Train with every seed, measure and record the mean.

    Args:
        kind: a line of `ENTRIES`.
        seeds: of the labelled rows, the weights, the noise and the order of data.
        steps: the budget of each, instead of the recipe's; then nothing is recorded.
        part: what they are measured on; "valid" records nothing.
        threads: that torch may use.
        out: the folder of the runs' folders.
    """
    if kind not in ENTRIES:
        raise SystemExit(f"there is no {kind}: there are {', '.join(ENTRIES)}")
    entry = ENTRIES[kind]
    torch.set_num_threads(threads)
    recipe = entry.recipe if steps is None else {**entry.recipe, "steps": steps}
    data = binarised(tacit.load("mnist"))
    errors, seconds = [], 0.0
    for seed in seeds:
        hidden = with_few_labels(data, seed)
        folder = out / f"semi-supervised-vae-{kind}-{seed}-{recipe['steps']}"
        run = fit("semi-supervised-vae", hidden, kind=kind, seed=seed, out=folder, validate_every=10**9, **recipe)
        errors.append(error(run.model, hidden.official[part]))
        seconds += run.record["seconds"]
        print(f"{kind}, seed {seed}: {errors[-1]:.2%} of {part}, {run.record['seconds']:.0f} s", flush=True)
    if part == "valid" or steps is not None:
        return
    record(
        "semi-supervised-vae",
        "mnist-100-labels",
        entry.metric,
        statistics.mean(errors),
        split="test",
        unit="fraction of the test set",
        better="lower",
        seed=list(seeds),
        seconds=seconds,
        uncertainty=statistics.stdev(errors) if len(errors) > 1 else None,
        target=entry.target,
        reference={"value": entry.published, "source": _KINGMA},
        reason=entry.reason,
        note=f"{kind}, {recipe}, mean of {len(seeds)} sets of labels: {', '.join(f'{e:.2%}' for e in errors)}; images "
        "binarised at one half; uncertainty is the standard deviation over the sets",
    )


if __name__ == "__main__":
    tyro.cli(main)
