"""Rollouts: what was seen and done in an environment, kept in a file, and cut into the clips that V and M learn from.

Episodes lie end to end in a few streams. An episode's last frame is there, with an action that nobody takes; the next
frame is the first of the next episode and says so.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import DataError
from tacit.models.latent.world_model import Memory, WorldModel
from tacit.spaces import Video
from tacit.worlds.controller import Controllers
from tacit.worlds.reality import Environments

STREAMS = 16


@dataclass(frozen=True)
class Rollouts:
    """Streams of frames, (streams, length, 1, height, width) uint8, and what belongs to each, (streams, length, …).

    Attributes:
        frames: what was seen.
        actions: what was done then, as numbers, (…, size).
        reward: what it brought.
        done: whether it ended the episode, other than by a limit.
        first: whether the frame is an episode's first.
    """

    frames: Tensor
    actions: Tensor
    reward: Tensor
    done: Tensor
    first: Tensor

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all."""
        aside = path.with_name(f".{path.name}.npz")
        np.savez_compressed(aside, **{f.name: getattr(self, f.name).numpy() for f in fields(self)})
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Rollouts:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            DataError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as parts:
                return cls(*(torch.from_numpy(parts[f.name]) for f in fields(cls)))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged ({error}): remove it, and the rollouts are made again") from error

    def clips(self, length: int, name: str) -> Dataset:
        """All clips of `length` frames, end to end, as a world model takes them.

        Raises:
            DataError: the streams are shorter than a clip.
        """
        total = self.frames.shape[1]
        if total < length:
            raise DataError(f"{name} has streams of {total} frames, shorter than clips of {length}: collect more")
        target = torch.cat([self.actions, torch.stack([self.reward, self.done, self.first], 2)], 2)
        x, target = (
            part[:, : total // length * length].unflatten(1, (-1, length)).flatten(0, 1)
            for part in (self.frames, target)
        )
        return Dataset(Video(length, *self.frames.shape[2:]), x.contiguous(), name=name, target=target.contiguous())

    def joined(self, other: Rollouts) -> Rollouts:
        """Both, of streams of the same length."""
        return Rollouts(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


@torch.no_grad()
def collect(
    environments: Environments,
    frames: int,
    seed: int,
    model: WorldModel | None = None,
    controller: Controllers | None = None,
    told: Callable[[float, str], None] = lambda fraction, text: None,
) -> Rollouts:
    """At least `frames` frames of `STREAMS` environments; the same for the same seed.

    Actions are random, or those of a controller, (1 row), of which a share is random: from none in the first stream to
    half in the last, since what is never done is not learnt. `told` is told the share that is collected.
    """
    generator = np.random.default_rng([seed, 1])
    environments.reset(STREAMS, seed)
    first = torch.ones(STREAMS, dtype=torch.bool)
    over = ~first
    acting = None if controller is None else controller.repeat(STREAMS)
    memory = None if model is None else model.start(STREAMS, episode=True)
    explored = torch.linspace(0, 0.5, STREAMS)
    steps = []
    length = -(-frames // STREAMS)
    for at in range(length):
        shown = environments.frames()
        actions = environments.actions.drawn(STREAMS, generator)
        if model is not None and memory is not None and acting is not None:
            fresh = model.start(STREAMS, episode=True)
            memory = Memory(
                *(torch.where(first[:, None], getattr(fresh, f), getattr(memory, f)) for f in ("h", "cell", "z"))
            )
            z = model.vision.encode(shown)
            chosen = environments.actions.numbers(acting(torch.cat([z, memory.h], 1)))
            random = torch.from_numpy(generator.random(STREAMS)) < explored
            actions = torch.where(random[:, None], actions, chosen)
            memory = model.remember(memory, z, actions)
        reward, ended, cut = environments.step(actions, over)
        steps.append((shown, actions, reward, ended.float(), first.float()))
        first, over = over, ended | cut
        told((at + 1) / length, f"{(at + 1) * STREAMS} frames")
    return Rollouts(*(torch.stack(column, 1) for column in zip(*steps, strict=True)))
