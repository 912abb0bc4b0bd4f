"""Training throughput of a VQ-VAE: through `tacit`'s loop and pythae's trainer, interleaved in one run.

Both have the same encoder and decoder (the catalogue's defaults for 28 × 28 binary images), 512 codes of 64 entries as
running means, batch, learning rate and threads. pythae's figure is its trainer's `train_step`, one epoch of batches,
without its evaluation and files. tacit learns a prior over the codes in every step, which pythae does not: recorded is
the ratio of the autoencoders and codebooks alone, and in the note that with the prior. Aim 1.4 times its throughput.

    pip install pythae
    python benchmarks/peers_vq_vae.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
import tyro
from pythae.data.datasets import BaseDataset
from pythae.models import VQVAE as PythaeVQVAE
from pythae.models import VQVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from overhead import through_tacit
from record import record
from tacit.data import Dataset
from tacit.model import Batch, Step
from tacit.models.latent.vq_vae import VQVAE
from tacit.spaces import Images

SPACE = Images(1, 28, 28, 2)


class WithoutPrior(VQVAE):
    """What pythae's learns."""

    def steps(self, batch: Batch) -> Iterator[Step]:
        """All but the prior's."""
        yield from ((player, closure) for player, closure in super().steps(batch) if player != "prior")


class Encoder(BaseEncoder):
    """An encoder of tacit's, in pythae's form."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return ModelOutput(embedding=self.network(2 * x - 1))


class Decoder(BaseDecoder):
    """A decoder of tacit's, in pythae's form, which ends in probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=self.network(z).sigmoid())


def pythae_trainer(x: Tensor, folder: str, batch: int) -> BaseTrainer:
    """Pythae's own trainer, ready to run epochs."""
    settings = BaseTrainerConfig(
        output_dir=folder, num_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3, no_cuda=True
    )
    networks = VQVAE(SPACE)
    config = VQVAEConfig(input_dim=SPACE.shape, latent_dim=64, num_embeddings=512, use_ema=True)
    model = PythaeVQVAE(config, Encoder(networks.encoder), Decoder(networks.decoder))
    trainer = BaseTrainer(model, BaseDataset(x.float(), torch.zeros(len(x))), training_config=settings)
    trainer.prepare_training()
    return trainer


def main(rounds: int = 7, steps: int = 20, batch_size: int = 64, threads: int = 1, seed: int = 0) -> None:
    """Measure all and record the ratio of throughputs.

    Args:
        rounds: interleaved repetitions; the medians are compared.
        steps: of a round.
        batch_size: images a step.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    started = time.perf_counter()
    x = (torch.rand(steps * batch_size, *SPACE.shape) < 0.13).to(torch.uint8)
    data = Dataset(SPACE, x, name="random binary pictures")
    models = {"tacit": WithoutPrior(SPACE), "tacit with its prior": VQVAE(SPACE)}
    seconds: dict[str, list[float]] = {"pythae": [], **{name: [] for name in models}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = pythae_trainer(x, folder, batch_size)
        for epoch in range(rounds + 1):
            before = time.perf_counter()
            trainer.train_step(epoch)
            seconds["pythae"].append(time.perf_counter() - before)
            for name, model in models.items():
                seconds[name].append(through_tacit(model, data, steps, batch_size))
    medians = {name: statistics.median(values[1:]) / steps for name, values in seconds.items()}  # the first warmed up
    record(
        "vq-vae",
        "random-28x28",
        "speed-ratio:pythae:train-step",
        medians["pythae"] / medians["tacit"],
        split="train",
        unit="times pythae's throughput",
        better="higher",
        target=1.4,
        seed=seed,
        seconds=time.perf_counter() - started,
        reference={"value": medians["pythae"], "source": "pythae's trainer, seconds a step, same run"},
        note=f"medians of {rounds} interleaved rounds of {steps} steps, batch {batch_size}, {threads} thread(s); "
        f"{', '.join(f'{name} {value * 1e3:.1f} ms' for name, value in medians.items())} a "
        f"step; with its own prior {medians['pythae'] / medians['tacit with its prior']:.2f}",
        reason="the networks' convolutions, the same for both, are most of our time",
        packages=("pythae",),
    )


if __name__ == "__main__":
    tyro.cli(main)
