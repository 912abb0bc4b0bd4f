"""Denoising diffusion: a network learns to take noise away, step by step, until only data is left.

Data x₀ are drowned in noise over T steps, q(x_t | x₀) = N(√ᾱ_t x₀, (1 − ᾱ_t) I) (eq. 4), and a network ε_θ learns to
say which noise it was, by mean squared error at random t: L_simple (eq. 14). It thereby knows the mean of each reverse
step, p_θ(x_{t−1} | x_t) = N(μ_θ(x_t, t), σ_t² I), from which samples are drawn (algorithm 2), and the bound

    −log p(x₀) ≤ L_T + Σ_{t>1} L_{t−1} + L₀                                                                   (eq. 5)

whose terms are Kullback–Leibler divergences of Gaussians, and at the end L₀, the nats of the integers under the
discretised Gaussian decoder (eq. 13), or for tables of the real numbers under the Gaussian N(μ_θ(x₁, 1), σ₁² I). With
x̂₀ what ε_θ makes of x₀, each divergence is

    L_{t−1} = D c_t + w_t ‖x₀ − x̂₀‖² / (1 − ᾱ_t),   w_t = ᾱ_{t−1} β_t² / (2 σ_t² (1 − ᾱ_t))                 (eqs. 7–8),

and c_t = (β̃_t/σ_t² − 1 − log β̃_t/σ_t²) / 2 what it costs that σ_t² is not the posterior's variance. Images lie in
[−1, 1], so x̂₀ is clipped to it, in the bound as in sampling: that brings it nearer to every image.

References
----------
Jonathan Ho, Ajay Jain, Pieter Abbeel (2020). Denoising diffusion probabilistic models. arXiv:2006.11239.
Alex Nichol, Prafulla Dhariwal (2021). Improved denoising diffusion probabilistic models. arXiv:2102.09672. (cosine
schedule; sampling terms of the bound by their weight)
Jiaming Song, Chenlin Meng, Stefano Ermon (2021). Denoising diffusion implicit models. arXiv:2010.02502. (fewer steps)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Losses, Model, Recipe
from tacit.nn import noise
from tacit.nn.bijections import Standardise, adapt_to
from tacit.nn.unet import TimedPerceptron, UNet
from tacit.spaces import Images, Space, Vectors

# Rows the network is given at a time where all terms of the bound are computed: enough to be fast, few enough to fit.
_ROWS = 512


class DDPM(Model):
    """Denoising diffusion probabilistic model.

    Args:
        space: images or vectors.
        timesteps: T, the steps from data to noise.
        noise_schedule: how β_t grows: "linear" as in the paper, "cosine" destroys small images less abruptly.
        variance: σ_t² of a reverse step: "large" is β_t, "small" is the posterior's β̃_t.
        width: channels of the network at full resolution, or hidden units; None is 32 for images and 256 for vectors.
        multipliers: of the width at each resolution, each half of the one before; None goes down to 7 pixels or fewer.
        blocks: residual blocks at each resolution, or layers for vectors.
        dropout: share of hidden units to drop while learning.

    Raises:
        TacitError: timesteps is below 2.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=64, learning_rate=1e-3, schedule="cosine", warmup=100, clip=1.0, ema=0.999)
    density = "bound"

    alpha_bar: Tensor
    beta: Tensor
    variances: Tensor
    weight: Tensor
    mismatch: Tensor
    share: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        space: Space,
        *,
        timesteps: int = 1000,
        noise_schedule: Literal["linear", "cosine"] = "linear",
        variance: Literal["large", "small"] = "large",
        width: int | None = None,
        multipliers: tuple[int, ...] | None = None,
        blocks: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__(space)
        if timesteps < 2:
            raise TacitError(f"timesteps={timesteps} leaves no way from data to noise: choose 2 or more, 1000 is usual")
        self.timesteps, self.variance = timesteps, variance
        self._lay_out(_betas(noise_schedule, timesteps))
        self.standardise = Standardise(*(space.shape if isinstance(space, Vectors) else ()))
        # The range of a table's features, standardised, as `adapt` has seen it.
        self.register_buffer("low", torch.full_like(self.standardise.scale, -math.inf))
        self.register_buffer("high", torch.full_like(self.standardise.scale, math.inf))
        if isinstance(space, Images):
            side = max(space.height, space.width)
            halvings = max(0, math.ceil(math.log2(side / 7)))
            self.net: UNet | TimedPerceptron = UNet(
                space.channels,
                width=width or 32,
                multipliers=multipliers or (1, *[2] * halvings),
                blocks=blocks,
                dropout=dropout,
            )
        else:
            self.net = TimedPerceptron(space.dimensions, width=width or 256, blocks=blocks + 2, dropout=dropout)

    def _lay_out(self, beta: Tensor) -> None:
        """Everything that follows from β_1 … β_T, at index t; index 0 is the data, without noise."""
        beta = torch.cat((beta.new_zeros(1), beta))
        if isinstance(self.space, Images):
            # Integers are told apart while three deviations fit into half a level: with few levels, noise finer than
            # that would be paid for in the bound and mean nothing.
            beta[1] = max(beta[1].item(), (3 * (self.space.levels - 1)) ** -2)
        alpha_bar = (1 - beta).cumprod(0)
        posterior = beta * (1 - alpha_bar.roll(1)) / (1 - alpha_bar)  # β̃_t, eq. 7; for t > 1
        variances = beta.clone() if self.variance == "large" else posterior
        variances[1] = beta[1]
        ratio = (posterior / variances)[2:]
        weight = alpha_bar[1:-1] * beta[2:].square() / (2 * variances[2:] * (1 - alpha_bar[2:]))
        mismatch = (ratio - 1 - ratio.log()) / 2
        # How often the bound looks at each t. For standard normal data the terms are D w_t with the best network and
        # D w_t / ᾱ_t with one that knows nothing: half and half keeps the noise of the estimate small for both.
        share = (weight / weight.sum() + (weight / alpha_bar[2:]) / (weight / alpha_bar[2:]).sum()) / 2
        tensors = {"beta": beta, "alpha_bar": alpha_bar, "variances": variances, "weight": weight, "mismatch": mismatch}
        for name, values in {**tensors, "share": share}.items():
            self.register_buffer(name, values.float(), persistent=False)

    def adapt(self, data: Dataset) -> None:
        if isinstance(self.space, Vectors):
            adapt_to(self.standardise, data)
            seen = self._scaled(data.observations(20_000))
            self.low.copy_(seen.amin(0))
            self.high.copy_(seen.amax(0))

    # -- learning ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """L_simple (eq. 14), with the t of a batch spread evenly over 1 … T."""
        x = self._scaled(batch.x)
        t = 1 + (noise.stratified(len(x), x.device) * self.timesteps).long()
        e = noise.randn_like(x)
        return Losses(noise=(e - self._noise_in(self._noised(x, t, e), t)).square().mean())

    def _noised(self, x: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """x_t of q(x_t | x₀) with noise e (eq. 4)."""
        a = _like(self.alpha_bar[t], x)
        return a.sqrt() * x + (1 - a).sqrt() * e

    def _noise_in(self, x: Tensor, t: Tensor) -> Tensor:
        """ε_θ(x_t, t)."""
        return self.net(x, t).to(x.dtype)

    def _data_in(self, x: Tensor, t: Tensor) -> Tensor:
        """x̂₀, what x_t is without the noise that the network sees in it (eq. 15)."""
        a = _like(self.alpha_bar[t], x)
        clean = (x - (1 - a).sqrt() * self._noise_in(x, t)) / a.sqrt()
        return clean.clamp(-1, 1) if isinstance(self.space, Images) else clean

    def _scaled(self, x: Tensor) -> Tensor:
        """Observations to where the network works: images to [−1, 1], tables standardised."""
        x = self.space.check(x)
        if isinstance(self.space, Images):
            return x.to(self.beta.dtype) * (2 / (self.space.levels - 1)) - 1
        return self.standardise(x)

    def _unscaled(self, x: Tensor) -> Tensor:
        if isinstance(self.space, Images):
            top = self.space.levels - 1
            return ((x + 1) * (top / 2)).round().clamp(0, top).to(torch.uint8)
        return self.standardise.inverse(x)

    # -- the bound -----------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, *, terms: int | None = 32) -> Tensor:
        """A lower bound on log p(x), (batch,), nats; an unbiased estimate of it, for its noise is drawn once.

        Args:
            x: (batch, *space.shape).
            terms: how many of the terms L_1 … L_{T−1} to draw for each observation, stratified and weighted so that
                nothing is biased; L₀ and L_T are always there. None computes them all: T passes through the network.
        """
        if terms is None:
            return self._jacobian() - self.bound_terms(x).sum(1)
        clean = self._scaled(x)
        u = (torch.arange(terms, device=x.device) + noise.rand(len(x), terms, device=x.device)) / terms
        t = 2 + torch.searchsorted(self.share.cumsum(0), u).clamp(max=self.timesteps - 2)
        drawn = ((self.weight / self.share)[t - 2] * self._errors(clean, t)).mean(1)
        between = drawn + self.space.dimensions * self.mismatch.sum()
        return self._jacobian() - self._first_term(clean) - between - self._last_term(clean)

    def bound_terms(self, x: Tensor) -> Tensor:
        """L₀, L_1, …, L_{T−1}, L_T of eq. 5, (batch, T + 1), nats of the standardised variables where x are vectors."""
        clean = self._scaled(x)
        t = torch.arange(2, self.timesteps + 1, device=x.device).expand(len(x), -1)
        between = self.weight * self._errors(clean, t) + self.space.dimensions * self.mismatch
        return torch.cat((self._first_term(clean)[:, None], between, self._last_term(clean)[:, None]), 1)

    def _errors(self, x: Tensor, t: Tensor) -> Tensor:
        """‖x₀ − x̂₀‖² / (1 − ᾱ_t) at each t of (batch, terms), with fresh noise for each.

        For gradients nothing is kept but the inputs; the passes are done again, so that T of them fit in memory.
        """

        def error(x: Tensor, t: Tensor, e: Tensor) -> Tensor:
            return (x - self._data_in(self._noised(x, t, e), t)).square().flatten(1).sum(1) / (1 - self.alpha_bar[t])

        found = []
        per = max(1, _ROWS // len(x))
        for some in t.split(per, 1):
            rows = x.repeat_interleave(some.shape[1], 0)
            e = noise.randn(len(x), some.shape[1], *x.shape[1:], device=x.device).flatten(0, 1).to(x.dtype)
            arguments = rows, some.reshape(-1), e
            errors = (
                checkpoint(error, *arguments, use_reentrant=False) if torch.is_grad_enabled() else error(*arguments)
            )
            found.append(errors.view(some.shape))
        return torch.cat(found, 1)

    def _first_term(self, x: Tensor) -> Tensor:
        """L₀ = −log p_θ(x₀ | x₁), (batch,): discretised for images (eq. 13), a Gaussian for vectors."""
        t = torch.ones(len(x), dtype=torch.long, device=x.device)
        mean = self._data_in(self._noised(x, t, noise.randn_like(x).to(x.dtype)), t)  # μ_θ(x₁, 1) is x̂₀, as ᾱ₀ = 1
        scale = self.variances[1].sqrt()
        if isinstance(self.space, Images):
            return -_log_mass(x, mean, scale, self.space.levels).flatten(1).sum(1)
        z = (x - mean) / scale
        return (0.5 * z.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(1)

    def _last_term(self, x: Tensor) -> Tensor:
        """L_T = KL(q(x_T | x₀) ‖ N(0, I)), (batch,)."""
        a = self.alpha_bar[-1]
        return 0.5 * (a * x.square() - a - torch.log1p(-a)).flatten(1).sum(1)

    def _jacobian(self) -> Tensor:
        return -self.standardise.scale.log().sum() if isinstance(self.space, Vectors) else self.beta.new_zeros(())

    # -- use -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0, steps: int | None = 50, eta: float = 0.0) -> Tensor:
        """Draw from noise to data.

        Args:
            count: how many.
            temperature: scales all noise.
            steps: how many of the T times to visit, evenly spaced; None visits all.
            eta: 0 adds no noise on the way (DDIM, best for few steps), 1 is ancestral sampling (algorithm 2), with
                the noise of `variance`.
        """
        x = temperature * torch.randn(count, *self.space.shape, device=self.device)
        times = torch.linspace(self.timesteps, 0, min(steps or self.timesteps, self.timesteps) + 1).round().long()
        for t, before in zip(times.tolist(), times[1:].tolist(), strict=False):
            mean, deviation = self._step_back(x, t, before, eta)
            x = mean + temperature * deviation * torch.randn_like(x) if before and deviation else mean
        return self._unscaled(x)

    def _step_back(self, x: Tensor, t: int, before: int, eta: float) -> tuple[Tensor, float]:
        """Mean and standard deviation of p_θ(x_before | x_t) (Song et al. 2021, eqs. 12 and 16)."""
        a, b = self.alpha_bar[t], self.alpha_bar[before]
        # A small error in the noise is a large one in x̂₀ where t is large: a table's is kept in its range as well. The
        # bound does without, for a row may lie outside the range that was seen.
        clean = self._data_in(x, torch.full((len(x),), t, device=x.device)).clamp(self.low, self.high)
        e = (x - a.sqrt() * clean) / (1 - a).sqrt()
        posterior = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        mean = b.sqrt() * clean + (1 - b - posterior.square()).clamp(min=0).sqrt() * e
        large = eta == 1 and self.variance == "large"
        return mean, float((1 - a / b).sqrt() if large else posterior)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The network's middle (averaged over positions) or last hidden layer, at t = T / 20, of x_t's mean."""
        x = self._scaled(x)
        t = torch.full((len(x),), max(1, self.timesteps // 20), device=x.device)
        return self.net.features(self._noised(x, t, torch.zeros_like(x)), t).float()


def _betas(schedule: str, steps: int) -> Tensor:
    """β_1 … β_T: the paper's straight line, its ends scaled to T steps, or Nichol & Dhariwal's eq. 17."""
    if schedule == "linear":
        return (1000 / steps * torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).clamp(max=0.999)
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


def _like(values: Tensor, x: Tensor) -> Tensor:
    """(batch,) to (batch, 1, …), as many axes as x."""
    return values.view(-1, *[1] * (x.ndim - 1))
