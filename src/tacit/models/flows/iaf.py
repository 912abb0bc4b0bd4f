"""Inverse autoregressive flow: an autoregressive flow turned around; samples come in one pass.

    x_d = f(z_d; net_d(z_<d)),        log p(x) = log p(z) − Σ_d log |f'(z_d)|

The nets see the noise, not the data: all entries of a sample are computed at once, and the density of a sample costs no
more. The density of anything else needs its noise first, entry by entry: learning from data is slow and for few
columns. Where the flow is learnt from its own samples, as the posterior of a VAE is (`vae --flow`), nothing is slow.

References
----------
- Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling (2016), Improved variational inference with inverse
  autoregressive flow, arXiv:1606.04934
"""

from __future__ import annotations

import torch

from tacit.errors import check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import ActNorm, Bijection, Chain, Inverse, Permute
from tacit.nn.elementwise import Affine
from tacit.spaces import Space, Vectors


class IAF(Flow):
    """Inverse autoregressive flow.

    Args:
        space: vectors.
        layers: inverse autoregressions.
        hidden: units of each hidden layer of their networks.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1.
    """

    spaces = (Vectors,)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", warmup=100, clip=5.0, ema=0.999)

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 4,
        hidden: tuple[int, ...] = (64, 64),
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, layers=layers, hidden=min(hidden, default=1))
        features, chain = space.dimensions, list[Bijection]()
        for i in range(layers):
            chain.append(ActNorm(features))
            chain.append(Inverse(MaskedAutoregression(features, Affine(), hidden, self.context)))
            if i + 1 < layers:
                chain.append(Permute(torch.arange(features).flip(0)))
        self.flow = Chain(*chain)
