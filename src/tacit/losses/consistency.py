"""How far two predictions for the same observation are apart, and how the weight of that grows.

References
----------
Laine & Aila (2017), Temporal Ensembling for Semi-Supervised Learning, arXiv:1610.02242.
Tarvainen & Valpola (2017), Mean teachers are better role models, arXiv:1703.01780.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over batch and classes of (softmax(logits) − softmax(target))², both logits (batch, classes).

    Gradients flow to both sides: detach the one that is to be a target.
    """
    return F.mse_loss(logits.softmax(1), target.softmax(1))


def ramp_up(progress: Tensor, length: float) -> Tensor:
    """exp(−5 (1 − t)²) with t = progress / length, held at 1 from there on (Laine & Aila 2017, §2; "sigmoid ramp-up").

    It starts at exp(−5) = 0.7 %, for predictions that know nothing yet must not be agreed upon.
    """
    return torch.exp(-5 * (1 - (progress / length).clamp(max=1)) ** 2)
