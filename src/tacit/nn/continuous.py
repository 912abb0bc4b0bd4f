"""Continuous flows: noise as the solution of a differential equation that starts at the data.

    dz/dt = v(z, t),        d log p(z(t))/dt = −tr ∂v/∂z                                       (instantaneous change)

The trace is exact, one product of a vector and the Jacobian for each dimension, or estimated without bias from one
random vector, ε^T (∂v/∂z) ε (Hutchinson), which is held fixed along a solution so that the solver sees a smooth
equation. Solved by `torchdiffeq`.

References
----------
- Chen, Rubanova, Bettencourt & Duvenaud (2018), Neural ordinary differential equations, arXiv:1806.07366, theorem 1
- Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), FFJORD, arXiv:1810.01367
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit.nn import noise
from tacit.nn.bijections import Bijection


class Continuous(Bijection):
    """From data at t = 0 to noise at t = 1 along a velocity field.

    Args:
        velocity: (batch, *shape), (batch,) times -> (batch, *shape); with a context it is called with that too.
        tolerance: of the adaptive solver, relative and absolute; for evaluation a tenth of it.
        exact: the most dimensions of which the trace is computed exactly when not learning; above it is estimated.
        adjoint: solve for the gradients backwards in time instead of through the solver's steps: less memory.
    """

    def __init__(self, velocity: nn.Module, *, tolerance: float = 1e-4, exact: int = 64, adjoint: bool = False):
        super().__init__()
        self.velocity, self.tolerance, self.exact, self.adjoint = velocity, tolerance, exact, adjoint

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(x, context, 0.0, 1.0)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(z, context, 1.0, 0.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._path(x, context, 0.0, 1.0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self._path(z, context, 1.0, 0.0)

    # An adaptive solver's steps depend on the data: nothing that a compiler could unroll.
    @torch.compiler.disable
    def _path(self, x: Tensor, context: Tensor | None, start: float, end: float) -> Tensor:
        """Without the volume, which samples and codes do not need."""
        from torchdiffeq import odeint

        times, tolerance = x.new_tensor([start, end]), self._tolerance()
        return odeint(lambda t, z: self.velocity_at(z, t, context), x, times, rtol=tolerance, atol=tolerance)[1]

    @torch.compiler.disable
    def _solve(self, x: Tensor, context: Tensor | None, start: float, end: float) -> tuple[Tensor, Tensor]:
        from torchdiffeq import odeint, odeint_adjoint

        features = x[0].numel()
        exact = not self.training and features <= self.exact
        field = _Field(self, context, None if exact else noise.rand_like(x).sub(0.5).sign())
        state = (x, x.new_zeros(len(x)))
        times, tolerance = x.new_tensor([start, end]), self._tolerance()
        if self.adjoint and torch.is_grad_enabled():
            solved = odeint_adjoint(field, state, times, rtol=tolerance, atol=tolerance)
        else:
            solved = odeint(field, state, times, rtol=tolerance, atol=tolerance)
        return solved[0][1], solved[1][1]

    def _tolerance(self) -> float:
        return self.tolerance if self.training else self.tolerance / 10

    def velocity_at(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """(batch, *shape), times, () or (batch,), and context -> (batch, *shape)."""
        t = t.expand(len(x))
        return self.velocity(x, t) if context is None else self.velocity(x, t, context)


class _Field(nn.Module):
    """The velocity and the trace of its Jacobian, exact or along a fixed random vector."""

    def __init__(self, flow: Continuous, context: Tensor | None, probe: Tensor | None):
        super().__init__()
        self.flow, self.context, self.probe = flow, context, probe

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            v = self.flow.velocity_at(z, t, self.context)
            if self.probe is not None:
                (along,) = torch.autograd.grad(v, z, self.probe, create_graph=keep)
                trace = (along * self.probe).flatten(1).sum(1)
            else:
                flat = v.flatten(1)
                rows = [
                    torch.autograd.grad(flat[:, d].sum(), z, create_graph=keep, retain_graph=True)[0].flatten(1)[:, d]
                    for d in range(flat.shape[1])
                ]
                trace = torch.stack(rows, 1).sum(1)
        return (v, trace) if keep else (v.detach(), trace.detach())
