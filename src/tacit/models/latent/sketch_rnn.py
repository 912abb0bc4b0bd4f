"""Sketch-RNN: a recurrent variational autoencoder of drawings, pen stroke by pen stroke.

A drawing is a sequence of points S_i = (Δx, Δy, pen), the pen drawing on, lifted, or gone. A bidirectional LSTM reads
it and gives q(z|S) = N(μ, diag e^σ̂); of z ~ N(0, I) an LSTM, begun with tanh(W z) and told z at every step, makes one
point after another:

    p(S|z) = ∏_i p(Δx_i, Δy_i | h_i) q_i(pen_i),    p(Δx, Δy | h) = Σ_m Π_m N(Δx, Δy | μ_m, σ_m, ρ_m),

a mixture of bivariate Gaussians with correlation, and three pen states. What is minimised is

    L_R + w_KL η max(L_KL, KL_min),    η = 1 − (1 − η_min) R^step,

with L_R = −log p(S|z) / N_max (offsets in units of their standard deviation) and L_KL = KL(q ‖ N(0, I)) / N_z, N_max
being the most points of a drawing and N_z the dimensions of z. Without z the decoder is a density of its own.

Behind its end a drawing is certain and costs nothing: sequences are packed, and neither network reads what fills them
up, where the paper's loss goes on to count the pen's cross-entropy.

Likelihoods are nats of the data: of offsets in their own unit, and where those are whole numbers of their probability,
bounded under uniform noise on them.

References
----------
- Ha & Eck (2018), A neural representation of sketch drawings, arXiv:1704.03477
- Graves (2013), Generating sequences with recurrent neural networks, arXiv:1308.0850 (§4: the mixture)
- Semeniuta, Severyn & Barth (2016), Recurrent dropout without memory loss, arXiv:1603.05118
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.distributions.head import draw_index
from tacit.errors import CapabilityError, TacitError, check_at_least
from tacit.model import Batch, Losses, Progress, Recipe
from tacit.models._conditional import Conditional
from tacit.nn import noise
from tacit.spaces import Strokes

_PENS = 3
# Correlations are tanh of at most this (0.99999), and log deviations, in units of the data's, at least that: on points
# that repeat a density has no bound, and beyond these it would only chase them.
_MOST_RHO, _LEAST_SIGMA = 6.0, -7.0


class SketchRNN(Conditional):
    """Sequence-to-sequence variational autoencoder of drawings, or its decoder alone.

    Args:
        space: drawings.
        latent: dimensions of z; 0 for the decoder alone, whose likelihood needs no bound.
        encoder: units of the encoder's LSTM, in each direction.
        decoder: units of the decoder's LSTM.
        mixtures: bivariate Gaussians in the density of an offset.
        kl_weight: w_KL, of the KL divergence per dimension of z.
        free: KL_min, the nats per dimension of z below which the divergence is not pressed.
        kl_start: η_min, the share of w_KL at the first step.
        anneal: R, how much of what is missing from w_KL is still missing a step later; the paper's 0.99995 is for ten
            times as many steps.
        dropout: share of what a cell would add to its memory that is dropped while learning.
        scaling: drawings are learnt wider and higher by factors of 1 ± this.
        drop_points: share of the points within a stroke left out while learning.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label.

    Raises:
        TacitError: a number is out of its range.
    """

    spaces = (Strokes,)
    recipe = Recipe(batch_size=100, learning_rate=1e-3, schedule="cosine", clip=1.0)
    appetite = 20.0

    space: Strokes
    scale: Tensor
    grain: Tensor
    eta: Tensor

    def __init__(
        self,
        space: Strokes,
        *,
        latent: int = 128,
        encoder: int = 256,
        decoder: int = 512,
        mixtures: int = 20,
        kl_weight: float = 0.5,
        free: float = 0.2,
        kl_start: float = 0.01,
        anneal: float = 0.9995,
        dropout: float = 0.1,
        scaling: float = 0.1,
        drop_points: float = 0.1,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, encoder=encoder, decoder=decoder, mixtures=mixtures)
        check_at_least(0, latent=latent, kl_weight=kl_weight, free=free)
        shares = {"kl_start": kl_start, "anneal": anneal, "dropout": dropout, "scaling": scaling}
        for name, share in {**shares, "drop_points": drop_points}.items():
            if not 0 <= share <= 1 or (share == 1 and name in ("dropout", "drop_points", "scaling")):
                raise TacitError(f"{name} is {share}: give a share in [0, 1)")
        self.latent, self.mixtures = latent, mixtures
        self.kl_weight, self.free, self.kl_start, self.anneal = kl_weight, free, kl_start, anneal
        self.dropout, self.scaling, self.drop_points = dropout, scaling, drop_points
        self.label = self.label_embedding(_LABEL)
        context = latent + (0 if self.label is None else _LABEL)
        if latent:
            self.encoder = nn.ModuleList(LSTM(2 + _PENS, encoder) for _ in range(2))
            self.posterior = nn.Linear(2 * encoder, 2 * latent)
        self.begin = nn.Linear(context, 2 * decoder) if context else None
        self.decoder = LSTM(2 + _PENS + context, decoder)
        self.output = nn.Linear(decoder, _PENS + 6 * mixtures)
        # The offsets' standard deviation, whether they are whole numbers, and the annealed share of w_KL.
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("grain", torch.zeros(()))
        self.register_buffer("eta", torch.tensor(kl_start))

    @property
    def density(self) -> Kind:
        """Exact for the decoder alone and offsets that are real numbers, else a bound."""
        return "bound" if self.latent or bool(self.grain) else "exact"

    # -- the two networks ---------------------------------------------------------------------------------------------

    def _normalised(self, x: Tensor, noisy: bool) -> Tensor:
        """Drawings, (batch, length, 3), with offsets in their own deviations; whole numbers under uniform noise."""
        x = x.float()
        offsets = x[..., :2]
        if noisy:
            offsets = offsets + self.grain * (noise.rand_like(offsets) - 0.5)
        drawn = (x[..., 2:] != Strokes.END).float()
        return torch.cat([offsets / self.scale * drawn, x[..., 2:]], 2)

    # Packed sequences are of no fixed shape: a compiler would only break at each of their parts, and take long.
    @torch.compiler.disable
    def _posterior(self, strokes: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ̂ = log σ² of q(z|S), (batch, latent) each."""
        # The end alone, of a drawing without points.
        lengths = _points(strokes).clamp(min=1)
        place = torch.arange(strokes.shape[1], device=strokes.device)
        backwards = (lengths[:, None] - 1 - place).clamp(min=0)[..., None].expand_as(strokes)
        ends = []
        both = zip(cast("list[LSTM]", self.encoder), (strokes, strokes.gather(1, backwards)), strict=True)
        for network, way in both:
            begun = strokes.new_zeros(len(strokes), network.features)
            ends.append(network(_stroke5(way), lengths, (begun, begun), self.dropout)[2])
        mean, log_var = self.posterior(torch.cat(ends, 1)).float().chunk(2, 1)
        return mean, log_var

    def _context(self, z: Tensor | None, label: Tensor | None, count: int) -> Tensor:
        """What the decoder is told at every step, (count, context): z and the label's embedding."""
        parts = [] if z is None else [z]
        if self.label is not None:
            parts.append(self.label(label))
        return torch.cat(parts, 1) if parts else torch.zeros(count, 0, device=self.device)

    def _state(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's first h and c, (batch, decoder) each."""
        if self.begin is None:
            zeros = torch.zeros(len(context), self.decoder.features, device=context.device)
            return zeros, zeros
        h, c = torch.tanh(self.begin(context)).float().chunk(2, 1)
        return h, c

    def _read(self, strokes: Tensor, context: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder over the first `lengths` rows, each given those before, as `LSTM` gives it back."""
        before = torch.cat([_first(len(strokes), strokes.device)[:, None], _stroke5(strokes[:, :-1])], 1)
        told = torch.cat([before, context[:, None].expand(-1, strokes.shape[1], -1)], 2)
        return self.decoder(told, lengths, self._state(context), self.dropout)

    @torch.compiler.disable
    def _log_likelihood(self, strokes: Tensor, context: Tensor, most: int | None = None) -> Tensor:
        """Log p(S|z) of normalised drawings, (batch, 2) nats: of offsets and of pen states, of `most` rows at most.

        A drawing of fewer points than the space has ends in a row of its own, and those behind it are certain.
        """
        lengths = (_points(strokes) + 1).clamp(max=self.space.length if most is None else most)
        features, site, _ = self._read(strokes, context, lengths)
        out = self.output(features).float()
        target = strokes.flatten(0, 1)[site]
        pen = target[:, 2].long()
        of_pen = out[:, :_PENS].log_softmax(1).gather(1, pen[:, None])[:, 0]
        of_offset = mixture_log_prob(out[:, _PENS:], target[:, :2]).where(pen != Strokes.END, 0)
        sums = torch.zeros(len(strokes), 2, device=out.device)
        return sums.index_add(0, site // strokes.shape[1], torch.stack([of_offset, of_pen], 1))

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Take the offsets' standard deviation, and whether they are whole numbers; with classes their shares."""
        super().adapt(data)
        x = data.observations(20_000)
        offsets = x[x[..., 2] != Strokes.END][:, :2]
        self.scale.copy_(offsets.double().std(unbiased=False).clamp(min=1e-12))
        self.grain.copy_((offsets == offsets.round()).all())

    def augment(self, strokes: Tensor) -> Tensor:
        """Drawings, (batch, length, 3), wider and higher by random factors and without some points.

        As the authors do it, no point goes that ends a stroke or is among its first three; the one before takes its
        offset.
        """
        rows, length, _ = strokes.shape
        factors = 1 + self.scaling * (2 * noise.rand(rows, 1, 2, device=strokes.device) - 1)
        offsets, pen = strokes[..., :2] * factors, strokes[..., 2]
        place = torch.arange(length, device=strokes.device).expand(rows, -1)
        begins = F.pad(pen[:, :-1] != 0, (1, 0), value=True)
        within = place - torch.where(begins, place, 0).cummax(1).values
        goes = (pen == 0) & (within > 2) & (noise.rand(rows, length, device=strokes.device) < self.drop_points)
        to = (~goes).long().cumsum(1) - 1
        # Rows that are left at the end are all the end; those that stay keep their pen.
        pens = torch.full_like(pen, Strokes.END).scatter(
            1, to.masked_fill(goes, length - 1), pen.where(~goes, Strokes.END)
        )
        moved = torch.zeros_like(offsets).scatter_add(1, to[..., None].expand(-1, -1, 2), offsets)
        return torch.cat([moved, pens[..., None]], 2)

    def loss(self, batch: Batch) -> Losses:
        """`reconstruction`, L_R, and `kl`, L_KL; their sum with w_KL annealed while learning and whole else."""
        strokes = self._normalised(self.space.check(batch.x), noisy=True)
        if self.training:
            strokes = self.augment(strokes)
        z, kl = None, None
        if self.latent:
            mean, log_var = self._posterior(strokes)
            z = mean + (0.5 * log_var).exp() * noise.randn_like(mean)
            kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        context = self._context(z, self.learned_label(batch), len(strokes))
        reconstruction = -self._log_likelihood(strokes, context).sum(1).mean() / self.space.length
        if kl is None:
            return Losses(reconstruction=reconstruction)
        weight = self.kl_weight * (self.eta if self.training else 1.0)
        return Losses(reconstruction + weight * kl.clamp(min=self.free), reconstruction=reconstruction, kl=kl)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Anneal: η = 1 − (1 − η_min) R^step."""
        self.eta.fill_(1 - (1 - self.kl_start) * self.anneal**progress.step)

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _coded(self, strokes: Tensor) -> tuple[Tensor | None, Tensor]:
        """A draw z ~ q(z|S) and log p(z) − log q(z|S), (batch,); None and zeros for the decoder alone."""
        if not self.latent:
            return None, torch.zeros(len(strokes), device=strokes.device)
        mean, log_var = self._posterior(strokes)
        noises = noise.randn_like(mean)
        z = mean + (0.5 * log_var).exp() * noises
        return z, 0.5 * (noises.square() - z.square() + log_var).sum(1)

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Log of one importance weight, p(S|z, y) p(z) / q(z|S), (batch,)."""
        strokes = self._normalised(entries, noisy=True)
        z, log_ratio = self._coded(strokes)
        return self._weighed(strokes, z, label) + log_ratio

    def _joint(self, entries: Tensor) -> Tensor:
        """The same for every class, with the same noise, plus log p(y): (batch, classes)."""
        strokes = self._normalised(entries, noisy=True)
        z, log_ratio = self._coded(strokes)
        each = [self._weighed(strokes, z, self._labels(y, len(strokes))) for y in range(self.classes or 0)]
        return torch.stack(each, 1) + log_ratio[:, None] + self.log_prior

    def _weighed(self, strokes: Tensor, z: Tensor | None, label: Tensor | None) -> Tensor:
        """Log p(S|z, y) in nats of the data, (batch,): each point has two offsets in units of `scale`."""
        found = self._log_likelihood(strokes, self._context(z, label, len(strokes))).sum(1)
        return found - 2 * _points(strokes) * self.scale.log()

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 64) -> Tensor:
        """A tighter bound on log p(x), (batch,) nats: the log of the mean of `samples` importance weights.

        Raises:
            TacitError: `samples` is below 1.
        """
        check_at_least(1, samples=samples)
        return torch.stack([self.log_prob(x) for _ in range(samples)]).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draw (count, length, 3).

        Args:
            count: how many.
            label: a class, or one for each; drawn from their shares if None.
            temperature: divides the logits of the mixture and of the pen and multiplies the offsets' variances, as in
                the paper; 0 takes the likeliest of each. The latent variable is drawn from N(0, I) whatever it is.

        Raises:
            TacitError: `temperature` is below zero, or `label` is not a class.
        """
        z = torch.randn(count, self.latent, device=self.device) if self.latent else None
        return self._drawn(self._context(z, self.drawn_labels(label, count), count), temperature)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent).

        Raises:
            CapabilityError: the model is a decoder alone.
        """
        self._check_codes()
        return self._posterior(self._normalised(self.space.check_values(x), noisy=False))[0]

    @torch.no_grad()
    def decode(self, z: Tensor, label: int | Tensor | None = None) -> Tensor:
        """The likeliest drawing of each z, point by point, (batch, length, 3); of no class where `label` is None.

        Raises:
            CapabilityError: the model is a decoder alone.
            TacitError: `label` is not a class.
        """
        self._check_codes()
        return self._drawn(self._context(z, self._label_or_none(label, len(z)), len(z)), 0.0)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Posterior means, (batch, latent); of a decoder alone its features after all points, (batch, decoder)."""
        if self.latent:
            return self.encode(x)
        strokes = self._normalised(self.space.check_values(x), noisy=False)
        context = self._context(None, self._label_or_none(None, len(x)), len(x))
        return self._read(strokes, context, (_points(strokes) + 1).clamp(max=self.space.length))[2]

    @torch.no_grad()
    def complete(
        self, x: Tensor, known: Tensor, *, label: int | Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Go on with the first points of drawings `x`, (batch, length, 3).

        The latent variable is drawn from the posterior of the points that are known, as if they were a drawing: near
        p(z | known) as far as the encoder knows unfinished drawings. The decoder alone draws from p(unknown | known).

        Args:
            x: what is known, and anything elsewhere.
            known: (length, 3) bool, True where `x` is given: whole rows, the first ones.
            label: as in `sample`; if None drawn from p(y | known).
            temperature: as in `sample`.

        Raises:
            TacitError: the mask is of another shape, what is known is not the beginning, or `label` is not a class.
        """
        self.space.check_known(known)
        first = int(known.all(1).sum())
        if not bool(known[:first].all()) or bool(known[first:].any()):
            raise TacitError(
                "known is not the first points of a drawing, which alone can be gone on with: give whole rows"
            )
        rows = torch.arange(self.space.length, device=x.device)[:, None] < first
        x = self.space.check_values(torch.where(rows, x, x.new_tensor([0.0, 0.0, Strokes.END])))
        strokes = self._normalised(x, noisy=False)
        z = self._coded(strokes)[0] if first else None
        if self.latent and z is None:
            z = torch.randn(len(x), self.latent, device=x.device)
        if label is None and self.classes is not None and first:
            each = [self._context(z, self._labels(y, len(x)), len(x)) for y in range(self.classes)]
            found = torch.stack([self._log_likelihood(strokes, context, first).sum(1) for context in each], 1)
            label = torch.multinomial((found + self.log_prior).softmax(1), 1)[:, 0]
        context = self._context(z, self.drawn_labels(label, len(x)), len(x))
        # In the data's units what is known comes back as it came.
        return torch.where(rows, x, self._drawn(context, temperature, strokes[:, :first]))

    def _check_codes(self) -> None:
        if not self.latent:
            raise CapabilityError(
                "sketch-rnn has no codes: it was fitted with latent=0, the decoder alone; fit it with more"
            )

    def _label_or_none(self, label: int | Tensor | None, count: int) -> Tensor | None:
        """Labels for the networks, "no label" where none is given."""
        if label is None and self.classes is not None:
            return torch.full((count,), self.classes, device=self.device)
        return None if label is None else self._labels(label, count)

    def _drawn(self, context: Tensor, temperature: float, given: Tensor | None = None) -> Tensor:
        """Drawings, (batch, length, 3) in the data's units, begun by `given`, normalised (batch, points, 3)."""
        if temperature < 0:
            raise TacitError(f"temperature is {temperature}: give 0 or more (1 samples the model itself)")
        first = 0 if given is None else given.shape[1]
        h, c = self._state(context)
        before = _first(len(context), context.device)
        ended = torch.zeros(len(context), dtype=torch.bool, device=context.device)
        drawn = torch.zeros(len(context), self.space.length, 3, device=context.device)
        drawn[..., 2] = Strokes.END
        for i in range(self.space.length):
            h, c = self.decoder.step(torch.cat([before, context], 1), h, c)
            if given is not None and i < first:
                row = given[:, i]
            else:
                out = self.output(h).float()
                pen = _chosen(out[:, :_PENS], temperature).where(~ended, Strokes.END)
                offset = mixture_sample(out[:, _PENS:], temperature) * (pen != Strokes.END)[:, None]
                row = torch.cat([offset, pen[:, None]], 1)
            drawn[:, i] = row
            ended = row[:, 2] == Strokes.END
            before = _stroke5(row)
            if bool(ended.all()):
                break
        drawn[..., :2] *= self.scale
        return torch.where(self.grain > 0, drawn.round(), drawn)


# Width of the embedding of a class.
_LABEL = 32


class LSTM(nn.Module):
    """One layer that reads sequences of different lengths.

    Step by step over those that have not ended: the gradient of torch's own kernel over packed sequences fills an
    array of all sites at each step, and takes five times as long on a processor.

    Gates lie in the order input, forget, cell, output. The forget gate's bias begins at 1.
    """

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.features = features
        self.input = nn.Linear(inputs, 4 * features)
        self.recurrent = nn.Linear(features, 4 * features, bias=False)
        nn.init.orthogonal_(self.recurrent.weight)
        with torch.no_grad():
            self.input.bias.zero_()[features : 2 * features] = 1

    def forward(
        self, x: Tensor, lengths: Tensor, state: tuple[Tensor, Tensor], dropout: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read the first `lengths`, (batch,), of the inputs `x`, (batch, longest, …).

        Args:
            x: inputs.
            lengths: at least 1 each.
            state: h and c before the first input, (batch, features) each.
            dropout: while learning, the share of the entries dropped of what is added to c.

        Returns:
            The features of the sites that were read, (sites, features); their numbers in `x`, its first two axes as
            one, (sites,); h after the last of each sequence, (batch, features).
        """
        site = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2])
        packed = pack_padded_sequence(site, lengths.cpu(), batch_first=True, enforce_sorted=False)
        site, sizes = packed.data, packed.batch_sizes.tolist()
        kept: list[Tensor] | list[None] = [None] * len(sizes)
        if self.training and dropout:
            random = noise.rand(*x.shape[:2], self.features, device=x.device).flatten(0, 1)[site]
            kept = list(((random >= dropout) / (1 - dropout)).split(sizes))
        h, c = (part[packed.sorted_indices] for part in state)
        features, ends = [], []
        # In full precision: what is added up over a hundred steps needs it.
        with torch.autocast(x.device.type, enabled=False):
            given = self.input(x.float().flatten(0, 1)[site]).split(sizes)
            for gates, size, after, keep in zip(given, sizes, [*sizes[1:], 0], kept, strict=True):
                h, c = self._cell(gates, h[:size], c[:size], keep)
                features.append(h)
                ends.append(h[after:])
        return torch.cat(features), site, torch.cat(ends[::-1])[packed.unsorted_indices]

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """H and c after one more input, (batch, …)."""
        return self._cell(self.input(x), h, c)

    def _cell(self, given: Tensor, h: Tensor, c: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        adds, keeps, new, shows = (given + self.recurrent(h)).chunk(4, 1)
        new = new.tanh() if keep is None else new.tanh() * keep
        c = keeps.sigmoid() * c + adds.sigmoid() * new
        return shows.sigmoid() * c.tanh(), c


# -- the mixture of bivariate Gaussians --------------------------------------------------------------------------------


def _split(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, means, log deviations and artanh ρ of (…, 6 · m) parameters: (…, m) each, the middle two (…, 2, m)."""
    logits, means, log_sigmas, rho = parameters.split([(m := parameters.shape[-1] // 6), 2 * m, 2 * m, m], -1)
    log_sigmas = log_sigmas.unflatten(-1, (2, m)).clamp(min=_LEAST_SIGMA)
    return logits, means.unflatten(-1, (2, m)), log_sigmas, rho.clamp(-_MOST_RHO, _MOST_RHO)


def mixture_log_prob(parameters: Tensor, offsets: Tensor) -> Tensor:
    """Log density of offsets, (rows, 2), under mixtures of bivariate Gaussians, (rows, 6 · mixtures): (rows,) nats.

    With ρ = tanh r, a and b the offsets in deviations from the mean, the exponent (a² + b² − 2 ρ a b) / (1 − ρ²) is
    (a cosh r − b sinh r)² + b², and √(1 − ρ²) is 1 / cosh r, without a difference of large numbers.
    """
    logits, means, log_sigmas, r = _split(parameters)
    a, b = ((offsets[..., None] - means) * (-log_sigmas).exp()).unbind(-2)
    square = (a * r.cosh() - b * r.sinh()).square() + b.square()
    each = -0.5 * square - log_sigmas.sum(-2) + r.cosh().log() - math.log(2 * math.pi)
    return torch.logsumexp(each + logits.log_softmax(-1), -1)


def mixture_sample(parameters: Tensor, temperature: float = 1.0) -> Tensor:
    """A draw for each row, (rows, 2): logits over `temperature`, variances times it; at 0 the heaviest mean."""
    logits, means, log_sigmas, r = _split(parameters)
    index = _chosen(logits, temperature).long()[:, None]
    mean, log_sigma = (part.gather(2, index[:, None].expand(-1, 2, 1))[..., 0] for part in (means, log_sigmas))
    rho = r.gather(1, index)[:, 0].tanh()
    first, second = torch.randn_like(mean).unbind(1)
    correlated = torch.stack([first, rho * first + (1 - rho.square()).sqrt() * second], 1)
    return mean + math.sqrt(temperature) * log_sigma.exp() * correlated


def _chosen(logits: Tensor, temperature: float) -> Tensor:
    """An index for each row of (rows, choices), as floats: drawn, or the likeliest at 0."""
    return (draw_index(logits, temperature) if temperature else logits.argmax(1)).float()


# -- sequences ---------------------------------------------------------------------------------------------------------


def _points(strokes: Tensor) -> Tensor:
    """How many points each drawing has, (batch,)."""
    return (strokes[..., 2] != Strokes.END).sum(1)


def _stroke5(strokes: Tensor) -> Tensor:
    """Rows as the networks read them: offsets and the pen as one of three, (…, 5)."""
    return torch.cat([strokes[..., :2], F.one_hot(strokes[..., 2].long(), _PENS).to(strokes.dtype)], -1)


def _first(count: int, device: torch.device) -> Tensor:
    """What stands before the first point, (count, 5): the origin, with the pen on the paper."""
    return _stroke5(torch.zeros(count, 3, device=device))
