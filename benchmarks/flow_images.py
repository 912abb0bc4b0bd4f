"""Test likelihoods of flows on images, beside the published figures.

    python benchmarks/flow_images.py glow-fashion
    python benchmarks/flow_images.py maf-logit

In bits per dimension: integers of 0 to 255, dequantised anew at every step; the bound's mean over all test images, one
draw of noise each. In the MAF paper's logit space (Papamakarios, Pavlakou & Murray 2017, appendix D): x ↦ logit(λ +
(1 − 2λ) (x + u) / 256), λ = 1e-6, u drawn once, and nats of that. NICE's figure: nats of (x + u) / 256 on [0, 1].

All 60,000 training images but the validation rows, by which training stops; all 10,000 test images.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

import tacit
from record import fit, record
from tacit.data import Dataset
from tacit.spaces import Vectors
from tacit.training.plan import reseed

_LOGIT = "Papamakarios, Pavlakou & Murray 2017, arXiv:1705.07057, table 3, the better of 5 and 10 blocks"
_FLOWS = "Grathwohl et al. 2019, arXiv:1810.01367, table 2"
_SHORT = "this is a few passes over the data by a network far smaller than the paper's"


@dataclass(frozen=True)
class Entry:
    """How a flow is trained, in what it is measured, and what was published."""

    model: str
    data: str
    unit: str
    published: float | None
    source: str
    recipe: dict[str, Any] = field(default_factory=dict)
    metric: str = "bits-per-dimension"
    reason: str = _SHORT


# Budgets in steps: what else a machine does then changes no figure.
_IMAGES = {"steps": 5000, "batch_size": 64, "validate_every": 10_000}
# A step of its residual networks takes twice Glow's.
_REALNVP = {**_IMAGES, "steps": 1500}
# Its solver takes fifty evaluations of the velocity a step. Of rates up to this one the highest learnt fastest.
_FFJORD = {**_IMAGES, "steps": 900, "hidden": (32, 32), "tolerance": 1e-3, "learning_rate": 1e-2}
_FLOW_PLUS_PLUS = {**_IMAGES, "steps": 1000, "blocks": 1, "batch_size": 16}
ENTRIES: dict[str, Entry] = {
    "maf-logit": Entry(
        "maf", "mnist", "nats", 1300.5, _LOGIT, {"minutes": 40, "layers": 5, "hidden": (1024,)}, "nll-logit"
    ),
    "realnvp-logit": Entry(
        "realnvp",
        "mnist",
        "nats",
        1323.2,
        _LOGIT,
        # It learns its images by heart: at twice this rate more steps, or no dropout, were worse on validation images.
        {"steps": 1200, "couplings": 10, "hidden": (1024,), "dropout": 0.2, "learning_rate": 1e-3},
        "nll-logit",
    ),
    "nice": Entry(
        "nice",
        "mnist",
        "nats",
        -1980.50,
        "Dinh, Krueger & Bengio 2015, arXiv:1410.8516, §5.1",
        {"steps": 2500, "hidden": (1000,) * 5},
        "nll-unit-interval",
    ),
    "realnvp": Entry("realnvp", "mnist", "bits/dim", 1.06, _FLOWS, _REALNVP),
    "glow": Entry("glow", "mnist", "bits/dim", 1.05, _FLOWS, _IMAGES),
    "ffjord": Entry("ffjord", "mnist", "bits/dim", 0.99, _FLOWS, _FFJORD),
    "realnvp-fashion": Entry("realnvp", "fashion-mnist", "bits/dim", None, "", {**_REALNVP, "steps": 1000}),
    "glow-fashion": Entry(
        "glow", "fashion-mnist", "bits/dim", 2.958, "a re-implementation's; no paper gives one", _IMAGES
    ),
    "flow++-fashion": Entry("flow++", "fashion-mnist", "bits/dim", None, "", _FLOW_PLUS_PLUS),
    "flow++-uniform-fashion": Entry(
        "flow++",
        "fashion-mnist",
        "bits/dim",
        None,
        "",
        {**_FLOW_PLUS_PLUS, "dequantisation": "uniform"},
        "bits-per-dimension-uniform",
    ),
}


def in_logit_space(data: Dataset, margin: float = 1e-6) -> Dataset:
    """Images as a table of logits, noise drawn once."""
    reseed(0)
    unit = (data.x.flatten(1).float() + torch.rand(len(data), data.space.dimensions)) / 256
    table = torch.logit(margin + (1 - 2 * margin) * unit.double()).float()
    official = {part: in_logit_space(held) for part, held in data.official.items()}
    return dataclasses.replace(data, space=Vectors(data.space.dimensions), x=table, official=official)


def main(
    name: tyro.conf.Positional[str],
    *,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train by the recipe, measure all test images and record the mean.

    Args:
        name: a line of `ENTRIES`.
        threads: that torch may use.
        seed: of weights, batches and noise.
        out: the run folder, runs/flow-images-NAME by default.
    """
    if name not in ENTRIES:
        raise SystemExit(f"there is no {name}: there are {', '.join(ENTRIES)}")
    entry = ENTRIES[name]
    torch.set_num_threads(threads)
    data = tacit.load(entry.data)
    if entry.metric == "nll-logit":
        data = in_logit_space(data)
    out = out or Path("runs") / f"flow-images-{name}"
    run = fit(entry.model, data, seed=seed, out=out, patience=10**9, **entry.recipe)
    started = time.perf_counter()
    reseed(seed, "evaluate")
    with torch.no_grad():
        nats = -torch.cat([run.model.log_prob(x).double() for x in data.parts()[2].observations().split(200)])
    dimensions = data.space.dimensions
    if entry.metric == "nll-unit-interval":
        nats = nats - dimensions * math.log(256)
    figures = nats / (dimensions * math.log(2)) if entry.unit == "bits/dim" else nats
    trained = run.record["seconds"]
    record(
        entry.model,
        entry.data,
        entry.metric,
        figures.mean().item(),
        split="test",
        unit=entry.unit,
        better="lower",
        kind=run.model.density,
        uncertainty=figures.std().item() / math.sqrt(len(figures)),
        target=entry.published,
        reference=None if entry.published is None else {"value": entry.published, "source": entry.source},
        reason=entry.reason,
        seed=seed,
        seconds=trained + time.perf_counter() - started,
        note=f"{run.record['arguments']}; {run.record['step']} steps, {trained:.0f} seconds of training; uncertainty "
        "is the standard error over test images",
        packages=("torchdiffeq",),
    )


if __name__ == "__main__":
    tyro.cli(main)
