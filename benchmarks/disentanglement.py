"""Disentanglement of sprites by VAEs of several β: the β-VAE score, the mutual information gap and DCI.

Codes are posterior means of the test part, a tenth of all combinations of the five factors; how each measure is
estimated is said in `tacit.metrics.disentanglement`, and figures of other estimators or of dSprites are not comparable.
What β > 1 is to be above is the same network with β = 1.

    python benchmarks/disentanglement.py

A run that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path

import torch
import tyro

import tacit
from record import fit, record
from tacit.metrics.disentanglement import disentanglement

# Field of a measurement -> the metric's name in the record.
MEASURES = {
    "beta_vae": "beta-vae-score",
    "gap": "mutual-information-gap",
    "disentanglement": "dci-disentanglement",
    "completeness": "dci-completeness",
    "informativeness": "dci-informativeness",
}
# That factors can be told at all is what a stronger β gives up for the others.
_AIMED_AT = ("beta_vae", "gap", "disentanglement")
RECIPE = {"network": "conv", "channels": (32, 64), "hidden": (256,), "latent": 10, "learning_rate": 1e-3}


def main(
    *,
    betas: tuple[float, ...] = (1.0, 4.0, 8.0),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 4000,
    threads: int = 1,
    out: Path = Path("runs"),
) -> None:
    """Train every β with every seed and record the means over seeds.

    Args:
        betas: weights of the KL divergence; the first is what the others are compared with.
        seeds: of the weights, the noise and the order of data.
        steps: the budget of each.
        threads: that torch may use.
        out: the folder of the runs' folders.
    """
    torch.set_num_threads(threads)
    data = tacit.load("sprites")
    test = data.parts()[2]
    first: dict[str, float] = {}
    for beta in betas:
        measured: list[dict[str, float]] = []
        seconds = 0.0
        for seed in seeds:
            folder = out / f"disentanglement-{beta:g}-{seed}-{steps}"
            run = fit("vae", data, beta=beta, steps=steps, seed=seed, out=folder, **RECIPE)
            codes = torch.cat([run.model.encode(x) for x in test.x.split(500)])
            measured.append(asdict(disentanglement(codes, test.factors, seed=seed)))
            seconds += run.record["seconds"]
            shown = ", ".join(f"{name} {measured[-1][field]:.3f}" for field, name in MEASURES.items())
            print(f"β {beta:g}, seed {seed}: {shown}; {run.record['seconds']:.0f} s", flush=True)
        for field, name in MEASURES.items():
            values = [found[field] for found in measured]
            mean = statistics.mean(values)
            compared = field in first
            record(
                "vae",
                "sprites",
                f"{name}:beta-{beta:g}",
                mean,
                split="test",
                unit="of 1",
                better="higher",
                seed=list(seeds),
                seconds=seconds,
                uncertainty=statistics.stdev(values) if len(values) > 1 else None,
                target=first[field] if compared and field in _AIMED_AT else None,
                reference={"value": first[field], "source": f"β = {betas[0]:g}, this run"} if compared else None,
                reason="this β is not the one that suits this network and budget",
                note=f"{RECIPE}, {steps} steps, β {beta:g}: {', '.join(f'{v:.3f}' for v in values)}; uncertainty is "
                "the standard deviation over seeds",
                packages=("scikit-learn",),
            )
            first.setdefault(field, mean)


if __name__ == "__main__":
    tyro.cli(main)
