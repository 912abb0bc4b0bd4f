"""PixelRNN: its packed diagonals against one LSTM cell a pixel, and what exactly each of its two kinds sees."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tacit.errors import TacitError
from tacit.models.autoregressive._lstm2d import Scan, Walk, tanh_
from tacit.models.autoregressive.pixel_rnn import PixelRNN
from tacit.spaces import Images

# Of the contract's tests.
SMALL = {"features": 8, "first": 3}

KINDS = ("diagonal", "row")
SIZES = ((4, 5), (5, 4), (1, 3), (3, 1), (1, 1))


def pixel_by_pixel(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> Tensor:
    """§3.1 and §3.2 as they are written: (height, width, batch, inputs) -> (height, width, batch, h)."""
    height, width, batch, _ = x.shape
    zero = x.new_zeros(batch, weight.shape[2] // 4)
    out = [[zero for _ in range(width)] for _ in range(height)]
    for direction in range(len(weight)):
        h: dict[tuple[int, int], Tensor] = {}
        c: dict[tuple[int, int], Tensor] = {}
        columns = range(width) if direction == 0 else reversed(range(width))
        for row, column in itertools.product(range(height), tuple(columns)):
            if kind == "row":
                neighbours = [(row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]
            else:
                neighbours = [(row - 1, column), (row, column - 1 if direction == 0 else column + 1)]
            told = torch.cat([*(h.get(place, zero) for place in neighbours), x[row, column]], 1)
            o, f, i, g = (told @ weight[direction] + bias[direction]).chunk(4, 1)
            before = c.get(neighbours[1], zero)
            c[row, column] = f.sigmoid() * before + i.sigmoid() * g.tanh()
            h[row, column] = o.sigmoid() * c[row, column].tanh()
            lands = row + direction  # what comes from the right is moved down
            if lands < height:
                out[lands][column] = out[lands][column] + h[row, column]
    return torch.stack([torch.stack(row) for row in out])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_scan_is_an_lstm_cell_a_pixel(kind, size):
    torch.manual_seed(0)
    walk, h, inputs = Walk(*size, kind), 3, 5
    x = torch.randn(*size, 2, inputs, dtype=torch.double, requires_grad=True)
    weight = torch.randn(walk.directions, walk.taps * h + inputs, 4 * h, dtype=torch.double, requires_grad=True)
    bias = torch.randn(walk.directions, 1, 4 * h, dtype=torch.double, requires_grad=True)
    fast = Scan.apply(x.flatten(0, 1), weight, bias, walk).view(*size, 2, h)
    slow = pixel_by_pixel(x, weight, bias, kind)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    toward = torch.randn_like(slow)
    gradients = (torch.autograd.grad(y, (x, weight, bias), toward) for y in (fast, slow))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_unskewing_undoes_skewing(kind, size):
    walk = Walk(*size, kind)
    x = torch.randn(size[0] * size[1], 2, 3)
    both = walk.unskew(walk.skew(x))
    assert torch.equal(both, x.expand_as(both)) and len(both) == (1 if kind == "row" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_spread_is_the_transpose_of_merge(kind):
    walk = Walk(4, 5, kind)
    visits, pixels = torch.randn(len(walk.path), 2, 3).double(), torch.randn(20, 2, 3).double()
    torch.testing.assert_close((walk.merge(visits) * pixels).sum(), (visits * walk.spread(pixels)).sum())


def test_tanh():
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(tanh_(x.clone()), x.tanh(), rtol=0, atol=2e-7)


def seen(model: PixelRNN) -> Tensor:
    """Which entry's parameters depend on which entries, (entries, entries) bool, both laid flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    entries = torch.randint(0, model.space.levels, (6, *model.space.shape)).float().requires_grad_()
    parameters = model.conditionals(entries, None).abs().sum((0, 1)).flatten()
    return torch.stack(
        [torch.autograd.grad(p, entries, retain_graph=True)[0].abs().sum(0).flatten() > 0 for p in parameters]
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_the_row_lstm_sees_a_triangle(layers):
    """Figure 4, middle: `up` rows above, as many columns to each side, and through each layer's input one to the left.

    Of every feature in this triangle it sees what the first layer's kernel saw.
    """
    height, width, reach = 6, 15, 1
    torch.manual_seed(0)
    model = PixelRNN(Images(1, height, width, 2), kind="row", features=12, layers=layers, first=2 * reach + 1)
    found = seen(model).view(height, width, height, width)
    for row, column in itertools.product(range(height), range(width)):
        expected = torch.zeros(height, width, dtype=torch.bool)
        for up in range(row + 1):
            r = row - up
            for c in range(max(0, column - up - layers), min(width - 1, column + up) + 1):
                expected[max(0, r - reach) : r, max(0, c - reach) : c + reach + 1] = True
                expected[r, max(0, c - reach) : c] = True
        assert torch.equal(found[row, column], expected), (row, column)


@pytest.mark.parametrize(("channels", "layers"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_the_diagonal_bilstm_sees_everything_but_the_end_of_the_row_above(channels, layers):
    height, width, reach = 4, 6, 1
    torch.manual_seed(0)
    space = Images(channels, height, width, 2)
    model = PixelRNN(space, features=12, layers=layers, first=2 * reach + 1)
    found = seen(model)[model.order][:, model.order]
    expected = torch.ones_like(found).tril(-1).view(height, width, channels, height, width, channels)
    for row, column in itertools.product(range(1, height), range(width - 1 - reach)):
        expected[row, column, :, row - 1, -1, -1] = False  # the last pixel's last colour, beyond the kernel's reach
    assert torch.equal(found, expected.view_as(found))


def test_an_unknown_kind_is_refused():
    with pytest.raises(TacitError, match="kind is 'spiral': give 'diagonal' or 'row'"):
        PixelRNN(Images(1, 4, 4, 2), kind="spiral")
