"""Energy-based and Markov-chain models: a likelihood, samples, and anomalies.

    python benchmarks/energy_models.py dbm
    python benchmarks/energy_models.py ebm

The deep Boltzmann machine's test likelihood is the variational bound with log Z by annealed importance sampling, on the
fixed binarization of MNIST; the published figure is of binary images drawn from grey levels anew, by the same estimate.
Its recipe is chosen on the validation part. The Gaussian RBM is measured in bits per dimension of Fashion-MNIST.

Samples of models of Fashion-MNIST are judged by their Fréchet distance to its test images in the features of a
classifier of its labels, named by the hash of its weights: it is not "FID". Beside it, in the same run, samples of
tacit's Gaussian mixture of the pixels, and real training images, whose distance is the floor. Anomalies are MNIST's
test images among Fashion-MNIST's: the area under the curve of the model's energy, where 0.5 is chance, and beside it
of the mixture's density. Neither measure was looked at when recipes were chosen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import tacit
from judge import Judge
from record import fit, record
from tacit.metrics.anomalies import auroc
from tacit.model import Model
from tacit.training.plan import reseed

# Budgets in steps: what else a machine does then changes no figure.
RECIPES: dict[str, dict[str, Any]] = {
    "dbm": {"steps": 20_000, "ais_steps": 10_000},
    "gaussian-rbm": {"steps": 3000, "hidden": 500},
    "gsn": {"steps": 6000},
    "ebm": {"steps": 5000},
    "generator-ebm": {"steps": 10_000},
}
_PUBLISHED = {"value": 84.62, "source": "Salakhutdinov & Hinton (2009), two layers, another binarisation of MNIST"}


def in_parts(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(rows,) of `score`, 500 rows at a time."""
    with torch.no_grad():
        return torch.cat([score(part).double() for part in x.split(500)])


def likelihood(name: str, steps: int, seed: int, out: Path) -> None:
    """Nats of binary images, or bits per dimension of grey ones, of all test images."""
    data = tacit.load("binarized-mnist" if name == "dbm" else "fashion-mnist")
    test = data.parts()[2].observations()
    run = fit(name, data, seed=seed, out=out, **RECIPES[name] | {"steps": steps})
    started = time.perf_counter()
    model: Any = run.model
    reseed(seed, "evaluate")
    nats = -in_parts(model.log_prob, test)
    binary, dimensions = name == "dbm", data.space.dimensions
    figures = nats if binary else nats / (dimensions * math.log(2))
    record(
        name,
        data.name,
        "nll" if binary else "bits-per-dimension",
        figures.mean().item(),
        split="test",
        unit="nats" if binary else "bits/dim",
        better="lower",
        kind=model.density,
        uncertainty=model.log_z_error.item() / (1 if binary else dimensions * math.log(2)),
        reference=_PUBLISHED if binary else None,
        seed=seed,
        seconds=run.record["seconds"] + time.perf_counter() - started,
        note=f"{run.record['arguments']}; {run.record['step']} steps; log Z by {model.ais_chains} chains of "
        f"{model.ais_steps} steps, whose standard error is the uncertainty",
    )


def score_of(model: Model) -> tuple[Callable[[Tensor], Tensor], str]:
    """What says how strange an observation is, and its name."""
    if hasattr(model, "energy"):
        return model.energy, "energy"
    if hasattr(model, "surprise"):
        return model.surprise, "−log P(x | h), h without noise"
    return lambda x: -model.log_prob(x), "−log p(x)"  # type: ignore[operator]


def samples_and_anomalies(name: str, steps: int, rows: int, seed: int, out: Path) -> None:
    """Fréchet distance of samples, and the AUROC of MNIST among Fashion-MNIST."""
    data = tacit.load("fashion-mnist")
    test = data.parts()[2]
    strange = tacit.load("mnist").parts()[2].observations()
    judge = Judge(data, rows, seed, Path("runs"))
    runs = {
        "gaussian-mixture": fit("gaussian-mixture", data, seed=seed, out=Path(f"{out}-mixture"), quiet=True),
        name: fit(name, data, seed=seed, out=out, **RECIPES[name] | {"steps": steps}),
    }
    started = time.perf_counter()
    distances, areas = {}, {}
    for each, run in runs.items():
        reseed(seed, "evaluate")
        images = torch.cat([run.model.sample(min(500, rows - at)) for at in range(0, rows, 500)])
        distances[each] = judge.distance(images)
        score, what = score_of(run.model)
        areas[each] = auroc(in_parts(score, test.observations()), in_parts(score, strange))
    run = runs[name]
    seconds = run.record["seconds"] + time.perf_counter() - started
    trained = f"{run.record['arguments']}; {run.record['step']} steps"
    baseline = "tacit's Gaussian mixture of the pixels, this run"
    reference = {"value": distances["gaussian-mixture"], "source": baseline}
    judge.record(name, images, trained, seconds=seconds, reference=reference)
    if name == "gsn":
        # Pixels are drawn independently of each other given the hidden layers; published pictures are P(x | h) itself.
        still = torch.cat([run.model.reconstruct(part) for part in images.split(500)])
        note = f"{trained}; of each sample the most likely image given its hidden layers"
        judge.record(name, still, note, way=":most-likely", seconds=seconds, reference=reference)
    record(
        name,
        "fashion-mnist",
        "auroc-mnist",
        areas[name],
        split=f"{len(test)} test images, {len(strange)} of MNIST's",
        unit="area",
        better="higher",
        reference={"value": areas["gaussian-mixture"], "source": baseline},
        note=f"{trained}; the score is {what}",
        seed=seed,
        seconds=seconds,
    )


def main(
    name: tyro.conf.Positional[str],
    *,
    steps: int | None = None,
    rows: int = 10_000,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train by the recipe, measure and record.

    Args:
        name: dbm, gaussian-rbm, gsn, ebm or generator-ebm.
        steps: of training, the recipe's by default.
        rows: samples drawn, and real images they are compared with.
        threads: that torch may use.
        seed: of everything.
        out: the run folder, runs/energy-NAME by default.
    """
    if name not in RECIPES:
        raise SystemExit(f"there is no {name}: there are {', '.join(RECIPES)}")
    torch.set_num_threads(threads)
    out = out or Path("runs") / f"energy-{name}"
    steps = steps or RECIPES[name]["steps"]
    if name in ("dbm", "gaussian-rbm"):
        likelihood(name, steps, seed, out)
    else:
        samples_and_anomalies(name, steps, rows, seed, out)


if __name__ == "__main__":
    tyro.cli(main)
