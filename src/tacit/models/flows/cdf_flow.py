"""CDF flow: one number mapped to noise by the distribution functions of mixtures, one after the other.

    z = logit(Σ_k π_k F((x − μ_k) / s_k)),        log p(x) = log p_base(z) + log |dz/dx|

With one layer and a logistic base this is the mixture of logistics (of Gaussians) itself, as σ(z) is uniform. Further
layers, with a learnt scale and shift between them, compose to what no mixture of that size can be. The inverse is found
by bisection, to 2^−40 of a bracket that the components give. Of several columns each has its own flow, as if they were
independent.

References
----------
- Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan (2021), Normalizing flows for probabilistic modeling and
  inference, arXiv:1912.02762, §2.2 and §3.1.3
- Ho et al. (2019), Flow++, arXiv:1902.00275, §3.2
"""

from __future__ import annotations

from typing import Literal

from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow
from tacit.nn.bijections import Chain, Free
from tacit.nn.elementwise import MixtureCDF
from tacit.spaces import Space, Vectors


class CDFFlow(Flow):
    """CDF flow.

    Args:
        space: vectors; every column by itself.
        kind: of the mixtures' components, "gaussian" or "logistic".
        components: of each mixture.
        layers: mixtures, one after the other.
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1, or `kind` is neither.
    """

    spaces = (Vectors,)
    recipe = Recipe(batch_size=256, learning_rate=1e-2, schedule="cosine", clip=5.0)
    base = "logistic"

    def __init__(
        self,
        space: Space,
        *,
        kind: Literal["gaussian", "logistic"] = "gaussian",
        components: int = 8,
        layers: int = 2,
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        check_at_least(1, components=components, layers=layers)
        if kind not in ("gaussian", "logistic"):
            raise TacitError(f"kind is {kind!r}: give gaussian or logistic")
        # The last mixture goes straight to the base.
        entries = [MixtureCDF(components, gaussian=kind == "gaussian", affine=i + 1 < layers) for i in range(layers)]
        self.flow = Chain(*(Free(space.dimensions, entry, self.context) for entry in entries))
