"""A model's weights as few bytes, for archives that bring their model along, and a model's fingerprint.

Matrices and kernels are stored as whole numbers of eight or sixteen bits, every row (output) with a power of two of its
own; vectors and all that is no weight as they are. The model that codes is then the one that these bytes make.
"""

from __future__ import annotations

import hashlib
import json
import struct
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tacit.coding.archive import MOST_WEIGHTS, pack_raw, unpack_raw
from tacit.errors import ArchiveError
from tacit.model import Model


def fingerprint(model: Model) -> str:
    """SHA-256 of all that a model's state holds, by name, hexadecimal."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def pack(model: Model, bits: int) -> bytes:
    """The state as bytes, matrices in whole numbers of 8 or 16 bits."""
    described: list[list[Any]] = []
    parts: list[bytes] = []
    for name, value in model.state_dict().items():
        dtype = str(value.dtype).removeprefix("torch.")
        whole = value.is_floating_point() and value.dim() >= 2 and value.numel() > 0
        described.append([name, dtype, list(value.shape), whole])
        if not whole:
            parts.append(_bytes(value))
            continue
        exponent = _exponents(value, bits)
        numbers = torch.ldexp(value.double().flatten(1), -exponent[:, None]).round()
        parts += [exponent.numpy().astype("<i2").tobytes(), numbers.numpy().astype(f"<i{bits // 8}").tobytes()]
    head = json.dumps([bits, described]).encode()
    content = head + b"".join(parts)
    return struct.pack("<II", len(head), len(content)) + pack_raw(content)


def unpack(model: Model, data: bytes) -> Model:
    """The model with the weights that `pack` made these bytes of.

    Raises:
        ArchiveError: they are not of such a model.
    """
    try:
        state = _state(data)
        found = deepcopy(model)
        found.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise ArchiveError(f"the archive's weights do not fit its model ({error}): it is damaged") from error
    return found.eval()


def _state(data: bytes) -> dict[str, Tensor]:
    length, size = struct.unpack("<II", data[:8])
    content = unpack_raw(data[8:], size, MOST_WEIGHTS)
    bits, described = json.loads(content[:length])
    at, state = length, dict[str, Tensor]()

    def take(dtype: str, count: int) -> np.ndarray[Any, Any]:
        nonlocal at
        found = np.frombuffer(content, dtype, count, at)
        at += found.nbytes
        return found

    for name, dtype, shape, whole in described:
        count = int(np.prod(shape, dtype=np.int64))
        if whole:
            exponent = torch.from_numpy(take("<i2", shape[0]).astype(np.int64))
            numbers = torch.from_numpy(take(f"<i{bits // 8}", count).astype(np.float64)).view(shape[0], -1)
            state[name] = torch.ldexp(numbers, exponent[:, None]).view(shape).to(getattr(torch, dtype))
        else:
            kind = getattr(torch, dtype)
            raw = take("<u1", count * kind.itemsize).copy()
            state[name] = torch.from_numpy(raw).view(kind).view(shape) if count else torch.zeros(shape, dtype=kind)
    return state


def _exponents(value: Tensor, bits: int) -> Tensor:
    """Of each row the least e with max |w| ≤ (2^(bits − 1) − 1) 2^e, (rows,)."""
    most = value.double().flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    mantissa, exponent = torch.frexp(most)
    return torch.where(most > 0, exponent - (mantissa == 0.5).int(), 0).clamp(-1000, 1000)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
