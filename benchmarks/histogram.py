"""The histogram of binary images beside scikit-learn's naive Bayes of one class: both are a product of Bernoullis.

python benchmarks/histogram.py
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro
from sklearn.naive_bayes import BernoulliNB

import tacit
from record import fit, record


def main(data: str = "binarized-mnist", seed: int = 0) -> None:
    """Fit both, measure all test rows and record.

    Args:
        data: binary images by name or path.
        seed: of the run.
    """
    train, _, test = (part.x.flatten(1).numpy() for part in tacit.load(data).parts())
    peer = BernoulliNB().fit(train, np.zeros(len(train))).predict_joint_log_proba(test)[:, 0]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = fit("histogram", data, seed=seed, quiet=True, out=Path(folder) / "run").model
    seconds = time.perf_counter() - started
    log_prob = model.log_prob(tacit.load(data).parts()[2].x).double()
    record(
        "histogram",
        data,
        "nll",
        -log_prob.mean().item(),
        split="test",
        unit="nats",
        better="lower",
        kind="exact",
        uncertainty=log_prob.std().item() / math.sqrt(len(log_prob)),
        reference={"value": float(-peer.mean()), "source": "scikit-learn BernoulliNB of one class, this run"},
        seed=seed,
        seconds=seconds,
        packages=("scikit-learn",),
        note="uncertainty is the standard error over test images",
    )


if __name__ == "__main__":
    tyro.cli(main)
