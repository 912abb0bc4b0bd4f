"""Small models for the loop's own tests: two players, and one that goes wrong on request."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.model import Batch, Losses, Model, Recipe
from tacit.spaces import Vectors


class Duel(Model):
    """Two players whose losses reach into each other's parameters, so that a leak would show."""

    spaces = (Vectors,)
    recipe = Recipe(batch_size=4, optimiser="SGD", momentum=0.0, learning_rate=0.1)

    def __init__(self, space: Vectors, *, clean: bool = True):
        super().__init__(space)
        self.left = nn.Linear(space.features, 2)
        self.right = nn.Linear(space.features, 2)
        self.clean = clean

    def players(self):
        return {"left": {"params": self.left.parameters()}, "right": {"params": self.right.parameters(), "lr": 0.5}}

    def steps(self, batch: Batch):
        yield "left", lambda: self.left_loss(batch)
        yield "right", lambda: self.right_loss(batch)

    def left_loss(self, batch: Batch) -> Losses:
        return Losses(product=(self.left(batch.x) * self.right(batch.x)).mean())

    def right_loss(self, batch: Batch) -> Losses:
        return Losses(distance=(self.left(batch.x) - self.right(batch.x)).square().mean())


class Mean(Model):
    """Learns the mean; its loss turns to NaN at step `breaks_at`."""

    spaces = (Vectors,)
    recipe = Recipe(batch_size=8, learning_rate=0.1)

    def __init__(self, space: Vectors, *, breaks_at: int = -1):
        super().__init__(space)
        self.mean = nn.Parameter(torch.zeros(space.features))
        self.breaks_at = breaks_at
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch) -> Losses:
        distance = (batch.x - self.mean).square().sum(1).mean()
        if self.training:
            self.count += 1
            if self.count == self.breaks_at + 1:
                distance = distance * float("nan")
        return Losses(distance=distance)


def rows(count: int = 40, features: int = 3) -> Dataset:
    x: Tensor = torch.randn(count, features, generator=torch.Generator().manual_seed(5)) + 1
    return Dataset(Vectors(features), x, name="rows")
