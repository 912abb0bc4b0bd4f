"""A codebook: K vectors, each the running mean of the encoder's outputs that are nearest to it.

With n_i of a batch's outputs z nearest to e_i, γ the decay, and N and m running counts and sums,

    N_i ← γ N_i + (1 − γ) n_i,   m_i ← γ m_i + (1 − γ) Σ_{z nearest to e_i} z,   e_i = m_i / N_i

(Razavi, van den Oord & Vinyals 2019, arXiv:1906.00446, §2.1). Kept here are e and N, of which the same update is
e_i ← e_i + (1 − γ) (Σ z − n_i e_i) / N_i, which leaves a vector without outputs exactly where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit.errors import TacitError, check_at_least
from tacit.nn import shares

# Outputs whose distances to all vectors are computed together: a map of many images would fill the memory.
_AT_ONCE = 2**15


class Codebook(nn.Module):
    """K vectors of D features that learn without gradients; all of it is buffers.

    Args:
        codes: K.
        features: D.
        decay: γ.
        revive_after: steps without an output near it after which a vector restarts, at an output of the batch.

    Attributes:
        vectors: e, (codes, features).
        counts: N, (codes,).
        idle: steps since each was last used, (codes,) int64.
        revives: whether idle vectors restart.

    Raises:
        TacitError: a number is below 1, or `decay` is outside [0, 1).
    """

    vectors: Tensor
    counts: Tensor
    idle: Tensor
    revives: Tensor

    def __init__(self, codes: int, features: int, decay: float = 0.99, revive_after: int = 100):
        super().__init__()
        check_at_least(1, codes=codes, features=features, revive_after=revive_after)
        if not 0 <= decay < 1:
            raise TacitError(f"decay is {decay}: give a number in [0, 1), such as 0.99")
        self.decay, self.revive_after = decay, revive_after
        self.register_buffer("vectors", torch.randn(codes, features))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("revives", torch.tensor(True))

    def adapt(self, z: Tensor) -> None:
        """Start at outputs of the encoder, (outputs, features), at random, all different where there are enough."""
        different = torch.unique(z, dim=0)
        different = different[torch.randperm(len(different))]
        others = z[torch.randint(len(z), (len(self.vectors),))]
        self.vectors.copy_(torch.cat([different, others])[: len(self.vectors)])

    def nearest(self, z: Tensor) -> Tensor:
        """Which vector is nearest to each output, (batch, features, *sites) -> (batch, *sites); of equals the first.

        ‖z − e‖² = ‖z‖² + 2 (‖e‖²/2 − z · e), of which the first term is the same for all: one matrix product.
        """
        rows = z.detach().float().movedim(1, -1)
        half = self.vectors.square().sum(1) / 2
        with torch.autocast(z.device.type, enabled=False):
            parts = [
                torch.addmm(half, part, self.vectors.T, alpha=-1).argmin(1)
                for part in rows.reshape(-1, rows.shape[-1]).split(_AT_ONCE)
            ]
        return torch.cat(parts).view(rows.shape[:-1])

    def forward(self, codes: Tensor) -> Tensor:
        """The vectors of codes, (batch, *sites) -> (batch, features, *sites)."""
        return self.vectors[codes].movedim(-1, 1)

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Update from a batch's outputs and their nearest vectors, those of all processes together.

        Returns:
            Usage, the share of vectors that were nearest to an output within the last `revive_after` steps, and
            perplexity, the exponential of the entropy of the batch's codes: how many are used, were they used alike.
        """
        rows = z.detach().float().flatten(2).transpose(1, 2)
        flat = codes.flatten()
        counts = torch.bincount(flat, minlength=len(self.counts)).to(rows.dtype)
        sums = torch.zeros_like(self.vectors).index_add_(0, flat, rows.reshape(len(flat), -1))
        counts, sums = shares.summed(counts, sums)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        change = (sums - counts[:, None] * self.vectors) / self.counts.clamp(min=1e-30)[:, None]
        self.vectors.add_(change, alpha=1 - self.decay)

        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        dead = (self.idle > 0) & (self.idle % self.revive_after == 0) & self.revives
        self.vectors.copy_(torch.where(dead[:, None], shares.picked(rows, len(self.counts)), self.vectors))
        self.counts.masked_fill_(dead, 1.0)

        usage = (self.idle < self.revive_after).float().mean()
        frequencies = counts / counts.sum()
        return usage, torch.special.entr(frequencies).sum().exp()


def straight_through(z: Tensor, quantised: Tensor) -> Tensor:
    """`quantised`, through which the gradient goes to `z` as if it were `z` itself (arXiv:1711.00937, §3.2)."""
    return quantised + (z - z.detach())
