"""Hierarchical VAE (ladder): stochastic layers above one another, inferred on the way up and down.

An observation is made from the top: z_L ~ N(0, I), then z_i ~ p(z_i|z_{i+1}) = N(μ_i, diag σ_i²), both from a network,
then x ~ p(x|z_1). On the way up a network gathers from x, layer by layer, what speaks for each z_i, as a Gaussian
N(μ̂_i, diag σ̂_i²). On the way down it meets what the layer above expects, and the two are weighed by their precisions,

    q(z_i|z_{i+1}, x) = N(z_i; v (μ̂_i / σ̂_i² + μ_i / σ_i²), v),      1 / v = 1 / σ̂_i² + 1 / σ_i²,

and q(z_L|x) = N(μ̂_L, σ̂_L²): which is what Bayes' theorem does where everything is linear and Gaussian. An approximate
posterior that only climbs (Burda et al. 2016, §5) must learn the layers above anew, and leaves most of them unused;
here they share the way down with the model itself (Sønderby et al. 2016, §3). The bound, with the divergences in
closed form, and its version for K importance weights are

    log p(x) ≥ E_q[log p(x|z_1) − Σ_i KL(q(z_i|z_{i+1}, x) ‖ p(z_i|z_{i+1}))],
    log p(x) ≥ E[log 1/K Σ_k p(x, z_k) / q(z_k|x)],      z_k ~ q(z_1, …, z_L|x).

References
----------
- Sønderby, Raiko, Maaløe, Sønderby & Winther (2016), Ladder variational autoencoders, arXiv:1602.02282
- Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519 (two stochastic layers; the
  tighter bound)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._networks import dense, ends
from tacit.nn import noise
from tacit.spaces import Images, Space, Vectors


class HierarchicalVAE(Model):
    """Ladder variational autoencoder with two or more stochastic layers.

    Args:
        latent: dimensions of each z_i, the one next to the data first.
        hidden: units of the fully connected layers from the data to z_1; the decoder has them in reverse.
        between: units of those from each z to the next; the way down has them in reverse.
        network: "mlp", fully connected alone, or "conv", which takes images through convolutions first.
        channels: of the convolutions, each of which halves height and width; for "conv" alone.
        decoder: "bernoulli" (binary images), "logistic" (images) or "gaussian" (tables); by default what suits.
        components: of a mixture of logistics or Gaussians; 1 for none.
        samples: importance samples K of the bound that is learnt.
        anneal: steps over which the weight of the KL divergences rises from 0.

    Raises:
        TacitError: a width is below 1, there are fewer than two stochastic layers, `anneal` is below 0 or given with
            several samples, or the network or the decoder does not suit the space.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", ema=0.999)
    density = "bound"

    annealed: Tensor

    def __init__(
        self,
        space: Space,
        *,
        latent: tuple[int, ...] = (64, 32),
        hidden: tuple[int, ...] = (500, 500),
        between: tuple[int, ...] = (200, 200),
        network: Literal["mlp", "conv"] = "mlp",
        channels: tuple[int, ...] = (32, 64),
        decoder: Literal["bernoulli", "logistic", "gaussian"] | None = None,
        components: int = 1,
        samples: int = 1,
        anneal: int = 0,
    ):
        super().__init__(space)
        check_at_least(1, latent=latent, hidden=hidden, between=between, channels=channels, samples=samples)
        check_at_least(0, anneal=anneal)
        if len(latent) < 2:
            raise TacitError(f"latent is {latent}: give the dimensions of two layers or more, or take vae for one")
        if samples > 1 and anneal:
            raise TacitError(
                f"samples is {samples} and anneal is given: a bound of several samples has no KL divergence to weigh; "
                "give one of the two"
            )
        self.latent, self.samples, self.anneal = latent, samples, anneal
        self.likelihood = Likelihood(space, decoder, components)
        outside, inside, first, last = ends(space, network, channels, self.likelihood.outputs)
        above, back = range(1, len(latent)), between[::-1]
        self.up = nn.ModuleList([nn.Sequential(*outside, *dense(first, *hidden))])
        self.up.extend(nn.Sequential(*dense(hidden[-1] if i == 1 else between[-1], *between)) for i in above)
        widths = (hidden[-1], *[between[-1]] * len(above))
        self.evidence = nn.ModuleList(nn.Linear(w, 2 * size) for w, size in zip(widths, latent, strict=True))
        self.down = nn.ModuleList(
            nn.Sequential(*dense(latent[i], *back), nn.Linear(between[0], 2 * latent[i - 1])) for i in above
        )
        self.decoder = nn.Sequential(*dense(latent[0], *reversed(hidden)), nn.Linear(hidden[0], last), *inside)
        self.register_buffer("annealed", torch.tensor(0.0 if anneal else 1.0))

    # -- up and down --------------------------------------------------------------------------------------------------

    def _gathered(self, entries: Tensor) -> list[Gaussian]:
        """What speaks for each layer, (batch, 1, latent), from the data upwards."""
        h, found = self.likelihood.seen(entries), []
        for up, evidence in zip(self.up, self.evidence, strict=True):
            h = up(h)
            found.append(Gaussian.of(evidence(h)[:, None]))
        return found

    def _expected(self, z: Tensor, layer: int) -> Gaussian:
        """p(z_layer|z_(layer + 1)), of z (batch, count, latent)."""
        return Gaussian.of(self.down[layer](z.flatten(0, 1)).unflatten(0, z.shape[:2]))

    def _descend(self, gathered: list[Gaussian], noises: list[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """A draw of q from standard normal noise of each layer, (batch, count, latent).

        Returns:
            All z, from the data upwards, in the shapes of the noises; log p(z) − log q(z|x), (batch, count); and the
            KL divergence of each layer given the one above, likewise.
        """
        zs: list[Tensor] = []
        kls: list[Tensor] = []
        total = torch.zeros(noises[0].shape[:2], device=noises[0].device)
        for layer in reversed(range(len(self.latent))):
            q, p = gathered[layer], Gaussian.standard(noises[layer])
            if zs:
                p = self._expected(zs[0], layer)
                q = q.weighed_with(p)
            z = q.mean + (0.5 * q.log_var).exp() * noises[layer]
            zs.insert(0, z)
            kls.insert(0, q.divergence(p).expand_as(noises[layer]).sum(2))
            # The constants of the two Gaussians cancel.
            log_p = p.log_var + (z - p.mean).square() * (-p.log_var).exp()
            total = total + 0.5 * (noises[layer].square() + q.log_var - log_p).sum(2)
        return zs, total, kls

    def _noises(self, batch: int, count: int, temperature: float = 1.0) -> list[Tensor]:
        return [temperature * noise.randn(batch, count, size, device=self.device) for size in self.latent]

    def _still(self, batch: int) -> list[Tensor]:
        """No noise: every layer at its mean."""
        return [torch.zeros(batch, 1, size, device=self.device) for size in self.latent]

    def _log_weights(self, gathered: list[Gaussian], noises: list[Tensor], entries: Tensor) -> Tensor:
        """Log p(entries, z) / q(z|x), (batch, count)."""
        zs, log_ratio, _ = self._descend(gathered, noises)
        return self.likelihood.log_probs(self.decoder(zs[0].flatten(0, 1)), entries) + log_ratio

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal."""
        self.likelihood.adapt(data)

    def loss(self, batch: Batch) -> Losses:
        """The parts of −ELBO, `reconstruction` and `kl`, and each layer's part of the latter, `kl_1` next to the data.

        With several samples the terms are the `bound` that is learnt and, beside it, `elbo`, both negative.
        """
        entries, log_det = self.likelihood.entries(batch.x)
        gathered, noises = self._gathered(entries), self._noises(len(entries), self.samples)
        if self.samples > 1:
            log_weights = self._log_weights(gathered, noises, entries) + log_det[:, None]
            bound = math.log(self.samples) - log_weights.logsumexp(1).mean()
            return Losses(bound, bound=bound, elbo=-log_weights.mean())
        zs, _, kls = self._descend(gathered, noises)
        reconstruction = -(self.likelihood.log_prob(self.decoder(zs[0][:, 0]), entries) + log_det).mean()
        parts = {f"kl_{i}": kl.mean() for i, kl in enumerate(kls, 1)}
        kl = torch.stack(list(parts.values())).sum()
        # What is compared on held-out rows must not change its meaning along the way.
        weight = self.annealed if self.training else 1.0
        return Losses(reconstruction + weight * kl, reconstruction=reconstruction, kl=kl, **parts)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the weight of the KL divergences along its ramp."""
        if self.anneal:
            self.annealed.fill_(min(1.0, progress.step / self.anneal))

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, (batch,) nats: of `samples` importance weights; with 1 the ELBO.

        Raises:
            TacitError: `samples` is below 1.
        """
        entries, log_det = self.likelihood.entries(x)
        gathered = self._gathered(entries)
        check_at_least(1, samples=samples)

        def log_weights(count: int) -> Tensor:
            return self._log_weights(gathered, self._noises(len(x), count), entries)

        return self.likelihood.log_mean_weight(log_weights, samples, len(x)) + log_det

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 5000) -> Tensor:
        """A tight lower bound on log p(x), (batch,) nats, for reports: `log_prob` of many samples, encoded once."""
        return self.log_prob(x, samples)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws x ~ p(x|z_1), (count, *shape); `temperature` multiplies the deviation of every z."""
        noises = self._noises(count, 1, temperature)
        return self.likelihood.sample(self.decoder(self._made(noises[-1], noises)[:, 0]))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior means of the top layer, (batch, latent[-1])."""
        return self._gathered(self.likelihood.entries(x)[0])[-1].mean[:, 0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation of each z_L, (batch, latent[-1]), through the means below: (batch, *shape)."""
        return self.likelihood.mode(self.decoder(self._made(z[:, None], self._still(len(z)))[:, 0]))

    def _made(self, z: Tensor, noises: list[Tensor]) -> Tensor:
        """z_1, (batch, 1, latent[0]), from z_L and the noises of the layers below it."""
        for layer in reversed(range(len(self.latent) - 1)):
            p = self._expected(z, layer)
            z = p.mean + (0.5 * p.log_var).exp() * noises[layer]
        return z

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What the posterior means of all layers decode to, (batch, *shape): more of x than its top layer holds."""
        return self.likelihood.mode(self.decoder(self._means(x)[0]))

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Posterior means of all layers, each given that of the one above: (batch, sum of `latent`)."""
        return torch.cat(self._means(x), 1)

    def _means(self, x: Tensor) -> list[Tensor]:
        zs, _, _ = self._descend(self._gathered(self.likelihood.entries(x)[0]), self._still(len(x)))
        return [z[:, 0] for z in zs]


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians, mean and log variance of the same shape."""

    mean: Tensor
    log_var: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> Gaussian:
        """From what a network gives, (…, 2 · size)."""
        return cls(*parameters.float().chunk(2, -1))

    @classmethod
    def standard(cls, like: Tensor) -> Gaussian:
        """N(0, I)."""
        zero = torch.zeros_like(like)
        return cls(zero, zero)

    def weighed_with(self, other: Gaussian) -> Gaussian:
        """The normalised product of both densities."""
        share = torch.sigmoid(other.log_var - self.log_var)
        mean = other.mean + share * (self.mean - other.mean)
        # 1 / (e^−a + e^−b) = e^b σ(a − b).
        return Gaussian(mean, other.log_var + F.logsigmoid(self.log_var - other.log_var))

    def divergence(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) of each entry."""
        gap = self.log_var - other.log_var
        apart = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (apart + gap.exp() - 1 - gap)
