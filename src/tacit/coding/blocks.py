"""Blocks of observations to bytes and back, by whatever a model can be coded by.

- Autoregressive models, tables and VQ-VAEs: site after site, of all rows of the block at once, by a range coder.
- VAEs: bits back. z is taken off the coder's stack as if q(z | x) had been put there, x is put on it given z, and z by
  its prior: that costs −log p(x | z) − log p(z) + log q(z | x), the bound itself. z takes one of the values that cut
  its prior into equal shares. The stack begins with bits that mean nothing, and that are checked when all is decoded.

The entropy coder is constriction. All that it is told is exact, or of the model as it is, for archives that only this
machine is to read.

References
----------
James Townsend, Tom Bird, David Barber (2019). Practical lossless compression with latent variables using bits back
    coding. arXiv:1901.04866.
Robert Bamler (2022). Understanding entropy coding with asymmetric numeral systems. arXiv:2201.01741. (constriction)
"""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit import catalogue
from tacit.capabilities import Codes, has, require
from tacit.coding.exact import between, exact, running
from tacit.coding.masses import Masses, masses
from tacit.distributions import Head
from tacit.errors import ArchiveError, CapabilityError
from tacit.model import Model
from tacit.models._conditional import Conditional

# A dimension of z takes one of 2¹⁰ values.
_VALUES = 1024
# Rows whose z are taken off the stack before their x are put on it: each needs bits to begin with.
_AT_ONCE = 8
# Entries of a block, beyond which what a model makes of them all does not fit memory, and is found site after site.
_KNOWN = 2**21
# Parameters of which masses are computed at once, if they are known: few enough for the processor's cache.
_PARAMETERS = 2**17
# Bits that each dimension of those z may take off the stack: as many as tell its value, and some for all of them.
_BEGIN, _SPARE = int(math.log2(_VALUES)), 128


def _coder() -> Any:
    """The library, which is an extra.

    Raises:
        CapabilityError: it is not installed.
    """
    try:
        import constriction
    except ImportError:
        raise CapabilityError("archives need the package constriction: pip install 'tacit[compress]'") from None
    return constriction.stream


@dataclass
class Coded:
    """A block's bytes, and of how many of its bits what follows can be told.

    Attributes:
        payload: the bytes.
        initial: bits among them that mean nothing: what bits back began with.
    """

    payload: bytes
    initial: int = 0


class BlockCoder:
    """Codes rows of a model's space, whole blocks at a time.

    Args:
        model: with the capability "code" or "bits-back".
        portable: run it exactly, so that any machine decodes; else as it is.

    Raises:
        CapabilityError: the model has neither capability or is of real numbers, or the coder is not installed.
    """

    def __init__(self, model: Model, *, portable: bool = True):
        if not has(model, "bits-back"):
            require(model, "code", "compress")
        if model.space.levels is None:
            raise CapabilityError(
                f"{catalogue.name_of(type(model))} was fitted on {model.space.kind}, and real numbers cannot be coded "
                f"without loss: their last digits have no probability; take images, a text or recordings"
            )
        self.streams = _coder()
        self.given: Any = model.eval()
        self.model: Any = exact(model) if portable else model
        self.portable = portable
        self.space = model.space

    def _running(self) -> AbstractContextManager[Any]:
        return running(self.model) if self.portable else torch.no_grad()

    # -- blocks -------------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Coded:
        """The block of observations `x`, (rows, *space.shape), of any length where a model is unbounded.

        Raises:
            CapabilityError: the model cannot be made exact, or not be coded.
        """
        return self._onto_stack(x) if has(self.model, "bits-back") else self._into_queue(x)

    def decode(self, payload: bytes, rows: int, sites: int | None = None) -> Tensor:
        """What `encode` was given.

        Args:
            payload: its bytes.
            rows: how many observations.
            sites: entries of each, of an unbounded model.

        Raises:
            ArchiveError: these are no bytes of so many observations.
        """
        if len(payload) % 4:
            raise ArchiveError(f"a block of {len(payload)} bytes is not whole words: the archive is damaged")
        words = np.frombuffer(payload, dtype="<u4").astype(np.uint32)
        return self._off_stack(words, rows) if has(self.model, "bits-back") else self._out_of_queue(words, rows, sites)

    # -- site after site ----------------------------------------------------------------------------------------------

    def _into_queue(self, x: Tensor) -> Coded:
        coder = self.streams.queue.RangeEncoder()
        # What the encoder alone does need not be exact.
        label, sites = self._labels_of(x), cast(Codes, self.given).sites(x).long()
        with self._running():
            if label is not None:
                self._put(coder, label, self._prior(len(x)))

            if self.portable and x.numel() <= _KNOWN and hasattr(self.model, "parameters_of"):
                t = 0
                for parameters in self.model.parameters_of(x, label):
                    self._put_sites(coder, sites[:, t : t + len(parameters)], self.model.head, parameters)
                    t += len(parameters)
            else:

                def choose(head: Head, parameters: Tensor, t: int) -> Tensor:
                    self._put_sites(coder, sites[:, t : t + 1], head, parameters[None])
                    return sites[:, t]

                self._visit(len(x), choose, label, sites.shape[1])
        for samples, sizes in self._within(sites):
            coder.encode(samples(x), self.streams.model.Uniform(), sizes)
        return Coded(coder.get_compressed().astype("<u4").tobytes())

    def _out_of_queue(self, words: NDArray[np.uint32], rows: int, number: int | None) -> Tensor:
        coder, found = self.streams.queue.RangeDecoder(words), list[Tensor]()

        def choose(head: Head, parameters: Tensor, t: int) -> Tensor:
            channels = getattr(head, "channels", 1)
            columns = torch.zeros(rows, 0, dtype=torch.long)
            for _ in range(channels):
                column = self._take_value(coder, masses(head, parameters, columns))
                columns = torch.cat([columns, column[:, None]], 1)
            found.append(columns if channels > 1 else columns[:, 0])
            return found[-1]

        with self._running():
            label = self._take(coder, self._prior(rows)) if self._has_labels() else None
            self._visit(rows, choose, label, number)
        sites = torch.stack(found, 1)
        x = self.given.from_sites(sites)
        for samples, sizes in self._within(sites):
            samples(x, torch.from_numpy(coder.decode(self.streams.model.Uniform(), sizes)))
        if not coder.maybe_exhausted():
            raise ArchiveError("a block holds more than its observations: the archive is damaged")
        return x

    def _visit(self, rows: int, choose: Any, label: Tensor | None, sites: int | None) -> None:
        if getattr(self.model, "unbounded", False):
            self.model.visit(rows, choose, label, sites)
        else:
            self.model.visit(rows, choose, label)

    def _within(self, sites: Tensor) -> Iterator[tuple[Any, NDArray[np.int32]]]:
        """Of codes that stand for several samples (μ-law), which of them it is: a getter or setter, and how many."""
        law = getattr(self.model, "mu_law", None)
        if law is None:
            return
        sizes, starts = law.sizes[sites], law.starts[sites]
        several = sizes > 1

        def samples(x: Tensor, given: Tensor | None = None) -> NDArray[np.int32] | None:
            if given is None:
                return (x.long() - starts)[several].int().numpy()
            whole = starts.clone()
            whole[several] += given.long()
            x.copy_(whole.view_as(x).to(x.dtype))
            return None

        yield samples, sizes[several].int().numpy()

    # -- labels -------------------------------------------------------------------------------------------------------

    def _has_labels(self) -> bool:
        """Whether a row's class must be told: of a model that never learnt to do without."""
        return isinstance(self.model, Conditional) and self.model.classes is not None

    def _labels_of(self, x: Tensor) -> Tensor | None:
        return self.given.classify(x).argmax(1) if self._has_labels() else None

    def _prior(self, rows: int) -> Tensor:
        return between("exp", self.model.log_prior)[None].expand(rows, -1)

    # -- bits back ----------------------------------------------------------------------------------------------------

    def _onto_stack(self, x: Tensor) -> Coded:
        with self._running():
            begin = self._begin(x)
            coder = self.streams.stack.AnsCoder(begin)
            before = coder.num_bits()
            for part in x.split(_AT_ONCE):
                self._put_back(coder, part)
        words = coder.get_compressed()
        return Coded(words.astype("<u4").tobytes(), before)

    def _put_back(self, coder: Any, x: Tensor) -> None:
        index = self._take(coder, self._posterior(x))
        self._put_value(coder, x.flatten().long(), self._given(index, len(x)))
        self._put(coder, index, self._uniform(len(index)))

    def _off_stack(self, words: NDArray[np.uint32], rows: int) -> Tensor:
        coder = self.streams.stack.AnsCoder(words)
        parts = torch.arange(rows).split(_AT_ONCE)
        found = list[Tensor]()
        with self._running():
            for part in reversed(parts):
                found.append(self._take_back(coder, len(part)))
            x = torch.cat(found[::-1])
            begin = self._begin(x)
        if not np.array_equal(coder.get_compressed(), self.streams.stack.AnsCoder(begin).get_compressed()):
            raise ArchiveError("a block does not end where it began: the archive is damaged")
        return x

    def _take_back(self, coder: Any, rows: int) -> Tensor:
        index = self._take(coder, self._uniform(rows * self.model.latent))
        x = self._take_value(coder, self._given(index, rows)).view(rows, *self.space.shape).to(self.space.torch_dtype)
        self._put(coder, index, self._posterior(x))
        return x

    def _begin(self, x: Tensor) -> NDArray[np.uint32]:
        """Words that mean nothing, enough for the first z to be taken from."""
        count = (_BEGIN * self.model.latent * min(len(x), _AT_ONCE) + _SPARE) // 32
        return np.random.Generator(np.random.PCG64(0)).integers(1, 2**32, count, dtype=np.uint32)

    def _posterior(self, x: Tensor) -> Tensor:
        """Masses of z's values under q(z | x), (rows · latent, values)."""
        mean, log_deviation = (each.double().flatten()[:, None] for each in self.model.posterior_of(x))
        inverse = between("exp", -log_deviation)
        below = normal((_edges()[1:-1] - mean) * inverse)
        zero = torch.zeros_like(below[:, :1])
        return (torch.cat([below, zero + 1], 1) - torch.cat([zero, below], 1)).clamp_(min=0)

    def _given(self, index: Tensor, rows: int) -> Masses:
        """Masses of all entries given z's values, of rows · entries: they do not depend on each other."""
        head, parameters = self.model.given(_centres()[index].view(rows, -1).to(torch.get_default_dtype()))
        each = parameters.flatten(2).transpose(1, 2).flatten(0, 1)
        return masses(head, each, each[:, :0])

    def _uniform(self, count: int) -> Tensor:
        return torch.ones(1, 1, dtype=torch.float64).expand(count, _VALUES)

    # -- the coder's own ----------------------------------------------------------------------------------------------

    def _put_sites(self, coder: Any, entries: Tensor, head: Head, parameters: Tensor) -> None:
        """Put sites, (rows, sites[, entries]), on a queue one after the other, by (sites, rows, parameters)."""
        rows = len(entries)
        step = max(1, _PARAMETERS // parameters[0].numel())
        for some, values in zip(parameters.split(step), entries.split(step, 1), strict=True):
            given = some.flatten(0, 1)
            columns = values.transpose(0, 1).reshape(len(given), -1)
            digits = list[tuple[Tensor, Tensor]]()
            for c in range(columns.shape[1]):
                digits += self._digits(columns[:, c], masses(head, given, columns[:, :c]))
            for first in range(0, len(given), rows):
                for symbols, weights in digits:
                    self._put(coder, symbols[first : first + rows], weights[first : first + rows])

    def _put_value(self, coder: Any, values: Tensor, given: Masses) -> None:
        """Put an entry's values, (rows,), on a stack: the last digit first."""
        for symbols, weights in reversed(self._digits(values, given)):
            self._put(coder, symbols, weights)

    def _digits(self, values: Tensor, given: Masses) -> list[tuple[Tensor, Tensor]]:
        """Each digit of values, (rows,), and the masses of all that it could be, (rows, …)."""
        first = values // given.base
        if given.second is None:
            return [(first, given.first)]
        return [(first, given.first), (values % given.base, given.second(first))]

    def _take_value(self, coder: Any, given: Masses) -> Tensor:
        """Take an entry's values, (rows,) int64, off a coder."""
        first = self._take(coder, given.first)
        return first if given.second is None else first * given.base + self._take(coder, given.second(first))

    def _put(self, coder: Any, symbols: Tensor, weights: Tensor) -> None:
        """Put symbols, (rows,), on a coder, by their masses, (rows, values)."""
        given = symbols.int().contiguous().numpy()
        if weights.stride(0) == 0:
            model, arguments = self._alike(weights), []
        else:
            model, arguments = self.streams.model.Categorical(perfect=False), [weights.contiguous().numpy()]
        if self._is_stack(coder):
            coder.encode_reverse(given, model, *arguments)
        else:
            coder.encode(given, model, *arguments)

    def _take(self, coder: Any, weights: Tensor) -> Tensor:
        """Take symbols, (rows,) int64, off a coder, by their masses."""
        if weights.stride(0) == 0:
            found = coder.decode(self._alike(weights), len(weights))
        else:
            found = coder.decode(self.streams.model.Categorical(perfect=False), weights.contiguous().numpy())
        return torch.from_numpy(found).long()

    def _is_stack(self, coder: Any) -> bool:
        return isinstance(coder, self.streams.stack.AnsCoder)

    def _alike(self, weights: Tensor) -> Any:
        """One distribution for all rows."""
        return self.streams.model.Categorical(weights[0].contiguous().numpy(), perfect=False)


# -- the values of z, and the normal distribution ----------------------------------------------------------------------

# Of the table: beyond eight deviations there is nothing, and 2⁻⁹ apart lines are near enough.
_REACH, _STEPS = 8, 512


def _phi(x: decimal.Decimal) -> decimal.Decimal:
    """Φ(x) of x ≥ 0, by the series ½ + φ(x) Σ x^(2n + 1) / (1 · 3 · 5 ⋯ (2n + 1)), all of whose terms are positive."""
    term = total = x
    n = 1
    while term > total * decimal.Decimal("1e-30"):
        n += 2
        term = term * x * x / n
        total += term
    return decimal.Decimal("0.5") + (-x * x / 2).exp() * total / _root_of_two_pi()


@functools.cache
def _root_of_two_pi() -> decimal.Decimal:
    with decimal.localcontext(prec=40):
        return (2 * decimal.Decimal("3.14159265358979323846264338327950288419717")).sqrt()


@functools.cache
def _normal_table() -> Tensor:
    with decimal.localcontext(prec=40):
        upper = [float(_phi(decimal.Decimal(i) / _STEPS)) for i in range(_REACH * _STEPS + 2)]
        lower = [float(1 - _phi(decimal.Decimal(i) / _STEPS)) for i in range(_REACH * _STEPS, 0, -1)]
    return torch.tensor(lower + upper, dtype=torch.float64)


def normal(x: Tensor) -> Tensor:
    """Φ(x), float64, the same on every machine."""
    place = x.clamp(-_REACH, _REACH).add_(_REACH).mul_(_STEPS)
    index = place.int().flatten()
    table, share = _normal_table(), place.sub_(index.view(x.shape))
    low = table.index_select(0, index).view(x.shape)
    return table.index_select(0, index.add_(1)).view(x.shape).sub_(low).mul_(share).add_(low)


def _quantile(p: decimal.Decimal) -> decimal.Decimal:
    """Φ⁻¹(p) of p > ½, by Newton's iteration."""
    x = decimal.Decimal(NormalDist().inv_cdf(float(p)))
    for _ in range(4):
        x -= (_phi(x) - p) * _root_of_two_pi() * (x * x / 2).exp()
    return x


@functools.cache
def _symmetric(halves: bool) -> Tensor:
    """Φ⁻¹ of i / K, or with `halves` of (i + ½) / K, above ½ and mirrored below."""
    shift = decimal.Decimal("0.5") if halves else 0
    with decimal.localcontext(prec=40):
        first = _VALUES // 2 + (0 if halves else 1)
        upper = [float(_quantile((decimal.Decimal(i) + shift) / _VALUES)) for i in range(first, _VALUES)]
    return torch.tensor([-x for x in reversed(upper)] + [0.0] * (not halves) + upper, dtype=torch.float64)


def _edges() -> Tensor:
    """Of z's values, (K + 1,)."""
    ends = torch.tensor([math.inf], dtype=torch.float64)
    return torch.cat([-ends, _symmetric(False), ends])


def _centres() -> Tensor:
    """Z's values, (K,): the median of each share of the prior."""
    return _symmetric(True)
