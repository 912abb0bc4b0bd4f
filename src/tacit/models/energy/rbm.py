"""Restricted Boltzmann machine: binary hidden units, persistent contrastive divergence, annealed log Z.

An undirected model of visible units v and binary hidden units h, with no links within a layer (Smolensky 1986):

    E(v, h) = −Σ_i β_i(v_i) − Σ_j c_j h_j − Σ_ij t(v_i) W_ij h_j,        P(v, h) = exp(−E(v, h)) / Z.

For binary images β_i(v) = b_i v and t(v) = v, up to a scale: the Bernoulli RBM. For grey levels β_i is a table with one
bias a level, its first entry 0, and t rises evenly with the level: a softmax visible unit whose mean the hidden units
tilt (a harmonium of the exponential family, Welling et al. 2005), so that P is a mass on the user's own integers, and
the hidden units switched off leave each pixel its own histogram. Where there are more than `bins` levels the units hold
bins of neighbouring levels, k = bin(x), and the level within its bin follows the pixel's frequencies q_i, counted once:
P(x) = P_RBM(k) Π_i q_i(x_i | k_i), still a mass on the integers.

The hidden units sum out: P(v) = exp(−F(v)) / Z with the free energy

    F(v) = −Σ_i β_i(v_i) − Σ_j log(1 + exp(c_j + Σ_i t(v_i) W_ij)).

The gradient of −log P(v) is ∂F(v) − E_P[∂F]. Contrastive divergence (Hinton 2002) takes the second term from k Gibbs
steps begun at the data; persistent contrastive divergence (Tieleman 2008) from chains that run on from step to step.
Either is the gradient of mean F(data) − mean F(chains). Learning is centred (Montavon & Müller 2012): in the energy t
stands for its difference from its mean μ in the data and h for h − ½, which changes the path of learning and not the
family of distributions.

log Z is exact, by enumeration, where one layer is small; otherwise it is estimated by annealed importance sampling
from the histograms of the pixels (Salakhutdinov & Murray 2008), which is unbiased for Z, so the likelihood estimate
tends to be a little high when the chains mix badly.

References
----------
Smolensky (1986), Information processing in dynamical systems: foundations of harmony theory. In Parallel Distributed
    Processing, vol. 1.
Hinton (2002), Training products of experts by minimizing contrastive divergence. Neural Computation 14(8).
Welling, Rosen-Zvi & Hinton (2005), Exponential family harmoniums with an application to information retrieval. NIPS 17.
Tieleman (2008), Training restricted Boltzmann machines using approximations to the likelihood gradient. ICML.
Salakhutdinov & Murray (2008), On the quantitative analysis of deep belief networks. ICML.
Montavon & Müller (2012), Deep Boltzmann machines and the centering trick. In Neural Networks: Tricks of the Trade.
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
from tacit.models.energy._boltzmann import BLOCK, ENUMERABLE, HALF, Boltzmann, Uniform, draw, states
from tacit.nn import noise
from tacit.spaces import Images, Space

# Total variance of t(v) over the pixels, so that one learning rate suits images of any size (binary MNIST has about 50
# with t(v) = v), and deviation of the first weights, with which hidden inputs begin at about ½: from much smaller ones
# learning is slow to leave the saddle at zero.
_VARIANCE = 50.0
_DEVIATION = 0.07


class RBM(Boltzmann):
    """Restricted Boltzmann machine.

    Args:
        space: images.
        hidden: number H of binary hidden units.
        persistent: persistent contrastive divergence; False starts the chains at the data (CD-k).
        gibbs_steps: Gibbs steps k for each update of the weights.
        chains: number of persistent chains.
        bins: most values of a visible unit; images of more levels are binned.
        burn_in: Gibbs steps from the chains of learning to a sample.
        ais_chains: chains of annealed importance sampling.
        ais_steps: its intermediate distributions.

    Raises:
        TacitError: an argument is too small.
    """

    spaces: ClassVar = (Images,)
    recipe: ClassVar[Recipe] = Recipe(
        batch_size=100, learning_rate=0.1, optimiser="SGD", momentum=0.0, schedule="cosine"
    )

    chains: Tensor
    grey: Tensor
    value: Tensor
    bin_of: Tensor
    centre: Tensor
    base_rate: Tensor
    within: Tensor

    def __init__(
        self,
        space: Space,
        *,
        hidden: int = 500,
        persistent: bool = True,
        gibbs_steps: int = 1,
        chains: int = 100,
        bins: int = 20,
        burn_in: int = 200,
        ais_chains: int = 100,
        ais_steps: int = 2000,
    ):
        super().__init__(space, ais_chains, ais_steps)
        check_at_least(1, hidden=hidden, gibbs_steps=gibbs_steps, chains=chains)
        check_at_least(2, bins=bins)
        check_at_least(0, burn_in=burn_in)
        self.hidden, self.persistent, self.gibbs_steps, self.burn_in = hidden, persistent, gibbs_steps, burn_in
        levels, pixels = space.levels or 2, space.dimensions
        self.bins = min(levels, bins)

        self.weight = nn.Parameter(_DEVIATION * torch.randn(pixels, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(pixels, self.bins - 1))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

        # Bins of equal width until `adapt` sees the data; q_i(x | bin) is stored as log masses and is uniform.
        bin_of = torch.arange(levels) * self.bins // levels
        self.register_buffer("bin_of", bin_of)
        self.register_buffer("grey", torch.arange(self.bins) / (self.bins - 1))
        self.register_buffer("value", self.grey.clone())
        self.register_buffer("within", -bin_of.bincount().log()[bin_of].expand(pixels, -1).clone())
        self.register_buffer("centre", torch.full((pixels,), 0.5))
        self.register_buffer("base_rate", torch.zeros(pixels, self.bins - 1))
        self.register_buffer("chains", torch.randint(self.bins, (chains, pixels), dtype=torch.uint8))
        self._keep_log_z()

    # -- the two conditionals and the free energy --------------------------------------------------------------------

    def _hidden_input(self, k: Tensor) -> Tensor:
        """c_j + Σ_i (t(v_i) − μ_i) W_ij of visible bins (batch, pixels): (batch, hidden)."""
        return torch.addmm(self.hidden_bias, self.value[k.long()] - self.centre, self.weight)

    def _visible_input(self, h: Tensor) -> Tensor:
        """Σ_j W_ij (h_j − ½), the tilt of each visible unit: (batch, pixels)."""
        return (h - HALF) @ self.weight.T

    def _visible_term(self, k: Tensor, bias: Tensor) -> Tensor:
        """Σ_i β_i(k_i) of visible bins (batch, pixels): (batch,)."""
        if self.bins == 2:
            return k.to(bias.dtype) @ bias[:, 0]
        one_hot = k.unsqueeze(-1) == torch.arange(1, self.bins, device=k.device)
        return one_hot.flatten(1).to(bias.dtype) @ bias.flatten()

    def _logits(self, tilt: Tensor, bias: Tensor) -> Tensor:
        """Log P(v_i = k | h) up to a constant: (batch, pixels, bins)."""
        return tilt.unsqueeze(-1) * self.value + F.pad(bias, (1, 0))

    def _draw_visible(self, tilt: Tensor, bias: Tensor, uniform: Uniform) -> Tensor:
        """Visible bins given the tilt of each unit: (batch, pixels), uint8."""
        u = uniform(*tilt.shape, device=tilt.device)
        if self.bins == 2:
            return (u < torch.sigmoid(tilt * (self.value[1] - self.value[0]) + bias[:, 0])).to(torch.uint8)
        rows = max(1, BLOCK // (tilt.shape[1] * self.bins))
        k = [
            (v.unsqueeze(-1) > self._logits(t, bias).softmax(-1).cumsum(-1)[..., :-1]).sum(-1, dtype=torch.uint8)
            for t, v in zip(tilt.split(rows), u.split(rows), strict=True)
        ]
        return torch.cat(k)

    @torch.no_grad()
    def _gibbs(
        self, k: Tensor, steps: int, uniform: Uniform, temperature: float = 1.0, known: Tensor | None = None
    ) -> Tensor:
        """`steps` times h ~ P(h | v), v ~ P(v | h), with the energy divided by `temperature`.

        Units that are `known`, (pixels,) bool, keep the bins that they have.
        """
        bias, given = self.visible_bias / temperature, k
        for _ in range(steps):
            p = torch.sigmoid(self._hidden_input(k) / temperature)
            k = self._draw_visible(self._visible_input(draw(p, uniform)) / temperature, bias, uniform)
            if known is not None:
                k = torch.where(known, given, k)
        return k

    def _binned(self, x: Tensor) -> Tensor:
        """Images -> visible bins, (batch, pixels)."""
        return self.bin_of[self.space.check(x).flatten(1).long()]

    def _free_energy(self, k: Tensor) -> Tensor:
        """F of visible bins in nats, (batch,)."""
        a = self._hidden_input(k)
        # log Σ_h exp(a (h − ½)) = softplus(a) − a / 2
        return -self._visible_term(k, self.visible_bias) - (F.softplus(a) - HALF * a).sum(1)

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) = −log P(x) − log Z in nats, (batch,): the anomaly score that needs no partition function."""
        k = self._binned(x)
        if len(self.bin_of) == self.bins:
            return self._free_energy(k)
        pixel = torch.arange(k.shape[1], device=k.device)
        return self._free_energy(k) - self.within[pixel, x.flatten(1).long()].sum(1)

    # -- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, data: Dataset) -> None:
        """Bins, base rates and q_i from the pixels' histograms; biases at the base rates, chains drawn from them."""
        levels, pixels = len(self.bin_of), len(self.weight)
        offset = torch.arange(pixels) * levels
        count = torch.zeros(pixels * levels, dtype=torch.float64)
        for index in data.ordered(4096):
            x = data[index].flatten(1).cpu().long()
            count += (x + offset).flatten().bincount(minlength=pixels * levels)
        count = count.view(pixels, levels)
        pooled = count.sum(0) + 1
        if levels > self.bins:
            # Bins of nearly equal mass that keep frequent levels, such as a black ground, to themselves.
            self.bin_of.copy_(_equal_mass(pooled, self.bins))
        member = F.one_hot(self.bin_of.cpu(), self.bins).double()

        grey = torch.arange(levels, dtype=torch.float64) / (levels - 1)
        self.grey.copy_((pooled * grey) @ member / (pooled @ member))
        # A pixel's own frequencies, with the whole data's as a prior worth `levels` pixels.
        prior = levels * pooled / pooled.sum()
        binned = (count + prior) @ member
        self.within.copy_(((count + prior) / binned[:, self.bin_of.cpu()]).log())
        rate = binned / binned.sum(1, keepdim=True)
        mean_grey = self.grey.double().cpu()
        variance = (rate @ mean_grey.square() - (rate @ mean_grey).square()).sum().item()
        self.value.copy_(self.grey * math.sqrt(_VARIANCE / max(variance, 1e-3)))
        self.centre.copy_(rate @ self.value.double().cpu())
        log_rate = rate.log()
        self.base_rate.copy_(log_rate[:, 1:] - log_rate[:, :1])
        self.visible_bias.copy_(self.base_rate)
        flat = self.base_rate.new_zeros(len(self.chains), pixels)
        self.chains.copy_(self._draw_visible(flat, self.base_rate, torch.rand))

    def loss(self, batch: Batch) -> Losses:
        """Mean F(data) − mean F(chains), whose gradient is the (persistent) contrastive divergence.

        Every process holds all persistent chains and draws the same noise for them, so that several processes learn
        what one does and the first one's state is the whole state. Outside training the chains stand still.
        """
        data = self._binned(batch.x)
        if not self.persistent:
            chains = self._gibbs(data, self.gibbs_steps, noise.rand)
            if self.training:
                # Kept as the start of sampling.
                self.chains[: len(chains)] = chains[: len(self.chains)]
        else:
            if self.training:
                self.chains.copy_(self._gibbs(self.chains, self.gibbs_steps, noise.rand_alike))
            chains = self.chains
        real, imagined = self._free_energy(torch.cat((data, chains))).split((len(data), len(chains)))
        return Losses(free_energy_gap=real.mean() - imagined.mean())

    # -- the partition function ----------------------------------------------------------------------------------------

    @property
    def density(self) -> Kind:
        """Exact where one layer can be enumerated, else an estimate."""
        return "exact" if self._enumerates() else "estimate"

    def _enumerates(self) -> str | None:
        """The layer to be enumerated: "hidden", "visible" or None."""
        pixels, hidden = self.weight.shape
        over_hidden = hidden * math.log(2) + math.log(pixels * self.bins)
        over_visible = pixels * math.log(self.bins) + math.log(hidden)
        if min(over_hidden, over_visible) > math.log(ENUMERABLE):
            return None
        return "hidden" if over_hidden <= over_visible else "visible"

    def enumerated_log_z(self) -> Tensor:
        """Log Z by the sum over all states of one layer, a scalar that gradients flow through."""
        layer = self._enumerates()
        pixels, hidden = self.weight.shape
        units, base = (hidden, 2) if layer == "hidden" else (pixels, self.bins)
        total = []
        for state in states(units, base, pixels * self.bins, self.device):
            if layer == "visible":
                total.append((-self._free_energy(state)).logsumexp(0))
            else:
                h = state.to(self.weight.dtype)
                tilt = self._visible_input(h)
                log_mass = self._logits(tilt, self.visible_bias).logsumexp(-1) - tilt * self.centre
                total.append((log_mass.sum(1) + (h - HALF) @ self.hidden_bias).logsumexp(0))
        return torch.stack(total).logsumexp(0)

    @torch.no_grad()
    def annealed_log_z(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error by annealed importance sampling, from the histograms of the pixels."""
        pixels, hidden = self.weight.shape
        uniform = self._uniform()
        start = self._draw_visible(self.weight.new_zeros(self.ais_chains, pixels), self.base_rate, uniform)

        def hidden_term(a: Tensor) -> Tensor:
            return (F.softplus(a) - HALF * a).sum(1, dtype=torch.float64)

        def log_ratio(k: Tensor, before: float, after: float) -> Tensor:
            a = self._hidden_input(k)
            tilt = self._visible_term(k, self.visible_bias - self.base_rate)
            return (after - before) * tilt + hidden_term(after * a) - hidden_term(before * a)

        def move(k: Tensor, inverse: float) -> Tensor:
            h = draw(torch.sigmoid(inverse * self._hidden_input(k)), uniform)
            bias = torch.lerp(self.base_rate, self.visible_bias, inverse)
            return self._draw_visible(inverse * self._visible_input(h), bias, uniform)

        ratio, error = self._anneal(start, log_ratio, move)
        return F.pad(self.base_rate.double(), (1, 0)).logsumexp(-1).sum() + hidden * math.log(2) + ratio, error

    def _slope(self) -> Tensor:
        return -self._free_energy(self.chains).mean()

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Log P(x) = −F(x) − log Z in nats, (batch,): a mass on the integers. `log_z_error` is its standard error."""
        return (-self.free_energy(x).double() - self.log_partition()).float()

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """`burn_in` Gibbs steps from the chains of learning, with the energy divided by `temperature`."""
        start = torch.randint(len(self.chains), (count,), device=self.device)
        k = self._gibbs(self.chains[start], self.burn_in, torch.rand, temperature)
        return self._unbinned(k, temperature).view(count, *self.space.shape)

    @torch.no_grad()
    def chain(self, count: int, frames: int, *, temperature: float = 1.0) -> Tensor:
        """`count` Gibbs chains from noise to samples, one step a frame: (count, frames, *space.shape)."""
        k = torch.randint(self.bins, (count, len(self.weight)), device=self.device, dtype=torch.uint8)
        found = [k]
        for _ in range(frames - 1):
            found.append(k := self._gibbs(k, 1, torch.rand, temperature))
        return torch.stack([self._unbinned(k, temperature).view(count, *self.space.shape) for k in found], 1)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`x` with what is not `known` drawn by `burn_in` Gibbs steps in which the rest is held: (batch, *shape)."""
        self.space.check_known(known)
        mask = known.to(x.device)
        start = self.chains[torch.randint(len(self.chains), (len(x),), device=x.device)]
        k = torch.where(mask.flatten(), self._binned(x).to(torch.uint8), start)
        k = self._gibbs(k, self.burn_in, torch.rand, temperature, mask.flatten())
        return torch.where(mask, x, self._unbinned(k, temperature).view(x.shape))

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """The free energy, as an anomaly score: (batch,)."""
        return self.free_energy(x)

    def _unbinned(self, k: Tensor, temperature: float) -> Tensor:
        """A level within each visible bin, by the inverse of q_i's distribution function: (batch, pixels), uint8."""
        if len(self.bin_of) == self.bins:
            return k
        upper = (self.within.double() / temperature).exp().cumsum(1)
        last = torch.searchsorted(self.bin_of, torch.arange(self.bins, device=k.device), right=True) - 1
        edge = F.pad(upper[:, last], (1, 0))
        low, high = edge[:, :-1].gather(1, k.T.long()), edge[:, 1:].gather(1, k.T.long())
        level = torch.searchsorted(upper, low + (high - low) * torch.rand_like(low), right=True)
        first = F.pad(last[:-1] + 1, (1, 0))
        return level.clamp(first[k.T.long()], last[k.T.long()]).T.to(torch.uint8)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """P(h_j = 1 | x): (batch, hidden)."""
        return torch.sigmoid(self._hidden_input(self._binned(x)))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The mean image given hidden units in [0, 1], (batch, hidden): (batch, *space.shape), float32."""
        levels = len(self.bin_of)
        mean = self._logits(self._visible_input(z), self.visible_bias).softmax(-1) @ self.grey
        return (mean * (levels - 1)).view(len(z), *self.space.shape)

    def embed(self, x: Tensor) -> Tensor:
        """The hidden probabilities, as `encode`: (batch, hidden)."""
        return self.encode(x)


def _equal_mass(mass: Tensor, bins: int) -> Tensor:
    """Number of the bin of each level, (levels,): `bins` bins of about equal mass, none of them empty."""
    levels = len(mass)
    bin_of, left, current, filled = [], float(mass.sum()), 0, 0.0
    for level, m in enumerate(mass.tolist()):
        # A new bin begins when this one is full, or when each level left is needed to fill a bin.
        full = filled and filled + m / 2 > left / (bins - current)
        if current + 1 < bins and filled and (full or levels - level == bins - 1 - current):
            current, left, filled = current + 1, left - filled, 0.0
        filled += m
        bin_of.append(current)
    return torch.tensor(bin_of)
