"""Variational autoencoder (VAE): a latent-variable density learnt through an inference network.

An observation x is made from a latent vector z ~ p(z) = N(0, I) by a decoder p(x|z); an encoder gives the approximate
posterior q(z|x) = N(μ(x), diag σ²(x)). Both learn by the evidence lower bound, with z = μ + σ ⊙ ε and ε ~ N(0, I),

    log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)),      KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²).

Averaging K importance weights before taking the logarithm gives a tighter bound that approaches log p(x):

    log p(x) ≥ E[log 1/K Σ_k w_k],    w_k = p(x|z_k) p(z_k) / q(z_k|x),    z_k ~ q(z|x).

Inverse autoregressive steps after the Gaussian give q the dependences that a diagonal one lacks: z = f(z₀; h(x)) and
log q(z|x) = log q(z₀|x) − log |det ∂f/∂z₀|, all entries in one pass; the KL divergence is then estimated by a sample.

What the divergence may take is weighed by a fixed β (β-VAE), or held below δ nats: max E_q[log p(x|z)] subject to
E KL < δ is the saddle point of the Lagrangian

    min over networks, max over λ > 0:   −E_q[log p(x|z)] + λ (KL − δ),

in which λ learns by gradient ascent of its logarithm beside the networks. Free bits charge no latent dimension for its
first nats of divergence, annealing charges little for any in the beginning; both keep dimensions from being given up
before the decoder has found a use for them.

The decoder is a likelihood of the user's own data: Bernoulli for binary images, a discretised logistic for images of
more levels, a Gaussian for standardised tables; of the last two one with a learnt scale for each entry, or a mixture.

References
----------
- Kingma & Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114
- Rezende, Mohamed & Wierstra (2014), Stochastic backpropagation and approximate inference, arXiv:1401.4082
- Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519 (the tighter bound)
- Kingma et al. (2016), Improved variational inference with inverse autoregressive flow, arXiv:1606.04934 (the steps
  after the Gaussian; the discretised logistic; free bits, eq. 15)
- Higgins et al. (2017), β-VAE: learning basic visual concepts with a constrained variational framework, ICLR (β; the
  constrained problem, eqs. 2–3)
- Bowman et al. (2016), Generating sentences from a continuous space, arXiv:1511.06349 (annealing)
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.distributions import Head
from tacit.errors import CapabilityError, TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._networks import dense, ends
from tacit.nn import noise
from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import Bijection, Chain, Permute
from tacit.nn.elementwise import Affine
from tacit.spaces import Images, Space, Vectors

# How much faster than a weight the multiplier's logarithm learns: at a rate of 10⁻³ it doubles in some 70 steps.
_ASCENT = 10.0


class VAE(Model):
    """Variational autoencoder with one stochastic layer and a Gaussian posterior, or one that goes on by a flow.

    Args:
        latent: dimensions of z; by default 40, or as many as the data has where that is fewer.
        hidden: units of the encoder's fully connected hidden layers; the decoder has them in reverse.
        network: "mlp", fully connected alone, or "conv", which takes images through convolutions first.
        channels: of the convolutions, each of which halves height and width; for "conv" alone.
        decoder: "bernoulli" (binary images), "logistic" (images) or "gaussian" (tables); by default what suits.
        components: of a mixture of logistics or Gaussians; 1 for none.
        flow: inverse autoregressive steps after the Gaussian posterior.
        flow_hidden: units of the hidden layer of each.
        samples: importance samples K of the bound that is learnt; above 1 that of an importance-weighted autoencoder.
        beta: weight of the KL divergence.
        kl_below: δ, nats an observation, below which the KL divergence is to stay; its weight is then learnt.
        free_bits: nats of each latent dimension's KL divergence, averaged over the batch, that cost nothing; with a
            flow, whose divergence does not part by dimension, `latent` times as many for all of them together.
        anneal: steps over which the weight of the KL divergence rises from 0.

    Raises:
        TacitError: a width is below 1, another number below 0, δ not above it, the network or the decoder does not
            suit the space, or two of the arguments say what the loss is.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, schedule="cosine", ema=0.999)
    density = "bound"

    annealed: Tensor

    def __init__(
        self,
        space: Space,
        *,
        latent: int | None = None,
        hidden: tuple[int, ...] = (500, 500),
        network: Literal["mlp", "conv"] = "mlp",
        channels: tuple[int, ...] = (32, 64),
        decoder: Literal["bernoulli", "logistic", "gaussian"] | None = None,
        components: int = 1,
        flow: int = 0,
        flow_hidden: int = 320,
        samples: int = 1,
        beta: float = 1.0,
        kl_below: float | None = None,
        free_bits: float = 0.0,
        anneal: int = 0,
    ):
        super().__init__(space)
        latent = min(40, space.dimensions) if latent is None else latent
        check_at_least(1, latent=latent, hidden=hidden, channels=channels, flow_hidden=flow_hidden, samples=samples)
        check_at_least(0, flow=flow, beta=beta, free_bits=free_bits, anneal=anneal)
        _check_objective(samples, beta, kl_below, free_bits, anneal)
        self.latent, self.samples, self.anneal = latent, samples, anneal
        self.beta, self.kl_below, self.free_bits = beta, kl_below, free_bits
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
        # log λ, in units in which a step of the optimiser moves it as far as it should.
        self.log_multiplier = nn.Parameter(torch.zeros(())) if kl_below is not None else None
        # A Lagrangian, at whose saddle point nothing is least.
        self.loss_ranks = kl_below is None
        self.register_buffer("annealed", torch.tensor(0.0 if anneal else 1.0))

    def _posterior(self, entries: Tensor) -> Posterior:
        """q(z|x)."""
        return Posterior(self.flow, *self.encoder(self.likelihood.seen(entries)).float().split(self.latent, 1))

    # -- coding -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def posterior_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of q(z|x), (batch, latent) each.

        Raises:
            CapabilityError: the posterior goes on by a flow.
        """
        if self.flow is not None:
            raise CapabilityError(
                "a posterior that goes on by a flow is no Gaussian, which bits back need: fit --flow 0"
            )
        posterior = self._posterior(self.likelihood.entries(x)[0])
        return posterior.mean, posterior.log_var / 2

    @torch.no_grad()
    def given(self, z: Tensor) -> tuple[Head, Tensor]:
        """The head of an entry and its parameters given z, (batch, parameters, *shape)."""
        return self.likelihood.head, self.likelihood.given(self.decoder(z))

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal; warns of a latent larger than the data."""
        if self.latent > self.space.dimensions:
            warnings.warn(
                f"latent is {self.latent}, but an observation has {self.space.dimensions} numbers: dimensions beyond "
                f"them cannot tell more of it; --latent {self.space.dimensions} or fewer does",
                stacklevel=2,
            )
        self.likelihood.adapt(data)

    def loss(self, batch: Batch) -> Losses:
        """The two parts of −ELBO: `reconstruction`, −E_q[log p(x|z)], and `kl`, of a Gaussian in closed form.

        They are the total where nothing else is asked for. With a learnt weight it is logged as `multiplier`; with
        several samples the terms are the `bound` that is learnt and, beside it, `elbo`, both negative.
        """
        entries, log_det = self.likelihood.entries(batch.x)
        posterior = self._posterior(entries)
        if self.samples > 1:
            noises = noise.randn(len(entries), self.samples, self.latent, device=entries.device)
            log_weights = self._log_weights(posterior, noises, entries) + log_det[:, None]
            bound = math.log(self.samples) - log_weights.logsumexp(1).mean()
            return Losses(bound, bound=bound, elbo=-log_weights.mean())
        z, log_ratio = posterior.draw(noise.randn_like(posterior.mean))
        reconstruction = -(self.likelihood.log_prob(self.decoder(z), entries) + log_det).mean()
        kls = posterior.kls().mean(0) if self.flow is None else -log_ratio.mean(0, keepdim=True)
        kl = kls.sum()
        if self.log_multiplier is not None and self.kl_below is not None:
            log_multiplier = _ASCENT * self.log_multiplier
            multiplier = log_multiplier.detach().exp()
            # The last term has no value of its own: its gradient descends where the multiplier should ascend.
            ascent = -(log_multiplier - log_multiplier.detach()) * (kl.detach() / self.kl_below - 1)
            total = reconstruction + multiplier * (kl - self.kl_below) + ascent
            return Losses(total, reconstruction=reconstruction, kl=kl, multiplier=multiplier)
        # What is compared on held-out rows must not change its meaning along the way.
        weight = self.beta * self.annealed if self.training else self.beta
        charged = kls.clamp(min=self.free_bits * self.latent / len(kls)).sum() if self.free_bits else kl
        return Losses(reconstruction + weight * charged, reconstruction=reconstruction, kl=kl)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the weight of the KL divergence along its ramp."""
        if self.anneal:
            self.annealed.fill_(min(1.0, progress.step / self.anneal))

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, (batch,) nats: of `samples` importance weights; with 1 the ELBO.

        Raises:
            TacitError: `samples` is below 1.
        """
        entries, log_det = self.likelihood.entries(x)
        posterior = self._posterior(entries)
        check_at_least(1, samples=samples)

        def log_weights(count: int) -> Tensor:
            return self._log_weights(posterior, noise.randn(len(x), count, self.latent, device=x.device), entries)

        return self.likelihood.log_mean_weight(log_weights, samples, len(x)) + log_det

    def _log_weights(self, posterior: Posterior, noises: Tensor, entries: Tensor) -> Tensor:
        """Log p(entries|z) p(z) / q(z|x), (batch, count), of the z that the noises, (batch, count, latent), make."""
        z, log_ratio = posterior.draw(noises)
        return self.likelihood.log_probs(self.decoder(z.flatten(0, 1)), entries) + log_ratio

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

    def kls(self) -> Tensor:
        """KL(q(z_j|x) ‖ p(z_j)) of each dimension of the Gaussian, (batch, latent), before the flow."""
        return gaussian_kl(self.mean, self.log_var)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)) of each entry, in the shape of both."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def _check_objective(samples: int, beta: float, kl_below: float | None, free_bits: float, anneal: int) -> None:
    weighs = {"beta": beta != 1, "kl_below": kl_below is not None, "free_bits": free_bits > 0, "anneal": anneal > 0}
    asked = [name for name, given in weighs.items() if given]
    if samples > 1 and asked:
        raise TacitError(
            f"samples is {samples} and {asked[0]} is given: a bound of several samples has no KL divergence to weigh; "
            "give one of the two"
        )
    if kl_below is None:
        return
    if kl_below <= 0:
        raise TacitError(
            f"kl_below is {kl_below}: a KL divergence is never below 0, and 0 where z says nothing of x; "
            "give nats above 0"
        )
    if len(asked) > 1:
        (other,) = (name for name in asked[:2] if name != "kl_below")
        raise TacitError(f"kl_below and {other} are given: the weight of the KL divergence is learnt; give one of them")
