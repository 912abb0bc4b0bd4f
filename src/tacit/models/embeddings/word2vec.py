"""Word2vec: word vectors from skip-grams with negative sampling.

Every word has an input vector v and an output vector u. A centre word c and a word o near it are told from noise:

    L(c, o) = −log σ(u_o · v_c) − Σ_k log σ(−u_{n_k} · v_c),    n_k ~ P(w) ∝ count(w)^0.75,  k = 1 … negative

summed over the words o up to r places from c, with r uniform in {1, …, window} for each centre, so that near words
weigh more. Before that the text is thinned: words seen fewer than `min_count` times are dropped, and an occurrence of a
word of frequency f survives with probability min(1, √(t/f) + t/f), t = `sample` (the authors' word2vec.c; the paper
prints √(t/f)). Learning is stochastic gradient descent, pair by pair, at a rate that falls linearly over the budget.

With numba on a CPU the pairs are learnt one by one by a compiled kernel (`_kernel.py`). Without it, and on a GPU, the
same objective is learnt in blocks of up to 64 centres: a block's pairs share as many noise words, each weighted so that
the expected gradient is the same, and change the vectors together.

References
----------
Mikolov, Chen, Corrado & Dean (2013), Efficient estimation of word representations in vector space, arXiv:1301.3781
Mikolov, Sutskever, Chen, Corrado & Dean (2013), Distributed representations of words and phrases and their
compositionality, arXiv:1310.4546
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.model import Batch, Losses, Model, Progress, Recipe, Step
from tacit.spaces import Tokens

# The most centres that are learnt together, and noise words that they share, where there is no kernel.
_BLOCK = 64

# Words that are counted at once: a text on disk may be larger than memory.
_COUNTED = 2**24


class Blocks(NamedTuple):
    """Centres cut into blocks, the text around each block, and the noise words that a block shares.

    `centre` (blocks, size), `near` (blocks, size + 2 window), `noise` (blocks, size); `mask` (blocks, size,
    size + 2 window) is 1 where a word of `near` is a context of the centre.
    """

    centre: Tensor
    near: Tensor
    noise: Tensor
    mask: Tensor


class Word2Vec(Model):
    """Skip-gram word2vec with negative sampling.

    `input` and `output` hold a vector for every word of the vocabulary; the input vectors are the word vectors. Words
    rarer than `min_count` are not learnt and their vectors are zero. Learns in place, without an optimiser.

    Args:
        space: windows of a text whose symbols are words; `length` only says in what pieces the text is read.
        dim: entries of a word vector.
        window: the furthest that a context word can be from its centre.
        negative: noise words for each pair.
        min_count: words that occur less often are left out.
        sample: threshold t of the subsampling of frequent words; 0 keeps every occurrence.
        rate: learning rate at the start.
        final_rate: learning rate at the end of the budget, to which it falls linearly.

    Raises:
        TacitError: an argument is out of its range.
    """

    spaces = (Tokens,)
    recipe = Recipe(batch_size=512)  # windows of 16 words: the learning rate falls every 8192 words

    space: Tokens
    keep: Tensor
    threshold: Tensor
    alias: Tensor
    block: Tensor
    current_rate: Tensor

    def __init__(
        self,
        space: Tokens,
        *,
        dim: int = 100,
        window: int = 5,
        negative: int = 5,
        min_count: int = 5,
        sample: float = 1e-3,
        rate: float = 0.025,
        final_rate: float = 1e-4,
    ):
        super().__init__(space)
        for name, value in {"dim": dim, "window": window, "negative": negative, "min_count": min_count}.items():
            if value < 1:
                raise TacitError(f"{name} is {value}: give a number of at least 1")
        if sample < 0:
            raise TacitError(f"sample is {sample}: give 0, to keep every word, or a small frequency such as 0.001")
        if not 0 <= final_rate <= rate:
            raise TacitError(f"final_rate is {final_rate} and rate {rate}: give 0 ≤ final_rate ≤ rate")
        self.window, self.negative, self.min_count, self.subsampling = window, negative, min_count, sample
        self.initial_rate, self.final_rate = rate, final_rate
        self.input = nn.Parameter((torch.rand(space.vocabulary, dim) - 0.5) / dim)
        self.output = nn.Parameter(torch.zeros(space.vocabulary, dim))
        # What `adapt` takes from the text: each word's chance to be kept, the noise distribution as an alias table, and
        # how many centres are learnt together where there is no kernel.
        self.register_buffer("keep", torch.ones(space.vocabulary))
        self.register_buffer("threshold", torch.ones(space.vocabulary))
        self.register_buffer("alias", torch.arange(space.vocabulary))
        self.register_buffer("block", torch.tensor(_BLOCK))
        self.register_buffer("current_rate", torch.tensor(rate))

    # -- learning -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Count the words.

        Raises:
            DataError: no word occurs `min_count` times.
        """
        counts = torch.zeros(self.space.vocabulary, dtype=torch.float64)
        for part in data.x.split(_COUNTED):
            counts += torch.bincount(part.cpu().long(), minlength=self.space.vocabulary)
        known = counts >= self.min_count
        if not known.any():
            raise DataError(
                f"no word of {data.name} occurs {self.min_count} times: bring more text or set min_count to at most "
                f"{int(counts.max())}"
            )
        counts[~known] = 0
        keep = known.double()
        if self.subsampling > 0:
            ratio = self.subsampling * counts.sum() / counts[known]
            keep[known] = (ratio.sqrt() + ratio).clamp(max=1)
        noise = counts**0.75
        threshold, alias = alias_table(noise)
        # The commonest word should stand about once in a block: many steps at once from the same place overshoot.
        commonest = max(float((p / p.sum()).max()) for p in (noise, counts * keep))
        self.block.fill_(min(_BLOCK, math.ceil(1 / commonest)))
        self.keep.copy_(keep)
        self.threshold.copy_(threshold)
        self.alias.copy_(alias)
        self.input[~known.to(self.device)] = 0

    def players(self) -> dict[str, dict[str, Any]]:
        return {}

    def batches(self, data: Dataset, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The text end to end from a random place in its first window, in chunks of `size` windows, shuffled.

        A chunk's windows continue one another, so that contexts reach across them.
        """
        length = min(self.space.length, len(data))
        phase = int(torch.randint(length, (1,), generator=generator))
        chunks = torch.arange(phase, len(data), self.space.length).split(size)
        order = torch.randperm(len(chunks), generator=generator)
        return (chunks[i] for i in order.tolist())

    def steps(self, batch: Batch) -> Iterator[Step]:
        yield None, lambda: self._learn(batch)

    def after_step(self, progress: Progress) -> None:
        self.current_rate.fill_(self.initial_rate + (self.final_rate - self.initial_rate) * progress.fraction)

    def _learn(self, batch: Batch) -> Losses:
        learn = _compiled() if self.device.type == "cpu" else None
        if learn is None:
            return self._learn_in_blocks(batch)
        loss, pairs = learn(
            batch.x.numpy(),
            batch.index.numpy(),
            self.input.detach().numpy(),
            self.output.detach().numpy(),
            self.keep.numpy(),
            self.threshold.numpy(),
            self.alias.numpy(),
            self.window,
            self.negative,
            self.current_rate.item(),
            torch.randint(2**62, ()).item(),
        )
        return Losses(negative_sampling=torch.tensor(loss / max(pairs, 1)))

    @torch.no_grad()
    def _learn_in_blocks(self, batch: Batch) -> Losses:
        blocks = self._blocks(batch)
        loss = self.input.new_zeros(())
        for centre, near, noise, mask in zip(*blocks, strict=True):
            v, u, u_noise = (
                w.index_select(0, i) for w, i in ((self.input, centre), (self.output, near), (self.output, noise))
            )
            weight = self._noise_weight(mask)
            score, score_noise = v @ u.T, v @ u_noise.T
            loss += (mask * F.softplus(-score)).sum() + (weight * F.softplus(score_noise)).sum()
            # The gradient of the line above, by hand: autograd's would be as large as the vocabulary.
            g = self.current_rate * mask * torch.sigmoid(-score)
            g_noise = -self.current_rate * weight * torch.sigmoid(score_noise)
            self.input.index_add_(0, centre, g @ u + g_noise @ u_noise)
            self.output.index_add_(0, near, g.T @ v)
            self.output.index_add_(0, noise, g_noise.T @ v)
        return Losses(negative_sampling=loss / blocks.mask.sum().clamp(min=1))

    def loss(self, batch: Batch) -> Losses:
        """The mean of L(c, o) over the pairs of a batch, in nats, with noise words shared by blocks of centres."""
        centre, near, noise, mask = self._blocks(batch)
        v = self.input[centre]
        score, score_noise = v @ self.output[near].mT, v @ self.output[noise].mT
        total = (mask * F.softplus(-score)).sum() + (self._noise_weight(mask) * F.softplus(score_noise)).sum()
        return Losses(negative_sampling=total / mask.sum().clamp(min=1))

    def _blocks(self, batch: Batch) -> Blocks:
        size, length = int(self.block), batch.x.shape[1]
        words = batch.x.flatten()
        breaks = batch.index.diff(prepend=batch.index[:1] - length) != length
        text = breaks.cumsum(0).repeat_interleave(length)
        kept = torch.rand(words.shape, device=words.device) < self.keep[words]
        words, text = words[kept], text[kept]
        reach = torch.randint(1, self.window + 1, words.shape, device=words.device)
        # Padding is of no text (−1) and reaches nothing: it pairs with no word. There is some even where every word was
        # thinned out, so that there is always a block.
        missing = size - len(words) % size
        centre, reach = (F.pad(t, (0, missing)).view(-1, size) for t in (words, reach))
        near = F.pad(words, (self.window, self.window + missing)).unfold(0, size + 2 * self.window, size)
        text_near = F.pad(text, (self.window, self.window + missing), value=-1).unfold(0, near.shape[1], size)
        text = text_near[:, self.window : self.window + size]
        place = torch.arange(size, device=words.device)
        distance = (torch.arange(near.shape[1], device=words.device) - self.window - place.unsqueeze(1)).abs()
        mask = (distance > 0) & (distance <= reach.unsqueeze(-1)) & (text_near.unsqueeze(1) == text.unsqueeze(-1))
        return Blocks(centre, near, self._noise_words(*centre.shape), mask.to(self.input.dtype))

    def _noise_weight(self, mask: Tensor) -> Tensor:
        """How much each of a block's noise words counts for each centre: `negative` a pair, spread over all of them."""
        return mask.sum(-1, keepdim=True) * (self.negative / mask.shape[-2])

    def _noise_words(self, *shape: int) -> Tensor:
        word = torch.randint(len(self.threshold), shape, device=self.device)
        return torch.where(torch.rand(shape, device=self.device) < self.threshold[word], word, self.alias[word])

    # -- capabilities -------------------------------------------------------------------------------------------------

    @property
    def vectors(self) -> Tensor:
        """The word vectors, (vocabulary, dim); zero for words that were too rare to be learnt."""
        return self.input.detach()

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Windows (batch, length) -> the means of their words' vectors, (batch, dim)."""
        return self.input[self.space.check(x)].mean(1)

    @torch.no_grad()
    def neighbours(self, words: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
        """The nearest other words of each of `words` (batch,), by cosine.

        Returns:
            word numbers and cosines, (batch, count) each, nearest first.
        """
        unit = F.normalize(self.input, dim=1)
        cosine = unit[words] @ unit.T
        cosine[:, self.keep == 0] = -torch.inf
        cosine.scatter_(1, words.unsqueeze(1), -torch.inf)
        cosine, nearest = cosine.topk(count, dim=1)
        return nearest, cosine


def alias_table(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Walker's alias table of a distribution ∝ `weights`, (n,): thresholds in [0, 1] and aliases, (n,) each.

    To draw: choose i uniformly; take i with probability threshold[i], else alias[i].
    """
    share = (weights.double() / weights.double().sum() * len(weights)).tolist()
    threshold, alias = [1.0] * len(share), list(range(len(share)))
    small = [i for i, p in enumerate(share) if p < 1]
    large = [i for i, p in enumerate(share) if p >= 1]
    while small and large:
        lacking, giving = small.pop(), large.pop()
        threshold[lacking], alias[lacking] = share[lacking], giving
        share[giving] -= 1 - share[lacking]
        (small if share[giving] < 1 else large).append(giving)
    return torch.tensor(threshold), torch.tensor(alias)


def _compiled() -> Callable[..., tuple[float, int]] | None:
    """The kernel, where numba is installed."""
    try:
        from tacit.models.embeddings import _kernel
    except ImportError:
        return None
    return _kernel.learn
