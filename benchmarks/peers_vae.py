"""Training throughput of a VAE and an IWAE: through `tacit`'s loop and pythae's trainer, interleaved in one run.

Both have the same architecture (784-400-20-400-784, SiLU), Bernoulli likelihood, batch (128; of the IWAE 20 with 50
samples each, as in Burda et al. 2016), learning rate and threads. pythae's figure is its trainer's `train_step`, one
epoch of batches, without its evaluation and files. Aim 1.4 times pythae's throughput.

    pip install pythae
    python benchmarks/peers_vae.py
    python benchmarks/peers_vae.py --samples 50
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any, Literal

import torch
import tyro
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, IWAEConfig, VAEConfig
from pythae.models import VAE as PythaeVAE
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from overhead import through_tacit
from record import record
from tacit.data import Dataset
from tacit.models.latent.vae import VAE
from tacit.spaces import Images


class Encoder(BaseEncoder):
    """784-400-20, in pythae's form."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.SiLU())
        self.mean, self.log_var = nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))


class Decoder(BaseDecoder):
    """20-400-784, in pythae's form, which ends in probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 400), nn.SiLU(), nn.Linear(400, 784), nn.Sigmoid())

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=self.layers(z).view(-1, 1, 28, 28))


def pythae_trainer(x: Tensor, folder: str, samples: int, batch: int) -> BaseTrainer:
    """Pythae's own trainer, ready to run epochs."""
    settings = BaseTrainerConfig(
        output_dir=folder, num_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3, no_cuda=True
    )
    shapes: dict[str, Any] = {"input_dim": (1, 28, 28), "latent_dim": 20, "reconstruction_loss": "bce"}
    if samples == 1:
        model = PythaeVAE(VAEConfig(**shapes), Encoder(), Decoder())
    else:
        model = IWAE(IWAEConfig(**shapes, number_samples=samples), Encoder(), Decoder())
    trainer = BaseTrainer(model, BaseDataset(x.float(), torch.zeros(len(x))), training_config=settings)
    trainer.prepare_training()
    return trainer


def main(samples: Literal[1, 50] = 1, rounds: int = 9, threads: int = 1, seed: int = 0) -> None:
    """Measure both and record the ratio of throughputs.

    Args:
        samples: 1 for the VAE, 50 for the IWAE.
        rounds: interleaved epochs of 100 steps; the medians are compared.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    batch = 128 if samples == 1 else 20
    x = (torch.rand(100 * batch, 1, 28, 28) < 0.13).to(torch.uint8)
    data = Dataset(Images(1, 28, 28, 2), x, name="random binary pictures")
    model = VAE(data.space, network="mlp", hidden=(400,), latent=20, samples=samples)
    started = time.perf_counter()
    seconds: dict[str, list[float]] = {"pythae": [], "tacit": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = pythae_trainer(x, folder, samples, batch)
        for epoch in range(rounds + 1):
            before = time.perf_counter()
            trainer.train_step(epoch)
            seconds["pythae"].append(time.perf_counter() - before)
            seconds["tacit"].append(through_tacit(model, data, 100, batch))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warmed up
    record(
        "vae",
        "random-28x28",
        "speed-ratio:pythae:train-step" + f"-{samples}-samples" * (samples > 1),
        medians["pythae"] / medians["tacit"],
        split="train",
        unit="times pythae's throughput",
        better="higher",
        target=1.4,
        seed=seed,
        seconds=time.perf_counter() - started,
        reference={"value": medians["pythae"] / 100, "source": "pythae's trainer, seconds a step, same run"},
        note=f"medians of {rounds} interleaved rounds of 100 steps, batch {batch}, {samples} sample(s), {threads} "
        f"thread(s); tacit {medians['tacit'] * 10:.3f} ms a step, pythae {medians['pythae'] * 10:.3f} ms",
        reason="the networks' matrix products, the same for both, are most of our time",
        packages=("pythae",),
    )


if __name__ == "__main__":
    tyro.cli(main)
