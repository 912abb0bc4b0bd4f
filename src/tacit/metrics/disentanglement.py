"""Disentanglement: whether each entry of a code says one of the factors that the data was generated from.

Three measures, each in [0, 1] and 1 for a code whose entries are the factors themselves. They ask different things: the
β-VAE score whether a factor's entries can be told, which a rotation of the code need not harm; the mutual information
gap whether a factor is in a single entry; DCI that, and whether an entry holds a single factor. Each depends on how it
is estimated, and published figures on the data besides: compare what was measured alike.

References
----------
Higgins et al. (2017). β-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework. ICLR 2017, §3.
Chen, Li, Grosse, Duvenaud (2018). Isolating Sources of Disentanglement in Variational Autoencoders. arXiv:1802.04942,
    §4: the mutual information gap.
Eastwood, Williams (2018). A Framework for the Quantitative Evaluation of Disentangled Representations. ICLR 2018:
    disentanglement, completeness, informativeness.
Locatello et al. (2019). Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations.
    arXiv:1811.12359, appendix C: how all of these are estimated from mean codes; 20 bins, 64 pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import DataError
from tacit.metrics.probes import linear_probe

# Depths of its trees that DCI chooses from, for each factor, on held-out rows; and how many a forest has.
_DEPTHS = (4, 8, 16)
_TREES = 10


@dataclass(frozen=True)
class Disentanglement:
    """All three measures of one code.

    Attributes:
        beta_vae: accuracy of the β-VAE score's linear classifier; chance is one over the number of factors.
        gap: the mutual information gap (MIG), the mean over factors.
        disentanglement: DCI's D: an entry of the code matters for one factor alone.
        completeness: DCI's C: one entry of the code alone matters for a factor.
        informativeness: DCI's I, as the accuracy with which factors are told from the code, the mean over factors.
        rows: how many codes they rest on.
    """

    beta_vae: float
    gap: float
    disentanglement: float
    completeness: float
    informativeness: float
    rows: int


def disentanglement(codes: Tensor, factors: Tensor, *, seed: int = 0, rows: int = 5000) -> Disentanglement:
    """The three measures.

    Args:
        codes: (rows, latent), of observations whose factors vary independently.
        factors: (rows, factors) int64, from 0; those that do not vary are left out.
        seed: of pairs, and of DCI's trees.
        rows: DCI takes this many at most, at random; the others take all.

    Raises:
        DataError: codes and factors differ in rows, a code is not finite, or no factor varies.
    """
    codes, factors = _checked(codes, factors)
    some = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[:rows]
    found = dci(codes[some], factors[some], seed=seed)
    return Disentanglement(
        beta_vae_score(codes, factors, seed=seed), mutual_information_gap(codes, factors), *found, len(codes)
    )


def beta_vae_score(
    codes: Tensor, factors: Tensor, *, pairs: int = 64, train: int = 2000, test: int = 1000, seed: int = 0
) -> float:
    """Accuracy with which a linear classifier tells the factor that pairs of observations share, in [0, 1].

    For a factor at random, `pairs` pairs of rows are drawn that share its value; the mean of the absolute difference of
    their codes is one example for the classifier (a logistic regression), the factor its class.

    Args:
        codes: (rows, latent).
        factors: (rows, factors) int64.
        pairs: L of the paper.
        train: examples that the classifier learns from.
        test: examples that it is measured on.
        seed: of factors, pairs and rows.

    Raises:
        DataError: codes and factors differ in rows, a code is not finite, or fewer than two factors vary.
    """
    codes, factors = _checked(codes, factors)
    kinds = factors.shape[1]
    if kinds < 2:
        raise DataError("only one factor varies, so that there is nothing to tell apart: bring data in which two do")
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(kinds, (train + test,), generator=generator)
    features = torch.empty(train + test, codes.shape[1])
    for k in range(kinds):
        examples = (shared == k).nonzero()[:, 0]
        first = torch.randint(len(codes), (len(examples) * pairs,), generator=generator)
        # Rows by the factor's value, and where each value begins and ends among them.
        by_value = factors[:, k].argsort()
        counts = torch.bincount(factors[:, k])
        value = factors[first, k]
        offset = (torch.rand(len(first), generator=generator) * counts[value]).long()
        second = by_value[(counts.cumsum(0) - counts)[value] + offset]
        difference = (codes[first] - codes[second]).abs()
        features[examples] = difference.view(len(examples), pairs, -1).mean(1)
    return linear_probe(
        features[:train], shared[:train], features[train:], shared[train:], strengths=(1.0,), layer="differences"
    ).accuracy


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = 20) -> float:
    """How much more the likeliest entry of a code says of a factor than the second, over the factor's entropy.

    MIG = 1/K Σ_k (I(z_j(k); v_k) − max_{j ≠ j(k)} I(z_j; v_k)) / H(v_k), in [0, 1], with each entry cut into `bins`
    intervals of equal width. Few rows overestimate every I, by about (bins − 1)(values − 1) / 2 rows nats.

    Args:
        codes: (rows, latent).
        factors: (rows, factors) int64.
        bins: of an entry of the code, between its lowest and its highest value.

    Raises:
        DataError: codes and factors differ in rows, a code is not finite, or no factor varies.
    """
    information, entropy = mutual_information(*_checked(codes, factors), bins=bins)
    best = F.pad(information, (0, 0, 0, 1)).topk(2, dim=0).values  # a code of one entry has no second
    return ((best[0] - best[1]) / entropy).mean().item()


def mutual_information(codes: Tensor, factors: Tensor, *, bins: int = 20) -> tuple[Tensor, Tensor]:
    """I(z_j; v_k), (latent, factors), and H(v_k), (factors,), of the empirical distribution: float64 nats."""
    low, high = codes.min(0).values, codes.max(0).values
    cut = ((codes - low) / (high - low).clamp(min=1e-12) * bins).long().clamp(max=bins - 1)
    found, entropies = [], []
    for k in range(factors.shape[1]):
        values = int(factors[:, k].max()) + 1
        value = factors[:, k].bincount(minlength=values).double() / len(codes)
        entropies.append(-torch.special.xlogy(value, value).sum())
        cells = cut * values + factors[:, k, None] + torch.arange(codes.shape[1]) * bins * values
        joint = cells.flatten().bincount(minlength=codes.shape[1] * bins * values).double() / len(codes)
        joint = joint.view(-1, bins, values)
        independent = joint.sum(2, keepdim=True) * value
        found.append(torch.special.xlogy(joint, joint / independent.clamp(min=1e-300)).sum((1, 2)))
    return torch.stack(found, 1), torch.stack(entropies)


def dci(codes: Tensor, factors: Tensor, *, seed: int = 0) -> tuple[float, float, float]:
    """Disentanglement, completeness and informativeness, each in [0, 1].

    The importance R_ij of entry i for factor j is that of a random forest which tells the factor from the code, every
    split of it free to take any entry; its trees are as deep as a fifth of the rows, held out, likes best.

        D = Σ_i ρ_i (1 − H_K(R_i· / Σ_j R_ij)),   ρ_i = Σ_j R_ij / Σ_ij R_ij,
        C = 1/K Σ_j (1 − H_D(R_·j / Σ_i R_ij)),

    H_b the entropy to the base b; informativeness is the mean accuracy on the held-out rows.

    Args:
        codes: (rows, latent).
        factors: (rows, factors) int64.
        seed: of the held-out rows and of the forests.

    Raises:
        DataError: codes and factors differ in rows, a code is not finite, no factor varies, or there are too few rows.
    """
    # scikit-learn's forests take a second to import.
    from sklearn.ensemble import RandomForestClassifier

    codes, factors = _checked(codes, factors)
    if len(codes) < 10:
        raise DataError(f"{len(codes)} rows are too few to hold some out: bring at least 10")
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: len(order) // 5].numpy(), order[len(order) // 5 :].numpy()
    x = codes.numpy()
    importances, accuracies = [], []
    for y in factors.T.numpy():
        forests = [
            RandomForestClassifier(_TREES, max_depth=depth, max_features=None, random_state=seed).fit(x[kept], y[kept])
            for depth in _DEPTHS
        ]
        scores = [forest.score(x[held], y[held]) for forest in forests]
        importances.append(forests[int(np.argmax(scores))].feature_importances_)
        accuracies.append(max(scores))
    importance = torch.from_numpy(np.stack(importances, 1))  # (latent, factors)
    weight = importance.sum(1) / importance.sum().clamp(min=1e-12)
    separate = (weight * _concentration(importance)).sum().item()
    return separate, _concentration(importance.T).mean().item(), float(np.mean(accuracies))


def _concentration(rows: Tensor) -> Tensor:
    """1 − the entropy of each row as a distribution, to the base of its length; (rows,) in [0, 1], 0 of no weight."""
    total = rows.sum(1, keepdim=True)
    share = rows / total.clamp(min=1e-12)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return torch.where(total[:, 0] > 0, 1 - entropy / math.log(max(2, rows.shape[1])), 0.0)


def _checked(codes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the factors that vary."""
    codes, factors = codes.detach().float().cpu(), factors.cpu()
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise DataError(
            f"codes have shape {tuple(codes.shape)} and factors {tuple(factors.shape)}: give (rows, latent) and "
            f"(rows, factors)"
        )
    if not codes.isfinite().all():
        raise DataError("a code is not finite: the model that gave it has not learnt anything sound")
    varies = (factors != factors[:1]).any(0)
    if not varies.any():
        raise DataError("no factor varies: bring data in which one does")
    return codes, factors[:, varies]
