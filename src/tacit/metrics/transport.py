"""The exact Wasserstein distance of two sets of vectors, by linear programming (POT, the extra `transport`).

References
----------
Flamary et al. (2021). POT: Python Optimal Transport. JMLR 22: network simplex.
del Barrio, Loubes (2019). Central limit theorems for empirical transportation cost in general dimension. Annals of
    Probability 47, theorem 4.1: the variance of the cost is that of the potentials.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tacit.errors import DataError, TacitError


def wasserstein(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The squared 2-Wasserstein distance of two sets of rows, (rows, features), and its standard error.

    min_π Σ_ij π_ij |x_i − y_j|² over plans that give every row its due. Unlike the sliced distance it misses nothing,
    but it falls slowly with the number of rows, as rows^(−2 / features): hold it against that of two real sets. The
    error is over the drawing of both sides, about the mean of the estimate at these sizes.

    Raises:
        DataError: a side has fewer than two rows, or a number that is not finite.
        TacitError: POT is not installed.
    """
    if min(len(real), len(fake)) < 2:
        raise DataError(f"{len(real)} real and {len(fake)} drawn rows are too few to transport: have two of each")
    real, fake = real.double().cpu(), fake.double().cpu()
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise DataError("some rows are not finite: transport needs numbers")
    try:
        import ot
    except ModuleNotFoundError:
        raise TacitError(
            "the exact Wasserstein distance needs POT, which is not installed: pip install 'tacit[transport]'"
        ) from None
    cost = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    # Rows of weight 1 each; the default of 100,000 pivots is too few for some thousand rows.
    value, log = ot.emd2(ot.unif(len(real)), ot.unif(len(fake)), cost, numItermax=10_000_000, log=True)
    spread = [torch.as_tensor(log[side]).var() / len(log[side]) for side in ("u", "v")]
    return float(value), math.sqrt(float(sum(spread)))
