"""RealNVP: inverted, its log-determinant autograd's, its density a density."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.flows.realnvp import RealNVP
from tacit.spaces import Images, Space, Tokens, Vectors

SMALL = {"channels": 8, "blocks": 1, "hidden": (16,), "couplings": 4}


def _data(space: Space, rows: int = 40) -> Tensor:
    if isinstance(space, Images):
        return torch.randint(0, space.levels, (rows, *space.shape), dtype=torch.uint8)
    return 10 * torch.randn(rows, *space.shape) + 3


def _model(space: Space, **arguments: object) -> RealNVP:
    """A model whose couplings do something: begun near the identity they would invert by chance."""
    torch.manual_seed(0)
    model = RealNVP(space, **{**SMALL, **arguments})
    model.adapt(Dataset(space, _data(space)))
    with torch.no_grad():
        for parameter in model.flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _train(model: RealNVP, x: Tensor, steps: int) -> None:
    model.adapt(Dataset(model.space, x))
    optimiser = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(Batch(x, torch.arange(len(x)))).total.backward()
        optimiser.step()
    model.eval()


SPACES = [
    Vectors(2),
    Vectors(7),
    Images(1, 8, 8, 17),
    Images(3, 5, 6),
    Images(4, 6, 10, 2),
    Images(1, 1, 3),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_inverts(space: Space) -> None:
    model = _model(space)
    x = torch.randn(9, *space.shape, dtype=torch.float64)
    assert (model.flow.double().inverse(model.flow(x)) - x).abs().max() < 1e-12
    assert (model.flow.float().inverse(model.flow(x.float())) - x.float()).abs().max() < 1e-4


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_log_det_is_that_of_the_jacobian(space: Space) -> None:
    model = _model(space).double()
    x = torch.randn(2, *space.shape, dtype=torch.float64)
    z, log_det = model.flow.forward_and_log_det(x)
    _, back = model.flow.inverse_and_log_det(z)
    torch.testing.assert_close(log_det + back, torch.zeros_like(back), rtol=0, atol=1e-10)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: model.flow(r[None])[0], row)
        torch.testing.assert_close(jacobian.reshape(space.dimensions, -1).slogdet().logabsdet, value)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_codes_and_samples_are_observations(space: Space) -> None:
    model, x = _model(space), _data(space)
    z = model.encode(x)
    assert z.shape == (len(x), space.dimensions) and torch.equal(z, model.encode(x))
    y = model.decode(z)
    assert y.dtype == space.torch_dtype
    assert torch.equal(y, x) if isinstance(space, Images) else torch.allclose(y, x, atol=1e-3)
    sample = model.sample(3, temperature=0.7)
    assert sample.shape == (3, *space.shape) and sample.dtype == space.torch_dtype
    cold = model.sample(2, temperature=0.0)
    assert torch.equal(cold[0], cold[1])


def test_the_density_of_a_table_integrates_to_one_in_the_tables_own_units() -> None:
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(256)
    ring = torch.stack((20 * angle.cos(), 0.3 * angle.sin()), 1) + torch.randn(256, 2) * torch.tensor([2.0, 0.03])
    model = RealNVP(Vectors(2), couplings=6, hidden=(32,))
    _train(model, ring, 60)
    before = -0.5 * torch.linalg.slogdet(2 * math.pi * math.e * ring.T.cov()).logabsdet
    assert model.log_prob(ring).mean() > before + 0.05, "no better than a Gaussian"
    a, b = torch.linspace(-60, 60, 401), torch.linspace(-0.9, 0.9, 401)
    with torch.no_grad():
        mass = model.log_prob(torch.cartesian_prod(a, b)).exp().sum() * (a[1] - a[0]) * (b[1] - b[0])
    assert mass.item() == pytest.approx(1, abs=1e-2)


def test_the_bound_of_an_image_is_below_its_probability_and_the_probabilities_sum_to_the_flows_mass() -> None:
    model = _model(Images(1, 1, 2, 3))
    states = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8).view(9, 1, 1, 2)
    draws = 2000
    with torch.no_grad():
        log_p = model.log_prob(states.repeat(draws, 1, 1, 1)).view(draws, 9)
        y = model.flow.inverse(torch.randn(20_000, 2))
    exact = log_p.logsumexp(0) - math.log(draws)
    assert (log_p.mean(0) < exact).all()
    # What the flow gives to reals that are no logit of [0, 1] is lost to the integers (§4.1's margin).
    inside = (y.abs() <= torch.logit(torch.tensor(0.95))).flatten(1).all(1).float().mean()
    assert inside < 0.99, "the loss is too small to be seen here"
    assert exact.exp().sum().item() == pytest.approx(inside.item(), abs=0.015)


def test_samples_agree_with_the_density() -> None:
    model = _model(Vectors(3))
    x = model.sample(20_000)
    # E over samples of q(x) / p(x) is one for any density q: here a wide Gaussian inside p's support.
    q = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov() * 0.5)
    with torch.no_grad():
        ratio = (q.log_prob(x) - model.log_prob(x)).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=5 * ratio.std().item() / math.sqrt(len(x)))


@pytest.mark.parametrize("scale", [4.0, 1e4])
@pytest.mark.parametrize("space", [Vectors(2), Vectors(43)], ids=str)
def test_far_from_the_data_everything_is_finite_and_inverted(space: Space, scale: float) -> None:
    model = _model(space, couplings=8)
    _train(model, _data(space), 20)
    x = (scale * _data(space)).requires_grad_()
    log_prob = model.log_prob(x)
    log_prob.mean().backward()
    assert log_prob.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    back = model.decode(model.encode(x.detach()))
    assert ((back - x).abs() <= 1e-3 * x.abs().max()).all()


@pytest.mark.parametrize("space", [Vectors(7), Images(1, 8, 8)], ids=str)
def test_every_parameter_learns_at_once(space: Space) -> None:
    model = RealNVP(space, **SMALL)
    x = _data(space)
    model.adapt(Dataset(space, x))
    model.loss(Batch(x[:10], torch.arange(10))).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saved_and_loaded_it_says_the_same() -> None:
    space = Vectors(7)
    model, other = _model(space), RealNVP(space, **SMALL)
    other.load_state_dict(model.state_dict())
    x = _data(space)
    assert torch.equal(model.log_prob(x), other.eval().log_prob(x))


def test_bfloat16_autocast_keeps_the_density() -> None:
    model, x = _model(Vectors(7)), _data(Vectors(7))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.log_prob(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, model.log_prob(x), rtol=0.02, atol=0.5)


def test_as_many_scales_as_the_size_allows() -> None:
    def squeezes(space: Images, scales: int) -> int:
        return sum(type(m).__name__ == "Squeeze" for m in RealNVP(space, **SMALL, scales=scales).modules())

    assert squeezes(Images(1, 8, 8), 9) == 2
    assert squeezes(Images(1, 28, 20), 9) == 2
    assert squeezes(Images(1, 28, 20), 1) == 1
    assert squeezes(Images(1, 27, 28), 9) == 0


def test_density_is_exact_for_reals_and_a_bound_for_integers() -> None:
    assert RealNVP(Vectors(2), **SMALL).density == "exact"
    assert RealNVP(Images(1, 4, 4), **SMALL).density == "bound"


def test_refuses_with_one_sentence() -> None:
    with pytest.raises(SpaceError, match="realnvp takes images or vectors, not tokens"):
        RealNVP(Tokens(5, 5))
    with pytest.raises(TacitError, match="couplings=0"):
        RealNVP(Vectors(2), couplings=0)
    with pytest.raises(SpaceError, match="do not fit"):
        RealNVP(Vectors(2), **SMALL).log_prob(torch.zeros(3, 4))
