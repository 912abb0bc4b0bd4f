"""Contrastive losses: to pick, among a batch of candidates, the one that belongs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Normalised, temperature-scaled cross-entropy (Chen et al. 2020, arXiv:2002.05709, equation 1).

    With s(i, j) the cosine of z_i and z_j, the loss of i, whose other view is j, is
    −log exp(s(i, j) / τ) / Σ_{k ≠ i} exp(s(i, k) / τ): one cross-entropy over all rows but i itself.

    Args:
        z: (2 · batch, features), one view of every image and then, in the same order, the other.
        temperature: τ.

    Returns:
        Mean loss in nats, and the share of rows that are nearer to their other view than to anything else.
    """
    z = F.normalize(z, dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(logits, partner), (logits.detach().argmax(1) == partner).float().mean()
