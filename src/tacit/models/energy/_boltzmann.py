"""What Boltzmann machines share: the partition function, exact or annealed, kept until the weights change.

Annealed importance sampling (Neal 2001) draws from a base distribution p_0 whose Z_0 is known and passes through
distributions p_1 … p_K = p between it and the model, by Gibbs steps each of which leaves p_k alone. The weights

    w = Π_k p*_k(s_k) / p*_{k−1}(s_k)

have the mean Z / Z_0: the estimate is unbiased for Z, so a likelihood estimate tends to be a little high where the
chains mix badly.

References
----------
Neal (2001), Annealed importance sampling. Statistics and Computing 11(2).
Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks. ICML.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tacit.errors import check_at_least
from tacit.model import Model
from tacit.spaces import Space

# Enumeration is taken where it costs no more than this many exponentials: a few seconds on one core.
ENUMERABLE = 2**30
# Largest number of elements of one temporary tensor, for memory and cache.
BLOCK = 2**24
# The centre of hidden units; any constant gives the same family of distributions.
HALF = 0.5

Uniform = Callable[..., Tensor]


class Boltzmann(Model):
    """Base of models p(s) = exp(−E(s)) / Z that know their unnormalised probability.

    Args:
        space: of the observations.
        ais_chains: chains of annealed importance sampling.
        ais_steps: its intermediate distributions.

    Raises:
        TacitError: fewer than two chains, or no step.
    """

    # The loss compares data with chains, and both move.
    loss_ranks = False

    log_z: Tensor
    log_z_error: Tensor
    log_z_of: Tensor

    def __init__(self, space: Space, ais_chains: int, ais_steps: int):
        super().__init__(space)
        check_at_least(2, ais_chains=ais_chains)
        check_at_least(1, ais_steps=ais_steps)
        self.ais_chains, self.ais_steps = ais_chains, ais_steps

    def _keep_log_z(self) -> None:
        """Buffers for log Z, its standard error, and a summary of the parameters for which it was computed."""
        self.register_buffer("log_z", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("log_z_error", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("log_z_of", torch.full((len(list(self.parameters())), 2), math.nan, dtype=torch.float64))

    def _enumerates(self) -> str | None:
        """What can be summed over to get log Z exactly, in a word; None where all of it is too much."""
        raise NotImplementedError

    def enumerated_log_z(self) -> Tensor:
        """Log Z by a sum over states, a scalar that gradients flow through."""
        raise NotImplementedError

    def annealed_log_z(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error by annealed importance sampling (Salakhutdinov & Murray 2008, §4.1)."""
        raise NotImplementedError

    def _slope(self) -> Tensor:
        """A scalar whose gradient is that of log Z, E_P[−∂F], taken from the chains."""
        raise NotImplementedError

    def _uniform(self) -> Uniform:
        """Noise with a generator of its own, so that log Z is a function of the weights alone."""
        generator = torch.Generator(self.device).manual_seed(0)

        def uniform(*shape: int, device: torch.device) -> Tensor:
            return torch.rand(shape, device=device, generator=generator)

        return uniform

    def _anneal(
        self,
        start: Tensor,
        log_ratio: Callable[[Tensor, float, float], Tensor],
        move: Callable[[Tensor, float], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Log Z / Z_0 and its standard error.

        Args:
            start: (ais_chains, …), drawn from the base distribution.
            log_ratio: of a state, log p*_after − log p*_before, (ais_chains,), at two inverse temperatures in [0, 1].
            move: one Gibbs step that leaves the distribution at an inverse temperature alone.
        """
        # The steps grow shorter towards the model, where the distributions change most.
        inverse = (1 - (1 - torch.linspace(0, 1, self.ais_steps + 1, dtype=torch.float64)) ** 1.5).tolist()
        log_w = torch.zeros(self.ais_chains, dtype=torch.float64, device=self.device)
        state = start
        for before, after in itertools.pairwise(inverse):
            log_w += log_ratio(state, before, after)
            if after < 1:
                state = move(state, after)
        weights = (log_w - log_w.max()).exp()
        error = weights.std() / weights.mean() / math.sqrt(self.ais_chains)
        return log_w.logsumexp(0) - math.log(self.ais_chains), error

    def _summary(self) -> Tensor:
        """Two sums over each parameter: what tells whether log Z was computed for these weights."""
        with torch.no_grad():
            values = [p.double().flatten() for p in self.parameters()]
            return torch.stack([torch.stack((p.sum(), p.square().sum())) for p in values])

    def log_partition(self) -> Tensor:
        """Log Z in nats, float64 scalar; kept in the state until the weights change.

        Gradients flow through the exact value; the gradient of an estimate is taken from the chains.
        """
        exact = self._enumerates() is not None
        if exact and torch.is_grad_enabled():
            return self.enumerated_log_z().double()
        summary = self._summary()
        if not torch.allclose(summary, self.log_z_of, rtol=1e-9, atol=1e-9):
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                log_z, error = (self.enumerated_log_z().double(), torch.zeros(())) if exact else self.annealed_log_z()
            self.log_z.copy_(log_z)
            self.log_z_error.copy_(error)
            self.log_z_of.copy_(summary)
        if exact or not torch.is_grad_enabled():
            return self.log_z.clone()
        slope = self._slope().double()
        return self.log_z + (slope - slope.detach())


def states(units: int, base: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """All base ** units states of a layer, (some, units) int64 each: as many as fit with `width` numbers a state."""
    radix = base ** torch.arange(units, device=device)
    for number in torch.arange(base**units, device=device).split(max(1, BLOCK // width)):
        yield number.unsqueeze(1) // radix % base


def draw(p: Tensor, uniform: Uniform) -> Tensor:
    """Binary units that are 1 with probability `p`, in its dtype."""
    return (uniform(*p.shape, device=p.device) < p).to(p.dtype)
