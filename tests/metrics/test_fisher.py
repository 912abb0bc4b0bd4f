"""Fisher scores against closed forms, against enumeration, and row by row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tacit
from tacit import catalogue
from tacit.cli import main
from tacit.data import Dataset
from tacit.errors import CapabilityError, SpaceError, TacitError
from tacit.metrics.fisher import FisherScore, Projection, scores
from tacit.metrics.probes import embed_all
from tacit.model import Model
from tacit.spaces import Images, Vectors

BINARY = Images(1, 2, 3, 2)


class Pixels(Model):
    """Independent Bernoulli pixels: ∂ log p / ∂b = x − σ(b)."""

    spaces = (Images,)
    density = "exact"

    def __init__(self, space):
        super().__init__(space)
        self.bias = nn.Parameter(torch.linspace(-2, 1, space.dimensions).view(space.shape))

    def log_prob(self, x):
        return -nn.functional.binary_cross_entropy_with_logits(
            self.bias.expand(x.shape), x.float(), reduction="none"
        ).sum((1, 2, 3))


class Gaussian(Model):
    """N(m, e^2s): ∂ log p / ∂m = (x − m) e^−2s, ∂ log p / ∂s = (x − m)² e^−2s − 1."""

    spaces = (Vectors,)
    density = "exact"

    def __init__(self, space):
        super().__init__(space)
        self.mean = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.log_scale = nn.Parameter(torch.tensor([0.3, -0.4, 0.0]))

    def log_prob(self, x):
        z = (x - self.mean) * (-self.log_scale).exp()
        return (-0.5 * z.square() - self.log_scale).sum(1)


class Looks(Pixels):
    """What vmap refuses: a model that looks at values."""

    def log_prob(self, x):
        return super().log_prob(x) * (2 if int(x.sum()) > 2 else 1)


class Sealed(Pixels):
    @torch.no_grad()
    def log_prob(self, x):
        return super().log_prob(x)


def every_image():
    values = itertools.product(range(2), repeat=BINARY.dimensions)
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, *BINARY.shape)


def random_model(name, space, **arguments):
    torch.manual_seed(0)
    model = catalogue.load(name)(space, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def test_the_score_of_bernoulli_pixels_has_its_closed_form():
    model, x = Pixels(BINARY), every_image()
    expected = x.flatten(1) - torch.sigmoid(model.bias).flatten()
    torch.testing.assert_close(scores(model, x, ("bias",)), expected.detach())
    # Draws in these numbers have F = σ(1 − σ); of single pixels F^(−1/2) is one number each.
    p = torch.sigmoid(model.bias.detach()).flatten()
    data = Dataset(BINARY, torch.bernoulli(p.expand(200_000, -1)).view(-1, *BINARY.shape).to(torch.uint8))
    fisher = FisherScore(model, normalised=False).fit(data, rows=200_000)
    torch.testing.assert_close(fisher.embed(x), expected.detach() / (p * (1 - p)).sqrt(), rtol=0.02, atol=0)


def test_the_score_of_a_gaussian_has_its_closed_form():
    model = Gaussian(Vectors(3))
    x = torch.randn(500, 3)
    m, s = model.mean.detach(), model.log_scale.detach()
    by_mean, by_scale = (x - m) * (-2 * s).exp(), (x - m).square() * (-2 * s).exp() - 1
    torch.testing.assert_close(scores(model, x, ("mean", "log_scale")), torch.cat([by_mean, by_scale], 1))
    features = FisherScore(model, parameters=("log_scale",), normalised=False).fit(Dataset(model.space, x)).embed(x)
    torch.testing.assert_close(features, by_scale / by_scale.square().mean(0).sqrt())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("made", {"hidden": (7,)}), ("gated-pixelcnn", {"features": 4, "layers": 2}), ("parallel-multiscale", {})],
)
def test_under_the_model_itself_the_mean_of_the_score_is_zero(name, arguments):
    model, x = random_model(name, BINARY, **arguments), every_image()
    for names in FisherScore(model).names, tuple(name for name, _ in model.named_parameters()):
        found = scores(model, x, names)
        p = model.log_prob(x).detach().exp()[:, None]
        assert found.abs().max() > 0.1
        torch.testing.assert_close((p * found).sum(0), torch.zeros(found.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("made", {"hidden": (7,)}, ("output", "layers.0.bias")),
        ("pixelcnn", {"features": 4, "layers": 2}, None),
        ("gated-pixelcnn", {"features": 4, "layers": 2}, ("layers.0",)),
        ("parallel-multiscale", {"scales": 1, "features": 4, "layers": 2}, None),
        ("gpt", {"features": 8, "layers": 1, "heads": 2}, None),
    ],
)
def test_all_rows_at_once_equal_one_row_at_a_time(name, arguments, parameters):
    model = random_model(name, Images(2, 3, 4, 5), **arguments)
    x = torch.randint(5, (6, 2, 3, 4), dtype=torch.uint8)
    names = FisherScore(model, parameters=parameters).names
    at_once, one_by_one = (scores(model, x, names, how) for how in ("vmap", "loop"))
    assert at_once.abs().max() > 1e-3
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-4, atol=1e-5)


def test_what_vmap_refuses_is_done_row_by_row():
    model, x = Looks(BINARY), every_image()
    with pytest.raises(RuntimeError):
        scores(model, x, ("bias",), "vmap")
    expected = scores(Pixels(BINARY), x, ("bias",)) * (1 + (x.flatten(1).sum(1) > 2))[:, None]
    torch.testing.assert_close(scores(model, x, ("bias",)), expected)
    made = random_model("made", BINARY, hidden=(5,))
    assert FisherScore(made).names == ("direct.weight",), "the last module with parameters"
    assert scores(made, x, ("direct.weight",)).shape == (64, 36)


def test_features_are_scaled_normalised_and_zero_where_nothing_pulls():
    model = random_model("made", BINARY, hidden=(7,))
    data = Dataset(BINARY, every_image())
    raw = FisherScore(model, parameters=("output", "direct"), normalised=False).fit(data)
    features = raw.embed(data.x)
    pulled = features.square().mean(0)
    masked = raw.scale == 0
    assert 0 < masked.sum() < len(masked)
    torch.testing.assert_close(pulled, (~masked).float())
    unit = FisherScore(model, parameters=("output", "direct")).fit(data).embed(data.x)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(64))
    expected = features.sign() * features.abs().sqrt()
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True))
    model.train()
    torch.testing.assert_close(embed_all(raw, data, batch_size=9), features)
    assert model.training, "the mode is left as it was"


def test_a_projection_keeps_inner_products_in_expectation():
    x = torch.randn(2, 1003)
    projected = torch.stack([Projection(1003, 50, seed)(x) for seed in range(2000)])
    inner = (projected[:, 0] * projected[:, 1]).mean(), projected[:, 0].square().sum(1).mean()
    assert (projected[:, 0] * projected[:, 1]).sum(1).mean() == pytest.approx(float(x[0] @ x[1]), abs=4)
    assert float(inner[1]) == pytest.approx(float(x[0] @ x[0]), rel=0.02)
    assert torch.equal(Projection(1003, 50, 3)(x), projected[3])
    model = random_model("made", BINARY, hidden=(7,))
    features = FisherScore(model, parameters=("output",), features=10).fit(Dataset(BINARY, every_image()))
    assert features.embed(every_image()).shape == (64, 10)


def test_clear_errors():
    data = Dataset(BINARY, every_image())
    with pytest.raises(CapabilityError, match=r"histogram cannot give Fisher scores: it learns without gradients"):
        FisherScore(catalogue.load("histogram")(BINARY))
    with pytest.raises(CapabilityError, match="dcgan cannot give Fisher scores: it has no log_prob"):
        FisherScore(catalogue.load("dcgan")(Images(1, 8, 8)))
    with pytest.raises(CapabilityError, match="its log_prob gives no gradients"):
        FisherScore(Sealed(BINARY)).fit(data)
    with pytest.raises(TacitError, match="no parameter or module 'weights': it has bias"):
        FisherScore(Pixels(BINARY), parameters=("weights",))
    with pytest.raises(TacitError, match="features is 0"):
        FisherScore(Pixels(BINARY), features=0)
    with pytest.raises(TacitError, match="call fit with training data first"):
        FisherScore(Pixels(BINARY)).embed(data.x)
    idle = Pixels(BINARY)
    idle.idle = nn.Linear(2, 2)
    with pytest.raises(TacitError, match=r"log p does not depend on idle\.weight, idle\.bias: name other parameters"):
        FisherScore(idle).fit(data)
    with pytest.raises(SpaceError):
        FisherScore(Pixels(BINARY)).fit(data).embed(torch.full((1, 1, 2, 3), 2))


def test_the_verb_embeds_by_fisher_scores(tmp_path):
    run = tacit.fit(
        "gated-pixelcnn", "digits", steps=2, out=tmp_path / "run", quiet=True, features=8, layers=2, pictures=0
    )
    assert main(["embed", str(run.path), "digits", "--fisher", "--out", str(tmp_path / "e.npy")]) == 0
    written = torch.from_numpy(np.load(tmp_path / "e.npy"))
    data = tacit.load("digits")
    assert written.shape[0] == len(data)
    torch.testing.assert_close(run.embed(data, fisher=True), written)
    given = tacit.fit(
        "made", Dataset(data.space, data.x[:300]), steps=2, out=tmp_path / "given", quiet=True, pictures=0
    )
    few = Dataset(data.space, data.x[:50])
    assert given.embed(few, fisher=True).shape == (50, 4096)
