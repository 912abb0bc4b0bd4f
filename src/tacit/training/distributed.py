"""Several processes that learn as one: gradients are averaged after the backward pass, in one flat message.

One all-reduce after the backward pass works for any closure, including a gradient penalty that differentiates twice,
which the hooks of `DistributedDataParallel` do not support; it gives up their overlap of messages with computation.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def spawn(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run `function(*arguments)` in `count` processes that learn together on this machine.

    Under torchrun the processes exist already, and this one only joins them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join()
        function(*arguments)
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    threads = max(1, torch.get_num_threads() // count)
    mp.spawn(_enter, (count, port, threads, function, arguments), nprocs=count)


def _enter(rank: int, count: int, port: int, threads: int, function: Callable[..., None], arguments: tuple) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
    }
    torch.set_num_threads(threads)
    _join()
    function(*arguments)


def _join() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in one message."""
    if world() == 1:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def agree(value: float) -> float:
    """Process 0's value, everywhere: for decisions that hang on a clock or a signal."""
    if world() == 1:
        return value
    message = torch.tensor([value], dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(message, src=0)
    return message.item()


def share_weights(module: nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if world() == 1:
        return
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
