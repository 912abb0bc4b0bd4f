"""The best tree of all: the spanning tree of the greatest mutual information between pairs of columns.

References
----------
Chow & Liu (1968), Approximating discrete probability distributions with dependence trees. IEEE Transactions on
    Information Theory 14(3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest number of elements of one temporary tensor.
_BLOCK = 2**23


def mutual_information(cells: Tensor, levels: int) -> Tensor:
    """Mutual information of every two columns of `cells` (rows, D), in nats: (D, D), float64.

    All pairs of values are counted by products of indicator matrices; level 0, often the ground of a picture, is left
    out of them and follows from the others.
    """
    rows, nodes = cells.shape
    value = torch.arange(1, levels, dtype=cells.dtype, device=cells.device)
    single = torch.stack([cells.eq(level).sum(0, dtype=torch.float64) for level in range(levels)], 1)
    entropy = math.log(rows) - torch.xlogy(single, single).sum(1) / rows
    found = []
    for block in torch.arange(nodes, device=cells.device).split(max(1, _BLOCK // (nodes * levels**2))):
        pairs = single.new_zeros(len(block) * (levels - 1), nodes * (levels - 1))
        for part in cells.split(max(1, 4 * _BLOCK // (nodes * levels))):
            seen = (part[:, :, None] == value).float()
            pairs += seen[:, block].flatten(1).T @ seen.flatten(1)
        n = pairs.view(len(block), levels - 1, nodes, levels - 1)
        n = torch.cat((single[:, 1:] - n.sum(1, keepdim=True), n), 1)
        n = torch.cat((single[block][:, :, None, None] - n.sum(3, keepdim=True), n), 3)
        joint = math.log(rows) - torch.xlogy(n, n).sum((1, 3)) / rows
        found.append(entropy[block][:, None] + entropy - joint)
    return torch.cat(found)


def spanning_tree(weight: Tensor) -> Tensor:
    """The parent of each node, (nodes,), in the spanning tree of greatest total weight (Prim), rooted at node 0: −1."""
    parent = torch.full((len(weight),), -1, device=weight.device)
    best, via = weight[0].clone(), torch.zeros_like(parent)
    reached = torch.zeros_like(parent, dtype=torch.bool)
    node = 0
    for _ in range(len(weight) - 1):
        reached[node] = True
        node = int(best.masked_fill(reached, -math.inf).argmax())
        parent[node] = via[node]
        closer = (weight[node] > best) & ~reached
        best, via = torch.where(closer, weight[node], best), torch.where(closer, node, via)
    return parent
