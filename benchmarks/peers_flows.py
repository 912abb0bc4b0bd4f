"""Flows beside zuko, nflows and normflows: a step, a density and a sample, taking turns in one run.

    pip install --no-deps zuko nflows normflows umnn tqdm
    python benchmarks/peers_flows.py --dimensions 2 43

Everyone has the same architecture – affine couplings of halves that take turns, masked affine autoregressions that read
the entries to and fro, or couplings by rational-quadratic splines of 8 bins – with as many layers, hidden layers and
units, the same batches and a fused Adam; a step is loss, backward pass and update. The rounds take turns, so that the
machine's moods hit all alike; the medians are compared with the fastest peer's.

Networks have two hidden layers of 128 units, those of masked flows 512 as the MAF paper's. normflows' splines have no
choice of network but a residual one, of as many matrix products; nflows' masked perceptrons have no activation after
their first layer. normflows' masked flow is turned around, an IAF: it has no cell here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from record import record
from tacit.data import Dataset
from tacit.model import Batch
from tacit.models.flows._flow import Flow
from tacit.models.flows.maf import MAF
from tacit.models.flows.neural_spline_flow import NeuralSplineFlow
from tacit.models.flows.realnvp import RealNVP
from tacit.spaces import Vectors

Kind = Literal["coupling", "maf", "spline"]
LAYERS, BINS, TAIL = 5, 8, 5.0
HIDDEN = {"coupling": 128, "maf": 512, "spline": 128}
MODELS = {"coupling": "realnvp", "maf": "maf", "spline": "neural-spline-flow"}
# Aimed at, beside the fastest peer: the coupling flow and MAF as fast, the spline flow faster.
TARGETS = {("spline", "log-prob"): 1.8, ("spline", "train-step"): 1.4}
REASONS = {
    "coupling": "the networks, the same for all, are two thirds of the time, and the rest is a handful of operations",
    "maf": "masked products, the same for all, are nearly all of the time; nflows' networks have an activation less",
    "spline": "the networks, the same for all, are a third to a half of our time, and only the splines are faster",
}


@dataclass(frozen=True)
class Contestant:
    """One library's model: `log_prob` of (rows, features), `sample` of a number of rows."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    loss: Callable[[Tensor], Tensor]


def ours(kind: Kind, features: int) -> Contestant:
    space, hidden = Vectors(features), (HIDDEN[kind],) * 2
    model: Flow
    if kind == "coupling":
        model = RealNVP(space, couplings=LAYERS, hidden=hidden, masks="alternating")
    elif kind == "maf":
        model = MAF(space, layers=LAYERS, hidden=hidden)
    else:
        model = NeuralSplineFlow(space, layers=LAYERS, hidden=hidden, bins=BINS, tail=TAIL)
    model.adapt(Dataset(space, torch.randn(2000, features)))
    index = torch.arange(1)
    return Contestant(model, model.log_prob, model.sample, lambda x: model.loss(Batch(x, index)).total)


def zuko(kind: Kind, features: int) -> Contestant:
    from zuko import flows

    sizes = {"transforms": LAYERS, "hidden_features": (HIDDEN[kind],) * 2}
    if kind == "coupling":
        model = flows.RealNVP(features, **sizes)
    elif kind == "maf":
        model = flows.MAF(features, **sizes)
    else:
        model = flows.NSF(features, bins=BINS, passes=2, **sizes)
    return Contestant(
        model, lambda x: model().log_prob(x), lambda n: model().sample((n,)), lambda x: -model().log_prob(x).mean()
    )


def nflows(kind: Kind, features: int) -> Contestant:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP
    from nflows.utils.torchutils import create_alternating_binary_mask

    class Net(MLP):
        def forward(self, inputs: Tensor, context: None = None) -> Tensor:
            return super().forward(inputs)

    layers, hidden = list[nn.Module](), HIDDEN[kind]
    for i in range(LAYERS):
        mask = create_alternating_binary_mask(features, even=i % 2 == 0)
        if kind == "coupling":
            layers.append(transforms.AffineCouplingTransform(mask, lambda a, b: Net([a], [b], [hidden, hidden])))
        elif kind == "maf":
            layers += [
                transforms.MaskedAffineAutoregressiveTransform(
                    features, hidden, num_blocks=1, use_residual_blocks=False
                ),
                transforms.ReversePermutation(features),
            ]
        else:
            layers.append(
                transforms.PiecewiseRationalQuadraticCouplingTransform(
                    mask, lambda a, b: Net([a], [b], [hidden, hidden]), BINS, "linear", TAIL
                )
            )
    model = Flow(transforms.CompositeTransform(layers), StandardNormal([features]))
    return Contestant(model, model.log_prob, model.sample, lambda x: -model.log_prob(x).mean())


def normflows(kind: Kind, features: int) -> Contestant:
    import normflows

    layers, hidden = list[nn.Module](), HIDDEN[kind]
    for i in range(LAYERS):
        if kind == "coupling":
            net = normflows.nets.MLP([(features + 1) // 2, hidden, hidden, 2 * (features // 2)])
            layers += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(features, mode="swap")]
        else:
            layers.append(
                normflows.flows.CoupledRationalQuadraticSpline(
                    features, 1, hidden, num_bins=BINS, tail_bound=TAIL, reverse_mask=i % 2 == 1
                )
            )
    model = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(features, trainable=False), layers)
    return Contestant(model, model.log_prob, lambda n: model.sample(n)[0], model.forward_kld)


PEERS: dict[Kind, tuple[Callable[[Kind, int], Contestant], ...]] = {
    "coupling": (zuko, nflows, normflows),
    "maf": (zuko, nflows),
    "spline": (zuko, nflows, normflows),
}


def seconds_of(contestants: dict[str, Contestant], what: str, x: Tensor, samples: int, rounds: int) -> dict[str, float]:
    """The median seconds of one step or density of `x`, or of `samples` samples, of each; the first round left out."""
    optimisers = {
        name: torch.optim.Adam(each.model.parameters(), lr=1e-5, fused=True) for name, each in contestants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        names = list(contestants)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            each = contestants[name]
            began = time.perf_counter()
            if what == "train-step":
                each.loss(x).backward()
                optimisers[name].step()
                optimisers[name].zero_grad(set_to_none=True)
            else:
                with torch.no_grad():
                    each.log_prob(x) if what == "log-prob" else each.sample(samples)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main(
    kinds: tuple[Kind, ...] = ("coupling", "maf", "spline"),
    dimensions: tuple[int, ...] = (2, 43, 64, 784),
    batch: int = 512,
    samples: int = 1000,
    rounds: int = 41,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Measure every cell and record the ratio to the fastest peer.

    Args:
        kinds: of flow.
        dimensions: of the data.
        batch: rows of a step and a density.
        samples: rows of a sample; 32 where autoregressions of 784 entries are sampled.
        rounds: interleaved repetitions; 5 where autoregressions are sampled, and one of 784 entries.
        threads: torch's threads.
        seed: of weights and data.
    """
    torch.set_num_threads(threads)
    for kind in kinds:
        for features in dimensions:
            torch.manual_seed(seed)
            x = torch.randn(batch, features)
            contestants = {build.__name__: build(kind, features) for build in (ours, *PEERS[kind])}
            for what in ("train-step", "log-prob", "sample"):
                started = time.perf_counter()
                slow = kind == "maf" and what == "sample"
                # Peers take a pass for each entry: of 784 a few rows, once, are enough.
                count, turns = (32, 1) if slow and features > 100 else (samples, min(5, rounds) if slow else rounds)
                median = seconds_of(contestants, what, x, count, turns)
                rivals = {name: value for name, value in median.items() if name != "ours"}
                rival = min(rivals, key=lambda name: rivals[name])
                target = 20.0 if slow and features in (43, 64) else TARGETS.get((kind, what), 1.0)
                shown = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in median.items())
                record(
                    MODELS[kind],
                    f"gaussian-{features}",
                    f"speed-ratio:{what}",
                    median[rival] / median["ours"],
                    split="train",
                    unit="fastest peer's seconds / ours",
                    better="higher",
                    target=target,
                    reference={"value": median[rival], "source": f"{rival}, seconds, same run"},
                    reason=REASONS[kind],
                    seed=seed,
                    seconds=time.perf_counter() - started,
                    packages=tuple(peer.__name__ for peer in PEERS[kind]),
                    note=f"{shown}; {LAYERS} layers, hidden {HIDDEN[kind]} twice, "
                    f"{count if what == 'sample' else batch} rows, medians of interleaved rounds",
                )


if __name__ == "__main__":
    tyro.cli(main)
