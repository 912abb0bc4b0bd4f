"""Statistics of a batch of which several processes hold a share each: sums over all its rows, and rows of the whole.

As with `noise`, several processes find what one process with the whole batch finds, and with one process nothing is
sent. To be used while learning alone, where every process takes the same steps.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tacit.nn import noise


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sums of floating-point tensors over the processes, in one message."""
    if noise.share()[1] == 1:
        return tensors
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    return tuple(part.view_as(t) for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True))


def picked(x: Tensor, count: int) -> Tensor:
    """Of the whole batch's vectors, of which `x`, (rows, vectors a row, features), is a share, `count` drawn alike.

    With replacement: (count, features), the same in every process.
    """
    rank, world = noise.share()
    rows, each, _ = x.shape
    index = (noise.rand_alike(count, device=x.device).double() * (rows * world * each)).long()
    row = index // each  # of the whole batch, which was dealt row by row
    found = x[row // world, index % each]
    return summed(found * (row % world == rank)[:, None])[0]
