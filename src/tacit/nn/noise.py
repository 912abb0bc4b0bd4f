"""Noise that does not depend on how many processes share a batch.

Two processes with batches of 64 must learn what one process learns from batches of 128. Each process therefore draws
the noise of the whole batch from a generator seeded alike everywhere, and keeps the rows of its own share (every
world-th, as the loop deals them). With one process these are `torch.randn` and `torch.rand` and cost nothing more.

Within `common` every row of a batch meets the same noise, so that what a bound or a dequantised density says of a row
does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Share:
    rank = 0
    world = 1
    generator: torch.Generator | None = None
    common = False


@contextmanager
def shared(rank: int, world: int, generator: torch.Generator) -> Iterator[None]:
    """Within this, rows drawn below are the share of process `rank` of `world`."""
    before = (_Share.rank, _Share.world, _Share.generator)
    _Share.rank, _Share.world, _Share.generator = rank, world, generator
    try:
        yield
    finally:
        _Share.rank, _Share.world, _Share.generator = before


@contextmanager
def common() -> Iterator[None]:
    """Within this, each draw is made for one row and given to all rows of the batch."""
    _Share.common = True
    try:
        yield
    finally:
        _Share.common = False


def share() -> tuple[int, int]:
    """The number of this process, and of how many that share the batch: (0, 1) outside of `shared`."""
    return _Share.rank, _Share.world


def _draw(source: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    if _Share.common:
        return source((1, *shape[1:]), device=device).expand(shape).clone()
    if _Share.world == 1:
        return source(shape, device=device)
    whole = source((shape[0] * _Share.world, *shape[1:]), device=device, generator=_Share.generator)
    return whole[_Share.rank :: _Share.world]


def randn(*shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal noise, (rows, …)."""
    return _draw(torch.randn, shape, device)


def rand(*shape: int, device: torch.device | None = None) -> Tensor:
    """Uniform noise in [0, 1), (rows, …)."""
    return _draw(torch.rand, shape, device)


def randn_like(x: Tensor) -> Tensor:
    """Standard normal noise of the shape and device of `x`."""
    return randn(*x.shape, device=x.device)


def rand_like(x: Tensor) -> Tensor:
    """Uniform noise in [0, 1) of the shape and device of `x`, as floats."""
    return rand(*x.shape, device=x.device)


def rand_alike(*shape: int, device: torch.device | None = None) -> Tensor:
    """Uniform noise in [0, 1), (rows, …), the same in every process: for Markov chains that each holds whole."""
    return torch.rand(shape, device=device, generator=_Share.generator if _Share.world > 1 else None)


def randn_alike(*shape: int, device: torch.device | None = None) -> Tensor:
    """Standard normal noise, (rows, …), the same in every process: as `rand_alike`."""
    return torch.randn(shape, device=device, generator=_Share.generator if _Share.world > 1 else None)


def stratified(rows: int, device: torch.device | None = None) -> Tensor:
    """Uniform noise in [0, 1), (rows,), of which each of `rows` equal intervals holds one, in random order."""

    def source(shape: tuple[int, ...], **where: Any) -> Tensor:
        return (torch.randperm(*shape, **where) + torch.rand(shape, **where)) / shape[0]

    return _draw(source, (rows,), device)
