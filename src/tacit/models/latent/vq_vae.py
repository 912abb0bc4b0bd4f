"""VQ-VAE: images as small maps of discrete codes from a learnt codebook, with a prior over the codes.

An encoder gives a map of outputs z(x) of a quarter of an image's height and width. Each becomes the nearest vector e of
a codebook, and a decoder makes the image of those. With sg the stop-gradient,

    L = −log p(x | e) + β ‖z(x) − sg(e)‖²,

where the decoder's gradient goes to the encoder as if e were z (straight through), and the codebook, which L does not
move, follows the outputs as running means; a vector that has not been used for a while restarts at an output. A gated
PixelCNN learns the codes' distribution, by which the model samples and has a bound on log p(x).

References
----------
- van den Oord, Vinyals & Kavukcuoglu (2017), Neural discrete representation learning, arXiv:1711.00937
- Razavi, van den Oord & Vinyals (2019), Generating diverse high-fidelity images with VQ-VAE-2, arXiv:1906.00446, §2.1
  (the running means)
- Dhariwal et al. (2020), Jukebox, arXiv:2005.00341, §3.1 (restarts at outputs of the batch)
"""

from __future__ import annotations

from torch import Tensor, nn

from tacit.errors import check_at_least
from tacit.models.latent._code_prior import CodePrior
from tacit.models.latent._codebook import Codebook
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._residual import halved, residual_decoder, residual_encoder
from tacit.models.latent._vector_quantised import Level, VectorQuantised
from tacit.spaces import Images


class VQVAE(VectorQuantised):
    """Vector-quantised variational autoencoder, with an autoregressive prior.

    Args:
        codes: vectors K of the codebook.
        features: entries D of each.
        beta: weight of the commitment, which keeps the encoder's outputs near the vectors.
        decay: of the running means that the vectors are.
        revive_after: steps without use after which a vector restarts at an output of the batch.
        halvings: how often the encoder halves height and width.
        hidden: feature maps of encoder and decoder.
        blocks: residual blocks of each.
        residual: feature maps inside a block.
        components: logistics of a pixel's mixture; 1 has a scale of each pixel's own, whatever the codes.
        prior_features: feature maps of each of the prior's stacks.
        prior_layers: gated layers of the prior.
        classes: how many classes the prior draws and tells apart; None learns without labels.

    Raises:
        TacitError: a number is below 1, `beta` is below 0, or `decay` is outside [0, 1).
    """

    appetite = 5.0
    names = ("",)

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
        classes: int | None = None,
    ):
        super().__init__(space, classes)
        check_at_least(1, halvings=halvings, hidden=hidden, residual=residual)
        check_at_least(0, beta=beta, blocks=blocks)
        self.beta = beta
        self.likelihood = Likelihood(space, None, components)
        sizes = halved((space.height, space.width), halvings)
        self.sizes = sizes[-1:]
        self.encoder = nn.Sequential(
            residual_encoder(space.channels, hidden, halvings, blocks, residual), nn.Conv2d(hidden, features, 1)
        )
        outputs = self.likelihood.outputs * space.channels
        self.decoder = residual_decoder(features, hidden, outputs, sizes, blocks, residual)
        self.codebooks = nn.ModuleList([Codebook(codes, features, decay, revive_after)])
        self.priors = nn.ModuleList(
            [CodePrior(codes, sizes[-1], features=prior_features, layers=prior_layers, classes=classes)]
        )

    def _levels(self, x: Tensor) -> list[Level]:
        return [Level.of(self.encoder(self.likelihood.seen(x)), self._codebooks()[0])]

    def _projections(self) -> list[nn.Conv2d]:
        return [self.encoder[-1]]  # type: ignore[list-item]

    def _output(self, maps: list[Tensor]) -> Tensor:
        return self.decoder(maps[0])
