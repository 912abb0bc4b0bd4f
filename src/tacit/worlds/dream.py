"""The dream: environments whose frames, rewards and ends M makes up, for controllers and as a Gymnasium environment.

In the dream the next code is drawn from M's mixture, at a temperature: above 1 the dream is less predictable than the
world, and a controller that is good there does not live on the model's mistakes (§4.3 and §4.5 of the paper). Whether
an episode ends is drawn from its probability. Nothing is decoded, but to be looked at.

References
----------
- Ha & Schmidhuber (2018), World models, arXiv:1803.10122, §4
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from tacit.models.latent.world_model import WorldModel
from tacit.training.plan import reseed
from tacit.worlds.controller import Actions
from tacit.worlds.reality import kept_of


class Dreams:
    """Many dreams at once, as a controller sees them (`World`); their noise is torch's own.

    Args:
        model: V and M.
        actions: of the environment that is dreamt of.
        limit: steps after which an episode ends.
        temperature: of M.
    """

    def __init__(self, model: WorldModel, actions: Actions, limit: int, temperature: float = 1.0):
        self.model, self.actions, self.limit, self.temperature = model, actions, limit, temperature
        self.features = model.latent + model.cell.hidden_size

    def reset(self, count: int, seed: int) -> Tensor:
        """Fall asleep `count` times: (count, features)."""
        reseed(seed, "dream")
        self.memory = self.model.start(count, episode=True)
        return self._features()

    @torch.no_grad()
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take actions as numbers, (count, size): features, rewards and whether the episode ended, (count,)."""
        self.memory = self.model.remember(self.memory, self.z, actions)
        features = self._features()
        reward, done = self.model.consequences(self.memory, self.z)
        return features, reward, torch.rand_like(done) < done.sigmoid()

    @torch.no_grad()
    def _features(self) -> Tensor:
        self.z = self.model.mixture.sample(self.model.foresee(self.memory), self.temperature)
        return torch.cat([self.z, self.memory.h], 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, (rows,) bool, alone."""
        self.memory, self.z = kept_of(self.memory, rows), self.z[rows]


class DreamEnv(gymnasium.Env[np.ndarray, Any]):
    """A trained world model as a Gymnasium environment: observations are [z, h], (latent + memory,) float32.

    Args:
        model: V and M, with actions.
        action_space: of the environment that is dreamt of.
        limit: steps after which an episode is truncated.
        temperature: of M.
        render_mode: "rgb_array" shows what V decodes.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(
        self,
        model: WorldModel,
        action_space: gymnasium.Space[Any],
        *,
        limit: int = 500,
        temperature: float = 1.0,
        render_mode: str | None = None,
    ):
        self.render_mode = render_mode
        self.action_space = action_space
        self.dreams = Dreams(model, Actions.of(action_space), limit, temperature)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.dreams.features,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.steps = 0
        with torch.random.fork_rng(devices=[]):
            return self.dreams.reset(1, self._noise())[0].numpy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one of the real environment's actions."""
        self.steps += 1
        with torch.random.fork_rng(devices=[]):
            reseed(self._noise())
            features, reward, done = self.dreams.step(self.dreams.actions.written(action)[None])
        return features[0].numpy(), float(reward), bool(done), self.steps >= self.dreams.limit, {}

    def _noise(self) -> int:
        """A seed of this environment's own: what others draw meanwhile changes nothing."""
        return int(self.np_random.integers(2**62))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The frame of the last code, (height, width, 3) uint8."""
        if self.render_mode is None:
            return None
        frame = self.dreams.model.vision.decode(self.dreams.z)[0]
        levels = self.dreams.model.space.levels or 256
        grey = (frame.float() * (255 / (levels - 1))).to(torch.uint8)
        return grey[:3].expand(3, -1, -1).permute(1, 2, 0).numpy()
