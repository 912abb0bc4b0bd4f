import itertools

import pytest
import scipy.stats
import torch

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress
from tacit.models.autoregressive.made import MADE
from tacit.spaces import Images, Tokens, Vectors

# Of the contract's tests.
SMALL = {"hidden": (64,), "components": 3}

BINARY = Images(1, 3, 3, levels=2)
SPACES = [BINARY, Images(2, 2, 2, levels=3), Tokens(vocabulary=5, length=4)]
IDS = ["binary", "three-levels", "tokens"]


def everything(space):
    """Every observation of a small discrete space."""
    values = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(values)).view(-1, *space.shape).to(space.torch_dtype)


def random_made(space, **arguments):
    """A MADE whose weights are far from their start, so that every conditional depends on its context."""
    torch.manual_seed(0)
    model = MADE(
        space, **{"hidden": (30, 20), "components": 3, "orderings": 2, "masks": 3, "natural": False} | arguments
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2 if isinstance(space, Vectors) else 0.7)
    return model.eval()


def probe(space):
    """A float stand-in for an observation's network inputs, and how many belong to one entry."""
    width = space.vocabulary if isinstance(space, Tokens) else 1
    return torch.randn(1, width * space.dimensions), width


@pytest.mark.parametrize("space", SPACES, ids=IDS)
def test_probabilities_sum_to_one(space):
    model = random_made(space)
    assert model.log_prob(everything(space)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("components", [1, 4])
def test_density_of_a_table_integrates_to_one(components):
    torch.manual_seed(1)
    x = torch.randn(500, 2) * torch.tensor([3.0, 0.2]) + torch.tensor([10.0, -1.0])
    model = MADE(Vectors(2), hidden=(20,), components=components, orderings=2)
    model.adapt(Dataset(Vectors(2), x))
    with torch.no_grad():
        model.output.weight.normal_(std=0.3)
        model.direct.weight.normal_(std=0.3)
    grids = [torch.linspace(m - 12 * s, m + 12 * s, 1200) for m, s in ((10, 3), (-1, 0.2))]
    grid = torch.cartesian_prod(*grids)
    cell = (grids[0][1] - grids[0][0]) * (grids[1][1] - grids[1][0])
    with torch.no_grad():
        assert (model.log_prob(grid).double().exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("space", [*SPACES, Vectors(6)], ids=[*IDS, "table"])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_jacobian_is_zero_exactly_where_the_order_forbids(space, s):
    model = random_made(space, hidden=(200,), masks=3)
    inputs, width = probe(space)
    d = space.dimensions
    jacobian = torch.autograd.functional.jacobian(lambda z: model._given(z, s, None)[0], inputs)
    depends = jacobian.view(-1, d, width, d).abs().sum((0, 2)) > 0
    ranks = model.ranks[s % 2]
    assert torch.equal(depends, ranks[:, None] > ranks[None, :])


def test_jacobian_through_two_hidden_layers_alone():
    model = random_made(BINARY, hidden=(100, 80), direct=False)
    for s in range(model.sets):
        jacobian = torch.autograd.functional.jacobian(lambda z, s=s: model._given(z, s, None)[0, 0], torch.rand(1, 9))
        ranks = model.ranks[s % 2]
        assert torch.equal(jacobian[:, 0] != 0, ranks[:, None] > ranks[None, :])


def test_natural_ordering_is_the_data_s_own():
    assert torch.equal(MADE(BINARY).ranks[0], torch.arange(1, 10, dtype=torch.int32))


def test_ensemble_averages_probabilities():
    model, x = random_made(BINARY), everything(BINARY)[:50]
    each = torch.stack([model._log_prob_of(x.flatten(1), None, s) for s in range(3)]).exp()
    assert torch.allclose(model.log_prob(x).exp(), each.mean(0), rtol=1e-5)
    assert not torch.allclose(each[0], each[1], rtol=1e-2)


@pytest.mark.parametrize("space", [BINARY, Tokens(vocabulary=3, length=4)], ids=["binary", "tokens"])
def test_samples_follow_the_density(space):
    model = random_made(space, hidden=(30,))
    whole = everything(space)
    p = model.log_prob(whole).double().exp()
    count = 40_000
    base = torch.tensor([space.levels**i for i in reversed(range(space.dimensions))])
    drawn = torch.bincount((model.sample(count).long().flatten(1) * base).sum(1), minlength=len(whole)).double()
    often = p * count >= 5
    observed = torch.cat([drawn[often], drawn[~often].sum()[None]])
    expected = torch.cat([p[often], p[~often].sum()[None]]) * count
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    degrees = len(expected) - 1
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("space", [*SPACES, Vectors(5)], ids=[*IDS, "table"])
@pytest.mark.parametrize("arguments", [{}, {"direct": False, "hidden": (40,)}, {"hidden": (4, 50, 7)}])
def test_sampling_uses_the_conditionals_of_the_full_pass(space, arguments):
    """What the incremental sampler computed entry by entry, the masked network computes of its draws at once."""
    model = random_made(space, **arguments)
    for s in range(model.sets):
        x, parameters = model._ancestral(16, s, 1.0)
        assert torch.allclose(model._given(model._inputs(x), s, None), parameters, atol=2e-5)


def test_samples_have_the_space_s_form():
    for space in [*SPACES, Vectors(3), Images(3, 2, 5)]:
        drawn = random_made(space).sample(7)
        assert drawn.shape == (7, *space.shape)
        assert drawn.dtype == space.torch_dtype
        assert random_made(space).sample(0).shape == (0, *space.shape)


def test_low_temperature_draws_are_more_probable():
    model = random_made(BINARY, orderings=1, masks=1)
    assert model.log_prob(model.sample(500, temperature=0.2)).mean() > model.log_prob(model.sample(500)).mean() + 0.5


@pytest.mark.parametrize("space", [*SPACES, Vectors(5), Images(1, 5, 4)], ids=[*IDS, "table", "levels"])
def test_learns_and_every_parameter_has_a_gradient(space):
    torch.manual_seed(0)
    rows = torch.randn(64, 5) if isinstance(space, Vectors) else torch.randint(space.levels, (64, *space.shape))
    if not isinstance(space, Tokens):
        data = Dataset(space, rows.to(space.torch_dtype))
    else:
        data = Dataset(space, rows.flatten())
    model = MADE(space, hidden=(32, 32), orderings=2, components=3, dropout=0.1)
    model.adapt(data)
    batch = Batch(data.observations(64), torch.arange(64))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        optimiser.zero_grad()
        loss = model.loss(batch).total
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if step > 0)
        optimiser.step()
        model.after_step(Progress(step, 0, 0.0))
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])


def test_starts_at_the_marginals():
    torch.manual_seed(0)
    x = (torch.rand(4000, 1, 3, 3) < torch.linspace(0.05, 0.95, 9).view(1, 3, 3)).to(torch.uint8)
    model = MADE(BINARY, hidden=(10,))
    model.adapt(Dataset(BINARY, x))
    with torch.no_grad():
        model.output.weight.zero_()
    p = x.double().mean(0)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    assert -model.log_prob(x).mean().item() == pytest.approx(entropy.item(), abs=0.01)


def test_turn_cycles_through_the_sets_and_is_saved():
    model = random_made(BINARY)
    x = everything(BINARY)[100:140]
    batch = Batch(x, torch.arange(len(x)))
    for step in range(5):
        expected = -model._log_prob_of(model.entries(x), None, step % 3).mean()
        assert torch.equal(model.loss(batch).total, expected)
        model.after_step(Progress(step, 0, 0.0))
    other = random_made(BINARY)
    torch.manual_seed(9)
    other = MADE(BINARY, hidden=(30, 20), components=3, orderings=2, masks=3, natural=False).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert torch.equal(other.loss(batch).total, model.loss(batch).total)


def test_one_entry_needs_no_context():
    model = random_made(Images(1, 1, 1, levels=4))
    assert model.log_prob(everything(model.space)).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert model.sample(3).shape == (3, 1, 1, 1)


def test_embeds_by_the_last_hidden_layer():
    assert random_made(BINARY).embed(everything(BINARY)[:6]).shape == (6, 20)


@pytest.mark.parametrize(
    "arguments", [{"hidden": ()}, {"hidden": (0,)}, {"orderings": 0}, {"masks": 0}, {"components": 0}, {"dropout": 1.0}]
)
def test_refuses_what_makes_no_network(arguments):
    with pytest.raises(TacitError, match=next(iter(arguments))):
        MADE(Images(1, 2, 2), **arguments)


def test_refuses_a_temperature_of_zero():
    with pytest.raises(TacitError, match="temperature"):
        MADE(BINARY).sample(2, temperature=0)


def test_bfloat16_changes_little():
    torch.manual_seed(0)
    model, x = MADE(BINARY, hidden=(30, 20), orderings=2), everything(BINARY)[::7]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = model.log_prob(x)
    assert rough.dtype == torch.float32
    assert torch.allclose(rough, model.log_prob(x), atol=0.1)


def frequencies(drawn, space):
    base = torch.tensor([space.levels**i for i in reversed(range(space.dimensions))])
    return torch.bincount((drawn.long().flatten(1) * base).sum(1), minlength=space.levels**space.dimensions)


def agrees(drawn, p):
    """χ² of draws against masses, of the cells that should hold some."""
    often = p * int(drawn.sum()) >= 5
    observed = torch.cat([drawn[often], drawn[~often].sum()[None]])
    expected = torch.cat([p[often], p[~often].sum()[None].clamp(min=1e-12)]) * int(drawn.sum())
    keep = expected >= 1
    observed, expected = observed[keep], expected[keep]
    return scipy.stats.chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_classes_obey_bayes_rule():
    model, x = random_made(BINARY, classes=3), everything(BINARY)
    model.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    with torch.no_grad():
        given = torch.stack([model.log_prob(x, label=y) for y in range(3)], 1).double()
        torch.testing.assert_close(given.exp().sum(0), torch.ones(3).double(), rtol=1e-5, atol=0)
        joint = (given + model.log_prior).exp()
        torch.testing.assert_close(model.log_prob(x).double().exp(), joint.sum(1), rtol=1e-4, atol=0)
        torch.testing.assert_close(model.classify(x).double(), joint / joint.sum(1, keepdim=True), rtol=1e-3, atol=1e-6)
    assert agrees(frequencies(model.sample(20_000, label=2), BINARY), given[:, 2].exp())
    assert agrees(frequencies(model.sample(20_000), BINARY), joint.sum(1))


def test_guided_draws():
    model, x = random_made(BINARY, classes=2, label_dropout=0.1, orderings=1, masks=1), everything(BINARY)
    inputs = model._inputs(model.entries(x))
    with torch.no_grad():
        one, none = (model._given(inputs, 0, torch.full((len(x),), y)) for y in (1, 2))
        p = model.head.log_prob(3 * one - 2 * none, model.entries(x)).sum(1).double().exp()
    assert agrees(frequencies(model.sample(20_000, label=1, guidance=2.0), BINARY), p)
    with pytest.raises(TacitError, match=r"guidance is 1\.0"):
        random_made(BINARY, classes=2).sample(2, label=0, guidance=1.0)


def test_completions_follow_the_conditional_of_one_ordering():
    space = Tokens(vocabulary=3, length=5)
    model = random_made(space, orderings=1, masks=1, natural=True, classes=2)
    x, known = torch.randint(3, (1, 5)), torch.tensor([True, True, False, False, False])
    whole = everything(space)
    with torch.no_grad():
        p = torch.where((whole[:, :2] == x[:, :2]).all(1), model.log_prob(whole).double().exp(), 0)
    drawn = model.complete(x.expand(20_000, 5), known)
    assert (drawn[:, :2] == x[:, :2]).all()
    assert agrees(frequencies(drawn, space), p / p.sum())
    with pytest.raises(TacitError, match="let the known part come first, or fit made with several --orderings"):
        model.complete(x, ~known)
    with pytest.raises(TacitError, match="known is bool of shape"):
        model.complete(x, known[:4])


def test_several_orderings_complete_any_part():
    """Each set with its ordering rearranged is a law of its own, whose conditional the completions follow."""
    model = random_made(BINARY, orderings=3, masks=1)
    x = torch.randint(2, (1, 1, 3, 3)).to(torch.uint8)
    known = torch.rand(1, 3, 3) < 0.5
    whole, mask = everything(BINARY), known.flatten()
    fits = (whole.flatten(1)[:, mask] == x.flatten(1)[:, mask]).all(1)
    p = torch.zeros(len(whole), dtype=torch.double)
    with torch.no_grad():
        for s in range(3):
            ranks = (model.ranks[s] + 9 * ~mask).argsort().argsort().int() + 1
            each = torch.where(fits, model._log_probs(whole.flatten(1), None, s, ranks).sum(1).double().exp(), 0)
            p += each / each.sum() / 3
    drawn = model.complete(x.expand(20_000, 1, 3, 3), known)
    assert torch.equal(drawn[:, known], x.expand(20_000, 1, 3, 3)[:, known])
    assert agrees(frequencies(drawn, BINARY), p)


def test_a_table_keeps_what_is_known_to_the_last_bit():
    model = random_made(Vectors(4), orderings=4)
    x = torch.randn(50, 4) * 100
    known = torch.tensor([True, False, True, False])
    done = model.complete(x, known)
    assert torch.equal(done[:, known], x[:, known]) and (done[:, ~known] != x[:, ~known]).all()
