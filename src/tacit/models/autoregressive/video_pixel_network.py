"""Video pixel network: each frame drawn pixel by pixel, given a memory of the frames before it.

p(x) = ∏_t ∏_i p(x_{t,i} | x_{<t}, x_{t,<i}): nothing is taken for independent of anything. Every frame goes through an
encoder that keeps its resolution, residual multiplicative blocks of 2c maps around two multiplicative units of c maps,

    MU(h) = g1 ⊙ tanh(g2 ⊙ h + g3 ⊙ u),    g1, g2, g3 = σ(W1 * h), σ(W2 * h), σ(W3 * h),    u = tanh(W4 * h);

a convolutional LSTM remembers the encoded frames, and its state after frame t − 1 is the context, a map as large as the
frame, given to every layer of a decoder that draws frame t as PixelCNN does. Here the decoder's layers are those of
GatedPixelCNN, without a blind spot, where the paper has masked multiplicative blocks.

References
----------
- Kalchbrenner et al. (2017), Video pixel networks, arXiv:1610.00527, §3 and §4
- Shi et al. (2015), Convolutional LSTM network, arXiv:1506.04214 (the memory; here without peepholes)
- van den Oord et al. (2016), Conditional image generation with PixelCNN decoders, arXiv:1606.05328, §2.3 (the decoder)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import (
    Pixelwise,
    check_kernels,
    entry_head,
    raster,
    scaled,
    start_at_marginal,
)
from tacit.models.autoregressive.gated_pixelcnn import State as FrameState
from tacit.nn.gated import GatedLayer, LayerState
from tacit.nn.masked import ConvCache, MaskedConv2d, channel_groups
from tacit.spaces import Video

Memory = tuple[Tensor, Tensor]


class VideoPixelNetwork(Pixelwise):
    """Video pixel network.

    Args:
        context: whether a frame is given those before it; without, frames are independent, the floor to beat.
        encoder_features: c of the encoder's blocks, and the maps of the context.
        dilations: of the convolutions of the encoder's blocks, one number a block.
        features: feature maps of each stack of the decoder.
        layers: gated layers of the decoder, the first included.
        first: side of the first layer's kernel, which is odd.
        kernel: side of the others', odd too.
        readout_features: feature maps of the two 1 × 1 layers that end it.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or a kernel's side is even.
    """

    spaces = (Video,)
    recipe = Recipe(batch_size=16, learning_rate=2e-3, schedule="cosine", warmup=50, clip=1.0, ema=0.99)
    appetite = 5.0

    def __init__(
        self,
        space: Video,
        *,
        context: bool = True,
        encoder_features: int = 16,
        dilations: tuple[int, ...] = (1, 2, 1, 2),
        features: int = 24,
        layers: int = 4,
        first: int = 7,
        kernel: int = 3,
        readout_features: int = 48,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(
            1,
            encoder_features=encoder_features,
            dilations=min(dilations, default=0),
            features=features,
            layers=layers,
            readout_features=readout_features,
        )
        check_kernels(first=first, kernel=kernel)
        self.head = entry_head(space)
        self.register_buffer("order", raster(space), persistent=False)
        # A single frame has none before it.
        self.encoder = Encoder(space.channels, encoder_features, dilations) if context and space.frames > 1 else None
        colours = torch.arange(space.channels)
        maps, wide = (channel_groups(n, space.channels) for n in (features, readout_features))
        self.layers = nn.ModuleList(
            GatedLayer(
                maps if i else colours,
                maps,
                (kernel if i else first) // 2,
                i == 0,
                self.label_embedding(4 * features),
                encoder_features if self.encoder else None,
            )
            for i in range(layers)
        )
        self.outputs = nn.ModuleList(
            [MaskedConv2d(maps, wide), MaskedConv2d(wide, colours.repeat(self.head.parameters))]
        )

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The decoder's horizontal stack after its last layer, (batch, features, frames, height, width)."""
        x = scaled(entries, self.space.levels or 2)
        context = None if self.encoder is None else self.encoder.contexts(x).flatten(0, 1)
        # The decoder takes frames for pictures: whatever they share with others of their clip is in the context.
        label = None if label is None else label.repeat_interleave(x.shape[1])
        h = x.flatten(0, 1)
        v = F.pad(h, (0, 0, 1, -1))  # a row down: v sees the rows above
        for layer in self.layers:
            v, h = layer(v, h, label, context)
        return h.unflatten(0, x.shape[:2]).transpose(1, 2)

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, frames, channels, height, width)."""
        h = hidden.transpose(1, 2).flatten(0, 1)
        for layer in self.outputs:
            h = layer(F.relu(h))
        return h.unflatten(1, (self.head.parameters, -1)).unflatten(0, (len(hidden), -1)).transpose(1, 2)

    def adapt(self, data: Dataset) -> None:
        """Start every output at its colour's own marginal."""
        super().adapt(data)
        start_at_marginal(self.outputs[-1], self, data)

    def frame_log_prob(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Log p(x_t | x_<t) of every frame, (batch, frames), exact, in nats; they sum to `log_prob`.

        Of a model with classes log Σ_y p(y) p(x_≤t | y) less the same of x_<t, or log p(x_t | x_<t, label).

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        entries = self.space.check_values(x)
        if label is not None or self.classes is None:
            return self._frames(entries, None if label is None else self._labels(label, len(x)))
        each = torch.stack([self._frames(entries, self._labels(y, len(x))) for y in range(self.classes)], 1)
        upto = (each.cumsum(2) + self.log_prior[:, None]).logsumexp(1)
        return upto.diff(dim=1, prepend=upto.new_zeros(len(x), 1))

    def _frames(self, entries: Tensor, label: Tensor | None) -> Tensor:
        return self.head.log_prob(self.conditionals(entries, label), entries).flatten(2).sum(2)

    # -- one entry after another --------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        frame = torch.zeros(count, *self.space.shape[1:], device=self.device)
        memory = None if self.encoder is None else self.encoder.start(frame)
        return State(label, frame, memory, self._frame_state(count, label, memory))

    def step(self, state: State, x: Tensor | None) -> tuple[Tensor, State]:  # type: ignore[override]
        """The next entry's parameters, (batch, parameters); a frame just finished is first put into the memory."""
        size = state.frame[0].numel()
        if x is not None:
            state.frame.view(-1, size)[:, self.order[(state.entry - 1) % size]] = x.float()
        if state.entry and state.entry % size == 0:
            if self.encoder is not None:
                state.memory = self.encoder(scaled(state.frame, self.space.levels or 2), state.memory)
            state.drawing, x = self._frame_state(len(state.frame), state.label, state.memory), None
        state.entry += 1
        parameters, _ = super().step(state.drawing, x)
        return parameters, state

    def _frame_state(self, count: int, label: Tensor | None, memory: Memory | None) -> FrameState:
        """Empty caches of the decoder, for a frame that comes after what the memory holds."""
        width, context = self.space.shape[-1], None if memory is None else memory[0]
        layers = [LayerState(layer, count, width, label, context) for layer in self.layers]  # type: ignore[arg-type]
        return FrameState(layers, [ConvCache(layer, count, width) for layer in self.outputs])  # type: ignore[arg-type]


@dataclass
class State:
    """What has been drawn of clips.

    Attributes:
        label: of each clip.
        frame: the levels of the frame being drawn, (batch, channels, height, width).
        memory: of the frames before it.
        drawing: the decoder's caches for this frame.
        entry: how many entries are drawn.
    """

    label: Tensor | None
    frame: Tensor
    memory: Memory | None
    drawing: FrameState
    entry: int = 0


class Encoder(nn.Module):
    """Residual multiplicative blocks for each frame, and the convolutional LSTM that remembers them."""

    def __init__(self, channels: int, features: int, dilations: tuple[int, ...]):
        super().__init__()
        self.features = features
        self.input = nn.Conv2d(channels, 2 * features, 3, padding=1)
        self.blocks = nn.Sequential(*(MultiplicativeBlock(features, dilation) for dilation in dilations))
        self.gates = nn.Conv2d(3 * features, 4 * features, 3, padding=1)

    def start(self, frame: Tensor) -> Memory:
        """The memory of nothing, for frames (batch, channels, height, width)."""
        nothing = frame.new_zeros(len(frame), self.features, *frame.shape[2:])
        return nothing, nothing

    def forward(self, frame: Tensor, memory: Memory) -> Memory:
        """The memory, (batch, c, height, width) twice, with a frame on [−1, 1] put into it."""
        return self.remember(self.blocks(self.input(frame)), memory)

    def remember(self, encoded: Tensor, memory: Memory) -> Memory:
        """One step of the LSTM."""
        h, cell = memory
        i, f, o, g = self.gates(torch.cat([encoded, h], 1)).chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def contexts(self, x: Tensor) -> Tensor:
        """What each frame of clips (batch, frames, channels, height, width) is given: (batch, frames, c, …)."""
        encoded = self.blocks(self.input(x[:, :-1].flatten(0, 1))).unflatten(0, (len(x), -1))
        memory = self.start(x[:, 0])
        found = [memory[0]]
        for frame in encoded.unbind(1):
            memory = self.remember(frame, memory)
            found.append(memory[0])
        return torch.stack(found, 1)


class MultiplicativeBlock(nn.Module):
    """h ← h + W2 * MU(MU(W1 * h)): 1 × 1 down to half the maps, two units, 1 × 1 back (§4.3 of the paper)."""

    def __init__(self, features: int, dilation: int):
        super().__init__()
        self.down = nn.Conv2d(2 * features, features, 1)
        self.units = nn.Sequential(MultiplicativeUnit(features, dilation), MultiplicativeUnit(features, dilation))
        self.up = nn.Conv2d(features, 2 * features, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, 2c, height, width) -> the same."""
        return h + self.up(self.units(self.down(h)))


class MultiplicativeUnit(nn.Module):
    """A gated unit without memory, of 3 × 3 convolutions (§4.2 of the paper)."""

    def __init__(self, features: int, dilation: int):
        super().__init__()
        self.gates = nn.Conv2d(features, 4 * features, 3, padding=dilation, dilation=dilation)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, c, height, width) -> the same."""
        gates, u = self.gates(h).split([3 * h.shape[1], h.shape[1]], 1)
        g1, g2, g3 = torch.sigmoid(gates).chunk(3, 1)
        return g1 * torch.tanh(g2 * h + g3 * torch.tanh(u))
