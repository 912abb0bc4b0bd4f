"""LSTMs that walk over an image, a row or a diagonal a step: the recurrence of PixelRNN, and its derivative.

Of a step's pixels all are computed by one product: [o, f, i, g] = K_ss h' + K_is x, c = σ(f) ⊙ c' + σ(i) ⊙ tanh g,
h = σ(o) ⊙ tanh c, where h' and c' come from the step before.

References
----------
- van den Oord, Kalchbrenner & Kavukcuoglu (2016), Pixel recurrent neural networks, arXiv:1601.06759, §3.1 and §3.2
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


class Walk(nn.Module):
    """The order in which a layer's LSTMs visit the pixels; a step's visits lie together, direction after direction.

    A step visits a span of lanes: the columns of one row, or the rows that one diagonal crosses. Lane r is told the
    state of the step before in the lanes r − taps // 2, …, `taps` of them, where it had any. This is the paper's skewed
    image, packed: what skewing adds to a row is left out, and with it half of the work.

    Args:
        height: of the images.
        width: of the images.
        kind: of the LSTMs.
    """

    path: Tensor
    back: Tensor
    lands: Tensor

    def __init__(self, height: int, width: int, kind: Literal["diagonal", "row"]):
        super().__init__()
        pixels = torch.arange(height * width).view(height, width)
        self.width, self.diagonal = width, kind == "diagonal"
        if self.diagonal:
            self.directions, self.taps = 2, 2  # from the row above, and from the row itself, a column back
            self.spans = [(max(0, t - width + 1), min(t, height - 1) + 1) for t in range(height + width - 1)]
            rows, images = [torch.arange(*span) for span in self.spans], (pixels, pixels.flip(1))
            visits = [(image[r, t - r], d * width) for t, r in enumerate(rows) for d, image in enumerate(images)]
        else:
            self.directions, self.taps = 1, 3  # from the row above: the columns to the left, here and to the right
            self.spans, visits = [(0, width)] * height, [(row, 0) for row in pixels]
        path = torch.cat([pixel for pixel, _ in visits])
        down = torch.cat([torch.full_like(pixel, places) for pixel, places in visits])
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("lands", path + down, persistent=False)
        self.register_buffer("back", (path + down * height).argsort(), persistent=False)

    def skew(self, x: Tensor) -> Tensor:
        """(pixels, …) -> (visits, …), every pixel being visited once in each direction."""
        return x.index_select(0, self.path)

    def unskew(self, x: Tensor) -> Tensor:
        """(visits, …) -> (directions, pixels, …)."""
        return x.index_select(0, self.back).unflatten(0, (self.directions, -1))

    def merge(self, x: Tensor) -> Tensor:
        """(visits, …) -> (pixels, …): what comes from the left and, a row further down, what comes from the right."""
        left, *right = self.unskew(x)
        for each in right:
            left[self.width :] += each[: -self.width]
        return left

    def spread(self, x: Tensor) -> Tensor:
        """(pixels, …) -> (visits, …), the transpose of `merge`: what each visit's result is added to, or zero."""
        return torch.cat([x, x.new_zeros(self.width, *x.shape[1:])]).index_select(0, self.lands)

    def steps(self, *visits: Tensor) -> list[tuple[Tensor, ...]]:
        """Tensors of all visits, (visits, batch, …), as views of each step, (directions, lanes · batch, …)."""
        sizes = [self.directions * (end - start) for start, end in self.spans]
        parts = ([part.view(self.directions, -1, x.shape[2]) for part in x.split(sizes)] for x in visits)
        return list(zip(*parts, strict=True))

    def links(self, t: int, batch: int) -> list[tuple[slice, slice]]:
        """For each tap the rows of step t − 1 whose state is told, and the rows of step t that are told it."""
        (start, end), (first, last) = self.spans[t], self.spans[t - 1]
        found = []
        for offset in (tap - self.taps // 2 for tap in range(self.taps)):
            a, b = max(start, first - offset), min(end, last - offset)
            source, target = (slice(batch * (a - i), batch * (b - i)) for i in (first - offset, start))
            found.append((source, target))
        return found


class Scan(torch.autograd.Function):
    """The LSTMs along a walk: (pixels, batch, inputs) -> (pixels, batch, h), in full precision.

    A step is one product over all its visits, K_ss and K_is side by side, and so is its derivative; what lies between
    is done in place, where autograd would keep every intermediate result.

    `weight` is (directions, taps · h + inputs, 4h), `bias` (directions, 1, 4h), the gates in the order o, f, i, g.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, walk: Walk) -> Tensor:
        features, batch = weight.shape[2] // 4, x.shape[1]
        told, visits = walk.taps * features, (len(walk.path), batch)
        seen = x.new_empty(*visits, weight.shape[1])
        seen[..., :told], seen[..., told:] = 0, walk.skew(x)
        gates, squashed = x.new_empty(*visits, 4 * features), x.new_empty(*visits, features)
        before, found = x.new_zeros(*visits, features), x.new_empty(*visits, features)
        steps = walk.steps(seen, gates, before, squashed, found)
        c_last = h_last = x
        for t, (inputs, gate, c_before, c, h) in enumerate(steps):
            if t > 0:
                links = walk.links(t, batch)
                for tap, (source, target) in enumerate(links):
                    inputs[:, target, tap * features : (tap + 1) * features] = h_last[:, source]
                source, target = links[walk.taps // 2]
                c_before[:, target] = c_last[:, source]
            torch.baddbmm(bias, inputs, weight, out=gate)
            gate[..., : 3 * features].sigmoid_()
            o, f, i, g = gate.split(features, -1)
            tanh_(g)
            torch.mul(f, c_before, out=c).addcmul_(i, g)
            c_last, h_last = c.clone(), h
            torch.mul(o, tanh_(c), out=h)
        ctx.save_for_backward(seen, gates, before, squashed, weight)
        ctx.walk = walk
        return walk.merge(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        seen, gates, before, squashed, weight = ctx.saved_tensors
        walk, features, batch = ctx.walk, weight.shape[2] // 4, seen.shape[1]
        d_found, d_seen = walk.spread(d_out), torch.empty_like(seen)
        d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight), 1, 4 * features)
        steps = walk.steps(seen, gates, before, squashed, d_found, d_seen)
        d_c_later = d_inputs_later = d_out
        for t in reversed(range(len(steps))):
            inputs, gate, c_before, c, d_h, d_inputs = steps[t]
            o, f, i, g = gate.split(features, -1)
            links = walk.links(t + 1, batch) if t + 1 < len(steps) else []
            for tap, (source, target) in enumerate(links):
                d_h[:, source] += d_inputs_later[:, target, tap * features : (tap + 1) * features]
            d_c = aten.tanh_backward(d_h * o, c)
            if links:
                source, target = links[walk.taps // 2]
                d_c[:, source] += d_c_later[:, target]
            d_sigmoids = torch.cat([d_h * c, d_c * c_before, d_c * g], -1)
            d_sigmoids = aten.sigmoid_backward(d_sigmoids, gate[..., : 3 * features])
            d_gate = torch.cat([d_sigmoids, aten.tanh_backward(d_c * i, g)], -1)
            d_weight.baddbmm_(inputs.transpose(1, 2), d_gate)
            d_bias += d_gate.sum(1, keepdim=True)
            torch.bmm(d_gate, weight.transpose(1, 2), out=d_inputs)
            d_c_later, d_inputs_later = d_c.mul_(f), d_inputs
        return walk.unskew(d_seen[..., walk.taps * features :]).sum(0), d_weight, d_bias, None


def tanh_(x: Tensor) -> Tensor:
    """Tanh in place, as 2σ(2x) − 1: torch's own takes twice as long on a CPU."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)
