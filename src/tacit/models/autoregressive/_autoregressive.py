"""What the autoregressive models share, and one sampler that never computes anything twice.

`Autoregressive` holds what follows from the factors p(x_d | x_<d, y) alone. `Sequential` adds sampling and completion
for models that keep a state: `init_state` and `step(state, x_t)` give the parameters of one entry after the other at
the cost of one entry each.

References
----------
- Ramachandran et al. (2017), Fast generation for convolutional autoregressive models, arXiv:1704.06001 (the caches)
- Ho & Salimans (2022), Classifier-free diffusion guidance, arXiv:2207.12598 (here with log-probabilities for scores)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tacit.capabilities import Choose, Kind
from tacit.data import Dataset
from tacit.distributions import Bernoulli, Categorical, CoupledLogisticMixture, DiscretisedLogisticMixture, Head
from tacit.errors import TacitError, check_at_least
from tacit.models._conditional import Conditional
from tacit.spaces import Images, Space, Video

# Draws of the conditional head among which guidance chooses where a head's values cannot be listed.
_CANDIDATES = 64
# Images whose features are computed together: few, for what layers leave behind them should stay in the cache.
_AT_ONCE = 16


class Autoregressive(Conditional):
    """A product of conditionals, with or without classes. A model writes `hidden` and `readout`, and sets `head`."""

    density: Kind = "exact"
    head: Head

    # -- what a model writes ------------------------------------------------------------------------------------------

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Features of the last layer before the read-out, (batch, features, *sites)."""
        raise NotImplementedError

    def readout(self, hidden: Tensor) -> Tensor:
        """The head's parameters from those features, (batch, parameters, *entries)."""
        raise NotImplementedError

    def observations(self, entries: Tensor) -> Tensor:
        """Entries, (batch, *shape), as the user's data."""
        return entries.to(self.space.torch_dtype)

    # -- the factors --------------------------------------------------------------------------------------------------

    def conditionals(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The head's parameters at every entry given those before it, (batch, parameters, *entries), in one pass."""
        return self.readout(self.hidden(entries, label)).float()  # likelihoods are float32 whatever the precision

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Log p(x | y), (batch,)."""
        return self.head.log_prob(self.conditionals(entries, label), entries).flatten(1).sum(1)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of the last layer, averaged over the sites, without a label: (batch, features)."""
        entries = self.entries(self.space.check_values(x))
        label = None if self.classes is None else torch.full((len(x),), self.classes, device=x.device)
        return self.hidden(entries, label).float().flatten(2).mean(2)

    def _labels_given(self, x: Tensor, known: Tensor) -> Tensor | None:
        """Labels drawn from p(y | known), (batch,): the known come first, so that their factors know nothing else."""
        if self.classes is None:
            return None
        entries = self.entries(x)
        logits = self.log_prior.expand(len(x), -1).clone()
        for y in range(self.classes):
            each = self.head.log_prob(self.conditionals(entries, self._labels(y, len(x))), entries)
            mask = known.to(x.device) if each.shape[1:] == known.shape else known.to(x.device).all(0)
            logits[:, y] += (each * mask).flatten(1).sum(1)
        return torch.multinomial(logits.softmax(1), 1)[:, 0]


class Sequential(Autoregressive):
    """An autoregressive model that draws one site after another, each from a state that remembers all before it.

    `order` says which entries of an observation laid flat each site holds: (sites,), or (sites, entries of a site)
    where the head draws several at once. An `unbounded` model, which knows no places, draws more sites than it learnt.
    """

    order: Tensor
    unbounded: bool = False

    # -- what a model writes ------------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> Any:
        """What `step` needs to know before the first site of `count` draws: weights laid out, caches empty."""
        raise NotImplementedError

    def step(self, state: Any, x: Tensor | None) -> tuple[Tensor, Any]:
        """The next site's parameters, (batch, parameters), and the state after it; `x` is the site just drawn.

        Nothing lies hidden in modules: whoever keeps the state keeps everything. Its buffers are written in place.
        """
        raise NotImplementedError

    # -- sampling -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        label: int | Tensor | None = None,
        temperature: float = 1.0,
        guidance: float = 0.0,
        length: int | None = None,
    ) -> Tensor:
        """Draws, (count, *shape), from caches: each site costs what it adds.

        Args:
            count: how many.
            label: their class, or one for each; of a model with classes drawn from their shares if None.
            temperature: of each conditional.
            guidance: w of p(x_d | y)^(1 + w) p(x_d)^(−w), which makes draws more typical of their class.
            length: entries of a draw, (count, length), of texts and recordings; that of the space if None.

        Raises:
            TacitError: `temperature` is not above zero, `label` is not a class, guidance has no class to go by, or the
                model draws no other length than it was fitted on.
        """
        labels = self.drawn_labels(label, count)
        self._check_draw(temperature, guidance)
        order = self._drawn_order(count) if length is None else self._order_of_length(length)
        return self._placed(self._generate(count, order, labels, temperature, guidance, sites=length), order)

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
        """Draw what is unknown of `x`, (batch, *shape), from p(unknown | known).

        Args:
            x: what is known, and anything elsewhere; of an `unbounded` model of any length.
            known: (*shape) bool, True where `x` is given; these must come first in the model's order.
            label: as in `sample`; if None drawn from p(y | known).
            temperature: of each conditional.
            guidance: as in `sample`.

        Raises:
            TacitError: the mask is of another shape, or an unknown entry comes before a known one.
        """
        self._check_draw(temperature, guidance)
        if self.unbounded:
            space = dataclasses.replace(self.space, length=x.shape[-1])  # type: ignore[call-arg]
            order = torch.arange(x.shape[-1], device=self.device)
        else:
            space, order = self.space, self._drawn_order(len(x))
        space.check_known(known)
        x = space.check_values(torch.where(known.to(x.device), x, 0))
        given, order = self._given(x, known, order)
        labels = self._labels_given(x, known) if label is None else self._labels(label, len(x))
        drawn = self._generate(
            len(x), order, labels, temperature, guidance, given, len(order) if self.unbounded else None
        )
        drawn = self._placed(drawn, order)
        # An entry may stand for several observations: what is known comes back as it came.
        return torch.where(known.to(x.device), x.to(drawn.dtype), drawn)

    def _order_of_length(self, length: int) -> Tensor:
        """The order of an unbounded sequence, (length,)."""
        check_at_least(1, length=length)
        if not self.unbounded:
            raise TacitError(
                f"length is {length}, but this model draws the {self.space.dimensions} entries that it was fitted on: "
                f"leave length out, or fit it on observations of that length"
            )
        return torch.arange(length, device=self.device)

    def _drawn_order(self, count: int) -> Tensor:
        """The order in which to draw."""
        return self.order

    def _state(self, count: int, label: Tensor | None, order: Tensor) -> Any:
        """`init_state` for draws in this order."""
        return self.init_state(count, label)

    def _given(self, x: Tensor, known: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """The known sites, (batch, number[, entries]), which come first, and the order in which to draw."""
        sites = known.flatten()[order.cpu()]
        whole = sites if sites.dim() == 1 else sites.all(1)
        first = int(whole.sum())
        if not whole[:first].all() or bool(sites[first:].any()):
            raise TacitError(
                f"known leaves out entries that come before known ones, and the model draws {self._order_in_words()}: "
                f"let the known part come first, or take a model of any order (made, or gpt with --order any)"
            )
        return self.entries(x).flatten(1)[:, order[:first]], order

    def _order_in_words(self) -> str:
        if isinstance(self.space, Video):
            return "frame after frame, each row after row from the top"
        return "row after row from the top" if isinstance(self.space, Images) else "from left to right"

    def _generate(
        self,
        count: int,
        order: Tensor,
        label: Tensor | None,
        temperature: float,
        guidance: float,
        given: Tensor | None = None,
        sites: int | None = None,
    ) -> Tensor:
        """Sites in the order of drawing, (count, sites[, entries]); those `given` are taken as they are."""
        if guidance and label is not None:
            label = torch.cat([label, torch.full_like(label, self.classes or 0)])
        first = 0 if given is None else given.shape[1]
        drawn = []

        def choose(_: Head, parameters: Tensor, t: int) -> Tensor:
            if given is not None and t < first:
                x = given[:, t]
            elif guidance:
                given_label, free = parameters.chunk(2)
                x = guided(self.head, given_label, free, guidance, temperature)
            else:
                x = self.head.sample(parameters, temperature)
            drawn.append(x)
            return torch.cat([x, x]) if guidance else x

        self._walk(count * (2 if guidance else 1), choose, label, order, sites or len(self.order))
        return torch.stack(drawn, 1)

    def _walk(self, count: int, choose: Choose, label: Tensor | None, order: Tensor, sites: int) -> None:
        """Visit the sites in order: `choose` says what each is, (rows[, entries]), of its parameters and its place."""
        state, x = self._state(count, label, order), None
        for t in range(sites):
            parameters, state = self.step(state, x)
            x = choose(self.head, parameters, t)

    # -- coding -------------------------------------------------------------------------------------------------------

    def sites(self, x: Tensor) -> Tensor:
        """Observations of this space, of an `unbounded` model of any length, as `visit` goes: (batch, sites[, …])."""
        entries = self.entries(x).flatten(1)
        return entries if self.unbounded else entries[:, self.order]

    @torch.no_grad()
    def visit(self, count: int, choose: Choose, label: Tensor | None = None, sites: int | None = None) -> None:
        """Visit every site in order; see `tacit.capabilities.Codes`.

        Args:
            count: how many observations.
            choose: says what stands at a site.
            label: a class of each observation, (count,); none if None.
            sites: how many, of an `unbounded` model; those of the space if None.
        """
        if self.classes is not None and label is None:
            label = torch.full((count,), self.classes, device=self.device)
        order = self.order if sites is None else torch.arange(sites, device=self.device)
        self._walk(count, choose, label, order, len(order))

    def from_sites(self, sites: Tensor) -> Tensor:
        """Observations from what `sites` makes of them, (batch, *shape)."""
        order = torch.arange(sites.shape[1], device=sites.device) if self.unbounded else self.order
        return self._placed(sites, order)

    def _placed(self, sites: Tensor, order: Tensor) -> Tensor:
        """Sites in the order of drawing as observations."""
        entries = sites.new_empty(len(sites), order.numel())
        entries[:, order] = sites
        return self.observations(entries if self.unbounded else entries.view(len(sites), *self.space.shape))


class PixelState:
    """What has been drawn of images, in whatever form the model's layers keep it."""

    entry: int = 0

    def write(self, x: Tensor, column: int, channel: int) -> None:
        """Take a site just drawn, (batch, entries) on [−1, 1]."""
        raise NotImplementedError

    def begin_row(self, row: int) -> None:
        """All rows before `row` are drawn: compute what they give to it."""
        raise NotImplementedError

    def read(self, column: int, channel: int) -> Tensor:
        """The head's parameters of the next entry, (batch, parameters)."""
        raise NotImplementedError


class Pixelwise(Sequential):
    """Images row by row, a pixel's colours one after the other or at once; its `init_state` gives a `PixelState`."""

    @torch.no_grad()
    def step(self, state: PixelState, x: Tensor | None) -> tuple[Tensor, PixelState]:
        """The next site's parameters, (batch, parameters); `x` is (batch,), or (batch, channels) of a whole pixel.

        Where `order` says that a site is a whole pixel, there is but one to each, which goes by channel 0.
        """
        channels, _, width = self.space.shape[-3:]
        channels = channels if self.order.dim() == 1 else 1
        if x is not None:
            last, x = state.entry - 1, scaled(x.view(len(x), -1), self.space.levels or 2)
            state.write(x, last // channels % width, last % channels)
        column, channel = state.entry // channels % width, state.entry % channels
        if column == channel == 0:
            state.begin_row(state.entry // channels // width)
        state.entry += 1
        return state.read(column, channel), state

    @torch.no_grad()
    def parameters_of(self, x: Tensor, label: Tensor | None = None) -> Iterator[Tensor]:
        """What `visit` tells of known observations, from one pass over each, in exact arithmetic bit for bit.

        Args:
            x: observations, (batch, *shape).
            label: as in `visit`.

        Yields:
            The head's parameters at the sites to come, (sites, batch, parameters), a row of an image at a time.
        """
        if self.classes is not None and label is None:
            label = torch.full((len(x),), self.classes, device=self.device)
        entries = self.entries(x).split(_AT_ONCE)
        labels = [None] * len(entries) if label is None else label.split(_AT_ONCE)
        hidden = torch.cat([self.hidden(*part).flatten(2) for part in zip(entries, labels, strict=True)])
        width = self.space.shape[-1]
        for row in hidden.split(width, 2):
            # An image of one row, for read-outs look at one pixel alone.
            parameters = self.readout(row.unflatten(2, (*[1] * (len(self.space.shape) - 2), width)))
            yield parameters.flatten(2).unflatten(2, (-1, width)).permute(3, 2, 0, 1).flatten(0, 1)


def raster(space: Space) -> Tensor:
    """The order frame by frame, row by row, a pixel's channels together: (entries,) numbers of entries laid flat."""
    entries = torch.arange(space.dimensions)
    return entries.view(space.shape).movedim(-3, -1).flatten() if isinstance(space, Images | Video) else entries


def entry_head(space: Space) -> Head:
    """Bernoulli for entries of two levels, else a categorical over all of them."""
    return Bernoulli() if space.levels == 2 else Categorical(space.levels or 0)


def pixel_head(space: Space, components: int) -> Head:
    """A mixture of logistics over all colours of a pixel; of one colour a plain one, or Bernoulli for two levels."""
    channels, levels = space.shape[-3], space.levels or 2
    if channels > 1:
        return CoupledLogisticMixture(levels, channels, components)
    return Bernoulli() if levels == 2 else DiscretisedLogisticMixture(levels, components)


def scaled(entries: Tensor, levels: int) -> Tensor:
    """Levels {0, …, levels − 1} as floats on [−1, 1], what a network sees of them."""
    return entries.to(torch.get_default_dtype()) * (2 / (levels - 1)) - 1


def guided(head: Head, conditional: Tensor, unconditional: Tensor, guidance: float, temperature: float) -> Tensor:
    """A draw from p(x|y)^(1 + w) p(x)^(−w), normalised, of heads with parameters (batch, parameters).

    Where the parameters are log-probabilities this is exact. Of other heads it is chosen among draws from p(x|y) with
    weights (p(x|y) / p(x))^w: sampling–importance resampling.
    """
    if isinstance(head, Bernoulli | Categorical):
        return head.sample((1 + guidance) * conditional - guidance * unconditional, temperature)
    each = [head.sample(conditional, temperature) for _ in range(_CANDIDATES)]
    weights = [guidance * (head.log_prob(conditional, x) - head.log_prob(unconditional, x)) for x in each]
    chosen = torch.multinomial(torch.stack(weights, 1).softmax(1), 1)[:, 0]
    return torch.stack(each, 1)[torch.arange(len(chosen), device=chosen.device), chosen]


def check_kernels(**kernels: int) -> None:
    """Raise TacitError unless all are odd, so that they have a middle."""
    for name, value in kernels.items():
        if value < 1 or value % 2 == 0:
            raise TacitError(f"{name} is {value}: give an odd number, so that the kernel has a middle")


@torch.no_grad()
def start_at_marginal(output: nn.Module, model: Autoregressive, data: Dataset) -> None:
    """Set the last layer's biases, (parameters · channels,), to the colours' marginals, and make its weights small."""
    output.weight.mul_(0.1)  # type: ignore[operator, union-attr]
    x = model.entries(data.observations(2000)).to(model.device)
    rows = x.movedim(-3, -1).flatten(0, -2)[:, :, None]  # every pixel a row, its colours the positions
    output.bias.copy_(model.head.marginal(rows).flatten())  # type: ignore[operator, union-attr]
