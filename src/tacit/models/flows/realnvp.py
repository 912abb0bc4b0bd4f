"""Real-valued non-volume-preserving flow: affine couplings, exact density, instant samples.

An invertible network f takes data to standard normal noise, and the change of variables gives the density exactly:

    log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|                                                        (eq. 2)

f is a chain of affine couplings, each of which keeps one half of its input and scales and shifts the other half by what
a network says of the half that was kept, z_rest = x_rest · exp(s(x_kept)) + t(x_kept) (eqs. 4–5). Its Jacobian is
triangular, so log |det| = Σ s, and its inverse costs what it costs itself, whatever the networks s and t are.

Tables: multi-layer perceptrons say s and t, and the halves are drawn anew after every two couplings. Images: residual
convolutional networks, three couplings by checkerboard masks, a squeeze of 2 × 2 pixels into four channels, three
couplings by channel masks, half of the channels factored out, and so on with the rest at half the resolution (§3.6)
for as often as height and width are even; four checkerboard couplings end it.

Where this departs from the paper: activation normalisation begun on the data replaces batch normalisation, so that the
density of an observation does not depend on its batch-mates, and the log-scales are softly bounded, so that an input
far from the data has a finite density and is inverted.

References
----------
Laurent Dinh, Jascha Sohl-Dickstein, Samy Bengio (2017). Density estimation using Real NVP. arXiv:1605.08803.
Diederik Kingma, Prafulla Dhariwal (2018). Glow: Generative flow with invertible 1×1 convolutions. arXiv:1807.03039.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn.bijections import (
    ActNorm,
    AffineCoupling,
    Bijection,
    Chain,
    CheckerboardCoupling,
    Dequantise,
    FactorOut,
    Flatten,
    Permute,
    Squeeze,
    adapt_to,
    to_reals,
)
from tacit.spaces import Images, Space, Vectors

# (inputs, outputs) -> what says the log-scales and shifts of one coupling.
Network = Callable[[int, int], nn.Module]


class RealNVP(Model):
    """RealNVP: a flow of affine couplings.

    Args:
        space: images or vectors.
        couplings: for vectors, the number of coupling layers.
        hidden: for vectors, the widths of the hidden layers of each coupling's network.
        masks: for vectors, which features a coupling keeps: "random" halves, drawn anew after every two couplings, or
            the first and the second half "alternating".
        channels: for images, the width of each coupling's residual network.
        blocks: for images, the residual blocks of each coupling's network.
        scales: for images, how often at most to squeeze and factor out.
        dropout: share of the networks' hidden units to drop while learning; some for small data.
        bound: largest log-scale of one coupling; a soft bound that should not bind on the data.

    Raises:
        TacitError: there is no coupling, no residual block, or the bound is not positive.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=256, learning_rate=2e-3, weight_decay=1e-4, schedule="cosine", warmup=100, clip=5.0)

    def __init__(
        self,
        space: Space,
        *,
        couplings: int = 8,
        hidden: tuple[int, ...] = (128, 128),
        masks: Literal["random", "alternating"] = "random",
        channels: int = 32,
        blocks: int = 2,
        scales: int = 2,
        dropout: float = 0.0,
        bound: float = 3.0,
    ):
        super().__init__(space)
        for name, value in (("couplings", couplings), ("blocks", blocks), ("bound", bound)):
            if value <= 0:
                raise TacitError(f"{name}={value} leaves realnvp nothing to learn with: choose a positive number")
        self.reals = to_reals(space)
        if isinstance(space, Images):
            convolutions = partial(_convolutions, channels=channels, blocks=blocks, dropout=dropout)
            self.flow = _pyramid(space.shape, scales, convolutions, bound)
        else:
            perceptron = partial(_perceptron, hidden=hidden, dropout=dropout)
            self.flow = _stack(space.dimensions, couplings, masks == "random", perceptron, bound)

    @property
    def density(self) -> Kind:
        """Exact for real data; uniform dequantisation makes it a bound on the probability of integers."""
        return "bound" if isinstance(self.space, Images) else "exact"

    def adapt(self, data: Dataset) -> None:
        with torch.no_grad():
            adapt_to(self.reals, data)
            # A thousand images begin an activation normalisation as well as all of them.
            self.flow.adapt(self.reals(data.observations(1000 if isinstance(self.space, Images) else 20_000)))

    def loss(self, batch: Batch) -> Losses:
        return Losses(nll=-self.log_prob(batch.x).mean())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), (batch,), nats. For images one draw of the dequantisation noise: a bound in expectation."""
        y, log_det = self.reals.forward_and_log_det(self.space.check(x))
        z, more = self.flow.forward_and_log_det(y)
        return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi)) + log_det + more

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Z = f(x), (batch, dimensions): standard normal if x is like the data. Images at the middle of their cells."""
        x = self.space.check(x)
        if isinstance(self.space, Images):
            dequantise, logit = self.reals.bijections
            assert isinstance(dequantise, Dequantise)
            return self.flow(logit(dequantise.middle(x)))
        return self.flow(self.reals(x))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """X = f⁻¹(z), (batch, *space.shape)."""
        return self.reals.inverse(self.flow.inverse(z)).to(self.space.torch_dtype)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The noise z = f(x) itself: a flow has no narrower code."""
        return self.encode(x)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """f⁻¹(z) of z ~ N(0, temperature² I)."""
        return self.decode(temperature * torch.randn(count, self.space.dimensions, device=self.device))


# -- the networks -----------------------------------------------------------------------------------------------------


def _stack(features: int, couplings: int, shuffle: bool, net: Network, bound: float) -> Chain:
    """Couplings for a table. One feature alone has nothing to be conditioned on: a Gaussian is left."""
    layers: list[Bijection] = [ActNorm(features)]
    sizes = (features - features // 2, features // 2)
    for i in range(couplings if features > 1 else 0):
        first = i % 2 == 0
        if shuffle and first and features > 2:  # two features have only two halves, and these take turns already
            layers.append(Permute(features))
        kept, rest = sizes if first else sizes[::-1]
        layers.append(AffineCoupling(net(kept, 2 * rest), sizes, keep_first=first, bound=bound))
    return Chain(*layers)


def _pyramid(shape: tuple[int, ...], scales: int, net: Network, bound: float) -> Chain:
    """The multi-scale architecture for images of `shape`, to flat noise."""
    c, h, w = shape

    def checkerboards(count: int) -> list[CheckerboardCoupling]:
        return [CheckerboardCoupling(net(c, 2 * c), (h, w), parity=i % 2, bound=bound) for i in range(count)]

    if scales <= 0 or h % 2 or w % 2:
        return Chain(ActNorm(c), *checkerboards(4), Flatten(*shape))
    halves = (2 * c, 2 * c)
    channelwise = [
        AffineCoupling(net(2 * c, 4 * c), halves, keep_first=keep_first, bound=bound)
        for keep_first in (True, False, True)
    ]
    rest = _pyramid((2 * c, h // 2, w // 2), scales - 1, net, bound)
    out = FactorOut((4 * c, h // 2, w // 2), rest)
    return Chain(ActNorm(c), *checkerboards(3), Squeeze(), ActNorm(4 * c), *channelwise, out)


def _perceptron(inputs: int, outputs: int, *, hidden: tuple[int, ...], dropout: float) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((inputs, *hidden)):
        layers += [nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, _quiet(nn.Linear((inputs, *hidden)[-1], outputs)))


def _convolutions(inputs: int, outputs: int, *, channels: int, blocks: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1),
        *(_Residual(channels, dropout) for _ in range(blocks)),
        nn.ReLU(),
        _quiet(nn.Conv2d(channels, outputs, 3, padding=1)),
    )


class _Residual(nn.Sequential):
    """x + conv₁(relu(conv₃(relu(x)))): pre-activation, without normalisation."""

    def __init__(self, width: int, dropout: float):
        super().__init__(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _quiet(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Begin near the identity: small log-scales and shifts, yet not so that no gradient passes to the layers before."""
    with torch.no_grad():
        layer.weight.mul_(0.01)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
