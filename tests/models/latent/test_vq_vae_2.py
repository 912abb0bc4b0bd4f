"""VQ-VAE-2: the bound against the sum over both maps, the bottom's dependence on the top, the order of drawing."""

import itertools
import math

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress
from tacit.models.latent.vq_vae_2 import VQVAE2
from tacit.spaces import Images
from tacit.training.learner import Learner

# One halving: a top map of a single place would leave a prior nothing to learn from what came before.
SMALL = {
    "codes": 8,
    "features": 4,
    "halvings": 1,
    "hidden": 8,
    "blocks": 1,
    "residual": 4,
    "prior_features": 8,
    "prior_layers": 1,
}


def small(space, **arguments):
    torch.manual_seed(0)
    return VQVAE2(space, **SMALL | arguments)


def images(space, rows=40):
    torch.manual_seed(1)
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def every_map(codes, size):
    values = itertools.product(range(codes), repeat=math.prod(size))
    return torch.tensor(list(values)).view(-1, *size)


def test_bound_is_one_term_of_the_exact_sum_over_both_maps():
    space = Images(1, 8, 1, 2)
    model = small(space, codes=2, features=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    x = every_map(2, space.shape).to(torch.uint8)
    model.adapt(Dataset(space, x))
    model.eval()
    assert model.sizes == [(2, 1), (4, 1)]
    pairs = list(itertools.product(every_map(2, (2, 1)), every_map(2, (4, 1))))
    top, bottom = (torch.stack(maps) for maps in zip(*pairs, strict=True))
    with torch.no_grad():
        bound = model.log_prob(x)
        log_prior = model._log_prior([top, bottom], None)
        output = model._output(model._vectors((top, bottom)))
        each = torch.stack([model.likelihood.log_prob(o.expand(len(x), -1, -1, -1), x) for o in output], 1) + log_prior
        found = torch.cat([codes.flatten(1) for codes in model.codes(x)], 1)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-5)
    chosen = (found * 2 ** torch.arange(5, -1, -1)).sum(1)
    assert chosen.unique().numel() > 2
    torch.testing.assert_close(bound, each[torch.arange(len(x)), chosen])
    exact = each.logsumexp(1)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (bound <= exact + 1e-6).all()
    assert bound.exp().sum().item() <= 1


def test_the_bottom_prior_hears_the_top_at_its_own_places():
    model = small(Images(1, 9, 9, 2), prior_layers=2).eval()
    prior, top = model.priors[1], torch.zeros(1, 3, 3, dtype=torch.int64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        context = prior._context(top)
        moved = top.clone()
        moved[0, 1, 2] = 3
        changed = (prior._context(moved) != context).any(1)[0]
        codes = torch.randint(8, (1, 5, 5))
        assert not torch.equal(prior.log_prob(codes, None, top), prior.log_prob(codes, None, moved))
    assert changed.shape == (5, 5) and changed[2:4, 4].all()


def test_codes_of_both_maps_decode_as_what_they_encode():
    space = Images(3, 9, 7, 17)
    model, x = small(space), images(space)
    model.adapt(Dataset(space, x))
    top, bottom = model.codes(x)
    assert (top.shape[1:], bottom.shape[1:]) == ((3, 2), (5, 4))
    z = model.encode(x)
    assert z.shape == (len(x), 4 * (6 + 20))
    assert torch.equal(model.decode(z), model.reconstruct(x))
    assert torch.equal(model.decode_codes((top, bottom)), model.reconstruct(x))
    drawn = model.sample_codes(3)
    assert [codes.shape for codes in drawn] == [(3, 3, 2), (3, 5, 4)]


def test_every_codebook_learns_and_says_how_much_of_it_is_used():
    space = Images(1, 8, 8, 2)
    data = Dataset(space, images(space))
    model = small(space)
    model.adapt(data)
    before = [book.vectors.clone() for book in model.codebooks]
    terms = Learner(model.train(), model.recipe).step(data.batch(torch.arange(20)), Progress(0, 0, 0.0))
    for name, book, old in zip(("_top", "_bottom"), model.codebooks, before, strict=True):
        assert not torch.equal(book.vectors, old)
        assert 1 <= terms[f"perplexity{name}"] <= 8 and 0 < terms[f"usage{name}"] <= 1
    shares = model.code_shares()
    assert list(shares) == ["codes_top", "codes_bottom"]
    assert all(share.sum().item() == pytest.approx(1, abs=1e-5) for share in shares.values())


def test_loss_is_the_negative_bound_and_both_commitments():
    space = Images(1, 6, 6, 5)
    model, x = small(space), images(space)
    model.adapt(Dataset(space, x))
    losses = model.loss(Batch(x, torch.arange(len(x))))
    away = sum((level.outputs - level.quantised).square().sum() for level in model._levels(x))
    torch.testing.assert_close(losses["commitment"], 0.25 * away / len(x))
    torch.testing.assert_close(losses["reconstruction"] + losses["prior"], -model.log_prob(x).mean())


def test_heads_that_do_not_divide_the_features_are_refused():
    with pytest.raises(TacitError, match="prior_features is 9: give a multiple of the 4 heads"):
        small(Images(1, 8, 8, 2), prior_features=9)
