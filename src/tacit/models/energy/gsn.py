"""Generative stochastic network: a Markov chain that learns to walk back from noise to the data.

Corrupt an observation, x̃ ~ C(x̃ | x), and learn to say what it was, P_θ(x | x̃), by maximum likelihood: the chain that
alternates the two, x_{t+1} ~ P_θ(x | x̃_t), has the data's distribution as its stationary distribution, if P_θ is the
true conditional (Bengio et al. 2014, theorem 1). That is the denoising autoencoder read as a generative model: here one
hidden layer and `walkback` 1. Deeper, the chain carries hidden layers h along, noisy themselves:

    h_{t+1} = f_θ(h_t, noise, x̃_t),     x_{t+1} ~ P_θ(x | h_{t+1})                                          (their §3)

each h^l updated from its neighbours below and above as in Gibbs sampling of a deep Boltzmann machine, with the same
weights up and down. Walk-back training (§3.3, algorithm 1) lets the chain run on from each observation for several
steps and asks at every one of them for the observation it started from: where the chain strays it learns to return, and
modes that are no data's are unlearnt.

The stationary distribution is known by its samples alone: there is no density. The chain starts at independent entries
with the data's frequencies, and leaves them within a few steps, for noise is what the network takes away.

The likelihood P_θ is a product over entries: Bernoulli for binary images, a discretised logistic for images of more
levels, a Gaussian for standardised tables, the last two with a learnt scale for each entry. A product approximates the
conditional the better, the less C corrupts.

References
----------
Bengio, Thibodeau-Laufer, Alain & Yosinski (2014), Deep generative stochastic networks trainable by backprop,
arXiv:1306.1091.
Bengio, Yao, Alain & Vincent (2013), Generalized denoising auto-encoders as generative models, arXiv:1305.6663.
Vincent, Larochelle, Bengio & Manzagol (2008), Extracting and composing robust features with denoising autoencoders.
ICML.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.distributions import Bernoulli, DiscretisedLogisticMixture, GaussianMixture
from tacit.distributions.head import LocationScaleMixture
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn import noise
from tacit.nn.bijections import Standardise
from tacit.spaces import Images, Vectors

# Scales of entries lie above this, of [−1, 1] or of a deviation.
_LOWEST = -7.0


class GSN(Model):
    """Generative stochastic network.

    Args:
        space: images or vectors.
        hidden: units of the hidden layers, from the data up; one layer with `walkback` 1 is a denoising autoencoder.
        walkback: steps of the chain from each observation; at least as many as layers, so that all of them are used.
        corruption: of the input: the share of an image's entries replaced by black or white, each as likely, or the
            deviation of the noise added to a standardised table.
        hidden_noise: deviation of the noise added before and after the activation of hidden layers but the first.
        burn_in: steps of the chain to a sample.

    Raises:
        TacitError: an argument is too small, an image's `corruption` is above 1, or there are more layers than steps.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=100, learning_rate=1e-3, schedule="cosine", ema=0.999)
    space: Images | Vectors

    marginal: Tensor

    def __init__(
        self,
        space: Images | Vectors,
        *,
        hidden: tuple[int, ...] = (1000, 1000),
        walkback: int = 4,
        corruption: float = 0.4,
        hidden_noise: float = 1.0,
        burn_in: int = 100,
    ):
        super().__init__(space)
        check_at_least(1, hidden=hidden, walkback=walkback)
        check_at_least(0, corruption=corruption, hidden_noise=hidden_noise, burn_in=burn_in)
        if isinstance(space, Images) and corruption > 1:
            raise TacitError(f"corruption is {corruption}: give the share of an image's entries to replace, at most 1")
        if walkback < len(hidden):
            raise TacitError(
                f"walkback is {walkback} and there are {len(hidden)} hidden layers: walk back at least as many steps"
            )
        self.walkback, self.corruption, self.hidden_noise, self.burn_in = walkback, corruption, hidden_noise, burn_in
        if isinstance(space, Vectors):
            self.standardise = Standardise(*space.shape)
        self.head = _head(space)
        sizes = (space.dimensions, *hidden)
        self.weights = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(below, above)) for below, above in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in hidden)
        # An entry's own location and scale, which start at the data's (`adapt`).
        self.entry = nn.Parameter(torch.zeros(self.head.parameters, *space.shape))
        self.register_buffer("marginal", self.entry.detach().clone())

    # -- one step of the chain ----------------------------------------------------------------------------------------

    def _entries(self, x: Tensor) -> Tensor:
        """Observations as the head takes them: tables standardised."""
        x = self.space.check(x)
        return self.standardise(x) if isinstance(self.space, Vectors) else x.float()

    def _observations(self, entries: Tensor) -> Tensor:
        if isinstance(self.space, Vectors):
            entries = self.standardise.inverse(entries)
        return entries.to(self.space.torch_dtype)

    def _seen(self, entries: Tensor) -> Tensor:
        """What the first layer sees, (batch, D): images on [−1, 1]."""
        if isinstance(self.space, Images):
            entries = entries * (2 / (self.space.levels - 1)) - 1
        return entries.flatten(1)

    def _corrupted(self, entries: Tensor) -> Tensor:
        """x̃ ~ C(x̃ | x)."""
        if isinstance(self.space, Vectors):
            return entries + self.corruption * noise.randn_like(entries)
        # Uniform on the replaced share: its lower half is black, its upper half white.
        u = noise.rand_like(entries)
        extreme = (u < self.corruption / 2).to(entries.dtype) * (self.space.levels - 1)
        return torch.where(u < self.corruption, extreme, entries)

    def _stepped(self, seen: Tensor, h: list[Tensor], *, noisy: bool = True) -> list[Tensor]:
        """h_{t+1}: odd layers from what is seen and the even ones, then the even ones from those."""
        h = list(h)
        for parity in (0, 1):
            for layer in range(parity, len(h), 2):
                below = h[layer - 1] if layer else seen
                a = below @ self.weights[layer] + self.biases[layer]
                if layer + 1 < len(h):
                    a = a + h[layer + 1] @ self.weights[layer + 1].T
                # The first layer has the input's noise (Bengio et al. 2014, §5).
                spread = self.hidden_noise if layer and noisy else 0.0
                if spread:
                    h[layer] = torch.tanh(a + spread * noise.randn_like(a)) + spread * noise.randn_like(a)
                else:
                    h[layer] = torch.tanh(a)
        return h

    def _silent(self, count: int) -> list[Tensor]:
        """Hidden layers before anything was seen."""
        return [bias.new_zeros(count, len(bias)) for bias in self.biases]

    def _given(self, h: list[Tensor]) -> Tensor:
        """The head's parameters of P(x | h), (batch, parameters, *shape), float32."""
        location = (h[0] @ self.weights[0].T).float().view(-1, 1, *self.space.shape) + self.entry[:1]
        if self.head.parameters == 1:
            return location
        return torch.cat([location, self.entry[1:].expand(len(location), *self.entry[1:].shape)], 1)

    @torch.no_grad()
    def _drawn(self, parameters: Tensor, temperature: float = 1.0) -> Tensor:
        """Entries x ~ P(x | h), (batch, *shape): as `head.sample`, of noise that belongs to rows."""
        if isinstance(self.head, Bernoulli):
            logits = parameters[:, 0] / temperature
            return (noise.rand_like(logits) < torch.sigmoid(logits)).to(logits.dtype)
        location, scale = cast(LocationScaleMixture, self.head).choose(parameters, _LOWEST, None)
        if isinstance(self.head, GaussianMixture):
            return location + temperature * scale * noise.randn_like(location)
        u = noise.rand_like(location).clamp(1e-7, 1 - 1e-7)
        return cast(DiscretisedLogisticMixture, self.head).level(location + temperature * scale * torch.logit(u))

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal."""
        x = data.observations(20_000)
        if isinstance(self.space, Vectors):
            self.standardise.adapt(x)
        with torch.no_grad():
            self.entry.copy_(self.head.marginal(self._entries(x)))
            self.marginal.copy_(self.entry)

    def loss(self, batch: Batch) -> Losses:
        """−log P(x | h_t), nats of the head's entries, averaged over the walk; draws have no gradient."""
        entries = self._entries(batch.x)
        current, h, losses = entries, self._silent(len(entries)), []
        for step in range(self.walkback):
            h = self._stepped(self._seen(self._corrupted(current)), h)
            parameters = self._given(h)
            losses.append(-self.head.log_prob(parameters, entries).flatten(1).sum(1).mean())
            if step + 1 < self.walkback:
                current = self._drawn(parameters.detach())
        return Losses(reconstruction=torch.stack(losses).mean())

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _walk(
        self,
        current: Tensor,
        steps: int,
        temperature: float = 1.0,
        known: Tensor | None = None,
        found: list[Tensor] | None = None,
    ) -> Tensor:
        """Entries after `steps` of the chain, all of them appended to `found`; what is known is held."""
        given, h = current, self._silent(len(current))
        for _ in range(steps):
            h = self._stepped(self._seen(self._corrupted(current)), h)
            current = self._drawn(self._given(h), temperature)
            if known is not None:
                current = torch.where(known, given, current)
            if found is not None:
                found.append(current)
        return current

    def _start(self, count: int) -> Tensor:
        return self._drawn(self.marginal.expand(count, *self.marginal.shape))

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """`burn_in` steps of the chain from independent entries; temperature is that of P(x | h)."""
        return self._observations(self._walk(self._start(count), self.burn_in, temperature))

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` chains from independent entries, one step a frame: (count, frames, *space.shape)."""
        found = [self._start(count)]
        self._walk(found[0], frames - 1, temperature, found=found)
        return torch.stack([self._observations(x) for x in found], 1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn by `burn_in` steps of the chain in which the rest is held (§4)."""
        mask = self.space.check_known(known).to(x.device)
        start = torch.where(mask, self._entries(x), self._start(len(x)))
        return torch.where(mask, x, self._observations(self._walk(start, self.burn_in, temperature, mask)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Hidden layers after a step for each of them without any noise, side by side: (batch, hidden units)."""
        return torch.cat(self._settled(self._entries(x)), 1).float()

    def _settled(self, entries: Tensor) -> list[Tensor]:
        h = self._silent(len(entries))
        for _ in self.weights:
            h = self._stepped(self._seen(entries), h, noisy=False)
        return h

    @torch.no_grad()
    def surprise(self, x: Tensor) -> Tensor:
        """−log P(x | h) of the noise-free hidden layers, nats of the head's entries, (batch,): an anomaly score."""
        entries = self._entries(x)
        return -self.head.log_prob(self._given(self._settled(entries)), entries).flatten(1).sum(1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation given hidden units as `encode` has them: (batch, *shape)."""
        h = list(z.split([len(bias) for bias in self.biases], 1))
        return self._observations(self.head.mode(self._given(h)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the codes decode to, (batch, *shape)."""
        return self.decode(self.encode(x))

    def embed(self, x: Tensor) -> Tensor:
        """The hidden layers, as `encode`."""
        return self.encode(x)


def _head(space: Images | Vectors) -> Bernoulli | DiscretisedLogisticMixture | GaussianMixture:
    if isinstance(space, Vectors):
        return GaussianMixture()
    return Bernoulli() if space.levels == 2 else DiscretisedLogisticMixture(space.levels)
