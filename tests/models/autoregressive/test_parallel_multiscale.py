"""Groups of pixels at once: exact, independent of all that comes later, and in O(log N) passes."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch

from tacit import catalogue
from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.autoregressive.parallel_multiscale import ParallelMultiscale
from tacit.spaces import Images

# Of the contract's tests.
SMALL = {"features": 8, "layers": 2}

# (space, scales): small enough to enumerate, with a base and groups; then with odd sides, colours and empty groups.
TINY = [
    (Images(1, 3, 3, 2), 1),
    (Images(1, 3, 3, 2), 2),
    (Images(2, 2, 2, 3), 1),
    (Images(3, 1, 3, 2), 2),
]
WIDE = [
    (Images(3, 5, 7, 4), 2),
    (Images(4, 9, 6, 256), 1),
    (Images(1, 1, 6, 5), 2),
    (Images(1, 4, 4, 2), 0),
]


def random_model(space, scales, std=0.3, **more) -> ParallelMultiscale:
    torch.manual_seed(0)
    model = ParallelMultiscale(space, scales=scales, **{"features": 9, "layers": 3, **more})
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            # Large biases would turn whole groups of the few units off.
            parameter.normal_(std=std / 6 if own.endswith("bias") else std)
    return model.eval()


def everything(space):
    values = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, *space.shape)


def some(space, rows):
    return torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)


def turns(space, scales):
    """When an entry is drawn, by the definition: base entries one by one, then groups, a pixel's colours in turn."""
    found, base = torch.zeros(space.shape, dtype=torch.long), 0
    step = 2**scales
    for row, column, colour in itertools.product(range(space.height), range(space.width), range(space.channels)):
        if row % step == column % step == 0:
            found[colour, row, column] = base
            base += 1
    turn = base
    while step > 1:
        for right, below in ((1, 0), (0, 1), (1, 1)):
            for row, column in itertools.product(range(space.height), range(space.width)):
                if row % step == below * step // 2 and column % step == right * step // 2:
                    found[:, row, column] = turn
            turn += 1
        step //= 2
    return found


def chi_square(drawn, p, space):
    """p-value of draws against the masses of `everything`; rare cells are joined."""
    base = torch.tensor([space.levels**i for i in reversed(range(space.dimensions))])
    observed = torch.bincount((drawn.long().flatten(1) * base).sum(1), minlength=len(p)).double()
    expected = p.double() * len(drawn)
    often = expected >= 5
    assert not observed[expected == 0].any()
    if (~often & (expected > 0)).any():
        observed = torch.cat([observed[often], observed[~often].sum()[None]])
        expected = torch.cat([expected[often], expected[~often].sum()[None]])
    else:
        observed, expected = observed[often], expected[often]
    return scipy.stats.chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue


@pytest.mark.parametrize(("space", "scales"), TINY)
def test_probabilities_sum_to_one(space, scales):
    model = random_model(space, scales)
    with torch.no_grad():
        assert model.log_prob(everything(space)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("space", "scales"), [*TINY, (Images(3, 5, 7, 4), 2), (Images(1, 6, 6, 2), 2)])
def test_an_entry_depends_on_all_earlier_groups_and_its_pixels_earlier_colours_alone(space, scales):
    """By changing one entry at a time. One row a pass: in a batch the same sum may round otherwise."""
    model = random_model(space, scales, layers=4)
    turn = turns(space, scales).flatten()
    pixel = torch.arange(space.dimensions) % (space.height * space.width)
    colour = torch.arange(space.dimensions) // (space.height * space.width)
    allowed = turn[:, None] < turn[None, :]
    allowed |= (pixel[:, None] == pixel[None, :]) & (colour[:, None] < colour[None, :])
    depends = torch.zeros_like(allowed)
    with torch.no_grad():
        for i, x in enumerate(some(space, 48).split(1)):
            before = model.conditionals(x, None).flatten(2)
            for entry in range(space.dimensions):
                other = x.flatten(1).clone()
                other[:, entry] = (other[:, entry] + 1) % space.levels
                after = model.conditionals(other.view_as(x), None).flatten(2)
                depends[entry] |= (after != before).flatten(0, 1).any(0)
            if i >= 15 and torch.equal(depends, allowed):
                break
    assert not (depends & ~allowed).any(), "an entry depends on one that it may not see"
    assert torch.equal(depends, allowed)


def test_a_group_sees_layers_and_one_more_blocks_to_each_side():
    model = random_model(Images(1, 32, 32, 2), 1, layers=2)
    x = some(model.space, 1)
    with torch.no_grad():
        before = model.conditionals(x, None)[0, 0, 0, 17, 17]
        for offset, seen in ((6, True), (8, False)):
            other = x.clone()
            other[:, :, 16, 16 + offset] ^= 1
            assert bool(model.conditionals(other, None)[0, 0, 0, 17, 17] != before) == seen


@pytest.mark.parametrize(("space", "scales"), TINY)
def test_draws_follow_the_density(space, scales):
    model = random_model(space, scales)
    with torch.no_grad():
        p = model.log_prob(everything(space)).exp()
    assert chi_square(model.sample(20_000), p, space) > 1e-3


@pytest.mark.parametrize(("space", "scales"), TINY + WIDE)
@pytest.mark.parametrize("classes", [None, 3])
def test_parameters_drawn_from_are_those_of_the_full_pass(space, scales, classes, monkeypatch):
    model = random_model(space, scales, classes=classes)
    label = None if classes is None else torch.tensor([2, 0, 1])
    seen = {"base": [], "groups": []}

    class Recorded:
        def __init__(self, head, name):
            self.head, self.name = head, name

        def __getattr__(self, name):
            return getattr(self.head, name)

        def sample(self, parameters, temperature):
            seen[self.name].append(parameters)
            return self.head.sample(parameters, temperature)

    head = model.head
    monkeypatch.setattr(model, "head", Recorded(head, "groups"))
    monkeypatch.setattr(model.base, "head", Recorded(head, "base"))
    x = model.sample(3, label=label)
    with torch.no_grad():
        full = model.conditionals(x, label)
    base = torch.stack(seen["base"], 2)
    coarse = full[:, :, :, :: 2**scales, :: 2**scales]
    torch.testing.assert_close(base, coarse.permute(0, 1, 3, 4, 2).flatten(2), rtol=1e-5, atol=1e-5)
    turn, drawn = turns(space, scales)[0], iter(seen["groups"])
    for group in range(coarse[0, 0].numel(), int(turn.max()) + 1):
        pixels = turn == group
        for colour in range(space.channels) if pixels.any() else ():
            torch.testing.assert_close(next(drawn).flatten(2), full[:, :, colour, pixels], rtol=1e-5, atol=1e-5)
    assert next(drawn, None) is None


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_passes_grow_with_the_logarithm_of_the_pixels(side):
    model = random_model(Images(3, side, side, 4), None, layers=1)
    passes = []
    for group in model.groups:
        group.register_forward_hook(lambda module, *_: passes.append(module))
    model.sample(2)
    assert len(passes) == len(set(passes)) == 3 * (math.log2(side) - 2)
    assert model.base.space.shape == (3, 4, 4), "and the base stays as small"


def test_the_default_base_has_sides_below_eight():
    for side, base in ((1, 1), (7, 7), (8, 4), (9, 5), (28, 7), (32, 4), (45, 6)):
        assert ParallelMultiscale(Images(1, side, 5), features=2, layers=1).base.space.height == base


@pytest.mark.parametrize(("space", "scales"), TINY)
@pytest.mark.parametrize("part", ["base", "group", "colours", "corner"])
def test_completions_follow_the_conditional_of_the_mixture(space, scales, part):
    """Known: the base; the first group too; of the next one some pixels, and colours; a corner of the base."""
    model = random_model(space, scales, classes=2)
    model.log_prior.copy_(torch.tensor([0.8, 0.2]).log())
    turn = turns(space, scales)
    base = int(turn[:, :: 2**scales, :: 2**scales].max()) + 1
    known = turn < {"base": base, "group": base + 1, "colours": base + 1, "corner": 1}[part]
    if part == "colours":
        known[0, -1] |= turn[0, -1] == base + 1 + (base + 1 not in turn[0, -1])
        known[0] |= (turn[0] == base + 1) & ~known[0]
    x = some(space, 1)
    drawn = model.complete(x.expand(20_000, *space.shape), known)
    assert drawn.dtype == torch.uint8
    assert (drawn[:, known] == x[:, known]).all()
    whole = everything(space)
    agrees = (whole[:, known] == x[:, known]).all(1)
    with torch.no_grad():
        p = torch.where(agrees, model.log_prob(whole).double().exp(), 0)
    assert known.all() or chi_square(drawn, p / p.sum(), space) > 1e-3


def test_classes_obey_bayes_rule_and_guidance_leads_to_them():
    model = random_model(Images(1, 3, 3, 2), 1, classes=3, label_dropout=0.1)
    model.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    x = some(model.space, 5)
    with torch.no_grad():
        joint = torch.stack([model.log_prob(x, label=y) for y in range(3)], 1).double() + model.log_prior
    torch.testing.assert_close(model.log_prob(x).detach().double(), joint.logsumexp(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.classify(x).double(), joint.softmax(1), rtol=1e-3, atol=1e-6)
    for y in range(3):
        plain, led = (model.classify(model.sample(3000, label=y, guidance=w))[:, y].mean() for w in (0.0, 1.0))
        assert led > plain


# A base of one row has nothing above it for its vertical stack to see.
@pytest.mark.parametrize(("space", "scales"), [case for case in TINY + WIDE if case[0].height > 2 ** case[1]])
@pytest.mark.parametrize("classes", [None, 3])
def test_every_parameter_learns(space, scales, classes):
    torch.manual_seed(0)
    more = {"classes": 3, "label_dropout": 0.3} if classes else {}
    model = ParallelMultiscale(space, scales=scales, features=9, layers=3, **more)
    x, label = some(space, 64), torch.arange(64) % 3
    model.adapt(Dataset(space, x, label))
    with torch.no_grad():
        shares = model.head.log_prob(model.conditionals(x, label if classes else None), x)
    assert -shares.mean() < 1.6 * math.log(space.levels), "it starts near the marginals"
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    reached, losses = set(), []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.loss(Batch(x, torch.arange(64), label)).total
        loss.backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
        losses.append(float(loss.detach()))
    assert {n for n, _ in model.named_parameters()} == reached
    assert losses[-1] < losses[0]


def test_features_are_those_of_every_network():
    model = random_model(Images(1, 8, 8, 2), 2)
    x = some(model.space, 4)
    features = model.embed(x)
    assert features.shape == (4, 7 * 9)
    h = model.hidden(x, None).detach()
    torch.testing.assert_close(features[:, :9], h[:, :, ::4, ::4].mean((2, 3)))
    torch.testing.assert_close(features[:, -9:], h[:, :, 1::2, 1::2].mean((2, 3)))


def test_clear_errors():
    space = Images(1, 6, 6, 2)
    model = random_model(space, 1)
    with pytest.raises(TacitError, match="scales is 4, but images of 6 × 6 can be halved 3 times"):
        ParallelMultiscale(space, scales=4)
    with pytest.raises(TacitError, match="scales is -1"):
        ParallelMultiscale(space, scales=-1)
    with pytest.raises(TacitError, match="layers is 0: give at least 1"):
        ParallelMultiscale(space, layers=0)
    with pytest.raises(TacitError, match="temperature is 0"):
        model.sample(2, temperature=0)
    with pytest.raises(TacitError, match="fitted without classes"):
        model.sample(2, label=1)
    with pytest.raises(TacitError, match=r"guidance is 1\.0"):
        model.sample(2, guidance=1.0)
    with pytest.raises(SpaceError, match="observations hold 2"):
        model.log_prob(torch.full((1, 1, 6, 6), 2))
    x, known = some(space, 2), torch.zeros(space.shape, dtype=torch.bool)
    with pytest.raises(TacitError, match="known is bool of shape"):
        model.complete(x, known[0])
    known[:, :3] = True
    with pytest.raises(TacitError, match=r"every 2 rows and columns, .* let the known part come first"):
        model.complete(x, known)
    colours = random_model(Images(2, 6, 6, 2), 1)
    known = torch.zeros(colours.space.shape, dtype=torch.bool)
    known[:, ::2, ::2] = known[1, ::2, 1::2] = True
    with pytest.raises(TacitError, match="let the known part come first"):
        colours.complete(some(colours.space, 2), known)


def test_it_is_in_the_catalogue():
    assert catalogue.load("parallel-multiscale") is ParallelMultiscale
