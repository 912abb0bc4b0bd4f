"""What the models that keep their probabilities in tables share: drawing a cell."""

from __future__ import annotations

import torch
from torch import Tensor

from tacit.errors import TacitError


def draw_cells(logits: Tensor, temperature: float, count: int = 1) -> Tensor:
    """`count` cells from each row of softmax(logits / temperature), (rows, cells): (rows, count).

    By the inverse of the distribution function, in float64: of a million cells many have less than float32 can add up.

    Raises:
        TacitError: `temperature` is not above zero.
    """
    if temperature <= 0:
        raise TacitError(f"temperature is {temperature}: give a number above 0 (1 samples the model itself)")
    upper = (logits.double() / temperature).softmax(1).cumsum(1)
    # Rounding may leave the last sum off 1.
    u = torch.rand(len(upper), count, dtype=torch.float64, device=upper.device) * upper[:, -1:]
    return torch.searchsorted(upper, u, right=True).clamp(max=logits.shape[1] - 1)
