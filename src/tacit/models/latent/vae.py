"""Variational autoencoder (VAE): a latent-variable density learnt through an inference network.

An observation x is made from a latent vector z ~ p(z) = N(0, I) by a decoder p(x|z); an encoder gives the approximate
posterior q(z|x) = N(μ(x), diag σ²(x)). Both learn by the evidence lower bound, with z = μ + σ ⊙ ε and ε ~ N(0, I),

    log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)),      KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²).

Averaging K importance weights before taking the logarithm gives a tighter bound that approaches log p(x):

    log p(x) ≥ E[log 1/K Σ_k w_k],    w_k = p(x|z_k) p(z_k) / q(z_k|x),    z_k ~ q(z|x).

Inverse autoregressive steps after the Gaussian give q the dependences that a diagonal one lacks: z = f(z₀; h(x)) and
log q(z|x) = log q(z₀|x) − log |det ∂f/∂z₀|, all entries in one pass; the KL divergence is then estimated by a sample.

The decoder is a likelihood of the user's own data: Bernoulli for binary images, a discretised logistic for images of
more levels, a Gaussian for standardised tables; of the last two one with a learnt scale for each entry, or a mixture.

References
----------
- Kingma & Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114
- Rezende, Mohamed & Wierstra (2014), Stochastic backpropagation and approximate inference, arXiv:1401.4082
- Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519 (the tighter bound)
- Kingma et al. (2016), Improved variational inference with inverse autoregressive flow, arXiv:1606.04934 (the steps
  after the Gaussian; the discretised logistic)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Recipe
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._networks import dense, ends
from tacit.nn import noise
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import Bijection, Chain, Permute
from tacit.nn.elementwise import Affine
from tacit.spaces import Images, Space, Vectors

# Parameters of entries that one pass of the decoder computes where it draws many samples: few enough (1 MB) to stay in
# a core's cache, enough for an efficient matrix product.
_AT_ONCE = 2**18


class VAE(Model):
    """Variational autoencoder with one stochastic layer and a Gaussian posterior, or one that goes on by a flow.

    Args:
        latent: dimensions of z.
        hidden: units of the encoder's fully connected hidden layers; the decoder has them in reverse.
        network: "mlp", fully connected alone, or "conv", which takes images through convolutions first.
        channels: of the convolutions, each of which halves height and width; for "conv" alone.
        decoder: "bernoulli" (binary images), "logistic" (images) or "gaussian" (tables); by default what suits.
        components: of a mixture of logistics or Gaussians; 1 for none.
        flow: inverse autoregressive steps after the Gaussian posterior.
        flow_hidden: units of the hidden layer of each.

    Raises:
        TacitError: a width is below 1, `flow` is below 0, or the network or the decoder does not suit the space.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", ema=0.999)
    density = "bound"

    def __init__(
        self,
        space: Space,
        *,
        latent: int = 40,
        hidden: tuple[int, ...] = (500, 500),
        network: Literal["mlp", "conv"] = "mlp",
        channels: tuple[int, ...] = (32, 64),
        decoder: Literal["bernoulli", "logistic", "gaussian"] | None = None,
        components: int = 1,
        flow: int = 0,
        flow_hidden: int = 320,
    ):
        super().__init__(space)
        check_at_least(1, latent=latent, hidden=hidden, channels=channels, flow_hidden=flow_hidden)
        if flow < 0:
            raise TacitError(f"flow is {flow}: give the number of steps after the Gaussian posterior, 0 for none")
        self.latent = latent
        self.likelihood = Likelihood(space, decoder, components)
        outside, inside, first, last = ends(space, network, channels, self.likelihood.outputs)
        # Mean, log variance and, for the flow, what else it should know of x.
        told = 3 if flow else 2
        self.encoder = nn.Sequential(*outside, *dense(first, *hidden), nn.Linear(hidden[-1], told * latent))
        steps: list[Bijection] = []
        for _ in range(flow):
            steps += [MaskedAutoregression(latent, Affine(), (flow_hidden,), context=latent)]
            steps += [Permute(torch.arange(latent).flip(0))]
        self.flow = Chain(*steps) if flow else None
        self.decoder = nn.Sequential(*dense(latent, *reversed(hidden)), nn.Linear(hidden[0], last), *inside)

    def _posterior(self, entries: Tensor) -> Posterior:
        """q(z|x)."""
        return Posterior(self.flow, *self.encoder(self.likelihood.seen(entries)).float().split(self.latent, 1))

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal."""
        self.likelihood.adapt(data)

    def loss(self, batch: Batch) -> Losses:
        """The two parts of −ELBO: `reconstruction`, −E_q[log p(x|z)], and `kl`, of a Gaussian in closed form."""
        entries, log_det = self.likelihood.entries(batch.x)
        posterior = self._posterior(entries)
        z, log_ratio = posterior.draw(noise.randn_like(posterior.mean))
        log_likelihood = self.likelihood.log_prob(self.decoder(z), entries) + log_det
        kl = gaussian_kl(posterior.mean, posterior.log_var) if self.flow is None else -log_ratio
        return Losses(reconstruction=-log_likelihood.mean(), kl=kl.mean())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, (batch,) nats: of `samples` importance weights; with 1 the ELBO.

        Raises:
            TacitError: `samples` is below 1.
        """
        entries, log_det = self.likelihood.entries(x)
        posterior = self._posterior(entries)
        check_at_least(1, samples=samples)
        at_once = max(1, _AT_ONCE // (len(x) * self.space.dimensions * self.likelihood.head.parameters))
        total = torch.full((len(x),), -math.inf, device=x.device)
        for count in [at_once] * (samples // at_once) + [samples % at_once] * (samples % at_once > 0):
            z, log_ratio = posterior.draw(noise.randn(len(x), count, self.latent, device=x.device))
            log_likelihood = self.likelihood.log_probs(self.decoder(z.flatten(0, 1)), entries)
            total = torch.logaddexp(total, (log_likelihood + log_ratio).logsumexp(1))
        return total - math.log(samples) + log_det

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 5000) -> Tensor:
        """A tight lower bound on log p(x), (batch,) nats, for reports: `log_prob` of many samples, encoded once."""
        return self.log_prob(x, samples)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws x ~ p(x|z), z ~ N(0, temperature²): (count, *shape)."""
        z = temperature * torch.randn(count, self.latent, device=self.device)
        return self.likelihood.sample(self.decoder(z))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent); with a flow, where it takes the Gaussian's."""
        posterior = self._posterior(self.likelihood.entries(x)[0])
        return posterior.draw(torch.zeros_like(posterior.mean))[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation of each z, (batch, *shape)."""
        return self.likelihood.mode(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the posterior means decode to, (batch, *shape)."""
        return self.decode(self.encode(x))

    def embed(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent)."""
        return self.encode(x)


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of a batch: z = f(μ + σ ⊙ ε; h), f the identity unless there is a flow.

    Attributes:
        flow: f.
        mean: μ, (batch, latent).
        log_var: log σ², likewise.
        context: h, likewise.
    """

    flow: Chain | None
    mean: Tensor
    log_var: Tensor
    context: Tensor | None = None

    def draw(self, noises: Tensor) -> tuple[Tensor, Tensor]:
        """Z and log p(z) − log q(z|x), from standard normal noise: (batch, …, latent) and (batch, …)."""
        fitting = len(self.mean), *[1] * (noises.dim() - 2), -1
        mean, log_var = self.mean.view(fitting), self.log_var.view(fitting)
        z = mean + (0.5 * log_var).exp() * noises
        log_det = z.new_zeros(())
        if self.flow is not None and self.context is not None:
            context = self.context.view(fitting).expand_as(z).reshape(-1, z.shape[-1])
            z, log_det = self.flow.forward_and_log_det(z.reshape(-1, z.shape[-1]), context)
            z, log_det = z.view(noises.shape), log_det.view(noises.shape[:-1])
        # The constants of the two Gaussians cancel.
        return z, 0.5 * (noises.square() - z.square() + log_var).sum(-1) + log_det


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag e^log_var) ‖ N(0, I)), (batch,), of (batch, latent)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
