"""The bivariate pair: its mass, its draws, Bayes' rule against the enumerated table, and what it shares."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Progress
from tacit.models.autoregressive.bivariate import Bivariate
from tacit.spaces import Vectors
from tacit.tasks.fit import fit
from tacit.tasks.run import Run
from tacit.training.learner import Learner


def plane(rows: int) -> Dataset:
    """The second feature follows the first, and is a thousand times as large."""
    first = torch.rand(rows) * 2 - 1
    second = first.square() + 0.1 * torch.randn(rows)
    return Dataset(Vectors(2), torch.stack([first, 1000 * second], 1))


def random(bins: int = 6) -> Bivariate:
    model = Bivariate(Vectors(2), bins=bins, hidden=(8,)).eval()
    model.adapt(plane(200))
    with torch.no_grad():
        model.first.normal_()
        # As it is built the network hardly looks at the first feature.
        model.second[-1].weight.normal_()
        model.second[0].weight.mul_(3)
    return model


def joint(model: Bivariate) -> Tensor:
    """The probability of every pair of bins, (bins, bins), from the network itself."""
    second = model.second(model.place).double().softmax(1)
    return (model.first.double().softmax(0)[:, None] * second).detach()


def cells(model: Bivariate, x: Tensor) -> Tensor:
    """How many rows are in each pair of bins, (bins, bins)."""
    first, second = model.bins.index(x).unbind(1)
    side = len(model.first)
    return (first * side + second).bincount(minlength=side**2).view(side, side)


def test_the_density_is_that_of_the_bins_and_integrates_to_one() -> None:
    model = random()
    low, high = model.bins.ends()
    width = (high - low) / 6
    axes = [low[f] - 12 * width[f] + (torch.arange(30 * 20) + 0.5) * width[f] / 20 for f in range(2)]
    grid = torch.cartesian_prod(*axes).float()
    volume = (width.prod() / 400).item()
    p = model.log_prob(grid).double().exp().detach() * volume
    assert p.sum().item() == pytest.approx(1, abs=5e-3)
    index = model.bins.index(grid)
    mass = torch.zeros(36, dtype=torch.float64).index_add_(0, index[:, 0] * 6 + index[:, 1], p)
    torch.testing.assert_close(mass.view(6, 6), joint(model), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_table(temperature: float) -> None:
    model = random()
    first = (model.first / temperature).softmax(0)
    second = (model.second(model.place).log_softmax(1) / temperature).softmax(1)
    p = (first[:, None] * second).double().detach()
    drawn = model.sample(20_000, temperature=temperature)
    assert drawn.dtype == torch.float32
    found = cells(model, drawn)
    assert scipy.stats.chisquare(found.flatten().numpy(), (20_000 * p / p.sum()).flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("given", [0, 1])
def test_either_feature_is_completed_from_the_other(given: int) -> None:
    model = random()
    known = torch.arange(2) == given
    low, high = model.bins.ends()
    for share in (0.1, 0.55, 1.2):
        value = (low + share * (high - low)).float()
        x = torch.where(known, value, math.nan).expand(8000, 2)
        drawn = model.complete(x, known)
        assert (drawn[:, given] == value[given]).all()
        p = joint(model) if given == 0 else joint(model).T
        p = p[min(int(share * 6), 5)]
        found = model.bins.index(drawn)[:, 1 - given].bincount(minlength=6)
        assert scipy.stats.chisquare(found.numpy(), (8000 * p / p.sum()).numpy()).pvalue > 1e-3


def test_with_nothing_known_it_samples_and_with_all_known_it_returns_it() -> None:
    model, x = random(), plane(50).x
    assert torch.equal(model.complete(x, torch.tensor([True, True])), x)
    found = cells(model, model.complete(x.repeat(200, 1), torch.tensor([False, False])))
    assert scipy.stats.chisquare(found.flatten().numpy(), (10_000 * joint(model)).flatten().numpy()).pvalue > 1e-3


def test_it_learns_what_hangs_together_and_fills_bins_that_no_row_was_in(tmp_path: Path) -> None:
    data = plane(4000)
    gap = (data.x[:, 0] > 0.4) & (data.x[:, 0] < 0.5)
    run = fit("bivariate", Dataset(data.space, data.x[~gap]), steps=400, out=tmp_path / "run", quiet=True, pictures=0)
    test = plane(2000).x
    hole = (test[:, 0] > 0.42) & (test[:, 0] < 0.48)
    # The law itself, in nats: uniform on [−1, 1], then a Gaussian of deviation 100.
    law = math.log(2) + math.log(100) + 0.5 * math.log(2 * math.pi * math.e)
    with torch.no_grad():
        assert -run.model.log_prob(test[~hole]).mean().item() == pytest.approx(law, abs=0.12)
        first, second = run.model.bins.index(test[hole]).unbind(1)
        conditional = run.model.second(run.model.place[first]).log_softmax(1).gather(1, second[:, None]).mean()
    # A table would know nothing there: each of its 64 bins alike.
    assert conditional.item() > -math.log(64) + 1


def test_points_beyond_the_range_have_a_density() -> None:
    model = random()
    far = model.log_prob(torch.tensor([[50.0, 0.0], [60.0, 0.0], [-50.0, 1e6]]))
    assert far.isfinite().all() and far[0] > far[1]


def test_learning_in_bfloat16_and_through_a_compiler_and_saved(tmp_path: Path) -> None:
    data = plane(200)
    model = Bivariate(data.space).train()
    model.adapt(data)
    torch._dynamo.reset()
    assert torch.isfinite(torch.compile(model.loss, backend="eager")(data.batch(torch.arange(16))).total)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Learner(model, model.recipe).step(data.batch(torch.arange(64)), Progress(0, 0, 0.0))
    assert all((p != before[name]).any() for name, p in model.named_parameters())
    options = {"steps": 3, "batch_size": 16, "quiet": True, "pictures": 0}
    half = fit("bivariate", data, out=tmp_path / "half", precision="bfloat16", **options).model
    assert half.log_prob(data.x).isfinite().all()
    run = fit("bivariate", data, out=tmp_path / "run", **options)
    assert torch.equal(run.model.log_prob(data.x), Run(tmp_path / "run").model.log_prob(data.x))


def test_clear_errors() -> None:
    with pytest.raises(SpaceError, match="bivariate takes rows of 2 features, not 5: keep two columns"):
        Bivariate(Vectors(5))
    with pytest.raises(TacitError, match="bins is 0: give at least 1"):
        Bivariate(Vectors(2), bins=0)
    with pytest.raises(TacitError, match="hidden is 0: give at least 1"):
        Bivariate(Vectors(2), hidden=())
    model = random()
    with pytest.raises(TacitError, match=r"known is bool of shape \(3,\): give a bool mask of shape \(2,\)"):
        model.complete(torch.zeros(1, 2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TacitError, match="temperature is -1: give a number above 0"):
        model.sample(2, temperature=-1)
    with pytest.raises(SpaceError, match="do not fit"):
        model.log_prob(torch.zeros(4, 3))
