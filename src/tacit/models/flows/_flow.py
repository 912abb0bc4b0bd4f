"""What the flows share: from the user's data to the reals, a list of bijections, a base distribution.

    log p(x) = log p_base(f(x)) + log |det ∂f/∂x|

f is read from top to bottom: what takes the space to the reals (dequantisation and logit, or standardisation), then the
model's own bijections, to flat noise. The Jacobians of all of them are counted, so that nats are those of the data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.models._conditional import Conditional
from tacit.nn.bijections import (
    ActNorm,
    Bijection,
    Chain,
    CheckerboardCoupling,
    Coupling,
    Dequantise,
    DequantiseColumns,
    FactorOut,
    Flatten,
    Permute,
    Squeeze,
    adapt_to,
    to_reals,
)
from tacit.nn.elementwise import Elementwise
from tacit.spaces import Images, Space, Vectors

# Bijections whose forward direction draws noise, and the middle of which is `middle`.
DEQUANTISE = Dequantise, DequantiseColumns

# (inputs, outputs) -> what says the parameters of one coupling.
Network = Callable[[int, int], nn.Module]


class Flow(Conditional):
    """A chain of bijections and a base distribution, with or without classes. A model sets `flow`.

    `flow` takes what `reals` makes of observations, (batch, *shape), to noise, (batch, dimensions), given an embedding
    of the label as context; the entries of its last scale come last.
    """

    flow: Bijection
    base: Literal["normal", "logistic"] = "normal"

    # Width of the embedding of a class.
    CONTEXT = 16

    def __init__(
        self, space: Space, classes: int | None = None, label_dropout: float = 0.0, *, dequantise: bool = False
    ):
        super().__init__(space, classes, label_dropout)
        self.reals = to_reals(space, dequantise=dequantise)
        self.label = self.label_embedding(self.CONTEXT)
        # Entries of the noise that belong to the last scale.
        self.last = space.dimensions

    @property
    def context(self) -> int:
        """Features of the context that couplings are given; 0 without classes."""
        return 0 if self.classes is None else self.CONTEXT

    @property
    def density(self) -> Kind:
        """Exact for real data; dequantisation makes it a bound on the probability of integers."""
        return "bound" if any(isinstance(layer, DEQUANTISE) for layer in self.reals.bijections) else "exact"

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Standardisation and what the bijections must know; warns where learning goes the slow way."""
        super().adapt(data)
        if "forward" in self.flow.sequential:
            warnings.warn(
                f"{type(self).__name__} learns by its slow direction, one entry after the other: samples are quick, "
                f"and steps take as long as {self.space.dimensions} entries do",
                stacklevel=2,
            )
        if isinstance(self.space, Vectors):
            warn_of_columns(data, not any(isinstance(layer, DequantiseColumns) for layer in self.reals.bijections))
        adapt_to(self.reals, data)
        # A thousand images begin an activation normalisation as well as all of them.
        x = data.observations(1000 if isinstance(self.space, Images) else 20_000).to(self.device)
        label = None if self.classes is None else torch.full((len(x),), self.classes, device=self.device)
        self.flow.adapt(self.reals(x), self._context(label))

    def _context(self, label: Tensor | None) -> Tensor | None:
        return None if self.label is None or label is None else self.label(label)

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        y, log_det = self.reals.forward_and_log_det(entries)
        z, more = self.flow.forward_and_log_det(y, self._context(label))
        return self.base_log_prob(z) + log_det + more

    # -- the base distribution ----------------------------------------------------------------------------------------

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log-density of noise, (batch,), from (batch, dimensions)."""
        if self.base == "logistic":
            return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(1)
        return -0.5 * (torch.linalg.vecdot(z, z) + z.shape[1] * math.log(2 * math.pi))

    def _noise(self, count: int, temperature: float) -> Tensor:
        shape = count, self.space.dimensions
        if self.base == "logistic":
            return temperature * torch.rand(shape, device=self.device).logit(eps=1e-7)
        return temperature * torch.randn(shape, device=self.device)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _given(self, label: int | Tensor | None, count: int) -> Tensor | None:
        """The context of labels; of "no label" where none is given."""
        if label is None and self.classes is not None:
            return self._context(torch.full((count,), self.classes, device=self.device))
        return self._context(None if label is None else self._labels(label, count))

    @torch.no_grad()
    def encode(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """The noise z = f(x), (batch, dimensions), base-distributed if x is like the data; pixels at their middles.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        x, context = self.space.check_values(x), self._given(label, len(x))
        for layer in self.reals.bijections:
            x = layer.middle(x) if isinstance(layer, DEQUANTISE) else layer(x)
        return self.flow(x, context)

    @torch.no_grad()
    def decode(self, z: Tensor, label: int | Tensor | None = None) -> Tensor:
        """X = f⁻¹(z), (batch, *space.shape).

        Raises:
            TacitError: `label` is not a class.
        """
        return self.reals.inverse(self.flow.inverse(z, self._given(label, len(z)))).to(self.space.torch_dtype)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The noise of the last scale, (batch, features): of a flow of one scale all of it."""
        return self.encode(x)[:, -self.last :]

    @torch.no_grad()
    def sample(self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """f⁻¹ of noise whose scale is multiplied by `temperature`, (count, *shape).

        Raises:
            TacitError: `temperature` is below zero, or `label` is not a class.
        """
        if temperature < 0:
            raise TacitError(f"temperature is {temperature}: give 0 or more (1 samples the model itself)")
        return self.decode(self._noise(count, temperature), self.drawn_labels(label, count))


def warn_of_columns(data: Dataset, whole_numbers: bool) -> None:
    """Warn of columns on which a density grows without bound; of whole numbers only if asked."""
    x = data.observations(20_000).double()
    whole = (x == x.round()).all(0)
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    constant = x.isnan().any(0)
    copies = ((x.T @ x / len(x)).abs() > 1 - 1e-9).triu(1).any(0)
    cases = {
        "constant values": (constant, "leave them out"),
        "copies of other columns": (copies, "leave them out"),
        "whole numbers alone": (
            whole & ~constant & whole_numbers,
            "give --dequantise, which adds uniform noise to them",
        ),
    }
    for what, (columns, remedy) in cases.items():
        if columns.any():
            numbers = columns.nonzero()[:, 0].tolist()
            shown = ", ".join(map(str, numbers[:8])) + ", …" * (len(numbers) > 8)
            warnings.warn(
                f"{data.name} has {what} in column{'s' * (len(numbers) > 1)} {shown} (counted from 0), where a density "
                f"grows without bound: {remedy}",
                stacklevel=2,
            )


def check_halves(features: int) -> None:
    """Raise SpaceError if there is a single column."""
    if features < 2:
        raise SpaceError(
            "a coupling maps one half of the columns given the other, and here is one column: take cdf-flow, maf or "
            "neural-spline-flow"
        )


def vector_couplings(features: int, couplings: int, shuffle: bool, entry: Elementwise, net: Network) -> Chain:
    """Couplings for a table.

    Args:
        features: columns.
        couplings: how many.
        shuffle: whether halves are drawn anew, or the first and the second take turns.
        entry: the map of each entry.
        net: makes the network of a coupling.

    Raises:
        SpaceError: there is one column, which has no other half.
    """
    check_halves(features)
    layers: list[Bijection] = [ActNorm(features)]
    sizes = (features - features // 2, features // 2)
    for i in range(couplings):
        first = i % 2 == 0
        if shuffle and first and features > 2:  # two features have only two halves, and these take turns already
            layers.append(Permute(features))
        kept, rest = sizes if first else sizes[::-1]
        layers.append(Coupling(net(kept, entry.parameters * rest), entry, sizes, keep_first=first))
    return Chain(*layers)


def image_couplings(shape: tuple[int, ...], scales: int, entry: Elementwise, net: Network) -> tuple[Chain, int]:
    """RealNVP's multi-scale architecture, to flat noise (Dinh et al. 2017, §3.6), and the size of its last scale.

    Args:
        shape: (channels, height, width).
        scales: how often at most to squeeze and factor out; sides must be even for it, and above two.
        entry: the map of each entry.
        net: makes the network of a coupling.
    """
    c, h, w = shape

    def checkerboards(count: int) -> list[CheckerboardCoupling]:
        return [CheckerboardCoupling(net(c, entry.parameters * c), entry, (h, w), parity=i % 2) for i in range(count)]

    # A chessboard needs two colours: nothing is squeezed to a single row or column.
    if scales <= 0 or h % 2 or w % 2 or min(h, w) < 4:
        return Chain(ActNorm(c), *checkerboards(4), Flatten(*shape)), c * h * w
    channelwise = [
        Coupling(net(2 * c, entry.parameters * 2 * c), entry, (2 * c, 2 * c), keep_first=keep_first)
        for keep_first in (True, False, True)
    ]
    rest, last = image_couplings((2 * c, h // 2, w // 2), scales - 1, entry, net)
    out = FactorOut((4 * c, h // 2, w // 2), rest)
    return Chain(ActNorm(c), *checkerboards(3), Squeeze(), ActNorm(4 * c), *channelwise, out), last
