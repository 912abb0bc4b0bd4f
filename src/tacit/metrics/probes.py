"""How good features are: the accuracy that simple classifiers reach on them.

A probe is frozen features and a classifier too simple to make up for bad ones: nearest neighbours by cosine, or
logistic regression. Libraries disagree on the number of neighbours, the temperature, the layer and whether features
are centred, and each moves the figure by points; a result therefore carries all of them. Print beside it the floors:
raw pixels, principal components and the same network untrained, any of which may win.

References
----------
Wu, Xiong, Yu, Lin (2018). Unsupervised Feature Learning via Non-Parametric Instance Discrimination.
    arXiv:1805.01978, §3.4: the weighted vote of k = 200 neighbours at temperature 0.07.
Kornblith, Shlens, Le (2019). Do Better ImageNet Models Transfer Better? arXiv:1805.08974: the linear probe, its
    regularisation chosen on a part of the training data.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import DataError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from tacit.capabilities import Embeds
    from tacit.data import Dataset

# What the linear probe chooses its inverse regularisation from.
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Neighbours:
    """Accuracy of a vote among nearest neighbours by cosine, and all it depends on.

    Attributes:
        accuracy: share of test rows told rightly, in [0, 1].
        k: neighbours asked.
        temperature: T of the weights exp(cosine / T); None is one voice each.
        centred: whether the training features' mean was taken off before normalising.
        layer: where the features come from.
        rows: labelled training rows.
    """

    accuracy: float
    k: int
    temperature: float | None
    centred: bool
    layer: str
    rows: int


@dataclass(frozen=True)
class LinearProbe:
    """Accuracy of logistic regression on standardised features, and all it depends on.

    Attributes:
        accuracy: share of test rows told rightly, in [0, 1].
        strength: C, the inverse of the L2 penalty, as chosen on a part of the training rows.
        layer: where the features come from.
        rows: labelled training rows it was fitted on.
        converged: whether the optimiser reached its tolerance.
    """

    accuracy: float
    strength: float
    layer: str
    rows: int
    converged: bool


@torch.no_grad()
def embed_all(model: Embeds, data: Dataset, batch_size: int = 1000) -> Tensor:
    """Features of all observations, in order: (rows, features) float32 on the processor.

    The model works in evaluation mode, on its own device, and is left in the mode it was in.
    """
    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    was_training = module.training
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        return torch.cat([model.embed(data[i.to(device)]).float().cpu() for i in data.ordered(batch_size)])
    finally:
        module.train(was_training)


@torch.no_grad()
def knn(
    train: Tensor,
    train_label: Tensor,
    test: Tensor,
    test_label: Tensor,
    *,
    k: int = 200,
    temperature: float | None = 0.07,
    centred: bool = True,
    layer: str = "embed",
    chunk: int = 1000,
) -> Neighbours:
    """The vote of the `k` training rows nearest by cosine, each of weight exp(cosine / T).

    Args:
        train: (rows, features), and `train_label` (rows,) with −1 where unlabelled; such rows are left out.
        test: (rows, features), and `test_label` (rows,), likewise.
        temperature: T; None gives one voice each. Ties go to the smaller class.
        chunk: test rows compared at a time, which bounds memory to chunk × training rows.

    Raises:
        DataError: there are no labelled rows on one side.
    """
    train, train_label, test, test_label = _labelled(train, train_label, test, test_label)
    if centred:
        mean = train.mean(0)
        train, test = train - mean, test - mean
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k = min(k, len(train))
    classes = int(train_label.max()) + 1
    right = 0
    for rows, label in zip(test.split(chunk), test_label.split(chunk), strict=True):
        cosine, nearest = (rows @ train.T).topk(k, dim=1)
        # exp((s − max) / T): the same vote, and no overflow at a small T.
        weight = torch.ones_like(cosine) if temperature is None else ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, train_label[nearest], weight)
        right += int((votes.argmax(1) == label).sum())
    return Neighbours(right / len(test), k, temperature, centred, layer, len(train))


def linear_probe(
    train: Tensor,
    train_label: Tensor,
    test: Tensor,
    test_label: Tensor,
    *,
    strengths: tuple[float, ...] = _STRENGTHS,
    choose_rows: int = 10_000,
    most: int | None = None,
    layer: str = "embed",
    iterations: int = 500,
) -> LinearProbe:
    """Multinomial logistic regression on standardised features, its L2 penalty chosen on a part of the training rows.

    Args:
        train: (rows, features), and `train_label` (rows,) with −1 where unlabelled; such rows are left out.
        test: (rows, features), and `test_label` (rows,), likewise.
        strengths: C, the inverse penalties, to choose from; a single one is taken as it is.
        choose_rows: C is chosen on this many training rows at most, evenly spaced, every fifth of them held out.
        most: the final fit takes this many rows at most, evenly spaced; None takes all.
        iterations: most steps of L-BFGS.

    Raises:
        DataError: there are no labelled rows on one side, or the training rows are all of one class.
    """
    train, train_label, test, test_label = _labelled(train, train_label, test, test_label)
    if len(train_label.unique()) < 2:
        raise DataError("the labelled training rows are all of one class: a probe needs at least two")
    x, y = _evenly(train, train_label, most)
    strength = strengths[0]
    if len(strengths) > 1:
        some, some_label = _evenly(train, train_label, choose_rows)
        held = np.arange(len(some)) % 5 == 4
        scores = {
            c: _logistic(some[~held], some_label[~held], c, iterations).score(some[held], some_label[held])
            for c in strengths
        }
        strength = max(strengths, key=lambda c: scores[c])
    fitted = _logistic(x, y, strength, iterations)
    accuracy = float(fitted.score(test.numpy(), test_label.numpy()))
    converged = bool(fitted[-1].n_iter_.max() < iterations)
    return LinearProbe(accuracy, strength, layer, len(x), converged)


def _logistic(x: np.ndarray, y: np.ndarray, strength: float, iterations: int) -> Pipeline:
    # scikit-learn takes a second to import, and half as long to fit as L-BFGS in torch.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        # The result says whether it converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations)).fit(x, y)


def _evenly(x: Tensor, y: Tensor, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` rows, evenly spaced: the same ones every time, from all over the data."""
    index = torch.arange(len(x)) if most is None or len(x) <= most else torch.linspace(0, len(x) - 1, most).long()
    return x[index].numpy(), y[index].numpy()


def _labelled(train: Tensor, train_label: Tensor, test: Tensor, test_label: Tensor) -> tuple[Tensor, ...]:
    sides = []
    for name, x, label in (("training", train, train_label), ("test", test, test_label)):
        known = label >= 0
        if not known.any():
            raise DataError(f"none of the {len(x)} {name} rows has a label: probes need some on both sides")
        sides += [x[known].float(), label[known].long()]
    return tuple(sides)
