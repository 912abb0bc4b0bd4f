"""The histogram against counting by hand, leave-one-out by refitting, integration, and its own samples."""

import itertools
import math

import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError
from tacit.models.autoregressive.histogram import Histogram, _left_out
from tacit.spaces import Images, Tokens, Vectors


def fitted(data: Dataset, **arguments: object) -> Histogram:
    model = Histogram(data.space, **arguments)
    model.fit_exactly(data)
    return model.eval()


def table(rows: int, features: int = 2) -> Dataset:
    """Two clumps, of very different scales."""
    x = torch.randn(rows, features) + 4 * torch.randint(2, (rows, 1))
    return Dataset(Vectors(features), x * 10.0 ** torch.arange(features))


def mass(model: Histogram, reach: float, cells: int) -> Tensor:
    """Riemann sum of the density over a box around two features' ranges."""
    axes = []
    for low, width in zip(model.low.tolist(), model.width.tolist(), strict=True):
        edge = torch.linspace(low - reach * width, low + (1 + reach) * width, cells + 1, dtype=torch.float64)
        axes.append((edge[1:] + edge[:-1]) / 2)
    x = torch.cartesian_prod(*axes).view(-1, len(axes)).float()
    volume = math.prod((a[1] - a[0]).item() for a in axes)
    return model.log_prob(x).double().exp().sum() * volume


def test_frequencies_of_digits_counted_by_hand() -> None:
    x = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    model = fitted(Dataset(Images(1, 8, 8, 17), x), smoothing=0.5)
    expected = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        for i, j in itertools.product(range(8), range(8)):
            n = (x[:, 0, i, j] == x[row, 0, i, j]).sum().item()
            expected[row] += math.log((n + 0.5) / (len(x) + 0.5 * 17))
    torch.testing.assert_close(model.log_prob(x[:3]).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("space", [Images(1, 2, 2, 3), Tokens(5, 3)])
def test_masses_sum_to_one(space: Images | Tokens, joint: bool) -> None:
    rows = torch.randint(space.levels, (40,) if isinstance(space, Tokens) else (40, *space.shape))
    model = fitted(Dataset(space, rows.to(torch.uint8)), joint=joint)
    x = torch.tensor(list(itertools.product(range(space.levels), repeat=space.dimensions))).view(-1, *space.shape)
    assert model.log_prob(x.to(space.torch_dtype)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_density_integrates_to_one(joint: bool) -> None:
    model = fitted(table(300), joint=joint, bins=8)
    assert mass(model, 3.5, 960).item() == pytest.approx(1, abs=1e-2)


def test_held_out_points_beyond_the_range_have_a_density() -> None:
    data = table(200)
    model = fitted(data)
    far = model.log_prob(torch.tensor([[1e3, 0.0], [1e4, 0.0]]))
    assert far.isfinite().all()
    assert far[0] > far[1]
    assert far[0] < model.log_prob(data.x).min()


def test_leaving_one_out_equals_refitting_without_it() -> None:
    count = torch.tensor([[4.0, 0.0, 1.0, 7.0]], dtype=torch.float64)
    naive = 0.0
    for cell, n in enumerate(count[0].tolist()):
        for _ in range(int(n)):
            rest = count[0].clone()
            rest[cell] -= 1
            naive += math.log((rest[cell] + 0.3) / (rest.sum() + 0.3 * 4))
    assert _left_out(count, 0.3).item() == pytest.approx(naive)


def test_chosen_bins_and_smoothing_are_near_the_best_on_held_out_data() -> None:
    data, test = table(2000), table(5000)
    model = fitted(data)
    assert model.cut.unique().min() > 4
    ours = model.log_prob(test.x).mean()
    rivals = [fitted(data, bins=bins).log_prob(test.x).mean() for bins in (1, 4, 16, 32, 64, 256)]
    assert ours > max(rivals) - 0.02
    assert ours > min(rivals) + 0.2


def test_joint_table_knows_what_independence_cannot() -> None:
    bit = torch.randint(2, (500, 1, 1, 1))
    data = Dataset(Images(1, 1, 2, 2), bit.expand(-1, -1, -1, 2).to(torch.uint8))
    assert fitted(data, joint=True).log_prob(data.x).mean().item() == pytest.approx(-math.log(2), abs=0.02)
    assert fitted(data).log_prob(data.x).mean().item() == pytest.approx(-2 * math.log(2), abs=0.02)


def test_a_text_is_unigrams_whatever_the_position() -> None:
    stream = torch.tensor([0, 1, 1, 1] * 50, dtype=torch.uint8)
    data = Dataset(Tokens(3, 4), stream)
    model = fitted(data, smoothing=1.0)
    expected = torch.tensor([51, 151, 1]).double().div(203).log()
    x = torch.tensor([[2, 0, 0, 1], [1, 0, 2, 0]])
    torch.testing.assert_close(model.log_prob(x).double(), expected[x].sum(1), rtol=1e-5, atol=1e-5)
    # Four windows follow one another in turn, and every one of them is counted.
    grams = fitted(data, joint=True, smoothing=0.001)
    assert grams.log_prob(torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])).exp().sum().item() == pytest.approx(0.5, abs=0.02)
    assert grams.sample(5).dtype == torch.int64


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("joint", [True, False])
def test_samples_follow_the_masses(joint: bool, temperature: float) -> None:
    space = Images(1, 1, 2, 3)
    x = (3 * torch.rand(60, 1, 1, 2) ** 2).to(torch.uint8)
    model = fitted(Dataset(space, x), joint=joint)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)
    p = (model.log_prob(every).double() / temperature).softmax(0)
    drawn = model.sample(9000, temperature=temperature)
    assert drawn.dtype == torch.uint8
    count = (drawn.flatten(1).long() @ torch.tensor([3, 1])).bincount(minlength=9)
    assert scipy.stats.chisquare(count.numpy(), 9000 * p.numpy()).pvalue > 0.001


@pytest.mark.parametrize("joint", [True, False])
def test_real_samples_follow_the_density(joint: bool) -> None:
    data = table(400)
    model = fitted(data, joint=joint)
    drawn = model.sample(20_000)
    assert drawn.dtype == torch.float32
    # The mean log density of samples is minus the entropy, which the data shares nearly: it was the fit.
    torch.testing.assert_close(drawn.mean(0), data.x.mean(0), rtol=0.1, atol=0.1)
    outside = ((drawn < model.low) | (drawn > model.low + model.width)).any(1).float().mean().item()
    assert outside == pytest.approx(2 * 2 / 401 * math.exp(-1), abs=0.004)
    for feature in range(2):
        assert scipy.stats.ks_2samp(drawn[:, feature], data.x[:, feature]).pvalue > 0.001


def test_constant_and_repeated_features() -> None:
    x = torch.stack([torch.full((50,), 3.0), torch.arange(50) % 2 * 1.0], 1)
    model = fitted(Dataset(Vectors(2), x))
    assert model.log_prob(x).isfinite().all()
    assert model.sample(10).isfinite().all()
    assert fitted(Dataset(Vectors(1), x[:1, :1])).log_prob(x[:, :1]).isfinite().all()


@pytest.mark.parametrize("joint", [True, False])
def test_saved_and_loaded_it_gives_the_same_numbers(joint: bool) -> None:
    data = table(100)
    model = fitted(data, joint=joint)
    twin = Histogram(data.space, joint=joint).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model.log_prob(data.x), twin.log_prob(data.x))


def test_odd_images() -> None:
    space = Images(3, 5, 7, 256)
    x = torch.randint(256, (30, 3, 5, 7)).to(torch.uint8)
    model = fitted(Dataset(space, x))
    assert model.sample(4).shape == (4, 3, 5, 7)
    assert model.log_prob(x).shape == (30,)


def test_clear_errors() -> None:
    with pytest.raises(SpaceError, match=r"10\^1888 cells, of which 4,194,304 are the most: use joint=False"):
        Histogram(Images(1, 28, 28), joint=True)
    with pytest.raises(SpaceError, match="would have 33,554,432 cells"):
        Histogram(Images(1, 5, 5, 2), joint=True)
    with pytest.raises(SpaceError, match="not bins=8 for images: leave it out"):
        Histogram(Images(1, 2, 2), bins=8)
    with pytest.raises(SpaceError, match="smoothing above 0, not 0"):
        Histogram(Vectors(2), smoothing=0.0)
    with pytest.raises(SpaceError, match="at least 1 bin, not 0"):
        Histogram(Vectors(2), bins=0)
