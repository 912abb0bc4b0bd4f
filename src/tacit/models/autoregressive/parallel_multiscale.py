"""Parallel multiscale PixelCNN: a small image pixel by pixel, then whole groups of pixels at once.

Take every 2^S-th pixel in both directions, the base x⁰, and draw it by a Gated PixelCNN. Then double the resolution S
times: of every block of 2 × 2 pixels the upper left is there, and the upper right, lower left and lower right ones are
three groups, drawn one after the other. Pixels of one group do not look at one another, so that

    p(x) = p(x⁰) ∏_g ∏_{i ∈ g} p(x_i | all groups before g),

which is exact, and N pixels take 3 log₄ N passes beside the small base. A pixel's colours are not independent: each
sees those before it, p(x_i | ·) = ∏_c p(x_ic | x_i,<c, ·), through masked 1 × 1 layers at a network's end, so that one
pass over the groups before serves all colours.

A group's network is a residual network on the grid of blocks, whose channels are the pixels of a block that are known.
Of its own scale it sees `layers` + 1 blocks to each side; coarser pixels are upper left ones of finer scales.

References
----------
- Reed, van den Oord, Kalchbrenner, Gómez Colmenarejo, Wang, Belov & de Freitas (2017), Parallel multiscale
  autoregressive density estimation, arXiv:1703.03664, §3 (groups, and their residual networks)
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328 (the base)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import (
    Autoregressive,
    entry_head,
    guided,
    scaled,
    start_at_marginal,
)
from tacit.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from tacit.nn.masked import MaskedConv2d, channel_groups
from tacit.spaces import Images

# Which pixels of (batch, channels, height, width): an index.
Site = tuple[slice, slice, slice, slice]

# Rows and columns of a block's pixels: upper left, upper right, lower left and lower right, in the order of drawing.
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))

# The base's sides are below this, unless `scales` says otherwise.
_SMALL = 8


class ParallelMultiscale(Autoregressive):
    """Parallel multiscale PixelCNN.

    Args:
        scales: how often the resolution doubles from the base; by default the base's sides are below 8.
        features: feature maps of the base's stacks and of the groups' networks.
        layers: gated layers of the base, and residual blocks of each group's network.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or the image cannot be halved `scales` times.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=32, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    groups: Sequence[Group]

    def __init__(
        self,
        space: Images,
        *,
        scales: int | None = None,
        features: int = 32,
        layers: int = 5,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, features=features, layers=layers)
        side = max(space.height, space.width)
        most = (side - 1).bit_length()
        if scales is None:
            scales = next(s for s in itertools.count() if -(-side // 2**s) < _SMALL)
        if not 0 <= scales <= most:
            raise TacitError(
                f"scales is {scales}, but images of {space.height} × {space.width} can be halved {most} times: give a "
                f"number from 0 to {most}"
            )
        self.head = entry_head(space)
        step = 2**scales
        self.coarse = site(0, 0, step)
        small = Images(space.channels, -(-space.height // step), -(-space.width // step), space.levels)
        self.base = GatedPixelCNN(small, features=features, layers=layers, classes=classes, label_dropout=label_dropout)
        self.groups = nn.ModuleList(  # type: ignore[assignment]
            Group(
                space.channels,
                self.head.parameters,
                [site(row * apart, column * apart, 2 * apart) for row, column in _CORNERS[: corner + 1]],
                features,
                [self.label_embedding(features) for _ in range(layers)],
            )
            for apart in (2**s for s in reversed(range(scales)))
            for corner, (row, column) in enumerate(_CORNERS)
            # An image one pixel wide has nothing to the right.
            if corner and row * apart < space.height and column * apart < space.width
        )

    # -- the factors --------------------------------------------------------------------------------------------------

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """What a pixel's own network makes of it, (batch, features, height, width), some features for each colour."""
        x = scaled(entries, self.space.levels or 2)
        base = self.base.hidden(entries[self.coarse], label)
        h = base.new_empty(len(x), base.shape[1], *x.shape[2:])
        h[self.coarse] = base
        for group in self.groups:
            h[group.site] = group.coloured(group(x, label), x[group.site]).to(h.dtype)
        return h

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, channels, height, width)."""
        base = self.base.readout(hidden[self.coarse])
        parameters = base.new_empty(*base.shape[:3], *hidden.shape[2:])
        parameters.flatten(1, 2)[self.coarse] = base.flatten(1, 2)
        for group in self.groups:
            parameters.flatten(1, 2)[group.site] = group.readout(hidden[group.site]).flatten(1, 2)
        return parameters

    def adapt(self, data: Dataset) -> None:
        """Start every output at its colour's own marginal."""
        super().adapt(data)
        for output in (self.base.outputs[-1], *(group.output for group in self.groups)):
            start_at_marginal(output, self, data)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Features of the base's and of each group's last layer, averaged over its pixels, without a label.

        Returns:
            (batch, (1 + groups) · features).
        """
        label = None if self.classes is None else torch.full((len(x),), self.classes, device=x.device)
        h = self.hidden(self.space.check_values(x), label).float()
        sites = [self.coarse, *(group.site for group in self.groups)]
        return torch.cat([h[pixels].mean((2, 3)) for pixels in sites], 1)

    # -- group after group --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0, guidance: float = 0.0
    ) -> Tensor:
        """Draws, (count, *shape): the base from caches, then one pass for each group.

        Args:
            count: how many.
            label: their class, or one for each; of a model with classes drawn from their shares if None.
            temperature: of each conditional.
            guidance: w of p(x_d | y)^(1 + w) p(x_d)^(−w), which makes draws more typical of their class.

        Raises:
            TacitError: `temperature` is not above zero, `label` is not a class, or guidance has no class to go by.
        """
        labels = self.drawn_labels(label, count)
        self._check_draw(temperature, guidance)
        x = torch.zeros(count, *self.space.shape, device=self.device)
        x[self.coarse] = self.base.sample(count, label=labels, temperature=temperature, guidance=guidance).to(x.dtype)
        known = torch.zeros(self.space.shape, dtype=torch.bool, device=x.device)
        return self._drawn(x, known, labels, temperature, guidance)

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
        """Draw what is unknown of `x`, (batch, *shape), from p(unknown | known): every second pixel known, it doubles.

        Args:
            x: what is known, and anything elsewhere.
            known: (*shape) bool, True where `x` is given: whole groups in the order of drawing and any pixels of the
                next one; or, of the base, rows from the top. Of a pixel the earlier colours come first.
            label: as in `sample`; if None drawn from p(y | known).
            temperature: of each conditional.
            guidance: as in `sample`.

        Raises:
            TacitError: the mask is of another shape, or an unknown entry comes before a known one.
        """
        self._check_draw(temperature, guidance)
        self.space.check_known(known)
        known = known.to(x.device)
        self._check_order(known)
        x = self.space.check_values(torch.where(known, x, 0))
        labels = self._labels_given(x, known) if label is None else self._labels(label, len(x))
        coarse = self.base.complete(
            x[self.coarse], known[self.coarse[1:]], label=labels, temperature=temperature, guidance=guidance
        )
        x = x.float()
        x[self.coarse] = coarse.to(x.dtype)
        return self._drawn(x, known, labels, temperature, guidance)

    def _check_order(self, known: Tensor) -> None:
        """Raise TacitError unless what is known, (*shape), comes first."""
        turn = torch.empty(self.space.shape, dtype=torch.long, device=known.device)
        base = turn[self.coarse[1:]]
        pixels = base[0].numel()
        base.copy_(torch.arange(pixels).view(base.shape[1:]))
        for number, group in enumerate(self.groups):
            turn[group.site[1:]] = pixels + number
        colours = (known[1:] & ~known[:-1]).any()  # a later one of a pixel, but not the earlier
        if colours or (known.any() and not known.all() and turn[known].max() > turn[~known].min()):
            raise TacitError(
                f"known leaves out entries that come before known ones, and the model draws one pixel in every "
                f"{self.coarse[2].step} rows and columns, from the top, and then at each doubling those to the right, "
                f"below, and between them: let the known part come first, or take a model of any order (made, or gpt "
                f"with --order any)"
            )

    def _drawn(self, x: Tensor, known: Tensor, label: Tensor | None, temperature: float, guidance: float) -> Tensor:
        """Observations, of `x`, (count, *shape), with a base and what is `known`, (*shape), drawn group by group."""
        levels = self.space.levels or 2
        if guidance and label is not None:
            label = torch.cat([label, torch.full_like(label, self.classes or 0)])
        for group in self.groups:
            seen = scaled(x, levels)
            h = group(torch.cat([seen, seen]) if guidance else seen, label)
            pixels, given = x[group.site], known[group.site[1:]]
            for c in range(self.space.shape[0]):
                own = scaled(pixels, levels)
                coloured = group.coloured(h, torch.cat([own, own]) if guidance else own)
                parameters = group.readout(coloured)[:, :, c].float()
                if guidance:
                    conditional, unconditional = parameters.chunk(2)
                    drawn = guided(self.head, conditional, unconditional, guidance, temperature)
                else:
                    drawn = self.head.sample(parameters, temperature)
                pixels[:, c] = torch.where(given[c], pixels[:, c], drawn.to(x.dtype))
        return self.observations(x)


class Group(nn.Module):
    """The network of one group: a residual network on the grid of blocks, then each pixel's own colours.

    Args:
        channels: of the image.
        parameters: of the head.
        sites: of the groups before it that share its blocks, and last its own.
        features: feature maps.
        labels: an embedding for each block of layers, or None.
    """

    def __init__(
        self, channels: int, parameters: int, sites: list[Site], features: int, labels: list[nn.Embedding | None]
    ):
        super().__init__()
        *self.known, self.site = sites
        self.per_entry = parameters
        self.input = nn.Conv2d(len(self.known) * channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(Block(features, label) for label in labels)
        colours, maps = torch.arange(channels), channel_groups(features, channels)
        before = torch.cat([torch.full((features,), -1), colours])  # every colour sees what the earlier groups give
        self.own = MaskedConv2d(before, maps, strict=True)
        self.output = MaskedConv2d(maps, colours.repeat(parameters))

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """What the groups before, in images (batch, channels, h, w) on [−1, 1], give: (batch, features, *group)."""
        corner, *others = (x[pixels] for pixels in self.known)
        rows, columns = corner.shape[2:]
        # Where height or width is odd, the last blocks lack pixels.
        seen = [F.pad(o, (0, columns - o.shape[3], 0, rows - o.shape[2])) for o in others]
        h = self.input(torch.cat([corner, *seen], 1))
        for block in self.blocks:
            h = block(h, label)
        height, width = x[self.site].shape[2:]
        return F.relu(h[:, :, :height, :width])

    def coloured(self, h: Tensor, pixels: Tensor) -> Tensor:
        """With each pixel's earlier colours, of `pixels`, (batch, channels, *group): (batch, features, *group)."""
        return self.own(torch.cat([h, pixels], 1))

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, channels, *group)."""
        return self.output(F.relu(hidden)).unflatten(1, (self.per_entry, -1))


class Block(nn.Module):
    """h ← h + W relu(K relu(h) + u_y), with K of 3 × 3."""

    def __init__(self, features: int, label: nn.Embedding | None):
        super().__init__()
        self.across = nn.Conv2d(features, features, 3, padding=1)
        self.mix = nn.Conv2d(features, features, 1)
        self.label = label

    def forward(self, h: Tensor, label: Tensor | None) -> Tensor:
        """(batch, features, height, width) -> the same."""
        inside = self.across(F.relu(h))
        if self.label is not None:
            inside = inside + self.label(label)[:, :, None, None]
        return h + self.mix(F.relu(inside))


def site(row: int, column: int, every: int) -> Site:
    """The pixels `every` so many rows and columns, from these on."""
    return slice(None), slice(None), slice(row, None, every), slice(column, None, every)
