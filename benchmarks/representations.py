"""How good the features of self-supervised models are, beside the floors: raw pixels, PCA and the untrained network.

Each is probed alike: cosine k-NN with k = 200, T = 0.07, centred; cosine k-NN with k = 10, unweighted, uncentred;
logistic regression on standardised features, C chosen on a part of the training rows. The model learns from the
training part; the probes are fitted on all rows that are not test rows and scored on the test rows, once, at the end.

An interrupted training goes on where it stopped when the same command is given again.

    python benchmarks/representations.py --models simclr rotation
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro
from torch import Tensor

import tacit
from record import record
from tacit import catalogue
from tacit.data import Dataset
from tacit.metrics.probes import embed_all, knn, linear_probe
from tacit.tasks.resume import resume

# (model, figure) -> what is aimed at on Fashion-MNIST, in per cent.
_TARGETS = {("simclr", "linear-probe"): 87.5, ("simclr", "knn-200"): 82.9, ("rotation", "linear-probe"): 85.5}


def probe(
    name: str, data: Dataset, train: Tensor, test: Tensor, *, layer: str, seed: int, started: float, note: str = ""
) -> None:
    """Record the three figures of the features `train` and `test`, (rows, features)."""
    sides = (train, data.label, test, data.official["test"].label)
    weighted = knn(*sides, layer=layer)
    plain = knn(*sides, k=10, temperature=None, centred=False, layer=layer)
    linear = linear_probe(*sides, layer=layer)
    shape = f"{train.shape[1]} features of {layer}, {len(train)} rows"
    unconverged = "" if linear.converged else ", unconverged"
    figures = {
        "knn-200": (weighted.accuracy, f"cosine, k = {weighted.k}, T = {weighted.temperature}, centred"),
        "knn-10": (plain.accuracy, f"cosine, k = {plain.k}, unweighted, uncentred"),
        "linear-probe": (
            linear.accuracy,
            f"standardised, logistic regression, C = {linear.strength:g}{unconverged}",
        ),
    }
    for metric, (accuracy, how) in figures.items():
        record(
            name,
            data.name,
            metric,
            100 * accuracy,
            split="test",
            unit="% right",
            better="higher",
            target=_TARGETS.get((name, metric)) if data.name == "fashion-mnist" else None,
            seed=seed,
            seconds=time.perf_counter() - started,
            note="; ".join(filter(None, (how, shape, note))),
            packages=("scikit-learn",),
        )


def principal_components(train: Tensor, test: Tensor, count: int) -> list[Tensor]:
    """Both sides in the first `count` principal components of `train`."""
    mean = train.mean(0)
    train, test = train - mean, test - mean
    _, vectors = torch.linalg.eigh(train.T @ train)
    return [train @ vectors[:, -count:], test @ vectors[:, -count:]]


def main(
    models: tuple[str, ...] = ("simclr", "rotation"),
    data: str = "fashion-mnist",
    epochs: int = 30,
    seed: int = 0,
    threads: int = 1,
    components: int = 100,
    floors: bool = True,
) -> None:
    """Train, probe and record.

    Args:
        models: names of models that embed.
        data: a labelled set of images that brings its test part.
        epochs: budget of each model's training.
        seed: of the runs.
        threads: torch's threads.
        components: principal components of that floor.
        floors: also measure raw pixels, PCA and the untrained networks.
    """
    torch.set_num_threads(threads)
    whole = tacit.load(data)
    test = whole.official["test"]
    if floors:
        started = time.perf_counter()
        pixels = [side.x.flatten(1).float() / 255 for side in (whole, test)]
        probe("raw-pixels", whole, *pixels, layer="the pixels", seed=seed, started=started)
        started = time.perf_counter()
        reduced = principal_components(*pixels, components)
        probe("pca", whole, *reduced, layer="principal components", seed=seed, started=started)
    for name in models:
        if floors:
            started = time.perf_counter()
            torch.manual_seed(seed)
            model = catalogue.load(name)(whole.space)
            features = [embed_all(model, side) for side in (whole, test)]
            probe(
                f"{name}-untrained", whole, *features, layer="embed", seed=seed, started=started, note="random weights"
            )
        started = time.perf_counter()
        out = Path("runs") / f"representations-{data}-{name}"
        if (out / "run.json").exists():
            run = resume(out)
        else:
            run = tacit.fit(name, whole, epochs=epochs, seed=seed, out=out, device="cpu")
        if run.record["status"] == "interrupted":
            raise SystemExit(f"interrupted at step {run.record['step']}: the same command goes on from there")
        features = [embed_all(run.model, side) for side in (whole, test)]
        trained = run.record["plan"]["epochs"]
        note = f"{trained} epochs in {run.record['seconds'] / 60:.0f} minutes, {threads} thread(s)"
        probe(name, whole, *features, layer="embed", seed=seed, started=started, note=note)


if __name__ == "__main__":
    tyro.cli(main)
