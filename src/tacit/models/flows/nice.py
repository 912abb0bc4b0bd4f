"""NICE: additive couplings, of volume one, and one scale for every dimension.

    z_rest = x_rest + m(x_kept),        log |det| = Σ_d log S_d

The halves (odd and even entries) take turns; as no coupling changes the volume, a last diagonal layer S says how much
each dimension varies. The base distribution is logistic, as the paper finds best.

References
----------
- Dinh, Krueger & Bengio (2015), NICE: Non-linear independent components estimation, arXiv:1410.8516
"""

from __future__ import annotations

from typing import Literal

import torch

from tacit.errors import check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow, check_halves
from tacit.nn.bijections import Bijection, Chain, Coupling, Flatten, Permute, Scale
from tacit.nn.conditioners import Perceptron
from tacit.nn.elementwise import Shift
from tacit.spaces import Images, Space, Vectors


class NICE(Flow):
    """NICE.

    Args:
        space: vectors, or images, whose pixels are read row by row as one vector.
        couplings: additive couplings; the paper's four.
        hidden: units of each hidden layer of a coupling's network; the paper's five of 1000.
        base: "logistic" or "normal".
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1.
        SpaceError: there is one column.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=200, learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", clip=5.0, ema=0.999)

    def __init__(
        self,
        space: Space,
        *,
        couplings: int = 4,
        hidden: tuple[int, ...] = (256, 256, 256),
        base: Literal["logistic", "normal"] = "logistic",
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, couplings=couplings, hidden=min(hidden, default=1))
        self.base, features = base, space.dimensions
        check_halves(features)
        sizes, chain = (features - features // 2, features // 2), list[Bijection]()
        for i in range(couplings):
            kept, rest = sizes if i % 2 == 0 else sizes[::-1]
            net = Perceptron(kept, rest, hidden, context=self.context)
            chain.append(Coupling(net, Shift(), sizes, keep_first=i % 2 == 0))
        # Odd entries first, then even ones.
        parted = Permute(torch.cat((torch.arange(0, features, 2), torch.arange(1, features, 2))))
        self.flow = Chain(Flatten(*space.shape), parted, *chain, Scale(features))
