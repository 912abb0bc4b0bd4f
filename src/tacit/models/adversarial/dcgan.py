"""Deep convolutional GAN: strided convolutions against a discriminator, non-saturating loss.

A generator G turns noise z into images, a discriminator D says with what probability an image is one of the data's.
Each step D takes one step on images and fresh fakes, then G one on fresh fakes:

    L_D = −E_x[log D(x)] − E_z[log(1 − D(G(z)))]        L_G = −E_z[log D(G(z))]

L_G is the non-saturating loss: it has the same fixed point as −L_D, and a gradient while D still wins.

The networks follow the paper's guidelines: strided convolutions instead of pooling, batch normalisation everywhere but
at G's output and D's input, ReLU and tanh in G, LeakyReLU(0.2) in D, no hidden layer, weights from N(0, 0.02²),
Adam(2e-4, β₁ = 0.5), z uniform on [−1, 1]. Kernels are 4×4 as in the authors' Torch code, so that stride 2 covers every
pixel equally often. An image is halved as long as both sides stay at least 4 (64 -> 4 as in the paper, 28 -> 7), and
an odd size is met by one more row or column where the generator doubles.

The recipe keeps an average of the weights for use: a GAN circles its equilibrium instead of settling in it, and the
average of the circle lies nearer to its centre than any point on it (Yazıcı et al. 2019).

References
----------
Radford, Metz & Chintala (2016), Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks, arXiv:1511.06434.
Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661.
Yazıcı et al. (2019), The Unusual Effectiveness of Averaging in GAN Training, arXiv:1806.04498.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tacit.losses.adversarial import told_as_fake, told_as_real
from tacit.model import Batch, Losses, Model, Recipe, Step
from tacit.nn import noise
from tacit.nn.strided import Discriminator, Generator, to_levels, to_unit
from tacit.spaces import Images


class DCGAN(Model):
    """Deep convolutional generative adversarial network.

    Args:
        space: images of at least 8×8 pixels.
        latent: dimensions of the noise z.
        channels: feature maps at half the image's size; they double with every further halving, up to eight times.

    Raises:
        SpaceError: the images are smaller than 8×8.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=128, learning_rate=2e-4, optimiser="Adam", betas=(0.5, 0.999), ema=0.999)
    space: Images

    def __init__(self, space: Images, *, latent: int = 100, channels: int = 64):
        super().__init__(space)
        self.latent = latent
        self.generator = Generator(space, latent, channels)
        self.discriminator = Discriminator(space, channels)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def players(self) -> dict[str, dict[str, Any]]:
        return {
            "discriminator": {"params": list(self.discriminator.parameters())},
            "generator": {"params": list(self.generator.parameters())},
        }

    def steps(self, batch: Batch) -> Iterator[Step]:
        real = to_unit(batch.x, self.space)
        yield "discriminator", lambda: self.discriminator_loss(real)
        yield "generator", lambda: self.generator_loss(len(real))

    def discriminator_loss(self, real: Tensor) -> Losses:
        """L_D on images in [−1, 1], (batch, channels, height, width), and as many fakes.

        Images and fakes pass D apart, so that batch normalisation sees the statistics of one kind at a time.
        """
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))
        return Losses(real=told_as_real(self.discriminator(real)), fake=told_as_fake(self.discriminator(fake)))

    def generator_loss(self, count: int) -> Losses:
        """L_G on `count` fakes."""
        return Losses(told_as_real(self.discriminator(self.generator(self.noise(count)))))

    def noise(self, count: int, temperature: float = 1.0) -> Tensor:
        """z, (count, latent), uniform on [−temperature, temperature]."""
        return (2 * noise.rand(count, self.latent, device=self.device) - 1) * temperature

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Images, uint8 (count, channels, height, width); a temperature below 1 keeps z nearer to 0."""
        return self.decode(self.noise(count, temperature))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """G(z) as images: (batch, latent) -> uint8 (batch, channels, height, width)."""
        return torch.cat([to_levels(self.generator(part), self.space) for part in z.split(500)])

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The discriminator's layers, each max-pooled to 4×4: (batch, channels, height, width) -> (batch, features)."""
        return self.discriminator.features(to_unit(self.space.check(x), self.space))
