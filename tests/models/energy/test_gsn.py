"""The stochastic network: its learnt transition's stationary distribution by eigenvector, and the walk by hand."""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.energy.gsn import GSN
from tacit.nn import noise
from tacit.spaces import Images, Vectors

SMALL = {"hidden": (12, 8), "walkback": 2, "burn_in": 3}
SPACE = Images(1, 1, 3, 2)


def images() -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=3)), dtype=torch.uint8).view(8, 1, 1, 3)


def transition(model: GSN) -> Tensor:
    """T(x' | x) = Σ_x̃ C(x̃ | x) P(x' | x̃) of one layer without hidden noise: (8, 8), rows sum to 1."""
    x = images().flatten(1).double()
    share = model.corruption / 2
    corrupt = torch.stack([torch.where(x == row, 1 - share, share).double().prod(1) for row in x])
    with torch.no_grad():
        h = model._stepped(model._seen(images().float()), model._silent(8))
        p = torch.sigmoid(model._given(h)[:, 0].flatten(1).double())
    denoise = torch.stack([torch.where(x == 1, row, 1 - row).prod(1) for row in p])
    return corrupt @ denoise


def stationary(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eig(matrix.T)
    vector = vectors[:, values.abs().argmax()].real
    return vector / vector.sum()


@cache
def trained(corruption: float, walkback: int) -> tuple[GSN, Tensor]:
    torch.manual_seed(0)
    p = torch.tensor([0.28, 0.02, 0.12, 0.08, 0.02, 0.08, 0.05, 0.35])
    model = GSN(SPACE, hidden=(16,), corruption=corruption, walkback=walkback, burn_in=60).train()
    row = p.multinomial(20_000, replacement=True)
    model.adapt(Dataset(SPACE, images()[row]))
    optimiser = torch.optim.Adam(model.parameters())
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 200)
        optimiser.zero_grad()
        x = images()[row[torch.randint(20_000, (500,))]]
        model.loss(Batch(x, torch.arange(500))).total.backward()
        optimiser.step()
    return model.eval(), p.double()


def test_the_learnt_transition_has_the_datas_distribution_and_samples_follow_it() -> None:
    model, p = trained(0.2, 1)
    matrix = transition(model)
    torch.testing.assert_close(matrix.sum(1), torch.ones(8, dtype=torch.float64))
    found = stationary(matrix)
    assert (found - p).abs().sum() / 2 < 0.08
    code = model.sample(20_000).flatten(1).long() @ torch.tensor([4, 2, 1])
    assert (code.bincount(minlength=8) / 20_000 - found).abs().max() < 0.015


def test_heavy_corruption_costs_what_a_product_cannot_say() -> None:
    """P(x | x̃) as a product is only right where x̃ says nearly all: the fit is the worse, the more is corrupted."""
    light, p = trained(0.2, 1)
    heavy, _ = trained(0.9, 1)
    assert (stationary(transition(light)) - p).abs().sum() < 0.5 * (stationary(transition(heavy)) - p).abs().sum()


def test_the_walk_asks_at_every_step_for_where_it_began() -> None:
    torch.manual_seed(0)
    model = GSN(Images(1, 2, 3, 2), hidden=(5, 4), walkback=3, hidden_noise=0.5).train()
    x = torch.randint(2, (7, 1, 2, 3), dtype=torch.uint8)
    torch.manual_seed(1)
    got = model.loss(Batch(x, torch.arange(7))).total
    torch.manual_seed(1)
    w1, w2 = model.weights
    b1, b2 = model.biases
    current, h2, total = x.float(), torch.zeros(7, 4), 0.0
    for step in range(3):
        u = torch.rand(7, 1, 2, 3)
        seen = torch.where(u < 0.2, 1.0, torch.where(u < 0.4, 0.0, current)).flatten(1) * 2 - 1
        h1 = torch.tanh(seen @ w1 + b1 + h2 @ w2.T)
        h2 = torch.tanh(h1 @ w2 + b2 + 0.5 * torch.randn(7, 4)) + 0.5 * torch.randn(7, 4)
        p = torch.sigmoid((h1 @ w1.T).view(7, 1, 2, 3) + model.entry[0])
        total = total - torch.where(x == 1, p, 1 - p).log().flatten(1).sum(1).mean() / 3
        if step < 2:
            current = (torch.rand(7, 1, 2, 3) < p).float()
    torch.testing.assert_close(got, total)


@pytest.mark.parametrize("space", [Images(1, 2, 2, 2), Images(1, 2, 2, 17), Vectors(3)])
def test_draws_are_those_of_the_head(space) -> None:
    """Mean and deviation of a draw from row-wise noise, beside the head's own."""
    torch.manual_seed(0)
    model = GSN(space, hidden=(4,), walkback=1)
    parameters = torch.randn(model.head.parameters, *space.shape).expand(40_000, -1, *[-1] * len(space.shape))
    ours, theirs = model._drawn(parameters, 0.7).double(), model.head.sample(parameters, 0.7).double()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0.03, atol=0.06)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.03, atol=0.03)


def test_what_is_known_is_held() -> None:
    model, p = trained(0.2, 1)
    known = torch.tensor([[[True, True, False]]])
    x = torch.tensor([1, 1, 0], dtype=torch.uint8).view(1, 1, 1, 3).expand(4000, -1, -1, -1)
    drawn = model.complete(x, known)
    assert (drawn[..., :2] == 1).all()
    assert drawn[..., 2].float().mean().item() == pytest.approx(float(p[7] / (p[6] + p[7])), abs=0.12)


def test_two_processes_walk_as_one() -> None:
    torch.manual_seed(0)
    model = GSN(Vectors(3), **SMALL).train()
    x = torch.randn(8, 3)
    losses = []
    for rank in range(2):
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            losses.append(model.loss(Batch(x[rank::2], torch.arange(4))).total)
    with noise.shared(0, 1, torch.Generator()):
        torch.default_generator.manual_seed(3)
        whole = model.loss(Batch(x, torch.arange(8))).total
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="walkback is 1 and there are 2 hidden layers: walk back at least as many"):
        GSN(SPACE, hidden=(4, 4), walkback=1)
    with pytest.raises(TacitError, match=r"corruption is 1\.5: give the share"):
        GSN(SPACE, corruption=1.5)
