"""Word2vec: the kernel and the blocks against naive loops, and the two distributions against their definitions."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TacitError
from tacit.model import Progress
from tacit.models import embeddings
from tacit.models.embeddings import _kernel, word2vec
from tacit.models.embeddings.word2vec import Word2Vec, alias_table
from tacit.spaces import Images, Tokens

MASK = 2**64 - 1


def text(words: int = 3000, vocabulary: int = 60, length: int = 10) -> Dataset:
    """A text of two topics that never share a sentence of ten words; low numbers are more frequent."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(3.0, vocabulary // 2 + 3)
    sentences = torch.multinomial(weights.expand(words // 10, -1), 10, replacement=True, generator=generator) * 2
    topic = torch.randint(2, (words // 10, 1), generator=generator)
    return Dataset(Tokens(vocabulary, length), (sentences + topic).flatten().to(torch.uint8), name="two topics")


def learn(model: Word2Vec, data: Dataset, epochs: int, seed: int = 0, size: int = 20) -> list[float]:
    """What the loop does, short: the mean loss of each epoch."""
    model.adapt(data)
    means, step = [], 0
    for epoch in range(epochs):
        losses = []
        for index in model.batches(data, size, torch.Generator().manual_seed(seed + epoch)):
            torch.manual_seed(1000 * seed + step)
            for player, closure in model.steps(data.batch(index)):
                assert player is None
                with torch.no_grad():
                    losses.append(closure()["negative_sampling"].item())
            step += 1
            model.after_step(Progress(step, epoch, min(1.0, (epoch + 1) / epochs)))
        means.append(sum(losses) / len(losses))
    return means


@pytest.fixture
def without_numba(monkeypatch):
    """As on a machine where numba is not installed."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "tacit.models.embeddings._kernel")
    monkeypatch.delattr(embeddings, "_kernel")


# -- the two distributions --------------------------------------------------------------------------------------------


def test_the_alias_table_is_the_noise_distribution():
    counts = torch.tensor([0.0, 5, 17, 1000, 5, 80, 0, 333])
    threshold, alias = alias_table(counts**0.75)
    implied = threshold.double().clone().index_add_(0, alias, 1 - threshold.double()) / len(counts)
    torch.testing.assert_close(implied, (counts.double() ** 0.75) / (counts.double() ** 0.75).sum(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_noise_words_are_drawn_from_unigram_to_the_three_quarters(path):
    data = text()
    model = Word2Vec(data.space, min_count=40)
    model.adapt(data)
    if path == "torch":
        drawn = model._noise_words(40_000).numpy()
    else:
        state, drawn = np.uint64(1), []
        threshold, alias = model.threshold.numpy(), model.alias.numpy()
        for _ in range(40_000):
            state, bits = map(np.uint64, _kernel.random_bits(state))
            drawn.append(_kernel.noise_word(bits, threshold, alias))
    counts = np.bincount(data.x.numpy(), minlength=60).astype(float)
    counts[counts < 40] = 0
    seen = np.bincount(drawn, minlength=60)
    assert (counts == 0).any() and not seen[counts == 0].any()
    expected = counts[counts > 0] ** 0.75
    assert chisquare(seen[counts > 0], expected / expected.sum() * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("sample", [0.01, 0.0])
def test_frequent_words_are_thinned(sample):
    data = text()
    model = Word2Vec(data.space, sample=sample, min_count=40)
    model.adapt(data)
    counts = torch.bincount(data.x.long(), minlength=60)
    total = int(counts[counts >= 40].sum())
    for word, count in enumerate(counts.tolist()):
        frequency = count / total
        expected = min(1.0, math.sqrt(sample / frequency) + sample / frequency) if sample else 1.0
        assert model.keep[word].item() == pytest.approx(expected if count >= 40 else 0, rel=1e-6)


# -- the kernel against plain Python ----------------------------------------------------------------------------------


class Reference:
    """Splitmix64, subsampling, windows and updates, one number at a time, in double precision."""

    def __init__(self, model: Word2Vec, seed: int):
        self.model, self.state = model, seed
        self.input, self.output = (
            model.input.detach().double().numpy().copy(),
            model.output.detach().double().numpy().copy(),
        )
        self.loss, self.pairs = 0.0, 0

    def bits(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = ((self.state ^ self.state >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return z ^ z >> 31

    def learn(self, words: list[int], rate: float) -> None:
        model = self.model
        kept = [word for word in words if (self.bits() & 0xFFFFFF) / 2**24 < model.keep[word].item()]
        for i, centre in enumerate(kept):
            reach = 1 + ((self.bits() >> 32) * model.window >> 32)
            for j in range(i - reach, i + reach + 1):
                if j == i or not 0 <= j < len(kept):
                    continue
                words_and_signs = [(kept[j], 1)]
                for _ in range(model.negative):
                    bits = self.bits()
                    word = (bits >> 32) * len(model.alias) >> 32
                    if (bits & 0xFFFFFF) / 2**24 >= model.threshold[word].item():
                        word = int(model.alias[word])
                    if word != kept[j]:
                        words_and_signs.append((word, -1))
                self.update(centre, words_and_signs, rate)

    def update(self, centre: int, words_and_signs: list[tuple[int, int]], rate: float) -> None:
        v = self.input[centre].copy()
        pulls = []
        for word, sign in words_and_signs:
            p = 1 / (1 + math.exp(-sign * self.output[word] @ v))
            self.loss -= math.log(p)
            pulls.append((word, rate * sign * (1 - p)))
        for word, pull in pulls:
            self.input[centre] += pull * self.output[word]
            self.output[word] += pull * v
        self.pairs += 1


def prepared(**arguments) -> tuple[Word2Vec, Dataset]:
    """A model whose vectors are large enough that sigmoids differ from a half, in all paths alike."""
    data = text()
    model = Word2Vec(data.space, dim=7, min_count=40, sample=0.02, **arguments)
    model.adapt(data)
    torch.manual_seed(3)
    with torch.no_grad():
        model.input.normal_().mul_(0.7)
        model.output.normal_().mul_(0.7)
    return model, data


def test_the_kernel_is_the_naive_loop():
    model, data = prepared(window=3, negative=4, rate=0.05)
    # Rows 0–2 continue one another, as do 3–4: two texts, whose words are no contexts of each other.
    index = torch.tensor([0, 10, 20, 200, 210])
    torch.manual_seed(11)
    reference = Reference(model, torch.randint(2**62, ()).item())
    reference.learn(data.x[:30].tolist(), 0.05)
    reference.learn(data.x[200:220].tolist(), 0.05)
    torch.manual_seed(11)
    losses = model._learn(data.batch(index))
    assert reference.pairs > 40
    assert losses.total.item() == pytest.approx(reference.loss / reference.pairs, rel=1e-5)
    np.testing.assert_allclose(model.input.detach().numpy(), reference.input, atol=2e-6)
    np.testing.assert_allclose(model.output.detach().numpy(), reference.output, atol=2e-6)


def test_a_pair_moves_down_its_gradient():
    torch.manual_seed(0)
    v, output = torch.randn(9, requires_grad=True), torch.randn(6, 9, requires_grad=True)
    words = torch.tensor([4, 0, 5, 2])
    score = output[words] @ v
    loss = -torch.nn.functional.logsigmoid(score * torch.tensor([1.0, -1, -1, -1])).sum()
    loss.backward()
    after_v, after_output = v.detach().clone().numpy(), output.detach().clone().numpy()
    room = np.empty(4, np.float32), np.empty(9, np.float32)
    told = _kernel.learn_pair(after_v, after_output, words.numpy(), 4, np.float32(0.1), *room)
    assert told == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.from_numpy(after_v), v.detach() - 0.1 * v.grad)
    torch.testing.assert_close(torch.from_numpy(after_output), output.detach() - 0.1 * output.grad)


# -- the blocks against plain Python ----------------------------------------------------------------------------------


def naive_total(model: Word2Vec, blocks: word2vec.Blocks) -> tuple[torch.Tensor, int]:
    """The summed objective, pair by pair, each noise word weighted so that a pair has `negative` of them."""
    total, pairs = torch.zeros(()), 0
    for centre, near, noise, mask in zip(*blocks, strict=True):
        for i in range(len(centre)):
            for j in range(len(near)):
                if mask[i, j]:
                    v = model.input[centre[i]]
                    total = total - torch.sigmoid(model.output[near[j]] @ v).log()
                    noise_terms = torch.stack([torch.sigmoid(-model.output[n] @ v).log() for n in noise])
                    total = total - model.negative * noise_terms.mean()
                    pairs += 1
    return total, pairs


def test_blocks_and_loss_are_the_naive_double_loop(monkeypatch):
    model, data = prepared(window=2, negative=3, rate=0.05)
    model.block.fill_(8)
    batch = data.batch(torch.tensor([0, 10, 300]))

    torch.manual_seed(5)
    blocks = model._blocks(batch)
    assert len(blocks.centre) > 1
    torch.manual_seed(5)
    losses = model.loss(batch)
    losses.total.backward()
    gradients = [model.input.grad.clone(), model.output.grad.clone()]
    model.zero_grad()
    total, pairs = naive_total(model, blocks)
    (total / pairs).backward()
    torch.testing.assert_close(losses["negative_sampling"], total.detach() / pairs)
    torch.testing.assert_close(gradients, [model.input.grad, model.output.grad])
    assert all(g.any() for g in gradients)

    # One block learnt is one step down the sum of that block's pairs.
    one = data.batch(torch.tensor([0]))
    torch.manual_seed(5)
    blocks = model._blocks(one)
    model.zero_grad()
    naive_total(model, word2vec.Blocks(*(field[:1] for field in blocks)))[0].backward()
    expected = [p.detach() - 0.05 * p.grad for p in model.parameters()]
    monkeypatch.setattr(model, "_blocks", lambda _: word2vec.Blocks(*(field[:1] for field in blocks)))
    model._learn_in_blocks(one)
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected)


def test_blocks_hold_each_pair_once():
    """With a window of one number and nothing thinned, the mask's pairs can be counted."""
    data = Dataset(Tokens(100, 5), torch.arange(100))
    model = Word2Vec(data.space, window=1, min_count=1, sample=0.0)
    model.block.fill_(8)
    centre, near, _, mask = model._blocks(data.batch(torch.tensor([0, 5, 10, 50, 55, 90])))
    found = {(int(centre[b, i]), int(near[b, j])) for b, i, j in mask.nonzero().tolist()}
    texts = (range(15), range(50, 60), range(90, 95))
    expected = {(a, b) for words in texts for a in words for b in words if abs(a - b) == 1}
    assert found == expected
    assert int(mask.sum()) == len(expected)


# -- learning ---------------------------------------------------------------------------------------------------------


def topics_apart(model: Word2Vec) -> bool:
    """Whether each of the ten frequent words is nearest to the words of its own topic."""
    nearest, cosine = model.neighbours(torch.arange(10), 3)
    assert (cosine.diff(dim=1) <= 0).all()
    return bool((nearest % 2 == torch.arange(10).unsqueeze(1) % 2).all())


def test_it_learns():
    data = text()
    model = Word2Vec(data.space, dim=16, rate=0.05, sample=0.0)
    batch = data.batch(torch.arange(0, 1000, 10))
    assert model.loss(batch).total.item() == pytest.approx(6 * math.log(2))
    means = learn(model, data, 12)
    assert means[-1] < means[0] < 6 * math.log(2)
    assert model.loss(batch).total.item() < 2.7
    assert topics_apart(model)
    assert model.current_rate.item() == pytest.approx(model.final_rate)


def test_it_learns_without_numba(without_numba):
    data = text()
    assert word2vec._compiled() is None
    model = Word2Vec(data.space, dim=16, rate=0.05, sample=0.0)
    batch = data.batch(torch.arange(0, 1000, 10))
    assert model.loss(batch).total.item() == pytest.approx(6 * math.log(2))
    means = learn(model, data, 12)
    assert means[-1] < means[0] < 6 * math.log(2)
    assert model.loss(batch).total.item() < 2.7
    assert topics_apart(model)


def test_two_runs_with_one_seed_are_equal():
    data = text()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = Word2Vec(data.space, dim=8)
        learn(model, data, 2, seed)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["input"], runs[2]["input"])


@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_rare_words_are_untouched(path, monkeypatch):
    if path == "torch":
        monkeypatch.setattr(word2vec, "_compiled", lambda: None)
    data = text()
    model = Word2Vec(data.space, dim=8, min_count=60)
    learn(model, data, 1)
    rare = torch.bincount(data.x.long(), minlength=60) < 60
    assert 0 < rare.sum() < 60
    assert not model.input[rare].any() and not model.output[rare].any()
    assert model.input[~rare].any(1).all() and model.output[~rare].any(1).all()
    assert not torch.isin(model.neighbours(torch.arange(60))[0][:, : int((~rare).sum()) - 1], rare.nonzero()).any()


def test_an_epoch_reads_the_text_end_to_end():
    data = text(words=1005)
    model = Word2Vec(data.space)
    chunks = list(model.batches(data, 16, torch.Generator().manual_seed(1)))
    assert all((index.diff() == 10).all() for index in chunks)
    starts = torch.cat(chunks).sort().values
    assert (starts.diff() == 10).all() and starts[0] < 10 and starts[-1] + 20 > len(data.x)
    assert torch.cat(chunks).tolist() != starts.tolist()


def test_a_text_of_one_window_and_one_of_unknown_words():
    data = Dataset(Tokens(3, 4), torch.tensor([0, 1, 0, 1]))
    model = Word2Vec(data.space, min_count=1, sample=0.0)
    assert 0 < learn(model, data, 1)[0] <= 6 * math.log(2) + 1e-6
    model.keep.zero_()
    for losses in (model._learn(data.batch(torch.tensor([0]))), model.loss(data.batch(torch.tensor([0])))):
        assert losses.total.item() == 0
    assert model._learn_in_blocks(data.batch(torch.tensor([0]))).total.item() == 0


# -- capabilities and errors ------------------------------------------------------------------------------------------


def test_windows_are_embedded_as_means_of_their_words():
    data = text()
    model = Word2Vec(data.space, dim=8)
    x = data[torch.tensor([0, 5, 77])]
    embedded = model.embed(x)
    assert embedded.shape == (3, 8) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded[1], sum(model.vectors[word] for word in x[1]) / 10)
    with pytest.raises(SpaceError):
        model.embed(x[:, :4])


def test_saved_and_loaded_it_goes_on_alike():
    data = text()
    model = Word2Vec(data.space, dim=8)
    learn(model, data, 1)
    other = Word2Vec(data.space, dim=8)
    other.load_state_dict(model.state_dict())
    batch = data.batch(torch.arange(0, 100, 10))
    for each in (model, other):
        torch.manual_seed(4)
        each._learn(batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "arguments", [{"dim": 0}, {"window": 0}, {"negative": 0}, {"min_count": 0}, {"sample": -1.0}, {"final_rate": 1.0}]
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(TacitError, match=next(iter(arguments))):
        Word2Vec(Tokens(10, 4), **arguments)


def test_bad_data_is_named():
    with pytest.raises(DataError, match="no word of two topics occurs 5000 times"):
        Word2Vec(text().space, min_count=5000).adapt(text())
    with pytest.raises(SpaceError, match="images"):
        Word2Vec(Images(1, 8, 8))
