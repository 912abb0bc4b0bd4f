"""What a run was asked to do: budget, seed and recipe, as recorded in `run.json`."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from tacit.errors import TacitError
from tacit.model import Recipe


@dataclass(frozen=True)
class Plan:
    """A budget and how to spend it.

    Attributes:
        steps, epochs, minutes: the budget; exactly one is set.
        seed: of the weights, of the order of data and of all noise.
        recipe: the model's own, with what the user overrode.
        precision: "float32", or "bfloat16" for autocast.
        patience: validations without improvement after which to stop, keeping the best weights; None never stops early.
        log_every: steps between lines of `metrics.jsonl`, each the mean since the line before.
        validate_every: steps between validations; None is once an epoch, but no oftener than every 100 steps.
        save_seconds: seconds between checkpoints.
        pictures: how many pictures of samples are drawn over the budget.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    precision: str = "float32"
    patience: int | None = None
    log_every: int = 50
    validate_every: int | None = None
    save_seconds: float = 60.0
    pictures: int = 5

    def __post_init__(self) -> None:
        given = {
            name: getattr(self, name) for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None
        }
        if len(given) != 1:
            raise TacitError(f"the budget is {given or 'missing'}: give exactly one of steps, epochs and minutes")
        for name, value in {**given, "batch_size": self.recipe.batch_size, "log_every": self.log_every}.items():
            if value <= 0:
                raise TacitError(f"{name} is {value}: give a number above 0")
        if self.precision not in ("float32", "bfloat16"):
            raise TacitError(f"precision is {self.precision!r}: use float32 or bfloat16")

    def fraction(self, step: int, epochs: float, seconds: float) -> float:
        """How much of the budget is used, in [0, 1], after that many steps, epochs and seconds."""
        if self.steps is not None:
            used = step / self.steps
        elif self.epochs is not None:
            used = epochs / self.epochs
        else:
            used = seconds / (60 * self.minutes)  # type: ignore[operator]
        return min(1.0, used)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Plan:
        """The plan that `to_dict` recorded."""
        recipe = {**record["recipe"], "betas": tuple(record["recipe"]["betas"])}
        return cls(**{**record, "recipe": Recipe(**recipe)})


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts`: (seed, epoch) for order, (seed, step, rank) for noise."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator seeded by `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def reseed(*parts: int | str) -> None:
    """Seed the default generators of the CPU and of the current GPU.

    The generator objects are seeded directly: `torch.manual_seed` does more, and takes a hundred times as long.
    """
    seed = seed_of(*parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
