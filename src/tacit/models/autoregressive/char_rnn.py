"""Char-RNN: a recurrent network that reads a text character by character and says which comes next.

p(x) = ∏_t p(x_t | h_t), where h_t, the state of an LSTM or GRU, has read x_1 … x_{t−1}. A text is learnt in parallel
lanes: row b of one batch goes on where row b of the last ended, with the state carried over, while gradients stop at
the window's start (truncated back-propagation through time). In a share `restart` of the rows the state is forgotten,
so that the model also learns how to begin.

Images are read entry by entry, and the network is told the coordinates of the entry it is to draw.

References
----------
- Graves (2013), Generating sequences with recurrent neural networks, arXiv:1308.0850
- Karpathy (2015), The unreasonable effectiveness of recurrent neural networks (char-rnn)
- Williams & Peng (1990), An efficient gradient-based algorithm for on-line training of recurrent network trajectories
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.autoregressive._autoregressive import Sequential, entry_head, raster
from tacit.nn import noise
from tacit.spaces import Images, Space, Tokens


class CharRNN(Sequential):
    """Character-level recurrent network.

    Args:
        cell: "lstm" or "gru".
        features: units of each layer.
        layers: of the recurrent network, one upon the other.
        embedding: features of a character or pixel value.
        dropout: between the layers and before the read-out, while learning.
        restart: share of a text's rows that begin anew instead of going on from the window before.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, a share is outside [0, 1), or `cell` is neither of the two.
    """

    spaces = (Tokens, Images)
    recipe = Recipe(batch_size=64, learning_rate=2e-3, schedule="cosine", clip=1.0)
    appetite = 5.0

    carried: Tensor
    last: Tensor
    places: Tensor

    def __init__(
        self,
        space: Space,
        *,
        cell: Literal["lstm", "gru"] = "lstm",
        features: int = 256,
        layers: int = 2,
        embedding: int = 64,
        dropout: float = 0.1,
        restart: float = 0.1,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers, embedding=embedding)
        for name, share in {"dropout": dropout, "restart": restart}.items():
            if not 0 <= share < 1:
                raise TacitError(f"{name} is {share}: give a share in [0, 1)")
        if cell not in ("lstm", "gru"):
            raise TacitError(f"cell is {cell!r}: give 'lstm' or 'gru'")
        self.head = entry_head(space)
        self.register_buffer("order", raster(space), persistent=False)
        self.register_buffer("places", _coordinates(space), persistent=False)
        self.unbounded = isinstance(space, Tokens)
        self.dropout, self.restart, self.is_lstm = dropout, restart, cell == "lstm"
        # The last value stands before the first entry.
        self.value = nn.Embedding((space.levels or 0) + 1, embedding)
        self.label = self.label_embedding(embedding)
        inputs = [embedding + self.places.shape[1]] + [features] * (layers - 1)
        self.cells = nn.ModuleList(Layer(size, features, self.is_lstm) for size in inputs)
        self.output = nn.Linear(features, self.head.parameters)
        # Of each layer h, and c where it has one, after the last window of every lane; and its last character.
        self.register_buffer("carried", torch.zeros(layers, 1 + self.is_lstm, 0, features))
        self.register_buffer("last", torch.zeros(0, dtype=torch.long))

    # -- the network --------------------------------------------------------------------------------------------------

    def _read(self, seen: Tensor, label: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (batch, sites, features) after reading `seen`, values (batch, sites), and the state at its end."""
        h = self.value(seen)
        if self.label is not None:
            h = h + self.label(label)[:, None]
        h = torch.cat([h, self.places.expand(len(h), -1, -1)], 2) if len(self.places) else h
        after = []
        if state is None:
            state = self.carried.new_zeros(*self.carried.shape[:2], len(h), self.carried.shape[3])
        for cell, before in zip(self.cells, state, strict=True):
            h, end = cell(h, before)
            after.append(end)
            if self.training and self.dropout:
                h = h * (noise.rand(*h.shape, device=h.device) >= self.dropout) / (1 - self.dropout)
        return h, torch.stack(after)

    def _begin(self, sites: Tensor) -> Tensor:
        """Sites (batch, sites) as the network reads them: one later, after the value that begins."""
        return F.pad(sites[:, :-1].long(), (1, 0), value=self.value.num_embeddings - 1)

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Features of the last layer at every entry, (batch, features, *shape)."""
        h, _ = self._read(self._begin(entries.flatten(1)[:, self.order]), label, None)
        return h[:, self.order.argsort()].transpose(1, 2).unflatten(2, entries.shape[1:])

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, *shape)."""
        return self.output(hidden.movedim(1, -1)).movedim(-1, 1)

    # -- learning -----------------------------------------------------------------------------------------------------

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Of a text the windows of `size` lanes, side by side from a random start; of images shuffled mini-batches."""
        if not isinstance(self.space, Tokens):
            return super().batches(data, size, generator)
        length = self.space.length
        lanes = min(size, max(1, len(data.x) // length))
        lane = len(data.x) // lanes
        start = torch.randint(min(length, lane - length + 1), (), generator=generator)
        windows = torch.arange((lane - int(start)) // length) * length
        begins = torch.arange(lanes) * lane + start
        return iter(begins + window for window in windows)

    def before_epoch(self, data: Dataset) -> None:
        """Every lane begins anew."""
        self.carried, self.last = self.carried[:, :, :0], self.last[:0]

    def loss(self, batch: Batch) -> Losses:
        """−log p(x_t | everything read), summed over a window; of a text that goes on from the window before."""
        if not (self.training and isinstance(self.space, Tokens)):
            return super().loss(batch)
        x = self.space.check(batch.x)
        seen, state = self._begin(x), None
        if self.carried.shape[2] == len(x):
            keeps = noise.rand(len(x), device=x.device) >= self.restart
            seen[:, 0] = torch.where(keeps, self.last, seen[:, 0])
            state = self.carried * keeps[:, None]
        h, after = self._read(seen, self.learned_label(batch), state)
        self.carried, self.last = after.detach().float(), x[:, -1]
        log_prob = self.head.log_prob(self.output(h).float().flatten(0, 1), x.flatten())
        return Losses(nll=-log_prob.view(len(x), -1).sum(1).mean())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # There are as many lanes as rows in a batch, which the constructor does not know.
        for name in ("carried", "last"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.carried.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    # -- one character after another ----------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        begin = torch.full((count,), self.value.num_embeddings - 1, device=self.device)
        state = self.carried.new_zeros(len(self.cells), 1 + self.is_lstm, count, self.carried.shape[3])
        return State(begin, [list(layer) for layer in state], None if self.label is None else self.label(label))

    def step(self, state: State, x: Tensor | None) -> tuple[Tensor, State]:
        """The next entry's parameters, (batch, parameters)."""
        h = self.value(state.begin if x is None else x.long())
        if state.label is not None:
            h = h + state.label
        if len(self.places):
            h = torch.cat([h, self.places[state.site].expand(len(h), -1)], 1)
        for cell, layer in zip(cast("list[Layer]", self.cells), state.layers, strict=True):
            layer[:] = cell.step(h, layer)
            h = layer[0]
        state.site += 1
        return self.output(h), state

    @torch.no_grad()
    def stream_log_prob(self, stream: Tensor, window: int = 4096) -> Tensor:
        """Log-probability of every character of one text, (characters,), each given all of the text before it."""
        state, before, found = None, self.value.num_embeddings - 1, []
        for part in stream.long().split(window):
            h, state = self._read(F.pad(part[:-1], (1, 0), value=before)[None], None, state)
            found.append(self.head.log_prob(self.output(h)[0], part))
            before = int(part[-1])
        return torch.cat(found)


class Layer(nn.Module):
    """An LSTM or GRU, by torch's kernels: `nn.LSTM` itself breaks a compiler's graph.

    States are (1 or 2, batch, features): h, and c of an LSTM.
    """

    def __init__(self, inputs: int, features: int, is_lstm: bool):
        super().__init__()
        self.is_lstm, gates, bound = is_lstm, (4 if is_lstm else 3) * features, features**-0.5
        shapes = ((gates, inputs), (gates, features), (gates,), (gates,))
        self.weights = nn.ParameterList(torch.empty(shape).uniform_(-bound, bound) for shape in shapes)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Features of all sites, (batch, sites, features), of inputs (batch, sites, …), and the state at the end."""
        # In full precision: many processors have no recurrent kernels of half of it.
        with torch.autocast(x.device.type, enabled=False):
            x, before, weights = x.float(), before.float(), list(self.weights)
            if not self.is_lstm:
                return torch.gru(x, before, weights, True, 1, 0.0, False, False, True)
            out, h, c = torch.lstm(x, [part[None] for part in before], weights, True, 1, 0.0, False, False, True)
            return out, torch.cat([h, c])

    def step(self, x: Tensor, before: list[Tensor]) -> list[Tensor]:
        """The state after one more input, (batch, …)."""
        if self.is_lstm:
            return list(torch.lstm_cell(x, before, *self.weights))
        return [torch.gru_cell(x, before[0], *self.weights)]


@dataclass
class State:
    """What stands before the first entry, each layer's h (and c), the label's embedding, and the entries drawn."""

    begin: Tensor
    layers: list[list[Tensor]]
    label: Tensor | None
    site: int = 0


def _coordinates(space: Space) -> Tensor:
    """Channel, row and column of each entry in raster order on [−1, 1], (entries, 3); nothing of a text, (0, 0)."""
    if not isinstance(space, Images):
        return torch.zeros(0, 0)
    axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in space.shape]
    return torch.cartesian_prod(*axes)[raster(space)]
