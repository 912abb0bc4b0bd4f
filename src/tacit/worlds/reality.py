"""Gymnasium environments side by side, seen as small grey pictures.

Cart-pole is drawn here from its state, antialiased and all environments at once, in microseconds a frame where its own
renderer takes milliseconds; every other environment is asked for its `rgb_array`, which is made smaller.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tacit.errors import TacitError
from tacit.models.latent.world_model import Memory, WorldModel
from tacit.worlds.controller import Actions

# Steps of an episode in environments that set no limit.
_LIMIT = 1000


class Environments:
    """As many copies of a Gymnasium environment as are asked for, and their frames.

    Args:
        name: of a registered environment, as "CartPole-v1".
        size: height and width of a frame.

    Raises:
        TacitError: there is no such environment, what it needs is not installed, or it does not show itself.
    """

    def __init__(self, name: str, size: tuple[int, int] = (24, 64)):
        self.name, self.size = name, size
        self.drawn = name.startswith("CartPole-")
        self.copies: list[gymnasium.Env[Any, Any]] = []
        first = self._copies(1)[0]
        self.actions = Actions.of(first.action_space)
        self.limit = (first.spec and first.spec.max_episode_steps) or _LIMIT

    def _copies(self, count: int) -> list[gymnasium.Env[Any, Any]]:
        mode = None if self.drawn else "rgb_array"
        try:
            while len(self.copies) < count:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that a newer version of the environment exists
                    self.copies.append(gymnasium.make(self.name, render_mode=mode, disable_env_checker=True))
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            raise TacitError(f"the environment {self.name!r} cannot be made ({error}): choose another") from error
        return self.copies[:count]

    def reset(self, count: int, seed: int) -> None:
        """Begin `count` episodes, (seed, i) each."""
        self.alive = list(self._copies(count))
        for i, env in enumerate(self.alive):
            env.reset(seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))

    def step(self, actions: Tensor, over: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Take actions as numbers: rewards, and whether the episode ended by itself or by its limit, (count,) each.

        Environments whose episode is `over`, (count,) bool, begin a new one instead.
        """
        outcomes: list[tuple[Any, ...]] = []
        for i, (env, action) in enumerate(zip(self.alive, self.actions.taken(actions), strict=True)):
            if over is not None and over[i]:
                env.reset()
                outcomes.append((0.0, False, False))
            else:
                outcomes.append(env.step(action)[1:4])
        reward, ended, cut = (torch.tensor([float(outcome[i]) for outcome in outcomes]) for i in range(3))
        return reward, ended > 0, cut > 0

    def frames(self) -> Tensor:
        """What is to be seen, (count, 1, height, width) uint8.

        Raises:
            TacitError: the environment gives no pictures.
        """
        if self.drawn:
            return draw_cart_pole(np.array([env.unwrapped.state for env in self.alive]), self.size)  # type: ignore[attr-defined]
        return torch.stack([self._shrunk(env) for env in self.alive])

    def _shrunk(self, env: gymnasium.Env[Any, Any]) -> Tensor:
        try:
            shown: Any = env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise TacitError(f"{self.name} cannot draw itself ({error})") from error
        if not isinstance(shown, np.ndarray) or shown.ndim != 3:
            raise TacitError(f"{self.name} gives no rgb_array: choose an environment that draws itself")
        small = Image.fromarray(shown).convert("L").resize(self.size[::-1], Image.Resampling.BOX)
        return torch.from_numpy(np.array(small))[None]


def draw_cart_pole(state: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Cart-poles, (count, 4) of position, velocity, angle and its velocity, as (count, 1, height, width) uint8.

    The width shows positions −2.4 to 2.4, the pole is one unit long, and pixels are square. An edge's pixel is as dark
    as its share that is covered, so that motions of a small part of a pixel can be seen.
    """
    height, width = size
    pixel = np.float32(4.8 / width)
    x, angle = (state[:, i].astype(np.float32)[:, None, None] for i in (0, 2))
    across = (np.arange(width, dtype=np.float32) + 0.5)[None, None] * pixel - 2.4 - x
    up = ((height - np.arange(height, dtype=np.float32)) - 0.5)[None, :, None] * pixel - 0.3
    cart = np.maximum(np.abs(across) - 0.25, np.abs(up) - 0.12)
    sine, cosine = np.sin(angle), np.cos(angle)
    along = np.clip(across * sine + up * cosine, 0, 1)
    pole = np.hypot(across - along * sine, up - along * cosine) - 0.05
    black, grey = (np.clip(0.5 - distance / pixel, 0, 1) for distance in (cart, pole))
    light = (1 - 0.6 * grey) * (1 - black)
    return torch.from_numpy(np.rint(255 * light).astype(np.uint8))[:, None]


class Reality:
    """Environments as a controller sees them: the code of the frame, and M's memory of what was before (`World`).

    Args:
        environments: the real ones.
        model: V and M.
    """

    def __init__(self, environments: Environments, model: WorldModel):
        self.environments, self.model = environments, model
        self.actions, self.limit = environments.actions, environments.limit
        self.features = model.latent + model.cell.hidden_size

    def reset(self, count: int, seed: int) -> Tensor:
        """Begin `count` episodes: (count, features)."""
        self.environments.reset(count, seed)
        self.memory = self.model.start(count, episode=True)
        return self._features()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take actions as numbers, (count, size): features, rewards and whether the episode ended, (count,)."""
        reward, ended, cut = self.environments.step(actions)
        self.memory = self.model.remember(self.memory, self.z, actions)
        return self._features(), reward, ended | cut

    def _features(self) -> Tensor:
        self.z = self.model.vision.encode(self.environments.frames())
        return torch.cat([self.z, self.memory.h], 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, (rows,) bool, alone."""
        self.environments.alive = [
            env for env, kept in zip(self.environments.alive, rows.tolist(), strict=True) if kept
        ]
        self.memory = kept_of(self.memory, rows)
        self.z = self.z[rows]


def kept_of(memory: Memory, rows: Tensor) -> Memory:
    """The rows of a memory that are kept."""
    return Memory(memory.h[rows], memory.cell[rows], memory.z[rows])
