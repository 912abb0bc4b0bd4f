"""Every model that draws site after site × what its mathematics promises. A new model adds a line to `CASES`."""

from __future__ import annotations

import itertools

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit import catalogue
from tacit.data import Dataset
from tacit.distributions import Bernoulli, Categorical
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.autoregressive._autoregressive import Sequential
from tacit.spaces import Images, Space, Tokens, Video

# A model, its arguments, a space small enough to enumerate, and whether every entry may depend on all before it.
CASES: list[tuple[str, dict[str, object], Space]] = [
    ("pixelcnn", {"features": 6, "layers": 2}, Images(1, 3, 3, 2)),
    ("pixelcnn", {"features": 6, "layers": 2}, Images(2, 2, 2, 3)),
    ("gated-pixelcnn", {"features": 6, "layers": 3}, Images(1, 3, 3, 2)),
    ("gated-pixelcnn", {"features": 6, "layers": 3}, Images(2, 2, 2, 3)),
    ("pixel-rnn", {"features": 6, "layers": 2}, Images(1, 3, 3, 2)),
    ("pixel-rnn", {"features": 6}, Images(2, 2, 2, 3)),
    ("pixel-rnn", {"features": 6, "kind": "row"}, Images(1, 3, 3, 2)),
    ("pixel-rnn", {"features": 6, "layers": 2, "kind": "row"}, Images(2, 2, 2, 3)),
    ("char-rnn", {"features": 8, "embedding": 5}, Images(2, 2, 2, 3)),
    ("char-rnn", {"features": 8, "embedding": 5, "cell": "gru", "layers": 1}, Tokens(5, 4)),
    ("pixelcnn++", {"features": 4, "components": 2}, Images(1, 3, 3, 2)),
    ("pixelcnn++", {"features": 4, "components": 2}, Images(2, 2, 2, 3)),
    ("pixelcnn++", {"features": 4, "components": 2, "blocks": 2, "resolutions": 2}, Images(1, 2, 3, 3)),
    ("pixelsnail", {"features": 4, "layers": 1, "blocks": 1, "keys": 3}, Images(1, 3, 3, 2)),
    ("pixelsnail", {"features": 4, "layers": 1, "blocks": 1, "keys": 3, "components": 2}, Images(2, 2, 2, 3)),
    ("gpt", {"layers": 2, "heads": 2, "features": 8}, Images(1, 3, 3, 2)),
    ("gpt", {"layers": 2, "heads": 2, "features": 8, "order": "zigzag"}, Images(2, 2, 2, 3)),
    ("gpt", {"layers": 1, "heads": 2, "features": 8, "order": "random"}, Tokens(5, 4)),
    ("video-pixel-network", {"features": 6, "encoder_features": 4}, Video(2, 1, 2, 2, 2)),
    ("video-pixel-network", {"features": 6, "encoder_features": 4}, Video(3, 1, 2, 2, 2)),
    ("wavenet", {"features": 4, "skip_features": 6, "dilations": (1, 2, 4)}, Images(1, 3, 3, 2)),
    ("wavenet", {"features": 4, "skip_features": 6, "dilations": (1, 2), "stacks": 2}, Images(2, 2, 2, 3)),
    ("wavenet", {"features": 4, "skip_features": 6, "dilations": (1,), "kernel": 3}, Tokens(5, 4)),
    ("tcn", {"features": 12, "layers": 3, "kernel": 2}, Images(1, 3, 3, 2)),
    ("tcn", {"features": 12, "layers": 2}, Images(2, 2, 2, 3)),
    ("tcn", {"features": 12, "layers": 1, "kernel": 4}, Tokens(5, 4)),
]
# Larger and odder ones: no square, an odd number of rows, three colours. (Tokens and sound are long.)
WIDE: list[tuple[str, dict[str, object], Space]] = [
    ("pixelcnn", {"features": 9, "layers": 2}, Images(3, 5, 7, 4)),
    ("gated-pixelcnn", {"features": 9, "layers": 3, "kernel": 5}, Images(3, 5, 7, 4)),
    ("pixel-rnn", {"features": 9, "layers": 2, "first": 3}, Images(3, 5, 7, 4)),
    ("pixel-rnn", {"features": 9, "layers": 2, "first": 3, "kind": "row"}, Images(3, 5, 7, 4)),
    ("char-rnn", {"features": 8, "embedding": 5}, Tokens(9, 30)),
    ("pixelcnn++", {"features": 3, "components": 2}, Images(3, 5, 7, 4)),
    ("pixelsnail", {"features": 4, "layers": 2, "blocks": 1, "keys": 4, "components": 2}, Images(3, 5, 7, 4)),
    ("gpt", {"layers": 2, "heads": 3, "features": 12}, Images(3, 5, 7, 4)),
    ("video-pixel-network", {"features": 9, "encoder_features": 6}, Video(3, 3, 3, 5, 4)),
    ("wavenet", {"features": 8, "skip_features": 8, "dilations": (1, 3, 9, 27), "kernel": 4}, Images(3, 5, 7, 4)),
    ("tcn", {"features": 12, "layers": 4, "kernel": 5}, Images(3, 5, 7, 4)),
]
# Models in which some entries are blind to some before them, which their own tests show.
BLIND = {"pixelcnn", "pixel-rnn"}


def ids(cases: list[tuple[str, dict[str, object], Space]]) -> list[str]:
    return [f"{name}-{space.kind}-{'x'.join(map(str, space.shape))}-{i}" for i, (name, _, space) in enumerate(cases)]


def random_model(name: str, arguments: dict[str, object], space: Space, std: float = 0.3, **more: object) -> Sequential:
    """A model whose weights are far from their start, so that every conditional depends on its context."""
    torch.manual_seed(0)
    model = catalogue.load(name)(space, **arguments, **more)
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            # Large biases would turn whole groups of the few units off.
            parameter.normal_(std=std / 3 if own.endswith("bias") else std)
    return model.eval()  # type: ignore[return-value]


def everything(space: Space) -> Tensor:
    """Every observation of a small space."""
    values = itertools.product(range(space.levels or 0), repeat=space.dimensions)
    return torch.tensor(list(values)).view(-1, *space.shape).to(space.torch_dtype)


def some(space: Space, rows: int) -> Tensor:
    low, high = space.value_range
    return torch.randint(low, high + 1, (rows, *space.shape)).to(space.torch_dtype)


@torch.no_grad()
def replayed(model: Sequential, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The parameters of every site of `x` from caches, fed with `x`, and from one full pass: (rows, sites, …) each."""
    entries = model.entries(x)
    sites = entries.flatten(1)[:, model.order]
    state, before, steps = model.init_state(len(x), label), None, []
    for t in range(len(model.order)):
        parameters, state = model.step(state, before)
        steps.append(parameters)
        before = sites[:, t]
    full = model.conditionals(entries, label).flatten(2)
    whole = model.order if model.order.dim() == 1 else torch.arange(len(model.order))
    return torch.stack(steps, 2), full[:, :, whole]


@pytest.mark.parametrize(("name", "arguments", "space"), CASES, ids=ids(CASES))
def test_probabilities_sum_to_one(name, arguments, space):
    model = random_model(name, arguments, space)
    with torch.no_grad():
        assert model.log_prob(everything(space)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "arguments", "space"), CASES + WIDE, ids=ids(CASES + WIDE))
def test_cached_parameters_are_those_of_the_full_pass(name, arguments, space):
    model = random_model(name, arguments, space)
    for x in (some(space, 3), model.sample(3)):
        steps, full = replayed(model, x)
        torch.testing.assert_close(steps, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments", "space"), CASES + WIDE, ids=ids(CASES + WIDE))
def test_cached_parameters_with_labels(name, arguments, space):
    model = random_model(name, arguments, space, classes=3)
    x, label = some(space, 4), torch.arange(4)
    steps, full = replayed(model, x, label)
    torch.testing.assert_close(steps, full, rtol=1e-5, atol=1e-5)
    assert (full[0] - model.conditionals(model.entries(x[:1]), label[1:2])[0].flatten(1)).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "arguments", "space"), CASES + WIDE, ids=ids(CASES + WIDE))
def test_an_entry_depends_on_all_before_it_and_on_no_other(name, arguments, space):
    """By changing one entry at a time: zeros must be exact, and elsewhere the change must move something.

    One row a pass: in another place of a batch the same sum may round otherwise. Of several rows, because a change may
    be lost in rounding or behind units that are off.
    """
    model = random_model(name, arguments, space)
    place = torch.full((space.dimensions,), -1)
    sites = torch.arange(len(model.order))
    place[model.order] = sites if model.order.dim() == 1 else sites[:, None].expand_as(model.order)
    allowed = place[:, None] < sites[None, :]
    depends = torch.zeros_like(allowed)
    with torch.no_grad():
        for i, x in enumerate(some(space, 24).split(1)):
            before = model.conditionals(model.entries(x), None).flatten(2)
            for entry in range(space.dimensions):
                other = x.flatten(1).clone()
                other[:, entry] = (other[:, entry] + 1) % (space.levels or 0)
                after = model.conditionals(model.entries(other.view_as(x)), None).flatten(2)
                moved = (after != before).flatten(0, 1).any(0)
                depends[entry] |= moved[model.order] if model.order.dim() == 1 else moved
            if i >= 3 and (name in BLIND or torch.equal(depends, allowed)):
                break
    assert not (depends & ~allowed).any(), "an entry depends on one that it may not see"
    if name not in BLIND:
        assert torch.equal(depends, allowed)


def chi_square(drawn: Tensor, p: Tensor, space: Space) -> float:
    """p-value of draws (rows, *shape) against the masses of `everything`; rare cells are joined."""
    base = torch.tensor([(space.levels or 0) ** i for i in reversed(range(space.dimensions))])
    observed = torch.bincount((drawn.long().flatten(1) * base).sum(1), minlength=len(p)).double()
    expected = p * len(drawn)
    often = expected >= 5
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None].clamp(min=1e-9)])
    if not (~often).any():
        observed, expected = observed[:-1], expected[:-1]
    return scipy.stats.chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue


@pytest.mark.parametrize(("name", "arguments", "space"), CASES, ids=ids(CASES))
def test_draws_follow_the_density(name, arguments, space):
    model = random_model(name, arguments, space)
    with torch.no_grad():
        p = model.log_prob(everything(space)).double().exp()
    assert chi_square(model.sample(20_000), p, space) > 1e-3


@pytest.mark.parametrize(("name", "arguments", "space"), CASES, ids=ids(CASES))
def test_completions_follow_the_conditional_of_the_mixture(name, arguments, space):
    model = random_model(name, arguments, space, classes=2)
    model.log_prior.copy_(torch.tensor([0.8, 0.2]).log())
    known = torch.zeros(space.dimensions, dtype=torch.bool)
    known[model.order.flatten()[: space.dimensions // 2]] = True
    x = some(space, 1)
    drawn = model.complete(x.expand(20_000, *space.shape), known.view(space.shape))
    assert (drawn.flatten(1)[:, known] == x.flatten(1)[:, known]).all()
    whole = everything(space)
    agrees = (whole.flatten(1)[:, known] == x.flatten(1)[:, known]).all(1)
    with torch.no_grad():
        p = torch.where(agrees, model.log_prob(whole).double().exp(), 0)
    assert chi_square(drawn, p / p.sum(), space) > 1e-3


@pytest.mark.parametrize(("name", "arguments", "space"), CASES, ids=ids(CASES))
def test_classes_obey_bayes_rule(name, arguments, space):
    model = random_model(name, arguments, space, classes=3)
    model.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    x = some(space, 5)
    with torch.no_grad():
        given = torch.stack([model.log_prob(x, label=y) for y in range(3)], 1).double()
        joint = (given + model.log_prior).exp()
        torch.testing.assert_close(model.log_prob(x).double().exp(), joint.sum(1), rtol=1e-4, atol=0)
        torch.testing.assert_close(model.classify(x).double(), joint / joint.sum(1, keepdim=True), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments", "space"), CASES, ids=ids(CASES))
def test_guided_draws(name, arguments, space):
    """p(x_d | y)^(1 + w) p(x_d)^(−w) entry by entry; of heads that cannot be listed, draws more typical of a class."""
    model = random_model(name, arguments, space, classes=2, label_dropout=0.1)
    x = everything(space)
    if not isinstance(model.head, Bernoulli | Categorical):
        for y in range(2):
            plain, led = (model.classify(model.sample(3000, label=y, guidance=w))[:, y].mean() for w in (0.0, 1.0))
            assert led > plain
        return
    entries = model.entries(x)
    with torch.no_grad():
        given, free = (model.conditionals(entries, torch.full((len(x),), y)) for y in (1, 2))
        p = model.head.log_prob(3 * given - 2 * free, entries).flatten(1).sum(1).double().exp()
    assert chi_square(model.sample(20_000, label=1, guidance=2.0), p, space) > 1e-3


@pytest.mark.parametrize(("name", "arguments", "space"), CASES + WIDE, ids=ids(CASES + WIDE))
@pytest.mark.parametrize("classes", [None, 3])
def test_every_parameter_learns(name, arguments, space, classes):
    torch.manual_seed(0)
    model = catalogue.load(name)(space, **arguments, classes=classes, **({"label_dropout": 0.3} if classes else {}))
    x = some(space, 64)
    label = torch.arange(64) % 3
    stream = isinstance(space, Tokens)
    if not (stream and classes):  # a stream has no labels
        model.adapt(Dataset(space, x.flatten() if stream else x, None if stream else label))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    reached: set[str] = set()
    first = last = 0.0
    for step in range(25):
        optimiser.zero_grad()
        loss = model.loss(Batch(x, torch.arange(64), label)).total
        loss.backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
        first, last = (float(loss.detach()) if step == 0 else first), float(loss.detach())
    assert {n for n, _ in model.named_parameters()} == reached
    assert last < first


@pytest.mark.parametrize(("name", "arguments", "space"), CASES[::2], ids=ids(CASES[::2]))
def test_clear_errors(name, arguments, space):
    model = random_model(name, arguments, space)
    labelled = random_model(name, arguments, space, classes=3)
    x, known = some(space, 2), torch.ones(space.shape, dtype=torch.bool)
    with pytest.raises(TacitError, match="fitted without classes"):
        model.sample(2, label=1)
    with pytest.raises(TacitError, match="fitted without classes"):
        model.classify(x)
    with pytest.raises(TacitError, match="7 is not a class of the model: they are 0 to 2"):
        labelled.sample(2, label=7)
    with pytest.raises(TacitError, match=r"guidance is 2\.0"):
        labelled.sample(2, label=1, guidance=2.0)
    with pytest.raises(TacitError, match="temperature is 0"):
        model.sample(2, temperature=0)
    with pytest.raises(TacitError, match="known is bool of shape"):
        model.complete(x, known[None])
    backwards = torch.zeros(space.dimensions, dtype=torch.bool)
    backwards[model.order.flatten()[-1]] = True
    with pytest.raises(TacitError, match="let the known part come first"):
        model.complete(x, backwards.view(space.shape))
    wrong = torch.full_like(x.long(), space.value_range[1] + 1)
    with pytest.raises(SpaceError, match=f"observations hold {space.value_range[1] + 1}"):
        model.log_prob(wrong)
