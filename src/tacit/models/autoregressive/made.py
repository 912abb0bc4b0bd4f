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
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Choose
from tacit.data import Dataset
from tacit.distributions import Bernoulli, Categorical, DiscretisedLogisticMixture, GaussianMixture, Head
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Progress, Recipe
from tacit.models.autoregressive._autoregressive import Autoregressive, guided
from tacit.nn import noise
from tacit.nn.bijections import Standardise
from tacit.nn.masked import MaskedLinear, degree_mask
from tacit.spaces import Images, Space, Tokens, Vectors


class MADE(Autoregressive):
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
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a width or a count is below 1, or `dropout` is outside [0, 1).
    """

    spaces = (Images, Vectors, Tokens)
    recipe = Recipe(batch_size=100, learning_rate=1e-3, schedule="cosine", ema=0.999)

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
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, hidden=hidden, orderings=orderings, masks=masks, components=components)
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        self.dropout = dropout
        self.orderings, self.sets = orderings, max(orderings, masks)
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
        # What a class adds to every unit, hidden and last.
        self.label = self.label_embedding(sum(hidden) + self.output.out_features)
        if self.label is not None:
            nn.init.zeros_(self.label.weight)

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

    def _biases(self, label: Tensor | None) -> list[Tensor]:
        """What the label adds to each hidden layer and to the output, (batch, units) or () each."""
        if self.label is None:
            return [torch.zeros((), device=self.device)] * (len(self.layers) + 1)
        layers = cast("list[MaskedLinear]", [*self.layers, self.output])
        return list(self.label(label).split([layer.out_features for layer in layers], 1))

    def _hidden(self, inputs: Tensor, ranks: Tensor, degrees: list[Tensor], biases: list[Tensor]) -> Tensor:
        """Activations of the last hidden layer, (batch, units)."""
        h, source = inputs, ranks.repeat(self.width)
        for layer, target, bias in zip(self.layers, degrees, biases, strict=False):
            h = F.relu(layer(h, degree_mask(source, target, strict=False).to(h.dtype)) + bias)
            if self.training and self.dropout > 0:
                h = h * (noise.rand_like(h) >= self.dropout) / (1 - self.dropout)
            source = target
        return h

    def _given(self, inputs: Tensor, s: int | Tensor, label: Tensor | None, ranks: Tensor | None = None) -> Tensor:
        """The head's parameters at every entry given those before it in set `s`, (batch, parameters, D).

        `ranks` are those of another ordering than the set's own.
        """
        own, degrees = self._ranks_and_degrees(s)
        ranks = own if ranks is None else ranks
        biases = self._biases(label)
        h = self._hidden(inputs, ranks, degrees, biases)
        mask = degree_mask(degrees[-1], ranks, strict=True).to(h.dtype)
        parameters = self.output(h, mask.repeat(self.head.parameters, 1)) + biases[-1]
        parameters = parameters.view(len(h), self.head.parameters, -1)
        if self.direct is not None:
            mask = degree_mask(ranks, ranks, strict=True).to(h.dtype)
            shift = self.direct(inputs, mask.repeat(self.direct.out_features // len(mask), self.width))
            shift = shift.view(len(h), -1, parameters.shape[2])
            parameters[:, : self.head.locations] += shift
        return parameters.float()  # likelihoods are float32 whatever the network's precision

    def entries(self, x: Tensor) -> Tensor:
        """Observations as the head's entries, (batch, D): tables standardised."""
        return self.standardise(x) if isinstance(self.space, Vectors) else x.flatten(1)

    def observations(self, entries: Tensor) -> Tensor:
        """Entries, (batch, D), as the user's data."""
        if isinstance(self.space, Vectors):
            entries = self.standardise.inverse(entries)
        return entries.view(len(entries), *self.space.shape).to(self.space.torch_dtype)

    def _inputs(self, entries: Tensor) -> Tensor:
        """What the network sees of entries (batch, n): (batch, width · n), floats."""
        if isinstance(self.head, Categorical):
            return F.one_hot(entries.long(), self.width).transpose(1, 2).flatten(1).float()
        return self.head.place(entries) if isinstance(self.head, DiscretisedLogisticMixture) else entries.float()

    def _log_prob_of(self, entries: Tensor, label: Tensor | None, s: int | Tensor) -> Tensor:
        """Log p_s(x | y), (batch,), of one ordering and mask."""
        log_prob = self.head.log_prob(self._given(self._inputs(entries), s, label), entries).sum(1)
        if isinstance(self.space, Vectors):  # what standardising adds is the same for every row
            log_prob = log_prob + self.standardise.forward_and_log_det(torch.zeros_like(entries[:1]))[1]
        return log_prob

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Log p(x | y), (batch,), of the mixture of all sets."""
        each = torch.stack([self._log_prob_of(entries, label, s) for s in range(self.sets)])
        return each.logsumexp(0) - math.log(self.sets)

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise tables, and start every output at its entry's own marginal; take the classes' shares."""
        super().adapt(data)
        x = data.observations(20_000)
        if isinstance(self.space, Vectors):
            self.standardise.adapt(x)
        with torch.no_grad():
            self.output.bias.copy_(self.head.marginal(self.entries(x)).flatten())

    def loss(self, batch: Batch) -> Losses:
        """−log p_s(x | y) under the set whose turn it is."""
        entries, turn = self.entries(self.space.check(batch.x)), self.turn if self.sets > 1 else 0
        return Losses(nll=-self._log_prob_of(entries, self.learned_label(batch), turn).mean())

    def after_step(self, progress: Progress) -> None:
        """The next set takes its turn."""
        self.turn.copy_((self.turn + 1) % self.sets)

    # -- capabilities -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0, guidance: float = 0.0
    ) -> Tensor:
        """Draws from the mixture of all sets, (count, *shape); see `Sequential.sample`.

        Raises:
            TacitError: `temperature` is not above zero, `label` is not a class, or guidance has no class to go by.
        """
        self._check_draw(temperature, guidance)
        labels = self.drawn_labels(label, count)
        x = torch.zeros(count, self.space.dimensions, device=self.device)
        for s, rows in self._dealt(count):
            own = None if labels is None else labels[rows]
            x[rows] = self._ancestral(len(rows), s, temperature, label=own, guidance=guidance)[0]
        return self.observations(x)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        label: int | Tensor | None = None,
        temperature: float = 1.0,
        guidance: float = 0.0,
    ) -> Tensor:
        """Draw what is unknown of `x`, (batch, *shape), given what is `known`, (*shape) bool.

        With one ordering the known entries must come first in it, and draws follow p(unknown | known). With several,
        each row falls to one of the sets, whose ordering is rearranged so that the known come first: a network that
        was trained on enough orderings answers for those it has not seen.

        Raises:
            TacitError: the mask is of another shape, or the only ordering has an unknown entry before a known one.
        """
        self._check_draw(temperature, guidance)
        self.space.check_known(known)
        mask = known.flatten().to(x.device)
        first = int(mask.sum())
        given = self.entries(self.space.check_values(torch.where(mask.view(known.shape), x, 0)))
        done = given.float()
        for s, rows in self._dealt(len(x)):
            own = self._ranks_and_degrees(s)[0]
            ranks = (own + len(own) * ~mask).argsort().argsort().int() + 1
            if self.orderings == 1 and not torch.equal(ranks, own):
                raise TacitError(
                    "known leaves out entries that come before known ones in the model's only ordering: let the known "
                    "part come first, or fit made with several --orderings"
                )
            labels = self._labels(label, len(x))[rows] if label is not None else None
            if label is None and self.classes is not None:
                each = [self._log_probs(given[rows], self._labels(y, len(rows)), s, ranks) for y in range(self.classes)]
                joint = torch.stack([(log_probs * mask).sum(1) for log_probs in each], 1) + self.log_prior
                labels = torch.multinomial(joint.softmax(1), 1)[:, 0]
            drawn = self._ancestral(
                len(rows), s, temperature, label=labels, guidance=guidance, ranks=ranks, given=given[rows], first=first
            )
            done[rows] = drawn[0]
        # Standardising there and back would round what is known.
        return torch.where(mask.view(known.shape), x, self.observations(done))

    def _log_probs(self, entries: Tensor, label: Tensor | None, s: int, ranks: Tensor) -> Tensor:
        """Log-probability of each entry given those before it, (batch, D)."""
        return self.head.log_prob(self._given(self._inputs(entries), s, label, ranks), entries)

    def _dealt(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """The sets, and which of `count` rows each of them draws, by chance."""
        chosen = torch.randint(self.sets, (count,))
        for s in range(self.sets):
            if len(rows := (chosen == s).nonzero().flatten()):
                yield s, rows.to(self.device)

    def _ancestral(
        self,
        count: int,
        s: int,
        temperature: float,
        *,
        label: Tensor | None = None,
        guidance: float = 0.0,
        ranks: Tensor | None = None,
        given: Tensor | None = None,
        first: int = 0,
        choose: Choose | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws from set `s`, (count, D), and the parameters they were drawn with, (count, parameters, D).

        A hidden unit of degree r is complete once the entry of rank r is drawn, whatever its layer; so each unit is
        computed once, and all draws together cost about one pass. Units not yet complete are zero, which is what
        the masks would make of them: no mask is needed. Units are sorted by degree and lie along the first axis.
        The first entries, of as many ranks as `first`, are those of `given`, (count, D); or `choose` says what each is.
        """
        own, degrees = self._ranks_and_degrees(s)
        ranks = own if ranks is None else ranks
        entries, p = len(ranks), self.head.parameters
        if guidance and label is not None:
            label = torch.cat([label, torch.full_like(label, self.classes or 0)])
        rows = count * (2 if guidance else 1)
        sorting = [degree.argsort() for degree in degrees]
        ends = [torch.bincount(degree, minlength=entries + 1).cumsum(0).tolist() for degree in degrees]
        layers = cast("list[MaskedLinear]", self.layers)
        weights = [layer.weight[units] for layer, units in zip(layers, sorting, strict=True)]
        weights[1:] = [weight[:, columns] for weight, columns in zip(weights[1:], sorting, strict=False)]
        added = [
            (layer.bias + bias).expand(rows, -1).T
            for layer, bias in zip([*layers, self.output], self._biases(label), strict=True)
        ]
        biases = [bias[units] for bias, units in zip(added, sorting, strict=False)]
        output = self.output.weight[:, sorting[-1]].view(p, entries, -1)
        bias = added[-1].unflatten(0, (p, entries))

        like = self.output.bias
        states = [like.new_zeros(layer.in_features, rows) for layer in layers]
        states.append(like.new_zeros(self.output.in_features, rows))
        x, parameters = like.new_zeros(count, entries), like.new_zeros(rows, p, entries)
        for rank, d in enumerate(ranks.argsort().tolist(), start=1):
            at = output[:, d] @ states[-1] + bias[:, d]
            if self.direct is not None:
                shift = self.direct.weight.view(-1, entries, self.direct.in_features)[:, d] @ states[0]
                at[: self.head.locations] += shift
            parameters[:, :, d] = at.T
            if choose is not None:
                x[:, d] = choose(self.head, at.T, rank - 1)
            elif given is not None and rank <= first:
                x[:, d] = given[:, d]
            elif guidance:
                x[:, d] = guided(self.head, at.T[:count], at.T[count:], guidance, temperature)
            else:
                x[:, d] = self.head.sample(at.T, temperature)
            seen = x[:, d : d + 1]
            states[0][d::entries] = self._inputs(torch.cat([seen, seen]) if guidance else seen).T
            for i, (weight, offset) in enumerate(zip(weights, biases, strict=True)):
                new = slice(ends[i][rank - 1], ends[i][rank])
                states[i + 1][new] = F.relu(weight[new] @ states[i] + offset[new])
        return x, parameters

    def sites(self, x: Tensor) -> Tensor:
        """Observations as `visit` goes, (batch, D)."""
        return self.entries(x)[:, self.ranks[0].argsort()]

    @torch.no_grad()
    def visit(self, count: int, choose: Choose, label: Tensor | None = None) -> None:
        """Visit every entry by the first ordering and mask alone; see `Sequential.visit`."""
        if self.classes is not None and label is None:
            label = torch.full((count,), self.classes, device=self.device)
        self._ancestral(count, 0, 1.0, label=label, choose=choose)

    def from_sites(self, sites: Tensor) -> Tensor:
        """Observations from what `sites` makes of them, (batch, *shape)."""
        return self.observations(sites[:, self.ranks[0].argsort().argsort()])

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Activations of the last hidden layer under the first ordering and mask, without a label: (batch, units)."""
        label = None if self.classes is None else torch.full((len(x),), self.classes, device=x.device)
        inputs = self._inputs(self.entries(self.space.check_values(x)))
        return self._hidden(inputs, *self._ranks_and_degrees(0), self._biases(label))


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
