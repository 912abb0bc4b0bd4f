"""Autoencoders: principal components, the classic losses, tied weights, layers one by one, and what is refused."""

import math

import pytest
import torch
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch, Progress, Recipe
from tacit.models.latent.autoencoder import Autoencoder
from tacit.spaces import Images, Tokens, Vectors
from tacit.training.learner import Learner
from tacit.training.plan import reseed

SMALL = {"latent": 3, "hidden": (16,)}
GREY = Images(2, 3, 5, levels=17)


def pictures(rows=40):
    return torch.randint(17, (rows, *GREY.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def table(rows=100):
    torch.manual_seed(3)
    return torch.randn(rows, 8) * torch.tensor([3.0, 2.5, 2.0, 1, 1, 0.5, 0.3, 0.1]) @ torch.randn(8, 8) + 4


def built(space, x, **arguments):
    torch.manual_seed(0)
    model = Autoencoder(space, **SMALL | arguments)
    model.adapt(Dataset(space, x))
    return model


def learn(model, x, steps, **recipe):
    learner = Learner(model.train(), Recipe(schedule="cosine", **recipe))
    for step in range(steps):
        reseed(0, step)
        terms = learner.step(Batch(x, torch.arange(len(x))), Progress(step, step, step / steps))
        model.after_step(Progress(step + 1, step + 1, (step + 1) / steps))
    model.eval()
    return terms


def principal_angles(a, b):
    """Degrees between the subspaces that the columns of (features, k) span."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(a.double())[0].T @ torch.linalg.qr(b.double())[0])
    return torch.rad2deg(cosines.clamp(max=1).arccos())


@pytest.mark.parametrize("tied", [False, True])
def test_the_linear_one_finds_the_subspace_of_the_principal_components(tied):
    x = table()
    model = built(Vectors(8), x, hidden=(), tied=tied)
    learn(model, x, 400, learning_rate=0.05)
    z = model.standardise(x)
    components = torch.linalg.eigh(z.T @ z)[1][:, -3:]
    weight = model.up[0].weight.T if tied else model.down[0].weight
    assert principal_angles(weight, components).max() < 1
    left_over = (z - z @ components @ components.T).square().sum(1)
    torch.testing.assert_close(model.squared_error(x).mean(), left_over.mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("error", "tied"), [("cross-entropy", True), ("cross-entropy", False), ("squared", True)])
def test_the_loss_is_that_of_a_naive_network(error, tied):
    x = pictures()
    model = built(GREY, x, error=error, tied=tied, activation="sigmoid", hidden=(7, 5))
    v = x.flatten(1) / 16
    h = v
    for i, layer in enumerate(model.up):
        h = h @ layer.weight.T + layer.bias
        h = h.sigmoid() if i < 2 else h
    for i in (2, 1, 0):
        matrix = model.up[i].weight if tied else model.down[i].weight.T
        h = h @ matrix + model.down[i].bias
        h = h.sigmoid() if i > 0 else h
    if error == "squared":
        expected = (v - h).square().sum(1).mean()
        given, rebuilt = h, h.clamp(0, 1)
    else:
        expected = F.binary_cross_entropy(h.sigmoid(), v, reduction="none").sum(1).mean()
        given = rebuilt = h.sigmoid()
    torch.testing.assert_close(model.loss(Batch(x, torch.arange(len(x)))).total, expected)
    assert torch.equal(model.eval().reconstruct(x), (rebuilt * 16).round().to(torch.uint8).view(x.shape))
    torch.testing.assert_close(model.squared_error(x), (v - given).square().sum(1))
    assert any("down" in name and "weight" in name for name, _ in model.named_parameters()) != tied


def test_learns_to_rebuild_and_a_larger_code_rebuilds_better():
    x = table()
    errors = []
    for latent in (2, 12):
        model = built(Vectors(8), x, latent=latent, hidden=(32,))
        learn(model, x, 150, learning_rate=1e-2)
        errors.append(model.squared_error(x).mean().item())
    assert errors[1] < 0.2 * errors[0] < 0.2 * 8
    assert model.encode(x).shape == model.embed(x).shape == (100, 12)
    assert (model.reconstruct(x) - x).abs().mean() < 0.2 * x.std()


def test_corruption_hides_the_share_it_is_told_while_learning_alone():
    x = pictures()
    model = built(GREY, x, corruption=0.3)
    ones = torch.ones(2000, 30)
    hidden = model._corrupted(ones)
    assert set(hidden.unique().tolist()) == {0.0, 1.0}
    assert hidden.mean().item() == pytest.approx(0.7, abs=0.01)
    assert torch.equal(model.eval()._corrupted(ones), ones)


def test_a_code_larger_than_the_data_denoises_rather_than_copies():
    """Columns that are copies of one another: what is hidden can be told from the rest."""
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 8).contiguous()
    model = built(Vectors(8), x, latent=16, hidden=(), corruption=0.5)
    learn(model, x, 200, learning_rate=1e-2)
    holed = x.clone()
    holed[:, :4] = x.mean()
    assert (model.reconstruct(holed) - x)[:, :4].square().mean() < 0.3


def test_stacked_layers_learn_one_by_one_and_then_all():
    x = pictures()
    model = built(GREY, x, stacked=True, hidden=(8, 6))
    learner = Learner(model.train(), Recipe(learning_rate=1e-2))
    moved = []
    for step in range(12):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        learner.step(Batch(x, torch.arange(40)), Progress(step, 0, step / 12))
        model.after_step(Progress(step + 1, 0, (step + 1) / 12))
        moved.append({name[: name.index(".") + 2] for name, p in model.named_parameters() if not p.equal(before[name])})
    layers = [{f"up.{i}", f"down.{i}"} for i in range(3)]
    assert moved[:6] == [layers[i] for i in (0, 0, 1, 1, 2, 2)]
    assert all(each == set.union(*layers) for each in moved[6:])
    again = Autoencoder(GREY, **SMALL | {"hidden": (8, 6)}, stacked=True)
    assert again.alone == 0
    again.load_state_dict(model.state_dict())
    assert again.alone == 3


def test_a_layer_s_own_error_is_that_of_a_naive_one():
    x = pictures()
    model = built(GREY, x, stacked=True, hidden=(8, 6), activation="sigmoid")
    entries = x.flatten(1) / 16
    first = (entries @ model.up[0].weight.T + model.up[0].bias).sigmoid()
    back = first @ model.down[0].weight.T + model.down[0].bias
    expected = F.binary_cross_entropy(back.sigmoid(), entries, reduction="none").sum(1).mean()
    torch.testing.assert_close(model._error_of_layer(0, entries), expected)
    second = (first @ model.up[1].weight.T + model.up[1].bias).sigmoid()
    back = (second @ model.down[1].weight.T + model.down[1].bias).sigmoid()
    torch.testing.assert_close(model._error_of_layer(1, entries), (back - first).square().sum(1).mean())
    assert model.training and model.loss(Batch(x, torch.arange(40))).total == model._error_of_layer(0, entries)
    assert model.eval().loss(Batch(x, torch.arange(40))).total != model._error_of_layer(0, entries)


def test_starts_at_the_means():
    x = pictures()
    model = built(GREY, x)
    with torch.no_grad():
        model.down[0].weight.zero_()
    assert (model.reconstruct(x).float() - x.float().mean(0)).abs().max() <= 0.5 + 1e-3


def test_a_single_observation_is_rebuilt():
    for space, x in ((GREY, pictures(1)), (Vectors(8), table(1))):
        model = built(space, x)
        assert math.isfinite(learn(model, x, 3)["loss"])
        assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (Vectors(3), {"latent": 0}, "latent is 0: give at least 1"),
        (Vectors(3), {"hidden": (4, 0)}, "hidden is .*: give at least 1"),
        (Vectors(3), {"error": "cross-entropy"}, "error is 'cross-entropy', which vectors do not take: give squared"),
        (GREY, {"corruption": 1.0}, "corruption is 1.0: give the share"),
        (GREY, {"activation": "step"}, "activation is 'step': give silu or sigmoid"),
        (Tokens(4, 3), {}, "takes images or vectors"),
    ],
)
def test_refuses_what_does_not_fit(space, arguments, message):
    with pytest.raises(TacitError, match=message):
        Autoencoder(space, **arguments)
