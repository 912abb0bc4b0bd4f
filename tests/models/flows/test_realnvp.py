"""RealNVP beyond what holds for every flow: pictures of odd sizes, the bound, half precision, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
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
