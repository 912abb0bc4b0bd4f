"""How good Fisher scores are as features, beside raw pixels and the same model's own features.

A small VAE learns Fashion-MNIST for a few minutes. Its Fisher scores are those of the last layer, the decoder's, with
respect to its evidence bound, projected. All three are probed alike: cosine k-NN with k = 200, T = 0.07, centred, and
logistic regression on standardised features; fitted on some training rows, scored on all test rows. The layer, the
model and the sizes were chosen on rows of the training part. The notes tell what share of the training features'
variance lies between the classes' means: all that a linear probe can see of a class.

    python benchmarks/fisher.py
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record
from tacit.metrics.fisher import FisherScore
from tacit.metrics.probes import embed_all, knn, linear_probe
from tacit.training.plan import reseed


def main(
    data: str = "fashion-mnist",
    epochs: int = 10,
    rows: int = 20_000,
    features: int = 2048,
    threads: int = 1,
    seed: int = 0,
    out: Path = Path("runs/fisher-vae"),
) -> None:
    """Train, probe and record.

    Args:
        data: a labelled set of images that brings its test part.
        epochs: of the VAE's training.
        rows: training rows that the probes are fitted on, evenly spaced.
        features: to which the scores are projected.
        threads: torch's threads.
        seed: of the run, of the bound's noise and of the projection.
        out: the run folder; a finished run there is measured again.
    """
    torch.set_num_threads(threads)
    whole = tacit.load(data)
    if (out / "run.json").exists():
        run = tacit.Run(out)
    else:
        run = fit("vae", whole, hidden=(200,), latent=20, epochs=epochs, seed=seed, out=out, device="cpu", pictures=0)
    some = whole.take(torch.arange(rows) * len(whole) // rows)
    sides = some, whole.official["test"]
    started = time.perf_counter()
    reseed(seed)
    fisher = FisherScore(run.model, features=features, seed=seed).fit(some)
    layers: dict[str, list[Tensor]] = {
        "raw-pixels": [side.x.flatten(1).float() / 255 for side in sides],
        "embed": [embed_all(run.model, side) for side in sides],  # type: ignore[arg-type]
        "fisher-score": [embed_all(fisher, side) for side in sides],
    }
    labels = [side.label for side in sides]
    floors: dict[str, float] = {}
    for layer, (train, test) in layers.items():
        near = knn(train, labels[0], test, labels[1], layer=layer)
        linear = linear_probe(train, labels[0], test, labels[1], layer=layer)
        share = between_classes(train, labels[0])
        unconverged = "" if linear.converged else ", unconverged"
        figures = {
            "knn-200": (near.accuracy, f"cosine, k = {near.k}, T = {near.temperature}, centred"),
            "linear-probe": (
                linear.accuracy,
                f"standardised, logistic regression, C = {linear.strength:g}{unconverged}",
            ),
        }
        for metric, (accuracy, how) in figures.items():
            floor = floors.setdefault(metric, 100 * accuracy)
            record(
                "vae",
                whole.name,
                f"{metric}:{layer}",
                100 * accuracy,
                split="test",
                unit="% right",
                better="higher",
                reference={"value": floor, "source": "raw pixels, the same rows and probe"},
                seed=seed,
                seconds=time.perf_counter() - started,
                note=f"{how}; {train.shape[1]} features; {rows} training rows; {run.record['plan']['epochs']} epochs; "
                f"{100 * share:.2g} % of their variance between classes; "
                f"Fisher scores by {' and '.join(fisher.names)}, {len(fisher.scale)} entries projected",
                packages=("scikit-learn",),
            )


def between_classes(x: Tensor, label: Tensor) -> float:
    """The share of the variance of (rows, features) that is between the classes' means, in [0, 1]."""
    x = x - x.mean(0)
    between = sum((label == c).sum() * x[label == c].mean(0).square().sum() for c in label.unique())
    return float(between / x.square().sum())


if __name__ == "__main__":
    tyro.cli(main)
