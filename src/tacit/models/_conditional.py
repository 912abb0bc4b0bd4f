"""Densities p(x | y) of one model for all classes y: the mixture over them, and Bayes' rule.

A model with classes learns p(x | y) and the classes' shares p(y). Its likelihood stays that of x alone,
p(x) = Σ_y p(y) p(x | y), and p(y | x) ∝ p(x | y) p(y) makes it a classifier.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.model import Batch, Losses, Model
from tacit.nn import noise
from tacit.spaces import Space


class Conditional(Model):
    """A density with or without classes. A model writes `_log_prob`, of what its `entries` makes of observations.

    Labels are (batch,) int64 within the networks, `self.classes` standing for "no label"; None if unconditional.
    """

    log_prior: Tensor

    def __init__(self, space: Space, classes: int | None = None, label_dropout: float = 0.0):
        super().__init__(space)
        if classes is not None and classes < 1:
            raise TacitError(f"classes is {classes}: give the number of classes, or leave it out")
        if not 0 <= label_dropout < 1:
            raise TacitError(f"label_dropout is {label_dropout}: give a probability in [0, 1)")
        self.classes, self.label_dropout = classes, label_dropout
        if classes is not None:
            self.register_buffer("log_prior", torch.full((classes,), -math.log(classes)))

    def entries(self, x: Tensor) -> Tensor:
        """Observations as the network takes them; by default they are the same."""
        return x

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Log p(x | y), (batch,)."""
        raise NotImplementedError

    def label_embedding(self, features: int) -> nn.Embedding | None:
        """A vector for each class and one for "no label"; None for an unconditional model."""
        return None if self.classes is None else nn.Embedding(self.classes + 1, features)

    def _labels(self, label: int | Tensor, count: int) -> Tensor:
        """A class for each of `count` rows, (count,) int64.

        Raises:
            TacitError: the model has no classes, the class is unknown, or there are not as many labels as rows.
        """
        if self.classes is None:
            raise TacitError(f"label is {label}, but the model was fitted without classes: fit it with --classes")
        found = torch.as_tensor(label, device=self.device)
        if found.dim() and found.shape != (count,):
            raise TacitError(f"label has shape {tuple(found.shape)}: give one class, or one for each of {count} rows")
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < self.classes:
            unknown = found[(found < 0) | (found >= self.classes)].flatten()[0]
            raise TacitError(f"{int(unknown)} is not a class of the model: they are 0 to {self.classes - 1}")
        return found.long().expand(count)

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Take the classes' shares."""
        if self.classes is None:
            return
        if data.classes != self.classes:
            raise DataError(
                f"classes is {self.classes}, but {data.name} has {data.classes or 'none'}: give that number"
            )
        label = cast(Tensor, data.label)
        label = label[label >= 0]
        counts = torch.bincount(label, minlength=self.classes).double() + 1
        self.log_prior.copy_((counts / counts.sum()).log())

    def loss(self, batch: Batch) -> Losses:
        """−log p(x | y), the label dropped in a share `label_dropout` of the rows, and where it is unknown."""
        return Losses(nll=-self._log_prob(self.entries(self.space.check(batch.x)), self.learned_label(batch)).mean())

    def learned_label(self, batch: Batch) -> Tensor | None:
        """The labels a batch is learnt with."""
        if self.classes is None:
            return None
        none = torch.full_like(batch.index, self.classes)
        if batch.label is None:
            return none
        dropped = noise.rand(len(batch.x), device=batch.x.device) < self.label_dropout
        return torch.where(dropped | (batch.label < 0), none, batch.label)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Log p(x), (batch,), exact, in nats; of a model with classes the mixture Σ_y p(y) p(x|y), or log p(x | label).

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        entries = self.entries(self.space.check_values(x))
        if self.classes is None and label is None:
            return self._log_prob(entries, None)
        if label is not None:
            return self._log_prob(entries, self._labels(label, len(x)))
        return self._joint(entries).logsumexp(1)

    def _joint(self, entries: Tensor) -> Tensor:
        """Log p(x | y) p(y), (batch, classes)."""
        each = [self._log_prob(entries, self._labels(y, len(entries))) for y in range(self.classes or 0)]
        return torch.stack(each, 1) + self.log_prior

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """p(y | x) by Bayes' rule, (batch, classes).

        Raises:
            TacitError: the model was fitted without classes.
        """
        self._labels(0, len(x))
        return self._joint(self.entries(self.space.check_values(x))).softmax(1)

    def drawn_labels(self, label: int | Tensor | None, count: int) -> Tensor | None:
        """The labels to draw with: those given, else drawn from the prior; None for an unconditional model."""
        if label is not None:
            return self._labels(label, count)
        if self.classes is None:
            return None
        return torch.multinomial(self.log_prior.exp(), count, replacement=True)

    def _check_draw(self, temperature: float, guidance: float) -> None:
        if temperature <= 0:
            raise TacitError(f"temperature is {temperature}: give a number above 0 (1 samples the model itself)")
        if guidance and (self.classes is None or self.label_dropout == 0):
            raise TacitError(
                f"guidance is {guidance}, which compares draws with and without a label: fit the model with --classes "
                f"and a --label-dropout above 0"
            )
