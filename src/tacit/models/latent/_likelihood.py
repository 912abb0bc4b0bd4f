"""How a decoder's output becomes a likelihood of the user's own data: what the latent-variable models share.

Binary images are Bernoulli, images of more levels discretised logistics, standardised tables Gaussian; the last two
also as mixtures. A single component takes its location from the decoder and has a learnt scale for each entry, free of
the latent variable (Kingma et al. 2016, arXiv:1606.04934, §C); of a mixture the decoder gives everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.distributions import Bernoulli, DiscretisedLogisticMixture, GaussianMixture, Head
from tacit.distributions.discrete import softplus_sum
from tacit.errors import TacitError, check_at_least
from tacit.nn.bijections import Standardise
from tacit.spaces import Space, Vectors

# Parameters of entries that one pass of the decoder computes where it draws many samples: few enough (1 MB) to stay in
# a core's cache, enough for an efficient matrix product.
_AT_ONCE = 2**18

Decoder = Literal["bernoulli", "logistic", "gaussian"]


class Likelihood(nn.Module):
    """p(x|z), given what a decoder makes of z.

    A decoder gives `outputs` numbers for each entry of the data, of any shape that holds (rows, outputs, *shape) in
    that order: (rows, outputs · entries), or (rows, outputs · channels, height, width). They are added to parameters
    that belong to the entry and start at its own marginal (`adapt`). All likelihoods are float32 nats, whatever the
    decoder's precision.

    Args:
        space: images or vectors.
        decoder: "bernoulli" (binary images), "logistic" (images) or "gaussian" (tables); by default what suits.
        components: of a mixture of logistics or Gaussians; 1 for none.

    Attributes:
        head: the distribution of one entry.
        outputs: how many numbers of an entry the decoder gives.

    Raises:
        TacitError: the decoder does not suit the space, or the components not the decoder.
    """

    standardise: Standardise

    def __init__(self, space: Space, decoder: Decoder | None = None, components: int = 1):
        super().__init__()
        check_at_least(1, components=components)
        self.space = space
        self.head = _head(space, decoder, components)
        self.outputs = self.head.parameters if components > 1 else 1
        if isinstance(space, Vectors):
            self.standardise = Standardise(*space.shape)
        self.entry = nn.Parameter(torch.zeros(self.head.parameters, *space.shape))

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every entry at its own marginal."""
        x = data.observations(20_000)
        if isinstance(self.space, Vectors):
            self.standardise.adapt(x)
        with torch.no_grad():
            self.entry.copy_(self.head.marginal(self.entries(x)[0]))

    def entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations as the head takes them, and log |det| of the way there, (batch,): tables standardised.

        Raises:
            SpaceError: these are no observations of the space.
        """
        x = self.space.check(x)
        if isinstance(self.space, Vectors):
            return self.standardise.forward_and_log_det(x)
        return x, torch.zeros(len(x), device=x.device)

    def seen(self, entries: Tensor) -> Tensor:
        """Entries as an encoder should see them, (batch, *shape) floats: images on [−1, 1], tables as they are."""
        levels = self.space.levels
        return entries if levels is None else entries.to(self.entry.dtype) * (2 / (levels - 1)) - 1

    def given(self, output: Tensor) -> Tensor:
        """The head's parameters, (rows, parameters, *shape), from a decoder's output."""
        output = output.float().reshape(len(output), self.outputs, *self.space.shape) + self.entry[: self.outputs]
        if self.outputs == self.head.parameters:
            return output
        own = self.entry[self.outputs :]
        return torch.cat([output, own.expand(len(output), *own.shape)], 1)

    def log_prob(self, output: Tensor, entries: Tensor) -> Tensor:
        """Log p(entries|z), (batch,) nats, of a decoder's output of as many rows."""
        return self.head.log_prob(self.given(output), entries).flatten(1).sum(1)

    def log_probs(self, output: Tensor, entries: Tensor) -> Tensor:
        """Log p(entries|z) of several z an observation, (batch, count) nats: output (batch · count, …)."""
        batch = len(entries)
        count = len(output) // batch
        if isinstance(self.head, Bernoulli):
            # log p(x|z) = −Σ softplus(±logit), minus where x is 1.
            sign = 1 - 2 * entries.float().view(batch, 1, -1)
            return -softplus_sum(self.given(output).view(batch, count, -1) * sign)
        return self.log_prob(output, entries.repeat_interleave(count, 0)).view(batch, count)

    def log_mean_weight(self, log_weights: Callable[[int], Tensor], samples: int, batch: int) -> Tensor:
        """Log 1/K Σ_k w_k of K = `samples` importance weights an observation, (batch,) nats.

        `log_weights` draws as many an observation as it is told: (batch, count). It is told no more than what one pass
        of the decoder does well.
        """
        at_once = max(1, _AT_ONCE // (batch * self.space.dimensions * self.head.parameters))
        counts = [at_once] * (samples // at_once) + [samples % at_once] * (samples % at_once > 0)
        sums = [log_weights(count).logsumexp(1) for count in counts]
        return torch.stack(sums).logsumexp(0) - math.log(samples)

    def sample(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """One draw of p(x|z) for each row, (rows, *shape) in the user's data; see `Head.sample` for `temperature`."""
        return self.observations(self.head.sample(self.given(output), temperature))

    def mode(self, output: Tensor) -> Tensor:
        """The most likely observation of each row, (rows, *shape) in the user's data."""
        return self.observations(self.head.mode(self.given(output)))

    def observations(self, entries: Tensor) -> Tensor:
        """Entries of the head as the user's data."""
        if isinstance(self.space, Vectors):
            entries = self.standardise.inverse(entries)
        return entries.to(self.space.torch_dtype)


def _head(space: Space, decoder: str | None, components: int) -> Head:
    if isinstance(space, Vectors):
        heads: dict[str, Head] = {"gaussian": GaussianMixture(components)}
    else:
        heads = {"logistic": DiscretisedLogisticMixture(space.levels or 256, components)}
        if space.levels == 2:
            heads = {"bernoulli": Bernoulli()} | heads
    name = decoder or next(iter(heads))
    if name not in heads:
        raise TacitError(f"decoder is {decoder!r}, no likelihood of {space}: give {' or '.join(map(repr, heads))}")
    if name == "bernoulli" and components > 1:
        raise TacitError(f"components is {components}, but a mixture of Bernoullis of one pixel is one again: give 1")
    return heads[name]
