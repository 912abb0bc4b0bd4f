"""VDM: the schedule, the bound's parts and limits, and what the schedule's inside may and may not change."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.diffusion._diffusion import _Way
from tacit.models.diffusion.vdm import VDM, Schedule, missed
from tacit.nn import noise
from tacit.spaces import Images, Space, Tokens, Vectors

SMALL = {"width": 8, "timesteps": 12}
SPACES = [Images(1, 8, 8, 17), Images(3, 7, 5), Images(4, 5, 6, 2), Images(1, 1, 2), Vectors(1)]


def _data(space: Space, rows: int = 16) -> Tensor:
    if isinstance(space, Images):
        return torch.randint(0, space.levels, (rows, *space.shape), dtype=torch.uint8)
    return 10 * torch.randn(rows, *space.shape) + 3


def _model(space: Space, **arguments: object) -> VDM:
    model = VDM(space, width=8, **arguments)
    model.adapt(Dataset(space, _data(space)))
    return model.eval()


def _gaussian(mean: float, s: float, **arguments: object) -> VDM:
    """Of N(mean, s²), with the best denoiser, in float64."""
    model = VDM(Vectors(1), width=8, **arguments).double().eval()

    def said(z: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        a, v = (-gamma).sigmoid()[:, None], gamma.sigmoid()[:, None]
        return mean + a.sqrt() * s**2 * (z - a.sqrt() * mean) / (a * s**2 + v)

    model.predict, model._said = "data", said
    return model


def test_the_schedule_rises_from_end_to_end_and_knows_its_slope() -> None:
    schedule = Schedule(-13.3, 5.0).double()
    with torch.no_grad():
        for p in (schedule.weight, schedule.bias, schedule.out):
            p.add_(torch.randn_like(p))
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    gamma = schedule(t)
    assert (gamma.diff() > 0).all()
    torch.testing.assert_close(gamma[[0, -1]], schedule.ends)
    slope = schedule.to_ends(*schedule.inside(t))[1]
    torch.testing.assert_close(slope, torch.autograd.grad(gamma.sum(), t)[0])


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_reconstruction_is_that_of_a_naive_loop(levels: int) -> None:
    """Against draws of z_0 and the normalised probabilities of all levels."""
    gamma = torch.tensor(-2 * math.log(1.5 * (levels - 1)))
    places = torch.linspace(-1, 1, levels)
    found = missed(levels, gamma)
    for level in (0, levels // 2, levels - 1):
        z = places[level] + (gamma / 2).exp() * torch.randn(20_000)
        log_p = (-((z[:, None] - places) ** 2) / (2 * gamma.exp())).log_softmax(1)[:, level]
        assert found[level].item() == pytest.approx(
            -log_p.mean().item(), abs=5 * log_p.std().item() / math.sqrt(20_000)
        )


@pytest.mark.parametrize("space", [Images(1, 3, 2, 5), Vectors(3)], ids=str)
def test_the_bound_of_T_steps_is_that_of_a_naive_loop(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divergences of q(z_s | z_t, x) from the same with x̂ for x (eq. 33), between T + 1 times, without noise in z_t."""
    monkeypatch.setattr(noise, "randn", lambda *shape, device=None: torch.zeros(shape))
    model, x = _model(space, timesteps=9), _data(space, 4)
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    with torch.no_grad():
        found = model.log_prob(x, terms=None)
        x0 = model.entries(x)
        gamma = model.schedule(torch.linspace(0, 1, 10))
        a, v = (-gamma).sigmoid(), gamma.sigmoid()
        total = kl(normal(a[-1].sqrt() * x0, v[-1].sqrt()), normal(0.0, 1.0))
        for s, t in zip(range(9), range(1, 10), strict=True):
            z, times = a[t].sqrt() * x0, torch.full((4,), t / 9)
            seen = model._seen_within(z, times, None)[0]
            ratio = (a[t] / a[s]).sqrt()
            step = v[t] - ratio.square() * v[s]
            deviation = (step * v[s] / v[t]).sqrt()
            means = [ratio * v[s] / v[t] * z + a[s].sqrt() * step / v[t] * what for what in (x0, seen)]
            total = total + kl(normal(means[0], deviation), normal(means[1], deviation))
        expected = total.flatten(1).sum(1) + model._reconstruction(x0) - model._jacobian()
    torch.testing.assert_close(-found, expected, rtol=1e-3, atol=1e-3)


def test_with_the_best_denoiser_the_bound_becomes_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of ±1 gives the exact mean of what is quadratic in it, and the middles of strata their integral."""
    monkeypatch.setattr(noise, "rand", lambda *shape, device=None: torch.full(shape, 0.5))

    def alternating(rows: int, *rest: int, device: object = None) -> Tensor:
        return (1 - 2 * (torch.arange(rows) % 2.0)).view(-1, *[1] * len(rest)).expand(rows, *rest)

    monkeypatch.setattr(noise, "randn", alternating)
    mu, s = 0.5, 0.3
    x = torch.linspace(-0.3, 1.3, 9, dtype=torch.float64)[:, None]
    exact = torch.distributions.Normal(mu, s).log_prob(x[:, 0])
    gaps = []
    for steps in (10, 100, 1000, None):
        model = _gaussian(mu, s, timesteps=steps)
        with torch.no_grad():
            bound = model.log_prob(x.repeat_interleave(2, 0), terms=steps or 1000).view(9, 2).mean(1)
        gaps.append(exact - bound)
    assert (gaps[0] > gaps[1]).all() and (gaps[1] > gaps[2]).all() and gaps[2].max() < 0.06
    # What is left is γ_1: z_1 is not quite standard normal.
    assert gaps[3].abs().max() < 0.005


def test_in_continuous_time_the_inside_of_the_schedule_changes_nothing_but_the_noise() -> None:
    model = _model(Vectors(3))
    with torch.no_grad():
        # A network that says something, so that the integrand is no constant.
        model.net.head[-1].weight.mul_(30)
    x = _data(model.space, 4).repeat(400, 1)
    bounds, ends = [], model.schedule.ends.detach().clone()
    for bend in (0.0, 8.0):
        with torch.no_grad():
            model.schedule.out.add_(bend * torch.rand(128) * (model.schedule.weight > 5))
            bounds.append(model.log_prob(x, terms=8).view(400, 4))
    assert torch.equal(model.schedule.ends, ends)
    error = (bounds[0].var(0) + bounds[1].var(0)).div(400).sqrt()
    assert ((bounds[0] - bounds[1]).mean(0).abs() < 4 * error).all()
    # With few steps it does change the bound.
    model.timesteps = 3
    with torch.no_grad():
        bent = model.log_prob(x, terms=None).mean()
        model.schedule.out.fill_(0.1)
        assert (model.log_prob(x, terms=None).mean() - bent).abs() > 1


def test_the_inside_learns_by_the_squares_and_all_else_by_the_bound() -> None:
    """One backward pass, against autograd on each objective."""
    model = _model(Vectors(2)).train()
    batch = Batch(_data(model.space, 32), torch.arange(32))
    torch.manual_seed(1)
    model.loss(batch).total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    torch.manual_seed(1)
    x = model.entries(batch.x)
    e, u = torch.randn_like(x), noise.stratified(32)
    gamma, slope = model.schedule.to_ends(*model.schedule.inside(u))
    rows = slope * model._error(x, gamma, e, None)
    bound = rows.mean() + model._last_term(x).mean() + model._reconstruction(x).mean()
    inside = {name for name in found if name.startswith("schedule.") and name != "schedule.ends"}
    parameters = dict(model.named_parameters())
    squares = rows.square().mean() / (2 * rows.mean().detach())
    for names, objective in ((inside, squares), (found.keys() - inside, bound)):
        gradients = torch.autograd.grad(objective, [parameters[name] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_learning_the_inside_makes_the_estimate_vary_less() -> None:
    model = _gaussian(0.5, 0.1)
    x = (0.5 + 0.1 * torch.randn(64, 1)).double()
    inside = [model.schedule.weight, model.schedule.bias, model.schedule.out]
    optimiser = torch.optim.Adam(inside, lr=0.05)

    def spread() -> float:
        with torch.no_grad():
            return model.log_prob(x, terms=1).std().item()

    before = spread()
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(Batch(x, torch.arange(64))).total.backward()
        optimiser.step()
    assert spread() < 0.8 * before


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
def test_solvers_converge_at_their_order(solver: str, order: int) -> None:
    """To the ordinary differential equation's solution, which keeps a normal variable's quantile."""
    model = _gaussian(0.0, 0.5, timesteps=5000)
    with torch.no_grad():
        model.schedule.ends.copy_(torch.tensor([-6.0, 5.0]))
        errors = []
        for steps in (20, 40, 80):
            times = model._times(steps)
            ends = model.gamma(times[[0, -1]])
            start, end = ((0.25 * (-g).sigmoid() + g.sigmoid()).sqrt() for g in ends)
            *_, z = model._path(start.view(1, 1), times, _Way(solver=solver))
            errors.append((z - end).abs().item())
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert ratios == pytest.approx([2**order] * 2, rel=0.25), (errors, ratios)


@pytest.mark.parametrize("timesteps", [None, 7])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_parameter_learns_and_every_size_is_taken(space: Space, timesteps: int | None) -> None:
    model, x = _model(space, timesteps=timesteps).train(), _data(space)
    losses = model.loss(Batch(x, torch.arange(len(x))))
    assert set(losses) == {"diffusion", "prior", "reconstruction"} and losses["diffusion"] > 0
    losses.total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval()
    sample = model.sample(3, steps=3, eta=1.0, temperature=0.8)
    assert sample.shape == (3, *space.shape) and sample.dtype == space.torch_dtype
    known = torch.zeros(space.shape, dtype=torch.bool)
    known.view(-1)[0] = True
    done = model.complete(x, known, steps=3, resamples=2)
    assert torch.equal(done[:, known], x[:, known]) and done.dtype == x.dtype
    assert model.decode(model.encode(x, steps=3), steps=3).shape == x.shape
    assert model.embed(x).shape[0] == len(x) and model.log_prob(x, terms=2).isfinite().all()


def test_the_loss_is_minus_the_bound() -> None:
    model, x = _model(Vectors(3)), _data(Vectors(3), 2000)
    with torch.no_grad():
        loss = model.loss(Batch(x, torch.arange(2000))).total
        bound = model.log_prob(x, terms=4)
    assert loss.item() == pytest.approx(-(bound.mean() - model._jacobian()).item(), rel=0.05)


def test_codes_come_back() -> None:
    model = _gaussian(0.5, 0.3)
    x = torch.linspace(-0.3, 1.3, 9).double()[:, None]
    z = model.encode(x, steps=200)
    torch.testing.assert_close(z, (x - 0.5) / 0.3, rtol=0.03, atol=0.05)
    torch.testing.assert_close(model.decode(z, steps=200), x, rtol=0, atol=0.03)


def test_bfloat16_autocast_keeps_the_bound() -> None:
    model, x = _model(Images(1, 8, 8, 17)), _data(Images(1, 8, 8, 17))
    bounds = []
    for enabled in (True, False):
        torch.manual_seed(3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            bounds.append(model.log_prob(x))
    assert bounds[0].dtype == torch.float32
    torch.testing.assert_close(bounds[0], bounds[1], rtol=0.02, atol=1.0)


def test_a_compiler_can_trace_continuous_time() -> None:
    torch._dynamo.reset()
    model = _model(Vectors(3)).train()
    batch = Batch(_data(model.space, 8), torch.arange(8))
    totals, gradients = [], []
    for loss in (model.loss, torch.compile(model.loss, backend="eager")):
        model.zero_grad()
        torch.manual_seed(1)
        totals.append(loss(batch).total)
        totals[-1].backward()
        gradients.append(model.schedule.weight.grad.clone())
    torch.testing.assert_close(*totals)
    torch.testing.assert_close(*gradients)


def test_refuses_with_one_sentence() -> None:
    with pytest.raises(SpaceError, match="vdm takes images or vectors, not tokens"):
        VDM(Tokens(5, 5))
    with pytest.raises(TacitError, match="timesteps is 0"):
        VDM(Vectors(2), timesteps=0)
    with pytest.raises(TacitError, match="no end of them in continuous time"):
        _model(Vectors(2)).log_prob(torch.zeros(1, 2), terms=None)
