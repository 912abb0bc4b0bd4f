"""SimCLR: contrastive learning of image features from two random views of every image.

Each image x of a batch is changed at random twice (crop, flip, colours). An encoder f gives the features h = f(x̃), a
small projector g gives z = g(h), and each z must find the other view of its image among all other views of the batch:

    ℓ(i, j) = −log exp(sim(z_i, z_j) / τ) / Σ_{k ≠ i} exp(sim(z_i, z_k) / τ),        sim: cosine

averaged over both directions of all pairs (NT-Xent). What is used afterwards is h, of the image as it is: g may discard
what the task makes it discard. Both views go through the encoder in one pass, so batch norm sees them together.

Under several processes the negatives of a view are those of its own process's share of the batch, and so are the
statistics of batch norm: larger shares, not more processes, give more negatives.

References
----------
Chen, Kornblith, Norouzi, Hinton (2020). A Simple Framework for Contrastive Learning of Visual Representations.
arXiv:2002.05709.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.errors import TrainingError
from tacit.losses.contrastive import nt_xent
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn.augment import Augment
from tacit.nn.encoders import ConvEncoder, stages_for
from tacit.spaces import Images


class SimCLR(Model):
    """A simple framework for contrastive learning of visual representations.

    Args:
        space: images of any size and number of channels.
        width: channels of the encoder's first stage; each stage doubles them.
        stages: halvings of the side; None goes on until the longer side is at most 4.
        residual: residual blocks instead of plain convolutions.
        pool: the last map is averaged over a grid of this many cells a side; 1 is the paper's global average, more
            keeps where things are.
        projection: features of z.
        hidden: features of the projector's hidden layers.
        layers: linear layers of the projector.
        temperature: τ.
        crop: smallest share of the area that a view shows.
        flip: whether views are mirrored at random.
        jitter: strength of the changes of brightness and contrast; in RGB also of saturation, and of hue by a quarter.
        grey: probability that a view of an RGB image loses its colour.
        blur: probability that a view is blurred.
    """

    space: Images
    spaces = (Images,)
    recipe = Recipe(batch_size=256, learning_rate=2e-3, weight_decay=1e-4, schedule="cosine", warmup=100)

    def __init__(
        self,
        space: Images,
        *,
        width: int = 32,
        stages: int | None = None,
        residual: bool = False,
        pool: int = 2,
        projection: int = 128,
        hidden: int = 512,
        layers: int = 2,
        temperature: float = 0.2,
        crop: float = 0.4,
        flip: bool = True,
        jitter: float = 0.4,
        grey: float = 0.2,
        blur: float = 0.0,
    ):
        super().__init__(space)
        self.temperature, self.pool = temperature, pool
        self.augment = Augment(
            levels=space.levels,
            crop=crop,
            flip=0.5 * flip,
            brightness=jitter,
            contrast=jitter,
            saturation=jitter,
            hue=jitter / 4,
            jitter=0.8,
            grey=grey,
            blur=blur,
        )
        stages = stages or stages_for(space.height, space.width)
        self.encoder = ConvEncoder(space.channels, width=width, stages=stages, residual=residual)
        sizes = [self.encoder.widths[-1] * pool**2, *[hidden] * (layers - 1), projection]
        projector: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            # Batch norm shifts, so linear layers need no bias; no ReLU after the last (the paper's §B.4).
            projector += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.projector = nn.Sequential(*projector[:-1])

    def features(self, x: Tensor) -> Tensor:
        """h: (batch, channels, height, width) in [0, 1] -> (batch, features)."""
        return F.adaptive_avg_pool2d(self.encoder(x), self.pool).flatten(1)

    def loss(self, batch: Batch) -> Losses:
        """NT-Xent in nats; beside it, the share of views whose nearest neighbour is the other view of their image.

        Raises:
            TrainingError: the batch holds a single image.
        """
        if len(batch.x) < 2:
            raise TrainingError("simclr sets each image against the others, and a batch of 1 has none: use at least 2")
        views = torch.cat((self.augment(batch.x), self.augment(batch.x)))
        loss, found = nt_xent(self.projector(self.features(views)), self.temperature)
        return Losses(loss, nt_xent=loss, accuracy=found)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """h, before the projector, of images as they are: (batch, channels, height, width) -> (batch, features)."""
        return self.features(self.space.check(x).float() / (self.space.levels - 1))
