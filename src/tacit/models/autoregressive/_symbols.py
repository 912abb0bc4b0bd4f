"""What TCN and WaveNet share: texts, recordings and images as one sequence of symbols, seen one step late.

Every entry is a symbol with an embedding of its own; what stands before the first has one too. A site receives the
embedding of the symbol before it. The sites of an image (row after row, a pixel's colours together) are also told
their row, column and colour; texts and recordings have no places, so that they may be drawn at any length.

A recording's entries are the μ-law codes of its samples. The likelihood is that of the samples themselves,
p(x) = Π_t p(c_t | c_<t) / n(c_t), where n(c) samples share the code c: a code is drawn, then one of its samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.distributions import Categorical
from tacit.models.autoregressive._autoregressive import Sequential, entry_head, raster
from tacit.nn.mulaw import CODES, MuLaw
from tacit.spaces import Images, Space, Waveform

# Sites that are computed at once where no gradient needs them kept: a second of sound has thousands.
_AT_ONCE = 2**17


@dataclass
class Seen:
    """The embeddings of all symbols, those of all places, and the site whose turn it is."""

    symbols: Tensor
    places: Tensor | None
    site: int = 0

    def write(self, x: Tensor | None, to: Tensor) -> None:
        """Write the next site's input, (batch, features), of the symbol just drawn; the one after has its turn."""
        to.copy_(self.symbols[-1] if x is None else self.symbols[x.long()])
        if self.places is not None:
            to += self.places[self.site]
        self.site += 1


class Symbols(Sequential):
    """A sequential model of symbols; a model writes `hidden`, `output`, `init_state` and `step`.

    `hidden` gives (batch, features, sites) from `self.inputs(entries)`; `output` takes it to the head's parameters.
    """

    output: nn.Sequential
    places: Tensor

    def __init__(self, space: Space, features: int, classes: int | None, label_dropout: float):
        super().__init__(space, classes, label_dropout)
        self.register_buffer("order", raster(space), persistent=False)
        self.unbounded = not isinstance(space, Images)
        self.mu_law = MuLaw() if isinstance(space, Waveform) else None
        self.head = entry_head(space) if self.mu_law is None else Categorical(CODES)
        self.levels = CODES if self.mu_law is not None else space.levels or 0
        self.symbol = nn.Embedding(self.levels + 1, features)
        self.place = nn.ModuleList()
        if isinstance(space, Images):
            sizes = (space.height, space.width, space.channels)
            self.place.extend(nn.Embedding(size, features) for size in sizes)
            places = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).T
            self.register_buffer("places", places.contiguous(), persistent=False)
        for embedding in (self.symbol, *self.place):
            nn.init.normal_(embedding.weight, std=(1 + len(self.place)) ** -0.5)

    # -- the user's data and the head's entries -----------------------------------------------------------------------

    def entries(self, x: Tensor) -> Tensor:
        """The codes of a recording; other observations are their own entries."""
        return x if self.mu_law is None else self.mu_law.encode(x)

    def observations(self, entries: Tensor) -> Tensor:
        """Entries as the user's data: of a code, one of its samples."""
        return super().observations(entries) if self.mu_law is None else self.mu_law.draw(entries)

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        whole = super()._log_prob
        log_prob = whole(entries, label) if torch.is_grad_enabled() else _in_parts(whole, entries, label)
        if self.mu_law is None:
            return log_prob
        return log_prob - self.mu_law.sizes.log()[entries].sum(1)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of the last layer, averaged over the sites, without a label: (batch, features)."""
        return _in_parts(lambda x, _: super(Symbols, self).embed(x), x, None)

    # -- the ends of the network --------------------------------------------------------------------------------------

    def inputs(self, entries: Tensor) -> Tensor:
        """What each site sees of entries (batch, *shape): (batch, features, sites)."""
        sites = entries.flatten(1)
        if isinstance(self.space, Images):
            sites = sites[:, self.order]
        h = self.symbol(F.pad(sites[:, :-1].long(), (1, 0), value=self.levels))
        places = self._places()
        # Laid out anew: sums take the layout of what they add, and every layer would work across the grain.
        return (h if places is None else h + places).transpose(1, 2).contiguous()

    def _places(self) -> Tensor | None:
        """The embedding of each site's place, (sites, features)."""
        if not self.place:
            return None
        return torch.stack([embedding(i) for embedding, i in zip(self.place, self.places, strict=True)]).sum(0)

    def seen(self) -> Seen:
        """What `inputs` needs, for one site after another."""
        places = self._places()
        return Seen(self.symbol.weight.detach(), None if places is None else places.detach())

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, *entries)."""
        parameters = self.output(hidden)
        if not isinstance(self.space, Images):
            return parameters
        channels, height, width = self.space.shape
        return parameters.unflatten(2, (height, width, channels)).movedim(4, 2)

    def adapt(self, data: Dataset) -> None:
        """Start every output at the marginal of all entries together."""
        super().adapt(data)
        last = cast(nn.Conv1d, self.output[-1])
        entries = self.entries(data.observations(2000).to(self.device))
        with torch.no_grad():
            last.bias.copy_(self.head.marginal(entries.flatten()[:, None])[:, 0])  # type: ignore[union-attr]


def _in_parts(function: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, label: Tensor | None) -> Tensor:
    """`function` of so many rows at a time as memory is sure to hold."""
    rows = max(1, _AT_ONCE // x[0].numel()) if len(x) else 1
    labels = [None] * -(-len(x) // rows) if label is None else label.split(rows)
    return torch.cat([function(part, of_part) for part, of_part in zip(x.split(rows), labels, strict=True)])
