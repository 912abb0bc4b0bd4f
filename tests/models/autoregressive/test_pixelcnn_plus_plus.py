"""PixelCNN++: shifted convolutions against their masks, the strided caches, odd sizes, whole pixels as sites."""

import time

import pytest
import torch

from tacit import catalogue
from tacit.data import Dataset
from tacit.distributions import Bernoulli, CoupledLogisticMixture, DiscretisedLogisticMixture
from tacit.errors import TacitError
from tacit.nn.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedUpsample2d,
    DownShiftedConv2d,
    DownShiftedUpsample2d,
    concat_elu,
)
from tacit.spaces import Images

# Of the contract's tests.
SMALL = {"features": 8, "resolutions": 2, "components": 2}

PixelCNNPlusPlus = catalogue.load("pixelcnn++")


def random_model(space, std=0.3, **arguments):
    torch.manual_seed(0)
    model = PixelCNNPlusPlus(space, **{"features": 4, "components": 2, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


def sees(layer, height, width):
    """Which input places each output place depends on: (outputs' rows, columns, inputs' rows, columns)."""
    x = torch.randn(1, layer.in_channels, height, width, requires_grad=True)
    out = layer(x)
    found = []
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            gradient = torch.autograd.grad(out[0, :, i, j].sum(), x, retain_graph=True)[0]
            found.append((gradient[0] != 0).any(0))
    return torch.stack(found).unflatten(0, out.shape[2:])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 3)])
def test_shifted_convolutions_see_what_their_names_say(strict, stride, size):
    torch.manual_seed(0)
    rows, columns = (torch.arange(n) for n in size)
    for layer, right in (
        (DownShiftedConv2d(2, 3, (2, 3), stride=stride, strict=strict), 1),
        (DownRightShiftedConv2d(2, 3, (2, 2), stride=stride, strict=strict), 0),
    ):
        found = sees(layer, *size)
        assert found.shape == (-(-size[0] // stride), -(-size[1] // stride), *size)
        for i, j in torch.cartesian_prod(torch.arange(found.shape[0]), torch.arange(found.shape[1])).tolist():
            row, column = i * stride - (strict and right), j * stride - (strict and not right)
            near = (rows <= row) & (rows >= row - 1)
            side = (columns <= column + right) & (columns >= column - 1)
            assert torch.equal(found[i, j], near[:, None] & side[None, :])


@pytest.mark.parametrize("layer", [DownShiftedUpsample2d(2, 3), DownRightShiftedUpsample2d(2, 3)])
def test_upsampling_feeds_no_pixel_before_its_own(layer):
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    out = layer(x, (5, 7))
    assert out.shape == (1, 3, 5, 7)
    down = isinstance(layer, DownShiftedUpsample2d)
    for i, j in torch.cartesian_prod(torch.arange(5), torch.arange(7)).tolist():
        gradient = torch.autograd.grad(out[0, :, i, j].sum(), x, retain_graph=True)[0]
        expected = torch.zeros(3, 4, dtype=torch.bool)
        # Column j of twice the size belongs to the middle of j // 2, and an odd one borders on the next, too.
        expected[i // 2, j // 2 : j // 2 + 1 + (down and j % 2)] = True
        assert torch.equal((gradient[0] != 0).any(0), expected)


def test_concat_elu():
    x = torch.linspace(-2, 2, 12).view(1, 3, 2, 2)
    found = concat_elu(x)
    expected = torch.where(x > 0, x, x.exp() - 1), torch.where(x < 0, -x, (-x).exp() - 1)
    torch.testing.assert_close(found, torch.cat(expected, 1))


def test_the_head_is_that_of_the_space():
    def head(*space):
        return PixelCNNPlusPlus(Images(*space), features=4, components=3).head

    assert isinstance(head(1, 4, 4, 2), Bernoulli)
    assert head(1, 4, 4, 256) == DiscretisedLogisticMixture(256, 3)
    assert head(4, 4, 4, 2) == CoupledLogisticMixture(2, 4, 3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (3, 6, 1), (1, 13, 11), (4, 3, 5)])
@pytest.mark.parametrize("resolutions", [1, 2, 4])
def test_any_size_works_and_the_caches_agree(shape, resolutions):
    """One row, one column, sizes that no stride divides, more resolutions than there are pixels."""
    model = random_model(Images(*shape, 5), resolutions=resolutions, features=3)
    x = model.sample(2)
    sites = x.flatten(1)[:, model.order]
    state, before, steps = model.init_state(2, None), None, []
    with torch.no_grad():
        for t in range(len(model.order)):
            parameters, state = model.step(state, before)
            steps.append(parameters)
            before = sites[:, t]
        full = model.conditionals(x, None).flatten(2)
    torch.testing.assert_close(torch.stack(steps, 2), full, rtol=1e-5, atol=1e-5)


def test_no_blind_spot_within_reach():
    """Also to the upper right; further away than the finest resolution reaches, whole coarse pixels are seen."""
    space = Images(1, 20, 20, 256)
    model = random_model(space, std=0.2, resolutions=3, blocks=1)
    x = torch.randint(0, 256, (1, *space.shape)).float()
    entries = x.clone().requires_grad_()
    for row, column in ((19, 19), (19, 0), (10, 7)):
        gradient = torch.autograd.grad(model.conditionals(entries, None)[0, :, 0, row, column].sum(), entries)[0]
        before = torch.arange(400).view(20, 20) < row * 20 + column
        assert (gradient[0, 0][~before] == 0).all()
        rows, columns = (torch.arange(20) - place for place in (row, column))
        near = (rows.abs() <= 6)[:, None] & (columns.abs() <= 6)
        assert (gradient[0, 0][before & near] != 0).all()
        assert (gradient[0, 0][: max(row - 7, 0)] != 0).all()


def test_dropout_is_inside_the_blocks_and_only_while_training():
    torch.manual_seed(0)
    model = PixelCNNPlusPlus(Images(1, 6, 6, 4), features=4, dropout=0.5)
    x = torch.randint(0, 4, (3, 1, 6, 6), dtype=torch.uint8)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model._log_prob(x, None), model._log_prob(x, None))
        model.eval()
        assert torch.equal(model.log_prob(x), model.log_prob(x))


def test_it_starts_at_the_marginal():
    torch.manual_seed(0)
    x = (torch.randn(300, 1, 6, 6) * 20 + torch.tensor([80.0, 120, 170])[:, None, None]).clamp(0, 255).to(torch.uint8)
    data = Dataset(Images(3, 6, 6), x)
    model = PixelCNNPlusPlus(data.space, features=8)
    model.adapt(data)
    with torch.no_grad():
        model.output.weight.zero_()
        bits = -model.log_prob(x).mean() / (3 * 36 * 0.6931)
    assert bits < 6.37  # log2(20 √(2πe)), of each colour as a Gaussian by itself; together they are brighter or darker


@pytest.mark.slow
def test_caches_are_quicker_than_passes():
    model = random_model(Images(1, 28, 28, 2), std=0.05, features=16)
    x = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    start = time.perf_counter()
    model.sample(4)
    cached, start = time.perf_counter() - start, time.perf_counter()
    with torch.no_grad():
        for _ in range(10):
            model.conditionals(x, None)
    assert cached < (time.perf_counter() - start) / 10 * 784 / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features is 0: give at least 1"),
        ({"blocks": 0}, "blocks is 0"),
        ({"resolutions": 0}, "resolutions is 0"),
        ({"components": 0}, "components is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0: give a probability in \[0, 1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(TacitError, match=message):
        PixelCNNPlusPlus(Images(1, 4, 4, 2), **arguments)
