"""Autoregressions: the order holds, nothing allowed is blind, and no way back differs from another."""

from __future__ import annotations

import pytest
import torch

from tacit.nn.autoregression import Autoregression, MaskedAutoregression
from tacit.nn.elementwise import Affine, Elementwise, MixtureCDF, Spline


def _random(features: int, entry: Elementwise, context: int = 0) -> MaskedAutoregression:
    torch.manual_seed(0)
    bijection = MaskedAutoregression(features, entry, (64, 48), context)
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.mul_(2)
    return bijection.double()


@pytest.mark.parametrize("entry", [Affine(), Spline(), MixtureCDF(3)], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(("features", "context"), [(1, 0), (1, 2), (2, 0), (7, 3), (43, 0)])
def test_inverts_and_its_jacobian_is_triangular(features: int, context: int, entry: Elementwise) -> None:
    bijection = _random(features, entry, context)
    x = torch.randn(5, features, dtype=torch.float64)
    given = torch.randn(5, context, dtype=torch.float64) if context else None
    z, log_det = bijection.forward_and_log_det(x, given)
    with torch.no_grad():
        back, negative = bijection.inverse_and_log_det(z, given)
        jacobi, _ = Autoregression.inverse_and_log_det(bijection, z, given)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(negative, -log_det, rtol=0, atol=1e-6)
    torch.testing.assert_close(jacobi, x, rtol=0, atol=1e-5)
    one = None if given is None else given[:1]
    jacobian = torch.autograd.functional.jacobian(lambda row: bijection(row[None], one)[0], x[0])
    assert torch.equal(jacobian, jacobian.tril())
    torch.testing.assert_close(jacobian.diagonal().log().sum(), log_det[0])


def test_every_parameter_depends_on_all_entries_before_it() -> None:
    net = _random(6, Affine()).net
    seen = torch.zeros(12, 6, dtype=torch.bool)
    for _ in range(20):
        seen |= torch.autograd.functional.jacobian(
            lambda row: net(row[None]).flatten(), torch.randn(6, dtype=torch.float64)
        ) != 0  # fmt: skip
    before = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    assert torch.equal(seen.view(2, 6, 6), before.expand(2, -1, -1))


def test_the_first_entry_depends_on_the_context() -> None:
    bijection = _random(3, Affine(), 2)
    x = torch.randn(1, 3, dtype=torch.float64)
    first, second = (bijection(x, torch.randn(1, 2, dtype=torch.float64))[0, 0] for _ in range(2))
    assert first != second


def test_gradients_pass_through_the_way_back() -> None:
    bijection = _random(4, Affine())
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bijection.inverse_and_log_det, (z,))
    bijection.inverse(z).sum().backward()
    assert all(p.grad is not None for p in bijection.parameters())


def test_the_incremental_inverse_computes_every_unit_once() -> None:
    bijection = _random(9, Affine())
    x = torch.randn(2, 9, dtype=torch.float64)
    with torch.no_grad():
        units, found = bijection.net.one_by_one(2, None), list[torch.Tensor]()
        for entry in x.T.split(1):
            found.append(units.parameters().T)
            units.see(entry)
        torch.testing.assert_close(torch.stack(found, 2), bijection.net(x))
    # A row of ones, and every unit.
    assert [hidden.size for hidden in units.values] == [1 + 9, 1 + 64, 1 + 48]
