"""VQ-VAE-2: two maps of discrete codes, a coarse one for the whole and a finer one for the rest.

The bottom encoder gives features of a quarter of the image's height and width, the top encoder half as large ones,
whose outputs are quantised first. What these top codes decode to joins the bottom features before those are quantised,
so that the bottom codes say only what the top ones do not; the decoder sees both. In all else it is VQ-VAE. There are
two priors,

    p(c_top) p(c_bottom | c_top),

the first with attention, since what it draws hangs together over the whole image.

References
----------
- Razavi, van den Oord & Vinyals (2019), Generating diverse high-fidelity images with VQ-VAE-2, arXiv:1906.00446
- van den Oord, Vinyals & Kavukcuoglu (2017), Neural discrete representation learning, arXiv:1711.00937
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from tacit.errors import check_at_least
from tacit.models.latent._code_prior import CodePrior
from tacit.models.latent._codebook import Codebook
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._residual import halved, residual_decoder, residual_encoder
from tacit.models.latent._vector_quantised import Level, VectorQuantised
from tacit.spaces import Images


class VQVAE2(VectorQuantised):
    """VQ-VAE-2: a hierarchy of two vector-quantised maps, with autoregressive priors.

    Args:
        codes: vectors K of each codebook.
        features: entries D of each vector.
        beta: weight of the commitment, which keeps the encoder's outputs near the vectors.
        decay: of the running means that the vectors are.
        revive_after: steps without use after which a vector restarts at an output of the batch.
        halvings: how often the bottom encoder halves height and width; the top encoder does once more.
        hidden: feature maps of encoders and decoders.
        blocks: residual blocks of each.
        residual: feature maps inside a block.
        components: logistics of a pixel's mixture; 1 has a scale of each pixel's own, whatever the codes.
        prior_features: feature maps of each of a prior's stacks.
        prior_layers: gated layers of each prior.
        heads: of the attention in the top prior.
        classes: how many classes the priors draw and tell apart; None learns without labels.

    Raises:
        TacitError: a number is below 1, `beta` is below 0, `decay` is outside [0, 1), or `heads` does not divide
            `prior_features`.
    """

    appetite = 5.0
    names = ("_top", "_bottom")

    def __init__(
        self,
        space: Images,
        *,
        codes: int = 512,
        features: int = 64,
        beta: float = 0.25,
        decay: float = 0.99,
        revive_after: int = 100,
        halvings: int = 2,
        hidden: int = 128,
        blocks: int = 2,
        residual: int = 32,
        components: int = 1,
        prior_features: int = 64,
        prior_layers: int = 8,
        heads: int = 4,
        classes: int | None = None,
    ):
        super().__init__(space, classes)
        check_at_least(1, halvings=halvings, hidden=hidden, residual=residual, heads=heads)
        check_at_least(0, beta=beta, blocks=blocks)
        self.beta = beta
        self.likelihood = Likelihood(space, None, components)
        sizes = halved((space.height, space.width), halvings + 1)
        top, bottom = self.sizes = [sizes[-1], sizes[-2]]
        self.bottom_encoder = residual_encoder(space.channels, hidden, halvings, blocks, residual)
        self.top_encoder = nn.Sequential(
            residual_encoder(hidden, hidden, 1, blocks, residual), nn.Conv2d(hidden, features, 1)
        )
        self.top_decoder = residual_decoder(features, hidden, features, [bottom, top], blocks, residual)
        self.joint = nn.Conv2d(hidden + features, features, 1)
        outputs = self.likelihood.outputs * space.channels
        self.decoder = residual_decoder(2 * features, hidden, outputs, sizes[:-1], blocks, residual)
        self.codebooks = nn.ModuleList(Codebook(codes, features, decay, revive_after) for _ in range(2))
        prior = functools.partial(CodePrior, codes, features=prior_features, layers=prior_layers, classes=classes)
        self.priors = nn.ModuleList([prior(top, heads=heads), prior(bottom, coarser=codes)])

    def _levels(self, x: Tensor) -> list[Level]:
        h = self.bottom_encoder(self.likelihood.seen(x))
        top = Level.of(self.top_encoder(h), self._codebooks()[0])
        bottom = self.joint(torch.cat([h, self.top_decoder(top.quantised)], 1))
        return [top, Level.of(bottom, self._codebooks()[1])]

    def _projections(self) -> list[nn.Conv2d]:
        return [self.top_encoder[-1], self.joint]  # type: ignore[list-item]

    def _output(self, maps: list[Tensor]) -> Tensor:
        top, bottom = maps
        return self.decoder(torch.cat([self.top_decoder(top), bottom], 1))
