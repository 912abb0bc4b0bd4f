"""Training throughput of affine-coupling flows: tacit beside zuko, nflows and normflows, interleaved in one run.

    pip install --no-deps zuko nflows normflows umnn tqdm
    python benchmarks/peers_flows.py

Everyone has as many couplings, the same hidden widths and activation, halves that take turns, the same batches, and a
fused Adam; a step is loss, backward pass and update. The rounds take turns, so that the machine's moods hit all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import tyro
from torch import Tensor, nn

from record import record
from tacit.data import Dataset
from tacit.model import Batch
from tacit.models.flows.realnvp import RealNVP
from tacit.spaces import Vectors

Loss = Callable[[Tensor], Tensor]


def ours(data: Dataset, couplings: int, hidden: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    model = RealNVP(data.space, couplings=couplings, hidden=hidden, masks="alternating")
    model.adapt(data)
    index = torch.arange(1)
    return model, lambda x: model.loss(Batch(x, index)).total


def zuko(data: Dataset, couplings: int, hidden: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    import zuko

    model = zuko.flows.RealNVP(data.space.dimensions, transforms=couplings, hidden_features=hidden)
    return model, lambda x: -model().log_prob(x).mean()


def nflows(data: Dataset, couplings: int, hidden: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import AffineCouplingTransform, CompositeTransform
    from nflows.utils.torchutils import create_alternating_binary_mask

    class Net(MLP):
        def forward(self, inputs: Tensor, context: None = None) -> Tensor:
            return super().forward(inputs)

    features = data.space.dimensions
    layers = [
        AffineCouplingTransform(
            create_alternating_binary_mask(features, even=i % 2 == 0), lambda a, b: Net([a], [b], list(hidden))
        )
        for i in range(couplings)
    ]
    model = Flow(CompositeTransform(layers), StandardNormal([features]))
    return model, lambda x: -model.log_prob(x).mean()


def normflows(data: Dataset, couplings: int, hidden: tuple[int, ...]) -> tuple[nn.Module, Loss]:
    import normflows

    features = data.space.dimensions
    layers: list[nn.Module] = []
    for _ in range(couplings):
        net = normflows.nets.MLP([(features + 1) // 2, *hidden, 2 * (features // 2)])
        layers += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(features, mode="swap")]
    model = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(features, trainable=False), layers)
    return model, model.forward_kld


def main(
    features: tuple[int, ...] = (6, 43),
    couplings: int = 8,
    hidden: tuple[int, ...] = (128, 128),
    batch: int = 512,
    rounds: int = 41,
    steps: int = 10,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Measure steps a second and record the ratio to each peer.

    Args:
        features: sizes of table to measure at.
        couplings: coupling layers of everyone.
        hidden: hidden widths of everyone's networks.
        batch: rows a step.
        rounds: interleaved repetitions; the medians are compared.
        steps: steps a round and a library.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    for size in features:
        torch.manual_seed(seed)
        started = time.perf_counter()
        x = torch.randn(batch * steps, size)
        data = Dataset(Vectors(size), x)
        contestants = {}
        for build in (ours, zuko, nflows, normflows):
            model, loss = build(data, couplings, hidden)
            contestants[build.__name__] = (loss, torch.optim.Adam(model.parameters(), lr=1e-4, fused=True))
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(rounds + 1):
            names = list(contestants)
            for name in names[turn % 4 :] + names[: turn % 4]:
                loss, optimiser = contestants[name]
                began = time.perf_counter()
                for rows in x.split(batch):
                    loss(rows).backward()
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                seconds[name].append((time.perf_counter() - began) / steps)
        # The first round warms up.
        median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        for peer in ("zuko", "nflows", "normflows"):
            record(
                "realnvp",
                f"gaussian-{size}",
                f"speed-ratio:{peer}:train-step",
                median[peer] / median["ours"],
                split="train",
                unit="peer's seconds / ours",
                better="higher",
                target=1.0,
                reference={"value": median[peer], "source": f"{peer}, seconds a step, same run"},
                seed=seed,
                seconds=time.perf_counter() - started,
                packages=(peer,),
                note=(
                    f"ours {median['ours']:.5f} s a step, {peer} {median[peer]:.5f}; {couplings} couplings, "
                    f"hidden {hidden}, batch {batch}, {rounds} interleaved rounds of {steps} steps, medians"
                ),
            )


if __name__ == "__main__":
    tyro.cli(main)
