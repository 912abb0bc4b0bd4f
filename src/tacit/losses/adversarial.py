"""What the players of an adversarial game minimise, as functions of the discriminator's or critic's outputs.

References
----------
Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661.
Arjovsky, Chintala & Bottou (2017), Wasserstein GAN, arXiv:1701.07875.
Gulrajani et al. (2017), Improved Training of Wasserstein GANs, arXiv:1704.00028.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.nn import noise


def told_as_real(logits: Tensor) -> Tensor:
    """−E[log D], nats, of logits (batch,) with D = σ(logits).

    On images it is the discriminator's first term; on the generator's, the non-saturating loss of the generator, which
    unlike E[log(1 − D)] keeps its gradient while the discriminator wins.
    """
    return F.softplus(-logits).mean()


def told_as_fake(logits: Tensor) -> Tensor:
    """−E[log(1 − D)], nats, of logits (batch,): the discriminator's second term."""
    return F.softplus(logits).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E[(‖∇D(x̂)‖₂ − 1)²] at points x̂ drawn uniformly on the lines between pairs of `real` and `fake`.

    Two-sided (Gulrajani et al. 2017, eq. 3, without λ). The critic must treat rows one by one: batch normalisation
    would make the gradient of one output depend on the other rows.

    Args:
        critic: (batch, …) -> (batch,).
        real: (batch, …), as the critic takes them.
        fake: of the same shape.
    """
    share = noise.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()
