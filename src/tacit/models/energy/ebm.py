"""Deep energy-based model: a network gives each observation an energy; Langevin chains draw from it.

p(x) = exp(−E(x) / T) / Z with E any network. The gradient of −log p(x) is that of

    E(x⁺) − E(x⁻),   x⁺ from the data, x⁻ from the model,

so E is lowered where data are and raised where the model draws. Draws come from Langevin dynamics,
x ← x − s ∇E(x) + n ε, of temperature T = n² / (2 s). The chains go on from step to step of learning in a replay
buffer, of which each step takes some; a few of those start again from noise (Du & Mordatch 2019, §3.2), so that the
energy is also learnt far from the data. A penalty on E² keeps the energy, whose constant is free, from drifting away
(their §3.3).

For tables, standardised, T is 1. For images the noise is far smaller than dynamics of T = 1 would have at this step
size, as is usual: chains then move quickly, and what is learnt is a distribution at a low temperature, which draws well
and whose energies are not nats (Nijkamp et al. 2020, §3). Z is unknown either way, so there is an energy, by which
anomalies are found, and no density.

Chains of a buffer are remembered, not started afresh: `sample` goes on from them.

References
----------
Du & Mordatch (2019), Implicit generation and modeling with energy-based models, arXiv:1903.08689.
Nijkamp, Hill, Zhu & Wu (2019), Learning non-convergent non-persistent short-run MCMC toward energy-based model,
arXiv:1904.09770.
Nijkamp, Hill, Han, Zhu & Wu (2020), On the anatomy of MCMC-based maximum likelihood learning of energy-based models,
arXiv:1903.12370.
Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient. ICML.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.energy._deep import DeepEnergy
from tacit.nn import noise
from tacit.spaces import Images, Vectors


class EBM(DeepEnergy):
    """Deep energy-based model with Langevin chains in a replay buffer.

    Args:
        space: images of at least 8×8 pixels, or vectors.
        channels: feature maps at half an image's size, doubled with every further halving; unused for vectors.
        hidden: widths of the network's hidden layers for vectors; unused for images.
        langevin_steps: steps of the chains for each update of the weights.
        step_size: of Langevin dynamics; None is 10 for images on [−1, 1], and 0.01 for standardised tables.
        step_noise: its noise's deviation; None is 0.005 for images, and √0.02 for tables, which is temperature 1.
        chains: how many chains an update moves.
        buffer: how many are remembered.
        restart: share of them that start again from noise.
        magnitude: weight of the penalty on E².
        burn_in: steps from the buffer to a sample.

    Raises:
        SpaceError: the images are smaller than 8×8.
        TacitError: an argument is too small, `restart` is above 1, or more chains move than there are.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(
        batch_size=64, learning_rate=5e-4, optimiser="Adam", betas=(0.0, 0.999), schedule="cosine", clip=1.0
    )

    buffer: Tensor

    def __init__(
        self,
        space: Images | Vectors,
        *,
        channels: int = 32,
        hidden: tuple[int, ...] = (256, 256),
        langevin_steps: int = 20,
        step_size: float | None = None,
        step_noise: float | None = None,
        chains: int = 64,
        buffer: int = 4096,
        restart: float = 0.05,
        magnitude: float = 0.01,
        burn_in: int = 100,
    ):
        usual = (10.0, 0.005) if isinstance(space, Images) else (0.01, math.sqrt(0.02))
        step_size = usual[0] if step_size is None else step_size
        step_noise = usual[1] if step_noise is None else step_noise
        super().__init__(space, channels, hidden, step_size, step_noise, offset=True)
        check_at_least(1, langevin_steps=langevin_steps, chains=chains, buffer=buffer)
        check_at_least(0, restart=restart, magnitude=magnitude, burn_in=burn_in)
        if restart > 1:
            raise TacitError(f"restart is {restart}: give the share of chains that start again, at most 1")
        if chains > buffer:
            raise TacitError(f"chains is {chains} and buffer is {buffer}: remember at least as many chains as move")
        self.langevin_steps, self.moving, self.restart = langevin_steps, chains, restart
        self.magnitude, self.burn_in = magnitude, burn_in
        self.register_buffer("buffer", self._noise_of(buffer, torch.randn))

    def loss(self, batch: Batch) -> Losses:
        """`contrast`, mean E(data) − mean E(chains), and `magnitude`.

        Every process holds the whole buffer and draws the same noise for it, so that several processes learn what one
        does; outside training the chains stand still.
        """
        real = self._to_network(batch.x)
        # As noisy as the chains, or the noise alone would tell the two apart.
        if isinstance(self.space, Images):
            real = real + self.step_noise * noise.randn_like(real)
        imagined = self._negatives() if self.training else self.buffer[: self.moving]
        on_real, on_imagined = self._energy(torch.cat((real, imagined))).split((len(real), len(imagined)))
        return Losses(
            contrast=on_real.mean() - on_imagined.mean(),
            magnitude=self.magnitude * (on_real.square().mean() + on_imagined.square().mean()),
        )

    @torch.no_grad()
    def _negatives(self) -> Tensor:
        """Some chains of the buffer, moved on and put back: (chains, *space.shape)."""
        row = noise.rand_alike(len(self.buffer), device=self.device).argsort()[: self.moving]
        again = noise.rand_alike(self.moving, device=self.device) < self.restart
        fresh = self._noise_of(self.moving, noise.randn_alike)
        start = torch.where(again.view(-1, *[1] * len(self.space.shape)), fresh, self.buffer[row])
        moved = self._moved(start, self.langevin_steps, noise.randn_alike)
        self.buffer[row] = moved
        return moved

    def _start(self, count: int) -> Tensor:
        return self.buffer[torch.randint(len(self.buffer), (count,), device=self.device)]

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """`burn_in` Langevin steps from chains of the buffer: (count, *space.shape)."""
        return self._from_network(self._moved(self._start(count), self.burn_in, torch.randn, temperature))

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` chains from noise, `langevin_steps` a frame: (count, frames, *space.shape)."""
        found = [self._noise_of(count, torch.randn)]
        for _ in range(frames - 1):
            found.append(self._moved(found[-1], self.langevin_steps, torch.randn, temperature))
        return torch.stack([self._from_network(x) for x in found], 1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn by `burn_in` Langevin steps in which the rest is held: (batch, *shape)."""
        return self._completed(x, known, self._start(len(x)), self.burn_in, temperature)
