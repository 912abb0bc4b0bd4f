"""What VQ-VAE and VQ-VAE-2 share: learning with codebooks, and all that follows from codes with a prior.

Given codes c(x) by a deterministic encoder, of all terms of p(x) = Σ_c p(c) p(x|c) one is known:

    log p(x) ≥ log p(x | c(x)) + log p(c(x)),

a bound in nats of the user's data. The autoencoder, the codebooks and the prior learn from every batch: the prior, as a
player of its own, the codes that the batch has just been given. So a run that is interrupted can sample, and the codes
that the prior learns come to rest as the rate of the autoencoder does. On small images the prior takes more time than
the autoencoder. Idle vectors of a codebook restart in the first half of the budget alone, since those that do take over
places that the prior knew by other codes. Weights are not averaged: the codebooks would not be those of an averaged
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Choose, Kind
from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.model import Batch, Losses, Progress, Recipe, Step
from tacit.models._conditional import Conditional
from tacit.models.latent._code_prior import CodePrior
from tacit.models.latent._codebook import Codebook, straight_through
from tacit.models.latent._likelihood import Likelihood
from tacit.spaces import Images

# An embedding has the quantised maps' means over at most so many places to a side.
_EMBEDDED = 4


class Level(NamedTuple):
    """One map: the encoder's outputs z, their codes, and the codes' vectors, whose gradient goes to z."""

    outputs: Tensor
    codes: Tensor
    quantised: Tensor

    @classmethod
    def of(cls, outputs: Tensor, codebook: Codebook) -> Level:
        """Quantise outputs, (batch, features, height, width)."""
        outputs = outputs.float()
        codes = codebook.nearest(outputs)
        return cls(outputs, codes, straight_through(outputs, codebook(codes)))


class VectorQuantised(Conditional):
    """A model of one or more maps of codes, the coarsest first. A model writes `_levels` and `_output`.

    It sets `likelihood`, `codebooks`, `priors`, the maps' `sizes`, the weight of the commitment `beta`, and `names`,
    which tell its maps apart in the log; `_projections` are the layers whose outputs are quantised.
    """

    spaces = (Images,)
    recipe = Recipe(batch_size=64, learning_rate=1e-3, schedule="cosine", warmup=100, clip=1.0)
    density: Kind = "bound"

    likelihood: Likelihood
    codebooks: nn.ModuleList
    priors: nn.ModuleList
    sizes: list[tuple[int, int]]
    beta: float
    names: tuple[str, ...]

    def _levels(self, x: Tensor) -> list[Level]:
        """The maps of observations, (batch, *shape)."""
        raise NotImplementedError

    def _projections(self) -> list[nn.Conv2d]:
        raise NotImplementedError

    def _output(self, maps: list[Tensor]) -> Tensor:
        """What the decoder makes of quantised maps, (batch, features, height, width) each, for the likelihood."""
        raise NotImplementedError

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Take the classes' shares and the entries' marginals; start the codebooks at outputs of the encoder.

        Those are made of mean 0 and variance 1 first. A new encoder's are so small that after a few steps all of them
        would lie far from the codebook, and near to the same few vectors of it.

        Raises:
            DataError: a codebook is larger than what there is to quantise.
        """
        super().adapt(data)
        self.likelihood.adapt(data)
        levels = zip(self.sizes, self._codebooks(), self._projections(), strict=True)
        for i, ((height, width), codebook, projection) in enumerate(levels):
            codes, places = len(codebook.vectors), height * width
            if codes > len(data) * places:
                raise DataError(
                    f"codes is {codes}, but {data.name} has {len(data)} images of {height} × {width} places to "
                    f"quantise: give at most {len(data) * places}"
                )
            x = data.observations(max(64, 16 * codes // places)).to(self.device)
            with torch.no_grad():
                outputs = torch.cat([self._levels(part)[i].outputs for part in x.split(64)])
                rows = outputs.movedim(1, -1).flatten(0, -2)
                deviation, mean = torch.std_mean(rows, 0)
                deviation = torch.where(deviation > 1e-6, deviation, 1.0)
                projection.weight.div_(deviation[:, None, None, None])
                cast(Tensor, projection.bias).sub_(mean).div_(deviation)
                codebook.adapt((rows - mean) / deviation)

    def players(self) -> dict[str, dict[str, Any]]:
        prior = set(self.priors.parameters())
        return {
            "autoencoder": {"params": [p for p in self.parameters() if p not in prior]},
            "prior": {"params": [p for p in self.parameters() if p in prior]},
        }

    def steps(self, batch: Batch) -> Iterator[Step]:
        """The autoencoder, the prior, then the codebooks by themselves, whose `loss` is the negative bound."""
        levels: list[Level] = []
        parts: list[Tensor] = []

        def autoencoder() -> Losses:
            levels.extend(self._levels(self.space.check(batch.x)))
            losses = self._autoencoder_loss(levels, batch.x)
            parts.append(losses["reconstruction"].detach())
            return losses

        def prior() -> Losses:
            nll = -self._log_prior([level.codes for level in levels], self.learned_label(batch)).mean()
            parts.append(nll.detach())
            return Losses(nll=nll)

        yield "autoencoder", autoencoder
        yield "prior", prior
        yield None, lambda: Losses(total=torch.stack(parts).sum(), **self._learn_codebooks(levels))

    def loss(self, batch: Batch) -> Losses:
        """What is minimised in all: both parts of the negative bound, and the `commitment`."""
        levels = self._levels(self.space.check(batch.x))
        log_prior = self._log_prior([level.codes for level in levels], self.learned_label(batch))
        return Losses(**self._autoencoder_loss(levels, batch.x), prior=-log_prior.mean())

    def _autoencoder_loss(self, levels: list[Level], x: Tensor) -> Losses:
        """−log p(x | c(x)) and β Σ ‖z − sg(e)‖², over places and features, a mean over the batch."""
        away = [(level.outputs - level.quantised.detach()).square().flatten(1).sum(1).mean() for level in levels]
        commitment = self.beta * torch.stack(away).sum()
        return Losses(reconstruction=-self._log_likelihood(levels, x).mean(), commitment=commitment)

    def _learn_codebooks(self, levels: list[Level]) -> dict[str, Tensor]:
        """Usage and perplexity of each, by which a codebook that has collapsed is known."""
        terms: dict[str, Tensor] = {}
        for name, level, codebook in zip(self.names, levels, self._codebooks(), strict=True):
            terms[f"usage{name}"], terms[f"perplexity{name}"] = codebook.learn(level.outputs, level.codes)
        return terms

    def after_step(self, progress: Progress) -> None:
        for codebook in self._codebooks():
            codebook.revives.fill_(progress.fraction < 0.5)

    # -- the two factors ----------------------------------------------------------------------------------------------

    def _codebooks(self) -> list[Codebook]:
        return cast("list[Codebook]", list(self.codebooks))

    def _log_likelihood(self, levels: list[Level], x: Tensor) -> Tensor:
        """Log p(x | c), (batch,)."""
        return self.likelihood.log_prob(self._output([level.quantised for level in levels]), x)

    def _log_prior(self, codes: list[Tensor], label: Tensor | None) -> Tensor:
        """Log p(c | y), (batch,), every map given the one before it."""
        coarser = [None, *codes[:-1]]
        priors = cast("list[CodePrior]", list(self.priors))
        each = [prior.log_prob(c, label, before) for prior, c, before in zip(priors, codes, coarser, strict=True)]
        return torch.stack(each).sum(0)

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        levels = self._levels(entries)
        return self._log_likelihood(levels, entries) + self._log_prior([level.codes for level in levels], label)

    def _joint(self, entries: Tensor) -> Tensor:
        levels = self._levels(entries)
        codes = [level.codes for level in levels]
        each = [self._log_prior(codes, self._labels(y, len(entries))) for y in range(self.classes or 0)]
        return torch.stack(each, 1) + self.log_prior + self._log_likelihood(levels, entries)[:, None]

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """A lower bound on log p(x), (batch,) nats; of a model with classes on the mixture, or on log p(x | label).

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is not a class.
        """
        return super().log_prob(x, label)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of codes, the coarsest first: (batch, height, width) int64 each."""
        return tuple(level.codes for level in self._levels(self.space.check(x)))

    @torch.no_grad()
    def decode_codes(self, codes: tuple[Tensor, ...]) -> Tensor:
        """The most likely observation given maps as `codes` gives them, (batch, *shape)."""
        return self.likelihood.mode(self._output(self._vectors(codes)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes' vectors: (batch, features, height, width), or of several maps (batch, all their entries)."""
        maps = self._vectors(self.codes(x))
        return maps[0] if len(maps) == 1 else torch.cat([each.flatten(1) for each in maps], 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation given vectors as `encode` gives them, or any between them: (batch, *shape)."""
        shapes = [(book.vectors.shape[1], *size) for book, size in zip(self._codebooks(), self.sizes, strict=True)]
        parts = z.flatten(1).split([math.prod(shape) for shape in shapes], 1)
        maps = [part.view(len(z), *shape) for part, shape in zip(parts, shapes, strict=True)]
        return self.likelihood.mode(self._output(maps))

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the codes decode to, (batch, *shape)."""
        return self.decode_codes(self.codes(x))

    @torch.no_grad()
    def sample_codes(
        self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, ...]:
        """Draws from the prior, the coarsest map first, (count, height, width) int64 each; arguments as in `sample`."""
        if temperature <= 0:
            raise TacitError(f"temperature is {temperature}: give a number above 0 (1 samples the model itself)")
        labels = self.drawn_labels(label, count)
        codes: list[Tensor] = []
        for prior in cast("list[CodePrior]", list(self.priors)):
            codes.append(prior.sample(count, labels, codes[-1] if codes else None, temperature))
        return tuple(codes)

    @torch.no_grad()
    def sample(self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws, (count, *shape): codes from the prior, then every pixel from its likelihood.

        Pixels are drawn each by itself; `decode_codes(sample_codes(count))` gives the most likely ones instead, smooth.

        Args:
            count: how many.
            label: their class, or one for each; of a model with classes drawn from their shares if None.
            temperature: of each code and each pixel.

        Raises:
            TacitError: `temperature` is not above zero, or `label` is not a class.
        """
        codes = self.sample_codes(count, label=label, temperature=temperature)
        return self.likelihood.sample(self._output(self._vectors(codes)), temperature)

    def sites(self, x: Tensor) -> Tensor:
        """The codes, the coarsest map first, then all entries, (batch, sites)."""
        return torch.cat([each.flatten(1) for each in (*self.codes(x), x.long())], 1)

    def from_sites(self, sites: Tensor) -> Tensor:
        """Observations from what `sites` makes of them, (batch, *shape)."""
        entries = sites[:, -self.space.dimensions :]
        return entries.reshape(len(sites), *self.space.shape).to(self.space.torch_dtype)

    @torch.no_grad()
    def visit(self, count: int, choose: Choose, label: Tensor | None = None) -> None:
        """Visit the codes, each given those before it, then the entries given the codes; see `Codes`."""
        first, codes = 0, list[Tensor]()
        for prior in cast("list[CodePrior]", list(self.priors)):
            codes.append(prior.visit(count, choose, label, codes[-1] if codes else None, first))
            first += codes[-1][0].numel()
        parameters = self.likelihood.given(self._output(self._vectors(tuple(codes)))).flatten(2)
        for i in range(self.space.dimensions):
            choose(self.likelihood.head, parameters[:, :, i], first + i)

    def embed(self, x: Tensor) -> Tensor:
        """The codes' vectors, averaged over a grid of at most 4 × 4 places: (batch, features)."""
        maps = self._vectors(self.codes(x))
        grids = [
            F.adaptive_avg_pool2d(each, (min(height, _EMBEDDED), min(width, _EMBEDDED)))
            for each, (height, width) in zip(maps, self.sizes, strict=True)
        ]
        return torch.cat([grid.flatten(1) for grid in grids], 1)

    def code_shares(self) -> dict[str, Tensor]:
        """How much of what was quantised lately each code took, by the name of the map: (codes,), of sum 1."""
        return {
            f"codes{name}": book.counts / book.counts.sum()
            for name, book in zip(self.names, self._codebooks(), strict=True)
        }

    def _vectors(self, codes: tuple[Tensor, ...]) -> list[Tensor]:
        return [codebook(each) for codebook, each in zip(self._codebooks(), codes, strict=True)]
