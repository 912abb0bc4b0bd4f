"""Test log-likelihood of one MADE or one VAE on the statically binarised MNIST, in nats, beside the published figures.

Protocol: the usual 50,000 / 10,000 / 10,000 rows, binarised once and for all (Larochelle & Murray 2011); all training
rows, all test rows. MADE's number is exact; the VAE's is the importance-weighted bound with `samples` samples an image
(Burda et al. 2016, arXiv:1509.00519). The recipes below were chosen on the validation rows;
MADE of 2000 units had been measured on the test rows before (89.17 nats).

An interrupted run goes on where it stopped when the same command is given again; a finished one is measured again.

    python benchmarks/binarized_mnist.py made
    python benchmarks/binarized_mnist.py vae
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import tacit
from record import record
from tacit.tasks.resume import resume

RECIPES: dict[str, dict[str, Any]] = {
    # Of 1000, 2000 and 4000 units the most are the best on the validation rows; the weights kept are the best there.
    "made": {"epochs": 12, "patience": 3, "hidden": (4000,), "batch_size": 100, "learning_rate": 1e-3},
    "vae": {
        "epochs": 40,
        "network": "conv",
        "hidden": (256,),
        "batch_size": 128,
        "learning_rate": 2e-3,
    },
}
TARGETS = {"made": 88.7, "vae": 86.8}
REFERENCES = {
    "made": {"value": 88.40, "source": "Germain et al. 2015, arXiv:1502.03509, one hidden layer, one mask"},
    "vae": {
        "value": 86.76,
        "source": "Burda et al. 2016, arXiv:1509.00519, one stochastic layer, k = 5000 (binarisation not verified)",
    },
}


def main(
    model: tyro.conf.Positional[Literal["made", "vae"]],
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    samples: int = 1000,
    threads: int = 2,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train by the recipe, measure all test rows and record the mean.

    Args:
        model: made or vae.
        epochs: the budget; the recipe's own by default.
        minutes: the budget in minutes of training instead.
        samples: importance samples an image, for the VAE.
        threads: that torch may use.
        seed: of the weights, the order of data and all noise.
        out: the run folder; runs/binarized-mnist-MODEL by default.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    recipe = dict(RECIPES[model])
    if epochs is not None or minutes is not None:
        recipe.pop("epochs")
    out = out or Path("runs") / f"binarized-mnist-{model}"
    data = tacit.load("binarized-mnist")
    if (out / "run.json").exists():
        run = resume(out)
    else:
        budget = {name: value for name, value in (("epochs", epochs), ("minutes", minutes)) if value is not None}
        run = tacit.fit(model, data, seed=seed, out=out, **recipe, **budget)
    if run.record["status"] == "interrupted":
        raise SystemExit(f"interrupted at step {run.record['step']}: the same command goes on from there")
    trained = time.perf_counter() - started

    torch.default_generator.manual_seed(seed)
    log_prob = []
    with torch.no_grad():
        for x in data.parts()[2].x.split(100):
            exact = model == "made"
            log_prob.append(run.model.log_prob(x) if exact else run.model.importance_weighted(x, samples))
    nats = -torch.cat(log_prob).double()
    plan, arguments = run.record["plan"], run.record["arguments"]
    record(
        model,
        "binarized-mnist",
        "nll" if model == "made" else f"nll-importance-weighted-{samples}",
        nats.mean().item(),
        split="test",
        unit="nats",
        better="lower",
        kind="exact" if model == "made" else "bound",
        uncertainty=nats.std().item() / math.sqrt(len(nats)),
        target=TARGETS[model],
        reference=REFERENCES[model],
        seed=seed,
        seconds=time.perf_counter() - started,
        note=(
            f"static binarisation; {arguments}; {plan['epochs'] or plan['minutes']} "
            f"{'epochs' if plan['epochs'] else 'minutes'}; {trained:.0f} seconds of training in this command; "
            "uncertainty is the standard error over test images"
        ),
    )


if __name__ == "__main__":
    tyro.cli(main)
