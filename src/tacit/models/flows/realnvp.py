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

from functools import partial
from typing import Literal

from tacit.errors import TacitError
from tacit.model import Recipe
from tacit.models.flows._flow import Flow, image_couplings, vector_couplings
from tacit.nn.conditioners import Perceptron, ResidualConvolutions
from tacit.nn.elementwise import Affine
from tacit.spaces import Images, Space, Vectors


class RealNVP(Flow):
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
        dequantise: add uniform noise to the columns of a table that hold whole numbers.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: there is no coupling, no residual block, or the bound is not positive.
        SpaceError: there is one column.
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
        dequantise: bool = False,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout, dequantise=dequantise)
        for name, value in (("couplings", couplings), ("blocks", blocks), ("bound", bound)):
            if value <= 0:
                raise TacitError(f"{name}={value} leaves realnvp nothing to learn with: choose a positive number")
        entry = Affine(bound)
        if isinstance(space, Images):
            convolutions = partial(
                ResidualConvolutions, width=channels, blocks=blocks, dropout=dropout, context=self.context
            )
            self.flow, self.last = image_couplings(space.shape, scales, entry, convolutions)
        else:
            perceptron = partial(Perceptron, hidden=hidden, dropout=dropout, context=self.context)
            self.flow = vector_couplings(space.dimensions, couplings, masks == "random", entry, perceptron)
