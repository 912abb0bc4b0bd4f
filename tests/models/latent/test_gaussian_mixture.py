"""The Gaussian mixture against scikit-learn's, against integration and drawn noise, and on singular data."""

import itertools
import math

import numpy as np
import pytest
import sklearn.mixture
import torch
from sklearn.datasets import load_digits, load_iris
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TrainingError
from tacit.models.latent import gaussian_mixture
from tacit.models.latent.gaussian_mixture import GaussianMixture, Reals
from tacit.spaces import Images, Tokens, Vectors


def fitted(data: Dataset, **arguments: object) -> GaussianMixture:
    model = GaussianMixture(data.space, **arguments)
    model.fit_exactly(data)
    return model.eval()


def clumps(rows: int = 600) -> Dataset:
    """Three slanted clumps of unequal size in the plane, far from the origin and of unequal scales."""
    centre = torch.tensor([[0.0, 0.0], [6.0, 1.0], [1.0, 7.0]])[torch.randint(3, (rows,)).clamp(max=2)]
    x = centre + torch.randn(rows, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.4]])
    return Dataset(Vectors(2), x * torch.tensor([1.0, 30.0]) + 100)


def iris() -> Dataset:
    return Dataset(Vectors(4), torch.from_numpy(load_iris().data).float())


def digits() -> Dataset:
    return Dataset(Images(1, 8, 8, 17), torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_from_the_same_start_it_finds_what_scikit_learn_finds(covariance: str) -> None:
    data = iris()
    model = GaussianMixture(data.space, components=3, covariance=covariance, ridge=1e-6, tolerance=1e-9, iterations=200)
    model._measure(data)
    z = model._standardised(data.x)
    start = model._start(z, 3, 1e-6)
    factor = start.factor.numpy()
    peer = sklearn.mixture.GaussianMixture(
        3,
        covariance_type={"full": "full", "diagonal": "diag"}[covariance],
        reg_covar=1e-6,
        tol=1e-9,
        max_iter=200,
        weights_init=start.log_weight.exp().numpy(),
        means_init=start.mean.numpy(),
        precisions_init=factor @ factor.swapaxes(1, 2) if covariance == "full" else factor**2,
    ).fit(z.mean.numpy())
    mixture = model._climb(z, start, 1e-6)
    np.testing.assert_allclose(mixture.mean.numpy(), peer.means_, atol=1e-3)
    for buffer, value in zip((model.log_weight, model.mean, model.factor), mixture, strict=True):
        buffer.copy_(value)
    jacobian = model.scale.double().log().sum().item()
    np.testing.assert_allclose(model.log_prob(data.x).numpy(), peer.score_samples(z.mean.numpy()) - jacobian, atol=1e-3)
    assert model.log_prob(data.x).mean().item() == pytest.approx(peer.score(z.mean.numpy()) - jacobian, abs=1e-4)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("images", [True, False])
def test_no_round_lowers_the_likelihood(images: bool, covariance: str) -> None:
    data = digits().take(slice(600)) if images else iris()
    model = GaussianMixture(data.space, covariance=covariance, ridge=0.0, iterations=1, tolerance=0.0)
    model._measure(data)
    z = model._standardised(data.x)
    mixture = model._start(z, 3, 0.0)
    scores = []
    for _ in range(12):
        scores.append(model._score(z, mixture))
        mixture = model._climb(z, mixture, 0.0)
    gains = torch.tensor(scores).diff()
    assert gains.min() > -1e-9
    assert gains.sum() > 0.01


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_density_integrates_to_one(covariance: str) -> None:
    model = fitted(clumps(), components=3, covariance=covariance)
    x, y = torch.linspace(85, 120, 400), torch.linspace(-100, 450, 400)
    density = model.log_prob(torch.cartesian_prod(x, y)).double().exp()
    assert (density.sum() * (x[1] - x[0]) * (y[1] - y[0])).item() == pytest.approx(1, abs=1e-3)


def test_bound_on_images_lies_below_their_mass_and_near_it() -> None:
    space = Images(1, 1, 2, 6)
    data = Dataset(space, (6 * torch.rand(300, 1, 1, 2) ** 2).to(torch.uint8))
    model = fitted(data, components=2)
    x = torch.tensor(list(itertools.product(range(6), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)
    bound = model.log_prob(x).double()
    # The mass of each image by integration over the noise.
    # Nodes that crowd at both ends of the interval, with their weights.
    angle = math.pi * (torch.arange(40) + 0.5) / 40
    u, weight = (1 - angle.cos()) / 2, angle.sin() / angle.sin().sum()
    weight = weight.outer(weight).flatten().double()
    noisy = x.flatten(1).double().unsqueeze(1) + torch.cartesian_prod(u, u).double()
    p = 1e-4 + (1 - 2e-4) * noisy.flatten(0, 1) / 6
    slope = ((1 - 2e-4) / 6 / (p * (1 - p))).log().sum(1)

    def of_noise(model: GaussianMixture) -> Tensor:
        z = (p.logit() - model.shift) / model.scale
        log_p = model._log_joint(Reals(z, None), model._mixture()).logsumexp(1) - model.scale.double().log().sum()
        return (log_p + slope).view(len(x), -1)

    mass = (of_noise(model) + weight.log()).logsumexp(1)
    assert mass.exp().sum() > 0.9
    assert (bound <= mass + 1e-2).all()
    assert ((mass - bound) * mass.exp()).sum() < 0.5
    # With one component the bound is the expectation over the noise itself.
    single = fitted(data, components=1)
    torch.testing.assert_close(single.log_prob(x).double(), of_noise(single) @ weight, rtol=0, atol=2e-2)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_samples_have_the_moments_of_the_data(covariance: str) -> None:
    data = clumps()
    model = fitted(data, components=3, covariance=covariance, ridge=0.0)
    x = model.sample(40_000)
    assert x.dtype == torch.float32
    spread = data.x.std(0)
    torch.testing.assert_close(x.mean(0) / spread, data.x.mean(0) / spread, rtol=0, atol=0.03)
    if covariance == "full":
        torch.testing.assert_close(
            x.T.cov() / spread.outer(spread), data.x.T.cov() / spread.outer(spread), rtol=0, atol=0.04
        )
    # The mean log density of samples is minus the entropy; that of the data at the optimum agrees with it.
    assert model.log_prob(x).mean().item() == pytest.approx(model.log_prob(data.x).mean().item(), abs=0.1)
    cool = model.sample(5000, temperature=0.1)
    assert model.log_prob(cool).mean() > model.log_prob(x).mean() + 0.5


def test_number_of_components_is_chosen_on_held_out_rows() -> None:
    data = clumps(900)
    model = fitted(data, components=None, restarts=2)
    used = model.log_weight.isfinite().sum().item()
    assert used in (3, 5)
    assert model.encode(data.x).sum(1).allclose(torch.ones(900))
    assert model.encode(data.x)[:, used:].max() == 0
    assert model.sample(50).isfinite().all()
    assert model.embed(data.x).isfinite().all()
    assert model.log_prob(data.x).mean() > fitted(data, components=1).log_prob(data.x).mean() + 0.3


def test_a_search_ends_in_time_with_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clumps(900)
    model = GaussianMixture(data.space)
    model.fit_exactly(data, seconds=0.0)
    assert model.log_weight.isfinite().sum() == 1
    assert torch.isfinite(model.log_prob(data.x)).all()
    now = iter(range(10**6))
    monkeypatch.setattr(gaussian_mixture.time, "monotonic", lambda: next(now))
    model.fit_exactly(data, seconds=60)
    assert 1 < model.log_weight.isfinite().sum() < 20


@pytest.mark.parametrize("side, components, covariance", [(8, 20, "full"), (28, 10, "full"), (65, 20, "diagonal")])
def test_what_is_chosen_from_fits_the_size_of_the_space(side: int, components: int, covariance: str) -> None:
    model = GaussianMixture(Images(1, side, side, 2))
    assert (len(model.mean), model.covariance) == (components, covariance)


def test_responsibilities_decode_to_their_cluster() -> None:
    data = clumps()
    model = fitted(data, components=3, restarts=3)
    back = model.decode(model.encode(data.x))
    assert ((back - data.x) / data.x.std(0)).square().mean() < 0.3


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_many_rows_are_fitted_in_part_and_finished_on_all(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clumps(2000)
    whole = fitted(data, components=3, covariance=covariance, restarts=3).log_prob(data.x).mean()
    monkeypatch.setattr("tacit.models.latent.gaussian_mixture._WORK", 5000)
    part = fitted(data, components=3, covariance=covariance, restarts=3).log_prob(data.x).mean()
    assert part.item() == pytest.approx(whole.item(), abs=0.02)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_singular_data(covariance: str) -> None:
    rows = torch.randn(4, 3).repeat(10, 1)
    rows[:, 1] = 7.0
    model = fitted(Dataset(Vectors(3), rows), components=4, covariance=covariance)
    assert model.log_prob(rows).isfinite().all()
    assert model.sample(10).isfinite().all()
    same = torch.full((20, 3), 5.0)
    assert fitted(Dataset(Vectors(3), same), components=2, covariance=covariance).log_prob(same).isfinite().all()
    with pytest.raises(TrainingError, match=r"is singular at ridge=0: give a larger ridge"):
        fitted(Dataset(Vectors(3), rows), components=2, covariance=covariance, ridge=0.0)


def test_fewer_rows_than_features() -> None:
    data = Dataset(Vectors(30), torch.randn(12, 30))
    model = fitted(data, components=2)
    assert model.log_prob(data.x).isfinite().all()


@pytest.mark.parametrize("space", [Images(3, 5, 7), Images(1, 8, 8, 17), Images(4, 3, 3, 2), Images(1, 12, 11)])
def test_shapes_of_images(space: Images) -> None:
    x = torch.randint(space.levels, (40, *space.shape)).to(torch.uint8)
    x[:, :, 0] = 0
    data = Dataset(space, x)
    model = fitted(data, components=2)
    assert model.density == "bound"
    assert model.log_prob(x).isfinite().all()
    drawn = model.sample(5)
    assert drawn.shape == (5, *space.shape)
    assert drawn.dtype == torch.uint8
    assert model.decode(model.encode(x)).shape == x.shape
    assert model.embed(x).shape == (40, 2)
    twin = GaussianMixture(space, components=2).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model.log_prob(x), twin.log_prob(x))


def test_single_precision_of_wide_images_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    model = fitted(data, components=3)
    exact: Tensor = model.log_prob(data.x)
    monkeypatch.setattr("tacit.models.latent.gaussian_mixture._WIDE", 10)
    torch.testing.assert_close(model.log_prob(data.x), exact, rtol=0, atol=0.02)


def test_clear_errors() -> None:
    with pytest.raises(DataError, match="data has 3 rows, too few for 5 components: give 3 or fewer"):
        fitted(Dataset(Vectors(2), torch.randn(3, 2)), components=5)
    with pytest.raises(SpaceError, match="gaussian-mixture needs restarts of at least 1, not 0"):
        GaussianMixture(Vectors(2), restarts=0)
    with pytest.raises(SpaceError, match="takes vectors or images, not tokens"):
        GaussianMixture(Tokens(5, 3))
