"""Rotation prediction: features of images from telling by which of four angles each was turned.

Whoever can tell whether a picture stands upright must know what is on it. Every image X of a batch is turned by
y · 90° for each y in {0, 1, 2, 3}, and one network F must say which it was:

    loss(X, θ) = −(1/4) Σ_y log F^y(g(X | y) | θ)

All four copies are in the same batch, which the paper found better than one at random (its §3.1). Turning whole
quarters moves pixels and interpolates nothing, so it leaves no trace to be found. A picture that is not square would
give its angle away by its shape, or by any padding; a random square window of it is turned instead.

The last layers serve the task; the best features for other tasks are those of a stage before the last (Table 1).

References
----------
Gidaris, Singh, Komodakis (2018). Unsupervised Representation Learning by Predicting Image Rotations.
arXiv:1803.07728.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.errors import TacitError
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn import noise
from tacit.nn.augment import Augment
from tacit.nn.encoders import ConvEncoder, stages_for
from tacit.spaces import Images


def rotations(x: Tensor) -> Tensor:
    """(batch, channels, side, side) -> (4 · batch, channels, side, side): all upright, then all turned by 90°, …"""
    return torch.cat([torch.rot90(x, turns, (2, 3)) for turns in range(4)])


class Rotation(Model):
    """Prediction of image rotations.

    Args:
        space: images of any size and number of channels.
        width: channels of the encoder's first stage; each stage doubles them.
        stages: halvings of the side; None goes on until the longer side is at most 4.
        residual: residual blocks instead of plain convolutions.
        layer: the stage, counted from 1, whose map `embed` gives; None is the one before the last.
        pool: that map is averaged over a grid of this many cells a side.
        crop: smallest share of the area that is shown while learning; 1 shows all of it.
        flip: whether images are mirrored at random while learning.
        jitter: strength of the changes of brightness and contrast while learning.
    """

    space: Images
    spaces = (Images,)
    recipe = Recipe(batch_size=128, learning_rate=2e-3, weight_decay=1e-4, schedule="cosine", warmup=100)

    def __init__(
        self,
        space: Images,
        *,
        width: int = 32,
        stages: int | None = None,
        residual: bool = False,
        layer: int | None = None,
        pool: int = 4,
        crop: float = 1.0,
        flip: bool = True,
        jitter: float = 0.0,
    ):
        super().__init__(space)
        stages = stages or stages_for(space.height, space.width)
        self.layer, self.pool = layer or max(1, stages - 1), pool
        if not 1 <= self.layer <= stages:
            raise TacitError(f"layer is {layer}, but the encoder has stages 1 to {stages}: choose one of them")
        self.augment = Augment(levels=space.levels, crop=crop, flip=0.5 * flip, brightness=jitter, contrast=jitter)
        self.encoder = ConvEncoder(space.channels, width=width, stages=stages, residual=residual)
        self.classifier = nn.Linear(self.encoder.widths[-1], 4)

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy in nats over the four rotations of every image; beside it, the share told rightly."""
        x = rotations(self.augment(self._square(batch.x)))
        turned = torch.arange(4, device=x.device).repeat_interleave(len(batch.x))
        logits = self.classifier(self.encoder(x).mean((2, 3)))
        loss = F.cross_entropy(logits, turned)
        return Losses(loss, cross_entropy=loss, accuracy=(logits.detach().argmax(1) == turned).float().mean())

    def _square(self, x: Tensor) -> Tensor:
        """A random square window of every image, as large as fits."""
        height, width = x.shape[2:]
        side = min(height, width)
        if height == width:
            return x
        start = (noise.rand(len(x), device=x.device) * (max(height, width) - side + 1)).long()
        rows = start.view(-1, 1, 1, 1) + torch.arange(side, device=x.device)
        if height > width:
            return x.gather(2, rows.transpose(2, 3).expand(-1, x.shape[1], -1, width))
        return x.gather(3, rows.expand(-1, x.shape[1], height, -1))

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of stage `layer`, pooled: (batch, channels, height, width) -> (batch, features)."""
        x = self.space.check(x).float() / (self.space.levels - 1)
        return F.adaptive_avg_pool2d(self.encoder(x, self.layer), self.pool).flatten(1)
