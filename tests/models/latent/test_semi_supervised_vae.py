"""M1, M2 and M1+M2: bounds against enumeration and integration, gradients, phases, and what a class is told for."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TacitError
from tacit.model import Batch, Progress
from tacit.models.latent.semi_supervised_vae import SemiSupervisedVAE, marginal_bound
from tacit.spaces import Images, Tokens, Vectors
from tacit.training.learner import Learner
from tacit.training.plan import reseed

SMALL = {"m1_hidden": (16,), "hidden": (16,), "latent": 4, "labelled_per_batch": 8}

BINARY = Images(1, 3, 2, levels=2)
KINDS = ("m1", "m2", "m1+m2")


def few_labels(space=BINARY, rows: int = 64, labelled: int = 16) -> Dataset:
    torch.manual_seed(5)
    if isinstance(space, Vectors):
        x = torch.randn(rows, space.features) * 3 + 5
    else:
        x = torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)
    return Dataset(space, x, torch.where(torch.arange(rows) < labelled, torch.arange(rows) % 3, -1), name="few")


def random_model(kind="m2", space=BINARY, **arguments) -> SemiSupervisedVAE:
    """A model whose decoders depend on z and on the class, and whose posteriors are wide enough to weigh by."""
    torch.manual_seed(0)
    model = SemiSupervisedVAE(
        space, classes=3, kind=kind, **{"m1_hidden": (8,), "hidden": (8,), "latent": 2} | arguments
    )
    model.adapt(few_labels(space))
    with torch.no_grad():
        for p in (model.m1 or model.m2).decoder.parameters():
            p.mul_(2)
        if model.m1 is not None:
            model.m1.encoder[-1].bias[model.latent :] += 0.6
    return model.eval()


def grid(reach: float = 5.0, steps: int = 29) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the plane and the log masses that a standard normal has there."""
    line = torch.linspace(-reach, reach, steps)
    z = torch.cartesian_prod(line, line)
    return z, -0.5 * z.square().sum(1) - math.log(2 * math.pi) + 2 * math.log(float(line[1] - line[0]))


@torch.no_grad()
def integrated(model: SemiSupervisedVAE, x: torch.Tensor, label: int | None = None) -> torch.Tensor:
    """Log p(x), or log p(x|label), by sums over classes and over grids of all latent variables, (rows,)."""
    z, log_mass = grid()
    if model.m2 is None:
        first = log_mass  # of the features themselves
    else:
        by_class = []
        for y in range(3):
            output = model.m2.decoded(z, F.one_hot(torch.tensor([y]), 3).float().expand(len(z), -1))
            entries = model.m2.likelihood.entries(x)[0] if model.m1 is None else z
            by_class.append(model.m2.likelihood.log_probs(output.repeat(len(entries), 1), entries) + log_mass)
        joint = torch.stack(by_class, 2).logsumexp(1)
        joint = (joint + model.log_prior).logsumexp(1) if label is None else joint[:, label]
        if model.m1 is None:
            return joint + model.m2.likelihood.entries(x)[1]
        first = joint + 2 * math.log(10 / 28)
    entries, log_det = model.m1.likelihood.entries(x)
    of_features = model.m1.likelihood.log_probs(model.m1.decoder(z).repeat(len(x), 1), entries)
    return (of_features + first).logsumexp(1) + log_det


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [BINARY, Vectors(3)], ids=["binary", "table"])
def test_bounds_lie_below_the_integrated_density_and_reach_it(kind, space):
    model, x = random_model(kind, space), few_labels(space).x[:3]
    exact = integrated(model, x)
    with torch.no_grad():
        one = model.log_prob(x.repeat(1000, *(1,) * len(space.shape))).view(-1, 3)
    error = one.std(0) / 1000**0.5
    assert (one.mean(0) < exact + 3 * error).all() and (one.mean(0) < exact - 0.005).any()
    torch.testing.assert_close(model.importance_weighted(x, 5000), exact, atol=0.08, rtol=0)


@pytest.mark.parametrize("kind", ["m2", "m1+m2"])
def test_a_class_has_a_density_of_its_own(kind):
    model, x = random_model(kind), few_labels().x[:3]
    of_class = torch.stack([integrated(model, x, y) for y in range(3)])
    for y in range(3):
        with torch.no_grad():
            found = model.log_prob(x, label=y, samples=5000)
        torch.testing.assert_close(found, of_class[y], atol=0.08, rtol=0)
    torch.testing.assert_close((of_class + model.log_prior[:, None]).logsumexp(0), integrated(model, x))


def test_binary_images_have_probabilities_that_sum_to_one():
    model = random_model("m2", Images(1, 2, 2, levels=2))
    every = torch.cartesian_prod(*[torch.arange(2)] * 4).to(torch.uint8).view(16, 1, 2, 2)
    assert integrated(model, every).exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert model.importance_weighted(every, 500).exp().sum().item() == pytest.approx(1, abs=0.02)


def test_what_m2_learns_equals_a_naive_loop_over_rows_and_classes():
    """L, U and their gradients; labelled rows count what they are of the data."""
    data = few_labels()
    model = random_model(weight=0.7).train()
    batch = data.batch(torch.tensor([0, 1, 2, 30, 31, 32, 33, 34]))
    reseed(1)
    noises = torch.randn(8, 1, 2)  # what the loss draws next
    reseed(1)
    losses = model.loss(batch)
    m2 = model.m2
    unlabelled, labelled, classification = [], [], []
    for i in range(8):
        entries = m2.likelihood.entries(batch.x[i : i + 1])[0]
        log_q = m2.classifier(m2.likelihood.seen(entries)).log_softmax(1)[0]
        naive = 0.0
        for y in range(3):
            told = F.one_hot(torch.tensor([y]), 3).float()
            mean, log_var = m2.encoder(m2.likelihood.seen(entries).flatten(1), told).chunk(2, 1)
            z = mean + (0.5 * log_var).exp() * noises[i]
            logits = m2.likelihood.given(m2.decoder(z, told))[0, 0]
            log_likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(entries[0].float()).sum()
            q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
            p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
            bound = log_likelihood + model.log_prior[y] - torch.distributions.kl_divergence(q, p).sum()
            if batch.label[i] == y:
                labelled.append(-bound)
                classification.append(-log_q[y])
            naive = naive + log_q[y].exp() * (bound - log_q[y])
        if batch.label[i] < 0:
            unlabelled.append(-naive)
    assert len(labelled) == 3 and len(unlabelled) == 5
    expected = {
        "labelled": 16 / 64 * sum(labelled) / 3,
        "unlabelled": 48 / 64 * sum(unlabelled) / 5,
        "classification": 0.7 * sum(classification) / 3,
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.to(losses[name].dtype), rtol=1e-4, atol=1e-5)
    parameters = list(m2.parameters())
    mine = torch.autograd.grad(losses.total, parameters)
    for a, b in zip(mine, torch.autograd.grad(sum(expected.values()), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_bound_s_gradient_in_the_classifier_has_its_closed_form():
    """d(−U)/d logit_y = q_y (b_y − log q_y − (−U)): classes above the average of the bound gain."""
    bounds, logits = torch.randn(5, 4).double(), torch.randn(5, 4).double().requires_grad_()
    found = marginal_bound(bounds, logits)
    log_q = logits.log_softmax(1)
    expected = log_q.exp() * (bounds - log_q - found[:, None])
    torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], expected)
    best = bounds.log_softmax(1)
    torch.testing.assert_close(marginal_bound(bounds, best), bounds.logsumexp(1))
    assert (found < bounds.logsumexp(1)).all()


def test_held_out_rows_count_alike():
    model, data = random_model(), few_labels()
    reseed(0)
    whole = model.loss(data.batch(torch.arange(64)))
    rows = []
    for i in range(64):
        reseed(0)
        noises = torch.randn(64, 1, 2)[i : i + 1]
        with torch.no_grad():
            entries, _ = model.m2.likelihood.entries(data.x[i : i + 1])
            log_likelihood, _, kl = model.m2.by_class(entries, noises)
            bounds = log_likelihood - kl + model.log_prior
            y = int(data.label[i])
            rows.append(-bounds[0, y] if y >= 0 else -marginal_bound(bounds, model._logits(entries))[0])
    torch.testing.assert_close(whole["labelled"] + whole["unlabelled"], torch.stack(rows).mean())


def test_m1_learns_first_and_is_then_frozen():
    data = few_labels()
    model = random_model("m1+m2", share=0.4).train()
    learner = Learner(model, model.recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def changed() -> set[str]:
        moved = {name[:2] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return moved

    for step, (fraction, learns) in enumerate([(0.0, {"m1"}), (0.3, {"m1"}), (0.4, {"m2"}), (0.9, {"m2"})]):
        model.after_step(Progress(step, 0, fraction))
        learner.step(data.batch(torch.arange(8, 24)), Progress(step, 0, fraction))
        assert changed() == learns
    assert "progress" in model.state_dict()


def test_m1_s_features_learn_nothing_from_labels():
    model, data = random_model("m1").train(), few_labels()
    losses = model.loss(data.batch(torch.arange(32)))
    gradients = torch.autograd.grad(losses["classification"], list(model.m1.parameters()), allow_unused=True)
    assert all(g is None for g in gradients)


def test_the_style_carries_less_of_the_class_than_a_code_that_is_not_told_it():
    """A tiny table of which the class moves the mean: told the class, M2's style need not say it."""
    torch.manual_seed(0)
    label = torch.arange(240) % 3
    x = torch.randn(240, 2) + 3 * torch.stack([label - 1.0, (label == 1).float()], 1)
    data = Dataset(Vectors(2), x, label)
    told: dict[str, float] = {}
    for kind in ("m1", "m2"):
        torch.manual_seed(1)
        model = SemiSupervisedVAE(Vectors(2), classes=3, kind=kind, m1_hidden=(16,), hidden=(16,), latent=2)
        model.adapt(data)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(400):
            optimiser.zero_grad()
            model.loss(data.batch(torch.randint(240, (64,)))).total.backward()
            optimiser.step()
        model.eval()
        code = model.encode(x) if kind == "m1" else model.style(x, label)
        assert (model.classify(x).argmax(1) == label).float().mean() > 0.8
        # As a linear probe would: least squares of the classes.
        inputs = torch.cat([code, torch.ones(240, 1)], 1)
        fitted = inputs @ torch.linalg.lstsq(inputs, F.one_hot(label, 3).float()).solution
        told[kind] = (fitted.argmax(1) == label).float().mean().item()
    assert told["m1"] > 0.8 and told["m2"] < 0.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [Vectors(4), Images(3, 5, 7, levels=17), Images(1, 28, 20)], ids=str)
def test_takes_any_form_and_gives_it_back(kind, space):
    network = "conv" if isinstance(space, Images) else "mlp"
    model, data = random_model(kind, space, network=network, channels=(3, 4)), few_labels(space, 24, 12)
    model.train().loss(data.batch(torch.arange(24))).total.backward()
    model.eval()
    z = model.encode(data.x)
    assert z.shape == (24, 2 if kind == "m1" else 5)
    for made in (model.decode(z), model.reconstruct(data.x), model.sample(24)):
        assert made.shape == (24, *space.shape) and made.dtype == space.torch_dtype
    torch.testing.assert_close(model.classify(data.x).sum(1), torch.ones(24))
    assert model.embed(data.x).shape == (24, 8 if kind == "m2" else 2)
    assert model.log_prob(data.x, samples=3).isfinite().all()
    if kind != "m1":
        shown = model.analogies(data.x[:4])
        assert shown.shape == (4, 3, *space.shape)
        own = model.classify(data.x[:4]).argmax(1)
        assert torch.equal(shown[torch.arange(4), own], model.reconstruct(data.x[:4]))
        assert torch.equal(model.style(data.x), z[:, 3:])
        assert torch.equal(z[:, :3].argmax(1), model.classify(data.x).argmax(1))


@pytest.mark.parametrize("kind", ["m2", "m1+m2"])
def test_samples_agree_with_the_density_of_their_class(kind):
    model = random_model(kind, Images(1, 1, 2, levels=2))
    every = torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(torch.uint8).view(4, 1, 1, 2)
    for label in (None, 2):
        drawn = model.sample(20_000, label=label).flatten(1).long()
        shares = torch.bincount(2 * drawn[:, 0] + drawn[:, 1], minlength=4) / 20_000
        torch.testing.assert_close(shares, integrated(model, every, label).exp(), atol=0.02, rtol=0)


def test_what_cannot_be_done_is_a_sentence():
    data, model = few_labels(), random_model()
    for label in (None, torch.full((64,), -1)):
        with pytest.raises(DataError, match="few has no labels, and semi-supervised-vae needs some"):
            model.adapt(dataclasses.replace(data, label=label))
    with pytest.raises(DataError, match="few has no labels, and semi-supervised-vae needs some"):
        list(model.batches(dataclasses.replace(data, label=None), 8, torch.Generator()))
    with pytest.raises(DataError, match="no labelled row of class 2"):
        model.adapt(dataclasses.replace(data, label=torch.where(data.label == 2, -1, data.label)))
    for arguments, says in (
        ({"classes": 1}, "classes=1 leaves nothing to tell apart"),
        ({"kind": "m3"}, "kind is 'm3': give 'm1', 'm2' or 'm1\\+m2'"),
        ({"share": 1.0}, "share is 1.0: give the fraction"),
        ({"weight": -1.0}, "weight is -1.0: give at least 0"),
        ({"latent": 0}, "latent is 0"),
        ({"m1_hidden": (0,)}, "m1_hidden is"),
        ({"labelled_per_batch": 0}, "labelled_per_batch is 0"),
        ({"decoder": "gaussian"}, "decoder is 'gaussian', no likelihood of"),
    ):
        with pytest.raises(TacitError, match=says):
            SemiSupervisedVAE(BINARY, **{"classes": 3} | arguments)
    with pytest.raises(SpaceError, match="semi-supervised-vae takes images or vectors, not tokens"):
        SemiSupervisedVAE(Tokens(5, 4), classes=3)
    with pytest.raises(TacitError, match="3 is not a class of the model: they are 0 to 2"):
        model.sample(2, label=3)
    plain = random_model("m1")
    for wrong in (
        lambda: plain.sample(2, label=1),
        lambda: plain.log_prob(data.x, label=1),
        lambda: plain.analogies(data.x),
    ):
        with pytest.raises(TacitError, match="kind is 'm1', whose latent variable knows of no class"):
            wrong()


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_classes_from_a_few_labels(kind):
    """Three patterns with a tenth of the pixels turned, of which four rows each are labelled."""
    torch.manual_seed(1)
    truth = torch.arange(300) % 3
    x = ((torch.rand(3, 16) < 0.5)[truth] ^ (torch.rand(300, 16) < 0.1)).to(torch.uint8).view(300, 1, 4, 4)
    data = Dataset(Images(1, 4, 4, 2), x, torch.where(torch.arange(300) < 12, truth, -1))
    model = SemiSupervisedVAE(
        data.space, classes=3, kind=kind, m1_hidden=(16,), hidden=(16,), latent=2, labelled_per_batch=6
    )
    model.adapt(data)
    learner = Learner(model.train(), dataclasses.replace(model.recipe, learning_rate=0.01, ema=None))
    step = 0
    while step < 220:
        for index in model.batches(data, 32, torch.Generator().manual_seed(step)):
            learner.step(data.batch(index), Progress(step, 0, step / 220))
            step += 1
            model.after_step(Progress(step, 0, step / 220))
    assert (model.eval().classify(x).argmax(1) == truth).float().mean() > 0.9


def test_a_batch_without_labels_learns_all_the_same():
    model, data = random_model().train(), few_labels()
    losses = model.loss(Batch(data.x, torch.arange(64)))
    assert losses["classification"] == 0 and losses["labelled"] == 0 and losses["unlabelled"] > 0
