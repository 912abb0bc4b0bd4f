"""Variational diffusion: continuous time, and a noise schedule learnt for the likelihood.

An observation x is drowned in noise, z_t = α_t x + σ_t ε, along γ(t) = log σ_t² / α_t², which rises from γ_0 at t = 0
to γ_1 at t = 1 and is learnt: a network of positive weights, bound to those ends,

    γ̃(t) = l₁(t) + l₃(sigmoid(l₂(l₁(t)))),   γ(t) = γ_0 + (γ_1 − γ_0) (γ̃(t) − γ̃(0)) / (γ̃(1) − γ̃(0))      (appendix H)

The bound has three parts, in nats:

    −log p(x) ≤ KL(q(z_1 | x) ‖ N(0, I)) − E log p(x | z_0) + ½ E_{t, ε} [γ'(t) ‖ε − ε̂(z_t, γ_t)‖²]        (eqs. 11, 18)

or with T steps, s = t − 1/T, ½ T E[(exp(γ_t − γ_s) − 1) ‖ε − ε̂‖²] (eq. 14). In continuous time the last part, an
integral over γ, knows the schedule by its ends alone (eq. 20): these learn by the bound. What lies inside only changes
how much the estimate of a batch varies, and learns to make that little: a row's gradient for it is that of its squared
term.

p(x | z_0) ∝ q(z_0 | x) over the levels of a pixel, of which the expectation is a sum over the nodes of a line for each
level, without noise; for tables it is N(x; z_0 / α_0, e^{γ_0} I). The network sees sines and cosines of the pixels
whose periods are one and two levels, for the last bits are in them.

References
----------
Diederik Kingma, Tim Salimans, Ben Poole, Jonathan Ho (2021). Variational diffusion models. arXiv:2107.00630.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.diffusion._diffusion import Diffusion, Says, like, scales_of, to_data
from tacit.nn import noise
from tacit.spaces import Images, Space, Vectors

# Units of l₂: an eighth of the paper's are plenty for one rising curve.
_UNITS = 128
# γ at the start: most noise; least noise of a table.
_MOST, _LEAST = 5.0, -10.0
# Times that draws may visit in continuous time.
_VISITS = 1000
# Nodes of the expectation over p(x | z_0), and how far out they reach.
_NODES, _REACH = 65, 6.5


class VDM(Diffusion):
    """Variational diffusion model.

    Args:
        space: images or vectors.
        timesteps: T of the bound and of the loss; None is continuous time. A fitted model may be given another.
        predict: what the network says: the "noise", the "data", or the "velocity".
        width: channels of the network at full resolution, or hidden units; None is 32 for images and 256 for vectors.
        multipliers: of the width at each resolution, each half of the one before; None goes down to 7 pixels or fewer.
        blocks: residual blocks at each resolution, or layers for vectors.
        dropout: share of hidden units to drop while learning.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: an argument is out of its range.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(
        batch_size=64, learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup=100, clip=None, ema=0.999
    )

    def __init__(
        self,
        space: Space,
        *,
        timesteps: int | None = None,
        predict: Says = "velocity",
        width: int | None = None,
        multipliers: tuple[int, ...] | None = None,
        blocks: int = 1,
        dropout: float = 0.0,
        classes: int | None = None,
        label_dropout: float = 0.1,
    ):
        super().__init__(
            space,
            classes,
            label_dropout,
            predict=predict,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            dropout=dropout,
            inputs=5 if isinstance(space, Images) else 1,
        )
        check_at_least(1, timesteps=1 if timesteps is None else timesteps)
        self.timesteps = timesteps
        least = _LEAST
        if isinstance(space, Images):
            # Three deviations fit into half a level: the paper's −13.3 of 256 levels.
            least = -2 * math.log(3 * (space.levels - 1))
            octave = round(math.log2(space.levels))
            self.frequencies = (math.pi * 2 ** (octave - 1), math.pi * 2**octave)
        self.start = least
        self.schedule = Schedule(least, _MOST)

    # -- learning ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """The bound's three parts in nats, the t of a batch spread evenly over [0, 1] (appendix I.1)."""
        x = self.entries(self.space.check(batch.x))
        e, label = noise.randn_like(x), self.learned_label(batch)
        u = noise.stratified(len(x), x.device).to(x.dtype)
        if self.timesteps is None:
            inside = self.schedule.inside(u)
            gamma, slope = self.schedule.to_ends(*inside)
            terms = slope * self._error(x, gamma, e, label)
            if inside.requires_grad:
                # Half the gradient of the mean of squares, in units of the mean: of the order of the mean's own.
                ratio = (terms / terms.mean()).detach()
                inside.register_hook(lambda gradient: gradient * ratio)
        else:
            t = (u * self.timesteps).floor().add(1) / self.timesteps
            gamma = self.gamma(t)
            terms = self._steps(t, gamma) * self._error(x, gamma, e, label)
        return Losses(
            diffusion=terms.mean(), prior=self._last_term(x).mean(), reconstruction=self._reconstruction(x).mean()
        )

    def _error(self, x: Tensor, gamma: Tensor, e: Tensor, label: Tensor | None, *, within: bool = False) -> Tensor:
        """½ ‖ε − ε̂‖² = ½ e^{−γ} ‖x − x̂‖² at γ, (rows,); `within` keeps images to where they lie."""
        alpha, sigma = scales_of(like(gamma, x))
        z = alpha * x + sigma * e
        seen = to_data(self._said(z, gamma, label), z, alpha, sigma, self.predict)
        seen = self._within(seen) if within else seen
        return 0.5 * (-gamma).exp() * (x - seen).square().flatten(1).sum(1)

    def _steps(self, t: Tensor, gamma: Tensor) -> Tensor:
        """What the T steps count, each drawn with probability 1 / T: T (exp(γ_t − γ_s) − 1)."""
        steps = self.timesteps or 1
        return steps * torch.expm1(gamma - self.gamma(t - 1 / steps))

    # -- the network and its times -------------------------------------------------------------------------------------

    def gamma(self, t: Tensor) -> Tensor:
        """γ(t) for t in [0, 1]."""
        return self.schedule(t)

    def grid(self) -> Tensor:
        return torch.linspace(0, 1, (self.timesteps or _VISITS) + 1, device=self.low.device, dtype=self.low.dtype)

    def _given(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """What the network takes: z and its Fourier features, and γ at the scale of DDPM's times."""
        if isinstance(self.space, Images):
            waves = [f(w * z) for w in self.frequencies for f in (torch.sin, torch.cos)]
            z = torch.cat((z, *waves), 1)
        return z, 1000 * (gamma - self.start) / (_MOST - self.start)

    def _said(self, z: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        return self.net(*self._given(z, gamma), self._context(label)).to(z.dtype)

    def _output(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self._said(z, self.gamma(t), label)

    def _features(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.net.features(*self._given(z, self.gamma(t)), self._context(label))

    # -- the bound -----------------------------------------------------------------------------------------------------

    def _places(self, rows: int, terms: int | None) -> tuple[Tensor, Tensor]:
        """Strata of [0, 1], or of the T steps; all of them if `terms` is None."""
        device, steps = self.low.device, self.timesteps
        if terms is None:
            if steps is None:
                raise TacitError("terms is None, but there is no end of them in continuous time: give a number")
            t = (torch.arange(steps, device=device).to(self.low.dtype) + 1).expand(rows, -1) / steps
            return t, self._steps(t, self.gamma(t)) / steps
        u = (torch.arange(terms, device=device) + noise.rand(rows, terms, device=device).to(self.low.dtype)) / terms
        if steps is None:
            return u, self.schedule.to_ends(*self.schedule.inside(u))[1] / terms
        t = (u * steps).floor().clamp(max=steps - 1).add(1) / steps
        return t, self._steps(t, self.gamma(t)) / terms

    def _term(self, x: Tensor, t: Tensor, e: Tensor, label: Tensor | None) -> Tensor:
        return self._error(x, self.gamma(t), e, label, within=True)

    def _ends(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return (self._last_term(x) + self._reconstruction(x))[:, None]

    def _reconstruction(self, x: Tensor) -> Tensor:
        """−E log p(x | z_0), (batch,) nats, exactly."""
        gamma = self.schedule.ends[0]
        if not isinstance(self.space, Images):
            return (0.5 * self.space.dimensions * (math.log(2 * math.pi) + gamma + 1)).expand(len(x))
        levels = self.space.levels
        level = ((x + 1) * ((levels - 1) / 2)).round().long()
        return missed(levels, gamma)[level].flatten(1).sum(1)


class Schedule(nn.Module):
    """A monotone γ(t) between two ends, all learnt (appendix H); nearly a straight line at the start."""

    def __init__(self, least: float, most: float):
        super().__init__()
        self.ends = nn.Parameter(torch.tensor([least, most]))
        self.first = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.weight = nn.Parameter(5 * torch.randn(_UNITS).abs())
        # Each unit rises somewhere in [0, 1].
        self.bias = nn.Parameter(-self.weight.detach() * torch.rand(_UNITS))
        self.out = nn.Parameter(torch.full((_UNITS,), 0.1))

    def _raw(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """γ̃ and its slope."""
        h = self.first[0].abs() * t + self.first[1]
        rise = (h[..., None] * self.weight.abs() + self.bias).sigmoid()
        # The mean over the units, for a learning rate that suits the other weights.
        value = h + (rise * self.out.abs()).mean(-1)
        slope = 1 + (rise * (1 - rise) * self.out.abs() * self.weight.abs()).mean(-1)
        return value, self.first[0].abs() * slope

    def inside(self, t: Tensor) -> Tensor:
        """How far γ(t) is from the one end to the other, in [0, 1], and its slope: (2, *t.shape)."""
        low, high = self._raw(torch.tensor([0.0, 1.0], device=t.device, dtype=t.dtype))[0]
        value, slope = self._raw(t)
        return torch.stack((value - low, slope)) / (high - low)

    def to_ends(self, share: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """γ(t) and γ'(t) from `inside`."""
        low, high = self.ends
        return low + (high - low) * share, (high - low) * slope

    def forward(self, t: Tensor) -> Tensor:
        """γ(t), of any shape."""
        return self.to_ends(*self.inside(t))[0]


def missed(levels: int, gamma: Tensor) -> Tensor:
    """−E log p(level | z_0) of each level, (levels,) nats, p ∝ N(z_0 / α_0; level, e^γ) and z_0 / α_0 drawn so."""
    e = torch.linspace(-_REACH, _REACH, _NODES, device=gamma.device, dtype=gamma.dtype)
    share = (-e.square() / 2).softmax(0)
    unit = (-gamma / 2).exp() * (2 / (levels - 1))
    # Levels twelve deviations away share nothing that a float would hold.
    most = min(levels - 1, math.ceil(12 / float(unit.detach())))
    steps = torch.arange(-most, most + 1, device=gamma.device)
    there = torch.arange(levels, device=gamma.device)[:, None] + steps
    inside = (there >= 0) & (there < levels)
    logits = -(e[:, None] - steps * unit).square() / 2
    rivals = torch.where(inside[:, None], logits, -math.inf).logsumexp(2)  # (level, node)
    return ((rivals + e.square() / 2) * share).sum(1)
