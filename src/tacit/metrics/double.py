"""The same computation in float64, with the same noise: what rounding in float32 does to a figure.

Code is full of float32: `x.float()`, noise, constants. Converting the weights alone would stop at the first of them,
and drawing noise in float64 draws other numbers. Within `float64` every tensor that asks for float32 is made in float64
instead, while random numbers are drawn in float32, from the same generator in the same order, and then widened. What
differs from the run before is rounding alone: also for bounds and estimates, which have noise in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# Attention counts as random to torch, for the dropout it may have; narrowing it would lose what is asked for.
_DRAWS = {"rand", "randn", "rand_like", "randn_like", "normal", "uniform", "exponential", "bernoulli", "multinomial"}


class _Double(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func._schema.name.removeprefix("aten::").rstrip("_") in _DRAWS:
            return _drawn(func, args, kwargs)
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def _drawn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a random operation draws in float32, as float64."""
    if func._schema.is_mutable:  # as x.normal_()
        narrow = tree_map(_narrow, args)
        func(*narrow, **kwargs)
        return args[0].copy_(narrow[0])
    if "dtype" in {argument.name for argument in func._schema.arguments} and kwargs.get("dtype") is None:
        of = args[0].dtype if isinstance(args[0], Tensor) else torch.get_default_dtype()
        kwargs["dtype"] = torch.float32 if of.is_floating_point else of
    drawn = func(*tree_map(_narrow, args), **kwargs)
    return drawn.double() if drawn.dtype == torch.float32 else drawn


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


@contextmanager
def float64() -> Iterator[None]:
    """Within this, float32 is float64, and noise is float32's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


def in_float64(model: nn.Module, method: str, x: Tensor, **options: Any) -> Tensor:
    """`model.method(x)`, computed in float64 by a copy of the model; seed the generator as for the run in float32."""
    wide = copy.deepcopy(model).double()
    with float64():
        work: Callable[..., Tensor] = getattr(wide, method)
        return work(x.double() if x.is_floating_point() else x, **options)
