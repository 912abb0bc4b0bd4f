"""Deep Boltzmann machine: layers of binary hidden units, mean-field inference, persistent chains.

An undirected model of binary images v = h⁰ and hidden layers h¹ … h^L, linked between neighbours alone:

    E(h⁰, …, h^L) = −Σ_l b^l · h^l − Σ_l (h^{l−1} − o^{l−1})ᵀ W^l (h^l − o^l),        P = exp(−E) / Z.

Given the layers of odd number those of even number are independent units, and the reverse, so Gibbs sampling takes two
block steps whatever the depth. The posterior of hidden units is no product; a product q(h) = Π q_j(h_j) is fitted to it
by fixed-point updates, which gives the variational bound (Salakhutdinov & Hinton 2009, eqs. 4 and 8)

    log P(v) ≥ E_q[−E(v, h)] + H(q) − log Z.

Its gradient, E_q[−∂E] − E_P[−∂E], takes the first mean from q and the second from chains that run on from step to step.

All layers are learnt at once by the centring trick (Montavon & Müller 2012): in the energy units stand for their
differences from offsets o, the data's means and ½, which changes the path of learning and not the family of
distributions. The alternative, greedy pre-training by RBMs with doubled weights, needs a schedule for every layer and
an optimiser for each phase; centred, one loop learns any depth from small random weights.

log Z is exact where either half of the layers is small enough to enumerate, and else estimated by annealed importance
sampling over the odd layers, the even ones summed out (Salakhutdinov & Hinton 2009, §3.3). What is then reported,
a bound minus an estimate, is called an estimate.

References
----------
Salakhutdinov & Hinton (2009), Deep Boltzmann machines. AISTATS.
Montavon & Müller (2012), Deep Boltzmann machines and the centering trick. In Neural Networks: Tricks of the Trade.
Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks. ICML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.capabilities import Kind
from tacit.data import Dataset
from tacit.errors import SpaceError, check_at_least
from tacit.model import Batch, Losses, Recipe
from tacit.models.energy._boltzmann import ENUMERABLE, HALF, Boltzmann, Uniform, draw, states
from tacit.nn import noise
from tacit.spaces import Images


class DBM(Boltzmann):
    """Deep Boltzmann machine.

    Args:
        space: binary images.
        hidden: units of the hidden layers, from the images up.
        mean_field: updates of every hidden layer to find q.
        gibbs_steps: Gibbs steps of the chains for each update of the weights.
        chains: number of persistent chains.
        burn_in: Gibbs steps from the chains of learning to a sample.
        ais_chains: chains of annealed importance sampling.
        ais_steps: its intermediate distributions.

    Raises:
        SpaceError: the images have more than two levels.
        TacitError: an argument is too small.
    """

    spaces: ClassVar = (Images,)
    recipe: ClassVar[Recipe] = Recipe(
        batch_size=100, learning_rate=0.02, optimiser="SGD", momentum=0.0, schedule="cosine"
    )

    chains: Tensor
    centre: Tensor
    base_rate: Tensor

    def __init__(
        self,
        space: Images,
        *,
        hidden: tuple[int, ...] = (500, 1000),
        mean_field: int = 10,
        gibbs_steps: int = 1,
        chains: int = 100,
        burn_in: int = 200,
        ais_chains: int = 100,
        ais_steps: int = 2000,
    ):
        super().__init__(space, ais_chains, ais_steps)
        if space.levels != 2:
            raise SpaceError(f"dbm takes binary images, not {space.levels} levels: binarise them first, or take rbm")
        check_at_least(1, hidden=hidden, mean_field=mean_field, gibbs_steps=gibbs_steps, chains=chains)
        check_at_least(0, burn_in=burn_in)
        self.mean_field, self.gibbs_steps, self.burn_in = mean_field, gibbs_steps, burn_in
        self.sizes = (space.dimensions, *hidden)
        self.weights = nn.ParameterList(
            # Inputs of hidden units begin at the order of a half, whatever the size of the layer below.
            0.5 * torch.randn(below, above) / math.sqrt(below)
            for below, above in zip(self.sizes, self.sizes[1:], strict=False)
        )
        self.biases = nn.ParameterList(torch.zeros(size) for size in self.sizes)
        self.register_buffer("centre", torch.full((space.dimensions,), HALF))
        self.register_buffer("base_rate", torch.zeros(space.dimensions))
        self.register_buffer("chains", torch.randint(2, (chains, sum(self.sizes)), dtype=torch.uint8))
        self._keep_log_z()

    # -- the energy and the conditionals: a state is a list of layers, (batch, size) each ------------------------------

    def _offset(self, layer: int) -> Tensor | float:
        return HALF if layer else self.centre

    def _coupling(self, s: Sequence[Tensor], layer: int) -> Tensor:
        """What the neighbours of a layer send it: (batch, size)."""
        sent = []
        if layer:
            sent.append((s[layer - 1] - self._offset(layer - 1)) @ self.weights[layer - 1])
        if layer + 1 < len(self.sizes):
            sent.append((s[layer + 1] - self._offset(layer + 1)) @ self.weights[layer].T)
        return sent[0] if len(sent) == 1 else sent[0] + sent[1]

    def _energy(self, s: Sequence[Tensor]) -> Tensor:
        """E of a state, in nats, (batch,); of the means of independent units it is the mean."""
        total = sum(layer @ bias for layer, bias in zip(s, self.biases, strict=True))
        for below, weight in enumerate(self.weights):
            left, right = s[below] - self._offset(below), s[below + 1] - HALF
            total = total + ((left @ weight) * right).sum(1)
        return -total

    def _bias(self, layer: int, inverse: float) -> Tensor:
        """Biases at an inverse temperature, at 0 of which each pixel has its own frequency in the data."""
        return inverse * self.biases[layer] if layer else torch.lerp(self.base_rate, self.biases[0], inverse)

    def _log_mass(self, s: Sequence[Tensor], parity: int, inverse: float) -> Tensor:
        """Log p* of the layers of one parity at an inverse temperature, those of the other summed out: (batch,)."""
        total = s[parity].new_zeros(len(s[parity]), dtype=torch.float64)
        for layer in range(len(self.sizes)):
            if layer % 2 == parity:
                total = total + (s[layer] @ self._bias(layer, inverse)).double()
            else:
                coupling = inverse * self._coupling(s, layer)
                terms = F.softplus(self._bias(layer, inverse) + coupling) - self._offset(layer) * coupling
                total = total + terms.sum(1, dtype=torch.float64)
        return total

    @torch.no_grad()
    def _gibbs(
        self, s: list[Tensor], steps: int, uniform: Uniform, temperature: float = 1.0, known: Tensor | None = None
    ) -> list[Tensor]:
        """`steps` times the odd layers and then the even ones, with the energy divided by `temperature`.

        Pixels that are `known`, (pixels,) bool, keep their values.
        """
        biases = [bias / temperature for bias in self.biases]
        for _ in range(steps):
            for layer in self._alternating():
                fresh = draw(torch.sigmoid(biases[layer] + self._coupling(s, layer) / temperature), uniform)
                s[layer] = fresh if known is None or layer else torch.where(known, s[0], fresh)
        return s

    def _alternating(self) -> list[int]:
        """The numbers of the odd layers and then of the even ones."""
        return [*range(1, len(self.sizes), 2), *range(0, len(self.sizes), 2)]

    @torch.no_grad()
    def _inferred(self, v: Tensor) -> list[Tensor]:
        """The state of the visible units (batch, pixels) and of the means of q."""
        s = [v]
        top = len(self.sizes) - 1
        for layer in range(1, top + 1):
            # What comes from below counts twice where nothing comes from above yet (Salakhutdinov & Hinton 2009, §3.1).
            seen = (s[-1] - self._offset(layer - 1)) @ self.weights[layer - 1]
            s.append(torch.sigmoid(self.biases[layer] + (1 if layer == top else 2) * seen))
        for _ in range(self.mean_field if top > 1 else 0):
            for layer in filter(None, self._alternating()):
                s[layer] = torch.sigmoid(self.biases[layer] + self._coupling(s, layer))
        return s

    def _visible(self, x: Tensor) -> Tensor:
        return self.space.check(x).flatten(1).to(self.centre.dtype)

    def _layers(self, chains: Tensor) -> list[Tensor]:
        return list(chains.to(self.centre.dtype).split(self.sizes, 1))

    # -- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Offsets, biases and chains of the visible units from the pixels' frequencies."""
        on = torch.stack([data[index].flatten(1).double().sum(0).cpu() for index in data.ordered(4096)]).sum(0)
        # One imagined observation of each value.
        mean = ((on + 1) / (len(data) + 2)).to(self.centre)
        self.centre.copy_(mean)
        self.base_rate.copy_(mean.logit())
        self.biases[0].copy_(self.base_rate)
        pixels = len(mean)
        self.chains[:, :pixels] = mean.expand(len(self.chains), -1).bernoulli().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Mean E at q − mean E(chains), whose gradient is that of the bound with the chains for E_P.

        Every process holds all chains and draws the same noise for them, as in `rbm`; outside training they stand
        still.
        """
        inferred = self._inferred(self._visible(batch.x))
        chains = self._layers(self.chains)
        if self.training:
            chains = self._gibbs(chains, self.gibbs_steps, noise.rand_alike)
            self.chains.copy_(torch.cat(chains, 1))
        return Losses(energy_gap=self._energy(inferred).mean() - self._energy(self._smoothed(chains)).mean())

    @torch.no_grad()
    def _smoothed(self, s: list[Tensor]) -> list[Tensor]:
        """A state whose even layers are their means given the odd ones: the same gradient with far less noise."""
        means = list(s)
        for layer in range(0, len(s), 2):
            means[layer] = torch.sigmoid(self.biases[layer] + self._coupling(s, layer))
        return means

    # -- the partition function ----------------------------------------------------------------------------------------

    @property
    def density(self) -> Kind:
        """The bound, where Z is exact; else an estimate."""
        return "bound" if self._enumerates() else "estimate"

    def _units(self, parity: int) -> list[int]:
        return list(self.sizes[parity::2])

    def _enumerates(self) -> str | None:
        parity = int(sum(self._units(1)) <= sum(self._units(0)))
        cost = sum(self._units(parity)) * math.log(2) + math.log(sum(self._units(1 - parity)))
        return ("even", "odd")[parity] if cost <= math.log(ENUMERABLE) else None

    def _state(self, joined: Tensor, parity: int) -> list[Tensor]:
        """A state of which the layers of one parity are given, (batch, units), and the others empty."""
        s = [joined.new_empty(0)] * len(self.sizes)
        s[parity::2] = joined.split(self._units(parity), 1)
        return s

    def enumerated_log_z(self) -> Tensor:
        parity = int(self._enumerates() == "odd")
        units, width = sum(self._units(parity)), sum(self._units(1 - parity))
        total = [
            self._log_mass(self._state(joined.to(self.centre.dtype), parity), parity, 1.0).logsumexp(0)
            for joined in states(units, 2, max(units, width), self.device)
        ]
        return torch.stack(total).logsumexp(0)

    @torch.no_grad()
    def annealed_log_z(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error by annealed importance sampling over the odd layers, from single pixels."""
        uniform, parity = self._uniform(), 1
        odd = sum(self._units(parity))
        start = draw(self.centre.new_full((self.ais_chains, odd), HALF), uniform)

        def log_ratio(joined: Tensor, before: float, after: float) -> Tensor:
            s = self._state(joined, parity)
            return self._log_mass(s, parity, after) - self._log_mass(s, parity, before)

        def move(joined: Tensor, inverse: float) -> Tensor:
            s = self._state(joined, parity)
            for layer in reversed(self._alternating()):
                s[layer] = draw(torch.sigmoid(self._bias(layer, inverse) + inverse * self._coupling(s, layer)), uniform)
            return torch.cat(s[parity::2], 1)

        ratio, error = self._anneal(start, log_ratio, move)
        return F.softplus(self.base_rate.double()).sum() + sum(self.sizes[1:]) * math.log(2) + ratio, error

    def _slope(self) -> Tensor:
        return -self._energy(self._smoothed(self._layers(self.chains))).mean()

    # -- capabilities -------------------------------------------------------------------------------------------------

    def _free_energy_bound(self, v: Tensor) -> Tensor:
        """E_q[E] − H(q), at least the free energy −log Σ_h exp(−E): nats, (batch,)."""
        s = self._inferred(v)
        entropy = sum((-torch.xlogy(q, q) - torch.xlogy(1 - q, 1 - q)).sum(1) for q in s[1:])
        return self._energy(s) - entropy

    def log_prob(self, x: Tensor) -> Tensor:
        """The variational bound on log P(x) in nats, (batch,): a mass. `log_z_error` is the standard error of log Z."""
        return (-self._free_energy_bound(self._visible(x)).double() - self.log_partition()).float()

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """The bound on the free energy, as an anomaly score that needs no partition function: (batch,)."""
        return self._free_energy_bound(self._visible(x))

    def _start(self, count: int) -> list[Tensor]:
        return self._layers(self.chains[torch.randint(len(self.chains), (count,), device=self.device)])

    def _observations(self, v: Tensor) -> Tensor:
        return v.view(-1, *self.space.shape).to(self.space.torch_dtype)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """`burn_in` Gibbs steps from the chains of learning, with the energy divided by `temperature`."""
        return self._observations(self._gibbs(self._start(count), self.burn_in, torch.rand, temperature)[0])

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` Gibbs chains from noise to samples, one step a frame: (count, frames, *space.shape)."""
        s = self._layers(torch.randint(2, (count, sum(self.sizes)), device=self.device))
        found = [s[0]]
        for _ in range(frames - 1):
            s = self._gibbs(s, 1, torch.rand, temperature)
            found.append(s[0])
        return torch.stack([self._observations(v) for v in found], 1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn by `burn_in` Gibbs steps in which the rest is held: (batch, *shape)."""
        mask = self.space.check_known(known).to(x.device)
        s = self._start(len(x))
        s[0] = torch.where(mask.flatten(), self._visible(x), s[0])
        s = self._gibbs(s, self.burn_in, torch.rand, temperature, mask.flatten())
        return torch.where(mask, x, self._observations(s[0]))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The means of q, all hidden layers side by side: (batch, hidden units)."""
        return torch.cat(self._inferred(self._visible(x))[1:], 1)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The probability of each pixel given hidden units in [0, 1], of which it depends on the first layer alone."""
        first = z[:, : self.sizes[1]]
        return torch.sigmoid(self.biases[0] + (first - HALF) @ self.weights[0].T).view(-1, *self.space.shape)

    def embed(self, x: Tensor) -> Tensor:
        """The means of q, as `encode`."""
        return self.encode(x)
