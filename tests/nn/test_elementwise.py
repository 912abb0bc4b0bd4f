"""Maps of single entries: inverted, their derivatives autograd's, finite wherever they are asked."""

from __future__ import annotations

import math

import pytest
import torch

from tacit.nn.elementwise import Affine, Elementwise, MixtureCDF, Shift, Spline

MAPS = {
    "shift": Shift(),
    "affine": Affine(),
    "spline": Spline(),
    "spline of two bins": Spline(2, tail=3.0),
    "mixture of logistics": MixtureCDF(4),
    "mixture of Gaussians": MixtureCDF(4, gaussian=True),
    "bare mixture": MixtureCDF(3, affine=False),
}


@pytest.fixture(params=MAPS)
def entry(request: pytest.FixtureRequest) -> Elementwise:
    torch.manual_seed(0)
    return MAPS[request.param]


def test_inverts_and_tells_its_derivative(entry: Elementwise) -> None:
    x = (3 * torch.randn(500, 3, dtype=torch.float64)).requires_grad_()
    parameters = torch.randn(500, entry.parameters, 3, dtype=torch.float64)
    z, log_det = entry.forward_and_log_det(x, parameters)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(slope.log(), log_det.detach())
    with torch.no_grad():
        back, negative = entry.inverse_and_log_det(z, parameters)
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(negative, -log_det.detach(), rtol=0, atol=1e-6)


def test_in_single_precision_too(entry: Elementwise) -> None:
    x, parameters = 2 * torch.randn(500, 3), 0.5 * torch.randn(500, entry.parameters, 3)
    z, _ = entry.forward_and_log_det(x, parameters)
    torch.testing.assert_close(entry.inverse_and_log_det(z, parameters)[0], x, rtol=0, atol=2e-4)


def test_gradients_of_both_directions(entry: Elementwise) -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    parameters = torch.randn(4, entry.parameters, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entry.forward_and_log_det, (x, parameters))
    assert torch.autograd.gradcheck(entry.inverse_and_log_det, (x, parameters), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("x", [-1e4, -40.0, -5.0, -3.0, 0.0, 3.0, 5.0, 40.0, 1e4])
def test_finite_at_edges_and_far_away(entry: Elementwise, x: float) -> None:
    at = torch.full((20, 1), x, requires_grad=True)
    parameters = (3 * torch.randn(20, entry.parameters, 1)).requires_grad_()
    for direction in (entry.forward_and_log_det, entry.inverse_and_log_det):
        value, log_det = direction(at, parameters)
        gradients = torch.autograd.grad(value.sum() + log_det.sum(), (at, parameters), allow_unused=True)
        assert value.isfinite().all() and log_det.isfinite().all()
        assert all(g is None or g.isfinite().all() for g in gradients)


def test_zeros_are_the_identity_of_all_but_mixtures() -> None:
    x = torch.linspace(-7, 7, 99)[:, None]
    for entry in (Shift(), Affine(), Spline()):
        torch.testing.assert_close(entry.forward_and_log_det(x, torch.zeros(99, entry.parameters, 1))[0], x)


def test_a_spline_passes_through_its_knots_and_is_the_identity_outside() -> None:
    entry = Spline(4, tail=2.0)
    parameters = torch.randn(1, entry.parameters, 1, dtype=torch.float64)
    sizes = 1e-3 + (1 - 4e-3) * parameters[0, :8, 0].view(2, 4).softmax(1)
    knots_x, knots_z = torch.cat((torch.zeros(2, 1), 4 * sizes.cumsum(1)), 1) - 2
    slopes = 1e-3 + torch.nn.functional.softplus(parameters[0, 8:, 0] + math.log(math.expm1(1 - 1e-3)))
    x = knots_x[1:-1, None]
    z, log_det = entry.forward_and_log_det(x, parameters.expand(len(x), -1, -1))
    torch.testing.assert_close(z[:, 0], knots_z[1:-1])
    torch.testing.assert_close(log_det[:, 0].exp(), slopes)
    outside = torch.tensor([[-9.0], [2.5]], dtype=torch.float64)
    assert torch.equal(entry.forward_and_log_det(outside, parameters.expand(2, -1, -1))[0], outside)


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_bare_mixture_before_a_logistic_base_is_the_mixture_itself(gaussian: bool) -> None:
    entry = MixtureCDF(3, gaussian=gaussian, affine=False, spread=1.0)
    parameters = torch.randn(1, 9, 1, dtype=torch.float64)
    x = torch.linspace(-6, 6, 51, dtype=torch.float64)[:, None]
    z, log_det = entry.forward_and_log_det(x, parameters.expand(51, -1, -1))
    log_prob = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z) + log_det
    shares = parameters[0, :3, 0].softmax(0)
    means = parameters[0, 3:6, 0] + torch.linspace(-1, 1, 3, dtype=torch.float64)
    scales = (5 * torch.tanh(parameters[0, 6:, 0] / 5)).exp()
    u = (x - means) / scales
    density = (
        (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi) if gaussian else torch.sigmoid(u) * torch.sigmoid(-u)
    ) / scales
    torch.testing.assert_close(log_prob[:, 0].exp(), (shares * density).sum(1))
