"""Training steps of autoregressive models beside the public implementations of the same architectures, interleaved.

A step is forward, backward and a fused AdamW, the same for both, on the same random data: what differs is the network
and its loss. Aim: not slower.

- gpt: `transformers`' GPT2LMHeadModel, nanoGPT's sizes for a CPU.
- tcn: `pytorch-tcn`'s TCN with an embedding and a linear read-out.
- gated-pixelcnn: `pytorch-generative`'s, which takes its k × k vertical convolution apart into 1 × k and k × 1 and adds
  a skip connection; as many layers, features and read-out features.

    pip install transformers pytorch-tcn git+https://github.com/EugenHotaj/pytorch-generative
    python benchmarks/peers_autoregressive.py gpt
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from record import record
from tacit import catalogue
from tacit.model import Batch
from tacit.spaces import Images, Space, Tokens

Loss = Callable[[Tensor], Tensor]


def gpt() -> tuple[str, nn.Module, Loss]:
    """`transformers`' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 65, "n_positions": 64, "n_embd": 128, "n_layer": 4, "n_head": 4}
    no_dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    config = GPT2Config(**sizes, **no_dropout, bos_token_id=None, eos_token_id=None)
    network = GPT2LMHeadModel(config)
    return (
        "transformers",
        network,
        lambda x: F.cross_entropy(network(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()),
    )


def tcn() -> tuple[str, nn.Module, Loss]:
    """`pytorch-tcn`'s network: one block a dilation, of two convolutions each."""
    from pytorch_tcn import TCN

    ours = catalogue.load("tcn").arguments()
    features, layers = ours["features"].default, ours["layers"].default
    network = nn.ModuleList(
        [
            nn.Embedding(65, features),
            TCN(
                features,
                [features] * layers,
                kernel_size=ours["kernel"].default,
                dilations=[2**i for i in range(layers)],
                dropout=0.0,
                causal=True,
                use_norm="weight_norm",
            ),
            nn.Conv1d(features, 65, 1),
        ]
    )
    embedding, body, readout = network

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(readout(body(embedding(x).transpose(1, 2)))[:, :, :-1], x[:, 1:])

    return "pytorch-tcn", network, loss


def gated_pixelcnn() -> tuple[str, nn.Module, Loss]:
    """`pytorch-generative`'s network."""
    from pytorch_generative import models

    network = models.GatedPixelCNN(1, 1, n_gated=7, gated_channels=64, head_channels=64)
    return "pytorch-generative", network, lambda x: F.binary_cross_entropy_with_logits(network(x.float()), x.float())


PEERS: dict[str, tuple[Callable[[], tuple[str, nn.Module, Loss]], Space, dict[str, Any], int]] = {
    "gpt": (gpt, Tokens(65, 64), {"layers": 4, "heads": 4, "features": 128}, 12),
    "tcn": (tcn, Tokens(65, 256), {}, 16),
    "gated-pixelcnn": (
        gated_pixelcnn,
        Images(1, 28, 28, 2),
        {"features": 64, "layers": 8, "kernel": 3, "readout_features": 64},
        16,
    ),
}


def step(loss: Loss, network: nn.Module) -> Callable[[Tensor], None]:
    """A training step of `network`."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def take(x: Tensor) -> None:
        loss(x).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return take


def main(
    name: tyro.conf.Positional[Literal["gpt", "tcn", "gated-pixelcnn"]],
    rounds: int = 9,
    steps: int = 5,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Measure both and record the ratio.

    Args:
        name: the model.
        rounds: interleaved; the medians are compared.
        steps: of each in a round.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    build, space, arguments, size = PEERS[name]
    peer, network, loss = build()
    ours = catalogue.load(name)(space, **arguments)
    x = torch.randint(space.levels or 2, (size, *space.shape)).to(space.torch_dtype)
    index = torch.arange(size)
    takers = {
        "peer": step(loss, network.train()),
        "tacit": step(lambda x: ours.loss(Batch(x, index)).total, ours.train()),
    }
    started = time.perf_counter()
    seconds: dict[str, list[float]] = {"peer": [], "tacit": []}
    for _ in range(rounds + 1):
        for who, take in takers.items():
            before = time.perf_counter()
            for _ in range(steps):
                take(x)
            seconds[who].append((time.perf_counter() - before) / steps)
    medians = {who: statistics.median(values[1:]) for who, values in seconds.items()}  # the first warmed up
    sizes = {who: sum(p.numel() for p in model.parameters()) for who, model in (("peer", network), ("tacit", ours))}
    record(
        name,
        f"random-{'x'.join(map(str, space.shape))}",
        f"speed-ratio:{peer}:train-step",
        medians["peer"] / medians["tacit"],
        split="train",
        unit="peer's seconds / ours",
        better="higher",
        target=1.0,
        seed=seed,
        seconds=time.perf_counter() - started,
        reference={"value": medians["peer"], "source": f"{peer}, seconds a step, same run"},
        note=f"medians of {rounds} interleaved rounds of {steps} steps, batch {size}, {threads} thread(s); "
        f"{sizes['peer']} parameters, ours {sizes['tacit']}",
    )


if __name__ == "__main__":
    tyro.cli(main)
