"""TCN's own oracles: its reach, a loop over its equations, and dropout of whole feature maps."""

from __future__ import annotations

import pytest
import torch
from test_wavenet import depends_on, random_model

from tacit.errors import TacitError
from tacit.models.autoregressive.tcn import TCN
from tacit.nn.causal1d import CausalConv1d
from tacit.spaces import Tokens

# Of the contract's tests.
SMALL = {"features": 12, "layers": 4}


@pytest.mark.parametrize(("layers", "kernel"), [(1, 2), (3, 2), (2, 4)])
def test_its_reach_is_that_of_its_dilations(layers, kernel):
    model = random_model(Tokens(7, 40), TCN, features=16, layers=layers, kernel=kernel)
    reach = 1 + 2 * (kernel - 1) * (2**layers - 1)
    assert model.receptive_field == reach
    expected = torch.zeros(40, dtype=torch.bool)
    expected[39 - reach : 39] = True
    # A change may be lost behind units that are off: of several sequences, one shows it.
    found = torch.stack([depends_on(model, 40) for _ in range(8)]).any(0)
    assert torch.equal(found, expected)


def test_the_papers_network_by_a_loop_over_its_equations():
    model = random_model(Tokens(5, 9), TCN, features=4, layers=2, kernel=3, classes=2).double()
    x, label = torch.randint(0, 5, (1, 9)), torch.tensor([1])

    def convolved(conv: CausalConv1d, h: list[torch.Tensor]) -> list[torch.Tensor]:
        # Weight normalisation: w = g v / |v|, g and v as torch keeps them.
        g, v = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
        weight, d = g * v / v.flatten(1).norm(dim=1)[:, None, None], conv.dilation[0]
        return [
            conv.bias + sum(weight[:, :, 2 - j] @ h[t - j * d] for j in range(3) if t >= j * d) for t in range(len(h))
        ]

    with torch.no_grad():
        h = [model.symbol.weight[s] + model.label.weight[1] for s in (5, *x[0, :-1])]
        for block in model.blocks:
            y = [v.relu() for v in convolved(block.convs[0], h)]
            y = [v.relu() for v in convolved(block.convs[1], y)]
            h = [(a + b).relu() for a, b in zip(h, y, strict=True)]
        expected = torch.stack([model.output[0].weight[:, :, 0] @ v + model.output[0].bias for v in h], 1)
        torch.testing.assert_close(model.readout(model.hidden(x, label))[0], expected)


def test_dropout_takes_whole_feature_maps_and_only_while_learning():
    model = random_model(Tokens(5, 30), TCN, features=16, layers=1, dropout=0.5)
    h = torch.randn(40, 16, 30)
    block = model.blocks[0]
    with torch.no_grad():
        plain = block(h)
        assert torch.equal(plain, block(h))
        added = block.train()(h)
    # Where a map of the second convolution is dropped, the block adds nothing to it.
    dropped = (added == h.relu()).all(2)
    assert 0.4 < dropped.float().mean() < 0.8


def test_clear_errors():
    for wrong in ("features", "layers", "kernel"):
        with pytest.raises(TacitError, match=f"{wrong} is 0: give at least 1"):
            TCN(Tokens(5, 4), **{wrong: 0})
    with pytest.raises(TacitError, match=r"dropout is 1\.0: give a probability"):
        TCN(Tokens(5, 4), dropout=1.0)
