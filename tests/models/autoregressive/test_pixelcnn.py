"""PixelCNN's blind spot, which Gated PixelCNN has not, and masks by colour."""

import pytest
import torch

from tacit.errors import TacitError
from tacit.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from tacit.models.autoregressive.pixelcnn import PixelCNN
from tacit.spaces import Images

# Of the contract's tests.
SMALL = {"features": 8, "layers": 3}


def seen(cls, layers, side=9):
    """Which pixels the logit of the middle one of the fourth row from below has a gradient to, (side, side)."""
    torch.manual_seed(0)
    model = cls(Images(1, side, side, 2), features=8, layers=layers, first=3, kernel=3)
    x = torch.rand(64, 1, side, side, requires_grad=True)
    logit = model.conditionals(x, None)[:, 0, 0, side - 4, side // 2]
    return torch.autograd.grad(logit.sum(), x)[0][:, 0].abs().sum(0) > 0


def before(side=9):
    pixels = torch.arange(side * side).view(side, side)
    return pixels < (side - 4) * side + side // 2


def test_the_blind_spot_is_what_lies_further_to_the_right_than_above():
    above = (9 - 4 - torch.arange(9))[:, None]
    right = (torch.arange(9) - 4)[None]
    found = seen(PixelCNN, layers=8)
    assert torch.equal(found, before() & (right <= above))
    assert (before() & ~found).sum() == 3 + 2 + 1, "of four columns to the right, one fewer for every row above"


def test_the_gates_have_none():
    assert torch.equal(seen(GatedPixelCNN, layers=8), before())


def test_few_layers_reach_no_further_than_their_kernels():
    rows, columns = seen(GatedPixelCNN, layers=2).nonzero().unbind(1)
    assert int(rows.min()) == 9 - 4 - 3 and int(columns.min()) >= 4 - 3


@pytest.mark.parametrize("cls", [PixelCNN, GatedPixelCNN])
def test_clear_errors(cls):
    with pytest.raises(TacitError, match="kernel is 4: give an odd number"):
        cls(Images(1, 4, 4), kernel=4)
    with pytest.raises(TacitError, match="layers is 0: give at least 1"):
        cls(Images(1, 4, 4), layers=0)
    with pytest.raises(TacitError, match="classes is 0"):
        cls(Images(1, 4, 4), classes=0)
    with pytest.raises(TacitError, match=r"label_dropout is 1\.0"):
        cls(Images(1, 4, 4), classes=2, label_dropout=1.0)
