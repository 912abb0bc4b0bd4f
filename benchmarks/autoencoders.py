"""Autoencoders on images: the linear one beside principal components, a deep one beside Hinton & Salakhutdinov's.

The linear autoencoder's decoder should span the subspace of the principal components of its training images: the
largest principal angle between the two is recorded, in degrees. The deep one is 784-1000-500-250-30 and back, as in
Hinton & Salakhutdinov (2006, Science 313, fig. 2 B and its text): squared error an image, pixels on [0, 1], the mean
over all 10,000 test images, beside 30 principal components of the same training images. `deep` learns the squared error
from random weights; `stacked` is the classic form, sigmoids and cross-entropy, its layers learnt one by one first.

    python benchmarks/autoencoders.py linear
    python benchmarks/autoencoders.py deep
    python benchmarks/autoencoders.py stacked
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record
from tacit.data import Dataset

_HINTON = "Hinton & Salakhutdinov 2006, Science 313, doi:10.1126/science.1127647"
_DEEP: dict[str, Any] = {"hidden": (1000, 500, 250), "latent": 30, "batch_size": 128}
RECIPES: dict[str, dict[str, Any]] = {
    # Of eight components: the ninth's variance is 0.71 of the eighth's, where those after most others are within 0.9.
    "linear": {"hidden": (), "latent": 8, "error": "squared", "batch_size": 1000, "steps": 5000, "learning_rate": 5e-3},
    "deep": {**_DEEP, "error": "squared", "steps": 20_000},
    "stacked": {**_DEEP, "activation": "sigmoid", "stacked": True, "steps": 30_000},
}


def components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean, (features,), and first principal components, (features, count), of rows, (rows, features)."""
    x = x.double()
    mean = x.mean(0)
    return mean, torch.linalg.eigh((x - mean).T @ (x - mean))[1][:, -count:]


def largest_angle(a: Tensor, b: Tensor) -> float:
    """Degrees, between the subspaces that the columns of two matrices (features, count) span."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(a.double())[0].T @ torch.linalg.qr(b.double())[0])
    return math.degrees(math.acos(min(1.0, cosines.min().item())))


def unit(data: Dataset) -> Tensor:
    """All pixels on [0, 1], (rows, features)."""
    return data.x.flatten(1).double() / 255


def main(
    name: tyro.conf.Positional[Literal["linear", "deep", "stacked"]],
    *,
    steps: int | None = None,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Train by the recipe, measure and record.

    Args:
        name: which autoencoder.
        steps: the budget; the recipe's own by default.
        threads: that torch may use.
        seed: of weights and order.
        out: the run folder; runs/autoencoder-NAME by default.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    recipe = RECIPES[name] | ({"steps": steps} if steps else {})
    source = "fashion-mnist" if name == "linear" else "mnist"
    data = tacit.load(source)
    run = fit("autoencoder", data, out=out or Path("runs") / f"autoencoder-{name}", seed=seed, **recipe)
    trained = time.perf_counter() - started
    train, _, test = data.parts()
    common: dict[str, Any] = {"seed": seed, "better": "lower", "seconds": time.perf_counter() - started}
    note = f"{run.record['arguments']}; {run.record['plan']['steps']} steps, {trained:.0f} seconds of training"
    mean, principal = components(unit(train), recipe["latent"])
    if name == "linear":
        record(
            "autoencoder",
            source,
            "largest-principal-angle",
            largest_angle(run.model.down[0].weight.detach(), principal),
            split="train",
            unit="degrees",
            target=1.0,
            reference={"value": 0.0, "source": "Baldi & Hornik 1989, Neural Networks 2(1): the global minimum"},
            note=f"{note}; between the decoder's columns and the principal components of all training images",
            reason="directions of nearly equal variance are told apart last",
            **common,
        )
        return
    with torch.no_grad():
        errors = torch.cat([run.model.squared_error(x) for x in test.x.split(500)]).double()
    centred = unit(test) - mean
    of_components = (centred - centred @ principal @ principal.T).square().sum(1)
    for model, each, target, published, what in (
        ("autoencoder", errors, 3.0, 3.00, "autoencoder"),
        ("pca", of_components, None, 13.87, "principal components"),
    ):
        record(
            model,
            source,
            "squared-error" + "-stacked" * (name == "stacked" and model == "autoencoder"),
            each.mean().item(),
            split="test",
            unit="a picture, pixels on [0, 1]",
            target=target,
            uncertainty=each.std().item() / math.sqrt(len(each)),
            reference={"value": published, "source": f"{_HINTON}, {what}, 30 numbers, 60,000 training pictures"},
            note=f"{note if model == 'autoencoder' else '30 components'}; uncertainty is the standard error",
            reason="its layers are learnt by autoencoders in minutes, the paper's by RBMs in hours",
            **common,
        )


if __name__ == "__main__":
    tyro.cli(main)
