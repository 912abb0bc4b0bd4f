"""Why tables fail in high dimensions: the softmax table on ever more of the pixels in the middle of a binary digit.

    python benchmarks/table_vs_dimension.py

For each size of crop a table with one logit for every picture there can be, trained by gradient descent, is measured in
nats a pixel on rows that it learned from and on rows that it did not. Beside it are the joint histogram, which has the
same cells counted and smoothed, and scikit-learn's naive Bayes of one class, a product of Bernoullis with one number a
pixel. More pixels tell more about each other, so the nats a pixel fall; but the cells double with every pixel and the
rows do not, so what the table says of its own rows and what it says of others part.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from sklearn.naive_bayes import BernoulliNB
from torch import Tensor

import tacit
from record import fit, record
from tacit.data import Dataset
from tacit.model import Model
from tacit.spaces import Images

SIZES = ((1, 1), (2, 2), (3, 3), (4, 4), (4, 5))


def middle(parts: tuple[Dataset, Dataset, Dataset], height: int, width: int) -> Dataset:
    """The pixels in the middle of the images of all three parts."""
    _, rows, columns = parts[0].space.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    space = Images(1, height, width, 2)
    train, valid, test = (
        Dataset(space, part.x[:, :, top : top + height, left : left + width].contiguous()) for part in parts
    )
    return Dataset(space, train.x, name="middle", official={"valid": valid, "test": test})


def learned(name: str, data: Dataset, seed: int, **options: Any) -> Model:
    """A model fitted to `data`."""
    with tempfile.TemporaryDirectory() as folder:
        return fit(name, data, seed=seed, quiet=True, pictures=0, out=Path(folder) / "run", **options).model


def nats(model: Model, data: Dataset) -> Tensor:
    """−log p of every row of `data`, a pixel."""
    with torch.no_grad():
        return -model.log_prob(data.x).double() / data.space.dimensions


def main(data: str = "binarized-mnist", steps: int = 1000, seed: int = 0) -> None:
    """Fit and measure every size, and record each.

    Args:
        data: binary images by name or path.
        steps: of the softmax table.
        seed: of every run.
    """
    parts = tacit.load(data).parts()
    for height, width in SIZES:
        started = time.perf_counter()
        crop, pixels = middle(parts, height, width), height * width
        test = crop.official["test"]
        table = learned("softmax-table", crop, seed, steps=steps)
        joint = learned("histogram", crop, seed, joint=True)
        on_test, on_train = nats(table, test), nats(table, crop)
        peer = BernoulliNB().fit(crop.x.flatten(1).numpy(), np.zeros(len(crop)))
        product = -peer.predict_joint_log_proba(test.x.flatten(1).numpy())[:, 0] / pixels
        record(
            "softmax-table",
            f"{data}-{height}x{width}",
            "nll-per-pixel",
            on_test.mean().item(),
            split="test",
            unit="nats per pixel",
            better="lower",
            kind="exact",
            uncertainty=on_test.std().item() / math.sqrt(len(on_test)),
            reference={"value": float(product.mean()), "source": "scikit-learn BernoulliNB of one class, this run"},
            seed=seed,
            seconds=time.perf_counter() - started,
            packages=("scikit-learn",),
            note=(
                f"the {height}×{width} pixels in the middle, 2^{pixels} = {2**pixels:,} cells for {len(crop):,} rows; "
                f"{on_train.mean():.4f} on the training rows, a gap of {on_test.mean() - on_train.mean():.4f}; the "
                f"joint histogram, smoothed, {nats(joint, test).mean():.4f} and {nats(joint, crop).mean():.4f} on the "
                f"training rows; a whole image would take 2^{parts[0].space.dimensions} cells; {steps} steps; "
                f"uncertainty is the standard error over test images"
            ),
        )


if __name__ == "__main__":
    tyro.cli(main)
