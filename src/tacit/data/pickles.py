"""Pickles of arrays, for the few published formats that are pickles by definition; a user's pickle is never read."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class _ArraysAlone(pickle.Unpickler):
    """Admits the three names that a pickled array needs, and so cannot be made to run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")


def unpickled(path: Path) -> Any:
    """What a pickle of arrays, lists, texts and numbers holds."""
    with path.open("rb") as file:
        return _ArraysAlone(file, encoding="latin1").load()


def arrays_in(data: bytes) -> list[np.ndarray]:
    """The arrays of numbers in the pickle of a one-dimensional array of them, which is how NumPy saves such a thing.

    Nothing is unpickled. The few opcodes that such a pickle consists of are interpreted here, what they build are
    tuples, texts and numbers, and of those each array is made anew from its own bytes.

    Raises:
        pickle.UnpicklingError: the pickle has another opcode or names another thing, or an array is not as it says.
        ValueError: it is no pickle, or not all of one.
    """
    outer = _interpreted(data)
    state = outer.state if isinstance(outer, _Made) and outer.of == _ARRAY else None
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], list):
        raise pickle.UnpicklingError("it is no array of arrays")
    return [_array(made) for made in state[4]]


_ARRAY, _DTYPE, _RECONSTRUCT = "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct"
_NAMES = {name: name for name in (_ARRAY, _DTYPE, _RECONSTRUCT)}
_NAMES["numpy._core.multiarray _reconstruct"] = _RECONSTRUCT
_NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """What a pickle calls by its name."""

    of: str


@dataclass
class _Made:
    """What a pickle says how to make: an array, or the dtype of one with its code as `argument`."""

    of: str
    argument: Any = None
    state: Any = None


def _interpreted(data: bytes) -> Any:
    """What is on the stack at the end."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        at = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is _MARK)
        found = stack[at + 1 :]
        del stack[at:]
        return found

    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "BININT" | "BININT1" | "BININT2" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                    stack.append(argument)
                case "BINSTRING" | "SHORT_BINSTRING":  # a text or bytes of Python 2
                    stack.append(argument)
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE":
                    stack.append(tuple(above_mark()))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    item = stack.pop()
                    _list(stack[-1]).append(item)
                case "APPENDS":
                    items = above_mark()
                    _list(stack[-1]).extend(items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(_named(argument))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_named(f"{module} {name}"))
                case "REDUCE":
                    arguments, name = stack.pop(), stack.pop()
                    stack.append(_begun(name, arguments))
                case "BUILD":
                    state, made = stack.pop(), stack[-1]
                    if not isinstance(made, _Made):
                        raise pickle.UnpicklingError("it gives a state to what is no array")
                    made.state = state
                case other:
                    raise pickle.UnpicklingError(f"it holds the opcode {other}, which no array needs")
    except (IndexError, KeyError, StopIteration) as error:
        raise pickle.UnpicklingError("its opcodes do not fit together") from error
    raise pickle.UnpicklingError("it has no end")


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise pickle.UnpicklingError(f"it names {name.replace(' ', '.')}, which no array needs")
    return _Name(_NAMES[name])


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise pickle.UnpicklingError("it appends to what is no list")
    return found


def _begun(name: Any, arguments: Any) -> _Made:
    """An array or a dtype before its state is known."""
    if isinstance(name, _Name) and isinstance(arguments, tuple) and arguments:
        if name.of == _RECONSTRUCT and arguments[0] == _Name(_ARRAY):
            return _Made(_ARRAY)
        if name.of == _DTYPE and isinstance(arguments[0], str):
            return _Made(_DTYPE, arguments[0])
    raise pickle.UnpicklingError("it calls what no array needs")


def _array(made: Any) -> np.ndarray:
    """An array of numbers, from (version, shape, dtype, whether in Fortran's order, bytes)."""
    if not isinstance(made, _Made) or made.of != _ARRAY or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise pickle.UnpicklingError("it holds what is no array of numbers")
    _, shape, dtype, in_columns, data = made.state
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(dtype, _Made) or dtype.of != _DTYPE or dtype.argument not in _NUMBERS:
        raise pickle.UnpicklingError("it holds arrays of what are no numbers")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else None
    whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if order not in ("<", ">", "|") or not whole or not isinstance(data, bytes):
        raise pickle.UnpicklingError("it holds an array that is not as it says")
    numbers = np.dtype(order + dtype.argument)
    if math.prod(shape) * numbers.itemsize != len(data):
        raise pickle.UnpicklingError(f"it holds {len(data)} bytes for an array of shape {shape} and dtype {numbers}")
    return np.frombuffer(data, numbers).reshape(shape, order="F" if in_columns else "C")
