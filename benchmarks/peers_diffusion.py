"""Training throughput of DDPM: through `tacit`'s loop and with `diffusers`, interleaved in one run.

Both are U-nets of three resolutions (32, 64 and 64 channels) for 1 × 28 × 28 images, one residual block a resolution on
the way down, attention at the lowest. On the way up `diffusers` has a block more at each, so that what is compared is
multiply-adds a second. Batch of 64, fused AdamW, threads and loss are the same. The other side is the loop of its own
training tutorial, without its files: noise from `DDPMScheduler`, the model, the mean squared error.

    pip install diffusers
    python benchmarks/peers_diffusion.py
"""

from __future__ import annotations

import statistics
import time

import torch
import tyro
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from overhead import through_tacit
from record import record
from tacit.data import Dataset
from tacit.models.diffusion.ddpm import DDPM
from tacit.spaces import Images


class Peer:
    """The tutorial's training step, which takes floats on [−1, 1]."""

    def __init__(self) -> None:
        self.model = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64, 64),
            norm_num_groups=8,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
        )
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def train(self, data: Dataset, steps: int, size: int) -> float:
        """Seconds that so many steps take."""
        x = data.x.float() / 127.5 - 1
        self.model.train()
        started = time.perf_counter()
        for index in torch.randint(len(x), (steps, size)):
            clean = x[index]
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (size,))
            said = self.model(self.scheduler.add_noise(clean, noise, t), t, return_dict=False)[0]
            F.mse_loss(said, noise).backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
        return time.perf_counter() - started


def flops(net: nn.Module) -> int:
    """Of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 28, 28), torch.ones(1))
    return counter.get_total_flops()


def main(rounds: int = 7, steps: int = 10, batch_size: int = 64, threads: int = 1, seed: int = 0) -> None:
    """Measure both and record the ratio of throughputs.

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
    x = torch.randint(256, (steps * batch_size, 1, 28, 28)).to(torch.uint8)
    data = Dataset(Images(1, 28, 28), x, name="random pictures")
    model, peer = DDPM(data.space), Peer()
    seconds: dict[str, list[float]] = {"diffusers": [], "tacit": []}
    for _ in range(rounds + 1):
        seconds["diffusers"].append(peer.train(data, steps, batch_size))
        seconds["tacit"].append(through_tacit(model, data, steps, batch_size))
    medians = {name: statistics.median(values[1:]) / steps for name, values in seconds.items()}  # the first warmed up
    work = {"tacit": flops(model.net), "diffusers": flops(peer.model)}
    record(
        "ddpm",
        "random-28x28",
        "speed-ratio:diffusers:train-step",
        medians["diffusers"] / medians["tacit"] * work["tacit"] / work["diffusers"],
        split="train",
        unit="times diffusers' multiply-adds a second",
        better="higher",
        target=1.4,
        seed=seed,
        seconds=time.perf_counter() - started,
        reference={"value": medians["diffusers"], "source": "diffusers' tutorial loop, seconds a step, same run"},
        note=f"medians of {rounds} interleaved rounds of {steps} steps, batch {batch_size}, {threads} thread(s); "
        + "; ".join(f"{name} {medians[name] * 1e3:.0f} ms a step, {n / 1e6:.0f} MFLOP" for name, n in work.items()),
        reason="convolutions, the same for both, are most of the time",
        packages=("diffusers",),
    )


if __name__ == "__main__":
    tyro.cli(main)
