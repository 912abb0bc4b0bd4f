"""Gaussian restricted Boltzmann machine: real visible units with learnt variances, binary hidden units.

An undirected model of visible units v ∈ R^D and binary hidden units h, with no links within a layer:

    E(v, h) = Σ_i (v_i − b_i)² / (2 σ_i²) − Σ_j c_j h_j − Σ_ij (v_i / σ_i²) W_ij h_j,      p(v, h) = exp(−E(v, h)) / Z

(Cho et al. 2011, eq. 4, after Krizhevsky 2009, §1.4, whose v_i / σ_i makes the variances harder to learn), so that
p(v | h) = N(b + W h, diag σ²) and P(h_j = 1 | v) = sigmoid(c_j + Σ_i W_ij v_i / σ_i²): a mixture of 2^H Gaussians of
one diagonal covariance, whose means share H directions. The hidden units sum out, and so do the visible ones:

    F(v) = Σ_i (v_i − b_i)² / (2 σ_i²) − Σ_j log(1 + exp(c_j + Σ_i W_ij v_i / σ_i²))
    Z    = Π_i √(2π) σ_i · Σ_h exp(Σ_j c_j h_j + Σ_i (2 b_i m_i + m_i²) / (2 σ_i²)),       m = W h.

The variances are learnt as log σ² (Cho et al. 2011, eq. 7). As in `rbm` h stands for its difference from ½, which
changes the path of learning and not the family, and learning is (persistent) contrastive divergence.

Tables are standardised; the levels of images get uniform noise and are then standardised pixel by pixel. Both
Jacobians are counted, so that nats are those of the user's data. log Z is exact where the hidden layer is small enough
to enumerate, and else estimated by annealed importance sampling from the Gaussian that the data were standardised to.

References
----------
Krizhevsky (2009), Learning multiple layers of features from tiny images. University of Toronto, §1.4.
Cho, Ilin & Raiko (2011), Improved learning of Gaussian-Bernoulli restricted Boltzmann machines. ICANN.
Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient. ICML.
Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks. ICML.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.energy._boltzmann import ENUMERABLE, HALF, Boltzmann, Uniform, draw, states
from tacit.nn import noise
from tacit.nn.bijections import Chain, Dequantise, Standardise
from tacit.spaces import Images, Space, Vectors

# Deviation of the means that the first weights make of random hidden units, each of whose variances is ¼.
_DEVIATION = 0.1
# A column that repeats a value has no bounded density; below this log σ² the units would only chase it, and no chain
# would leave a mode.
_LOWEST = -6.0


class GaussianRBM(Boltzmann):
    """Restricted Boltzmann machine with Gaussian visible units.

    Args:
        space: vectors or images.
        hidden: number H of binary hidden units.
        persistent: persistent contrastive divergence; False starts the chains at the data (CD-k).
        gibbs_steps: Gibbs steps k for each update of the weights.
        chains: number of persistent chains.
        burn_in: Gibbs steps from the chains of learning to a sample.
        ais_chains: chains of annealed importance sampling.
        ais_steps: its intermediate distributions.

    Raises:
        TacitError: an argument is too small.
    """

    spaces: ClassVar = (Vectors, Images)
    recipe: ClassVar[Recipe] = Recipe(batch_size=100, learning_rate=1e-3, betas=(0.5, 0.999), schedule="cosine")

    chains: Tensor

    def __init__(
        self,
        space: Space,
        *,
        hidden: int = 200,
        persistent: bool = True,
        gibbs_steps: int = 1,
        chains: int = 100,
        burn_in: int = 200,
        ais_chains: int = 100,
        ais_steps: int = 2000,
    ):
        super().__init__(space, ais_chains, ais_steps)
        check_at_least(1, hidden=hidden, gibbs_steps=gibbs_steps, chains=chains)
        check_at_least(0, burn_in=burn_in)
        self.persistent, self.gibbs_steps, self.burn_in = persistent, gibbs_steps, burn_in
        size = space.dimensions
        scale = Standardise(*space.shape)
        self.standardise = Chain(scale) if space.levels is None else Chain(Dequantise(space.levels), scale)
        self.weight = nn.Parameter(_DEVIATION * torch.randn(size, hidden) / math.sqrt(hidden / 4))
        self.visible_bias = nn.Parameter(torch.zeros(size))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_variance = nn.Parameter(torch.zeros(size))
        self.register_buffer("chains", torch.randn(chains, size))
        self._keep_log_z()

    # -- the two conditionals and the free energy --------------------------------------------------------------------

    def _precision(self) -> Tensor:
        """1 / σ², (D,)."""
        return (-self.log_variance.clamp(min=_LOWEST)).exp()

    def _hidden_input(self, v: Tensor) -> Tensor:
        """c_j + Σ_i W_ij v_i / σ_i² of (batch, D): (batch, hidden)."""
        return torch.addmm(self.hidden_bias, v * self._precision(), self.weight)

    def _mean(self, h: Tensor) -> Tensor:
        """E[v | h] of (batch, hidden): (batch, D)."""
        return torch.addmm(self.visible_bias, h - HALF, self.weight.T)

    def _free_energy(self, v: Tensor) -> Tensor:
        """F of standardised observations in nats, (batch,)."""
        a = self._hidden_input(v)
        quadratic = 0.5 * (v - self.visible_bias).square() @ self._precision()
        # log Σ_h exp(a (h − ½)) = softplus(a) − a / 2
        return quadratic - (F.softplus(a) - HALF * a).sum(1)

    def _standardised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations as the visible units have them, (batch, D), and log |det| of the way there."""
        v, log_det = self.standardise.forward_and_log_det(self.space.check(x))
        return v.flatten(1).to(self.weight.dtype), log_det

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) = −log p(x) − log Z in nats, (batch,): the anomaly score that needs no partition function."""
        v, log_det = self._standardised(x)
        return self._free_energy(v) - log_det

    @torch.no_grad()
    def _gibbs(
        self, v: Tensor, steps: int, source: type[_Noise], temperature: float = 1.0, known: Tensor | None = None
    ) -> Tensor:
        """`steps` times h ~ P(h | v), v ~ p(v | h), with the energy divided by `temperature`; what is known is held."""
        deviation, given = (temperature / self._precision()).sqrt(), v
        for _ in range(steps):
            h = draw(torch.sigmoid(self._hidden_input(v) / temperature), source.rand)
            v = self._mean(h) + deviation * source.randn(*v.shape, device=v.device)
            if known is not None:
                v = torch.where(known, given, v)
        return v

    # -- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Standardise; the chains start at independent units of the data's means and variances."""
        self.standardise.adapt(data.observations(20_000))
        self.chains.normal_()

    def loss(self, batch: Batch) -> Losses:
        """Mean F(data) − mean F(chains), whose gradient is the (persistent) contrastive divergence.

        As in `rbm` every process holds all persistent chains, and outside training they stand still.
        """
        data, _ = self._standardised(batch.x)
        if not self.persistent:
            chains = self._gibbs(data, self.gibbs_steps, _OfRows)
            if self.training:
                # Kept as the start of sampling.
                self.chains[: len(chains)] = chains[: len(self.chains)]
        else:
            if self.training:
                self.chains.copy_(self._gibbs(self.chains, self.gibbs_steps, _Alike))
            chains = self.chains
        real, imagined = self._free_energy(torch.cat((data, chains))).split((len(data), len(chains)))
        return Losses(free_energy_gap=real.mean() - imagined.mean())

    # -- the partition function ----------------------------------------------------------------------------------------

    @property
    def density(self) -> Kind:
        """An estimate, unless the hidden layer can be enumerated; then exact, or a bound for levels with noise."""
        if self._enumerates() is None:
            return "estimate"
        return "exact" if self.space.levels is None else "bound"

    def _enumerates(self) -> str | None:
        size, hidden = self.weight.shape
        return "hidden" if hidden * math.log(2) + math.log(size) <= math.log(ENUMERABLE) else None

    def enumerated_log_z(self) -> Tensor:
        size, hidden = self.weight.shape
        precision, total = self._precision(), []
        for state in states(hidden, 2, size, self.device):
            h = state.to(self.weight.dtype)
            mean = self._mean(h)
            tilt = 0.5 * (mean.square() - self.visible_bias.square()) @ precision
            total.append((tilt + (h - HALF) @ self.hidden_bias).logsumexp(0))
        return torch.stack(total).logsumexp(0) + 0.5 * (math.log(2 * math.pi) - precision.log()).sum()

    @torch.no_grad()
    def annealed_log_z(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error by annealed importance sampling, from the standard Gaussian."""
        size, hidden = self.weight.shape
        precision, uniform, source = self._precision(), self._uniform(), torch.Generator(self.device).manual_seed(1)

        def normal() -> Tensor:
            return torch.randn(self.ais_chains, size, device=self.device, generator=source)

        def hidden_term(a: Tensor) -> Tensor:
            return (F.softplus(a) - HALF * a).sum(1, dtype=torch.float64)

        def log_ratio(v: Tensor, before: float, after: float) -> Tensor:
            a = self._hidden_input(v)
            # −log of what the model's Gaussian has over the base's.
            quadratic = 0.5 * ((v - self.visible_bias).square() * precision - v.square()).sum(1, dtype=torch.float64)
            return hidden_term(after * a) - hidden_term(before * a) - (after - before) * quadratic

        def move(v: Tensor, inverse: float) -> Tensor:
            h = draw(torch.sigmoid(inverse * self._hidden_input(v)), uniform)
            # Of the two Gaussians' product: precisions add, and means weighted by them.
            total = (1 - inverse) + inverse * precision
            return inverse * precision * self._mean(h) / total + normal() / total.sqrt()

        ratio, error = self._anneal(normal(), log_ratio, move)
        return 0.5 * size * math.log(2 * math.pi) + hidden * math.log(2) + ratio, error

    def _slope(self) -> Tensor:
        return -self._free_energy(self.chains).mean()

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) = −F(x) − log Z in nats of the user's data, (batch,). `log_z_error` is its standard error.

        For images it has fresh noise in it, and its mean is a bound on the log probability of their levels.
        """
        return (-self.free_energy(x).double() - self.log_partition()).float()

    def _observations(self, v: Tensor) -> Tensor:
        return self.standardise.inverse(v.view(-1, *self.space.shape)).to(self.space.torch_dtype)

    def _start(self, count: int) -> Tensor:
        return self.chains[torch.randint(len(self.chains), (count,), device=self.device)]

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """`burn_in` Gibbs steps from the chains of learning, with the energy divided by `temperature`."""
        return self._observations(self._gibbs(self._start(count), self.burn_in, _OfRows, temperature))

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` Gibbs chains from noise to samples, one step a frame: (count, frames, *space.shape)."""
        found = [torch.randn(count, len(self.weight), device=self.device)]
        for _ in range(frames - 1):
            found.append(self._gibbs(found[-1], 1, _OfRows, temperature))
        return torch.stack([self._observations(v) for v in found], 1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn by `burn_in` Gibbs steps in which the rest is held: (batch, *shape)."""
        mask = self.space.check_known(known).to(x.device)
        v = torch.where(mask.flatten(), self._standardised(x)[0], self._start(len(x)))
        v = self._gibbs(v, self.burn_in, _OfRows, temperature, mask.flatten())
        return torch.where(mask, x, self._observations(v))

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """The free energy, as an anomaly score: (batch,); levels of images stand in the middle of their noise."""
        return self._free_energy(self._middle(x))

    def _middle(self, x: Tensor) -> Tensor:
        """As `_standardised`, without noise."""
        self.space.check(x)
        if self.space.levels is not None:
            x = (x + 0.5) / self.space.levels
        return self.standardise.bijections[-1](x).flatten(1).to(self.weight.dtype)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """P(h_j = 1 | x): (batch, hidden)."""
        return torch.sigmoid(self._hidden_input(self._middle(x)))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean observation given hidden units in [0, 1], (batch, hidden): (batch, *space.shape)."""
        return self._observations(self._mean(z))

    def embed(self, x: Tensor) -> Tensor:
        """The hidden probabilities, as `encode`: (batch, hidden)."""
        return self.encode(x)


class _Noise:
    """Where the noise of Gibbs steps comes from."""

    rand: ClassVar[Uniform]
    randn: ClassVar[Uniform]


class _OfRows(_Noise):
    """Of the rows of a batch."""

    rand = staticmethod(noise.rand)
    randn = staticmethod(noise.randn)


class _Alike(_Noise):
    """The same in every process, which holds all chains."""

    rand = staticmethod(noise.rand_alike)
    randn = staticmethod(noise.randn_alike)
