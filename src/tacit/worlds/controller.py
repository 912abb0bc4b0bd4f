"""C: a linear map from what V and M know to an action, and the actions that an environment takes.

a = W [z, h] + b. Of numbered actions the one with the largest output is taken; others are tanh of the outputs, spread
over the bounds of the action space. Many controllers act at once, one for each environment: all the world's features
go through one batched product.

References
----------
- Ha & Schmidhuber (2018), World models, arXiv:1803.10122, §2.3 and appendix A.3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import TacitError


@dataclass(frozen=True)
class Actions:
    """How an action is written as numbers for M: one-hot where actions are numbered, else on [−1, 1].

    Attributes:
        space: of the environment.
        size: numbers an action has, which are also a controller's outputs.
    """

    space: gymnasium.Space[Any]
    size: int

    @classmethod
    def of(cls, space: gymnasium.Space[Any]) -> Actions:
        """The actions of a space.

        Raises:
            TacitError: actions are neither numbered nor a vector between bounds.
        """
        if isinstance(space, gymnasium.spaces.Discrete):
            return cls(space, int(space.n))
        if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
            return cls(space, space.shape[0])
        raise TacitError(f"actions are {space}: choose an environment whose actions are numbered or bounded vectors")

    def numbers(self, outputs: Tensor) -> Tensor:
        """What controllers' outputs, (rows, size), mean, as M takes it: (rows, size)."""
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return F.one_hot(outputs.argmax(1), self.size).to(outputs.dtype)
        return outputs.tanh()

    def drawn(self, count: int, generator: np.random.Generator) -> Tensor:
        """Random actions, evenly spread, (count, size)."""
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return torch.eye(self.size)[torch.from_numpy(generator.integers(self.size, size=count))]
        return torch.from_numpy(generator.uniform(-1, 1, (count, self.size))).float()

    def taken(self, numbers: Tensor) -> list[Any]:
        """The environment's own actions for (rows, size)."""
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return (numbers.argmax(1).numpy() + self.space.start).tolist()
        assert isinstance(self.space, gymnasium.spaces.Box)
        low, high = self.space.low, self.space.high
        return list((low + (numbers.numpy() + 1) / 2 * (high - low)).astype(self.space.dtype))

    def written(self, action: Any) -> Tensor:
        """One of the environment's own actions as numbers, (size,): the inverse of `taken`."""
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return torch.eye(self.size)[int(action) - int(self.space.start)]
        assert isinstance(self.space, gymnasium.spaces.Box)
        low, high = self.space.low, self.space.high
        return torch.from_numpy(2 * (np.asarray(action) - low) / (high - low) - 1).float()


@dataclass(frozen=True)
class Controllers:
    """Linear controllers, one a row.

    Attributes:
        weight: W, (rows, size, features).
        bias: b, (rows, size).
    """

    weight: Tensor
    bias: Tensor

    @staticmethod
    def parameters(features: int, size: int) -> int:
        """How many numbers a controller has."""
        return size * (features + 1)

    @classmethod
    def from_vectors(cls, vectors: Tensor, size: int) -> Controllers:
        """Controllers of vectors, (rows, parameters), as `vectors` gives them."""
        whole = vectors.unflatten(1, (size, -1))
        return cls(whole[:, :, :-1], whole[:, :, -1])

    def vectors(self) -> Tensor:
        """All numbers of each, (rows, parameters)."""
        return torch.cat([self.weight, self.bias[:, :, None]], 2).flatten(1)

    def __call__(self, features: Tensor) -> Tensor:
        """Outputs, (rows, size), for (rows, features)."""
        return torch.baddbmm(self.bias[:, :, None], self.weight, features[:, :, None])[:, :, 0]

    def repeat(self, times: int) -> Controllers:
        """Every controller `times` in a row."""
        return Controllers(self.weight.repeat_interleave(times, 0), self.bias.repeat_interleave(times, 0))


class World(Protocol):
    """Many environments at once, real or dreamt, as a controller sees them."""

    actions: Actions
    limit: int
    features: int

    def reset(self, count: int, seed: int) -> Tensor:
        """Begin `count` episodes: (count, features)."""
        ...

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take actions as numbers, (count, size): features, rewards and whether the episode ended, (count,)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, (rows,) bool, alone."""
        ...


@torch.no_grad()
def returns(world: World, controllers: Controllers | None, count: int, seed: int) -> Tensor:
    """The sum of rewards of one episode each, (count,), of as many controllers; with None, of random actions."""
    generator = np.random.default_rng(seed)
    features = world.reset(count, seed)
    total, alive = torch.zeros(count), torch.arange(count)
    for _ in range(world.limit):
        if controllers is None:
            actions = world.actions.drawn(len(alive), generator)
        else:
            actions = world.actions.numbers(controllers(features))
        features, reward, done = world.step(actions)
        total[alive] += reward
        if done.any():
            going = ~done
            alive, features = alive[going], features[going]
            if not len(alive):
                break
            world.keep(going)
            if controllers is not None:
                controllers = Controllers(controllers.weight[going], controllers.bias[going])
    return total
