"""Diffusion on Fashion-MNIST: the bound in bits per dimension, and samples at a thousand steps and at twenty.

    python benchmarks/diffusion.py ddpm
    python benchmarks/diffusion.py vdm
    python benchmarks/diffusion.py ddpm --measures ddim-20 dpm++-20     # of a run that is there; the rest as recorded

The bound: all test images by a stratified estimate without bias, and the first of them by all T terms (of VDM those of
T = 1000 steps), to check the one against the other on the same images. Samples: their Fréchet distance to test images
in the features of a small classifier of the data's own labels, named by the hash of its weights: it is not "FID".
Ancestral samples of a thousand steps; DDIM and DPM-Solver++(2M) at twenty, which should come within a tenth of them.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import tacit
from judge import Judge
from record import fit, record, recorded
from tacit.tasks.sample import draw
from tacit.training.plan import reseed

_DATA = "fashion-mnist"
RECIPES: dict[str, dict[str, Any]] = {
    "ddpm": {"noise_schedule": "cosine", "variance": "learned"},
    "vdm": {},
}
ANCESTRAL = "ancestral"
WAYS: dict[str, dict[str, Any]] = {
    ANCESTRAL: {"steps": None, "eta": 1.0},
    "ddim-20": {"steps": 20},
    "dpm++-20": {"steps": 20, "solver": "dpm++"},
}
_METRIC = "frechet-classifier-distance"


def main(
    name: tyro.conf.Positional[str],
    *,
    measures: tuple[str, ...] = ("bound", *WAYS),
    steps: int = 4000,
    batch_size: int = 64,
    rows: int = 10_000,
    terms: int = 16,
    whole_rows: int = 32,
    samples: int = 500,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train, measure and record.

    Args:
        name: "ddpm" or "vdm".
        measures: which figures to take: the bound, and ways to draw.
        steps: training budget.
        batch_size: images a step.
        rows: test images measured by the estimate, at most, and compared with samples.
        terms: terms of the bound drawn for each of them.
        whole_rows: test images of which all terms are computed.
        samples: drawn by each sampler.
        threads: torch's threads.
        seed: of weights, batches and noise.
        out: the run folder, runs/diffusion-NAME by default.
    """
    if name not in RECIPES:
        raise SystemExit(f"there is no {name}: there are {', '.join(RECIPES)}")
    torch.set_num_threads(threads)
    data = tacit.load(_DATA)
    out = out or Path("runs") / f"diffusion-{name}"
    run = fit(name, data, steps=steps, batch_size=batch_size, seed=seed, out=out, **RECIPES[name])
    trained = f"{run.record['arguments']}; {run.record['step']} steps of {batch_size}"
    if "bound" in measures:
        bound(run, data.parts()[2].observations(rows), terms, whole_rows, seed, trained)
    judge = Judge(data, rows, seed, Path("runs"))
    for way, options in WAYS.items():
        if way not in measures:
            continue
        few = way != ANCESTRAL
        best = recorded(name, _DATA, _METRIC) if few else None
        started = time.perf_counter()
        images = draw(run.model, samples, seed=seed, **options)
        seconds = time.perf_counter() - started
        judge.record(
            name,
            images,
            f"{trained}; drawn by {options}; seconds are those of drawing",
            way=f":{way}" if few else "",
            seconds=seconds,
            target=1.1 * best if best else None,
            reference={"value": best, "source": "the same run's ancestral samples of all steps"} if best else None,
            reason="twenty steps without noise keep the network's errors, which noise at every step would wash out",
        )


def bound(run: tacit.Run, test: Tensor, terms: int, whole_rows: int, seed: int, trained: str) -> None:
    """Measure and record bits per dimension."""
    started = time.perf_counter()
    model: Any = run.model
    bits = math.log(2) * test[0].numel()
    with torch.no_grad():
        reseed(seed, "evaluate")
        estimate = -torch.cat([model.log_prob(x, terms=terms) for x in test.split(250)]) / bits
        continuous, model.timesteps = model.timesteps, model.timesteps or 1000
        whole = -torch.cat([model.log_prob(x, terms=None) for x in test[:whole_rows].split(16)]) / bits
        model.timesteps = continuous
    difference = estimate[: len(whole)] - whole
    record(
        run.record["model"],
        _DATA,
        "bits-per-dimension",
        estimate.mean().item(),
        split="test",
        unit="bits",
        better="lower",
        kind="bound",
        uncertainty=_error(estimate),
        seed=seed,
        seconds=run.record["seconds"] + time.perf_counter() - started,
        note=f"{trained}; {len(test)} images, {terms} stratified terms each, uncertainty is the standard error over "
        f"images; all {model.timesteps or 1000} terms give {whole.mean().item():.4f} on the first {len(whole)}, where "
        f"the estimate differs by {difference.mean().item():+.4f} ± {_error(difference):.4f}",
    )


def _error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


if __name__ == "__main__":
    tyro.cli(main)
