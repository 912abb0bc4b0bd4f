"""Masked autoencoder (MADE): all conditionals p(x_d | x_<d) from one pass through a masked network.

Any ordering of the entries factorises a probability, p(x) = ∏_d p(x_d | x_<d). An autoencoder computes all the factors
at once if its weights are masked so that the output for x_d sees only the entries before it. Give input d its rank
m(d) ∈ {1, …, D} in the ordering and every hidden unit k a degree m(k) ∈ {1, …, D − 1}; then

    h = g(b + (W ⊙ M^W) x),                      M^W_{k,d} = 1 where m(k) ≥ m(d),
    p(x_d | x_<d) = head(c + (V ⊙ M^V) h + (A ⊙ M^A) x),   M^V_{d,k} = 1 where m(d) > m(k), and so M^A.

Training may cycle through several orderings and several draws of the degrees (order- and connectivity-agnostic
training, §4); the model is then their mixture with equal weights, p(x) = 1/S Σ_s p_s(x): an average of
probabilities, not of logits, which would be no likelihood.

What an entry's head is depends on the space: Bernoulli for binary images, a mixture of discretised logistics for
images of more levels, a mixture of Gaussians for standardised tables, a categorical for text.

References
----------
- Germain, Gregor, Murray & Larochelle (2015), MADE: Masked autoencoder for distribution estimation, arXiv:1502.03509
- Uria, Murray & Larochelle (2013), RNADE, arXiv:1306.0186 (the mixture of Gaussians)
- Uria, Murray & Larochelle (2014), A deep and tractable density estimator, arXiv:1310.1757 (ensembles of orderings)
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.distributions import Bernoulli, Categorical, DiscretisedLogisticMixture, GaussianMixture, Head
from tacit.errors import TacitError
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.nn import noise
from tacit.nn.bijections import Standardise
from tacit.nn.masked import MaskedLinear, degree_mask
from tacit.spaces import Images, Space, Tokens, Vectors


class MADE(Model):
    """Masked autoencoder for distribution estimation.

    Args:
        hidden: units of each hidden layer.
        orderings: how many orderings of the entries to train on and to average over.
        masks: how many draws of the hidden units' degrees to train on and to average over. Set s of ordering and
            mask pairs ordering s mod `orderings` with mask s mod `masks`; there are max(orderings, masks) sets.
        natural: whether the first ordering is the data's own (rows of pixels, columns of the table) or random too.
        direct: whether inputs are also connected to outputs directly.
        dropout: probability of dropping a hidden unit while training.
        components: of the mixture at each entry, for images of more than two levels and for tables.

    Raises:
        TacitError: a width or a count is below 1, or `dropout` is outside [0, 1).
    """

    spaces = (Images, Vectors, Tokens)
    recipe = Recipe(batch_size=100, learning_rate=1e-3, schedule="cosine", ema=0.999)
    density = "exact"

    standardise: Standardise
    ranks: Tensor
    degrees: Tensor
    turn: Tensor

    def __init__(
        self,
        space: Space,
        *,
        hidden: tuple[int, ...] = (1000,),
        orderings: int = 1,
        masks: int = 1,
        natural: bool = True,
        direct: bool = True,
        dropout: float = 0.0,
        components: int = 10,
    ):
        super().__init__(space)
        for name, value in {"hidden": min(hidden, default=0), "orderings": orderings, "masks": masks}.items():
            if value < 1:
                raise TacitError(f"{name} is {value if hidden else '()'}: give at least 1")
        if components < 1:
            raise TacitError(f"components is {components}: give at least 1")
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        self.dropout = dropout
        self.sets = max(orderings, masks)
        self.head = _head(space, components)
        # Inputs and outputs are laid out with the entries innermost: (…, D), so that ranks repeat by tiling.
        self.width = space.vocabulary if isinstance(space, Tokens) else 1
        entries = space.dimensions
        if isinstance(space, Vectors):
            self.standardise = Standardise(*space.shape)

        sizes = (self.width * entries, *hidden)
        self.layers = nn.ModuleList(MaskedLinear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = MaskedLinear(hidden[-1], self.head.parameters * entries)
        shift = self.head.locations if self.head.locations == self.head.parameters else 1
        self.direct = MaskedLinear(self.width * entries, shift * entries, bias=False) if direct else None
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)

        first = torch.arange(entries) if natural else torch.randperm(entries)
        ranks = torch.stack([first, *(torch.randperm(entries) for _ in range(orderings - 1))]) + 1
        self.register_buffer("ranks", ranks.int())
        self.register_buffer("degrees", torch.stack([_degrees(hidden, entries) for _ in range(masks)]).int())
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    # -- the network --------------------------------------------------------------------------------------------------

    def _ranks_and_degrees(self, s: int | Tensor) -> tuple[Tensor, list[Tensor]]:
        """Ranks of the entries, (D,), and degrees of each layer's units, of set `s`."""
        degrees = self.degrees[s % len(self.degrees)]
        return self.ranks[s % len(self.ranks)], list(degrees.split([layer.out_features for layer in self.layers]))

    def _hidden(self, inputs: Tensor, ranks: Tensor, degrees: list[Tensor]) -> Tensor:
        """Activations of the last hidden layer, (batch, units)."""
        h, source = inputs, ranks.repeat(self.width)
        for layer, target in zip(self.layers, degrees, strict=True):
            h = F.relu(layer(h, degree_mask(source, target, strict=False).to(h.dtype)))
            if self.training and self.dropout > 0:
                h = h * (noise.rand_like(h) >= self.dropout) / (1 - self.dropout)
            source = target
        return h

    def conditionals(self, inputs: Tensor, s: int | Tensor) -> Tensor:
        """The head's parameters at every entry given those before it in set `s`: (batch, parameters, D)."""
        ranks, degrees = self._ranks_and_degrees(s)
        h = self._hidden(inputs, ranks, degrees)
        mask = degree_mask(degrees[-1], ranks, strict=True).to(h.dtype)
        parameters = self.output(h, mask.repeat(self.head.parameters, 1))
        parameters = parameters.view(len(h), self.head.parameters, -1)
        if self.direct is not None:
            mask = degree_mask(ranks, ranks, strict=True).to(h.dtype)
            shift = self.direct(inputs, mask.repeat(self.direct.out_features // len(mask), self.width))
            shift = shift.view(len(h), -1, parameters.shape[2])
            parameters[:, : self.head.locations] += shift
        return parameters.float()  # likelihoods are float32 whatever the network's precision

    def _entries(self, x: Tensor) -> Tensor:
        """Observations as the head's entries, (batch, D): tables standardised."""
        x = self.space.check(x)
        return self.standardise(x) if isinstance(self.space, Vectors) else x.flatten(1)

    def _inputs(self, entries: Tensor) -> Tensor:
        """What the network sees of entries (batch, n): (batch, width · n), floats."""
        if isinstance(self.head, Categorical):
            return F.one_hot(entries.long(), self.width).transpose(1, 2).flatten(1).float()
        return self.head.place(entries) if isinstance(self.head, DiscretisedLogisticMixture) else entries.float()

    def _log_prob(self, x: Tensor, s: int | Tensor) -> Tensor:
        """Log p_s(x), (batch,), of one ordering and mask."""
        entries = self._entries(x)
        log_prob = self.head.log_prob(self.conditionals(self._inputs(entries), s), entries).sum(1)
        return log_prob + self.standardise.forward_and_log_det(x)[1] if isinstance(self.space, Vectors) else log_prob

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every output at its entry's own marginal."""
        x = data.observations(20_000)
        if isinstance(self.space, Vectors):
            self.standardise.adapt(x)
        with torch.no_grad():
            self.output.bias.copy_(self.head.marginal(self._entries(x)).flatten())

    def loss(self, batch: Batch) -> Losses:
        """−log p_s(x) under the set whose turn it is."""
        return Losses(nll=-self._log_prob(batch.x, self.turn if self.sets > 1 else 0).mean())

    def after_step(self, progress: Progress) -> None:
        """The next set takes its turn."""
        self.turn.copy_((self.turn + 1) % self.sets)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), (batch,), exact: of the mixture of all sets, in nats."""
        each = torch.stack([self._log_prob(x, s) for s in range(self.sets)])
        return each.logsumexp(0) - math.log(self.sets)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Draws from the mixture of all sets, (count, *shape); temperature is that of each conditional.

        Raises:
            TacitError: `temperature` is not above zero.
        """
        if temperature <= 0:
            raise TacitError(f"temperature is {temperature}: give a number above 0 (1 samples the model itself)")
        chosen = torch.randint(self.sets, (count,)).bincount(minlength=self.sets).tolist()
        drawn = [self._ancestral(n, s, temperature)[0] for s, n in enumerate(chosen) if n > 0]
        x = torch.cat(drawn)[torch.randperm(count)] if drawn else torch.zeros(0, self.space.dimensions)
        if isinstance(self.space, Vectors):
            x = self.standardise.inverse(x)
        return x.view(count, *self.space.shape).to(self.space.torch_dtype)

    def _ancestral(self, count: int, s: int, temperature: float) -> tuple[Tensor, Tensor]:
        """Draws from set `s`, (count, D), and the parameters they were drawn with, (count, parameters, D).

        A hidden unit of degree r is complete once the entry of rank r is drawn, whatever its layer; so each unit is
        computed once, and all draws together cost about one pass. Units not yet complete are zero, which is what
        the masks would make of them: no mask is needed. Units are sorted by degree and lie along the first axis.
        """
        ranks, degrees = self._ranks_and_degrees(s)
        entries, p = len(ranks), self.head.parameters
        sorting = [degree.argsort() for degree in degrees]
        ends = [torch.bincount(degree, minlength=entries + 1).cumsum(0).tolist() for degree in degrees]
        layers = cast("list[MaskedLinear]", self.layers)
        weights = [layer.weight[rows] for layer, rows in zip(layers, sorting, strict=True)]
        weights[1:] = [weight[:, columns] for weight, columns in zip(weights[1:], sorting, strict=False)]
        biases = [layer.bias[rows, None] for layer, rows in zip(layers, sorting, strict=True)]
        output = self.output.weight[:, sorting[-1]].view(p, entries, -1)
        bias = self.output.bias.view(p, entries, 1)

        like = self.output.bias
        states = [like.new_zeros(layer.in_features, count) for layer in layers]
        states.append(like.new_zeros(self.output.in_features, count))
        x, parameters = like.new_zeros(count, entries), like.new_zeros(count, p, entries)
        for rank, d in enumerate(ranks.argsort().tolist(), start=1):
            given = output[:, d] @ states[-1] + bias[:, d]
            if self.direct is not None:
                shift = self.direct.weight.view(-1, entries, self.direct.in_features)[:, d] @ states[0]
                given[: self.head.locations] += shift
            parameters[:, :, d] = given.T
            x[:, d] = self.head.sample(given.T, temperature)
            states[0][d::entries] = self._inputs(x[:, d : d + 1]).T
            for i, (weight, offset) in enumerate(zip(weights, biases, strict=True)):
                new = slice(ends[i][rank - 1], ends[i][rank])
                states[i + 1][new] = F.relu(weight[new] @ states[i] + offset[new])
        return x, parameters

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Activations of the last hidden layer under the first ordering and mask, (batch, hidden[-1])."""
        return self._hidden(self._inputs(self._entries(x)), *self._ranks_and_degrees(0))


def _head(space: Space, components: int) -> Head:
    if isinstance(space, Vectors):
        return GaussianMixture(components)
    if isinstance(space, Tokens):
        return Categorical(space.vocabulary)
    return Bernoulli() if space.levels == 2 else DiscretisedLogisticMixture(space.levels or 2, components)


def _degrees(hidden: tuple[int, ...], entries: int) -> Tensor:
    """Degrees of all hidden units, layer after layer: as many units of each degree as can be, dealt at random."""
    most = max(entries - 1, 1)
    return torch.cat([torch.randperm(units) * most // units + 1 for units in hidden])
