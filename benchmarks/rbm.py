"""RBM on binarized MNIST: annealed importance sampling against enumeration, and the test likelihood.

The first figure trains an RBM of 12 hidden units, whose log Z is a sum over 4096 states, and measures by how many nats
annealed importance sampling misses it. The second trains the RBM of 500 hidden units of Salakhutdinov & Murray (2008)
and estimates its test log-likelihood as they did; their binary images were drawn from MNIST's grey levels anew, these
are the fixed set, so the figures stand beside one another and are not the same protocol. The recipe was chosen on the
validation part.

    python benchmarks/rbm.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
import tyro

import tacit
from record import fit, record


def partition(steps: int, ais_steps: int, seed: int) -> None:
    """Log Z of 12 hidden units: annealed against exact."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = fit(
            "rbm", "binarized-mnist", steps=steps, seed=seed, hidden=12, ais_steps=ais_steps, out=Path(folder) / "run"
        ).model
    with torch.no_grad():
        exact = model.enumerated_log_z().item()
        estimate, error = (value.item() for value in model.annealed_log_z())
    record(
        "rbm",
        "binarized-mnist",
        "annealed-log-z-error",
        abs(estimate - exact),
        split="none: a property of the weights",
        unit="nats",
        better="lower",
        seed=seed,
        seconds=time.perf_counter() - started,
        uncertainty=error,
        target=0.1,
        note=f"12 hidden units after {steps} steps; log Z {exact:.3f} by enumeration, {estimate:.3f} by "
        f"{model.ais_chains} chains of {ais_steps} steps; uncertainty is the estimate's own standard error",
    )


def likelihood(hidden: int, steps: int, ais_steps: int, seed: int) -> None:
    """Mean test log-likelihood by annealed importance sampling."""
    _, _, test = tacit.load("binarized-mnist").parts()
    started = time.perf_counter()
    arguments = {"hidden": hidden, "ais_steps": ais_steps}
    with tempfile.TemporaryDirectory() as folder:
        model = fit("rbm", "binarized-mnist", steps=steps, seed=seed, out=Path(folder) / "run", **arguments).model
    learning = time.perf_counter() - started
    with torch.no_grad():
        nats = -torch.cat([model.log_prob(test[index]) for index in test.ordered(1000)]).mean().item()
    record(
        "rbm",
        "binarized-mnist",
        "nats",
        nats,
        split="test",
        unit="nats",
        better="lower",
        seed=seed,
        seconds=time.perf_counter() - started,
        kind="estimate",
        uncertainty=model.log_z_error.item(),
        reference={"value": 86.34, "source": "Salakhutdinov & Murray (2008), CD25(500), another binarisation of MNIST"},
        note=f"{hidden} hidden units, persistent contrastive divergence, {steps} steps in {learning / 60:.1f} minutes; "
        f"log Z by {model.ais_chains} chains of {ais_steps} steps, whose standard error is the uncertainty",
    )


def main(
    figure: Literal["both", "partition", "likelihood"] = "both",
    hidden: int = 500,
    steps: int = 40_000,
    ais_steps: int = 10_000,
    seed: int = 0,
) -> None:
    """Measure and record.

    Args:
        figure: which of the two.
        hidden: hidden units of the second.
        steps: learning steps of the second; the first takes a tenth.
        ais_steps: intermediate distributions.
        seed: of everything.
    """
    if figure != "likelihood":
        partition(max(1, steps // 10), ais_steps, seed)
    if figure != "partition":
        likelihood(hidden, steps, ais_steps, seed)


if __name__ == "__main__":
    tyro.cli(main)
