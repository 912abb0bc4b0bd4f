"""Semi-supervised VAE (M1, M2, M1+M2): a classifier from few labels, inside a generative model.

M1 is a variational autoencoder of all rows and a classifier q(y|z) of what it encodes. M2 has the class as a second
latent variable, p(x, y, z) = p(y) p(z) p(x|y, z), seen in some rows and inferred by q(y|x) in all others:

    log p(x, y) ≥ E_q(z|x,y)[log p(x|y, z)] + log p(y) − KL(q(z|x, y) ‖ p(z))  =: −L(x, y),
    log p(x) ≥ Σ_y q(y|x) (−L(x, y)) + H(q(y|x))                               =: −U(x),

the sum over classes exact and not sampled. It learns the mean of L over labelled rows and U over the others, and the
classification of the labelled rows, which L does not see, with a weight α:

    J = 1/N (Σ_labelled L + Σ_unlabelled U) + α E_labelled[−log q(y|x)].

M1+M2 stacks them: M1 learns first, from everything; then it is frozen, and M2 learns of samples z₁ ~ q(z₁|x) in place
of x, so that p(x, y, z₁, z₂) = p(y) p(z₂) p(z₁|y, z₂) p(x|z₁). M2's z need not say the class, which p(x|y, z) is told:
it is the style, and one style can be shown in all classes (`analogies`).

In M1 the classifier learns beside the autoencoder and no gradient goes on from it to the features. Batches hold more
labelled rows than the data does; each row's L or U is weighted so that J is that of the data.

References
----------
Kingma, Rezende, Mohamed, Welling (2014), Semi-Supervised Learning with Deep Generative Models, arXiv:1406.5298:
equations 2 to 9; its α is 0.1 N in the units in which J is a sum over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError, check_at_least
from tacit.model import Batch, Losses, Progress, Recipe, Step
from tacit.models._conditional import Conditional
from tacit.models._few_labels import check_labels, labelled_and_unlabelled
from tacit.models.latent._likelihood import Likelihood
from tacit.models.latent._networks import dense, ends
from tacit.models.latent.vae import VAE, gaussian_kl
from tacit.nn import noise
from tacit.spaces import Images, Space, Vectors

# Features are as wide as their posteriors: a log scale below this would only chase a few rows.
_LOWEST = -5.0


class SemiSupervisedVAE(Conditional):
    """M1, M2, or M2 on the features of M1.

    Args:
        space: images, or vectors.
        classes: how many classes the labels name.
        kind: "m1", "m2" or "m1+m2".
        latent: dimensions of z, in "m1+m2" of z₁; by default 50, or as many as the data has where that is fewer.
        style: dimensions of z₂ in "m1+m2": few, or they say the class as well and leave y nothing; by default 10, or as
            many as z₁ has where that is fewer.
        m1_hidden: units of the fully connected hidden layers of M1's encoder; its decoder has them in reverse.
        hidden: of the classifier and of M2's networks, likewise; M2 computes its decoder's for every class.
        network: "mlp", fully connected alone, or "conv", which takes images through convolutions first.
        channels: of the convolutions, each of which halves height and width; for "conv" alone.
        decoder: "bernoulli" (binary images), "logistic" (images) or "gaussian" (tables); by default what suits.
        weight: α, of the classification of labelled rows.
        labelled_per_batch: rows of each batch that are drawn from the labelled ones; the rest are unlabelled.
        share: of the budget, in which "m1+m2" trains its M1; M2 has the rest.

    Raises:
        TacitError: a width is below 1, `classes` below two, `weight` below 0, `share` not in (0, 1), there is no such
            kind, or the network or the decoder does not suit the space.
    """

    spaces = (Images, Vectors)
    recipe = Recipe(batch_size=128, learning_rate=1e-3, ema=0.999)
    density = "bound"

    progress: Tensor
    labelled: Tensor
    classes: int

    def __init__(
        self,
        space: Space,
        *,
        classes: int,
        kind: Literal["m1", "m2", "m1+m2"] = "m1+m2",
        latent: int | None = None,
        style: int | None = None,
        m1_hidden: tuple[int, ...] = (600, 600),
        hidden: tuple[int, ...] = (500,),
        network: Literal["mlp", "conv"] = "mlp",
        channels: tuple[int, ...] = (32, 64),
        decoder: Literal["bernoulli", "logistic", "gaussian"] | None = None,
        weight: float = 1.0,
        labelled_per_batch: int = 28,
        share: float = 0.5,
    ):
        super().__init__(space, classes)
        if kind not in ("m1", "m2", "m1+m2"):
            raise TacitError(f"kind is {kind!r}: give 'm1', 'm2' or 'm1+m2'")
        if classes < 2:
            raise TacitError(f"classes={classes} leaves nothing to tell apart: have labels of at least two classes")
        latent = min(50, space.dimensions) if latent is None else latent
        style = min(10, latent) if style is None else style
        check_at_least(1, latent=latent, style=style, m1_hidden=m1_hidden, hidden=hidden, channels=channels)
        check_at_least(1, labelled_per_batch=labelled_per_batch)
        check_at_least(0, weight=weight)
        if not 0 < share < 1:
            raise TacitError(f"share is {share}: give the fraction of the budget that M1 learns in, between 0 and 1")
        self.kind, self.latent, self.weight = kind, latent, weight
        self.labelled_per_batch, self.share = labelled_per_batch, share
        self.m1: VAE | None = None
        self.m2: M2 | None = None
        self.told: nn.Sequential | None = None
        if kind != "m2":
            self.m1 = VAE(space, latent=latent, hidden=m1_hidden, network=network, channels=channels, decoder=decoder)
        if kind == "m1":
            self.told = nn.Sequential(*dense(latent, *hidden), nn.Linear(hidden[-1], classes))
        elif kind == "m2":
            self.m2 = M2(space, Likelihood(space, decoder), classes, latent, hidden, network, channels)
        else:
            self.m2 = M2(Vectors(latent), FeatureLikelihood(), classes, style, hidden, "mlp", ())
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("labelled", torch.ones(()))  # share of the data's rows

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Take the classes' shares and that of labelled rows; start every entry at its own marginal.

        Raises:
            DataError: some class has no labelled row, or there are more classes than `classes`.
        """
        check_labels(data, self.classes, "semi-supervised-vae")
        super().adapt(data)
        self.labelled.copy_((cast(Tensor, data.label) >= 0).float().mean())
        if self.m1 is not None:
            self.m1.adapt(data)
        else:
            cast(Likelihood, self._m2().likelihood).adapt(data)

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`labelled_per_batch` labelled rows (at most half a batch), then unlabelled ones; these make the epoch."""
        return labelled_and_unlabelled(data, size, self.labelled_per_batch, generator, "semi-supervised-vae")

    def players(self) -> dict[str, dict[str, Any]]:
        """One, or M1 and then M2."""
        if self.kind != "m1+m2":
            return super().players()
        return {name: {"params": list(self.get_submodule(name).parameters())} for name in ("m1", "m2")}

    def steps(self, batch: Batch) -> Iterator[Step]:
        """M1 alone in its share of the budget, M2 alone in the rest."""
        if self.kind != "m1+m2":
            yield from super().steps(batch)
        elif float(self.progress) < self.share:
            yield "m1", lambda: Losses(features=self._features_loss(batch))
        else:
            yield "m2", lambda: self._classes_loss(batch)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Note how much of the budget is used."""
        self.progress.fill_(progress.fraction)

    def loss(self, batch: Batch) -> Losses:
        """M1's `features` (−ELBO), M2's terms of J `labelled` and `unlabelled`, `classification`: what the kind has."""
        terms = {} if self.m1 is None else {"features": self._features_loss(batch)}
        return Losses(**terms, **self._classes_loss(batch))

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, which are known, and what each row's bound counts; (batch,) each.

        While learning, labelled rows count together what they are of the data, so that a batch stands for it; held-out
        rows count alike.
        """
        label = torch.full_like(batch.index, -1) if batch.label is None else batch.label
        known = label >= 0
        if not self.training:
            return label, known, torch.full_like(label, 1 / len(label), dtype=torch.float32)
        of_known = self.labelled / known.sum().clamp(min=1)
        of_others = (1 - self.labelled) / (~known).sum().clamp(min=1)
        return label, known, torch.where(known, of_known, of_others)

    def _features_loss(self, batch: Batch) -> Tensor:
        m1 = cast(VAE, self.m1)
        entries, log_det = m1.likelihood.entries(batch.x)
        mean, log_var = self._features(entries)
        z = mean + (0.5 * log_var).exp() * noise.randn_like(mean)
        elbo = m1.likelihood.log_prob(m1.decoder(z), entries) + log_det - gaussian_kl(mean, log_var).sum(1)
        return -(self._rows(batch)[2] * elbo).sum()

    def _classes_loss(self, batch: Batch) -> Losses:
        label, known, counts = self._rows(batch)
        entries, log_det = self._entries(batch.x, noise.randn_like)
        logits = self._logits(entries)
        classification = F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1)
        if self.m2 is None:
            return Losses(classification=self.weight * classification)
        # One noise for all classes: what tells them apart is then not its chance.
        noises = noise.randn(len(entries), 1, self.m2.latent, device=self.device)
        log_likelihood, _, kl = self.m2.by_class(entries, noises)
        bounds = log_likelihood - kl + self.log_prior
        of_class = bounds.gather(1, label.clamp(min=0)[:, None])[:, 0] + log_det
        of_all = marginal_bound(bounds, logits) + log_det
        return Losses(
            labelled=-(counts * known * of_class).sum(),
            unlabelled=-(counts * ~known * of_all).sum(),
            classification=self.weight * classification,
        )

    # -- the networks -------------------------------------------------------------------------------------------------

    def _features(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances of q(z₁|x), (batch, latent) each."""
        m1 = cast(VAE, self.m1)
        mean, log_var = m1.encoder(m1.likelihood.seen(entries)).float().chunk(2, 1)
        return mean, log_var

    def _entries(self, x: Tensor, source: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What the classifier and M2 take, x or z₁ with noise from `source`, and log |det| of the way, (batch,)."""
        if self.m1 is None:
            return cast(Likelihood, self._m2().likelihood).entries(x)
        with torch.no_grad():
            mean, log_var = self._features(self.m1.likelihood.entries(x)[0])
            if self.m2 is not None:
                mean = mean + (0.5 * log_var).exp() * source(mean)
        return mean, mean.new_zeros(len(mean))

    def _logits(self, entries: Tensor) -> Tensor:
        """Of q(y|·), (batch, classes)."""
        if self.m2 is None:
            return cast(nn.Module, self.told)(entries).float()
        return self.m2.classifier(self.m2.likelihood.seen(entries)).float()

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, label: int | Tensor | None = None, samples: int = 1) -> Tensor:
        """A lower bound on log p(x) in expectation, or on log p(x|label), (batch,) nats, of `samples` weights.

        With M2 the classes are summed over: log 1/K Σ_k Σ_y p(x, y, z_ky) / q(z_ky|x, y), above −U whatever q(y|x).

        Raises:
            SpaceError: `x` is not of the space.
            TacitError: `label` is no class, or of M1, whose density has none; `samples` is below 1.
        """
        check_at_least(1, samples=samples)
        if label is not None:
            label = self._styled_labels(label, len(x))
        if self.m2 is None:
            return cast(VAE, self.m1).log_prob(x, samples)
        m1, m2 = self.m1, self.m2
        likelihood = cast(Likelihood, m2.likelihood) if m1 is None else m1.likelihood
        entries, log_det = likelihood.entries(x)
        mean, log_var = (entries, entries) if m1 is None else self._features(entries)

        def log_weights(count: int) -> Tensor:
            first = torch.zeros(len(x), count, device=x.device)
            seen = entries.repeat_interleave(count, 0)
            if m1 is not None:
                noises = noise.randn(len(x), count, self.latent, device=x.device)
                z = mean[:, None] + (0.5 * log_var).exp()[:, None] * noises
                # log p(x|z₁) − log q(z₁|x); p(z₁) is M2's.
                log_q = -0.5 * (noises.square() + log_var[:, None] + math.log(2 * math.pi)).sum(2)
                seen = z.flatten(0, 1)
                first = m1.likelihood.log_probs(m1.decoder(seen), entries) - log_q
            noises = noise.randn(len(x), count, m2.latent, device=x.device).view(-1, 1, m2.latent)
            log_likelihood, log_ratio, _ = m2.by_class(seen, noises)
            by_class = log_likelihood + log_ratio
            if label is None:
                second = (by_class + self.log_prior).logsumexp(1)
            else:
                second = by_class.gather(1, label.repeat_interleave(count)[:, None])[:, 0]
            return first + second.view(len(x), count)

        return likelihood.log_mean_weight(log_weights, samples, len(x)) + log_det

    @torch.no_grad()
    def importance_weighted(self, x: Tensor, samples: int = 5000) -> Tensor:
        """A tight lower bound on log p(x), (batch,) nats, for reports: `log_prob` of many samples."""
        return self.log_prob(x, samples=samples)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y|x), of the mean features where there is an M1: (batch, classes)."""
        return self._logits(self._entries(x, torch.zeros_like)[0]).softmax(1)

    @torch.no_grad()
    def style(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """The mean of q(z|x, y), z₂ in M1+M2, of the class given or else the most likely one: (batch, latent).

        Raises:
            TacitError: `label` is no class, or there is no M2.
        """
        entries, _ = self._entries(x, torch.zeros_like)
        label = self._logits(entries).argmax(1) if label is None else label
        return self._m2().posterior(entries, self._styled_labels(label, len(x)))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """With M2, the most likely class as 1 among 0s and then its style, (batch, classes + style); of M1, E[z|x]."""
        entries, _ = self._entries(x, torch.zeros_like)
        if self.m2 is None:
            return entries
        label = self._logits(entries).argmax(1)
        return torch.cat([F.one_hot(label, self.classes), self.m2.posterior(entries, label)], 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely observation of each code, (batch, *shape); a code may lie between classes."""
        if self.m2 is None:
            return cast(VAE, self.m1).decode(z)
        output = self.m2.decoded(z[:, self.classes :], z[:, : self.classes])
        mode = self.m2.likelihood.mode(output)
        return mode if self.m1 is None else self.m1.decode(mode)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the codes of `x` decode to, (batch, *shape)."""
        return self.decode(self.encode(x))

    def analogies(self, x: Tensor) -> Tensor:
        """The style of each observation in every class, (batch, classes, *shape).

        Raises:
            TacitError: there is no M2.
        """
        style = self.style(x).repeat_interleave(self.classes, 0)
        classes = torch.eye(self.classes, device=x.device).repeat(len(x), 1)
        return self.decode(torch.cat([classes, style], 1)).unflatten(0, (len(x), self.classes))

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """M1's posterior means, (batch, latent); without M1, what the classifier's output is linear in."""
        entries, _ = self._entries(x, torch.zeros_like)
        if self.m1 is not None:
            return entries
        m2 = self._m2()
        return m2.classifier[:-1](m2.likelihood.seen(entries)).float()

    @torch.no_grad()
    def sample(self, count: int, *, label: int | Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws x ~ p(x|y, z), (count, *shape), of the class given, or of classes as frequent as their labels.

        `temperature` multiplies the deviations of latent variables.

        Raises:
            TacitError: `label` is no class, or of M1, which draws without.
        """
        if label is not None:
            label = self._styled_labels(label, count)
        if self.m2 is None:
            return cast(VAE, self.m1).sample(count, temperature=temperature)
        drawn = cast(Tensor, self.drawn_labels(label, count))
        z = temperature * torch.randn(count, self.m2.latent, device=self.device)
        output = self.m2.decoded(z, F.one_hot(drawn, self.classes).float())
        if self.m1 is None:
            return self.m2.likelihood.sample(output)
        return self.m1.likelihood.sample(self.m1.decoder(self.m2.likelihood.sample(output, temperature)))

    def _m2(self) -> M2:
        if self.m2 is None:
            raise TacitError("kind is 'm1', whose latent variable knows of no class: fit kind 'm2' or 'm1+m2'")
        return self.m2

    def _styled_labels(self, label: int | Tensor, count: int) -> Tensor:
        """A class for each of `count` rows, where there is an M2."""
        self._m2()
        return self._labels(label, count)


class M2(nn.Module):
    """q(y|x), q(z|x, y) and p(x|y, z), of observations or of features.

    Args:
        space: of what it learns.
        likelihood: p(x|y, z), given what the decoder makes of y and z.
        classes: how many.
        latent: dimensions of z.
        hidden, network, channels: as of `SemiSupervisedVAE`.
    """

    def __init__(
        self,
        space: Space,
        likelihood: Likelihood | FeatureLikelihood,
        classes: int,
        latent: int,
        hidden: tuple[int, ...],
        network: Literal["mlp", "conv"],
        channels: tuple[int, ...],
    ):
        super().__init__()
        self.likelihood, self.latent = likelihood, latent
        outside, _, first, _ = ends(space, network, channels)
        self.classifier = nn.Sequential(*outside, *dense(first, *hidden), nn.Linear(hidden[-1], classes))
        outside, inside, first, last = ends(space, network, channels, likelihood.outputs)
        self.outside, self.inside = nn.Sequential(*outside), nn.Sequential(*inside)
        self.encoder = WithClass(classes, first, *hidden, 2 * latent)
        self.decoder = WithClass(classes, latent, *reversed(hidden), last)

    def by_class(self, entries: Tensor, noises: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every class, (batch, classes) each: log p(x|y, z), log p(z) / q(z|x, y) and KL(q(z|x, y) ‖ p(z)).

        Args:
            entries: (batch, *shape), as the likelihood takes them.
            noises: standard normal, (batch, classes, latent), or (batch, 1, latent) for one that classes share.
        """
        every = torch.eye(self.encoder.classes, device=entries.device)
        seen = self.outside(self.likelihood.seen(entries))[:, None]
        mean, log_var = self.encoder(seen, every).float().chunk(2, -1)
        z = mean + (0.5 * log_var).exp() * noises
        # The constants of the two Gaussians cancel.
        log_ratio = 0.5 * (noises.square() - z.square() + log_var).sum(-1)
        log_likelihood = self.likelihood.log_probs(self.decoded(z, every), entries)
        return log_likelihood, log_ratio, gaussian_kl(mean, log_var).sum(-1)

    def decoded(self, z: Tensor, told: Tensor) -> Tensor:
        """What the likelihood takes, rows of z (…, latent) and weights of classes (…, classes), in one axis."""
        return self.inside(self.decoder(z, told).flatten(0, -2))

    def posterior(self, entries: Tensor, label: Tensor) -> Tensor:
        """The mean of q(z|x, y), (batch, latent), of a class for each row, (batch,)."""
        told = F.one_hot(label, self.encoder.classes).float()
        return self.encoder(self.outside(self.likelihood.seen(entries)), told).float().chunk(2, 1)[0]


class WithClass(nn.Module):
    """Fully connected layers of these sizes, the first of which is also told a class, by weights of all of them."""

    def __init__(self, classes: int, *sizes: int):
        super().__init__()
        self.classes = classes
        self.input = nn.Linear(sizes[0], sizes[1])
        self.told = nn.Linear(classes, sizes[1], bias=False)
        self.rest = nn.Sequential(nn.SiLU(), *dense(*sizes[1:-1]), nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(…, inputs) and (…, classes), broadcast against each other -> (…, outputs)."""
        return self.rest(self.input(x) + self.told(told))


class FeatureLikelihood(nn.Module):
    """p(z₁|y, z₂) of M1's features, used as `Likelihood` is: a Gaussian, means and log scales from the decoder."""

    outputs = 2

    def seen(self, entries: Tensor) -> Tensor:
        """Features as they are."""
        return entries

    def log_probs(self, output: Tensor, entries: Tensor) -> Tensor:
        """Log p(z₁|y, z₂) of several outputs a row, (batch, count) nats: output (batch · count, 2 · latent)."""
        mean, log_scale = self._split(output.unflatten(0, (len(entries), -1)))
        z = (entries[:, None] - mean) * (-log_scale).exp()
        return -(0.5 * z.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        """One draw for each row, (rows, latent); `temperature` multiplies the scales."""
        mean, log_scale = self._split(output)
        return mean + temperature * log_scale.exp() * torch.randn_like(mean)

    def mode(self, output: Tensor) -> Tensor:
        """The means."""
        return self._split(output)[0]

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = output.float().chunk(2, -1)
        return mean, log_scale.clamp(min=_LOWEST)


def marginal_bound(bounds: Tensor, logits: Tensor) -> Tensor:
    """−U(x) = Σ_y q(y|x) (−L(x, y) − log q(y|x)), (batch,), of −L and the logits of q(y|x), (batch, classes) each."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * (bounds - log_q)).sum(1)
