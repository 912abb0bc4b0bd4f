"""Variable elimination: exact marginals and draws of a product of tables.

Summing a variable out of a product of factors touches only those that have it:

    Σ_v Π_i φ_i = (Π_{i without v} φ_i) · (Σ_v Π_{i with v} φ_i).

The product of the factors that have v, normalised over v, is p(v | the variables of that product eliminated after v);
so what was eliminated is drawn, exactly, in the reverse order (Koller & Friedman 2009, §9.3 and §12.1).
Factors hold logarithms in float64, and one axis of rows before those of the variables: many states of evidence are
worked through together. The order is greedy: next comes the variable whose product is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from torch import Tensor


class Factor(NamedTuple):
    """Log φ over `variables`, ascending: (rows or 1, levels of each variable)."""

    variables: tuple[int, ...]
    log: Tensor


def elimination_order(
    scopes: Iterable[Collection[int]], away: set[int], levels: list[int]
) -> tuple[list[int], list[float]]:
    """The order in which to eliminate the variables `away`, and log₂ of the cells of each product on the way.

    Args:
        scopes: the variables of each factor.
        away: what is to be eliminated.
        levels: how many values each variable has.
    """
    near: dict[int, set[int]] = {v: {v} for v in away}
    for scope in scopes:
        for v in away.intersection(scope):
            near[v].update(scope)

    def cells(v: int) -> float:
        return sum(math.log2(levels[u]) for u in near[v])

    size = {v: cells(v) for v in away}
    order, sizes = [], []
    while size:
        # Of equals the one of the lowest number: the order must not depend on that of a set.
        v = min(size, key=lambda u: (size[u], u))
        order.append(v)
        sizes.append(size.pop(v))
        joined = near.pop(v) - {v}
        for u in joined & size.keys():
            near[u] = (near[u] | joined) - {v}
            size[u] = cells(u)
    return order, sizes


def eliminate(factors: list[Factor], order: list[int]) -> tuple[list[Factor], list[tuple[int, Factor]]]:
    """Sum the variables of `order` out: what is left, and of each variable in turn the product it was summed from."""
    left, trail = dict(enumerate(factors)), []
    holders: dict[int, set[int]] = {v: set() for v in order}
    for i, factor in left.items():
        for v in holders.keys() & set(factor.variables):
            holders[v].add(i)
    for v in order:
        joined = product([left.pop(i) for i in sorted(holders.pop(v))])
        trail.append((v, joined))
        axis = joined.variables.index(v)
        summed = Factor(joined.variables[:axis] + joined.variables[axis + 1 :], joined.log.logsumexp(axis + 1))
        number = len(factors) + len(trail)
        left[number] = summed
        for u in holders.keys() & set(summed.variables):
            holders[u] = {i for i in holders[u] if i in left} | {number}
    return list(left.values()), trail


def product(factors: list[Factor]) -> Factor:
    """The product of some factors, over the variables of all of them."""
    variables = tuple(sorted(set().union(*(factor.variables for factor in factors))))
    total: Tensor | float = 0.0
    for own, log in factors:
        sizes = iter(log.shape[1:])
        total = total + log.reshape(len(log), *(next(sizes) if v in own else 1 for v in variables))
    assert isinstance(total, Tensor)
    return Factor(variables, total)
