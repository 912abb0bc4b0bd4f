"""Mean Teacher: a classifier from few labels that agrees with the average of its own past weights.

A student f_θ learns the labels it is given, and on every observation, labelled or not, to predict what its teacher
f_θ′ does for another random view of it. The teacher's weights are the moving average of the student's:

    L = H(y, f_θ(x, η)) + w(t) E_x[‖softmax f_θ(x, η) − softmax f_θ′(x, η′)‖² / classes],   θ′ ← α θ′ + (1 − α) θ

with η, η′ the noise of the two views (shift and Gaussian noise on images, Gaussian noise on tables, dropout in both
networks) and w ramped up over the first part of the budget. After k steps α is min(1 − 1/k, `decay`): the teacher
starts as the plain mean of all students so far, and holds nothing of its own initial weights.

Labelled and unlabelled rows pass each network in one forward, so that batch normalisation sees both. The teacher runs
in training mode beside the student, as in the authors' code: it normalises by the statistics of its own batch and
keeps running averages of its own; only parameters are averaged, never buffers. It is the teacher that classifies.

References
----------
Tarvainen & Valpola (2017), Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results, arXiv:1703.01780.
Laine & Aila (2017), Temporal Ensembling for Semi-Supervised Learning, arXiv:1610.02242.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.losses.consistency import ramp_up, softmax_mse
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.models._few_labels import check_labels, labelled_and_unlabelled
from tacit.nn import noise
from tacit.nn.augment import Augment
from tacit.nn.bijections import Standardise, adapt_to
from tacit.nn.encoders import ConvEncoder, stages_for
from tacit.spaces import Images, Vectors


class ImageEncoder(nn.Sequential):
    """Images in [0, 1] -> features (batch, size): a convolutional encoder, the average over its map, dropout."""

    def __init__(self, space: Images, width: int, dropout: float):
        encoder = ConvEncoder(space.channels, width=width, stages=stages_for(space.height, space.width))
        super().__init__(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.size = encoder.widths[-1]


class VectorEncoder(nn.Sequential):
    """Standardised rows (batch, features) -> (batch, size): two hidden layers."""

    def __init__(self, space: Vectors, hidden: int, dropout: float):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((space.features, hidden, hidden)):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)
        self.size = hidden


class Classifier(nn.Module):
    """An encoder and a linear output: observations -> logits (batch, classes)."""

    def __init__(self, encoder: ImageEncoder | VectorEncoder, classes: int):
        super().__init__()
        self.encoder = encoder
        self.output = nn.Linear(encoder.size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.encoder(x))


class MeanTeacher(Model):
    """Mean Teacher classifier.

    Args:
        space: images, or vectors.
        classes: how many classes the labels name.
        labelled_per_batch: rows of each batch that are drawn from the labelled ones; the rest are unlabelled.
        consistency: w, the weight of agreement with the teacher at its highest; 0 is the supervised-only net.
        ramp: fraction of the budget over which the weight grows to its highest.
        decay: α at its highest, of the moving average that is the teacher.
        width: channels of the encoder's first stage, doubled by each stage after it; unused for vectors.
        hidden: width of the hidden layers for vectors; unused for images.
        dropout: probability of losing a feature.
        shift: largest shift of a view, as a fraction of the image's side; unused for vectors.
        deviation: standard deviation of the noise added to a view: images are in [0, 1], columns have deviation 1.

    Raises:
        TacitError: `labelled_per_batch` is not positive, or `classes` below two.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=2e-3, weight_decay=1e-4, schedule="cosine")
    space: Images | Vectors

    def __init__(
        self,
        space: Images | Vectors,
        *,
        classes: int,
        labelled_per_batch: int = 32,
        consistency: float = 100.0,
        ramp: float = 0.3,
        decay: float = 0.99,
        width: int = 24,
        hidden: int = 256,
        dropout: float = 0.5,
        shift: float = 0.08,
        deviation: float = 0.15,
    ):
        super().__init__(space)
        if classes < 2:
            raise TacitError(f"classes={classes} leaves nothing to tell apart: have labels of at least two classes")
        if labelled_per_batch < 1:
            raise TacitError(f"labelled_per_batch={labelled_per_batch} learns no label: give at least 1")
        self.classes = classes
        self.labelled_per_batch = labelled_per_batch
        self.consistency = consistency
        self.ramp = ramp
        self.decay = decay
        self.deviation = deviation
        if isinstance(space, Images):
            self.view = Augment(levels=space.levels, shift=shift, noise=deviation)
            encoder: ImageEncoder | VectorEncoder = ImageEncoder(space, width, dropout)
        else:
            self.standardise = Standardise(space.features)
            encoder = VectorEncoder(space, hidden, dropout)
        self.student = Classifier(encoder, classes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

    def adapt(self, data: Dataset) -> None:
        """Raise DataError unless every class has a labelled row; take means and deviations of a table."""
        check_labels(data, self.classes, "mean-teacher")
        if isinstance(self.space, Vectors):
            adapt_to(self.standardise, data)

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`labelled_per_batch` labelled rows (at most half a batch), then unlabelled ones; these make the epoch."""
        return labelled_and_unlabelled(data, size, self.labelled_per_batch, generator, "mean-teacher")

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the labelled rows and the weighted disagreement of all rows with the teacher."""
        logits = self.student(self.augment(batch.x))
        with torch.no_grad():
            target = self.teacher(self.augment(batch.x))
        label = torch.full_like(batch.index, -1) if batch.label is None else batch.label
        known = (label >= 0).sum().clamp(min=1)
        weight = self.consistency * ramp_up(self.progress, self.ramp)
        return Losses(
            classification=F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / known,
            consistency=weight * softmax_mse(logits, target),
        )

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student, and the consistency weight along its ramp."""
        decay = min(1 - 1 / max(1, progress.step), self.decay)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - decay)
        self.progress.fill_(progress.fraction)

    def augment(self, x: Tensor) -> Tensor:
        """A random view of each observation, as the networks take it; no randomness in eval mode."""
        if not self.training:
            return self._to_network(x)
        if isinstance(self.space, Images):
            return self.view(x)
        z = self.standardise(x)
        return z + self.deviation * noise.randn_like(z)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The teacher's class probabilities: (batch, *space.shape) -> (batch, classes)."""
        return self.teacher(self._to_network(self.space.check(x))).softmax(1)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The teacher's features before its output: (batch, *space.shape) -> (batch, features)."""
        return self.teacher.encoder(self._to_network(self.space.check(x)))

    def _to_network(self, x: Tensor) -> Tensor:
        return x / (self.space.levels - 1) if isinstance(self.space, Images) else self.standardise(x)
