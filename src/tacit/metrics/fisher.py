"""Fisher scores: what an observation would change about a density, as its features.

A model with a density p(x; θ) maps every x to the direction in which it pulls the parameters, scaled by how far
observations pull them at all,

    φ(x) = F^(−1/2) ∇_θ log p(x; θ),      F = diag E[(∇_θ log p(x; θ))²],

the expectation over training data. φ(x)ᵀφ(y) is the Fisher kernel: two observations are alike if they ask the model
for the same changes. Under the model's own draws the mean of the score is zero. Signed square roots and unit length,
as for Fisher vectors, keep rare, large entries from ruling the kernel.

A gradient has as many entries as there are parameters. Those of the last layer are taken unless others are named, and
long ones are summed with random signs into fewer, which keeps inner products in expectation.

References
----------
- Jaakkola & Haussler (1999), Exploiting generative models in discriminative classifiers, NIPS 11
- Perronnin & Dance (2007), Fisher kernels on visual vocabularies for image categorization, CVPR (the diagonal F)
- Perronnin, Sánchez & Mensink (2010), Improving the Fisher kernel for large-scale image classification, ECCV, §3
- Weinberger et al. (2009), Feature hashing for large scale multitask learning, arXiv:0902.2206 (the random signs)
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from tacit import catalogue, spaces
from tacit.capabilities import require
from tacit.data import Dataset
from tacit.errors import CapabilityError, TacitError
from tacit.model import Model

# Entries of gradients that are held at a time: 128 MB.
_AT_ONCE = 2**25

# Rows whose gradients are taken at a time at most: beyond, nothing gets faster.
_MOST_ROWS = 256


class FisherScore:
    """φ of a model, in evaluation mode. `fit` estimates F; then `embed` gives features, as the probes take them.

    Where the density is a bound that is estimated from noise, so are its gradients.

    Args:
        model: one with a density that gives gradients.
        parameters: names of parameters or modules to differentiate by; by default the last module that has any.
        features: gradients longer than this are projected to this many.
        normalised: whether features have signed square roots taken and are of unit length.
        seed: of the projection.

    Raises:
        CapabilityError: the model has no density, or learns without gradients.
        TacitError: `features` is below 1, or it has no parameter of such a name.
    """

    def __init__(
        self,
        model: Model,
        *,
        parameters: tuple[str, ...] | None = None,
        features: int = 4096,
        normalised: bool = True,
        seed: int = 0,
    ):
        require(model, "density", "give Fisher scores")
        if model.learns_exactly() or not any(p.requires_grad for p in model.parameters()):
            raise CapabilityError(
                f"{catalogue.name_of(type(model))} cannot give Fisher scores: it learns without gradients; take a "
                f"model that has a density and learns by steps"
            )
        if features < 1:
            raise TacitError(f"features is {features}: give at least 1")
        self.model, self.names, self.normalised = model, chosen(model, parameters), normalised
        named = dict(model.named_parameters())
        length = sum(named[name].numel() for name in self.names)
        self.projection = Projection(length, features, seed).to(model.device) if length > features else None
        self.scale = torch.zeros(length)

    def fit(self, data: Dataset, rows: int = 2000) -> FisherScore:
        """Estimate F on `rows` observations of `data` at most, evenly spaced.

        Raises:
            CapabilityError: log p gives no gradients.
            TacitError: log p does not depend on these parameters.
        """
        x = data.observations(rows).to(self.model.device)
        with torch.enable_grad():
            if not self.model.log_prob(x[:1]).requires_grad:  # type: ignore[operator]
                raise CapabilityError(
                    f"{catalogue.name_of(type(self.model))} cannot give Fisher scores: its log_prob gives no gradients"
                )
        squares = torch.zeros(len(self.scale), device=x.device)
        for part in x.split(self._rows()):
            squares += scores(self.model, part, self.names).square().sum(0)
        if not squares.any():
            raise TacitError(f"log p does not depend on {', '.join(self.names)}: name other parameters")
        # A parameter that nothing pulls, such as a masked one, gives a feature of zero.
        self.scale = torch.where(squares > 0, (squares / len(x)).rsqrt(), 0)
        return self

    def embed(self, x: Tensor) -> Tensor:
        """φ(x), (batch, features), float32.

        Raises:
            SpaceError: `x` is not of the model's space.
            TacitError: `fit` has not been called.
        """
        if not self.scale.any():
            raise TacitError("the scores' scale is not known yet: call fit with training data first")
        return torch.cat([self._embed(part) for part in x.split(self._rows())])

    def _embed(self, x: Tensor) -> Tensor:
        features = self.scale * scores(self.model, x, self.names)
        if self.projection is not None:
            features = self.projection(features)
        return F.normalize(features.sign() * features.abs().sqrt()) if self.normalised else features

    def _rows(self) -> int:
        return max(1, min(_MOST_ROWS, _AT_ONCE // len(self.scale)))


class Projection(nn.Module):
    """Sums with random signs: entries i, i + features, i + 2 · features, … make one feature.

    Args:
        length: entries.
        features: what they become.
        seed: of the signs.
    """

    signs: Tensor

    def __init__(self, length: int, features: int, seed: int):
        super().__init__()
        self.features = features
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("signs", torch.randint(2, (length,), generator=generator) * 2.0 - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) -> (batch, features)."""
        x = F.pad(x * self.signs, (0, -x.shape[1] % self.features))
        return x.view(len(x), -1, self.features).sum(1)


def chosen(model: Model, parameters: tuple[str, ...] | None) -> tuple[str, ...]:
    """Full names of all that `parameters` name, in the model's order; of the last module that has any if None.

    Raises:
        TacitError: one of them names nothing.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if parameters is None:
        of_its_own = [n for n, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        parameters = (of_its_own[-1],)
    for wanted in parameters:
        if not any(within(name, wanted) for name in names):
            raise TacitError(f"the model has no parameter or module {wanted!r}: it has {', '.join(names)}")
    return tuple(name for name in names if any(within(name, wanted) for wanted in parameters))


def within(name: str, module: str) -> bool:
    """Whether a parameter is this one, or of this module; the empty name is the model itself."""
    return name == module or name.startswith(f"{module}.") or (not module and "." not in name)


def scores(model: Model, x: Tensor, names: tuple[str, ...], how: Literal["vmap", "loop"] | None = None) -> Tensor:
    """∇ log p of each observation by the parameters called `names`, laid flat: (batch, parameters), float32.

    Args:
        model: is taken in evaluation mode, and left in the mode it was in.
        how: "vmap", all at once; "loop", one after the other; by default at once unless vmap refuses the model.

    Raises:
        SpaceError: `x` is not of the model's space.
    """
    x = model.space.check_values(x)
    was_training = model.training
    model.eval()
    try:
        if how == "loop":
            return _one_by_one(model, x, names)
        try:
            with spaces.unchecked():
                return _at_once(model, x, names)
        except RuntimeError:
            # vmap knows no batching of some operations, and refuses what looks at values.
            if how == "vmap":
                raise
            return _one_by_one(model, x, names)
    finally:
        model.train(was_training)


def _at_once(model: Model, x: Tensor, names: tuple[str, ...]) -> Tensor:
    density = _Density(model)
    named: dict[str, Tensor] = dict(model.named_parameters())

    def log_prob(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(density, parameters, (row[None],))[0]

    # `grad` differentiates all the same, and nothing is kept for the other parameters. Operations that vmap itself
    # takes one by one warn of it.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        parameters = {f"model.{name}": named[name] for name in names}
        each = vmap(grad(log_prob), in_dims=(None, 0), randomness="different")(parameters, x)
    return torch.cat([each[f"model.{name}"].flatten(1) for name in names], 1).float()


def _one_by_one(model: Model, x: Tensor, names: tuple[str, ...]) -> Tensor:
    named = dict(model.named_parameters())
    parameters = [named[name] for name in names]
    found = []
    for row in x.split(1):
        with torch.enable_grad():
            log_prob = model.log_prob(row)[0]  # type: ignore[operator]
        each = torch.autograd.grad(log_prob, parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([g.flatten() for g in each]))
    return torch.stack(found).float()


class _Density(nn.Module):
    """`log_prob` as a forward pass, which is what `functional_call` calls."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_prob(x)  # type: ignore[operator]
