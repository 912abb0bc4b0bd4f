"""Capabilities: what the verbs ask of a model. A verb asks for one of these, never for a class.

Each is a run-time-checkable protocol; `tests/test_contract.py` holds one conformance test for each and runs it over
every model of the catalogue that claims it. The static side (`tacit models`) reads the same method names from the
source, so a capability is claimed by defining its method and in no other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tacit.errors import CapabilityError

if TYPE_CHECKING:
    from tacit.distributions import Head

Kind = Literal["exact", "bound", "estimate"]


@runtime_checkable
class HasDensity(Protocol):
    """`log_prob(x)`: (batch, *space.shape) -> (batch,), nats of the user's own data.

    `density` says whether that number is exact, a lower bound on log p(x), or an estimate of it; they are never mixed
    silently. For discrete data it is a log probability mass, for real data a log density.
    """

    density: Kind

    def log_prob(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Samples(Protocol):
    """`sample(count, temperature=1.0)`: (count, *space.shape), in the space's dtype."""

    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """`encode(x)`: (batch, *space.shape) -> the latent variable, (batch, *latent)."""

    def encode(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Decodes(Protocol):
    """`decode(z)`: (batch, *latent) -> the most likely or mean observation, (batch, *space.shape)."""

    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Embeds(Protocol):
    """`embed(x)`: (batch, *space.shape) -> features for probes and neighbours, (batch, features), float32."""

    def embed(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Classifies(Protocol):
    """`classify(x)`: (batch, *space.shape) -> class probabilities, (batch, classes).

    `classes` is how many it was fitted with; None if it was fitted without labels, and then it cannot.
    """

    classes: int | None

    def classify(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasEnergy(Protocol):
    """`energy(x)`: (batch, *space.shape) -> (batch,), which falls as p(x) rises: higher is stranger."""

    def energy(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Completes(Protocol):
    """`complete(x, known, temperature=1.0)`: `x` with what is unknown drawn from p(unknown | known).

    `x` is (batch, *space.shape); `known`, bool, (*space.shape), is True where it is given and comes back unchanged.
    """

    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0) -> Tensor: ...


# Says what stands at a site, (rows,) or (rows, entries) where it holds several, of the head, the head's parameters,
# (rows, parameters), and the site's number.
Choose = Callable[["Head", Tensor, int], Tensor]


@runtime_checkable
class Codes(Protocol):
    """What an entropy coder needs: a way through the entries of observations, each with its distribution.

    `sites(x)` are the numbers to code, (batch, sites) or (batch, sites, entries of a site), and `from_sites` is their
    way back to observations, without loss. `visit(count, choose)` goes through the sites of `count` observations in
    order, and tells `choose` of each the head and its parameters, which follow from the sites before it; what `choose`
    says stands there.
    """

    def sites(self, x: Tensor) -> Tensor: ...

    def from_sites(self, sites: Tensor) -> Tensor: ...

    def visit(self, count: int, choose: Choose, label: Tensor | None = None) -> None: ...


@runtime_checkable
class CodesByBitsBack(Protocol):
    """What bits-back coding needs: z given x, a Gaussian of independent entries, and x given z.

    `posterior_of(x)` is the mean and the logarithm of the standard deviation of z, (batch, latent) each, whose prior is
    N(0, I); `given(z)` is the head of an entry and its parameters, (batch, parameters, *space.shape).
    """

    def posterior_of(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def given(self, z: Tensor) -> tuple[Head, Tensor]: ...


CAPABILITIES: dict[str, type] = {
    "density": HasDensity,
    "sample": Samples,
    "encode": Encodes,
    "decode": Decodes,
    "embed": Embeds,
    "classify": Classifies,
    "complete": Completes,
    "energy": HasEnergy,
    "code": Codes,
    "bits-back": CodesByBitsBack,
}

METHODS: dict[str, str] = {
    "density": "log_prob",
    "sample": "sample",
    "encode": "encode",
    "decode": "decode",
    "embed": "embed",
    "classify": "classify",
    "complete": "complete",
    "energy": "energy",
    "code": "visit",
    "bits-back": "posterior_of",
}


def has(model: torch.nn.Module, capability: str) -> bool:
    """Whether this model, as it was configured, has a capability."""
    if capability == "classify" and getattr(model, "classes", None) is None:
        return False
    return isinstance(model, CAPABILITIES[capability])


def require(model: torch.nn.Module, capability: str, verb: str) -> None:
    """Raise a sentence naming the models that can, if this one cannot.

    Raises:
        CapabilityError: `model` lacks `capability`.
    """
    if has(model, capability):
        return
    from tacit import catalogue

    name = catalogue.name_of(type(model))
    if isinstance(model, CAPABILITIES[capability]):
        raise CapabilityError(f"{name} cannot {verb}: it was fitted without classes; fit it with --classes")
    able = ", ".join(entry.name for entry in catalogue.entries() if capability in entry.capabilities)
    raise CapabilityError(f"{name} cannot {verb}: it has no {METHODS[capability]}(); models that have one are {able}")
