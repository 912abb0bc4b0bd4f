"""Neural spline flow: couplings or autoregressions by splines; the first choice for a table.

Every entry that a layer maps goes through a monotone rational-quadratic spline with K bins on [−B, B] and the identity
outside; widths, heights and slopes of the bins come from a network of the entries that are kept, or come before. One
such layer bends what several affine ones only stretch. Coupling layers sample as fast as they learn; autoregressive
ones fit a little better and sample entry by entry. Between layers the entries are mixed by a random permutation.

References
----------
- Durkan, Bekasov, Murray & Papamakarios (2019), Neural spline flows, arXiv:1906.04032
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow, image_couplings, vector_couplings
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import ActNorm, Bijection, Chain, Permute
from tacit.nn.conditioners import Perceptron, ResidualConvolutions
from tacit.nn.elementwise import Spline
from tacit.spaces import Images, Space, Vectors


class NeuralSplineFlow(Flow):
    """Neural spline flow.

    Args:
        space: vectors or images.
        kind: "coupling", or "autoregressive", for vectors; of one column, which has no halves, always the latter.
        layers: for vectors, couplings or autoregressions.
        hidden: for vectors, units of each hidden layer of their networks.
        bins: of each spline.
        tail: where the splines end, on standardised data.
        dropout: share of the networks' hidden units to drop while learning; some for small data.
        channels: for images, the width of each coupling's residual network.
        blocks: for images, the residual blocks of each coupling's network.
        scales: for images, how often at most to squeeze and factor out.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is too small, or images are to be modelled by autoregressions.
    """

    spaces = (Vectors, Images)
    recipe = Recipe(batch_size=256, learning_rate=1e-3, schedule="cosine", warmup=100, clip=5.0, ema=0.999)

    def __init__(
        self,
        space: Space,
        *,
        kind: Literal["coupling", "autoregressive"] = "coupling",
        layers: int = 8,
        hidden: tuple[int, ...] = (128, 128),
        bins: int = 8,
        tail: float = 5.0,
        dropout: float = 0.0,
        channels: int = 32,
        blocks: int = 2,
        scales: int = 2,
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, layers=layers, hidden=min(hidden, default=1), bins=bins, blocks=blocks, channels=channels)
        if tail <= 0:
            raise TacitError(f"tail is {tail}: give a positive number of standard deviations, such as 5")
        entry, features = Spline(bins, tail), space.dimensions
        if isinstance(space, Images):
            if kind == "autoregressive":
                raise TacitError("kind is 'autoregressive', which is for vectors: give coupling, or take pixelcnn++")
            net = partial(ResidualConvolutions, width=channels, blocks=blocks, dropout=dropout, context=self.context)
            self.flow, self.last = image_couplings(space.shape, scales, entry, net)
        elif kind == "coupling" and features > 1:
            perceptron = partial(Perceptron, hidden=hidden, dropout=dropout, context=self.context)
            self.flow = vector_couplings(features, layers, True, entry, perceptron)
        else:
            chain = list[Bijection]([ActNorm(features)])
            for i in range(layers):
                if i:
                    chain.append(Permute(features))
                chain.append(MaskedAutoregression(features, entry, hidden, self.context))
            self.flow = Chain(*chain)
