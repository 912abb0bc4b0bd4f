"""How near drawn text is to real text: the distance between their counts of neighbouring symbols.

References
----------
Lin (1991), Divergence measures based on the Shannon entropy: the Jensen-Shannon divergence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ngram_divergence(real: Tensor, fake: Tensor, n: int = 2) -> float:
    """Jensen-Shannon divergence, in bits, between the n-gram frequencies of two sets of windows, (rows, length).

    0 where they agree, 1 where they share no n-gram. Few windows alone make it positive: compare it with that of two
    real sets of the same sizes.
    """
    grams = [x.unfold(1, n, 1).reshape(-1, n) for x in (real, fake)]
    kinds = torch.cat(grams).unique(dim=0, return_inverse=True)[1]
    count = int(kinds.max()) + 1
    p, q = (torch.bincount(part, minlength=count).double() for part in kinds.split([len(g) for g in grams]))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float((torch.special.entr(middle) - torch.special.entr(p) / 2 - torch.special.entr(q) / 2).sum() / _LN2)


_LN2 = 0.6931471805599453
