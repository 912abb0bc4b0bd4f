"""Generator-trained energy-based model: a generator draws what an energy needs, and keeps its entropy.

The energy E of p(x) = exp(−E(x) / T) / Z learns by E_p_data[E] − E_p[E], as in `ebm`; but what stands for the draws
from p are those of a generator q(x) = ∫ N(x; g(z), σ² I) N(z; 0, I) dz, in one pass instead of a Markov chain. The
generator makes the variational bound on log Z tight,

    log Z ≥ −E_q[E(x)] / T + H(q),   with equality where q = p:

it lowers the energy of what it draws and raises its entropy H(q), without which it would draw the likeliest observation
alone. The gradient of H with x = g(z₀) + σ ε is −E[∇_x log q(x) ∂x] (Grathwohl et al. 2021, eq. 9), and of the score

    ∇_x log q(x) = E_{q(z|x)}[∇_x log N(x; g(z), σ² I)] = E_{q(z|x)}[(g(z) − x) / σ²]

the mean is taken by self-normalised importance sampling from N(z₀, diag η²) about the z₀ that x was made from, whose
widths η learn by an evidence lower bound (their eqs. 11–13). Three players take turns: energy, generator, and η. The
energy pays for its squared slope at the data.

Of the ways to that entropy, a lower bound on the mutual information of z and x (Kumar et al. 2019) needs another
network that can be fooled, and the batch normalisation scales of Kim & Bengio (2016) are no estimate of it; this one
is consistent in the number of importance samples, and is exact where q is Gaussian.

For tables T is 1. For images T is small: entropies of 784 pixels would else outweigh energies of bounded slope.

References
----------
Grathwohl, Kelly, Hashemi, Norouzi, Swersky & Duvenaud (2021), No MCMC for me: amortized sampling for fast and stable
training of energy-based models (VERA), arXiv:2010.04230.
Kim & Bengio (2016), Deep directed generative models with energy-based probability estimation, arXiv:1606.03439.
Kumar, Ozair, Goyal, Courville & Bengio (2019), Maximum entropy generators for energy-based models, arXiv:1901.08508.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tacit.errors import check_at_least
from tacit.model import Batch, Losses, Recipe, Step
from tacit.models.energy._deep import DeepEnergy
from tacit.nn import noise
from tacit.nn.strided import Generator, hidden_layers
from tacit.spaces import Images, Vectors

# Bounds of log σ (Grathwohl et al. 2021, appendix B.1): without the upper one the noise could be all the entropy, and
# without the lower the score would be all noise.
_SIGMA = (math.log(0.01), math.log(0.3))
# Draws of the generator of which a completion starts from the one that agrees best with what is known.
_TRIALS = 32
# Of Langevin dynamics.
_STEP = 0.01


class GeneratorEBM(DeepEnergy):
    """Energy-based model trained by a generator with an entropy term (VERA).

    Args:
        space: images of at least 8×8 pixels, or vectors.
        latent: dimensions of the generator's z.
        channels: feature maps at half an image's size, doubled with every further halving; unused for vectors.
        hidden: widths of the hidden layers of both networks for vectors; unused for images.
        samples: importance samples of z for each score.
        temperature: T; None is 1 for vectors and 0.001 for images.
        penalty: weight of the energy's squared slope at the data.
        energy_rate: learning rate of the energy; lower than the recipe's, so that the generator keeps up with it.
        refine: Langevin steps by the energy after the generator.
        burn_in: Langevin steps of a completion.

    Raises:
        SpaceError: the images are smaller than 8×8.
        TacitError: an argument is too small.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=64, learning_rate=5e-4, optimiser="Adam", betas=(0.0, 0.9), ema=0.999)

    def __init__(
        self,
        space: Images | Vectors,
        *,
        latent: int = 64,
        channels: int = 32,
        hidden: tuple[int, ...] = (256, 256),
        samples: int = 20,
        temperature: float | None = None,
        penalty: float = 0.1,
        energy_rate: float = 1e-4,
        refine: int = 0,
        burn_in: int = 100,
    ):
        if temperature is None:
            temperature = 1e-3 if isinstance(space, Images) else 1.0
        check_at_least(
            0, temperature=temperature, penalty=penalty, energy_rate=energy_rate, refine=refine, burn_in=burn_in
        )
        check_at_least(1, latent=latent, samples=samples)
        super().__init__(space, channels, hidden, _STEP, math.sqrt(2 * _STEP * temperature), offset=False)
        self.latent, self.samples, self.temperature = latent, samples, temperature
        self.penalty, self.energy_rate, self.refine, self.burn_in = penalty, energy_rate, refine, burn_in
        self.generator: nn.Module = (
            Generator(space, latent, channels, nn.Identity)
            if isinstance(space, Images)
            else nn.Sequential(hidden_layers(latent, hidden), nn.Linear((latent, *hidden)[-1], space.dimensions))
        )
        self.log_sigma = nn.Parameter(torch.tensor(math.log(0.1)))
        self.log_eta = nn.Parameter(torch.full((latent,), math.log(0.1)))

    def players(self) -> dict[str, dict[str, Any]]:
        return {
            "energy": {"params": list(self.net.parameters()), "lr": self.energy_rate},
            "generator": {"params": [*self.generator.parameters(), self.log_sigma]},
            "posterior": {"params": [self.log_eta]},
        }

    def steps(self, batch: Batch) -> Iterator[Step]:
        real = self._to_network(batch.x)
        yield "energy", lambda: self.energy_loss(real)
        yield "generator", lambda: self.generator_loss(len(real))
        yield "posterior", lambda: self.posterior_loss(len(real))

    # -- the generator -------------------------------------------------------------------------------------------------

    def sigma(self) -> Tensor:
        """σ, a scalar."""
        return self.log_sigma.clamp(*_SIGMA).exp()

    def _drawn(self, z: Tensor) -> Tensor:
        """X ~ N(g(z), σ² I), a way that gradients flow: (batch, *shape)."""
        mean = self.generator(z).float()
        return mean + self.sigma() * noise.randn_like(mean)

    def _noise(self, count: int) -> Tensor:
        return noise.randn(count, self.latent, device=self.device)

    def _log_joint(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log N(x; g(z), σ² I) + log N(z; 0, I) up to constants, (batch, samples), and g(z) − x.

        `x` is (batch, *shape), `z` is (batch, samples, latent).
        """
        away = self.generator(z.flatten(0, 1)).float().view(*z.shape[:2], *x.shape[1:]) - x[:, None]
        log_likelihood = -0.5 * away.flatten(2).square().sum(2) / self.sigma() ** 2
        return log_likelihood - 0.5 * z.square().sum(2), away

    def _about(self, z: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` samples of N(z, diag η²), (batch, count, latent), and their log-density up to a constant."""
        e = noise.randn(len(z), count, self.latent, device=z.device)
        return z[:, None] + self.log_eta.exp() * e, -0.5 * e.square().sum(2)

    @torch.no_grad()
    def score(self, x: Tensor, z: Tensor) -> Tensor:
        """An estimate of ∇_x log q(x) of what was made from z, (batch, latent): like x, (batch, *shape)."""
        near, log_density = self._about(z, self.samples)
        log_joint, away = self._log_joint(x, near)
        share = (log_joint - log_density).softmax(1)
        return torch.einsum("bs,bs...->b...", share, away) / self.sigma() ** 2

    # -- what the players minimise ------------------------------------------------------------------------------------

    def energy_loss(self, real: Tensor) -> Losses:
        """E on the data, (batch, *shape), minus E on as many draws; `slope` is the penalty."""
        with torch.no_grad():
            drawn = self._drawn(self._noise(len(real)))
            if isinstance(self.space, Images):
                # As noisy as the draws, or the noise alone would tell the two apart.
                real = real + self.sigma() * noise.randn_like(real)
        with torch.enable_grad():
            real = real.detach().requires_grad_()
            on_real = self._energy(real)
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
        squared = self.penalty * slope.flatten(1).square().sum(1).mean()
        return Losses(contrast=on_real.mean() - self._energy(drawn).mean(), slope=squared)

    def generator_loss(self, count: int) -> Losses:
        """E[E(x)] − T H(q), up to a constant, on `count` draws; logged is the energy."""
        z = self._noise(count)
        x = self._drawn(z)
        energy = self._energy(x).mean()
        # Its gradient is that of H(q).
        entropy = -(self.score(x.detach(), z) * x).flatten(1).sum(1).mean()
        return Losses(energy - self.temperature * entropy, energy=energy, sigma=self.sigma())

    def posterior_loss(self, count: int) -> Losses:
        """The negative evidence lower bound of `count` draws by N(z₀, diag η²), up to a constant."""
        with torch.no_grad():
            z = self._noise(count)
            x = self._drawn(z)
        near, _ = self._about(z, 1)
        return Losses(-self._log_joint(x, near)[0].mean() - self.log_eta.sum())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _observed(self, count: int, temperature: float = 1.0) -> Tensor:
        """Draws of the generator as the networks have them: images without the noise that learning gives the data."""
        z = temperature * torch.randn(count, self.latent, device=self.device)
        x = torch.cat([self.generator(part).float() for part in z.split(500)])
        return x if isinstance(self.space, Images) else x + temperature * self.sigma() * torch.randn_like(x)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws of the generator, then `refine` Langevin steps: (count, *space.shape)."""
        x = self._observed(count, temperature)
        return self._from_network(self._moved(x, self.refine, torch.randn, temperature))

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` Langevin chains from draws of the generator, ten steps a frame: (count, frames, *space.shape)."""
        found = [self._observed(count, temperature)]
        for _ in range(frames - 1):
            found.append(self._moved(found[-1], 10, torch.randn, temperature))
        return torch.stack([self._from_network(x) for x in found], 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """g(z) as observations: (batch, latent) -> (batch, *space.shape)."""
        return torch.cat([self._from_network(self.generator(part).float()) for part in z.split(500)])

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn: (batch, *shape).

        By Langevin steps in which the rest is held, from the draw of the generator that agrees best with what is known.
        """
        mask = self.space.check_known(known).to(x.device)
        drawn = self._observed(_TRIALS * len(x), temperature).view(_TRIALS, *x.shape)
        far = ((drawn - self._to_network(x)) * mask).flatten(2).square().sum(2)
        start = drawn[far.argmin(0), torch.arange(len(x), device=x.device)]
        return self._completed(x, known, start, self.burn_in, temperature)
