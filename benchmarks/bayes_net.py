"""Bayesian networks of binary images, a chain of pixels and the Chow–Liu tree, beside a product of Bernoullis.

    python benchmarks/bayes_net.py

The product is scikit-learn's naive Bayes of one class, fitted to the same training rows; the histogram's own figure on
the same data is in results/histogram.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.naive_bayes import BernoulliNB

import tacit
from record import fit, record


def main(data: str = "binarized-mnist", structures: tuple[str, ...] = ("tree", "chain"), seed: int = 0) -> None:
    """Fit each structure, measure all test rows and record.

    Args:
        data: binary images by name or path.
        structures: which.
        seed: of the run.
    """
    loaded = tacit.load(data)
    train, _, test = loaded.parts()
    peer = BernoulliNB().fit(train.x.flatten(1).numpy(), np.zeros(len(train)))
    product = -peer.predict_joint_log_proba(test.x.flatten(1).numpy())[:, 0]
    for structure in structures:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            model = fit("bayes-net", loaded, structure=structure, seed=seed, quiet=True, out=Path(folder) / "run").model
        seconds = time.perf_counter() - started
        nats = -torch.cat([model.log_prob(x).double() for x in test.x.split(500)])
        record(
            "bayes-net",
            data,
            "nll" if structure == "tree" else f"nll-{structure}",
            nats.mean().item(),
            split="test",
            unit="nats",
            better="lower",
            kind="exact",
            uncertainty=nats.std().item() / math.sqrt(len(nats)),
            target=float(product.mean()),
            reference={"value": float(product.mean()), "source": "scikit-learn BernoulliNB of one class, this run"},
            seed=seed,
            seconds=seconds,
            packages=("scikit-learn",),
            note=f"structure {structure}; uncertainty is the standard error over test images",
        )


if __name__ == "__main__":
    tyro.cli(main)
