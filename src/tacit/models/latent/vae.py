"""Variational autoencoder (VAE): a latent-variable density learnt through an inference network.

An observation x is made from a latent vector z ~ p(z) = N(0, I) by a decoder p(x|z); an encoder gives the approximate
posterior q(z|x) = N(μ(x), diag σ²(x)). Both learn by the evidence lower bound, with z = μ + σ ⊙ ε and ε ~ N(0, I),

    log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)),      KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²).

Averaging K importance weights before taking the logarithm gives a tighter bound that approaches log p(x):

    log p(x) ≥ E[log 1/K Σ_k w_k],    w_k = p(x|z_k) p(z_k) / q(z_k|x),    z_k ~ q(z|x).

Inverse autoregressive steps after the Gaussian give q the dependences that a diagonal one lacks: z = f(z₀; h(x)) and
log q(z|x) = log q(z₀|x) − log |det ∂f/∂z₀|, all entries in one pass; the KL divergence is then estimated by a sample.

The decoder is a likelihood of the user's own data: Bernoulli for binary images, a discretised logistic for images of
more levels, a Gaussian for standardised tables; the last two with a learnt scale for each entry.

References
----------
- Kingma & Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114
- Rezende, Mohamed & Wierstra (2014), Stochastic backpropagation and approximate inference, arXiv:1401.4082
- Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519 (the tighter bound)
- Kingma et al. (2016), Improved variational inference with inverse autoregressive flow, arXiv:1606.04934 (the steps
  after the Gaussian; the discretised logistic)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.distributions import Bernoulli, DiscretisedLogisticMixture, GaussianMixture, Head
from tacit.distributions.discrete import softplus_sum
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn import noise
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import Bijection, Chain, Permute, Standardise
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
        flow: inverse autoregressive steps after the Gaussian posterior.
        flow_hidden: units of the hidden layer of each.

    Raises:
        TacitError: a width is below 1, `flow` is below 0, or the network or the decoder does not suit the space.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", ema=0.999)
    density = "bound"

    standardise: Standardise

    def __init__(
        self,
        space: Space,
        *,
        latent: int = 40,
        hidden: tuple[int, ...] = (500, 500),
        network: Literal["mlp", "conv"] = "mlp",
        channels: tuple[int, ...] = (32, 64),
        decoder: Literal["bernoulli", "logistic", "gaussian"] | None = None,
        flow: int = 0,
        flow_hidden: int = 320,
    ):
        super().__init__(space)
        check_at_least(1, latent=latent, hidden=hidden, channels=channels, flow_hidden=flow_hidden)
        if flow < 0:
            raise TacitError(f"flow is {flow}: give the number of steps after the Gaussian posterior, 0 for none")
        self.latent = latent
        self.head = _head(space, decoder)
        if isinstance(space, Vectors):
            self.standardise = Standardise(*space.shape)
        if network == "mlp":
            outside: list[nn.Module] = [nn.Flatten()]
            inside: list[nn.Module] = [nn.Unflatten(1, space.shape)]
            ends = space.dimensions
        elif network == "conv" and isinstance(space, Images):
            outside, inside, ends = _convolutions(space, channels)
        else:
            raise TacitError(f"network is {network!r}, which does not take {space.kind}: give 'mlp'")
        # Mean, log variance and, for the flow, what else it should know of x.
        told = 3 if flow else 2
        self.encoder = nn.Sequential(*outside, *_dense(ends, *hidden), nn.Linear(hidden[-1], told * latent))
        steps: list[Bijection] = []
        for _ in range(flow):
            steps += [MaskedAutoregression(latent, Affine(), (flow_hidden,), context=latent)]
            steps += [Permute(torch.arange(latent).flip(0))]
        self.flow = Chain(*steps) if flow else None
        self.decoder = nn.Sequential(*_dense(latent, *reversed(hidden)), nn.Linear(hidden[0], ends), *inside)
        # What the decoder adds to an entry's own location and scale, which start at the data's (`adapt`).
        self.entry = nn.Parameter(torch.zeros(self.head.parameters, *space.shape))

    # -- the two networks: likelihoods are float32 whatever the networks' precision -----------------------------------

    def _entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations as the head takes them, and log |det| of the way there, (batch,): tables standardised."""
        x = self.space.check(x)
        if isinstance(self.space, Vectors):
            return self.standardise.forward_and_log_det(x)
        return x, torch.zeros(len(x), device=x.device)

    def _posterior(self, entries: Tensor) -> Posterior:
        """q(z|x). The encoder sees images on [−1, 1]."""
        levels = self.space.levels
        seen = entries if levels is None else entries.float() * (2 / (levels - 1)) - 1
        return Posterior(self.flow, *self.encoder(seen).float().split(self.latent, 1))

    def _given(self, z: Tensor) -> Tensor:
        """The head's parameters of p(x|z), (batch, parameters, *shape)."""
        location = self.decoder(z).float()[:, None].add_(self.entry[:1])
        if self.head.parameters == 1:
            return location
        return torch.cat([location, self.entry[1:].expand(len(z), *self.entry[1:].shape)], 1)

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal."""
        x = data.observations(20_000)
        if isinstance(self.space, Vectors):
            self.standardise.adapt(x)
        with torch.no_grad():
            self.entry.copy_(self.head.marginal(self._entries(x)[0]))

    def loss(self, batch: Batch) -> Losses:
        """The two parts of −ELBO: `reconstruction`, −E_q[log p(x|z)], and `kl`, of a Gaussian in closed form."""
        entries, log_det = self._entries(batch.x)
        posterior = self._posterior(entries)
        z, log_ratio = posterior.draw(noise.randn_like(posterior.mean))
        log_likelihood = self.head.log_prob(self._given(z), entries).flatten(1).sum(1) + log_det
        kl = gaussian_kl(posterior.mean, posterior.log_var) if self.flow is None else -log_ratio
        return Losses(reconstruction=-log_likelihood.mean(), kl=kl.mean())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, (batch,) nats: of `samples` importance weights; with 1 the ELBO.

        Raises:
            TacitError: `samples` is below 1.
        """
        entries, log_det = self._entries(x)
        posterior = self._posterior(entries)
        check_at_least(1, samples=samples)
        at_once = max(1, _AT_ONCE // (len(x) * self.space.dimensions * self.head.parameters))
        total = torch.full((len(x),), -math.inf, device=x.device)
        for count in [at_once] * (samples // at_once) + [samples % at_once] * (samples % at_once > 0):
            z, log_ratio = posterior.draw(noise.randn(len(x), count, self.latent, device=x.device))
            total = torch.logaddexp(total, (self._log_likelihood(z, entries) + log_ratio).logsumexp(1))
        return total - math.log(samples) + log_det

    def _log_likelihood(self, z: Tensor, entries: Tensor) -> Tensor:
        """Log p(x|z) for several z an observation: (batch, count, latent), (batch, *shape) -> (batch, count)."""
        parameters = self._given(z.flatten(0, 1))
        if isinstance(self.head, Bernoulli):
            # log p(x|z) = Σ x · logit − softplus(logit), the first sum one matrix product an observation.
            logits = parameters.view(*z.shape[:2], -1)
            on = torch.bmm(logits, entries.to(logits.dtype).view(len(z), -1, 1))[:, :, 0]
            return on - softplus_sum(logits)
        return (
            self.head.log_prob(parameters, entries.repeat_interleave(z.shape[1], 0)).flatten(1).sum(1).view(z.shape[:2])
        )

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 5000) -> Tensor:
        """A tight lower bound on log p(x), (batch,) nats, for reports: `log_prob` of many samples, encoded once."""
        return self.log_prob(x, samples)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws x ~ p(x|z), z ~ N(0, temperature²): (count, *shape)."""
        z = temperature * torch.randn(count, self.latent, device=self.device)
        return self._observations(self.head.sample(self._given(z)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent); with a flow, where it takes the Gaussian's."""
        posterior = self._posterior(self._entries(x)[0])
        return posterior.draw(torch.zeros_like(posterior.mean))[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation of each z, (batch, *shape)."""
        return self._observations(self.head.mode(self._given(z)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the posterior means decode to, (batch, *shape)."""
        return self.decode(self.encode(x))

    def embed(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent)."""
        return self.encode(x)

    def _observations(self, entries: Tensor) -> Tensor:
        """Entries of the head as the user's data."""
        if isinstance(self.space, Vectors):
            entries = self.standardise.inverse(entries)
        return entries.to(self.space.torch_dtype)


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


def _head(space: Space, decoder: str | None) -> Head:
    if isinstance(space, Vectors):
        heads: dict[str, Head] = {"gaussian": GaussianMixture()}
    elif space.levels == 2:
        heads = {"bernoulli": Bernoulli(), "logistic": DiscretisedLogisticMixture(2)}
    else:
        heads = {"logistic": DiscretisedLogisticMixture(space.levels or 256)}
    if decoder is not None and decoder not in heads:
        raise TacitError(f"decoder is {decoder!r}, no likelihood of {space}: give {' or '.join(map(repr, heads))}")
    return heads[decoder or next(iter(heads))]


def _dense(*sizes: int) -> list[nn.Module]:
    return [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]


def _convolutions(space: Images, channels: tuple[int, ...]) -> tuple[list[nn.Module], list[nn.Module], int]:
    """Halving convolutions, the doubling ones that undo their shapes exactly, and the units in between."""
    outside: list[nn.Module] = []
    inside: list[nn.Module] = []
    before, height, width = space.shape
    for after in channels:
        outside += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        # ⌈n / 2⌉ becomes n again: an even n needs one more row or column.
        even = (1 - height % 2, 1 - width % 2)
        inside = [
            nn.SiLU(),
            nn.ConvTranspose2d(after, before, 3, stride=2, padding=1, output_padding=even),
            *inside,
        ]
        before, height, width = after, (height + 1) // 2, (width + 1) // 2
    return [*outside, nn.Flatten()], [nn.Unflatten(1, (before, height, width)), *inside], before * height * width
