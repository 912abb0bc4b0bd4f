"""What deep energies share: the network, Langevin sampling, and the way between observations and the reals.

Langevin dynamics (Welling & Teh 2011) with steps of size s and noise of deviation n,

    x ← x − s ∇E(x) + n ε,   ε ~ N(0, I),

has, for small s, the distribution exp(−E(x) / T) / Z with T = n² / (2 s).

References
----------
Welling & Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics. ICML.
Nijkamp, Hill, Han, Zhu & Wu (2020), On the anatomy of MCMC-based maximum likelihood learning of energy-based models,
arXiv:1903.12370.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import check_at_least
from tacit.model import Model
from tacit.nn.bijections import Standardise, adapt_to
from tacit.nn.strided import Critic, Discriminator, to_levels, to_unit
from tacit.spaces import Images, Space

# The most that one step's drift moves an entry, of the order of 1: what keeps chains from an energy that is still
# steep. It does not bind once an energy is learnt.
REACH = 0.3


def langevin(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    *,
    size: float,
    noises: Callable[..., Tensor],
    deviation: float,
    reach: float = math.inf,
    bound: float = math.inf,
    known: Tensor | None = None,
) -> Tensor:
    """`x` after `steps` of Langevin dynamics, without gradients: (batch, …).

    Args:
        energy: (batch, …) -> (batch,).
        x: where the chains start, (batch, …), float.
        steps: how many.
        size: s.
        noises: standard normal noise of a shape, as `torch.randn`.
        deviation: n.
        reach: the most that the drift of one step moves an entry.
        bound: entries are kept within [−bound, bound].
        known: entries that stay as they are, bool, of a shape that fits `x`.
    """
    start = x
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
        with torch.no_grad():
            drift = (size * slope).clamp(-reach, reach)
            x = (x - drift + deviation * noises(*x.shape, device=x.device)).clamp(-bound, bound)
            if known is not None:
                x = torch.where(known, start, x)
    return x.detach()


class DeepEnergy(Model):
    """Base of models whose energy is a network of images or of rows of a table.

    Args:
        space: images of at least 8×8 pixels, or vectors.
        channels: feature maps at half an image's size, doubled with every further halving; unused for vectors.
        hidden: widths of the network's hidden layers for vectors; unused for images.
        step_size: s of Langevin dynamics, on images on [−1, 1] or standardised tables.
        step_noise: n, its noise's deviation.
        offset: whether the energy has a constant of its own.

    Raises:
        SpaceError: the images are smaller than 8×8.
        TacitError: a width is below 1.
    """

    # The loss compares data with chains, and both move.
    loss_ranks = False

    space: Images | Space

    def __init__(
        self,
        space: Space,
        channels: int,
        hidden: tuple[int, ...],
        step_size: float,
        step_noise: float,
        *,
        offset: bool,
    ):
        super().__init__(space)
        check_at_least(1, channels=channels, hidden=hidden)
        # Swish has the smooth slope that chains need: with ReLU the force on x is constant in pieces.
        if isinstance(space, Images):
            self.net: Discriminator | Critic = Discriminator(
                space, channels, nn.Identity, activation=nn.SiLU, offset=offset
            )
        else:
            self.standardise = Standardise(*space.shape)
            self.net = Critic(space.dimensions, hidden, nn.SiLU, offset=offset)
        check_at_least(0, step_size=step_size, step_noise=step_noise)
        self.step_size, self.step_noise = step_size, step_noise
        self.bound = 1.0 if isinstance(space, Images) else math.inf

    def adapt(self, data: Dataset) -> None:
        """Standardise tables."""
        if not isinstance(self.space, Images):
            adapt_to(self.standardise, data)

    def _to_network(self, x: Tensor) -> Tensor:
        x = self.space.check(x)
        return to_unit(x, self.space) if isinstance(self.space, Images) else self.standardise(x)

    def _from_network(self, x: Tensor) -> Tensor:
        return to_levels(x, self.space) if isinstance(self.space, Images) else self.standardise.inverse(x)

    def _energy(self, x: Tensor) -> Tensor:
        """E of what `_to_network` gives, (batch,), float32."""
        return self.net(x).float()

    def _noise_of(self, count: int, noises: Callable[..., Tensor]) -> Tensor:
        """Where chains start that start from nothing: uniform on [−1, 1] for images, normal for tables."""
        x = noises(count, *self.space.shape, device=self.device)
        return torch.erf(x / math.sqrt(2)) if isinstance(self.space, Images) else x

    def _moved(
        self,
        x: Tensor,
        steps: int,
        noises: Callable[..., Tensor],
        temperature: float = 1.0,
        known: Tensor | None = None,
    ) -> Tensor:
        """Chains at `x` after `steps` of Langevin dynamics, with the energy divided by `temperature`."""
        return langevin(
            self._energy,
            x,
            steps,
            size=self.step_size,
            noises=noises,
            deviation=self.step_noise * math.sqrt(temperature),
            reach=REACH,
            bound=self.bound,
            known=known,
        )

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """E(x), (batch,): the higher, the stranger."""
        return torch.cat([self._energy(self._to_network(part)) for part in x.split(500)])

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of the energy's network, (batch, features): its pooled layers, or its last hidden layer."""
        return self.net.features(self._to_network(x)).float()

    def _completed(self, x: Tensor, known: Tensor, start: Tensor, steps: int, temperature: float) -> Tensor:
        """`x` with what is not `known` moved from `start` by Langevin steps in which the rest is held."""
        mask = self.space.check_known(known).to(x.device)
        moved = self._moved(torch.where(mask, self._to_network(x), start), steps, torch.randn, temperature, mask)
        return torch.where(mask, x, self._from_network(moved))
