"""Bijections between the user's data and the space in which a network works, with their Jacobians.

One direction is fixed: forward goes from data to noise. `forward_and_log_det` and `inverse_and_log_det` each return
the result and log |det| of that direction, (batch,), in nats, so that log p(x) = log p(z) + log_det for every chain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.nn import noise
from tacit.nn.elementwise import Elementwise
from tacit.spaces import Images, Space


class Bijection(nn.Module):
    """An invertible map of (batch, *shape), which may depend on a context, (batch, features).

    `sequential` names the directions, "forward" and "inverse", that compute one entry after the other.
    """

    sequential: frozenset[str] = frozenset()

    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        """Take from data, (rows, *shape), what the map must know before learning."""

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data -> noise: the result and log |det| of its Jacobian, (batch,)."""
        raise NotImplementedError

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise -> data: the result and log |det| of its Jacobian, (batch,)."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.forward_and_log_det(x, context)[0]

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.inverse_and_log_det(z, context)[0]


class Chain(Bijection):
    """Bijections one after the other, read top to bottom from data to noise."""

    bijections: Sequence[Bijection]

    def __init__(self, *bijections: Bijection):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)  # type: ignore[assignment]
        self.sequential = frozenset().union(*(bijection.sequential for bijection in bijections))

    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        learners = [i for i, bijection in enumerate(self.bijections) if type(bijection).adapt is not Bijection.adapt]
        last = max(learners, default=-1)
        for i, bijection in enumerate(self.bijections):
            bijection.adapt(x, context)
            # What comes after the last that learns from data is not worth computing.
            if i >= last:
                break
            x = bijection(x, context)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x), dtype=torch.float32 if not x.is_floating_point() else x.dtype)
        for bijection in self.bijections:
            x, log_det = bijection.forward_and_log_det(x, context)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for bijection in reversed(self.bijections):
            z, log_det = bijection.inverse_and_log_det(z, context)
            total = total + log_det
        return z, total

    # Without log-determinants, which some bijections pay for.

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for bijection in self.bijections:
            x = bijection(x, context)
        return x

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z, context)
        return z


class Inverse(Bijection):
    """A bijection turned around: what takes data to noise fast then takes noise to data fast."""

    _OTHER = {"forward": "inverse", "inverse": "forward"}  # noqa: RUF012

    def __init__(self, bijection: Bijection):
        super().__init__()
        self.bijection = bijection
        self.sequential = frozenset(self._OTHER[direction] for direction in bijection.sequential)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.inverse_and_log_det(x, context)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.forward_and_log_det(z, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.bijection(z, context)


class Standardise(Bijection):
    """Each feature to mean 0 and standard deviation 1, as `adapt` found them; constant features are only centred."""

    mean: Tensor
    scale: Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        x = x.double()
        deviation = x.std(0, unbiased=False)
        self.mean.copy_(x.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-12, deviation, 1.0))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.mean).div_(self.scale), (-self.scale.log().sum()).expand(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.addcmul(self.mean, z, self.scale), self.scale.log().sum().expand(len(z))


class Rescale(Bijection):
    """A fixed scale and shift of all entries."""

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def _log_det(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), x[0].numel() * math.log(abs(self.scale)))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.scale + self.shift, self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (z - self.shift) / self.scale, -self._log_det(z)


class Dequantise(Bijection):
    """Integers {0, …, levels − 1} to reals in [0, 1) by adding uniform noise: (x + u) / levels.

    A surjection: log P(x) ≥ E_u[log p((x + u) / levels)] − D log levels, so a density behind it is a bound on the
    integers' probability (Theis et al. 2016, arXiv:1511.01844, §3.1). The inverse rounds down and is exact.
    """

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = (x + noise.rand_like(x)) / self.levels
        return z, z.new_full((len(x),), -x[0].numel() * math.log(self.levels))

    def middle(self, x: Tensor) -> Tensor:
        """The middle of each integer's interval: no noise, for codes that are to be the same each time."""
        return (x + 0.5) / self.levels

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (z * self.levels).floor().clamp(0, self.levels - 1)
        return x, z.new_full((len(z),), z[0].numel() * math.log(self.levels))


class DequantiseColumns(Bijection):
    """Uniform noise in [0, 1) on the columns of a table that hold whole numbers, as `adapt` found them.

    What `Dequantise` is for images: a bound on the probability of these columns. The inverse rounds down.
    """

    whole: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("whole", torch.zeros(features, dtype=torch.bool))

    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        self.whole.copy_((x == x.round()).all(0))

    def middle(self, x: Tensor) -> Tensor:
        """Whole numbers at the middles of their unit intervals."""
        return x + 0.5 * self.whole

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x + noise.rand_like(x) * self.whole, x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(self.whole, z.floor(), z), z.new_zeros(len(z))


class VariationalDequantise(Dequantise):
    """Dequantisation by noise from a flow that sees the integers (Ho et al. 2019, arXiv:1902.00275, §3.1).

    log P(x) ≥ E_{u ~ q(u|x)} [log p((x + u) / levels) − log q(u|x)] − D log levels.

    Args:
        levels: of the integers.
        flow: from standard normal noise of shape `shape`, given what `sees` makes of the integers, to (0, 1).
        sees: from the integers, scaled to [−1, 1], to the flow's context.
        shape: of the noise of one observation.
    """

    def __init__(self, levels: int, flow: Bijection, sees: nn.Module, shape: tuple[int, ...]):
        super().__init__(levels)
        self.flow, self.sees, self.shape = flow, sees, shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = self.sees(x * (2 / (self.levels - 1)) - 1)
        start = noise.randn(len(x), *self.shape, device=x.device).to(seen.dtype)
        u, log_det = self.flow.forward_and_log_det(start, seen)
        log_q = -0.5 * (start.square() + math.log(2 * math.pi)).flatten(1).sum(1) - log_det
        return (x + u) / self.levels, -log_q - x[0].numel() * math.log(self.levels)


class Logit(Bijection):
    """[0, 1] to the reals: logit(λ + (1 − 2λ) x) (Dinh et al. 2017, arXiv:1605.08803, §4.1, with α = λ)."""

    def __init__(self, margin: float = 0.05):
        super().__init__()
        self.margin = margin

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = self.margin + (1 - 2 * self.margin) * x
        z = torch.logit(p)
        return z, (F.softplus(z) + F.softplus(-z)).flatten(1).sum(1) + x[0].numel() * math.log1p(-2 * self.margin)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)
        log_det = (F.softplus(z) + F.softplus(-z)).flatten(1).sum(1) + z[0].numel() * math.log1p(-2 * self.margin)
        return x, -log_det


class ActNorm(Bijection):
    """A learnt scale and shift for each feature or channel (axis 1), begun so that the data leave it standardised.

    Glow's stand-in for the batch normalisation of RealNVP (Kingma & Dhariwal 2018, arXiv:1807.03039, §3.1): the
    density of an observation then does not depend on its batch-mates.
    """

    def __init__(self, features: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        x = x.double().transpose(0, 1).flatten(1)
        deviation = x.std(1, unbiased=False)
        log_scale = -torch.where(deviation > 1e-6, deviation, 1.0).log()
        self.log_scale.copy_(log_scale)
        self.shift.copy_(-x.mean(1) * log_scale.exp())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._fitting(x)
        return torch.addcmul(shift, x, log_scale.exp()), self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._fitting(z)
        return (z - shift) * (-log_scale).exp(), -self._log_det(z)

    def _fitting(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.log_scale.view(shape), self.shift.view(shape)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * (x[0].numel() // len(self.log_scale))).expand(len(x))


class InvertibleConv1x1(Bijection):
    """A learnt mixing of the channels at every pixel, W = P L (U + diag(s)) (Kingma & Dhariwal 2018, §3.2).

    It begins as a random rotation. The permutation P and the signs of s are fixed, log |s| is learnt.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(self.log_scale)
        return self.lower.tril(-1) + ones.diag(), self.upper.triu(1) + (self.sign * self.log_scale.exp()).diag()

    def _mixed(self, x: Tensor, matrix: Tensor) -> Tensor:
        return torch.matmul(matrix, x.flatten(2)).view_as(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * (x[0].numel() // x.shape[1])).expand(len(x))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        return self._mixed(x, self.permutation @ lower @ upper), self._log_det(x)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        return self._mixed(z, torch.linalg.solve_triangular(upper, half, upper=True)), -self._log_det(z)


class CheckerboardSplit(Bijection):
    """The black squares of a chessboard to the first half of the channels, the white ones to the second.

    (batch, channels, height, width) -> (batch, 2 · channels, height, width / 2), of an even width.
    """

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pairs = x.unflatten(3, (-1, 2))
        odd = (torch.arange(x.shape[2], device=x.device) % 2 == 1)[:, None]
        black, white = torch.where(odd[..., None], pairs.flip(4), pairs).unbind(4)
        return torch.cat((black, white), 1), x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        pairs = torch.stack(z.chunk(2, 1), 4)
        odd = (torch.arange(z.shape[2], device=z.device) % 2 == 1)[:, None]
        return torch.where(odd[..., None], pairs.flip(4), pairs).flatten(3), z.new_zeros(len(z))


class Free(Bijection):
    """Every entry of a vector mapped by itself, with parameters that are learnt and depend on the context alone.

    Args:
        features: entries.
        entry: the map of each.
        context: features of the context; 0 for none.
    """

    def __init__(self, features: int, entry: Elementwise, context: int = 0):
        super().__init__()
        self.entry = entry
        self.entries = nn.Parameter(0.01 * torch.randn(entry.parameters, features))
        self.context = nn.Linear(context, entry.parameters * features, bias=False) if context else None

    def parameters_of(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(batch, parameters, features)."""
        entries = self.entries.expand(len(x), -1, -1)
        return entries if self.context is None else entries + self.context(context).view_as(entries)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.entry.forward_and_log_det(x, self.parameters_of(x, context))
        return z, log_det.sum(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.entry.inverse_and_log_det(z, self.parameters_of(z, context))
        return x, log_det.sum(1)


class Scale(Bijection):
    """A learnt scale for each feature: S of NICE (Dinh et al. 2015, arXiv:1410.8516, §3.3)."""

    def __init__(self, features: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class Permute(Bijection):
    """A fixed permutation of the features, saved with the weights.

    Args:
        order: (features,), which feature comes where; or the number of features, in a random order then.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor | int):
        super().__init__()
        order = torch.randperm(order) if isinstance(order, int) else order
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.back), z.new_zeros(len(z))


class Coupling(Bijection):
    """Half of the features, or channels (axis 1), go through a map whose parameters depend on the other half.

    z_kept = x_kept,  z_rest = f(x_rest; net(x_kept))  (Dinh et al. 2017, eqs. 4–8, for the affine map).

    The net sees its input clipped to ±10, so that far from the data it stays finite. The input should have unit scale.

    Args:
        net: (batch, kept, …) -> (batch, parameters · rest, …), the first parameters of all features first; with a
            context it is called with that too.
        entry: the map f of each entry.
        sizes: how many features lie in the first and in the second half.
        keep_first: whether the first half is the one that is kept.
    """

    SEEN = 10.0

    def __init__(self, net: nn.Module, entry: Elementwise, sizes: tuple[int, int], *, keep_first: bool):
        super().__init__()
        self.net, self.entry, self.sizes, self.keep_first = net, entry, sizes, keep_first

    def parameters_of(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """(batch, parameters, rest, …), in the precision of `kept` whatever the net computes in."""
        seen = F.hardtanh(kept, -self.SEEN, self.SEEN)  # whose gradient is one pass, clamp's are four
        found = self.net(seen) if context is None else self.net(seen, context)
        return found.to(kept.dtype).unflatten(1, (self.entry.parameters, -1))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = self._halves(x)
        z, log_det = self.entry.forward_and_log_det(rest, self.parameters_of(kept, context))
        return self._join(kept, z), log_det.flatten(1).sum(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = self._halves(z)
        x, log_det = self.entry.inverse_and_log_det(rest, self.parameters_of(kept, context))
        return self._join(kept, x), log_det.flatten(1).sum(1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (first, second) if self.keep_first else (second, first)

    def _join(self, kept: Tensor, rest: Tensor) -> Tensor:
        return torch.cat((kept, rest) if self.keep_first else (rest, kept), 1)


class CheckerboardCoupling(Coupling):
    """The coupling of images that keeps one colour of a chessboard (Dinh et al. 2017, §3.4, eq. 9).

    Args:
        net: (batch, channels, height, width) -> (batch, parameters · channels, height, width).
        entry: the map of each entry.
        size: height and width, odd or even.
        parity: 0 keeps the pixels whose row and column have an even sum, 1 the others.
    """

    mask: Tensor

    def __init__(self, net: nn.Module, entry: Elementwise, size: tuple[int, int], *, parity: int):
        super().__init__(net, entry, (0, 0), keep_first=True)
        rows, columns = torch.arange(size[0]).unsqueeze(1), torch.arange(size[1])
        self.register_buffer("mask", (rows + columns) % 2 == parity, persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._masked(x, self.entry.forward_and_log_det(x, self.parameters_of(x * self.mask, context)))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._masked(z, self.entry.inverse_and_log_det(z, self.parameters_of(z * self.mask, context)))

    def _masked(self, kept: Tensor, mapped: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rest, log_det = mapped
        return torch.where(self.mask, kept, rest), log_det.masked_fill(self.mask, 0).flatten(1).sum(1)


class Squeeze(Bijection):
    """Trades space for channels: each 2 × 2 square of pixels becomes four channels (Dinh et al. 2017, §3.6)."""

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), z.new_zeros(len(z))


class Flatten(Bijection):
    """(batch, *shape) to (batch, features) and back."""

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.unflatten(1, self.shape), z.new_zeros(len(z))


class FactorOut(Bijection):
    """The multi-scale architecture: half of the channels are done, the others go on (Dinh et al. 2017, §3.6, eq. 14).

    (batch, channels, height, width) -> (batch, features): the finished half, flat, followed by what `rest` makes of
    the other one.

    Args:
        shape: (channels, height, width) of what arrives.
        rest: a bijection of (batch, channels − channels // 2, height, width) to (batch, features).
    """

    def __init__(self, shape: tuple[int, int, int], rest: Bijection):
        super().__init__()
        self.done, self.rest = (shape[0] // 2, shape[1], shape[2]), rest

    def adapt(self, x: Tensor, context: Tensor | None = None) -> None:
        self.rest.adapt(x[:, self.done[0] :], context)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.rest.forward_and_log_det(x[:, self.done[0] :], context)
        return torch.cat((x[:, : self.done[0]].flatten(1), z), 1), log_det

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size = math.prod(self.done)
        x, log_det = self.rest.inverse_and_log_det(z[:, size:], context)
        return torch.cat((z[:, :size].unflatten(1, self.done), x), 1), log_det


def to_reals(space: Space, margin: float = 0.05, dequantise: bool = False) -> Chain:
    """The usual way from a space to the reals: images by dequantisation and logit, tables by standardisation.

    Args:
        space: images or vectors.
        margin: of the logit.
        dequantise: whether columns of whole numbers get noise, too.
    """
    if isinstance(space, Images):
        return Chain(Dequantise(space.levels), Logit(margin))
    before = [DequantiseColumns(space.dimensions)] if dequantise else []
    return Chain(*before, Standardise(*space.shape))


def adapt_to(bijection: Bijection, data: Dataset, most: int = 20_000) -> None:
    """Let `bijection` take what it must know from the first `most` observations of `data`."""
    bijection.adapt(data.observations(most))
