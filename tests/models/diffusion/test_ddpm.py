"""DDPM: the schedule's identities, the bound's terms and limit, and the ways back from noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.diffusion._diffusion import DROWNED, Diffusion, _Way, scales, target, to_data
from tacit.models.diffusion.ddpm import DDPM, _log_mass
from tacit.nn import noise
from tacit.spaces import Images, Space, Tokens, Vectors

# So few steps cost many nats of a network that says the noise, and errs.
SMALL = {"width": 8, "timesteps": 12, "predict": "velocity"}
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


def see_gaussian(model: Diffusion, mean: Tensor, covariance: Tensor) -> None:
    """Let the model see through noise as well as can be where data are Gaussian: x̂ = E[x | z_t]."""
    mean, covariance = mean.to(model.low.dtype), covariance.to(model.low.dtype)
    values, vectors = torch.linalg.eigh(covariance)

    def seen(z: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, None]:
        alpha, sigma = model._scales(t, z)
        apart = (z - alpha * mean) @ vectors
        return mean + (apart * alpha * values / (alpha**2 * values + sigma**2)) @ vectors.T, None

    model._seen = seen


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


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_terms_are_the_divergences_of_gaussians_multiplied_by_brute_force(variance: str) -> None:
    """q(x_{t−1} | x_t, x₀) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x₀) on a fine grid, against eqs. 7 and 8."""
    model = _exact(timesteps=10, variance=variance)
    normal = torch.distributions.Normal
    t, x0, e, guess = 6, torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double(), torch.tensor([[0.2]]).double()
    a, b, beta = model.alpha_bar[t], model.alpha_bar[t - 1], model.beta[t]
    at = torch.tensor([t])
    xt = model._noised(x0, at, e)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    forth = normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(xt[0])
    log_q = forth + normal(b.sqrt() * x0[0], (1 - b).sqrt()).log_prob(grid)
    q = log_q.softmax(0)
    mean = (q * grid).sum()
    deviation = (q * (grid - mean).square()).sum().sqrt()

    raw = torch.tensor([[0.3]]).double() if variance == "learned" else None
    v = {"small": 0.0, "large": 1.0, "learned": math.exp(0.3) / (1 + math.exp(0.3))}[variance]
    expected = (v * beta.sqrt().log() + (1 - v) * deviation.log()).exp()

    def back(clean: Tensor) -> tuple[Tensor, Tensor]:
        gammas = model.gammas[t].item(), model.gammas[t - 1].item()
        (alpha, sigma), (alpha_s, sigma_s) = scales(gammas[0]), scales(gammas[1])
        step = model._ddim(xt, clean, raw, (alpha, sigma, alpha_s, sigma_s), _Way(eta=1.0, temperature=0.0))
        posterior = sigma_s / sigma * math.sqrt(1 - (alpha / alpha_s) ** 2)
        return step[0, 0], model._deviation(raw, math.sqrt(1 - (alpha / alpha_s) ** 2), posterior)

    found, spread = back(x0)
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)
    assert float(spread) == pytest.approx(expected.item(), rel=1e-5)

    clean = (xt - (1 - a).sqrt() * guess) / a.sqrt()
    p = normal(back(clean)[0], expected)
    divergence = torch.distributions.kl_divergence(normal(mean, deviation), p)
    term = model._divergence(x0, clean, raw, at)[0] + model._costs()[t - 2]
    torch.testing.assert_close(term, divergence, rtol=1e-4, atol=1e-8)
    a_last = model.alpha_bar[-1]
    last = torch.distributions.kl_divergence(normal(a_last.sqrt() * x0, (1 - a_last).sqrt()), normal(0.0, 1.0))
    torch.testing.assert_close(model._last_term(x0), last[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("predict", ["noise", "data", "velocity"])
def test_the_bound_is_that_of_a_naive_loop(variance: str, predict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every divergence from the two Gaussians' own means and variances, without noise in x_t."""
    monkeypatch.setattr(noise, "randn", lambda *shape, device=None: torch.zeros(shape))
    space = Images(1, 3, 2, 5)
    model, x = _model(space, variance=variance, predict=predict), _data(space, 4)
    with torch.no_grad():
        terms = model.bound_terms(x)
        x0 = x.float() / 2 - 1
        alpha_bar, beta, kl, normal = (
            model.alpha_bar,
            model.beta,
            torch.distributions.kl_divergence,
            torch.distributions.Normal,
        )
        for t in range(1, model.timesteps + 1):
            a, b = alpha_bar[t], alpha_bar[t - 1]
            xt = a.sqrt() * x0
            said = model.net(xt, torch.full((4,), t))
            said, raw = said.chunk(2, 1) if variance == "learned" else (said, torch.zeros(()))
            clean = {
                "noise": (xt - (1 - a).sqrt() * said) / a.sqrt(),
                "data": said,
                "velocity": a.sqrt() * xt - (1 - a).sqrt() * said,
            }[predict].clamp(-1, 1)
            if predict == "noise" and a < DROWNED:
                clean = model.mean
            least = beta[2] * (1 - alpha_bar[1]) / (1 - alpha_bar[2]) if t == 1 else beta[t] * (1 - b) / (1 - a)
            learned = raw.sigmoid() * beta[t].log() + (1 - raw.sigmoid()) * least.log()
            sigma = {"small": beta[t] if t == 1 else least, "large": beta[t], "learned": learned.exp()}[variance].sqrt()
            if t == 1:
                first = -_log_mass(x0, clean, sigma, 5).sum((1, 2, 3))
                torch.testing.assert_close(terms[:, 0], first, rtol=1e-3, atol=1e-3)
                continue

            def mean(x0: Tensor, xt: Tensor = xt, a: Tensor = a, b: Tensor = b, beta: Tensor = beta[t]) -> Tensor:
                return (b.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - b) * xt) / (1 - a)

            whole = kl(normal(mean(x0), least.sqrt()), normal(mean(clean), sigma)).sum((1, 2, 3))
            torch.testing.assert_close(terms[:, t - 1], whole, rtol=1e-3, atol=1e-4)


def test_where_data_are_drowned_their_mean_is_seen_instead_of_the_networks_error() -> None:
    space = Images(1, 2, 3)
    x = torch.randint(100, 200, (50, *space.shape), dtype=torch.uint8)
    model = DDPM(space, width=8, timesteps=100, noise_schedule="cosine")
    model.adapt(Dataset(space, x))
    mean = model.entries(x).mean(0)
    with torch.no_grad():
        z = torch.randn(4, *space.shape)
        last, earlier = (model._seen(z, torch.full((4,), t), None)[0] for t in (100, 60))
        torch.testing.assert_close(last, mean.expand_as(last))
        assert (earlier - mean).abs().max() > 0.1
        # One step of DDIM from noise alone: the mean, and not one of the ends that images are clipped to.
        torch.testing.assert_close(model.sample(2, steps=1), model._observations(mean).expand(2, *space.shape))


def test_learnt_variances_lie_between_and_leave_the_mean_alone() -> None:
    model = _exact(timesteps=30, variance="learned")
    t = torch.arange(2, 31)
    for raw, bound in ((-50.0, model.variances), (50.0, model.beta)):
        found = model.variances[t].log() + model._log_excess(torch.full((29, 1), raw).double(), t)[:, 0]
        torch.testing.assert_close(found.exp(), bound[t], rtol=1e-5, atol=0)
    between = model.variances[t].log() + model._log_excess(torch.randn(29, 1).double(), t)[:, 0]
    assert (between > model.variances[t].log()).all() and (between < model.beta[t].log()).all()

    model = _model(Images(1, 4, 4, 17), variance="learned").train()
    losses = model.loss(Batch(_data(model.space), torch.arange(24)))
    losses["bound"].backward()
    head = model.net.head[-1].weight.grad
    assert not head[0].any() and head[1].any()


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

        see_gaussian(model, torch.tensor([mu]), torch.tensor([[s**2]]))
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
            if model.alpha_bar[t] < DROWNED:
                e = (x - model.alpha_bar[t].sqrt() * model.mean) / (1 - model.alpha_bar[t]).sqrt()
            x = (x - model.beta[t] / (1 - model.alpha_bar[t]).sqrt() * e) / alpha[t].sqrt()
            if t > 1:
                x = x + model.variances[t].sqrt() * torch.randn_like(x)
    torch.testing.assert_close(drawn, model.standardise.inverse(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_the_best_denoiser_have_the_datas_moments(eta: float) -> None:
    model = _exact(timesteps=150)
    see_gaussian(model, torch.tensor([1.0]), torch.tensor([[0.09]]))
    x = model.sample(5000, steps=None, eta=eta)
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
    model._output = lambda z, t, label: 2 * z.abs()
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


# -- what diffusion models share: here where it is cheapest to test ---------------------------------------------------


def test_noise_data_and_velocity_convert_into_each_other() -> None:
    x, e = torch.randn(2, 5, 3, dtype=torch.float64)
    alpha = torch.tensor([[0.6], [0.999], [0.01], [0.5], [0.8]]).double()
    sigma = (1 - alpha.square()).sqrt()
    for predict in ("noise", "data", "velocity"):
        said = target(x, e, alpha, sigma, predict)
        torch.testing.assert_close(to_data(said, alpha * x + sigma * e, alpha, sigma, predict), x)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_times_are_visited_once_and_evenly_in_their_angle(schedule: str) -> None:
    model = _exact(timesteps=100, noise_schedule=schedule)
    for steps in (1, 2, 7, 50, 99, 100, 1000, None):
        times = model._times(steps)
        assert times[0] == 100 and times[-1] == 0 and (times.diff() < 0).all()
        assert len(times) == min(steps or 100, 100) + 1
    angle = (0.5 * model.gammas[model._times(10)]).exp().atan()
    assert (angle.diff() + math.pi / 20).abs().max() < 0.06


def test_ddim_gives_gaussian_data_their_covariance() -> None:
    """With the best denoiser a draw is an affine map A z + b of noise, and its covariance A Aᵀ."""
    mean, root = torch.tensor([0.3, -0.5]).double(), torch.tensor([[0.8, 0.0], [-0.5, 0.4]]).double()
    model = DDPM(Vectors(2), width=8).double().eval()
    see_gaussian(model, mean, root @ root.T)
    for solver, steps, error in (("ddim", None, 5e-3), ("dpm++", 200, 5e-3), ("ddim", 50, 0.05)):
        with torch.no_grad():
            *_, ends = model._path(
                torch.cat((torch.zeros(1, 2), torch.eye(2))).double(), model._times(steps), _Way(solver=solver)
            )
        a = (ends[1:] - ends[:1]).T
        torch.testing.assert_close(a @ a.T, root @ root.T, rtol=0, atol=error)
        torch.testing.assert_close(ends[0], mean, rtol=0, atol=error)


def test_guidance_goes_away_from_what_no_label_says() -> None:
    model = DDPM(Images(1, 4, 4, 17), classes=3, **TINY).eval()
    with torch.no_grad():
        model.net.head[-1].weight.mul_(100)
    z, label = 0.05 * torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    t = torch.tensor(3)
    with torch.no_grad():
        plain, _ = model._look(z, t, _Way(label))
        guided, _ = model._look(z, t, _Way(label, guidance=1.5))
        alpha, sigma = model._scales(t.expand(5), z)
        e, free = (model._output(z, t.expand(5), y) for y in (label, torch.full((5,), 3)))
        expected = (z - sigma * (2.5 * e - 1.5 * free)) / alpha
    torch.testing.assert_close(guided, expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, ((z - sigma * e) / alpha).clamp(-1, 1), rtol=1e-4, atol=1e-5)
    draws = []
    for options in ({}, {"guidance": 0.0}):
        torch.manual_seed(1)
        draws.append(model.sample(4, label=1, **options))
    assert torch.equal(*draws)


def test_dynamic_thresholding_scales_what_is_beyond_the_quantile() -> None:
    model = _model(Images(1, 2, 2, 17))
    seen = torch.tensor([[0.5, -4.0, 2.0, 1.0], [0.5, -0.25, 0.1, 0.0]]).view(2, 1, 2, 2)
    model._seen = lambda z, t, label: (seen, None)
    found, _ = model._look(seen, torch.tensor(3), _Way(threshold=0.75))
    torch.testing.assert_close(found.flatten(1), torch.tensor([[0.25, -1.0, 1.0, 0.5], [0.5, -0.25, 0.1, 0.0]]))


def test_completions_come_from_the_conditional() -> None:
    """Of two correlated normal variables, given the first; putting it in alone (one pass a step) would not do."""
    model = DDPM(Vectors(2), width=8).eval()
    see_gaussian(model, torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    x = torch.tensor([1.5, math.nan]).expand(3000, 2)
    known = torch.tensor([True, False])
    errors = []
    for resamples in (1, 8):
        done = model.complete(x, known, resamples=resamples)
        assert (done[:, 0] == 1.5).all()
        errors.append(abs(done[:, 1].mean().item() - 0.9 * 1.5))
        if resamples == 8:
            assert done[:, 1].std().item() == pytest.approx(math.sqrt(1 - 0.81), rel=0.1)
    assert errors[1] < 0.05 < errors[0], errors


def test_codes_are_the_noise_of_the_ordinary_differential_equation() -> None:
    """Along it a normal variable keeps its quantile."""
    model = _exact()
    see_gaussian(model, torch.tensor([0.5]), torch.tensor([[0.09]]))
    x = torch.linspace(-0.3, 1.3, 9).double()[:, None]
    z = model.encode(x, steps=400)
    torch.testing.assert_close(z, (x - 0.5) / 0.3, rtol=0.02, atol=0.02)
    torch.testing.assert_close(model.decode(z, steps=400), x, rtol=0, atol=0.02)
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=0.1)


def test_with_classes_it_is_a_bound_on_the_mixture_and_a_classifier() -> None:
    model = DDPM(Vectors(1), width=8, classes=2).double().eval()
    means, s = torch.tensor([-0.5, 0.5]).double(), 0.4
    model.log_prior.copy_(torch.tensor([0.3, 0.7]).log())

    def seen(z: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, None]:
        alpha, sigma = model._scales(t, z)
        mean = means[label][:, None]
        return mean + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (z - alpha * mean), None

    model._seen = seen
    x = torch.tensor([[-1.0], [0.0], [0.2], [0.9]]).double()
    joint = torch.distributions.Normal(means, s).log_prob(x) + model.log_prior
    rows = x.repeat_interleave(1000, 0)
    with torch.no_grad():
        bound = model.log_prob(rows, terms=64).view(4, -1).mean(1)
        each = model.log_prob(rows, 1, terms=64).view(4, -1).mean(1)
        classified = model.classify(x.repeat_interleave(200, 0)).view(4, 200, 2).mean(1)
    # Four standard errors.
    torch.testing.assert_close(bound, joint.logsumexp(1), rtol=0, atol=0.14)
    torch.testing.assert_close(each, joint[:, 1] - model.log_prior[1], rtol=0, atol=0.14)
    torch.testing.assert_close(classified, joint.softmax(1), rtol=0, atol=0.1)


def test_a_chain_ends_in_the_sample_of_the_same_seed() -> None:
    model = _model(Images(1, 5, 4, 17))
    torch.manual_seed(3)
    chain = model.chain(3, 4, steps=6)
    torch.manual_seed(3)
    assert chain.shape == (3, 4, 1, 5, 4) and torch.equal(chain[:, -1], model.sample(3, steps=6))


def test_options_out_of_range_are_refused() -> None:
    model = _model(Vectors(2))
    for options, message in (
        ({"solver": "euler"}, "solver is 'euler'"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"eta": 1.0, "solver": "dpm++"}, "adds no noise"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": 1.0}, "guidance is 1.0"),
        ({"label": 1}, "fitted without classes"),
    ):
        with pytest.raises(TacitError, match=message):
            model.sample(2, **options)
    with pytest.raises(TacitError, match="frames is 1"):
        model.chain(2, 1)
    with pytest.raises(TacitError, match="terms is 0"):
        model.log_prob(torch.zeros(1, 2), terms=0)
    for arguments, message in (
        ({"predict": "score"}, "predict is 'score'"),
        ({"variance": "none"}, "variance is 'none'"),
        ({"noise_schedule": "sine"}, "noise_schedule is 'sine'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"width": 0}, "width is 0"),
    ):
        with pytest.raises(TacitError, match=message):
            DDPM(Vectors(2), **arguments)
