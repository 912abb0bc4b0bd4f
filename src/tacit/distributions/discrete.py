"""Bernoulli and categorical heads, from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.distributions.head import draw_index


@dataclass(frozen=True)
class Bernoulli:
    """Entries in {0, 1}; the one parameter is the logit of 1. Temperature divides it."""

    @property
    def parameters(self) -> int:
        return 1

    @property
    def locations(self) -> int:
        return 1

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits = parameters[:, 0]
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none")

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        return torch.bernoulli(torch.sigmoid(parameters[:, 0] / temperature))

    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters[:, 0] > 0).to(parameters.dtype)

    def marginal(self, x: Tensor) -> Tensor:
        # One imagined observation of each value: a pixel that is never on still has a finite logit.
        on = x.double().sum(0)
        return ((on + 1) / (len(x) - on + 1)).log()[None].float()


def softplus_sum(logits: Tensor) -> Tensor:
    """Σ log(1 + e^l) over the last axis: what is left of a Bernoulli likelihood after its matrix product.

    softplus(l) = max(l, 0) − log σ(|l|). These sigmoids lie in [½, 1), so that up to 64 of them multiply safely and
    share one logarithm: half the time of `F.softplus`, until a gradient has to go back through every product.
    """
    if logits.requires_grad:
        return F.softplus(logits).sum(-1)
    terms = logits.abs().sigmoid_()
    for _ in range(6):
        if terms.shape[-1] % 2:
            break
        left, right = terms.chunk(2, -1)
        terms = left * right
    return F.relu(logits).sum(-1) - terms.log().sum(-1)


@dataclass(frozen=True)
class Categorical:
    """Entries in {0, …, levels − 1}; the parameters are their logits. Temperature divides them."""

    levels: int

    @property
    def parameters(self) -> int:
        return self.levels

    @property
    def locations(self) -> int:
        return self.levels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -F.cross_entropy(parameters, x.long(), reduction="none")

    def sample(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        return draw_index(parameters, temperature)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(1)

    def marginal(self, x: Tensor) -> Tensor:
        # The frequencies over all positions: in a stream every position is alike.
        counts = torch.bincount(x.long().flatten(), minlength=self.levels).double() + 1
        logits = (counts / counts.sum()).log().float()
        return logits.view(-1, *(1,) * (x.dim() - 1)).expand(-1, *x.shape[1:]).clone()
