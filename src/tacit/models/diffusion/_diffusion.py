"""What diffusion models share: what a network sees through noise, the bound's terms, and the ways back to data.

At time t an observation x, where the network works, is z_t = α_t x + σ_t ε with α_t² + σ_t² = 1. All follows from
γ_t = log σ_t² / α_t², minus the logarithm of the signal-to-noise ratio: α_t² = sigmoid(−γ_t), σ_t² = sigmoid(γ_t). The
network says one of three things, each of which gives the others:

    the noise ε,    the data x̂ = (z_t − σ_t ε) / α_t,    the velocity v = α_t ε − σ_t x                 (Salimans & Ho)

Images lie in [−1, 1], so what is seen of them is clipped to it, in the bound as in samples: that brings it nearer to
every image.

References
----------
Jiaming Song, Chenlin Meng, Stefano Ermon (2021). Denoising diffusion implicit models. arXiv:2010.02502. (DDIM)
Cheng Lu, Yuhao Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu (2022). DPM-Solver++. arXiv:2211.01095. (2M)
Jonathan Ho, Tim Salimans (2022). Classifier-free diffusion guidance. arXiv:2207.12598.
Tim Salimans, Jonathan Ho (2022). Progressive distillation for fast sampling of diffusion models. arXiv:2202.00512.
Chitwan Saharia et al. (2022). Photorealistic text-to-image diffusion models. arXiv:2205.11487. (dynamic thresholding)
Andreas Lugmayr et al. (2022). RePaint: inpainting using denoising diffusion probabilistic models. arXiv:2201.09865.
Alexander Li et al. (2023). Your diffusion model is secretly a zero-shot classifier. arXiv:2303.16203.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.models._conditional import Conditional
from tacit.nn import noise
from tacit.nn.bijections import Standardise, adapt_to
from tacit.nn.unet import TimedPerceptron, UNet
from tacit.spaces import Images, Space, Vectors

Says = Literal["noise", "data", "velocity"]
Solver = Literal["ddim", "dpm++"]

# Rows the network is given at a time where many terms of the bound are computed: enough to be fast, few enough to fit.
_ROWS = 512
# Width of the embedding of a class.
_CONTEXT = 16
# γ of the noise through which features are seen: a thirtieth of the variance.
_FEATURES = -3.5
# α² below which z says nothing of x: even a direction with all the variance of an image is drowned.
DROWNED = 1e-4


@dataclass(frozen=True)
class _Way:
    """How to go back: the labels, and the options of `sample`."""

    label: Tensor | None = None
    guidance: float = 0.0
    threshold: float | None = None
    temperature: float = 1.0
    solver: Solver = "ddim"
    eta: float = 0.0


class Diffusion(Conditional):
    """A network that sees through noise, with or without classes.

    A model writes `gamma`, `grid`, `_output` and the parts of its bound: `_places`, `_term`, `_ends`.

    Args:
        inputs: what the network takes for each channel or column.
        outputs: what it gives for each.
    """

    low: Tensor
    high: Tensor
    mean: Tensor

    def __init__(
        self,
        space: Space,
        classes: int | None,
        label_dropout: float,
        *,
        predict: Says,
        width: int | None,
        multipliers: tuple[int, ...] | None,
        blocks: int,
        dropout: float,
        inputs: int = 1,
        outputs: int = 1,
    ):
        super().__init__(space, classes, label_dropout)
        if predict not in ("noise", "data", "velocity"):
            raise TacitError(f"predict is {predict!r}: give 'noise', 'data' or 'velocity'")
        given = {"width": width, "multipliers": multipliers}
        check_at_least(1, blocks=blocks, **{name: value for name, value in given.items() if value is not None})
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a share in [0, 1)")
        self.predict = predict
        self.standardise = Standardise(*(space.shape if isinstance(space, Vectors) else ()))
        # The range of a table's features, standardised, as `adapt` has seen it.
        self.register_buffer("low", torch.full_like(self.standardise.scale, -math.inf))
        self.register_buffer("high", torch.full_like(self.standardise.scale, math.inf))
        # The data's, where the network works.
        self.register_buffer("mean", torch.zeros(space.shape))
        self.label = self.label_embedding(_CONTEXT)
        context = 0 if classes is None else _CONTEXT
        if isinstance(space, Images):
            halvings = max(0, math.ceil(math.log2(max(space.height, space.width) / 7)))
            self.net: UNet | TimedPerceptron = UNet(
                inputs * space.channels,
                width=width or 32,
                multipliers=multipliers or (1, *[2] * halvings),
                blocks=blocks,
                dropout=dropout,
                context=context,
                outputs=outputs * space.channels,
            )
        else:
            self.net = TimedPerceptron(
                inputs * space.dimensions,
                width=width or 256,
                blocks=blocks + 2,
                dropout=dropout,
                context=context,
                outputs=outputs * space.dimensions,
            )

    @property
    def density(self) -> Kind:
        """Always a bound."""
        return "bound"

    # -- what a model writes ------------------------------------------------------------------------------------------

    def gamma(self, t: Tensor) -> Tensor:
        """γ_t, of any times."""
        raise NotImplementedError

    def grid(self) -> Tensor:
        """The times that draws may visit, (times,), from data to noise."""
        raise NotImplementedError

    def _output(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """What the network says of z_t at t, (rows,): (rows, outputs · channels, …)."""
        raise NotImplementedError

    def _places(self, rows: int, terms: int | None) -> tuple[Tensor, Tensor]:
        """Times t and weights w, (rows, number) both, so that Σ w `_term`(t) is what the bound has between its ends."""
        raise NotImplementedError

    def _term(self, x: Tensor, t: Tensor, e: Tensor, label: Tensor | None) -> Tensor:
        """The bound's term at t for noise e, (rows,) nats."""
        raise NotImplementedError

    def _ends(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """All other terms of the bound, (batch, labels of each) nats."""
        raise NotImplementedError

    def _deviation(self, said: Tensor | None, step: float, posterior: float) -> Tensor | float:
        """Standard deviation of an ancestral step, from that of z_t given z_s and that of z_s given z_t and x."""
        return posterior

    # -- where the network works --------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Standardise a table, and remember its range; take the data's mean and the classes' shares."""
        super().adapt(data)
        if isinstance(self.space, Vectors):
            adapt_to(self.standardise, data)
        seen = self.entries(data.observations(20_000))
        self.mean.copy_(seen.mean(0))
        if isinstance(self.space, Vectors):
            self.low.copy_(seen.amin(0))
            self.high.copy_(seen.amax(0))

    def entries(self, x: Tensor) -> Tensor:
        """Observations to where the network works: images to [−1, 1], tables standardised."""
        if isinstance(self.space, Images):
            return x.to(self.standardise.scale.dtype) * (2 / (self.space.levels - 1)) - 1
        return self.standardise(x)

    def _observations(self, x: Tensor) -> Tensor:
        if isinstance(self.space, Images):
            top = self.space.levels - 1
            return ((x + 1) * (top / 2)).round().clamp(0, top).to(torch.uint8)
        return self.standardise.inverse(x)

    def _jacobian(self) -> Tensor:
        scale = self.standardise.scale
        return -scale.log().sum() if isinstance(self.space, Vectors) else scale.new_zeros(())

    # -- through the noise --------------------------------------------------------------------------------------------

    def _scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t at t, (rows,), with as many axes as x."""
        return scales_of(like(self.gamma(t), x))

    def _noised(self, x: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """z_t of q(z_t | x) with noise e."""
        alpha, sigma = self._scales(t, x)
        return alpha * x + sigma * e

    def _context(self, label: Tensor | None) -> Tensor | None:
        return None if self.label is None or label is None else self.label(label)

    def _no_label(self, label: int | Tensor | None, count: int) -> Tensor | None:
        """The labels given, or "no label" for each row; None for an unconditional model."""
        if label is None and self.classes is not None:
            return torch.full((count,), self.classes, device=self.device)
        return None if label is None else self._labels(label, count)

    def _seen(self, z: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """X̂ as the network sees it through the noise of z_t, (rows, *shape), and what else it says of each entry."""
        said = self._output(z, t, label)
        main, rest = (said, None) if said.shape == z.shape else cast(tuple[Tensor, Tensor], said.chunk(2, 1))
        return self._data(main, z, *self._scales(t, z)), rest

    def _data(self, said: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """X̂ of what the network says of z = α x + σ ε.

        An error of ε̂ is one of x̂ divided by α: where x is drowned, the data's mean is nearer than what it says.
        """
        seen = to_data(said, z, alpha, sigma, self.predict)
        return torch.where(alpha.square() < DROWNED, self.mean, seen) if self.predict == "noise" else seen

    def _seen_within(self, z: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As `_seen`, images clipped to where they lie."""
        seen, rest = self._seen(z, t, label)
        return self._within(seen), rest

    def _within(self, seen: Tensor) -> Tensor:
        return seen.clamp(-1, 1) if isinstance(self.space, Images) else seen

    # -- the bound ----------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, label: int | Tensor | None = None, *, terms: int | None = 32) -> Tensor:
        """A lower bound on log p(x), or on log p(x | label), (batch,) nats; an estimate of it without bias.

        Of a model with classes, log p(x) ≥ E_q[log p(x | y) + log p(y) − log q(y)] with y drawn from q, the posterior
        that other noise of the same model gives.

        Args:
            x: (batch, *space.shape).
            label: a class, or one for each row.
            terms: how many terms of the bound to draw for each observation, stratified, besides those at its ends; None
                computes them all.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class, or `terms` is below 1.
        """
        check_at_least(1, terms=1 if terms is None else terms)
        entries = self.entries(self.space.check_values(x))
        if label is not None:
            return self._bounds(entries, self._labels(label, len(x))[:, None], terms)[:, 0]
        if self.classes is None:
            return self._bounds(entries, None, terms)[:, 0]
        log_q = self._joint(entries, terms).log_softmax(1)
        chosen = torch.multinomial(log_q.detach().exp(), 1)
        bound = self._bounds(entries, chosen, terms) + self.log_prior[chosen] - log_q.gather(1, chosen)
        return bound[:, 0]

    def _joint(self, entries: Tensor, terms: int | None = 32) -> Tensor:
        """Bounds on log p(x, y), (batch, classes), of all classes in the same noise, which tells them apart best."""
        labels = torch.arange(self.classes or 0, device=entries.device).expand(len(entries), -1)
        return self._bounds(entries, labels, terms) + self.log_prior

    def _bounds(self, x: Tensor, labels: Tensor | None, terms: int | None) -> Tensor:
        """Bounds on log p(x | y) for `labels`, (batch, some), in the same noise: likewise; None is one, without."""
        t, weight = self._places(len(x), terms)
        between = (weight[:, None] * self._each(self._term, x, t, labels)).sum(2)
        return self._jacobian() - between - self._ends(x, labels)

    def _each(self, term: Callable[..., Tensor], x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """`term` at each t of (batch, times), noise anew for each, for all labels: (batch, labels, times).

        For gradients nothing is kept but the inputs; the passes are done again, so that thousands fit in memory.
        """
        each = 1 if labels is None else labels.shape[1]
        found = []
        for some in t.split(max(1, _ROWS // (len(x) * each)), 1):
            shape = len(x), each, some.shape[1]
            e = noise.randn(len(x), some.shape[1], *x.shape[1:], device=x.device).to(x.dtype)
            rows = (
                x[:, None, None].expand(*shape, *x.shape[1:]).flatten(0, 2),
                some[:, None].expand(shape).flatten(),
                e[:, None].expand(*shape, *x.shape[1:]).flatten(0, 2),
                None if labels is None else labels[:, :, None].expand(shape).flatten(),
            )
            values = checkpoint(term, *rows, use_reentrant=False) if torch.is_grad_enabled() else term(*rows)
            found.append(cast(Tensor, values).view(shape))
        return torch.cat(found, 2)

    def _last_term(self, x: Tensor) -> Tensor:
        """KL(q(z | x) ‖ N(0, I)) at the time of most noise, (batch,)."""
        gamma = like(self.gamma(self.grid()[-1:]), x)
        return 0.5 * ((-gamma).sigmoid() * (x.square() - 1) + F.softplus(-gamma)).flatten(1).sum(1)

    # -- the ways back ------------------------------------------------------------------------------------------------

    def _times(self, steps: int | None) -> Tensor:
        """`steps` + 1 times of the grid from noise to data, evenly spaced in the angle arctan σ_t / α_t; None is all.

        DDIM turns (x̂, ε̂) by that angle (Salimans & Ho 2022, appendix D); even times would be few where most happens.
        """
        check_at_least(1, steps=1 if steps is None else steps)
        grid = self.grid()
        last = len(grid) - 1
        if steps is None or steps >= last:
            return grid.flip(0)
        angle = (0.5 * self.gamma(grid)).exp().atan()
        wanted = torch.linspace(float(angle[0]), float(angle[-1]), steps + 1, dtype=angle.dtype, device=angle.device)
        at = torch.searchsorted(angle, wanted)
        at = torch.where((angle[at.clamp(max=last)] - wanted) > (wanted - angle[at.clamp(1, last) - 1]), at - 1, at)
        # None is visited twice.
        order = torch.arange(steps + 1, device=at.device)
        at = ((at - order).cummax(0).values + order).minimum(last - steps + order)
        at[0] = 0
        return grid[at].flip(0)

    def _path(self, z: Tensor, times: Tensor, way: _Way) -> Iterator[Tensor]:
        """From z at the first of `times` to each of the others."""
        gammas = self.gamma(times).tolist()
        seen_before, wide = None, 0.0
        for i, (gamma, after) in enumerate(itertools.pairwise(gammas)):
            seen, said = self._look(z, times[i], way)
            (alpha, sigma), (alpha_s, sigma_s) = scales(gamma), scales(after)
            if way.solver == "dpm++":
                # eqs. (9) and (10): what is seen is continued as a line in half the log signal-to-noise ratio.
                step = (gamma - after) / 2
                line = seen
                if seen_before is not None and step < math.inf:
                    line = seen + step / (2 * wide) * (seen - seen_before)
                z = sigma_s / sigma * z - alpha_s * math.expm1(-step) * line
                seen_before, wide = seen, step
            else:
                z = self._ddim(z, seen, said, (alpha, sigma, alpha_s, sigma_s), way)
            yield z

    def _ddim(self, z: Tensor, seen: Tensor, said: Tensor | None, at: tuple[float, ...], way: _Way) -> Tensor:
        """z_s from z_t and x̂ (Song et al. 2021, eqs. 12 and 16)."""
        alpha, sigma, alpha_s, sigma_s = at
        e = (z - alpha * seen) / sigma
        step = math.sqrt(max(1 - (alpha / alpha_s) ** 2, 0.0))
        posterior = way.eta * sigma_s / sigma * step
        z = alpha_s * seen + math.sqrt(max(sigma_s**2 - posterior**2, 0.0)) * e
        if sigma_s == 0 or way.eta == 0:
            return z
        deviation = self._deviation(said, step, posterior) if way.eta == 1 else posterior
        return z + way.temperature * deviation * torch.randn_like(z)

    def _look(self, z: Tensor, t: Tensor, way: _Way) -> tuple[Tensor, Tensor | None]:
        """As `_seen`, guided, and kept to where the data lie: a small error of ε is a large one of x̂ at large t."""
        t = t.expand(len(z))
        seen, said = self._seen(z, t, way.label)
        if way.guidance:
            # x̂ is affine in ε, so this is (1 + w) ε(z, y) − w ε(z).
            seen = torch.lerp(self._seen(z, t, self._no_label(None, len(z)))[0], seen, 1 + way.guidance)
        if not isinstance(self.space, Images):
            return seen.clamp(self.low, self.high), said
        if way.threshold is None:
            return seen.clamp(-1, 1), said
        size = seen.abs().flatten(1)
        reach = size.kthvalue(max(1, math.ceil(way.threshold * size.shape[1])), 1).values.clamp(min=1)
        return (seen / like(reach, seen)).clamp(-1, 1), said

    def _way(
        self,
        count: int,
        label: int | Tensor | None,
        temperature: float,
        guidance: float,
        solver: Solver,
        eta: float,
        threshold: float | None,
    ) -> _Way:
        """The options of `sample`, checked."""
        self._check_draw(temperature, guidance)
        if solver not in ("ddim", "dpm++"):
            raise TacitError(f"solver is {solver!r}: give 'ddim' or 'dpm++'")
        if not 0 <= eta <= 1:
            raise TacitError(f"eta is {eta}: give 0 (no noise on the way) to 1 (ancestral sampling)")
        if eta and solver == "dpm++":
            raise TacitError(f"eta is {eta}, but the solver dpm++ adds no noise: leave eta out, or take 'ddim'")
        if threshold is not None and not 0 < threshold <= 1:
            raise TacitError(f"threshold is {threshold}: give a quantile in (0, 1], or leave it out to clip")
        return _Way(self.drawn_labels(label, count), guidance, threshold, temperature, solver, eta)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        label: int | Tensor | None = None,
        temperature: float = 1.0,
        guidance: float = 0.0,
        steps: int | None = 50,
        solver: Solver = "ddim",
        eta: float = 0.0,
        threshold: float | None = None,
    ) -> Tensor:
        """Draw from noise to data, (count, *shape).

        Args:
            count: how many.
            label: their class, or one for each; of a model with classes drawn from their shares if None.
            temperature: scales all noise.
            guidance: w of (1 + w) ε(z, y) − w ε(z), which makes draws more typical of their class.
            steps: passes of the network; None visits all times.
            solver: "ddim", of first order, or "dpm++", DPM-Solver++(2M), of second.
            eta: for "ddim": 0 adds no noise on the way, best for few steps; 1 is ancestral sampling.
            threshold: the quantile of an image's |x̂| to which x̂ is scaled down where it exceeds 1 (dynamic
                thresholding, for strong guidance); None clips x̂.

        Raises:
            TacitError: an option is out of its range, `label` is not a class, or guidance has no class to go by.
        """
        way = self._way(count, label, temperature, guidance, solver, eta, threshold)
        *_, z = self._path(self._start(count, temperature), self._times(steps), way)
        return self._finish(z)

    @torch.no_grad()
    def chain(
        self,
        count: int,
        frames: int,
        *,
        label: int | Tensor | None = None,
        temperature: float = 1.0,
        guidance: float = 0.0,
        steps: int | None = 50,
        solver: Solver = "ddim",
        eta: float = 0.0,
        threshold: float | None = None,
    ) -> Tensor:
        """`sample` with what came before: from noise to data in so many frames, (count, frames, *shape).

        Raises:
            TacitError: as in `sample`, or there are fewer than 2 frames.
        """
        check_at_least(2, frames=frames)
        way = self._way(count, label, temperature, guidance, solver, eta, threshold)
        start, times = self._start(count, temperature), self._times(steps)
        states = [start, *self._path(start, times, way)]
        shown = torch.linspace(0, len(states) - 1, frames).round().long().tolist()
        return torch.stack([self._observations(states[i]) for i in shown[:-1]] + [self._finish(states[-1])], 1)

    def _start(self, count: int, temperature: float) -> Tensor:
        return temperature * torch.randn(count, *self.space.shape, device=self.device, dtype=self.low.dtype)

    def _finish(self, z: Tensor) -> Tensor:
        """Observations from z at the time of least noise."""
        return self._observations(z / scales(float(self.gamma(self.grid()[0])))[0])

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        label: int | Tensor | None = None,
        temperature: float = 1.0,
        steps: int = 50,
        resamples: int = 5,
    ) -> Tensor:
        """Draw what is unknown of `x`, (batch, *shape), given what is known, by RePaint (Lugmayr et al. 2022).

        At every ancestral step the known entries are put in with noise of that time. An unknown part made from z_t has
        not seen them yet, so each step is done `resamples` times, noise being added again between: that brings the two
        parts into accord, where putting in the known alone would not. More of them come nearer to p(unknown | known).

        Args:
            x: what is known, and anything elsewhere.
            known: (*shape) bool, True where `x` is given; any part.
            label: a class, or one for each row; none if None.
            temperature: scales all noise.
            steps: times to visit.
            resamples: how often each step is done.

        Raises:
            TacitError: the mask is of another shape, `label` is not a class, or a number is out of its range.
        """
        self._check_draw(temperature, 0.0)
        check_at_least(1, resamples=resamples)
        known = self.space.check_known(known).to(x.device)
        if known.all():
            return x
        x = self.space.check_values(torch.where(known, x, 0))
        # What is unknown of a table may be anything: it is never looked at.
        given = self.entries(x)
        way = _Way(self._no_label(label, len(x)), temperature=temperature, eta=1.0)
        times = self._times(steps)
        gammas = self.gamma(times).tolist()
        z = self._start(len(x), temperature)
        for i, (gamma, after) in enumerate(itertools.pairwise(gammas)):
            (alpha, _), (alpha_s, sigma_s) = scales(gamma), scales(after)
            keep = alpha / alpha_s
            for again in range(resamples if sigma_s > 0 else 1):
                if again:
                    z = keep * z + temperature * math.sqrt(max(1 - keep**2, 0.0)) * torch.randn_like(z)
                (z,) = self._path(z, times[i : i + 2], way)
                z = torch.where(known, alpha_s * given + sigma_s * temperature * torch.randn_like(z), z)
        return torch.where(known, x, self._finish(z))

    @torch.no_grad()
    def encode(self, x: Tensor, label: int | Tensor | None = None, *, steps: int = 50) -> Tensor:
        """The noise, (batch, *shape), that `decode` takes back to `x`, nearly: DDIM without noise, turned around.

        Args:
            x: (batch, *shape).
            label: a class, or one for each row; none if None.
            steps: passes of the network: the more, the nearer `decode` comes to `x`.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        x = self.entries(self.space.check_values(x))
        times = self._times(steps + 1).flip(0)[1:]
        # The least noise is left out: its effect is of second order.
        z = self._scales(times[:1], x)[0] * x
        *_, z = self._path(z, times, _Way(self._no_label(label, len(x))))
        return z

    @torch.no_grad()
    def decode(self, z: Tensor, label: int | Tensor | None = None, *, steps: int = 50) -> Tensor:
        """The observation, (batch, *shape), that noise z, likewise, becomes without further noise.

        Raises:
            TacitError: `label` is not a class.
        """
        *_, x = self._path(z, self._times(steps), _Way(self._no_label(label, len(z))))
        return self._finish(x)

    @torch.no_grad()
    def denoise(self, x: Tensor, amount: float, label: int | Tensor | None = None, *, steps: int = 20) -> Tensor:
        """`x`, (batch, *shape), after noise is added to it and taken away again without further noise: (batch, *shape).

        What the model has never seen comes back as something that it has (Graham et al. 2023, arXiv:2211.07740).

        Args:
            x: (batch, *shape).
            amount: how far towards noise, in (0, 1]: the share of the steps from noise to data that are taken back.
            label: a class, or one for each row; none if None.
            steps: passes of the network that the whole way would take.

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class, or `amount` is out of its range.
        """
        if not 0 < amount <= 1:
            raise TacitError(f"amount is {amount}: give above 0 (next to no noise) up to 1 (noise alone)")
        check_at_least(1, steps=steps)
        x = self.entries(self.space.check_values(x))
        times = self._times(steps)
        times = times[min(len(times) - 2, round((1 - amount) * (len(times) - 1))) :]
        z = self._noised(x, times[:1].expand(len(x)), noise.randn_like(x))
        *_, z = self._path(z, times, _Way(self._no_label(label, len(x))))
        return self._finish(z)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """The network's middle (averaged over positions) or last hidden layer, (batch, features), at a little noise.

        Of z_t's mean, so that features are not random.
        """
        x = self.entries(self.space.check_values(x))
        grid = self.grid()
        at = int(torch.searchsorted(self.gamma(grid), _FEATURES).clamp(1, len(grid) - 1))
        t = grid[at].expand(len(x))
        return self._features(self._noised(x, t, torch.zeros_like(x)), t, self._no_label(None, len(x))).float()

    def _features(self, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise NotImplementedError


def to_data(said: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor, predict: Says) -> Tensor:
    """What the data are if the network says this of z = α x + σ ε."""
    if predict == "noise":
        return (z - sigma * said) / alpha
    return alpha * z - sigma * said if predict == "velocity" else said


def target(x: Tensor, e: Tensor, alpha: Tensor, sigma: Tensor, predict: Says) -> Tensor:
    """What the network should say of z = α x + σ ε."""
    if predict == "noise":
        return e
    return alpha * e - sigma * x if predict == "velocity" else x


def scales_of(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of γ."""
    return (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()


def scales(gamma: float) -> tuple[float, float]:
    """α and σ of a number γ."""
    return 1 / math.sqrt(1 + math.exp(gamma)), 1 / math.sqrt(1 + math.exp(-gamma))


def like(values: Tensor, x: Tensor) -> Tensor:
    """(batch,) to (batch, 1, …), as many axes as x."""
    return values.view(-1, *[1] * (x.ndim - 1))
