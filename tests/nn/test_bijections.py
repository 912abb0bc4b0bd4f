"""Every bijection is inverted, and its log-determinant is autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tacit.nn.autoregression import MaskedAutoregression
from tacit.nn.bijections import (
    ActNorm,
    Bijection,
    Chain,
    CheckerboardCoupling,
    CheckerboardSplit,
    Coupling,
    Dequantise,
    FactorOut,
    Flatten,
    Free,
    Inverse,
    InvertibleConv1x1,
    Logit,
    Permute,
    Rescale,
    Scale,
    Squeeze,
    Standardise,
    VariationalDequantise,
)
from tacit.nn.elementwise import Affine, MixtureCDF, Spline


def _net(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, outputs, 3, padding=1))


def _pyramid() -> Chain:
    inner = Chain(CheckerboardCoupling(_conv(2, 4), Affine(2.0), (2, 3), parity=0), Flatten(2, 2, 3))
    return Chain(Squeeze(), ActNorm(4), FactorOut((4, 2, 3), inner))


def _moved(bijection: Bijection) -> Bijection:
    """Away from where it begins."""
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(torch.randn_like(parameter))
    return bijection


VECTORS = (5,)
IMAGES = (1, 4, 6)
CASES = {
    "standardise": (lambda: Standardise(5), VECTORS),
    "rescale": (lambda: Rescale(-2.0, 0.3), VECTORS),
    "actnorm": (lambda: ActNorm(5), VECTORS),
    "actnorm of images": (lambda: ActNorm(1), IMAGES),
    "permute": (lambda: Permute(5), VECTORS),
    "scale": (lambda: _moved(Scale(5)), VECTORS),
    "free spline": (lambda: _moved(Free(5, Spline())), VECTORS),
    "free mixture": (lambda: _moved(Free(5, MixtureCDF(3))), VECTORS),
    "coupling, first kept": (lambda: Coupling(_net(3, 4), Affine(2.0), (3, 2), keep_first=True), VECTORS),
    "coupling, second kept": (lambda: Coupling(_net(2, 6), Affine(2.0), (3, 2), keep_first=False), VECTORS),
    "coupling by splines": (lambda: Coupling(_net(3, 2 * 23), Spline(), (3, 2), keep_first=True), VECTORS),
    "turned around": (lambda: Inverse(Coupling(_net(3, 4), Affine(2.0), (3, 2), keep_first=True)), VECTORS),
    "checkerboard 0": (lambda: CheckerboardCoupling(_conv(1, 2), Affine(2.0), (4, 6), parity=0), IMAGES),
    "checkerboard 1": (lambda: CheckerboardCoupling(_conv(1, 2), Affine(2.0), (4, 6), parity=1), IMAGES),
    "checkerboard, odd": (lambda: CheckerboardCoupling(_conv(2, 4), Affine(2.0), (3, 5), parity=1), (2, 3, 5)),
    "checkerboard by splines": (lambda: CheckerboardCoupling(_conv(1, 23), Spline(), (4, 6), parity=1), IMAGES),
    "checkerboard split": (CheckerboardSplit, (2, 3, 4)),
    "invertible convolution": (lambda: InvertibleConv1x1(3), (3, 2, 4)),
    "squeeze": (Squeeze, IMAGES),
    "multi-scale": (_pyramid, IMAGES),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Bijection, Tensor]:
    torch.manual_seed(0)
    build, shape = CASES[request.param]
    bijection, x = build(), 3 * torch.randn(7, *shape) + 1
    bijection.adapt(x)
    return bijection.double(), x.double()


def test_inverts(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    torch.testing.assert_close(bijection.inverse(bijection(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(bijection.float().inverse(bijection(x.float())), x.float(), rtol=0, atol=1e-5)


def test_log_det_is_that_of_the_jacobian(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    _, log_det = bijection.forward_and_log_det(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: bijection(r[None]).flatten(), row)
        torch.testing.assert_close(jacobian.reshape(row.numel(), -1).slogdet().logabsdet, value)


def test_log_dets_of_both_directions_cancel(case: tuple[Bijection, Tensor]) -> None:
    bijection, x = case
    z, forth = bijection.forward_and_log_det(x)
    _, back = bijection.inverse_and_log_det(z)
    torch.testing.assert_close(forth + back, torch.zeros_like(forth), rtol=0, atol=1e-10)


def test_a_coupling_leaves_what_it_keeps() -> None:
    x = torch.randn(4, 2, 3, 5)
    z = CheckerboardCoupling(_conv(2, 4), Affine(2.0), (3, 5), parity=0)(x)
    kept = torch.tensor([[(i + j) % 2 == 0 for j in range(5)] for i in range(3)])
    assert torch.equal(z[..., kept], x[..., kept])
    assert (z[..., ~kept] != x[..., ~kept]).all()


@pytest.mark.parametrize("scale", [4.0, 1e4])
def test_a_coupling_is_inverted_far_from_the_data(scale: float) -> None:
    coupling = Coupling(_net(3, 4), Affine(2.0), (3, 2), keep_first=True)
    with torch.no_grad():
        coupling.net[-1].weight.mul_(100)
    x = (scale * torch.randn(9, 5)).requires_grad_()
    z, log_det = coupling.forward_and_log_det(x)
    assert log_det.abs().max() <= 2 * 2.0
    torch.testing.assert_close(coupling.inverse(z), x, rtol=1e-4, atol=1e-3)
    (z.square().sum() + log_det.sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_actnorm_standardises_what_it_adapts_to() -> None:
    x = 5 * torch.randn(50, 3, 4, 4) + torch.arange(3.0).view(3, 1, 1)
    norm = ActNorm(3)
    norm.adapt(x)
    z = norm(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1, unbiased=False), torch.ones(3))


def test_dequantised_integers_come_back_exactly() -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    chain = Chain(Dequantise(256), Logit())
    assert torch.equal(chain.inverse(chain(x)), x.float())
    dequantise = Dequantise(256)
    assert torch.equal(dequantise.inverse(dequantise.middle(x)), x.float())


def test_logit_log_det() -> None:
    x = torch.rand(6, 1, 2, 2, dtype=torch.float64)
    _, log_det = Logit().forward_and_log_det(x)
    jacobian = torch.autograd.functional.jacobian(Logit(), x[:1])
    torch.testing.assert_close(jacobian.reshape(4, 4).slogdet().logabsdet, log_det[0])


def test_a_chain_says_which_of_its_directions_are_sequential() -> None:
    slow = MaskedAutoregression(3, Affine(), (8,))
    assert Chain(Permute(3), slow).sequential == {"inverse"}
    assert Chain(Permute(3), Inverse(slow)).sequential == {"forward"}
    assert Chain(slow, Inverse(slow)).sequential == {"forward", "inverse"}
    assert not Chain(Permute(3), Scale(3)).sequential


def test_the_checkerboard_split_parts_the_colours() -> None:
    board = torch.tensor([[float((i + j) % 2) for j in range(4)] for i in range(3)])[None, None]
    black, white = CheckerboardSplit()(board).chunk(2, 1)
    assert (black == 0).all() and (white == 1).all()


def test_learnt_noise_keeps_the_integers_and_its_density_is_counted() -> None:
    torch.manual_seed(0)
    flow = Chain(_moved(Free(2, Spline())), Inverse(Logit(0.0)))
    dequantise = VariationalDequantise(5, flow, nn.Identity(), (2,)).double()
    x = torch.randint(0, 5, (40_000, 2)).double()
    z, log_det = dequantise.forward_and_log_det(x)
    assert torch.equal(dequantise.inverse(z).double(), x)
    # E_q[1 / q(u | x)] is the volume of the cell, one; the width of the cells is counted apart.
    volume = (log_det + 2 * math.log(5)).exp()
    assert volume.mean().item() == pytest.approx(1, abs=5 * volume.std().item() / math.sqrt(len(x)))
