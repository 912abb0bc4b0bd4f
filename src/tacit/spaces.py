"""Spaces: what one observation is, in the form in which the user's data has it.

A model is built from a space, `sample()` gives observations of that space back, and a likelihood is nats of that
space: integers stay integers. Shapes exclude the batch; images are (channels, height, width).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tacit.errors import SpaceError, TacitError

if TYPE_CHECKING:
    import torch


_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within this `check_values` looks at shapes alone: for values checked before, where vmap may not look at them."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


@dataclass(frozen=True)
class Space:
    """One observation's shape and values. `kind` is the word that run records and error messages use."""

    kind: ClassVar[str]
    dtype: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation, without the batch."""
        raise NotImplementedError

    @property
    def levels(self) -> int | None:
        """How many values each entry can take; None where entries are real numbers."""
        return None

    @property
    def dimensions(self) -> int:
        """Number of entries in one observation: the D of bits per dimension."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in which `sample()` gives observations back."""
        import torch

        return getattr(torch, self.dtype)

    def check(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` unchanged if it is a batch of observations of this space.

        Raises:
            SpaceError: the shape differs.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise SpaceError(
                f"observations of shape {tuple(x.shape[1:])} do not fit {self}: "
                f"expected a batch of shape (batch, {', '.join(map(str, self.shape))})"
            )
        return x

    def check_values(self, x: torch.Tensor) -> torch.Tensor:
        """As `check`, and every entry must be one of the levels: for observations that do not come from a loader.

        Raises:
            SpaceError: the shape differs, or an entry is no level.
        """
        self.check(x)
        if self.levels is not None and x.numel() and not _unchecked.get():
            low, high = int(x.min()), int(x.max())
            least, most = self.value_range
            if low < least or high > most:
                wrong = low if low < least else high
                raise SpaceError(f"observations hold {wrong}, but {self} has {least} to {most}: bring them to that")
        return x

    def check_known(self, known: torch.Tensor) -> torch.Tensor:
        """Return `known` unchanged if it says of every entry of an observation, (*shape) bool, whether it is given.

        Raises:
            TacitError: it does not.
        """
        dtype = str(known.dtype).removeprefix("torch.")
        if tuple(known.shape) != self.shape or dtype != "bool":
            raise TacitError(
                f"known is {dtype} of shape {tuple(known.shape)}: give a bool mask of shape {self.shape}, True where "
                "entries are given"
            )
        return known

    @property
    def value_range(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        return 0, (self.levels or 1) - 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` reads it back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Images(Space):
    """Pictures: uint8 in {0, …, levels − 1}, shape (channels, height, width). `levels=2` is a binary image."""

    kind = "images"
    dtype = "uint8"

    channels: int
    height: int
    width: int
    levels: int = 256  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.height, self.width)


@dataclass(frozen=True)
class Video(Space):
    """Clips: uint8 in {0, …, levels − 1}, shape (frames, channels, height, width)."""

    kind = "video"
    dtype = "uint8"

    frames: int
    channels: int
    height: int
    width: int
    levels: int = 256  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, self.channels, self.height, self.width)


@dataclass(frozen=True)
class Vectors(Space):
    """Rows of a table: float32, shape (features,). Models standardise inside and count the Jacobian."""

    kind = "vectors"
    dtype = "float32"

    features: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.features,)


@dataclass(frozen=True)
class Tokens(Space):
    """Windows of a text: int64 in {0, …, vocabulary − 1}, shape (length,)."""

    kind = "tokens"
    dtype = "int64"

    vocabulary: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def levels(self) -> int:
        return self.vocabulary


@dataclass(frozen=True)
class Waveform(Space):
    """Recordings: int16 samples, shape (length,), at `rate` samples a second."""

    kind = "waveform"
    dtype = "int16"

    length: int
    rate: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def levels(self) -> int:
        return 65536

    @property
    def value_range(self) -> tuple[int, int]:
        return -32768, 32767


_KINDS: dict[str, type[Space]] = {space.kind: space for space in (Images, Video, Vectors, Tokens, Waveform)}


def from_dict(record: dict[str, Any]) -> Space:
    """The space that `Space.to_dict` recorded.

    Raises:
        SpaceError: the record names no known kind of space.
    """
    values = dict(record)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise SpaceError(f"unknown kind of space {kind!r}: known are {', '.join(_KINDS)}")
    return _KINDS[kind](**values)
