"""Denoising diffusion: a network learns to take noise away, step by step, until only data is left.

Data x₀ are drowned in noise over T steps, q(x_t | x₀) = N(√ᾱ_t x₀, (1 − ᾱ_t) I) (eq. 4), and a network ε_θ learns to
say which noise it was, by mean squared error at random t: L_simple (eq. 14). It thereby knows the mean of each reverse
step, p_θ(x_{t−1} | x_t) = N(μ_θ(x_t, t), σ_t² I), from which samples are drawn (algorithm 2), and the bound

    −log p(x₀) ≤ L_T + Σ_{t>1} L_{t−1} + L₀                                                                   (eq. 5)

whose terms are Kullback–Leibler divergences of Gaussians, and at the end L₀, the nats of the integers under the
discretised Gaussian decoder (eq. 13), or for tables of the real numbers under the Gaussian N(μ_θ(x₁, 1), σ₁² I). With
x̂₀ what ε_θ makes of x₀, each divergence is

    L_{t−1} = D c_t + w_t ‖x₀ − x̂₀‖²,   w_t = ᾱ_{t−1} β_t² / (2 σ_t² (1 − ᾱ_t)²)                          (eqs. 7–8),

and c_t = (β̃_t/σ_t² − 1 − log β̃_t/σ_t²) / 2 what it costs that σ_t² is not the posterior's variance β̃_t.

Variances may be learnt (Nichol & Dhariwal 2021, §3.1): the network then gives each entry a v in [0, 1] as well, and its
σ_t² lies between the two in logarithms, exp(v log β_t + (1 − v) log β̃_t) (their eq. 15). v learns by the bound and the
mean by L_simple alone: L_hybrid = L_simple + 0.001 L_vlb, where no gradient of L_vlb reaches the mean (eq. 16).

References
----------
Jonathan Ho, Ajay Jain, Pieter Abbeel (2020). Denoising diffusion probabilistic models. arXiv:2006.11239.
Alex Nichol, Prafulla Dhariwal (2021). Improved denoising diffusion probabilistic models. arXiv:2102.09672. (cosine
schedule; learnt variances; sampling terms of the bound by their weight)
Jiaming Song, Chenlin Meng, Stefano Ermon (2021). Denoising diffusion implicit models. arXiv:2010.02502. (fewer steps)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tacit.errors import TacitError
from tacit.model import Batch, Losses, Recipe
from tacit.models.diffusion._diffusion import DROWNED, Diffusion, Says, like, target
from tacit.nn import noise
from tacit.spaces import Images, Space, Vectors

# λ of L_hybrid, the bound in nats per dimension.
_BOUND = 0.001


class DDPM(Diffusion):
    """Denoising diffusion probabilistic model.

    Args:
        space: images or vectors.
        timesteps: T, the steps from data to noise.
        noise_schedule: how β_t grows: "linear" as in the paper, "cosine" destroys small images less abruptly.
        variance: σ_t² of a reverse step: "large" is β_t, "small" is the posterior's β̃_t, "learned" lies between.
        predict: what the network says: the "noise" as in the paper, the "data", or the "velocity".
        width: channels of the network at full resolution, or hidden units; None is 32 for images and 256 for vectors.
        multipliers: of the width at each resolution, each half of the one before; None goes down to 7 pixels or fewer.
        blocks: residual blocks at each resolution, or layers for vectors.
        dropout: share of hidden units to drop while learning.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: `timesteps` is below 2, or an argument is out of its range.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=64, learning_rate=1e-3, schedule="cosine", warmup=100, clip=1.0, ema=0.999)

    alpha_bar: Tensor
    gammas: Tensor
    beta: Tensor
    variances: Tensor
    between: Tensor
    weight: Tensor
    mismatch: Tensor
    share: Tensor

    def __init__(
        self,
        space: Space,
        *,
        timesteps: int = 1000,
        noise_schedule: Literal["linear", "cosine"] = "linear",
        variance: Literal["large", "small", "learned"] = "large",
        predict: Says = "noise",
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
            outputs=2 if variance == "learned" else 1,
        )
        if timesteps < 2:
            raise TacitError(f"timesteps={timesteps} leaves no way from data to noise: choose 2 or more, 1000 is usual")
        if variance not in ("large", "small", "learned"):
            raise TacitError(f"variance is {variance!r}: give 'large', 'small' or 'learned'")
        self.timesteps, self.variance = timesteps, variance
        self._lay_out(_betas(noise_schedule, timesteps))

    def _lay_out(self, beta: Tensor) -> None:
        """Everything that follows from β_1 … β_T, at index t; index 0 is the data, without noise."""
        beta = torch.cat((beta.new_zeros(1), beta))
        if isinstance(self.space, Images):
            # Integers are told apart while three deviations fit into half a level: with few levels, noise finer than
            # that would be paid for in the bound and mean nothing.
            beta[1] = max(beta[1].item(), (3 * (self.space.levels - 1)) ** -2)
        alpha_bar = (1 - beta).cumprod(0)
        # log ᾱ is a sum, so that 1 − ᾱ keeps its digits where ᾱ is nearly 1.
        lost = -torch.expm1(torch.log1p(-beta).cumsum(0))
        posterior = beta * lost.roll(1) / lost  # β̃_t, eq. 7; for t > 1
        # There is no β̃_1; the decoder's variance goes by the next where variances are learnt.
        posterior[1] = posterior[2]
        between = (beta / posterior).log()
        variances = beta.clone() if self.variance == "large" else posterior.clone()
        if self.variance == "small":
            variances[1] = beta[1]
        weight = alpha_bar.roll(1) * beta.square() / (2 * variances * lost.square())
        ratio = (posterior / variances)[2:]
        # How often the bound looks at each t. For standard normal data the terms are proportional to w_t (1 − ᾱ_t) with
        # the best network and to that / ᾱ_t with one that knows nothing, until x is drowned and nothing is asked of it:
        # half and half keeps the noise of the estimate small for both.
        wise = (weight * lost)[2:]
        naive = torch.where(alpha_bar[2:] < DROWNED, wise, wise / alpha_bar[2:])
        tensors = {
            "beta": beta,
            "alpha_bar": alpha_bar,
            "gammas": lost.log() - alpha_bar.log(),
            "variances": variances,
            "between": between,
            "weight": weight,
            "mismatch": (ratio - 1 - ratio.log()) / 2,
            "share": (wise / wise.sum() + naive / naive.sum()) / 2,
        }
        for name, values in tensors.items():
            self.register_buffer(name, values.float(), persistent=False)

    # -- learning ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """L_simple (eq. 14), with the t of a batch spread evenly over 1 … T; with learnt variances L_hybrid."""
        x = self.entries(self.space.check(batch.x))
        t = 1 + (noise.stratified(len(x), x.device) * self.timesteps).long()
        e = noise.randn_like(x)
        alpha, sigma = self._scales(t, x)
        z = alpha * x + sigma * e
        said = self._output(z, t, self.learned_label(batch))
        wanted = target(x, e, alpha, sigma, self.predict)
        if said.shape == z.shape:
            return Losses(**{self.predict: (wanted - said).square().mean()})
        said, raw = said.chunk(2, 1)
        seen = self._within(self._data(said.detach(), z, alpha, sigma))
        first = self._decoded(x, seen, raw, t)
        bound = torch.where(t == 1, first, self._divergence(x, seen, raw, t)).mean() / self.space.dimensions
        return Losses(**{self.predict: (wanted - said).square().mean()}, bound=_BOUND * self.timesteps * bound)

    # -- the network and its times -------------------------------------------------------------------------------------

    def gamma(self, t: Tensor) -> Tensor:
        """γ_t = log (1 − ᾱ_t) / ᾱ_t for t in 0 … T; that of the data themselves is −∞."""
        return self.gammas[t]

    def grid(self) -> Tensor:
        return torch.arange(self.timesteps + 1, device=self.gammas.device)

    def _output(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.net(z, t, self._context(label)).to(z.dtype)

    def _features(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.net.features(z, t, self._context(label))

    # -- the bound -----------------------------------------------------------------------------------------------------

    def _places(self, rows: int, terms: int | None) -> tuple[Tensor, Tensor]:
        """All t of L_1 … L_{T−1}, or strata of the distribution `share` over them."""
        device = self.share.device
        if terms is None:
            t = torch.arange(2, self.timesteps + 1, device=device).expand(rows, -1)
            return t, torch.ones_like(t, dtype=self.share.dtype)
        u = (torch.arange(terms, device=device) + noise.rand(rows, terms, device=device)) / terms
        at = torch.searchsorted(self.share.cumsum(0), u).clamp(max=self.timesteps - 2)
        return at + 2, 1 / (terms * self.share[at])

    def _term(self, x: Tensor, t: Tensor, e: Tensor, label: Tensor | None) -> Tensor:
        return self._divergence(x, *self._seen_within(self._noised(x, t, e), t, label), t)

    def _divergence(self, x: Tensor, seen: Tensor, raw: Tensor | None, t: Tensor) -> Tensor:
        """L_{t−1}, (rows,), without D c_t."""
        error = like(self.weight[t], x) * (x - seen).square()
        if raw is not None:
            log_ratio = -self._log_excess(raw, t)
            error = error * log_ratio.exp() + (torch.expm1(log_ratio) - log_ratio) / 2
        return error.flatten(1).sum(1)

    def _log_excess(self, raw: Tensor, t: Tensor) -> Tensor:
        """Log σ_t² / β̃_t of learnt variances: v log β_t / β̃_t."""
        return raw.sigmoid() * like(self.between[t], raw)

    def _ends(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """L₀ + L_T, and all D c_t."""
        one = torch.ones(len(x), 1, dtype=torch.long, device=x.device)
        first = self._each(self._first_term, x, one, labels)[:, :, 0]
        return first + self._last_term(x)[:, None] + self._costs().sum()

    def _costs(self) -> Tensor:
        """D c_t for t in 2 … T, nothing where variances are the posterior's or learnt."""
        return self.space.dimensions * self.mismatch

    def _first_term(self, x: Tensor, t: Tensor, e: Tensor, label: Tensor | None) -> Tensor:
        """L₀ = −log p_θ(x₀ | x₁), (rows,), for noise e; t is 1. μ_θ(x₁, 1) is x̂₀, as ᾱ₀ = 1."""
        return self._decoded(x, *self._seen_within(self._noised(x, t, e), t, label), t)

    def _decoded(self, x: Tensor, mean: Tensor, raw: Tensor | None, t: Tensor) -> Tensor:
        """−log p_θ(x₀ | x₁), (rows,): discretised for images (eq. 13), a Gaussian for vectors."""
        log_scale = self.variances[1].log() / 2
        if raw is not None:
            log_scale = log_scale + self._log_excess(raw, torch.ones_like(t)) / 2
        if isinstance(self.space, Images):
            return -_log_mass(x, mean, log_scale.exp(), self.space.levels).flatten(1).sum(1)
        z = (x - mean) * (-log_scale).exp()
        return (0.5 * z.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(1)

    def bound_terms(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """L₀, L_1, …, L_{T−1}, L_T of eq. 5, (batch, T + 1), nats of the standardised variables where x are vectors.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        x = self.entries(self.space.check_values(x))
        label = self._no_label(label, len(x))
        labels = None if label is None else label[:, None]
        t, _ = self._places(len(x), None)
        between = self._each(self._term, x, t, labels)[:, 0]
        first = self._each(self._first_term, x, torch.ones_like(t[:, :1]), labels)[:, 0]
        return torch.cat((first, between + self._costs(), self._last_term(x)[:, None]), 1)

    # -- use -----------------------------------------------------------------------------------------------------------

    def _deviation(self, said: Tensor | None, step: float, posterior: float) -> Tensor | float:
        """σ_t of an ancestral step, of which several of T may make one: then β_t and β̃_t are theirs."""
        if said is None:
            return step if self.variance == "large" else posterior
        return posterior * (said.sigmoid() * math.log(step / posterior)).exp()


def _betas(schedule: str, steps: int) -> Tensor:
    """β_1 … β_T: the paper's straight line, its ends scaled to T steps, or Nichol & Dhariwal's eq. 17."""
    if schedule == "linear":
        return (1000 / steps * torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).clamp(max=0.999)
    if schedule != "cosine":
        raise TacitError(f"noise_schedule is {schedule!r}: give 'linear' or 'cosine'")
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _log_mass(x: Tensor, mean: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Log mass of the level at x ∈ [−1, 1] under N(mean, scale²); the end levels take all beyond them (eq. 13).

    On the far side of the mean the two tails are exchanged, so that nothing is lost to cancellation.
    """
    half = 1 / (levels - 1)
    upper = torch.where(x > 1 - half, math.inf, (x + half - mean) / scale)
    lower = torch.where(x < half - 1, -math.inf, (x - half - mean) / scale)
    flip = lower + upper > 0
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(torch.special.log_ndtr(low) - log_high))
