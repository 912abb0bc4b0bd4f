"""Autoregressive bijections: every entry goes through a map whose parameters depend on the entries before it.

Data to noise all entries are known and one pass does; noise to data they come one after the other. How that is done
without a pass for each: a masked perceptron's hidden units, sorted by degree, are each computed once, when the last
entry that they see is there; any other network is iterated until nothing changes.

References
----------
- Papamakarios, Pavlakou & Murray (2017), Masked autoregressive flow for density estimation, arXiv:1705.07057
- Germain, Gregor, Murray & Larochelle (2015), MADE, arXiv:1502.03509 (the masks)
- Song, Meng, Liao & Ermon (2021), Accelerating feedforward computation via parallel nonlinear equation solving,
  arXiv:2002.03629 (Jacobi's iteration)
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.nn.bijections import Bijection
from tacit.nn.elementwise import Elementwise
from tacit.nn.masked import degree_mask


class Autoregression(Bijection):
    """z_d = f(x_d; net_d(x_<d)), inverted by Jacobi's iteration, which is exact after as many rounds as entries.

    Args:
        net: (batch, *shape) -> (batch, parameters, *shape), those of an entry from the entries before it; with a
            context it is called with that too.
        entry: the map f of each entry.
        tolerance: the iteration ends when no entry changes by more.
    """

    sequential = frozenset({"inverse"})
    SEEN = 10.0

    def __init__(self, net: nn.Module, entry: Elementwise, tolerance: float = 1e-6):
        super().__init__()
        self.net, self.entry, self.tolerance = net, entry, tolerance

    def parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(batch, parameters, *shape); the net sees its input clipped, so that far from the data it stays finite."""
        seen = F.hardtanh(x, -self.SEEN, self.SEEN)
        return (self.net(seen) if context is None else self.net(seen, context)).to(x.dtype)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.entry.forward_and_log_det(x, self.parameters_of(x, context))
        return z, log_det.flatten(1).sum(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = z
        for _ in range(z[0].numel()):
            before = x
            x, log_det = self.entry.inverse_and_log_det(z, self.parameters_of(x, context))
            if (x - before).abs().max() <= self.tolerance:
                break
        return x, log_det.flatten(1).sum(1)


class MaskedAutoregression(Autoregression):
    """An autoregression of vectors by a masked perceptron, entries in their order.

    Args:
        features: entries.
        entry: the map of each.
        hidden: units of each hidden layer.
        context: features of the context; 0 for none.
    """

    net: MaskedPerceptron

    def __init__(self, features: int, entry: Elementwise, hidden: tuple[int, ...], context: int = 0):
        super().__init__(MaskedPerceptron(features, entry.parameters, hidden, context), entry)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # Entries first: what belongs to one entry, or unit, then lies side by side.
        units, entries, log_dets = self.net.one_by_one(len(z), context), list[Tensor](), list[Tensor]()
        for row in z.T.contiguous().split(1):
            entry, log_det = self.entry.inverse_and_log_det(row, units.parameters()[None])
            units.see(entry.clamp(-self.SEEN, self.SEEN))
            entries.append(entry)
            log_dets.append(log_det)
        return torch.cat(entries).T, torch.cat(log_dets).sum(0)


class MaskedPerceptron(nn.Module):
    """Parameters of each entry from those before it: MADE, its hidden units sorted by degree.

    A unit of degree m sees the first m entries; with a context there are units of degree 0, which see it alone.

    Args:
        features: entries.
        parameters: of each.
        hidden: units of each hidden layer.
        context: features of the context; 0 for none.
    """

    def __init__(self, features: int, parameters: int, hidden: tuple[int, ...], context: int = 0):
        super().__init__()
        self.features = features
        first = 0 if context else 1
        # As many units of each degree; a single entry sees nothing but the context.
        degrees = [first + torch.arange(n) * max(features - first, 1) // n for n in hidden]
        degrees = [torch.arange(1, features + 1), *degrees, torch.arange(1, features + 1)]
        sizes = [*map(len, degrees[:-1]), parameters * features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.context = nn.Linear(context, hidden[0], bias=False) if context else None
        # Of each layer, rows of units and how many inputs they see: the lower half sees few, which halves its product.
        self.rows: list[list[tuple[slice, int]]] = []
        for i, (source, target) in enumerate(itertools.pairwise(degrees)):
            mask = degree_mask(source, target, strict=i == len(hidden)).float()
            self.register_buffer(f"mask_{i}", mask, persistent=False)
            half, reach = len(target) // 2, mask.sum(1).int().cummax(0).values.tolist()
            whole = reach[half - 1] == reach[-1]
            lower = [] if whole else [(slice(0, half), reach[half - 1])]
            self.rows.append([*lower, (slice(0 if whole else half, len(target)), reach[-1])])
        # For each number of known entries, how many units of each hidden layer can be computed.
        known = torch.arange(features)
        self.ready = [(degree[:, None] <= known).sum(0).tolist() for degree in degrees[1:-1]]

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Masked weights and biases of all layers, (parameters or 1, units, inputs) and (parameters or 1, units)."""
        found = []
        for i, layer in enumerate(cast("list[nn.Linear]", list(self.layers))):
            mask = getattr(self, f"mask_{i}")
            found.append((layer.weight.unflatten(0, (-1, len(mask))) * mask, layer.bias.view(-1, len(mask))))
        return found

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, features), (batch, context) -> (batch, parameters, features)."""
        h = self._product(0, x)
        if self.context is not None:
            h = h + self.context(context)[:, None]
        for i in range(1, len(self.layers)):
            h = self._product(i, h[:, 0].relu_())
        return h

    def _product(self, i: int, h: Tensor) -> Tensor:
        """Layer i, (batch, inputs) -> (batch, parameters or 1, units)."""
        layer, mask = cast(nn.Linear, self.layers[i]), getattr(self, f"mask_{i}")
        weight, bias = layer.weight.unflatten(0, (-1, len(mask))), layer.bias.view(-1, len(mask))
        parts = []
        for units, reach in self.rows[i]:
            matrix = (weight[:, units, :reach] * mask[units, :reach]).flatten(0, 1)
            parts.append(F.linear(h[:, :reach], matrix, bias[:, units].flatten()).unflatten(1, (len(weight), -1)))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def one_by_one(self, count: int, context: Tensor | None) -> _Units:
        """The same network, for one entry after the other."""
        return _Units(self, count, context)


class _Units:
    """A masked perceptron whose units are computed once each, when the last entry that they see is there.

    Every layer's first row is of ones, whose weights are the biases; the first layer's context follows.
    """

    def __init__(self, net: MaskedPerceptron, count: int, context: Tensor | None):
        *hidden, last = [torch.cat((bias[..., None], weight), 2) for weight, bias in net.weights()]
        matrices = [matrix[0] for matrix in hidden]
        first = one = last.new_ones(1, count)
        if net.context is not None and context is not None:
            bias, matrix = matrices[0].tensor_split([1], 1)
            matrices[0] = torch.cat((bias, net.context.weight, matrix), 1)
            first = torch.cat((one, context.T))
        # For each number of known entries, the weights of the units that see the last of them.
        self.layers = []
        for matrix, ready in zip(matrices, net.ready, strict=True):
            new = [after - before for before, after in itertools.pairwise([0, *ready])]
            self.layers.append(matrix.split([*new, len(matrix) - ready[-1]]))
        # The weights of an entry's parameters side by side.
        self.last = last.transpose(0, 1).contiguous().unbind()
        rows = [net.features, *(len(matrix) for matrix in matrices)]
        self.values = [_Grown(start, more) for start, more in zip([first, *[one] * len(hidden)], rows, strict=True)]
        self.known = 0

    def parameters(self) -> Tensor:
        """Those of the next entry, (parameters, batch)."""
        for layer, below, above in zip(self.layers, self.values, self.values[1:], strict=False):
            matrix, h = layer[self.known], below.value
            if len(matrix):
                above.append(torch.mm(matrix[:, : len(h)], h, out=above.room(len(matrix))).relu_())
        h = self.values[-1].value
        return self.last[self.known][:, : len(h)] @ h

    def see(self, entry: Tensor) -> None:
        """The next entry, (1, batch)."""
        seen = self.values[0]
        room = seen.room(1)
        seen.append(entry if room is None else room.copy_(entry))
        self.known += 1


class _Grown:
    """Rows that come one after the other, `value` all so far: in one buffer, unless gradients must be kept."""

    def __init__(self, start: Tensor, more: int):
        self.value, self.size = start, len(start)
        self.buffer = torch.cat((start, start.new_empty(more, start.shape[1])))

    def room(self, rows: int) -> Tensor | None:
        """Where the next rows are to be written; None where that would break the gradients."""
        return None if torch.is_grad_enabled() else self.buffer[self.size : self.size + rows]

    def append(self, rows: Tensor) -> None:
        """The next rows, which lie in `room` already if there is one."""
        self.size += len(rows)
        self.value = torch.cat((self.value, rows)) if torch.is_grad_enabled() else self.buffer[: self.size]
