"""The bivariate pair against the joint histogram and scikit-learn's kernel density on held-out rows of the plane.

    python benchmarks/bivariate.py
    python benchmarks/bivariate.py --sets moons

All learn from the same training rows and report nats of the same variables. The validation rows chose the bandwidth,
choose the weights that the pair keeps, and chose its defaults (what the network sees of the first feature, its width
and depth, the number of bins and the learning rate) on these two sets. The histogram's bins are its own choice.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import torch
import tyro

import tacit
from densities import Standardised, kernel_density
from record import fit, record

REASONS = {
    "checkerboard": "the histogram chose four bins a side, and they are the squares of the board itself: its error is "
    "that of sixteen counts",
}


def main(sets: tuple[str, ...] = ("moons", "checkerboard"), steps: int = 2000, seed: int = 0) -> None:
    """Fit all three to each set and record the pair's nats.

    Args:
        sets: of two features each.
        steps: of the pair.
        seed: of weights and batches.
    """
    for name in sets:
        started = time.perf_counter()
        parts = tacit.load(name).parts()
        x = parts[2].observations()
        kernel, how = kernel_density(Standardised(*parts))
        with tempfile.TemporaryDirectory() as folder:
            # Patience without end: the weights that are best on the validation rows are kept.
            keep = {"patience": steps, "validate_every": 100, "pictures": 0}
            out = Path(folder)
            model = fit("bivariate", name, steps=steps, seed=seed, quiet=True, out=out / "pair", **keep).model
            table = fit("histogram", name, joint=True, seed=seed, quiet=True, out=out / "histogram").model
        with torch.no_grad():
            ours, joint = model.log_prob(x).double().numpy(), table.log_prob(x).double().numpy()
        difference = ours - kernel
        record(
            "bivariate",
            name,
            "nll",
            float(-ours.mean()),
            split="test",
            unit="nats",
            better="lower",
            kind="exact",
            uncertainty=float(difference.std() / math.sqrt(len(difference))),
            target=float(-joint.mean()),
            reference={"value": float(-kernel.mean()), "source": f"scikit-learn KernelDensity, {how}"},
            seed=seed,
            seconds=time.perf_counter() - started,
            packages=("scikit-learn",),
            note=(
                f"{len(model.first)} bins a feature, {steps} steps; the target is the joint histogram of "
                f"{int(table.cut[0])} bins a feature; uncertainty is the standard error of the difference to the "
                f"reference"
            ),
            reason=REASONS.get(name, ""),
        )


if __name__ == "__main__":
    tyro.cli(main)
