"""Networks that give the same bits everywhere: on any processor, in any batch, with any number of threads.

A coder's two sides must agree on every probability to the last bit, and floating-point networks do not: a sum depends
on the order of its terms, which depends on the batch, the threads and the instruction set, and so does an exponential.
Under `Exact` a network of any kind runs in float64 with neither:

- Sums. What is multiplied and summed is rounded to the grid of 2⁻¹⁶ first. Every product is then a multiple of 2⁻³²
  and every partial sum one below 2⁵³ of them, which float64 holds: no order of adding rounds anything. Where the
  numbers are too large for that, the model is refused.
- Functions. Exponentials, sigmoids and their like are looked up in tables of which every entry is rounded correctly
  (Python's decimal numbers make them).
- All else, sums of two, products of two, quotients and square roots, IEEE 754 rounds correctly, one by one.

Nothing is trained anew and no weight changes: the grid is a hundred times finer than eight-bit networks need, and costs
hundredths of a per cent of the bits.
"""

from __future__ import annotations

import decimal
import functools
import itertools
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tacit import catalogue
from tacit.errors import CapabilityError
from tacit.model import Model

# Steps of the grid in 1, and what float64 can count to.
_GRID = 2.0**16
_WHOLE = 2.0**53
# Of sums of numbers that are not products of two on the grid: finer.
_FINE = 2.0**24
# Channels from which a convolution is quicker tap by tap.
_WIDE = 8
# Entries of a table in 1, and its ends: e^x is wanted far down, where it is nearly nothing, and some way up.
_STEPS = 1024
_LOW, _HIGH = -40, 24

# Operations that move numbers, compare them, or do one thing to each which IEEE 754 rounds correctly.
_NAMES = """
_reshape_alias _to_copy _unsafe_view abs alias amax amin arange argmax argsort as_strided bitwise_and bitwise_not
bitwise_or cat ceil chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous copy detach div embedding
empty empty_like empty_strided eq expand fill flip floor floor_divide full full_like gather ge gt hardtanh index
index_put index_select isnan le leaky_relu lift_fresh lift_fresh_copy logical_and logical_not logical_or lt
masked_fill max maximum min minimum mul nan_to_num ne neg new_empty new_empty_strided new_full new_ones new_zeros
one_hot ones ones_like permute reciprocal reflection_pad2d relu remainder repeat replication_pad2d reshape roll round
scalar_tensor scatter select select_scatter sign slice slice_scatter sort split split_with_sizes sqrt squeeze stack t
threshold transpose tril triu trunc unbind unfold unsafe_split unsqueeze upsample_nearest2d view where zero zeros
zeros_like
"""
_AS_THEY_ARE = frozenset(_NAMES.split())


class Exact(TorchDispatchMode):
    """Within it torch's operations are exact, or are refused by name.

    Raises:
        CapabilityError: an operation has no exact form here, or numbers are too large to be added without rounding.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch guards what follows against its compiler, for a quarter of the time of small operations.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name, plain, rule = _named(func)
        kwargs = kwargs or {}
        if rule is None and plain in _AS_THEY_ARE:
            return func(*args, **kwargs)
        found = list(_tensors(args))
        if found and not any(tensor.is_floating_point() for tensor in found):
            return func(*args, **kwargs)  # whole numbers
        if rule is None:
            raise CapabilityError(f"no exact form of {plain} is known: archives need a model that does without it")
        given = dict(kwargs)
        out = given.pop("out", None)
        result = rule(*args, **given)
        if out is not None:
            return out.copy_(result)
        return args[0].copy_(result) if name != plain else result


@functools.cache
def _named(func: Any) -> tuple[str, str, Callable[..., Any] | None]:
    """An operation's name, that of its form which writes to no argument, and the rule for it."""
    name = func._schema.name.removeprefix("aten::")
    plain = name.rstrip("_")
    return name, plain, _RULES.get(plain)


def exact(model: Model) -> Model:
    """A copy of the model in float64, to be run under `Exact`."""
    model = deepcopy(model).double().eval().requires_grad_(False)
    # Weights lie on the grid from the start: a layer may then double them, or add its bias in whatever order.
    for weight in model.parameters():
        weight.copy_(on_grid(weight))
    return model


@contextmanager
def running(model: Model) -> Iterator[None]:
    """`Exact`, without gradients; what it refuses names the model.

    Raises:
        CapabilityError: as `Exact`.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), Exact():
            yield
    except CapabilityError as error:
        raise CapabilityError(f"{catalogue.name_of(type(model))} cannot be made exact: {error}") from error
    finally:
        torch.set_default_dtype(usual)


def machine() -> dict[str, Any]:
    """What arithmetic that is not exact depends on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


# -- sums --------------------------------------------------------------------------------------------------------------


def on_grid(x: Tensor, grid: float = _GRID) -> Tensor:
    """`x` in float64, rounded to multiples of 1 / `grid`."""
    return x.double().mul(grid).round_().mul_(1 / grid)


def _products(a: Tensor, b: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Both on the grid, whose products can be added, so many at a time, without rounding."""
    a, b = on_grid(a), on_grid(b)
    if a.numel() and b.numel():
        most = _largest(a) * _largest(b) * terms
        if not most * _GRID**2 < _WHOLE:
            raise CapabilityError(f"sums of {terms} products reach {most:.3g}, and beyond 2 million they would round")
    return a, b


def _largest(x: Tensor) -> float:
    low, high = x.aminmax()
    return max(-float(low), float(high))


def total(x: Tensor, dims: list[int], keep: bool = False) -> Tensor:
    """Σ x over `dims`, on a finer grid.

    Raises:
        CapabilityError: the numbers are too large to be added without rounding.
    """
    terms = math.prod(x.shape[d] for d in dims)
    x = on_grid(x, _FINE)
    if x.numel() and not _largest(x) * terms * _FINE < _WHOLE:
        raise CapabilityError(f"a sum of {terms} numbers is too large to be added without rounding")
    return x.sum(dims, keepdim=keep)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    a, b = _products(a, b, a.shape[-1])
    return a @ b


def _addmm(c: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b)
    product = product if alpha == 1 else product * alpha
    return product + (c if beta == 1 else c * beta)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> Tensor:
    x, weight = _products(x, weight, weight.shape[0] * weight[0, 0].numel() if transposed else weight[0].numel())
    if x.dim() == 4 and not transposed and rest[-1] == 1:
        if list(stride) == [1, 1] and x.shape[1] >= _WIDE:
            found = _by_taps(F.pad(x, (padding[1], padding[1], padding[0], padding[0])), weight, dilation)
        else:
            # One product of all rows: in float64 torch convolves image by image.
            kernel, columns = weight.shape[2:], F.unfold(x, weight.shape[2:], dilation, padding, stride)
            height = (x.shape[2] + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
            found = torch.matmul(weight.flatten(1), columns).unflatten(2, (height, -1))
    else:
        found = torch.ops.aten.convolution(x, weight, None, stride, padding, dilation, transposed, *rest)
    return found if bias is None else found + bias.view(-1, *[1] * (found.dim() - 2))


def _by_taps(x: Tensor, weight: Tensor, dilation: Any) -> Tensor:
    """A convolution as a sum over its kernel's places, each a product with the image moved, of which nothing is copied.

    The image is taken for one line: at its right edge what comes out sees the next row, and is cut off.
    """
    (rows, columns), width = weight.shape[2:], x.shape[3]
    height, kept = x.shape[2] - dilation[0] * (rows - 1), width - dilation[1] * (columns - 1)
    line, count = x.flatten(2), (height - 1) * width + kept
    found = x.new_zeros(len(x), len(weight), height * width)
    for i, j in itertools.product(range(rows), range(columns)):
        start = i * dilation[0] * width + j * dilation[1]
        tap = weight[:, :, i, j].expand(len(x), -1, -1)
        found[:, :, :count].baddbmm_(tap, line[:, :, start : start + count])
    return found.unflatten(2, (height, width))[..., :kept]


def _sum(x: Tensor, dims: list[int] | None = None, keep: bool = False, dtype: Any = None) -> Tensor:
    return total(x, list(dims) if dims else list(range(x.dim())), keep)


def _mean(x: Tensor, dims: list[int] | None = None, keep: bool = False, dtype: Any = None) -> Tensor:
    chosen = list(dims) if dims else list(range(x.dim()))
    return total(x, chosen, keep) / math.prod(x.shape[d] for d in chosen)


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Any, ...]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = _mean(x, dims, True)
    scale = 1 / torch.sqrt(_mean((x - mean).square(), dims, True) + eps)
    found = (x - mean) * scale
    found = found if weight is None else found * weight
    return found if bias is None else found + bias, mean, scale


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    norm = torch.sqrt(total(v * v, [d for d in range(v.dim()) if d != dim], True))
    return v * (g / norm), norm


# -- functions ---------------------------------------------------------------------------------------------------------


@functools.cache
def _table(name: str) -> Tensor:
    """Values of exp or sigmoid at multiples of 1 / `_STEPS` from `_LOW` to `_HIGH`, correctly rounded."""
    with decimal.localcontext(prec=50):
        ratio = (decimal.Decimal(1) / _STEPS).exp()
        value = decimal.Decimal(_LOW).exp()
        found = []
        # One more, to which the line from the last leads.
        for _ in range((_HIGH - _LOW) * _STEPS + 2):
            found.append(float(value if name == "exp" else value / (1 + value)))
            value *= ratio
    return torch.tensor(found, dtype=torch.float64)


def _places(x: Tensor, first: float = 0.0) -> Tensor:
    """Where x lies in a table that begins at `first`: what is no number lies at 0, and is refused where it is coded."""
    # A product with a power of two is exact, whether it is rounded before the sum or not.
    place = torch.add(first - _LOW * _STEPS, x.double(), alpha=_STEPS)
    return place.nan_to_num_(0.0).clamp_(first, first + (_HIGH - _LOW) * _STEPS)


def _nearest(name: str, x: Tensor) -> Tensor:
    """The entry of the table nearest to x: within 2⁻¹² of a sigmoid, which is fine within a network."""
    return _table(name).index_select(0, _places(x, 0.5).int().flatten()).view(x.shape)


def between(name: str, x: Tensor) -> Tensor:
    """The line between the two entries of the table around x: within 2⁻²² of a sigmoid, where differences count."""
    table, place = _table(name), _places(x)
    index = place.int().flatten()
    low = table.index_select(0, index).view(x.shape)
    share = place.sub_(index.view(x.shape))
    return table.index_select(0, index.add_(1)).view(x.shape).sub_(low).mul_(share).add_(low)


def exp(x: Tensor) -> Tensor:
    """e^x; of all below −40 that of −40."""
    return _nearest("exp", x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^−x)."""
    return _nearest("sigmoid", x)


def _tanh(x: Tensor) -> Tensor:
    return sigmoid(x + x).mul_(2).sub_(1)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, x * scale, (exp(x * input_scale) - 1) * (alpha * scale))


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate != "tanh":
        raise CapabilityError("no exact form of gelu is known but that by tanh")
    x = x.double()
    return x * sigmoid((x + x * x * x * 0.044715) * (2 * math.sqrt(2 / math.pi)))


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * sigmoid(b)


def _softmax(x: Tensor, dim: int, half: bool = False) -> Tensor:
    raised = exp(x - x.amax(dim, keepdim=True))
    return raised / total(raised, [dim], True)


def _attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0, causal: bool = False, *, attn_mask: Any = None,
               scale: float | None = None) -> tuple[Tensor, Any]:  # fmt: skip
    scores = _mm(q, k.transpose(-2, -1)) * (scale or 1 / math.sqrt(q.shape[-1]))
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return _mm(_softmax(scores.clamp(min=-1e4), -1), v), None


def _power(x: Tensor, exponent: float) -> Tensor:
    found: dict[float, Callable[[Tensor], Tensor]] = {
        0.5: torch.sqrt,
        1: torch.clone,
        2: lambda x: x * x,
        3: lambda x: x * x * x,
        -1: lambda x: 1 / x,
        -0.5: lambda x: 1 / torch.sqrt(x),
    }
    if exponent not in found:
        raise CapabilityError(f"no exact form of the power {exponent} is known")
    return found[exponent](x)


def _added(sign: int) -> Callable[..., Tensor]:
    def add(a: Any, b: Any, alpha: float = 1) -> Tensor:
        b = b if alpha == 1 else b * alpha
        return a + b if sign > 0 else a - b

    return add


# By the name of torch's operation. Fused ones are taken apart: a processor may round a product before it adds or not.
_RULES: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_softmax": _softmax,
    "_weight_norm_interface": _weight_norm,
    "add": _added(1),
    "addcdiv": lambda a, b, c, value=1: a + b / c * value,
    "addcmul": lambda a, b, c, value=1: a + b * c * value,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "bmm": _mm,
    "convolution": _convolution,
    "elu": _elu,
    "exp": exp,
    "expm1": lambda x: exp(x) - 1,
    "gelu": _gelu,
    "glu": _glu,
    "lerp": lambda a, b, weight: a + (b - a) * weight,
    "mean": _mean,
    "mm": _mm,
    "native_layer_norm": _layer_norm,
    "pow": _power,
    "rsqrt": lambda x: 1 / torch.sqrt(x),
    "rsub": lambda a, b, alpha=1: b - a * alpha,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "sub": _added(-1),
    "sum": _sum,
    "tanh": _tanh,
}
