"""RealNVP against scikit-learn's kernel density and Gaussian mixture on held-out rows, and what every density sums to.

    TACIT_DATA=… python benchmarks/density_2d.py                     all of it
    python benchmarks/density_2d.py --sets moons --no-masses       one set

All three learn from the same training rows and report nats of the same variables (scikit-learn's two see them
standardised, and the Jacobian is counted). The bandwidth, the number of components, the kind of covariance and its
ridge are those with the best log-likelihood on the validation rows, by which RealNVP stops learning, too. Its arguments
on the plane follow trials on the validation rows of moons (more couplings, larger batches and averaged weights helped)
but were not themselves tried there; an earlier recipe had been measured on the test rows of moons before (1.0455 nats).

The mass of a density is its sum over a fine grid on the plane, for every model of the catalogue that has an exact one
(a bound need not sum to one).
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

import tacit
from record import fit, record
from tacit import catalogue
from tacit.data import Dataset
from tacit.data.builtin import modes

# How RealNVP is trained on each set.
PLANE = {
    "steps": 8000,
    "batch_size": 512,
    "learning_rate": 5e-3,
    "ema": 0.99,
    "couplings": 16,
    "hidden": (64, 64),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "moons": PLANE,
    "8-gaussians": PLANE,
    "miniboone-subset": {
        "steps": 1500,
        "learning_rate": 1e-3,
        "batch_size": 128,
        "weight_decay": 0.1,
        "dropout": 0.2,
        "validate_every": 20,
    },
}
BANDWIDTHS = np.geomspace(0.02, 2, 30)
COMPONENTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
# For more than two features, where a fit is dear and a ridge is needed: kinds of covariance, components and ridges.
WIDE = ("full", "diag"), (1, 2, 3, 5, 8, 12, 20), (1e-3, 1e-2, 1e-1)


class Standardised:
    """Rows of the three parts by the mean and deviation of the training rows, and the log-Jacobian of that."""

    def __init__(self, *parts: Dataset):
        train, *_ = rows = [part.observations().double().numpy() for part in parts]
        mean, deviation = train.mean(0), train.std(0)
        self.train, self.valid, self.test = ((x - mean) / deviation for x in rows)
        self.log_det = -np.log(deviation).sum()


def kernel_density(data: Standardised) -> tuple[np.ndarray, str]:
    """Log-likelihood of each test row under the bandwidth that is best on the validation rows."""
    fits = [KernelDensity(bandwidth=b, rtol=1e-4).fit(data.train) for b in BANDWIDTHS]
    best = max(fits, key=lambda fit: fit.score(data.valid))
    return best.score_samples(data.test) + data.log_det, f"bandwidth {best.bandwidth:.3f}"


def gaussian_mixture(data: Standardised, seed: int) -> tuple[np.ndarray, str]:
    """Log-likelihood of each test row under the mixture that is best on the validation rows."""
    fits = []
    plane = ("full", "tied", "diag", "spherical"), COMPONENTS, (1e-6,)
    for kind, count, ridge in itertools.product(*(WIDE if data.train.shape[1] > 2 else plane)):
        mixture = GaussianMixture(count, covariance_type=kind, reg_covar=ridge, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits.append(mixture.fit(data.train))
    best = max(fits, key=lambda fit: fit.score(data.valid))
    how = f"{best.n_components} components, {best.covariance_type}, ridge {best.reg_covar:g}"
    return best.score_samples(data.test) + data.log_det, how


def likelihoods(name: str, seed: int, shorten: float) -> None:
    """Fit all three to one set and record RealNVP's nats beside the better of the others."""
    started = time.perf_counter()
    parts = tacit.load(name).parts()
    data = Standardised(*parts)
    others = {"KernelDensity": kernel_density(data), "GaussianMixture": gaussian_mixture(data, seed)}
    arguments = {"validate_every": 100, **ARGUMENTS[name]}
    arguments["steps"] = max(1, round(arguments["steps"] * shorten))
    with tempfile.TemporaryDirectory() as folder:
        # Patience without end: the weights that are best on the validation rows are kept.
        options = {
            "seed": seed,
            "patience": arguments["steps"],
            "pictures": 0,
            "quiet": True,
            "out": Path(folder) / "run",
        }
        model = fit("realnvp", name, **options, **arguments).model
    with torch.no_grad():
        ours = model.log_prob(parts[2].observations()).double().numpy()
    _own_mixture(name, parts[2], others["GaussianMixture"], seed)
    remarks = [f"{key} ({how}): {-log_p.mean():.4f} nats" for key, (log_p, how) in others.items()]
    if name == "8-gaussians":
        remarks.append(f"the mixture of eight that drew the rows: {-_law(parts[2].observations()):.4f} nats")
    rival = max(others, key=lambda key: others[key][0].mean())
    theirs = float(-others[rival][0].mean())
    difference = ours - others[rival][0]
    record(
        "realnvp",
        name,
        "nll",
        float(-ours.mean()),
        split="test",
        unit="nats",
        better="lower",
        kind="exact",
        uncertainty=float(difference.std() / math.sqrt(len(difference))),
        target=theirs,
        reference={"value": theirs, "source": f"scikit-learn {rival}, {others[rival][1]}"},
        seed=seed,
        seconds=time.perf_counter() - started,
        packages=("scikit-learn",),
        note="; ".join(
            [*remarks, f"RealNVP {arguments}", "uncertainty is the standard error of the difference to the reference"]
        ),
        reason="a few Gaussians are nearly the law that the rows come from, and couplings, smooth maps, presumably "
        "leave some mass between separate pieces"
        if parts[2].space.dimensions == 2
        else "",
    )


def _own_mixture(name: str, test: Dataset, theirs: tuple[np.ndarray, str], seed: int) -> None:
    """Record tacit's Gaussian mixture, by its defaults, beside scikit-learn's."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = fit("gaussian-mixture", name, seed=seed, quiet=True, out=Path(folder) / "run").model
    seconds = time.perf_counter() - started
    difference = model.log_prob(test.observations()).double().numpy() - theirs[0]
    record(
        "gaussian-mixture",
        name,
        "nll",
        float(-(theirs[0] + difference).mean()),
        split="test",
        unit="nats",
        better="lower",
        kind="exact",
        uncertainty=float(difference.std() / math.sqrt(len(difference))),
        reference={"value": float(-theirs[0].mean()), "source": f"scikit-learn GaussianMixture, {theirs[1]}"},
        seed=seed,
        seconds=seconds,
        packages=("scikit-learn",),
        note=f"{int(model.log_weight.isfinite().sum())} components, full covariances; "
        "uncertainty is the standard error of the difference to the reference",
    )


def _law(x: torch.Tensor) -> float:
    """Mean log-density of rows of 8-gaussians under the very mixture they come from."""
    centres, sigma = modes("8-gaussians")
    squares = (x[:, None] - centres).square().sum(2) / sigma**2
    log_p = torch.logsumexp(-squares / 2, 1) - math.log(len(centres) * 2 * math.pi * sigma**2)
    return log_p.mean().item()


def mass(name: str, seed: int, steps: int, side: int) -> None:
    """Sum the density of model `name` over a grid that reaches a whole range beyond the data on every side."""
    started = time.perf_counter()
    train, _, _ = tacit.load("moons").parts()
    with tempfile.TemporaryDirectory() as folder:
        model = fit(name, "moons", steps=steps, seed=seed, pictures=0, quiet=True, out=Path(folder) / "run").model
    if model.density == "bound":
        return
    low, high = train.x.amin(0).double(), train.x.amax(0).double()
    width = 3 * (high - low) / side
    axes = [(2 * a - b) + w * (torch.arange(side) + 0.5) for a, b, w in zip(low, high, width, strict=True)]
    grid = torch.cartesian_prod(*axes).float()
    with torch.no_grad():
        total = (
            sum(model.log_prob(part).double().exp().sum().item() for part in grid.split(50_000)) * width.prod().item()
        )
    record(
        name,
        "moons",
        "mass-error",
        abs(total - 1),
        split="train",
        unit="probability",
        better="lower",
        kind="measured",
        target=1e-2,
        seed=seed,
        seconds=time.perf_counter() - started,
        note=f"|1 − Σ p(x) dx| with Σ = {total:.5f} on {side} × {side} points, three ranges of the data wide",
    )


def main(
    sets: tuple[str, ...] = tuple(ARGUMENTS),
    seed: int = 0,
    threads: int = 1,
    shorten: float = 1.0,
    mass_steps: int = 500,
    mass_side: int = 800,
    masses: bool = True,
) -> None:
    """Compare likelihoods, then sum densities.

    Args:
        sets: which data sets to compare likelihoods on.
        seed: of weights, batches and mixtures.
        threads: torch's threads.
        shorten: factor on RealNVP's steps.
        mass_steps: training steps before a density is summed.
        mass_side: points on each side of the grid.
        masses: whether to sum densities.
    """
    torch.set_num_threads(threads)
    for name in sets:
        likelihoods(name, seed, shorten)
    for entry in catalogue.entries() if masses else ():
        if "density" in entry.capabilities and "vectors" in entry.spaces:
            mass(entry.name, seed, mass_steps, mass_side)


if __name__ == "__main__":
    tyro.cli(main)
