"""Glow: activation normalisation, invertible 1 × 1 convolutions and affine couplings, multi-scale.

A step of flow is three bijections: a scale and shift for every channel, begun so that the first data leave it
standardised; a learnt invertible matrix that mixes the channels at every pixel, W = P L (U + diag(s)), whose
log-determinant is Σ log |s| for each pixel; and an affine coupling of half of the channels. K steps follow a squeeze of
2 × 2 pixels into four channels; then half of the channels are done – noise once a learnt prior has taken out what the
other half tells about them – and the rest goes on at half the resolution, L times in all.

Attributes are directions in the noise, the difference between the mean codes of images with and without one; a multiple
of it added to a code changes an image (`tacit interpolate --attribute`).

Where this departs from the paper: log-scales of the couplings are softly bounded, exp(s) for the paper's σ(s + 2).

References
----------
- Kingma & Dhariwal (2018), Glow: Generative flow with invertible 1×1 convolutions, arXiv:1807.03039
- Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803, §3.6 (the scales)
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tacit.errors import SpaceError, check_at_least
from tacit.model import Recipe
from tacit.models.flows._flow import Flow, Network
from tacit.nn.bijections import ActNorm, Bijection, Chain, Coupling, FactorOut, Flatten, InvertibleConv1x1, Squeeze
from tacit.nn.conditioners import quiet
from tacit.nn.elementwise import Affine
from tacit.spaces import Images


class Glow(Flow):
    """Glow.

    Args:
        space: images of even height and width.
        scales: how often at most to squeeze; as often as height and width are even.
        depth: steps of flow at each scale, the paper's K.
        width: channels of the couplings' networks; the paper's 512.
        bound: largest log-scale of one coupling; a soft bound that should not bind on the data.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is below 1.
        SpaceError: the images' height or width is odd.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=64, learning_rate=1e-3, schedule="cosine", warmup=200, clip=50.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Images,
        *,
        scales: int = 3,
        depth: int = 8,
        width: int = 64,
        bound: float = 3.0,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, scales=scales, depth=depth, width=width)
        if space.height % 2 or space.width % 2:
            raise SpaceError(
                f"glow squeezes squares of 2 × 2 pixels, and images of {space.height} × {space.width} have an odd "
                f"side: crop them by one, or take realnvp"
            )
        self.flow, self.last = _scale(
            space.shape, scales, depth, Affine(bound), partial(Convolutions, width=width, context=self.context)
        )


def _scale(shape: tuple[int, ...], scales: int, depth: int, entry: Affine, net: Network) -> tuple[Chain, int]:
    """The bijections from one scale on, and the number of entries of the last."""
    c, h, w = shape[0] * 4, shape[1] // 2, shape[2] // 2
    half = (c // 2, c // 2)
    layers: list[Bijection] = [Squeeze()]
    for _ in range(depth):
        layers += [ActNorm(c), InvertibleConv1x1(c), Coupling(net(c // 2, 2 * (c // 2)), entry, half, keep_first=True)]
    if scales == 1 or h % 2 or w % 2:
        return Chain(*layers, Flatten(c, h, w)), c * h * w
    rest, last = _scale((c // 2, h, w), scales - 1, depth, entry, net)
    # The learnt prior of the half that is done, given the one that goes on.
    prior = Coupling(net(c // 2, 2 * (c // 2)), entry, half, keep_first=False)
    return Chain(*layers, prior, FactorOut((c, h, w), rest)), last


class Convolutions(nn.Module):
    """3 × 3, 1 × 1 and 3 × 3 convolutions with ReLUs between; the context biases the first.

    Args:
        inputs: channels that it takes.
        outputs: channels that it gives.
        width: channels between.
        context: features of the context; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, width: int, context: int = 0):
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.context = nn.Linear(context, width) if context else None
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), quiet(nn.Conv2d(width, outputs, 3, padding=1))
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, inputs, height, width), (batch, context) -> (batch, outputs, height, width)."""
        h = self.first(x)
        if self.context is not None:
            h = h + self.context(context)[:, :, None, None]
        return self.rest(h)
