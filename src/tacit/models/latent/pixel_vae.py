"""PixelVAE: an autoregressive decoder over a latent vector, which leaves the latent what is global.

As in a variational autoencoder z ~ N(0, I) and q(z|x) = N(μ(x), diag σ²(x)), but given z pixels are not independent:

    p(x|z) = ∏_i p(x_i | x_<i, s_i(z)),

by a few gated PixelCNN layers whose spatial context s(z) is z upsampled to the image's size. So few layers see some
pixels around alone; what hangs together over the image costs less by way of z. How the bits divide is in the log: `kl`
are the nats in z, `reconstruction` those in the pixels given z, `share_in_z` the first part of their sum.

References
----------
- Gulrajani, Kumar, Ahmed, Taiga, Visin, Vazquez & Courville (2017), PixelVAE: A latent variable model for natural
  images, arXiv:1611.05013
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2.3 (the layers)
- Bowman et al. (2016), Generating sentences from a continuous space, arXiv:1511.06349 (annealing)
- Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519 (the tighter bound)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._residual import halved, residual_decoder, residual_encoder
from tacit.models.latent.vae import Posterior
from tacit.nn import noise
from tacit.nn.gated import GatedLayer, LayerState, draw_through
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Images


class PixelVAE(Model):
    """Variational autoencoder with a PixelCNN for its decoder.

    Args:
        latent: dimensions of z.
        hidden: feature maps of the convolutional encoder, and of the layers that upsample z.
        halvings: how often they halve and double height and width.
        blocks: residual blocks of each.
        context: feature maps of the upsampled z.
        features: feature maps of each stack of the gated layers.
        layers: gated layers, the first included; the fewer, the more is left to z.
        first: side of the first layer's kernel, which is odd.
        kernel: side of the others', odd too.
        readout_features: feature maps of the two 1 × 1 layers that end it.
        components: logistics of a pixel's mixture, for images of more than two levels.
        anneal: steps over which the weight of the KL divergence rises from 0: pixels are learnt from one another sooner
            than from z, which would be given up before it says anything.

    Raises:
        TacitError: a number is below 1, `anneal` is below 0, there are fewer features than colours, or a kernel's side
            is even.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=32, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0
    density = "bound"

    annealed: Tensor

    def __init__(
        self,
        space: Images,
        *,
        latent: int = 40,
        hidden: int = 64,
        halvings: int = 2,
        blocks: int = 1,
        context: int = 32,
        features: int = 32,
        layers: int = 4,
        first: int = 7,
        kernel: int = 3,
        readout_features: int = 64,
        components: int = 5,
        anneal: int = 2000,
    ):
        super().__init__(space)
        check_at_least(1, latent=latent, hidden=hidden, halvings=halvings, context=context, layers=layers)
        check_at_least(1, components=components, first=first, kernel=kernel)
        check_at_least(0, blocks=blocks, anneal=anneal)
        check_at_least(space.channels, features=features, readout_features=readout_features)
        for name, side in (("first", first), ("kernel", kernel)):
            if side % 2 == 0:
                raise TacitError(f"{name} is {side}: give an odd number, so that the kernel has a middle")
        self.latent, self.anneal = latent, anneal
        self.register_buffer("annealed", torch.tensor(0.0 if anneal else 1.0))
        self.likelihood = Likelihood(space, None, 1 if space.levels == 2 else components)
        sizes = halved((space.height, space.width), halvings)
        units = hidden * math.prod(sizes[-1])
        self.encoder = nn.Sequential(
            residual_encoder(space.channels, hidden, halvings, blocks, hidden),
            nn.Flatten(),
            nn.Linear(units, 2 * latent),
        )
        self.upsample = nn.Sequential(
            nn.Linear(latent, units),
            nn.Unflatten(1, (hidden, *sizes[-1])),
            residual_decoder(hidden, hidden, context, sizes, blocks, hidden),
            nn.ReLU(),
        )
        colours = torch.arange(space.channels)
        maps, wide = (channel_groups(n, space.channels) for n in (features, readout_features))
        self.layers = nn.ModuleList(
            GatedLayer(maps if i else colours, maps, (kernel if i else first) // 2, i == 0, None, context)
            for i in range(layers)
        )
        self.outputs = nn.ModuleList(
            [MaskedConv2d(maps, wide), MaskedConv2d(wide, colours.repeat(self.likelihood.outputs))]
        )

    # -- the two networks ---------------------------------------------------------------------------------------------

    def _posterior(self, x: Tensor) -> Posterior:
        """q(z|x)."""
        return Posterior(None, *self.encoder(self.likelihood.seen(x)).float().split(self.latent, 1))

    def conditionals(self, x: Tensor, z: Tensor) -> Tensor:
        """The likelihood's parameters at every entry, given z and the entries before: (batch, …, *shape), in one pass.

        Args:
            x: observations, (batch, *shape).
            z: (batch, latent).
        """
        return self.likelihood.given(self._output(x, z))

    def _output(self, x: Tensor, z: Tensor) -> Tensor:
        """What the decoder gives the likelihood, (batch, outputs · channels, height, width)."""
        context, h = self.upsample(z), self.likelihood.seen(x)
        v = F.pad(h, (0, 0, 1, -1))  # a row down: v sees the rows above
        for layer in self.layers:
            v, h = layer(v, h, None, context)
        for output in self.outputs:
            h = output(F.relu(h))
        return h

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Start every entry at its own marginal, whatever z and the entries before, and z at what it can say.

        Posterior means are made of variance 1, their own deviations small beside it: from a z that begins as noise the
        decoder, which learns from the pixels around at once, learns to turn away.
        """
        self.likelihood.adapt(data)
        last = cast(nn.Linear, self.encoder[-1])
        with torch.no_grad():
            cast(Tensor, self.outputs[-1].weight).mul_(0.1)
            deviation, mean = torch.std_mean(self.encode(data.observations(1000).to(self.device)), 0, correction=0)
            deviation = torch.where(deviation > 1e-6, deviation, 1.0)
            last.weight[: self.latent] /= deviation[:, None]
            last.bias[: self.latent] = (last.bias[: self.latent] - mean) / deviation
            last.bias[self.latent :] = -4.0

    def loss(self, batch: Batch) -> Losses:
        """The two parts of −ELBO: `reconstruction`, −E_q[log p(x|z)], and `kl`; beside them `share_in_z`.

        The total is their sum; while learning, the weight of the second rises in the beginning.
        """
        x, _ = self.likelihood.entries(batch.x)
        posterior = self._posterior(x)
        z, _ = posterior.draw(noise.randn_like(posterior.mean))
        reconstruction = -self.likelihood.log_prob(self._output(x, z), x).mean()
        kl = posterior.kls().sum(1).mean()
        total = reconstruction + (self.annealed if self.training else 1.0) * kl
        return Losses(total, reconstruction=reconstruction, kl=kl, share_in_z=kl / (reconstruction + kl))

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the weight of the KL divergence along its ramp."""
        if self.anneal:
            self.annealed.fill_(min(1.0, progress.step / self.anneal))

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, (batch,) nats: of `samples` importance weights; with 1 the ELBO.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `samples` is below 1.
        """
        check_at_least(1, samples=samples)
        x, _ = self.likelihood.entries(self.space.check_values(x))
        posterior = self._posterior(x)

        def log_weights(count: int) -> Tensor:
            z, log_ratio = posterior.draw(noise.randn(len(x), count, self.latent, device=x.device))
            copies = x.repeat_interleave(count, 0)
            return (
                self.likelihood.log_prob(self._output(copies, z.flatten(0, 1)), copies).view(len(x), count) + log_ratio
            )

        return self.likelihood.log_mean_weight(log_weights, samples, len(x))

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 1000) -> Tensor:
        """A tight lower bound on log p(x), (batch,) nats, for reports: `log_prob` of many samples, encoded once."""
        return self.log_prob(x, samples)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws x ~ p(x|z), z ~ N(0, temperature²), pixel by pixel from caches: (count, *shape).

        Args:
            count: how many.
            temperature: of z and of each conditional.

        Raises:
            TacitError: `temperature` is not above zero.
        """
        if temperature <= 0:
            raise TacitError(f"temperature is {temperature}: give a number above 0 (1 samples the model itself)")
        z = temperature * torch.randn(count, self.latent, device=self.device)
        return self._generate(z, functools.partial(self.likelihood.head.sample, temperature=temperature))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent)."""
        return self._posterior(self.likelihood.entries(x)[0]).mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Of each z the observation whose every entry is the most likely given those before it: (batch, *shape)."""
        return self._generate(z, self.likelihood.head.mode)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the posterior means decode to, (batch, *shape): the same as a whole, but not in detail."""
        return self.decode(self.encode(x))

    def embed(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent)."""
        return self.encode(x)

    def _generate(self, z: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Observations, (batch, *shape), entry by entry: `choose` takes parameters, (batch, parameters)."""
        channels, height, width = self.space.shape
        context, given = self.upsample(z), self.likelihood.outputs
        layers = [LayerState(cast(GatedLayer, layer), len(z), width, None, context) for layer in self.layers]
        outputs = [ConvCache(cast(MaskedConv2d, layer), len(z), width) for layer in self.outputs]
        for output in outputs:
            output.begin_row()
        entries = torch.zeros(len(z), *self.space.shape, device=z.device)
        for row in range(height):
            v = layers[0].horizontal.row()
            for layer in layers:
                v = layer.begin_row(v, row)
            for column in range(width):
                for channel in range(channels):
                    h = draw_through(layers, column, channel)
                    for output in outputs:
                        h = output(F.relu(h), column, channel)
                    entry = self.likelihood.entry[:, channel, row, column].expand(len(z), -1)
                    x = choose(torch.cat([h + entry[:, :given], entry[:, given:]], 1))
                    entries[:, channel, row, column] = x
                    layers[0].horizontal.write(self.likelihood.seen(x)[:, None], column, channel)
        return self.likelihood.observations(entries)
