"""The contract: what every model is, and what it may say about its own learning.

A model is built from the space of its observations and keyword arguments; the constructor's signature IS its
configuration, from which the command line, the run's record and the docs are derived. Most models write `loss` and
the capabilities (`capabilities.py`) they have; the other methods below are for those whose learning is not
"one loss, one optimiser, shuffled mini-batches".
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tacit.errors import SpaceError
from tacit.spaces import Space

if TYPE_CHECKING:
    from tacit.data import Dataset


@dataclass(frozen=True)
class Batch:
    """Some observations, on the model's device, in the data's own dtype.

    `index` (batch,) are row numbers in the training data, for memory banks and ensembles; `label` (batch,) is −1
    where unlabelled and None where the data has no labels at all; `target` is the other half of a pair.
    """

    x: Tensor
    index: Tensor
    label: Tensor | None = None
    target: Tensor | None = None

    def chunk(self, count: int) -> list[Batch]:
        """Split into `count` batches of equal size, in order: for players that want fresh data each turn."""
        fields = (self.x, self.index, self.label, self.target)
        parts = [[None] * count if field is None else field.chunk(count) for field in fields]
        return [Batch(*part) for part in zip(*parts, strict=True)]


class Losses(dict[str, Tensor]):
    """Named scalar terms, and the total that is minimised: their sum, unless `total` is given.

    The loop logs every term by name, so a term given beside an explicit `total` is a diagnostic.
    """

    def __init__(self, total: Tensor | None = None, **terms: Tensor):
        super().__init__(terms)
        self.total = torch.stack(list(terms.values())).sum() if total is None else total


Step = tuple[str | None, Callable[[], Losses]]


@dataclass(frozen=True)
class Progress:
    """Where the run stands: optimiser steps done, epochs begun, and the fraction of the budget used, in [0, 1]."""

    step: int
    epoch: int
    fraction: float


@dataclass(frozen=True)
class Recipe:
    """How a model is best trained; `fit` takes each field as an option that overrides it.

    Attributes:
        batch_size: observations a step and a process.
        learning_rate: peak rate, for every player that does not state its own.
        optimiser: name of a class in `torch.optim`.
        betas: Adam's decay rates; ignored by optimisers without them.
        momentum: SGD's momentum; ignored by optimisers without it.
        weight_decay: decoupled weight decay of matrices and kernels; biases and gains are not decayed.
        schedule: "constant" or "cosine" (to zero at the end of the budget).
        warmup: steps of linear warm-up.
        clip: largest gradient norm, per player; None does not clip.
        ema: decay of the exponential moving average that is saved for use; None keeps the raw weights.
    """

    batch_size: int = 128
    learning_rate: float = 1e-3
    optimiser: str = "AdamW"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    clip: float | None = None
    ema: float | None = None


class Model(nn.Module):
    """Base of every model.

    Args:
        space: what one observation is; kept as `self.space`.

    Class attributes:
        spaces: the kinds of space the model takes.
        recipe: how it is best trained.
        appetite: minutes of two cores that observations of 784 entries take before the model shows what it can;
            a comparison that cannot give them leaves it out.
        loss_ranks: whether a lower loss on held-out rows is a better model, so that patience can go by it.

    Raises:
        SpaceError: `space` is not one of `spaces`.
    """

    spaces: ClassVar[tuple[type[Space], ...]] = ()
    recipe: ClassVar[Recipe] = Recipe()
    appetite: ClassVar[float] = 0.0
    loss_ranks: bool = True

    def __init__(self, space: Space):
        super().__init__()
        if not isinstance(space, self.spaces):
            from tacit import catalogue

            name, able = catalogue.name_of(type(self)), catalogue.names_taking(space.kind)
            takes = " or ".join(kind.kind for kind in self.spaces)
            raise SpaceError(
                f"{name} takes {takes}, not {space.kind}; models that take {space.kind} are {', '.join(able)}"
            )
        self.space = space

    # -- learning: most models write `loss` and nothing else --------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """What is minimised, averaged over the batch: named terms and their total."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor steps()")

    def adapt(self, data: Dataset) -> None:
        """What the training data must say once before learning: standardisation, output biases, vocabulary."""

    def players(self) -> dict[str, dict[str, Any]]:
        """Who learns: name -> an optimiser's parameter group: `{"params": …}`, with `lr` or others of its own."""
        return {"model": {"params": [p for p in self.parameters() if p.requires_grad]}}

    def steps(self, batch: Batch) -> Iterator[Step]:
        """Who learns what from a batch: yields (player, closure).

        The loop lets gradients flow to that player's parameters alone, runs the closure, steps that player's
        optimiser and resumes the generator, which may look at the outcome. A player of None learns by itself: its
        closure changes the weights in place, without gradients, and returns the losses to be logged.
        """
        yield "model", lambda: self.loss(batch)

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """How data is drawn: one epoch's batches as row numbers, (size,) int64 each.

        Every random choice comes from `generator`, which the loop seeds with (seed, epoch) and nothing else: that is
        why a run resumes bit for bit. `size` counts all processes; each takes its share of the rows.
        """
        return data.shuffled(size, generator)

    def before_epoch(self, data: Dataset) -> None:
        """What happens between epochs: clustering, ensembling."""

    def after_step(self, progress: Progress) -> None:
        """What happens between steps, without gradients: momentum copies, weight clipping, annealing."""

    def fit_exactly(self, data: Dataset, seconds: float) -> None:
        """Learn without gradients, in one go, which a search should end after about `seconds`, finite or not.

        A model that overrides this has no loss and no steps.
        """
        raise NotImplementedError(f"{type(self).__name__} learns by gradients")

    # -- the record ---------------------------------------------------------------------------------------------------

    @classmethod
    def learns_exactly(cls) -> bool:
        """Whether the model learns by `fit_exactly` instead of by steps."""
        return cls.fit_exactly is not Model.fit_exactly

    @classmethod
    def arguments(cls) -> dict[str, inspect.Parameter]:
        """The constructor's keyword arguments beside `space`: the model's configuration."""
        parameters = inspect.signature(cls.__init__, eval_str=True).parameters
        return {name: p for name, p in parameters.items() if name not in ("self", "space")}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(itertools.chain(self.parameters(), self.buffers())).device
