"""Masked autoregressive flow: every entry mapped given those before it, in one pass; exact density.

    z_d = f(x_d; net_d(x_<d)),        log |det| = Σ_d log |f'(x_d)|

The nets of all entries are one masked perceptron (MADE). f is affine, z = x · exp(s) + t, as in the paper; the logit of
a mixture of logistics' distribution function, which makes one layer a mixture (in two dimensions: the classic
autoregressive flow, p(x₁) p(x₂|x₁)); or a rational-quadratic spline. Layers follow one another, each reading the
entries in the opposite order. A class biases the nets' first layer.

Sampling goes entry by entry; each hidden unit is computed once, when the last entry that it sees is there.

References
----------
- Papamakarios, Pavlakou & Murray (2017), Masked autoregressive flow for density estimation, arXiv:1705.07057
- Ho et al. (2019), Flow++, arXiv:1902.00275, §3.2 (the mixture)
- Durkan et al. (2019), Neural spline flows, arXiv:1906.04032 (the spline)
"""

from __future__ import annotations

from typing import Literal

import torch

from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import ActNorm, Bijection, Chain, Flatten, Permute
from tacit.nn.elementwise import Affine, Elementwise, MixtureCDF, Spline
from tacit.spaces import Images, Space, Vectors


class MAF(Flow):
    """Masked autoregressive flow.

    Args:
        space: vectors, or images, whose pixels are read row by row as one vector.
        layers: autoregressions.
        hidden: units of each hidden layer of their networks.
        entry: the map of each entry: "affine", "mixture" or "spline".
        components: of the mixture.
        bins: of the spline.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1, or `entry` is none of the three.
    """

    spaces = (Vectors, Images)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", warmup=100, clip=5.0, ema=0.999)

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 5,
        hidden: tuple[int, ...] = (256, 256),
        entry: Literal["affine", "mixture", "spline"] = "affine",
        components: int = 8,
        bins: int = 8,
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, layers=layers, hidden=min(hidden, default=1), components=components, bins=bins)
        entries: dict[str, Elementwise] = {
            "affine": Affine(),
            "mixture": MixtureCDF(components),
            "spline": Spline(bins),
        }
        if entry not in entries:
            raise TacitError(f"entry is {entry!r}: give affine, mixture or spline")
        features, chain = space.dimensions, list[Bijection]()
        for i in range(layers):
            chain.append(ActNorm(features))
            chain.append(MaskedAutoregression(features, entries[entry], hidden, self.context))
            if i + 1 < layers:
                chain.append(Permute(torch.arange(features).flip(0)))
        self.flow = Chain(Flatten(*space.shape), *chain)
