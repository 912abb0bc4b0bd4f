"""Importance-weighted evaluation of one VAE: `VAE.importance_weighted` against pythae's `get_nll`, interleaved.

Both sides have the same weights, observations, number of importance samples and threads: pythae's encoder and decoder
wrap the tacit model's own. pythae runs the encoder anew for every batch of copies of every observation and takes
logarithms of probabilities; tacit encodes once and works on logits. Aim 4 times faster at 5000 samples.

Two networks: 784-400-20-400-784, as in `peers_vae.py`, and 784-200-200-50-200-200-784, for which Burda et al. (2016,
arXiv:1509.00519) took 5000 samples.

    pip install pythae
    python benchmarks/importance_weighted.py
    python benchmarks/importance_weighted.py --network burda
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Literal

import torch
import tyro
from pythae.models import VAE as PythaeVAE
from pythae.models import VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor

import tacit
from record import fit, record
from tacit.models.latent.vae import VAE

NETWORKS: dict[str, dict[str, Any]] = {
    "one-layer": {"hidden": (400,), "latent": 20},
    "burda": {"hidden": (200, 200), "latent": 50},
}


def wrapped(vae: VAE) -> PythaeVAE:
    """Pythae's VAE around the networks of `vae`."""

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.encoder

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.network(2 * x - 1).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = vae.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(
                reconstruction=torch.sigmoid(self.network(z).view(-1, *vae.space.shape) + vae.likelihood.entry[0])
            )

    config = VAEConfig(input_dim=vae.space.shape, latent_dim=vae.latent, reconstruction_loss="bce")
    return PythaeVAE(config, encoder=Encoder(), decoder=Decoder()).eval()


def main(
    *,
    network: Literal["one-layer", "burda"] = "one-layer",
    samples: int = 5000,
    images: int = 10,
    rounds: int = 5,
    steps: int = 400,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Train briefly, so that the weights mean something, then time both evaluations in turn.

    Args:
        network: hidden layers of 400 units, or Burda's.
        samples: importance samples an image.
        images: test images a round.
        rounds: how often both sides run; medians are recorded.
        steps: of training beforehand.
        threads: that torch may use.
        seed: of training and of all noise.
    """
    started = time.perf_counter()
    torch.set_num_threads(threads)
    data = tacit.load("binarized-mnist")
    x = data.parts()[2].x[:: 10_000 // images][:images]
    vae = fit("vae", data, **NETWORKS[network], steps=steps, seed=seed, pictures=0, quiet=True).model
    peer = wrapped(vae)

    ours, theirs, values = [], [], []
    for _ in range(rounds):
        at = time.perf_counter()
        mine = vae.importance_weighted(x, samples).mean().item()
        between = time.perf_counter()
        with torch.no_grad():
            other = peer.get_nll(x.float(), n_samples=samples, batch_size=100)
        ours.append(between - at)
        theirs.append(time.perf_counter() - between)
        values.append((mine, float(other)))
    print(f"log p(x), tacit and pythae: {', '.join(f'{a:.2f} {b:.2f}' for a, b in values)}")
    ratio = statistics.median(theirs) / statistics.median(ours)
    record(
        "vae",
        "binarized-mnist",
        "speed-ratio:pythae:importance-weighted" + "-burda" * (network == "burda"),
        ratio,
        split="test",
        unit="times as fast",
        better="higher",
        seed=seed,
        seconds=time.perf_counter() - started,
        uncertainty=statistics.stdev(b / a for a, b in zip(ours, theirs, strict=True)),
        target=4.0,
        reference={"value": 1.0, "source": "pythae's get_nll on the same networks, in the same run"},
        note=(
            f"{NETWORKS[network]}, {samples} samples, {images} images, {rounds} interleaved rounds, {threads} threads; "
            f"median seconds {statistics.median(ours):.3f} against {statistics.median(theirs):.3f}; uncertainty is the "
            "standard deviation of the rounds' ratios"
        ),
        reason="the decoder's matrix products, the same for both, are most of our time",
        packages=("pythae",),
    )


if __name__ == "__main__":
    tyro.cli(main)
