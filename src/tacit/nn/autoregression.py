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
from tacit.nn.masked import MaskedLinear, degree_mask


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
        seen = x.clamp(-self.SEEN, self.SEEN)
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
        units = self.net.one_by_one(len(z), context)
        seen, entries, log_dets = _Grown(z.T), list[Tensor](), list[Tensor]()
        for row in z.T.contiguous().split(1):
            entry, log_det = self.entry.inverse_and_log_det(row, units(seen.value)[None])
            seen.append(entry.clamp(-self.SEEN, self.SEEN))
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
        degrees = [torch.arange(1, features + 1), *degrees, torch.arange(1, features + 1).repeat(parameters)]
        sizes = [len(degree) for degree in degrees]
        self.layers = nn.ModuleList(MaskedLinear(a, b) for a, b in itertools.pairwise(sizes))
        self.context = nn.Linear(context, hidden[0], bias=False) if context else None
        for i, (source, target) in enumerate(itertools.pairwise(degrees)):
            mask = degree_mask(source, target, strict=i == len(hidden))
            self.register_buffer(f"mask_{i}", mask, persistent=False)
        # For each number of known entries, how many units of each hidden layer can be computed.
        known = torch.arange(features)
        self.ready = [(degree[:, None] <= known).sum(0).tolist() for degree in degrees[1:-1]]

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """Masked weights and biases of all layers."""
        layers = cast("list[MaskedLinear]", list(self.layers))
        return [(layer.weight * getattr(self, f"mask_{i}"), layer.bias) for i, layer in enumerate(layers)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(batch, features), (batch, context) -> (batch, parameters, features)."""
        *hidden, (weight, bias) = self.weights()
        h = x
        for i, (matrix, offset) in enumerate(hidden):
            h = F.linear(h, matrix, offset)
            if i == 0 and self.context is not None:
                h = h + self.context(context)
            h = F.relu(h)
        return F.linear(h, weight, bias).unflatten(1, (-1, self.features))

    def one_by_one(self, count: int, context: Tensor | None) -> _Units:
        """The same network for one entry after the other."""
        return _Units(self, count, context)


class _Units:
    """A masked perceptron whose units are computed once each: called with the entries known so far, one more a time."""

    def __init__(self, net: MaskedPerceptron, count: int, context: Tensor | None):
        *hidden, (weight, bias) = net.weights()
        biases = [offset[:, None] for _, offset in hidden]
        if net.context is not None:
            biases[0] = biases[0] + net.context(context).T
        # For each number of known entries, the weights and biases of the units that see the last of them.
        self.layers = []
        for (matrix, _), offset, ready in zip(hidden, biases, net.ready, strict=True):
            new = [after - before for before, after in itertools.pairwise([0, *ready])]
            rest = len(matrix) - ready[-1]
            self.layers.append(list(zip(offset.split([*new, rest]), matrix.split([*new, rest]), strict=True)))
        # The parameters of an entry side by side.
        weights = weight.unflatten(0, (-1, net.features)).transpose(0, 1).contiguous()
        self.last = list(zip(bias.unflatten(0, (-1, net.features)).T[:, :, None], weights, strict=True))
        self.hidden = [_Grown(matrix.new_empty(len(matrix), count)) for matrix, _ in hidden]

    def __call__(self, x: Tensor) -> Tensor:
        """(entries known, batch) -> the parameters of the next entry, (parameters, batch)."""
        known, h = len(x), x
        for layer, hidden in zip(self.layers, self.hidden, strict=True):
            bias, matrix = layer[known]
            if len(matrix):
                hidden.append(torch.addmm(bias, matrix[:, : len(h)], h).relu())
            h = hidden.value
        bias, matrix = self.last[known]
        return torch.addmm(bias, matrix[:, : len(h)], h)


class _Grown:
    """Rows that come one after the other, `value` all so far: in one buffer, unless gradients must be kept."""

    def __init__(self, like: Tensor):
        self.buffer, self.size = torch.empty_like(like), 0
        self.value = self.buffer[:0]

    def append(self, rows: Tensor) -> None:
        start, self.size = self.size, self.size + len(rows)
        if torch.is_grad_enabled():
            self.value = torch.cat((self.value, rows))
        else:
            self.buffer[start : self.size] = rows
            self.value = self.buffer[: self.size]
