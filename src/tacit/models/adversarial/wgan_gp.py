"""Wasserstein GAN with gradient penalty: a critic held to slope one, stepped five times a turn.

The critic D estimates how far the generator's distribution is from the data's (in the Wasserstein-1 distance), which it
can as long as it is 1-Lipschitz; a penalty on its slope between pairs of real and generated points keeps it near that:

    L_D = E_z[D(G(z))] − E_x[D(x)] + λ E_x̂[(‖∇D(x̂)‖₂ − 1)²]        L_G = −E_z[D(G(z))]
    x̂ = ε x + (1 − ε) G(z),  ε ~ U[0, 1]

Each critic step takes fresh data, so a batch holds `critic_steps` times the recipe's number of rows. The critic has
no batch normalisation (§4: the penalty is on each input alone), and neither has the generator, as in the authors' code
for small images, so that every row is treated apart and two processes learn what one does. On images the networks are
DCGAN's; on tables, standardised inside, both are perceptrons with ReLU as in the authors' toy experiments.

The logged term `wasserstein` is the critic's estimate E_x[D(x)] − E_z[D(G(z))], which falls as the samples improve; it
is the distance up to the critic's Lipschitz constant.

References
----------
Gulrajani, Ahmed, Arjovsky, Dumoulin & Courville (2017), Improved Training of Wasserstein GANs, arXiv:1704.00028.
Arjovsky, Chintala & Bottou (2017), Wasserstein GAN, arXiv:1701.07875.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.losses.adversarial import gradient_penalty
from tacit.model import Batch, Losses, Model, Recipe, Step
from tacit.nn import noise
from tacit.nn.bijections import Standardise, adapt_to
from tacit.nn.strided import Critic, Discriminator, Generator, hidden_layers, to_levels, to_unit
from tacit.spaces import Images, Vectors


class WGANGP(Model):
    """Wasserstein generative adversarial network with gradient penalty.

    Args:
        space: images of at least 8×8 pixels, or vectors.
        latent: dimensions of the noise z ~ N(0, 1).
        channels: feature maps at half an image's size, doubled with every further halving; unused for vectors.
        hidden: widths of the hidden layers of both players for vectors; unused for images.
        critic_steps: critic steps, each on fresh data, for every generator step.
        penalty: λ, the weight of the gradient penalty; 10 in the paper, 0.1 in its authors' two-dimensional toys.

    Raises:
        SpaceError: the images are smaller than 8×8.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=64, learning_rate=1e-4, optimiser="Adam", betas=(0.0, 0.9), ema=0.999)
    space: Images | Vectors

    def __init__(
        self,
        space: Images | Vectors,
        *,
        latent: int = 128,
        channels: int = 64,
        hidden: tuple[int, ...] = (512, 512, 512),
        critic_steps: int = 5,
        penalty: float = 10.0,
    ):
        super().__init__(space)
        self.latent = latent
        self.critic_steps = critic_steps
        self.penalty = penalty
        if isinstance(space, Images):
            self.generator: nn.Module = Generator(space, latent, channels, nn.Identity)
            self.critic: Discriminator | Critic = Discriminator(space, channels, nn.Identity, offset=False)
        else:
            self.standardise = Standardise(space.features)
            self.generator = nn.Sequential(
                hidden_layers(latent, hidden), nn.Linear((latent, *hidden)[-1], space.features)
            )
            self.critic = Critic(space.features, hidden)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def adapt(self, data: Dataset) -> None:
        if isinstance(self.space, Vectors):
            adapt_to(self.standardise, data)

    def players(self) -> dict[str, dict[str, Any]]:
        return {
            "critic": {"params": list(self.critic.parameters())},
            "generator": {"params": list(self.generator.parameters())},
        }

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows for all critic steps at once: `critic_steps` × `size`; an epoch shows every row to the critic once."""
        if len(data) >= self.critic_steps * size:
            return data.shuffled(self.critic_steps * size, generator)
        draws = [torch.randperm(len(data), generator=generator)[:size] for _ in range(self.critic_steps)]
        return iter((torch.cat(draws),))

    def steps(self, batch: Batch) -> Iterator[Step]:
        parts = self._to_network(batch.x).chunk(self.critic_steps)
        for real in parts:
            yield "critic", partial(self.critic_loss, real)
        yield "generator", partial(self.generator_loss, len(parts[0]))

    def critic_loss(self, real: Tensor) -> Losses:
        """L_D on (batch, …) observations as the networks take them, and as many fakes."""
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))
        on_real, on_fake = self.critic(torch.cat([real, fake])).chunk(2)
        wasserstein = on_real.mean() - on_fake.mean()
        penalty = self.penalty * gradient_penalty(self.critic, real, fake)
        return Losses(penalty - wasserstein, wasserstein=wasserstein, penalty=penalty)

    def generator_loss(self, count: int) -> Losses:
        """L_G on `count` fakes."""
        return Losses(-self.critic(self.generator(self.noise(count))).mean())

    def noise(self, count: int, temperature: float = 1.0) -> Tensor:
        """z, (count, latent), normal with standard deviation `temperature`."""
        return noise.randn(count, self.latent, device=self.device) * temperature

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """(count, *space.shape) in the space's dtype; a temperature below 1 keeps z nearer to 0."""
        return self.decode(self.noise(count, temperature))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """G(z) as observations: (batch, latent) -> (batch, *space.shape)."""
        return torch.cat([self._from_network(self.generator(part)) for part in z.split(500)])

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The critic's features, (batch, features): its pooled layers on images, its last hidden layer on vectors."""
        return self.critic.features(self._to_network(self.space.check(x)))

    def _to_network(self, x: Tensor) -> Tensor:
        return to_unit(x, self.space) if isinstance(self.space, Images) else self.standardise(x)

    def _from_network(self, x: Tensor) -> Tensor:
        return to_levels(x, self.space) if isinstance(self.space, Images) else self.standardise.inverse(x)
