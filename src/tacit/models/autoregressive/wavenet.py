"""WaveNet: gated causal convolutions whose dilations double from layer to layer, over samples of sound.

p(x) = ∏_t p(x_t | x_<t), a softmax over the 256 μ-law codes of a recording (over the symbols of a text, the levels of
an image in raster order). Layer l multiplies a tanh by a gate and gives to two sums,

    z_l = tanh(W_f ∗ h_l + V_f u_y) ⊙ σ(W_g ∗ h_l + V_g u_y),   h_{l+1} = h_l + R_l z_l,   s = Σ_l S_l z_l,

∗ a convolution with taps 1, 2, 4, …, 512 samples apart from layer to layer, then again from 1 in the next stack; u_y is
the embedding of a speaker or another class (global conditioning). The softmax is read from s through two 1 × 1 layers.
A sample so depends on the 1 + (kernel − 1) Σ dilations before it, and drawing one costs a product or two a layer.

References
----------
- van den Oord et al. (2016), WaveNet: A generative model for raw audio, arXiv:1609.03499
- Paine et al. (2016), Fast WaveNet generation algorithm, arXiv:1611.09482 (the caches)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tacit.errors import check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._symbols import Seen, Symbols
from tacit.nn.causal1d import CausalCache, CausalConv1d, receptive_field
from tacit.nn.gated import gate
from tacit.spaces import Images, Space, Tokens, Waveform


class WaveNet(Symbols):
    """WaveNet.

    Args:
        features: feature maps of the residual stream and of each gate.
        skip_features: feature maps of the sum that the softmax is read from.
        dilations: distance of the taps of each layer of a stack.
        stacks: how often these are gone through.
        kernel: taps of each convolution.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, or there are no dilations.
    """

    spaces = (Waveform, Tokens, Images)
    recipe = Recipe(batch_size=16, learning_rate=2e-3, schedule="cosine", warmup=200, clip=1.0, ema=0.999)
    appetite = 5.0

    def __init__(
        self,
        space: Space,
        *,
        features: int = 32,
        skip_features: int = 128,
        dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        stacks: int = 1,
        kernel: int = 2,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        check_at_least(1, features=features, skip_features=skip_features, stacks=stacks, kernel=kernel)
        check_at_least(1, dilations=min(dilations, default=0))
        super().__init__(space, features, classes, label_dropout)
        layers = dilations * stacks
        self.layers = nn.ModuleList(
            Layer(features, kernel, dilation, self.label_embedding(2 * features), i == len(layers) - 1)
            for i, dilation in enumerate(layers)
        )
        # The sum of all layers' skip connections, as one product.
        self.skip = CausalConv1d(len(layers) * features, skip_features)
        self.output = nn.Sequential(
            nn.ReLU(),
            CausalConv1d(skip_features, skip_features),
            nn.ReLU(),
            CausalConv1d(skip_features, self.head.parameters),
        )

    @property
    def receptive_field(self) -> int:
        """How many entries before it an entry depends on."""
        return receptive_field([layer.conv for layer in self._layers()])

    def _layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """The sum of the skip connections, (batch, skip features, sites)."""
        h, gated = self.inputs(entries), []
        for layer in self.layers:
            h, z = layer(h, label)
            gated.append(z)
        return self.skip(torch.cat(gated, 1))

    # -- one entry after another --------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        """Empty caches."""
        layers = self._layers()
        convs = [conv for conv in self.output if isinstance(conv, CausalConv1d)]
        skips = matrix(self.skip)
        features = len(skips) // len(layers)
        # tanh(a) = 2 σ(2a) − 1: one sigmoid serves both halves, σ(b) (1 − 2 σ(2a)) = −z, and what reads z is negated.
        halves = torch.tensor([2.0, 1.0], device=self.device).repeat_interleave(features)
        gated = skips.new_empty(count, len(skips))
        caches = [CausalCache(layer.conv, count, layer.bias(label), halves) for layer in layers]
        return State(
            self.seen(),
            caches,
            gated,
            [(*c.result.chunk(2, 1), z) for c, z in zip(caches, gated.split(features, 1), strict=True)],
            [-matrix(layer.residual) for layer in layers if layer.residual is not None],
            [(bias(self.skip), -skips), *((bias(conv), matrix(conv)) for conv in convs)],
        )

    def step(self, state: State, x: Tensor | None) -> tuple[Tensor, State]:
        """The next site's parameters, (batch, parameters)."""
        h = state.caches[0].input
        state.seen.write(x, h)
        for i, (cache, (a, b, z)) in enumerate(zip(state.caches, state.gates, strict=True)):
            cache.output().sigmoid_()
            torch.addcmul(b, a, b, value=-2, out=z)
            if i < len(state.residuals):
                h = torch.addmm(h, z, state.residuals[i], out=state.caches[i + 1].input)
        (constant, skips), *outputs = state.outputs
        y = torch.addmm(constant, state.gated, skips)
        for constant, weight in outputs:
            y = torch.addmm(constant, y.relu_(), weight)
        return y, state


class Layer(nn.Module):
    """A gated convolution, and what it gives to the residual stream."""

    def __init__(self, features: int, kernel: int, dilation: int, label: nn.Embedding | None, last: bool):
        super().__init__()
        self.conv = CausalConv1d(features, 2 * features, kernel, dilation)
        self.label = label
        # Nothing reads the residual stream after the last layer.
        self.residual = None if last else CausalConv1d(features, features, bias=False)

    def bias(self, label: Tensor | None) -> Tensor | None:
        """What the label adds to tanh and gate, (batch, 2 · features)."""
        return None if self.label is None else self.label(label)

    def forward(self, h: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """(batch, features, sites) -> the same after this layer, and z."""
        y, bias = self.conv(h), self.bias(label)
        z = gate(y if bias is None else y + bias[:, :, None])
        return h if self.residual is None else h + self.residual(z), z


@dataclass
class State:
    """What has been seen, each layer's cache, −z of all layers side by side, and what is made of it.

    `gates` are the halves of each layer's result and its part of `gated`, `residuals` the matrices to the next layer,
    `outputs` biases and matrices from `gated` to the parameters.
    """

    seen: Seen
    caches: list[CausalCache]
    gated: Tensor
    gates: list[tuple[Tensor, ...]]
    residuals: list[Tensor]
    outputs: list[tuple[Tensor, Tensor]]


def matrix(conv: CausalConv1d) -> Tensor:
    """The weights of a convolution of one tap as (source, target)."""
    return conv.weight.detach()[:, :, 0].T


def bias(conv: CausalConv1d) -> Tensor:
    """Its bias, (target,)."""
    return cast(Tensor, conv.bias).detach()
