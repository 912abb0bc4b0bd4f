"""VQ-VAE: the quantiser is the paper's by naive loops, the bound is below the sum over all codes, caches are exact."""

import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.model import Batch, Progress
from tacit.models.latent._code_prior import CodePrior
from tacit.models.latent._codebook import Codebook, straight_through
from tacit.models.latent._residual import halved, residual_decoder, residual_encoder
from tacit.models.latent.vq_vae import VQVAE
from tacit.nn import noise, shares
from tacit.spaces import Images
from tacit.training import pictures
from tacit.training.learner import Learner

SMALL = {"codes": 8, "features": 4, "hidden": 8, "blocks": 1, "residual": 4, "prior_features": 8, "prior_layers": 1}


def small(space=None, **arguments):
    torch.manual_seed(0)
    return VQVAE(space or Images(1, 8, 8, 2), **SMALL | arguments)


def images(space, rows=40):
    torch.manual_seed(1)
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def everything(space):
    values = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, *space.shape)


def randomise(model, std=0.5):
    """Weights far from their start, so that every factor depends on what it may depend on."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


# -- the codebook -----------------------------------------------------------------------------------------------------


def test_nearest_is_a_naive_argmin_and_of_equals_the_first(monkeypatch):
    torch.manual_seed(0)
    book, z = Codebook(7, 3), torch.randn(2, 3, 4, 5)
    book.vectors[5] = book.vectors[2]
    monkeypatch.setattr("tacit.models.latent._codebook._AT_ONCE", 11)
    found = book.nearest(z)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        distances = [float((z[b, :, i, j] - e).square().sum()) for e in book.vectors]
        assert int(found[b, i, j]) == min(range(7), key=distances.__getitem__)
    assert (book.nearest(book.vectors[5].view(1, 3, 1, 1)) == 2).all()
    assert torch.equal(book(found)[1, :, 2, 3], book.vectors[found[1, 2, 3]])


def test_gradients_go_straight_through():
    """d f(e) / d z is f' at e itself, and the codebook, which is no parameter, gets none."""
    torch.manual_seed(0)
    book, z = Codebook(5, 3), torch.randn(2, 3, 2, 2, requires_grad=True)
    quantised = straight_through(z, book(book.nearest(z)))
    assert torch.equal(quantised, book(book.nearest(z)))
    weight = torch.randn_like(z)
    (weight * quantised.square()).sum().backward()
    torch.testing.assert_close(z.grad, weight * 2 * book(book.nearest(z)))
    assert not list(book.parameters())


def test_running_means_equal_the_paper_s_loop():
    torch.manual_seed(0)
    book = Codebook(6, 2, decay=0.9, revive_after=1000)
    counts, sums = torch.ones(6), book.vectors.clone()
    for _ in range(30):
        z = torch.randn(4, 2, 3, 3)
        codes = book.nearest(z)
        for i in range(6):
            near = z.movedim(1, -1)[codes == i]
            counts[i] = 0.9 * counts[i] + 0.1 * len(near)
            sums[i] = 0.9 * sums[i] + 0.1 * near.sum(0)
        _, perplexity = book.learn(z, codes)
        torch.testing.assert_close(book.vectors, sums / counts[:, None])
        torch.testing.assert_close(book.counts, counts)
    shares_of = torch.bincount(codes.flatten(), minlength=6) / codes.numel()
    assert perplexity.item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares_of.tolist() if p)))


def test_idle_vectors_restart_at_outputs_and_rest_in_the_second_half():
    torch.manual_seed(0)
    book = Codebook(4, 2, revive_after=3)
    book.vectors.copy_(torch.tensor([[0.0, 0.0], [50.0, 0.0], [60.0, 0.0], [1.0, 1.0]]))
    far = book.vectors[1:3].clone()
    z = torch.rand(5, 2, 2, 2)
    for step in range(3):
        assert torch.equal(book.vectors[1:3], far)
        usage, _ = book.learn(z, book.nearest(z))
        assert usage.item() == (1.0 if step < 2 else 0.5)
    outputs = z.movedim(1, -1).flatten(0, 2)
    for vector in book.vectors[1:3]:
        assert (outputs == vector).all(1).any()
    assert (book.counts[1:3] == 1).all()
    book.vectors[1:3] = far
    book.revives.fill_(False)
    for _ in range(10):
        book.learn(z, book.nearest(z))
    assert torch.equal(book.vectors[1:3], far)


def test_two_processes_learn_the_codebook_of_one(monkeypatch):
    """Counts, means and restarts are those of the whole batch: exactly, but for the order in which they are summed.

    The processes take turns; each one's messages are noted on a copy first.
    """
    torch.manual_seed(0)
    one, z = Codebook(16, 3, revive_after=2), torch.randn(5, 8, 3, 2, 3)
    one.vectors[8:] += 100  # far from all outputs
    both = [copy.deepcopy(one) for _ in range(2)]

    def learn(book, step, rank, all_reduce):
        monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
        with noise.shared(rank, 2, torch.Generator().manual_seed(step)):
            book.learn(z[step, rank::2], book.nearest(z[step, rank::2]))

    for step in range(5):
        torch.manual_seed(step)
        one.learn(z[step], one.nearest(z[step]))
        sent = [[], []]
        for rank in range(2):
            learn(copy.deepcopy(both[rank]), step, rank, lambda flat, to=sent[rank]: to.append(flat.clone()))
        for rank in range(2):
            sums = [a + b for a, b in zip(*sent, strict=True)]
            learn(both[rank], step, rank, lambda flat, sums=sums: flat.copy_(sums.pop(0)))
    for name, value in one.state_dict().items():
        assert torch.equal(both[0].state_dict()[name], both[1].state_dict()[name])
        torch.testing.assert_close(both[0].state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert one.vectors.abs().max() < 50, "those far away restarted"


# -- the networks and the prior ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (9, 5)])
def test_an_image_of_any_size_comes_back_to_it(size):
    sizes = halved(size, 2)
    h = residual_encoder(3, 6, 2, 1, 4)(torch.randn(2, 3, *size))
    assert h.shape == (2, 6, *sizes[-1])
    assert residual_decoder(6, 6, 5, sizes, 1, 4)(h).shape == (2, 5, *size)


def every_map(codes, size):
    values = itertools.product(range(codes), repeat=math.prod(size))
    return torch.tensor(list(values)).view(-1, *size)


@pytest.mark.parametrize("more", [{}, {"heads": 2}, {"classes": 2}, {"coarser": 4}], ids="".join)
def test_prior_sums_to_one_and_caches_draw_from_it(more):
    prior = randomise(CodePrior(3, (2, 3), features=6, layers=2, **more), 0.3)
    maps = every_map(3, (2, 3))
    label = torch.tensor(1).expand(len(maps)) if "classes" in more else None
    coarser = torch.tensor([[[3, 1]]]).expand(len(maps), 1, 2) if "coarser" in more else None
    with torch.no_grad():
        log_prob = prior.log_prob(maps, label, coarser)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    drawn = prior.sample(len(maps), label, coarser)
    # A draw's logits from caches are those of one pass: the same noise gives the same codes.
    torch.manual_seed(7)
    fast = prior.sample(50, *(x if x is None else x[:50] for x in (label, coarser)), temperature=0.7)
    torch.manual_seed(7)
    slow = torch.zeros(50, 2, 3, dtype=torch.int64)
    for i, j in itertools.product(range(2), range(3)):
        logits = prior.logits(slow, *(x if x is None else x[:50] for x in (label, coarser)))[:, :, i, j]
        slow[:, i, j] = (logits / 0.7 - torch.empty_like(logits).exponential_().log()).argmax(1)
    assert torch.equal(fast, slow)
    assert drawn.shape == maps.shape


def test_prior_sees_all_that_came_before_with_attention_and_nothing_else():
    prior = randomise(CodePrior(4, (3, 5), features=4, layers=1, heads=2), 0.5)
    h = prior.symbol(torch.randint(4, (1, 3, 5))).detach().movedim(-1, 1).requires_grad_()
    prior.symbol.forward = lambda codes: h.movedim(1, -1)
    for row, column in ((0, 0), (1, 3), (2, 4)):
        logits = prior.logits(torch.zeros(1, 3, 5, dtype=torch.int64))[0, :, row, column]
        gradient = torch.autograd.grad(logits.square().sum(), h)[0][0].abs().sum(0)
        before = torch.arange(15).view(3, 5) < row * 5 + column
        assert (gradient[~before] == 0).all()
        assert (gradient[before] != 0).all()


# -- the model --------------------------------------------------------------------------------------------------------


def test_bound_is_one_term_of_the_exact_sum_over_codes():
    """Two codes and a 2 × 1 map can be summed over: every bound is below log p(x), and the model's p sums to one."""
    space = Images(1, 8, 1, 2)
    model = randomise(small(space, codes=2, features=2))
    x, maps = everything(space), every_map(2, (2, 1))
    model.adapt(Dataset(space, x))
    with torch.no_grad():
        bound = model.log_prob(x)
        log_prior = model.priors[0].log_prob(maps)
        output = model._output(model._vectors((maps,)))
        each = torch.stack([model.likelihood.log_prob(o.expand(len(x), -1, -1, -1), x) for o in output], 1)
        exact = (each + log_prior).logsumexp(1)
        chosen = (model.codes(x)[0].flatten(1) * torch.tensor([2, 1])).sum(1)
        assert chosen.unique().numel() > 1
        torch.testing.assert_close(bound, (each + log_prior)[torch.arange(len(x)), chosen])
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (bound <= exact + 1e-6).all()
    assert bound.exp().sum().item() <= 1


def test_bound_of_a_model_with_classes_is_that_of_their_mixture():
    space = Images(1, 3, 2, 2)
    model = randomise(small(space, classes=3, codes=3, features=2))
    x = everything(space)
    with torch.no_grad():
        each = torch.stack([model.log_prob(x, label=y) for y in range(3)], 1)
        torch.testing.assert_close(model.log_prob(x), (each + model.log_prior).logsumexp(1))
        torch.testing.assert_close(model.classify(x), (each + model.log_prior).softmax(1))
        assert model.log_prob(x).exp().sum() <= 1
    with pytest.raises(TacitError, match="3 is not a class"):
        model.sample(2, label=3)


@pytest.mark.parametrize("space", [Images(1, 9, 6, 2), Images(3, 5, 7, 17)], ids=["binary", "colours"])
def test_codes_decode_as_what_they_encode(space):
    model, x = small(space), images(space)
    model.adapt(Dataset(space, x))
    (codes,) = model.codes(x)
    assert codes.shape == (len(x), *model.sizes[0]) and codes.dtype == torch.int64
    z = model.encode(x)
    assert torch.equal(z, model.codebooks[0](codes))
    assert torch.equal(model.decode(z), model.reconstruct(x))
    assert torch.equal(model.decode_codes((codes,)), model.reconstruct(x))


def test_loss_is_the_negative_bound_and_the_commitment():
    space = Images(1, 6, 6, 5)
    model, x = small(space), images(space)
    model.adapt(Dataset(space, x))
    losses = model.loss(Batch(x, torch.arange(len(x))))
    z = model.encoder(model.likelihood.seen(x))
    e = model.codebooks[0](model.codes(x)[0])
    torch.testing.assert_close(losses["commitment"], 0.25 * (z - e).square().sum() / len(x))
    torch.testing.assert_close(losses["reconstruction"] + losses["prior"], -model.log_prob(x).mean())
    torch.testing.assert_close(losses.total, sum(losses.values()))


def test_encoder_s_gradient_is_the_decoder_s_at_the_code_and_the_commitment_s():
    """The chain rule by hand: ∂L/∂z = ∂(−log p(x|e))/∂e + 2β (z − e), then through the encoder."""
    space = Images(1, 6, 6, 2)
    model, x = small(space), images(space, 10)
    model.adapt(Dataset(space, x))
    losses = model.loss(Batch(x, torch.arange(10)))
    weights = list(model.encoder.parameters())
    found = torch.autograd.grad(losses["reconstruction"] + losses["commitment"], weights)
    z = model.encoder(model.likelihood.seen(x))
    e = model.codebooks[0](model.codes(x)[0]).requires_grad_()
    (at_code,) = torch.autograd.grad(-model.likelihood.log_prob(model._output([e]), x).mean(), e)
    expected = torch.autograd.grad(z, weights, at_code + 2 * 0.25 * (z - e).detach() / 10)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_players_learn_their_own_and_the_codebook_learns_while_training_alone():
    space = Images(1, 8, 8, 2)
    data = Dataset(space, images(space))
    model = small(space)
    model.adapt(data)
    learner = Learner(model.train(), model.recipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    terms = learner.step(data.batch(torch.arange(20)), Progress(0, 0, 0.0))
    assert {"usage", "perplexity", "prior/nll", "autoencoder/reconstruction", "autoencoder/commitment"} <= set(terms)
    torch.testing.assert_close(terms["loss"], terms["prior/nll"] + terms["autoencoder/reconstruction"])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"codebooks.0.vectors", "codebooks.0.counts", "encoder.1.weight", "decoder.0.weight"} <= changed
    model.after_step(Progress(1, 0, 0.6))
    assert not model.codebooks[0].revives
    before = model.codebooks[0].vectors.clone()
    model.loss(data.batch(torch.arange(20)))
    assert torch.equal(model.codebooks[0].vectors, before)


def test_codebook_starts_at_different_outputs_of_unit_variance():
    space = Images(1, 8, 8, 2)
    x = images(space, 60)
    x[:40] = 0  # most outputs are equal
    model = small(space)
    model.adapt(Dataset(space, x))
    assert len(model.codebooks[0].vectors.unique(dim=0)) == 8
    z = model._levels(x)[0].outputs
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert F.mse_loss(z.mean((0, 2, 3)), torch.zeros(4)) < 1e-6


def test_a_picture_of_the_samples_brings_one_of_the_codebook_s_use(tmp_path):
    space = Images(1, 8, 8, 2)
    model = small(space)
    model.codebooks[0].counts.copy_(torch.tensor([3.0, 1, 0, 0, 0, 0, 0, 4]))
    assert model.code_shares()["codes"].tolist() == [0.375, 0.125, 0, 0, 0, 0, 0, 0.5]
    pictures.draw(model, images(space, 4), Dataset(space, images(space)), tmp_path / "step-7.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes-step-7.png", "step-7.png"]


def test_what_it_cannot_do_it_says():
    space = Images(1, 4, 4, 2)
    with pytest.raises(DataError, match="codes is 64, but few has 5 images of 1 × 1 places to quantise"):
        small(space, codes=64).adapt(Dataset(space, images(space, 5), name="few"))
    with pytest.raises(TacitError, match="decay is 1: give a number in"):
        small(decay=1)
    with pytest.raises(TacitError, match="codes is 0: give at least 1"):
        small(codes=0)
    with pytest.raises(TacitError, match="beta is -1: give at least 0"):
        small(beta=-1)
    with pytest.raises(TacitError, match="temperature is 0: give a number above 0"):
        small().sample(2, temperature=0)


def test_rows_picked_are_those_of_the_whole_batch():
    x = torch.randn(4, 3, 2)
    found = shares.picked(x, 100)
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in x.flatten(0, 1).tolist()}
