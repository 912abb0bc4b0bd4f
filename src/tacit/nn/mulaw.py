"""μ-law: 16-bit samples as 256 codes, fine where the ear is and coarse where it is not.

A sample x ∈ [−1, 1) is companded to f(x) = sign(x) ln(1 + μ|x|) / ln(1 + μ), μ = 255, and f to one of 256 equal steps
of [−1, 1]. The samples of a code lie side by side, so that a mass over codes is one over samples as well: each of the
n(c) samples of a code c has p(c) / n(c).

References
----------
- ITU-T Recommendation G.711 (1988), Pulse code modulation of voice frequencies
- van den Oord et al. (2016), WaveNet: A generative model for raw audio, arXiv:1609.03499, §2.2
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CODES = 256
_LOWEST, _SAMPLES = -32768, 65536


class MuLaw(nn.Module):
    """The codes of all 16-bit samples, as the samples at which each begins."""

    starts: Tensor

    def __init__(self) -> None:
        super().__init__()
        x = torch.arange(_SAMPLES, dtype=torch.float64) / -_LOWEST - 1
        mu = CODES - 1
        companded = x.sign() * torch.log1p(mu * x.abs()) / torch.log1p(torch.tensor(float(mu), dtype=torch.float64))
        codes = ((companded + 1) / 2 * mu + 0.5).long()
        # (257,): where each code begins, and where the last one ends.
        starts = torch.searchsorted(codes, torch.arange(CODES + 1)) + _LOWEST
        self.register_buffer("starts", starts, persistent=False)

    @property
    def sizes(self) -> Tensor:
        """How many samples have each code, (256,) int64."""
        return self.starts.diff()

    def encode(self, x: Tensor) -> Tensor:
        """Samples, int16, as codes {0, …, 255}, int64, of the same shape."""
        return torch.bucketize(x.long(), self.starts[1:], right=True)

    def draw(self, codes: Tensor) -> Tensor:
        """Samples, int16, each drawn uniformly from those of its code."""
        codes = codes.long()
        within = (torch.rand(codes.shape, device=codes.device) * self.sizes[codes]).long()
        return (self.starts[codes] + within.minimum(self.sizes[codes] - 1)).to(torch.int16)
