"""How many of 25 gaussians WGAN-GP finds, by the protocol of PacGAN (Lin et al. 2018, arXiv:1712.04086, §4.1).

The data are 25 normal distributions of standard deviation 0.05 on a grid with means in {−4, −2, 0, 2, 4}². Of 2500
samples one is of high quality if it lies within three standard deviations of the nearest mean (98.9 % of the data do),
and a mode is found if it has a sample of high quality.

The recipe was chosen on seeds that are not reported: perceptrons of 128 units, a rate that decays by a cosine from
thirty times the paper's, and λ = 0.1 as in the authors' toy experiments, which lets the critic be steep.

    python benchmarks/modes.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record
from tacit.data.builtin import modes

SOURCE = "Lin et al. 2018, arXiv:1712.04086, table 1 (10 runs)"


def modes_and_quality(x: Tensor) -> tuple[int, float]:
    """Modes found and the fraction of high quality among samples (count, 2)."""
    centres, sigma = modes("25-gaussians")
    distance, mode = torch.cdist(x, centres).min(1)
    good = distance <= 3 * sigma
    return len(mode[good].unique()), good.double().mean().item()


def main(seeds: tuple[int, ...] = (0, 1, 2, 3, 4), steps: int = 8000) -> None:
    """Train one model a seed and record the means over seeds.

    Args:
        seeds: of the weights, the noise and the order of data.
        steps: generator steps; each comes with five critic steps.
    """
    torch.set_num_threads(1)  # matrices this small are not worth a second thread
    data = tacit.load("25-gaussians")
    found, quality = [], []
    started = time.perf_counter()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = fit(
                "wgan-gp",
                data,
                steps=steps,
                seed=seed,
                batch_size=256,
                learning_rate=3e-3,
                schedule="cosine",
                ema=0.999,
                out=Path(folder) / "run",
                quiet=True,
                pictures=0,
                latent=2,
                hidden=(128, 128, 128),
                penalty=0.1,
            )
            torch.manual_seed(seed)
            count, good = modes_and_quality(run.model.sample(2500))
        print(
            f"seed {seed}: {count} modes, {good:.1%} of high quality, {time.perf_counter() - started:.0f} s", flush=True
        )
        found.append(count)
        quality.append(good)
    seconds = time.perf_counter() - started
    for metric, values, target, unit, reference in (
        ("modes", found, 25, "modes of 25", "17.3 GAN, 24.8 PacGAN4"),
        ("high-quality", quality, 0.85, "fraction within 3σ", None),
    ):
        record(
            "wgan-gp",
            "25-gaussians",
            metric,
            min(values),
            split="2500 samples a seed",
            unit=unit,
            better="higher",
            seed=list(seeds),
            seconds=seconds,
            uncertainty=statistics.stdev(values) if len(values) > 1 else None,
            target=target,
            reference=reference and {"value": reference, "source": SOURCE},
            note=f"the worst of {len(seeds)} seeds ({', '.join(f'{v:.3g}' for v in values)}), {steps} generator steps "
            "each; uncertainty is the standard deviation over seeds",
        )


if __name__ == "__main__":
    tyro.cli(main)
