"""DDPM: the schedule's identities, the bound's terms and limit, and the ways back from noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.diffusion.ddpm import DDPM, _log_mass
from tacit.nn import noise
from tacit.spaces import Images, Space, Tokens, Vectors

TINY = {"width": 8, "timesteps": 12}
SPACES = [Images(1, 8, 8, 17), Images(3, 10, 7), Images(4, 5, 14, 2), Images(1, 1, 2), Vectors(1), Vectors(6)]


def _data(space: Space, rows: int = 24) -> Tensor:
    if isinstance(space, Images):
        return torch.randint(0, space.levels, (rows, *space.shape), dtype=torch.uint8)
    return 10 * torch.randn(rows, *space.shape) + 3


def _model(space: Space, **arguments: object) -> DDPM:
    model = DDPM(space, **{**TINY, **arguments})
    model.adapt(Dataset(space, _data(space)))
    return model.eval()


def _exact(**arguments: object) -> DDPM:
    """For Vectors(1), in float64."""
    return DDPM(Vectors(1), width=8, **arguments).double().eval()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [20, 1000])
def test_schedule(schedule: str, steps: int) -> None:
    model = _exact(noise_schedule=schedule, timesteps=steps)
    beta, alpha_bar = model.beta, model.alpha_bar
    assert alpha_bar[0] == 1 and (beta[1:] > 0).all() and (beta < 1).all()
    torch.testing.assert_close(alpha_bar[1:], (1 - beta[1:]).cumprod(0), rtol=1e-5, atol=1e-9)
    assert alpha_bar[-1] < 1e-3
    if schedule == "cosine":
        f = (torch.tensor([0.5, 0.0]) + 0.008).div(1.008).mul(math.pi / 2).cos().square()
        torch.testing.assert_close(alpha_bar[steps // 2], (f[0] / f[1]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_terms_are_the_divergences_of_gaussians_multiplied_by_brute_force(variance: str) -> None:
    """q(x_{t−1} | x_t, x₀) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x₀) on a fine grid, against eqs. 7 and 8."""
    model = _exact(timesteps=10, variance=variance)
    normal = torch.distributions.Normal
    t, x0, e, guess = 6, torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double(), torch.tensor([[0.2]]).double()
    a, b, beta = model.alpha_bar[t], model.alpha_bar[t - 1], model.beta[t]
    xt = model._noised(x0, torch.tensor([t]), e)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    forth = normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(xt[0])
    log_q = forth + normal(b.sqrt() * x0[0], (1 - b).sqrt()).log_prob(grid)
    q = log_q.softmax(0)
    mean = (q * grid).sum()
    deviation = (q * (grid - mean).square()).sum().sqrt()

    model._noise_in = lambda x, t: e
    back, spread = model._step_back(xt, t, t - 1, eta=1.0)
    torch.testing.assert_close(back[0, 0], mean, rtol=1e-6, atol=1e-6)
    expected = deviation if variance == "small" else beta.sqrt()
    assert spread == pytest.approx(expected.item(), rel=1e-5)
    assert model.variances[t].sqrt().item() == pytest.approx(expected.item(), rel=1e-5)

    model._noise_in = lambda x, t: guess
    p = normal(model._step_back(xt, t, t - 1, eta=1.0)[0][0, 0], spread)
    divergence = torch.distributions.kl_divergence(normal(mean, deviation), p)
    error = (x0 - model._data_in(xt, torch.tensor([t]))).square().sum() / (1 - a)
    term = model.weight[t - 2] * error + model.mismatch[t - 2]
    torch.testing.assert_close(term, divergence, rtol=1e-4, atol=1e-8)
    a_last = model.alpha_bar[-1]
    last = torch.distributions.kl_divergence(normal(a_last.sqrt() * x0, (1 - a_last).sqrt()), normal(0.0, 1.0))
    torch.testing.assert_close(model._last_term(x0), last[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_bound_is_the_sum_of_its_terms(space: Space) -> None:
    model, x = _model(space), _data(space, 5)
    with torch.no_grad():
        torch.manual_seed(1)
        terms = model.bound_terms(x)
        torch.manual_seed(1)
        whole = model.log_prob(x, terms=None)
    assert terms.shape == (5, model.timesteps + 1) and (terms[:, 1:] >= -1e-4).all()
    jacobian = -model.standardise.scale.log().sum() if isinstance(space, Vectors) else 0.0
    torch.testing.assert_close(whole, jacobian - terms.sum(1))


@pytest.mark.parametrize("space", [Images(1, 8, 8, 17), Vectors(6)], ids=str)
def test_a_few_terms_estimate_all_of_them_without_bias(space: Space) -> None:
    model, x = _model(space), _data(space, 1)
    with torch.no_grad():
        every = torch.stack([model.bound_terms(x).sum() for _ in range(20)])
        jacobian = model._jacobian()
        few = model.log_prob(x.expand(200, *space.shape), terms=3) - jacobian
    error = math.hypot(every.std().item() / math.sqrt(20), few.std().item() / math.sqrt(200))
    assert -few.mean().item() == pytest.approx(every.mean().item(), abs=4 * error)
    assert few.std() < 2 * every.mean(), "strata and weights should leave little noise"


def test_with_the_best_denoiser_the_bound_becomes_the_likelihood() -> None:
    """Data from N(μ, s²): E[ε | x_t] is known, and what the bound lacks vanishes as T grows."""
    mu, s = 0.5, 0.3
    x = mu + s * torch.randn(64, 1, dtype=torch.float64)
    exact = torch.distributions.Normal(mu, s).log_prob(x).mean()
    gaps = []
    for steps in (10, 100, 1000):
        model = _exact(timesteps=steps)

        def best(x: Tensor, t: Tensor, model: DDPM = model) -> Tensor:
            a = model.alpha_bar[t].unsqueeze(1)
            return (1 - a).sqrt() * (x - a.sqrt() * mu) / (a * s**2 + 1 - a)

        model._noise_in = best
        with torch.no_grad():
            # The noise is averaged over as many draws, for each observation, as leave it small beside the gap.
            bound = model.log_prob(x.repeat(10_000 // steps, 1), terms=None).mean()
        gaps.append((exact - bound).item())
    assert gaps[0] > gaps[1] > gaps[2] > -0.02, gaps
    assert gaps[2] < 0.03, gaps


def test_the_discretised_decoder_sums_to_one_and_loses_nothing_in_the_tails() -> None:
    for levels in (2, 17, 256):
        places = torch.arange(levels) * (2 / (levels - 1)) - 1
        for mean in (-1.0, 0.123, 1.0):
            mass = _log_mass(places, torch.tensor(mean), torch.tensor(0.05), levels)
            assert mass.exp().sum().item() == pytest.approx(1, abs=1e-5)
    far = _log_mass(torch.tensor([-0.5, 0.5]), torch.tensor([0.5, -0.5]), torch.tensor(0.01), 256)
    assert far.isfinite().all() and far[0] == pytest.approx(far[1].item(), rel=1e-4) and (far < -4000).all()


def test_ddim_with_all_noise_is_ancestral_sampling() -> None:
    """Against eq. 11 and algorithm 2, step by step, with the same noise."""
    model = _model(Vectors(3), variance="small")
    model.low.fill_(-math.inf)
    model.high.fill_(math.inf)
    torch.manual_seed(5)
    drawn = model.sample(7, steps=None, eta=1.0)
    torch.manual_seed(5)
    x = torch.randn(7, 3)
    alpha = 1 - model.beta
    with torch.no_grad():
        for t in range(model.timesteps, 0, -1):
            e = model.net(x, torch.full((7,), t))
            x = (x - model.beta[t] / (1 - model.alpha_bar[t]).sqrt() * e) / alpha[t].sqrt()
            if t > 1:
                x = x + model.variances[t].sqrt() * torch.randn_like(x)
    torch.testing.assert_close(drawn, model.standardise.inverse(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_the_best_denoiser_have_the_datas_moments(eta: float) -> None:
    model = _exact(timesteps=150)
    model._noise_in = lambda x, t: (1 - (a := model.alpha_bar[t].unsqueeze(1))).sqrt() * (x - a.sqrt()) / (1 - 0.91 * a)
    torch.set_default_dtype(torch.float64)
    try:
        x = model.sample(5000, steps=None, eta=eta)
    finally:
        torch.set_default_dtype(torch.float32)
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    assert x.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_samples_and_features(space: Space) -> None:
    model, x = _model(space), _data(space)
    for steps, eta in ((3, 0.0), (None, 1.0), (99, 0.5)):
        sample = model.sample(4, steps=steps, eta=eta, temperature=0.8)
        assert sample.shape == (4, *space.shape) and sample.dtype == space.torch_dtype
    features = model.embed(x)
    assert features.shape[0] == len(x) and features.ndim == 2 and torch.equal(features, model.embed(x))
    assert features.std(0).max() > 0


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_parameter_learns_from_the_first_step(space: Space) -> None:
    model, x = _model(space).train(), _data(space)
    model.loss(Batch(x, torch.arange(len(x)))).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("terms", [None, 2])
def test_the_bound_has_gradients(terms: int | None) -> None:
    model, x = _model(Images(1, 4, 4)), _data(Images(1, 4, 4), 3)
    torch.manual_seed(2)
    value = model.log_prob(x, terms=terms)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        torch.manual_seed(2)
        torch.testing.assert_close(model.log_prob(x, terms=terms), value.detach())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_table_stay_in_its_range_even_if_the_network_errs(eta: float) -> None:
    model = DDPM(Vectors(2), width=8)
    x = torch.randn(500, 2) * torch.tensor([50.0, 0.1]) + 7
    model.adapt(Dataset(model.space, x))
    model._noise_in = lambda x, t: 2 * x.abs()
    drawn = model.sample(50, eta=eta)
    slack = 1e-3 * (x.amax(0) - x.amin(0))
    assert (drawn >= x.amin(0) - slack).all() and (drawn <= x.amax(0) + slack).all()


def test_learns_a_table() -> None:
    x = torch.cat((torch.randn(300, 2) * 0.1 - 1, torch.randn(300, 2) * 0.1 + 1)) * torch.tensor([50.0, 0.1])
    model = DDPM(Vectors(2), width=32, timesteps=50)
    model.adapt(Dataset(model.space, x))
    before = model.log_prob(x).mean().item()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        model.loss(Batch(x, torch.arange(len(x)))).total.backward()
        optimiser.step()
    model.eval()
    gaussian = -0.5 * torch.linalg.slogdet(2 * math.pi * math.e * x.T.cov()).logabsdet.item()
    with torch.no_grad():
        after = model.log_prob(x).mean().item()
    assert after > before + 1 and after > gaussian, (before, after, gaussian)
    sides = model.sample(400, steps=None, eta=1.0) / torch.tensor([50.0, 0.1])
    assert ((sides.abs() - 1).abs() < 0.5).all(1).float().mean() > 0.8
    assert 0.3 < (sides[:, 0] > 0).float().mean() < 0.7


def test_times_of_a_batch_are_spread_evenly_and_shared_between_processes() -> None:
    t = (noise.stratified(20) * 20).long()
    assert sorted(t.tolist()) == list(range(20)) and t.tolist() != list(range(20))
    parts = []
    for rank in (0, 1):
        with noise.shared(rank, 2, torch.Generator().manual_seed(3)):
            parts.append(noise.stratified(10))
    whole = torch.stack(parts, 1).flatten()
    assert sorted((whole * 20).long().tolist()) == list(range(20))


def test_bfloat16_autocast_keeps_the_bound() -> None:
    model, x = _model(Images(1, 8, 8, 17)), _data(Images(1, 8, 8, 17))
    bounds = []
    for enabled in (True, False):
        torch.manual_seed(3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            bounds.append(model.log_prob(x))
    assert bounds[0].dtype == torch.float32
    torch.testing.assert_close(bounds[0], bounds[1], rtol=0.02, atol=1.0)


def test_saved_and_loaded_it_says_the_same() -> None:
    space = Vectors(6)
    model, other = _model(space), DDPM(space, **TINY).eval()
    other.load_state_dict(model.state_dict())
    x, values = _data(space), []
    for m in (model, other):
        torch.manual_seed(4)
        values.append(m.log_prob(x))
    assert torch.equal(*values)


def test_refuses_with_one_sentence() -> None:
    with pytest.raises(SpaceError, match="ddpm takes images or vectors, not tokens"):
        DDPM(Tokens(5, 5))
    with pytest.raises(TacitError, match="timesteps=1 "):
        DDPM(Vectors(2), timesteps=1)
    with pytest.raises(SpaceError, match="do not fit"):
        _model(Vectors(2)).log_prob(torch.zeros(3, 4))


def test_attention_mixes_positions() -> None:
    net = DDPM(Images(1, 8, 8), **TINY).net
    x = torch.randn(2, 16, 4, 4)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    assert isinstance(net.attention, nn.Module)
    assert (net.attention(moved) - net.attention(x))[:, :, 3, 3].abs().max() > 0
