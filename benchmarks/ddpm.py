"""DDPM's variational bound on Fashion-MNIST, in bits per dimension of the uint8 pixels.

    TACIT_DATA=… python benchmarks/ddpm.py --minutes 60 --threads 2

All test images are measured with a stratified, unbiased estimate of the bound, and the first of them with all T terms,
to check the one against the other on the same images.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record


def main(
    data: str = "fashion-mnist",
    minutes: float = 60.0,
    batch_size: int = 64,
    rows: int = 10_000,
    terms: int = 16,
    whole_rows: int = 32,
    threads: int = 2,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train for a while, then measure and record.

    Args:
        data: a set of images by name or path.
        minutes: training budget.
        batch_size: images a step.
        rows: test images measured by the estimate, at most.
        terms: terms of the bound drawn for each of them.
        whole_rows: test images of which all terms are computed.
        threads: torch's threads.
        seed: of weights, batches and noise.
        out: the run folder; a temporary one by default.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fit("ddpm", data, minutes=minutes, batch_size=batch_size, seed=seed, out=out or Path(folder) / "run")
        model, steps = run.model, run.record["step"]
    test = tacit.load(data).parts()[2].observations(rows)
    bits = math.log(2) * test[0].numel()
    torch.manual_seed(seed)
    with torch.no_grad():
        estimate = -torch.cat([model.log_prob(x, terms=terms) for x in test.split(250)]) / bits
        whole = -torch.cat([model.log_prob(x, terms=None) for x in test[:whole_rows].split(16)]) / bits
    difference = estimate[: len(whole)] - whole
    record(
        "ddpm",
        data,
        "bits-per-dimension",
        estimate.mean().item(),
        split="test",
        unit="bits",
        better="lower",
        kind="bound",
        uncertainty=_error(estimate),
        seed=seed,
        seconds=time.perf_counter() - started,
        note=(
            f"{minutes:g} minutes, {steps} steps of {batch_size}; {len(test)} images, {terms} stratified terms each, "
            f"uncertainty is the standard error over images; all {model.timesteps} terms give "
            f"{whole.mean().item():.4f} on the first {len(whole)}, where the estimate differs by "
            f"{difference.mean().item():+.4f} ± {_error(difference):.4f}"
        ),
    )


def _error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values))


if __name__ == "__main__":
    tyro.cli(main)
