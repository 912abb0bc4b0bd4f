"""Exact arithmetic: tables, sums in any order, other batches, threads and instruction sets, and what is refused."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tacit import catalogue
from tacit.coding.blocks import BlockCoder, _centres, _edges, normal
from tacit.coding.exact import Exact, between, exact, exp, running, sigmoid, total
from tacit.coding.masses import masses
from tacit.distributions import (
    Bernoulli,
    Categorical,
    CoupledLogisticMixture,
    DiscretisedLogisticMixture,
    GaussianMixture,
)
from tacit.errors import CapabilityError
from tacit.spaces import Images, Tokens, Video


def test_tables_are_the_functions() -> None:
    x = torch.linspace(-30, 20, 10_001, dtype=torch.float64)
    torch.testing.assert_close(sigmoid(x), x.sigmoid(), rtol=0, atol=2**-12)
    torch.testing.assert_close(exp(x), x.exp(), rtol=2**-10, atol=0)
    torch.testing.assert_close(between("sigmoid", x), x.sigmoid(), rtol=0, atol=2**-22)
    torch.testing.assert_close(between("exp", x), x.exp(), rtol=2**-22, atol=0)
    at = torch.arange(-20 * 1024, 20 * 1024) / 1024
    # Where the table has an entry it is rounded correctly, which libraries only nearly are.
    torch.testing.assert_close(exp(at), at.double().exp(), rtol=3e-16, atol=0)
    z = torch.linspace(-7.9, 7.9, 4001, dtype=torch.float64)
    torch.testing.assert_close(normal(z), torch.special.ndtr(z), rtol=0, atol=1e-6)
    torch.testing.assert_close(_centres(), torch.special.ndtri((torch.arange(1024).double() + 0.5) / 1024))
    torch.testing.assert_close(_edges()[1:-1], torch.special.ndtri(torch.arange(1, 1024).double() / 1024))


def test_sums_of_products_are_those_of_fractions_in_any_order() -> None:
    a, b = torch.randn(3, 200, dtype=torch.float64) * 30, torch.randn(200, 2, dtype=torch.float64)
    order = torch.randperm(200)
    with Exact():
        found, other = a @ b, a[:, order] @ b[order]
    assert torch.equal(found, other)
    on_grid = [[[Fraction(round(v * 2**16), 2**16) for v in row] for row in m.tolist()] for m in (a, b.T)]
    for i, row in enumerate(on_grid[0]):
        for j, column in enumerate(on_grid[1]):
            assert Fraction(found[i, j].item()) == sum(u * v for u, v in zip(row, column, strict=True))
    assert not torch.equal(a @ b, a[:, order] @ b[order]), "floating-point sums agree here: the test shows nothing"


OPERATIONS = {
    "addcdiv": lambda a, b: torch.addcdiv(a, b, b.abs() + 1, value=0.5),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=-2),
    "attention": lambda a, b: F.scaled_dot_product_attention(a[None], b[None], a[None]),
    "attention, causal": lambda a, b: F.scaled_dot_product_attention(a[None], b[None], a[None], is_causal=True),
    "baddbmm": lambda a, b: torch.baddbmm(a, a, b.transpose(1, 2) @ b),
    "convolution": lambda a, b: F.conv2d(a[None], b[:, :, :3, None].transpose(0, 1)[:, :2], stride=2, padding=1),
    "convolution of many channels": lambda a, b: F.conv2d(
        a.view(1, 10, 2, 4), b.view(4, 10, 1, 2), padding=1, dilation=2
    ),
    "convolution of sequences": lambda a, b: F.conv1d(a, b[:, :, :3], dilation=2),
    "elu": lambda a, b: F.elu(a, 1.5),
    "expm1": lambda a, b: torch.expm1(a),
    "gelu": lambda a, b: F.gelu(a, approximate="tanh"),
    "glu": lambda a, b: F.glu(a),
    "layer norm": lambda a, b: F.layer_norm(a, a.shape[-1:], b[0, 0], b[0, 1]),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "mean": lambda a, b: a.mean((0, 2)),
    "power": lambda a, b: a**2 + a.abs() ** 0.5 + a**3,
    "rsqrt": lambda a, b: torch.rsqrt(a.abs() + 1),
    "rsub": lambda a, b: torch.rsub(a, b, alpha=2),
    "silu": lambda a, b: F.silu(a),
    "softmax": lambda a, b: a.softmax(1),
    "sub": lambda a, b: torch.sub(a, b, alpha=3),
    "sum": lambda a, b: a.sum(1, keepdim=True),
    "tanh, in place": lambda a, b: (a + b).tanh_(),
    "transposed convolution": lambda a, b: F.conv_transpose2d(a[None], b[:, :, :3, None], stride=2),
    "weight norm": lambda a, b: torch._weight_norm(a, b[:, :1, :1], 0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_nearly_torchs(name: str) -> None:
    a, b = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad(), Exact():
        found = OPERATIONS[name](a, b)
    torch.testing.assert_close(found, OPERATIONS[name](a, b), rtol=1e-3, atol=1e-3)


def test_numbers_too_large_are_refused_by_name() -> None:
    large = torch.full((4, 100), 1e4, dtype=torch.float64)
    with pytest.raises(CapabilityError, match="sums of 100 products"), Exact():
        large @ large.T
    with pytest.raises(CapabilityError, match="too large"):
        total(large * 1e6, [1])


def test_an_operation_without_an_exact_form_is_refused_with_the_models_name() -> None:
    model = exact(catalogue.load("char-rnn")(Tokens(5, 4), features=8, embedding=4))
    message = "char-rnn cannot be made exact: no exact form of cos is known"
    with pytest.raises(CapabilityError, match=message), running(model):
        torch.cos(torch.ones(2))
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "head",
    [
        Bernoulli(),
        Categorical(7),
        DiscretisedLogisticMixture(16, 1),
        DiscretisedLogisticMixture(23, 2),
        DiscretisedLogisticMixture(256, 3),
        CoupledLogisticMixture(6, 3, 1),
        CoupledLogisticMixture(6, 3, 4),
    ],
    ids=str,
)
def test_masses_are_the_heads(head) -> None:
    parameters = torch.randn(5, head.parameters)
    channels = getattr(head, "channels", 1)
    levels = 2 if isinstance(head, Bernoulli) else head.levels
    x = torch.randint(0, levels, (5, channels))
    log_prob = torch.zeros(5, dtype=torch.float64)
    for c in range(channels):
        found = masses(head, parameters, x[:, :c])
        first = x[:, c] // found.base
        digits = [(first, found.first)]
        if found.second is not None:
            digits.append((x[:, c] % found.base, found.second(first)))
        for digit, weights in digits:
            assert len(weights) == 5 and (weights >= 0).all()
            log_prob += (weights / weights.sum(1, keepdim=True)).gather(1, digit[:, None])[:, 0].log()
        assert len(found.first[0]) == -(-levels // found.base)
    expected = head.log_prob(parameters, x if channels > 1 else x[:, 0])
    torch.testing.assert_close(log_prob.float(), expected, rtol=1e-3, atol=1e-4)


def test_a_level_far_from_all_logistics_can_be_coded() -> None:
    found = masses(DiscretisedLogisticMixture(256, 1), torch.tensor([[-1.0, -7.0]]), torch.zeros(1, 0))
    assert found.second is not None
    for first in range(16):
        assert found.second(torch.tensor([first])).sum() > 0


def test_real_numbers_and_what_is_none_are_refused() -> None:
    with pytest.raises(CapabilityError, match="real numbers"):
        masses(GaussianMixture(1), torch.zeros(2, 2), torch.zeros(2, 0))
    with pytest.raises(CapabilityError, match="not a number"):
        masses(Categorical(2), torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 0))


_GREY_AND_COLOUR = [Images(1, 5, 6, 2), Images(1, 5, 6, 16), Images(3, 4, 5, 16)]
_PIXELWISE = [
    (name, space)
    for name in ("pixelcnn", "gated-pixelcnn", "pixelcnn++", "pixelsnail", "pixel-rnn")
    for space in _GREY_AND_COLOUR
]


@pytest.mark.parametrize(("name", "space"), [*_PIXELWISE, ("video-pixel-network", Video(3, 2, 4, 5, 8))], ids=str)
@pytest.mark.parametrize("classes", [None, 3])
def test_one_pass_over_known_images_says_what_pixel_after_pixel_says(name, classes, space) -> None:
    model = catalogue.load(name)(space, classes=classes)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model, count, told = exact(model), 18, list[torch.Tensor]()
    x = torch.randint(0, space.levels, (count, *space.shape), dtype=space.torch_dtype)
    label = None if classes is None else torch.arange(count) % classes
    with running(model):
        sites = model.sites(x)

        def choose(head, parameters, t):
            told.append(parameters.clone())
            return sites[:, t]

        model.visit(count, choose, label)
        known = torch.cat(list(model.parameters_of(x, label)))
    assert torch.equal(known, torch.stack(told))


def codes_of_small_models() -> str:
    """A hash of what small models of each kind of layer make of some rows."""
    found = hashlib.sha256()
    for name, space, arguments in (
        ("gated-pixelcnn", Images(1, 6, 7), {"features": 12, "layers": 2}),
        ("pixelcnn++", Images(3, 4, 4), {"features": 8, "resolutions": 2}),
        ("gpt", Tokens(20, 12), {"features": 24, "layers": 2, "heads": 2}),
        ("char-rnn", Tokens(20, 12), {"features": 24, "embedding": 8}),
        ("vae", Images(1, 8, 8), {"network": "conv", "channels": (4, 8), "hidden": (16,), "latent": 4}),
    ):
        model = catalogue.load(name)(space, **arguments)
        for p in model.parameters():
            # Whole numbers: random ones are not the same on every processor.
            numbers = torch.arange(p.numel()) * 7919 % 255 - 127
            p.data = (numbers / 1024).view_as(p)
        count = 9 * space.dimensions
        x = (torch.arange(count) * 104729 % space.levels).view(9, *space.shape).to(space.torch_dtype)
        coder = BlockCoder(model)
        block = coder.encode(x).payload
        assert torch.equal(coder.decode(block, len(x), x[0].numel()), x)
        found.update(block)
    return found.hexdigest()


# Of an x86-64 processor with AVX-512 and torch 2.13. If they change, archives of before cannot be decoded any more.
_CODES = "617069e952af13ba11041dc2d00f81eaf147cddefaab8abb5d0507c1d828e46b"


@pytest.mark.slow
def test_an_older_processor_and_other_threads_give_the_same_bytes() -> None:
    older = {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OMP_NUM_THREADS": "2",
    }
    script = "import test_exact; print(test_exact.codes_of_small_models())"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | older | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == codes_of_small_models() == _CODES
