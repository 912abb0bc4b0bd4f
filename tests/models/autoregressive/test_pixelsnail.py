"""PixelSNAIL: attention that reaches where convolutions are blind, a first pixel with nothing to attend to, caches."""

import time

import pytest
import torch

from tacit import catalogue
from tacit.distributions import Bernoulli, CoupledLogisticMixture, DiscretisedLogisticMixture
from tacit.errors import TacitError
from tacit.models.autoregressive.pixelsnail import Attention, Layer
from tacit.spaces import Images

# Of the contract's tests.
SMALL = {"features": 8, "layers": 2, "blocks": 1, "keys": 8, "components": 2}

PixelSNAIL = catalogue.load("pixelsnail")


def random_model(space, std=0.3, **arguments):
    torch.manual_seed(0)
    model = PixelSNAIL(space, **{"features": 4, "layers": 1, "blocks": 1, "keys": 3, "components": 2, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


def test_attention_is_that_of_the_formula():
    """A double loop over pixels: softmax over the nought and all strictly before, values of zero for the nought."""
    torch.manual_seed(0)
    attention = Attention(5, 2, 3, 0.0)
    h, x, places = torch.randn(2, 5, 3, 4), torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    with torch.no_grad():
        found = Layer([], attention)(h, x, places, None)
        query = attention.queries(h, places).flatten(2)
        key, value = (each.flatten(2) for each in attention.memory(h, x, places))
        seen = torch.zeros(2, 3, 12)
        for row in range(2):
            for i in range(12):
                logits = [0.0] + [float(query[row, :, i] @ key[row, :, j]) / 3**0.5 for j in range(i)]
                for j, weight in enumerate(torch.tensor(logits).softmax(0)[1:]):
                    seen[row, :, i] += weight * value[row, :, j]
        torch.testing.assert_close(found, attention.merge(h, seen.view(2, 3, 3, 4)), rtol=1e-4, atol=1e-5)


def test_one_layer_sees_all_that_came_before_however_far():
    """Where one block of 2 × 2 convolutions sees a few pixels to the upper left, attention sees every other too."""
    space = Images(1, 12, 12, 256)
    model = random_model(space)
    entries = torch.randint(0, 256, (1, *space.shape)).float().requires_grad_()
    for row, column in ((11, 11), (11, 0), (4, 6)):
        gradient = torch.autograd.grad(model.conditionals(entries, None)[0, :, 0, row, column].sum(), entries)[0]
        before = torch.arange(144).view(12, 12) < row * 12 + column
        assert (gradient[0, 0][~before] == 0).all()
        assert (gradient[0, 0][before] != 0).all()


def test_the_first_pixel_is_finite_and_depends_on_nothing():
    model = random_model(Images(3, 4, 4, 256))
    x = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        first = model.conditionals(x, None)[:, :, 0, 0]
    assert first.isfinite().all()
    torch.testing.assert_close(first, first[:1].expand(50, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 6), (3, 6, 1), (4, 3, 5)])
def test_any_size_works_and_the_caches_agree(shape):
    model = random_model(Images(*shape, 5), layers=2)
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


def test_the_head_is_that_of_the_space():
    def head(*space):
        return PixelSNAIL(Images(*space), features=4, components=3).head

    assert isinstance(head(1, 4, 4, 2), Bernoulli)
    assert head(1, 4, 4, 256) == DiscretisedLogisticMixture(256, 3)
    assert head(4, 4, 4, 2) == CoupledLogisticMixture(2, 4, 3)


@pytest.mark.slow
def test_caches_are_quicker_than_passes():
    model = random_model(Images(1, 28, 28, 2), std=0.05, features=16, layers=2)
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
        ({"layers": 0}, "layers is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"keys": 0}, "keys is 0"),
        ({"components": 0}, "components is 0"),
        ({"dropout": -0.1}, r"dropout is -0.1: give a probability in \[0, 1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(TacitError, match=message):
        PixelSNAIL(Images(1, 4, 4, 2), **arguments)
