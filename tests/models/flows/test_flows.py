"""What holds for every flow: it inverts, its log-determinant is autograd's, its density is one, nothing overflows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tacit import catalogue
from tacit.data import Dataset
from tacit.errors import SpaceError
from tacit.model import Batch
from tacit.models.flows._flow import Flow
from tacit.spaces import Images, Space, Vectors

# Arguments that keep every model small, and the spaces beyond vectors on which it is looked at.
SMALL: dict[str, dict[str, Any]] = {
    "cdf-flow": {"components": 3},
    "ffjord": {"hidden": (16,)},
    "flow++": {"width": 8, "blocks": 1, "couplings": (2, 1, 1), "components": 2},
    "flow-matching": {"width": 16, "blocks": 1},
    "glow": {"depth": 2, "width": 8, "scales": 2},
    "iaf": {"hidden": (16,), "layers": 2},
    "maf": {"hidden": (16,), "layers": 2},
    "neural-spline-flow": {"hidden": (16,), "layers": 3, "channels": 8, "blocks": 1},
    "nice": {"hidden": (16,)},
    "realnvp": {"hidden": (16,), "couplings": 4, "channels": 8, "blocks": 1},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maf-mixture": ("maf", {"entry": "mixture", "components": 3}),
    "maf-spline": ("maf", {"entry": "spline"}),
    "neural-spline-flow-autoregressive": ("neural-spline-flow", {"kind": "autoregressive"}),
    "nice-normal": ("nice", {"base": "normal"}),
    "flow++-uniform": ("flow++", {"dequantisation": "uniform"}),
    "cdf-flow-logistic": ("cdf-flow", {"kind": "logistic"}),
}
NAMES = [*SMALL, *VARIANTS]
CONTINUOUS = ("ffjord", "flow-matching")
SPACES = {
    "Vectors(2)": Vectors(2),
    "Vectors(7)": Vectors(7),
    "Images(1, 4, 4, 17)": Images(1, 4, 4, 17),
    "Images(3, 4, 6, 256)": Images(3, 4, 6),
    "Images(1, 3, 5, 2)": Images(1, 3, 5, 2),
}


def _data(space: Space, rows: int = 40) -> Tensor:
    if isinstance(space, Images):
        return torch.randint(0, space.levels or 2, (rows, *space.shape), dtype=torch.uint8)
    return 10 * torch.randn(rows, *space.shape) + 3


def _model(name: str, space: Space, **arguments: object) -> Flow:
    """A model that does something: begun near the identity it would invert by chance."""
    torch.manual_seed(0)
    base, variant = VARIANTS.get(name, (name, {}))
    model = catalogue.load(base)(space, **{**SMALL[base], **variant, **arguments})
    assert isinstance(model, Flow)
    label = torch.arange(40) % (model.classes or 1)
    model.adapt(Dataset(space, _data(space), label))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _cases(*kinds: type[Space], names: list[str] = NAMES, u_nets: bool = True) -> Any:
    def found() -> Iterator[Any]:
        for name in names:
            entry = catalogue.entry(VARIANTS.get(name, (name, {}))[0])
            for shown, space in SPACES.items():
                if not isinstance(space, kinds or (Vectors, Images)) or space.kind not in entry.spaces:
                    continue
                if isinstance(space, Images) and (space.height % 2 and entry.name in ("glow", "flow++")):
                    continue
                if isinstance(space, Images) and name == "neural-spline-flow-autoregressive":
                    continue
                # An equation takes its time, and the more so with a U-net in it.
                if name in CONTINUOUS and space.dimensions > (15 if name == "flow-matching" else 16):
                    continue
                if name == "flow-matching" and isinstance(space, Images) and not u_nets:
                    continue
                yield pytest.param(name, space, id=f"{name}-{shown}")

    return pytest.mark.parametrize(("name", "space"), list(found()))


@_cases(u_nets=False)
def test_inverts_in_double_and_in_single_precision(name: str, space: Space) -> None:
    # What solves an equation inverts to its solver's tolerance, which single precision cannot carry as far.
    solved = name in CONTINUOUS
    x = torch.randn(9, *space.shape, dtype=torch.float64)
    with torch.no_grad():
        flow = _model(name, space, **({"tolerance": 1e-8} if solved else {})).flow.double()
        assert (flow.inverse(flow(x)) - x).abs().max() < (1e-6 if solved else 1e-8)
        x = x.float()
        flow = _model(name, space).flow
        assert (flow.inverse(flow(x)) - x).abs().max() < (5e-3 if solved else 1e-4)


@_cases(u_nets=False)
def test_log_det_is_that_of_the_jacobian(name: str, space: Space) -> None:
    solved = name in CONTINUOUS
    model = _model(name, space, **({"tolerance": 1e-7} if solved else {})).double()
    at = 1e-5 if solved else 1e-6
    x = torch.randn(2, *space.shape, dtype=torch.float64)
    z, log_det = model.flow.forward_and_log_det(x)
    _, back = model.flow.inverse_and_log_det(z)
    torch.testing.assert_close(log_det + back, torch.zeros_like(back), rtol=0, atol=at)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: model.flow(r[None])[0], row)
        torch.testing.assert_close(jacobian.reshape(space.dimensions, -1).slogdet().logabsdet, value, rtol=0, atol=at)


@_cases(Images)
def test_an_image_is_what_its_code_decodes_to(name: str, space: Space) -> None:
    model, x = _model(name, space), _data(space)
    z = model.encode(x)
    assert z.shape == (len(x), space.dimensions) and torch.equal(z, model.encode(x))
    y = model.decode(z)
    assert y.dtype == space.torch_dtype and torch.equal(y, x)
    assert model.embed(x).shape == (len(x), model.last) and torch.equal(model.embed(x), z[:, -model.last :])


@_cases(Vectors)
def test_a_cold_sample_is_what_the_middle_of_the_noise_decodes_to(name: str, space: Space) -> None:
    model = _model(name, space)
    cold = model.sample(2, temperature=0.0)
    torch.testing.assert_close(cold, model.decode(torch.zeros(2, space.dimensions)))


def _ring(rows: int = 512) -> Tensor:
    """A ring, in units in which a standard deviation is far from one."""
    angle = 2 * math.pi * torch.rand(rows)
    return torch.stack((20 * angle.cos(), 0.3 * angle.sin()), 1) + torch.randn(rows, 2) * torch.tensor([2.0, 0.03])


def _learn(model: Flow, x: Tensor, steps: int) -> None:
    model.adapt(Dataset(model.space, x))
    optimiser = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(Batch(x, torch.arange(len(x)))).total.backward()
        optimiser.step()
    model.eval()


PLANAR = [name for name in NAMES if Vectors in catalogue.load(VARIANTS.get(name, (name, {}))[0]).spaces]


@pytest.mark.parametrize("name", PLANAR)
def test_on_a_ring_the_density_is_one_and_samples_agree_with_it(name: str) -> None:
    torch.manual_seed(0)
    base, variant = VARIANTS.get(name, (name, {}))
    model = catalogue.load(base)(Vectors(2), **{**SMALL[base], **variant})
    ring = _ring()
    _learn(model, ring, 60)
    side = 161 if name in CONTINUOUS else 401  # an equation for every cell takes its time
    a, b = torch.linspace(-140, 140, side), torch.linspace(-2.0, 2.0, side)
    grid = torch.cartesian_prod(a, b)
    with torch.no_grad():
        mass = model.log_prob(grid).exp() * (a[1] - a[0]) * (b[1] - b[0])
    assert mass.sum().item() == pytest.approx(1, abs=1e-2)
    # The grid's cells, drawn by their mass, are another sample of the same law.
    cells = grid[torch.multinomial(mass, 2000, replacement=True)]
    cells = cells + (torch.rand(2000, 2) - 0.5) * torch.stack((a[1] - a[0], b[1] - b[0]))
    same = _energy_distance(model.sample(2000), cells)
    assert same < 0.02
    assert _energy_distance(cells + torch.tensor([10.0, 0.0]), cells) > 3 * 0.02, "another law would not be told"


def _energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x − y| − E|x − x'| − E|y − y'| in units of the ring's deviations: 0 only if the laws are the same."""
    scale = torch.tensor([14.0, 0.21])
    x, y = x / scale, y / scale
    within = sum(torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y))
    return float(2 * torch.cdist(x, y).mean() - within)


# What a network knows nothing of has no bound in a mixture's tails, nor in an equation's solution.
@_cases(Vectors, names=[name for name in NAMES if name not in CONTINUOUS])
@pytest.mark.parametrize("scale", [4.0, 1e4])
def test_far_from_the_data_everything_is_finite_and_inverted(name: str, space: Space, scale: float) -> None:
    model = _model(name, space)
    _learn(model, _data(space), 20)
    x = (scale * _data(space)).requires_grad_()
    log_prob = model.log_prob(x)
    log_prob.mean().backward()
    assert log_prob.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    back = model.decode(model.encode(x.detach()))
    assert ((back - x).abs() <= 1e-3 * x.abs().max()).all()


@_cases()
def test_nats_in_double_precision_are_the_same(name: str, space: Space) -> None:
    model = _model(name, space)
    _learn(model, _data(space), 10)
    x = _data(space)
    with torch.no_grad():
        torch.manual_seed(1)
        single = model.log_prob(x)
        torch.manual_seed(1)
        y, log_det = model.reals.forward_and_log_det(x)
        z, more = model.double().flow.forward_and_log_det(y.double())
    double = model.base_log_prob(z) + log_det + more
    bits = (single.double() - double).mean().abs() / (space.dimensions * math.log(2))
    assert bits < 1e-4


@_cases()
def test_every_parameter_learns(name: str, space: Space) -> None:
    model = _model(name, space)
    x = _data(space)
    model.train().loss(Batch(x[:10], torch.arange(10))).total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


CONDITIONAL = [name for name in NAMES if "classes" in catalogue.load(VARIANTS.get(name, (name, {}))[0]).arguments()]


@_cases(names=CONDITIONAL)
def test_a_class_changes_density_and_samples(name: str, space: Space) -> None:
    model, x = _model(name, space, classes=3), _data(space)
    if name in CONTINUOUS or isinstance(space, Images):
        torch.manual_seed(1)
    with torch.no_grad():
        each = []
        for y in range(3):
            torch.manual_seed(1)
            each.append(model.log_prob(x, y))
    assert (each[0] != each[1]).any() and (each[1] != each[2]).any()
    z = torch.randn(4, space.dimensions)
    a, b = model.decode(z, 0).float(), model.decode(z, 1).float()
    assert isinstance(space, Images) or not torch.equal(a, b)
    shares = model.classify(x)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(x)))


COMPILED = [
    ("realnvp", Vectors(7)),
    ("maf", Vectors(7)),
    ("neural-spline-flow", Vectors(7)),
    ("glow", Images(1, 4, 4, 17)),
]


@pytest.mark.parametrize(("name", "space"), COMPILED, ids=[name for name, _ in COMPILED])
def test_compiles_without_a_break(name: str, space: Space) -> None:
    model = _model(name, space)
    x = torch.randn(5, *space.shape)
    both = torch.compile(model.flow.forward_and_log_det, fullgraph=True, backend="eager")
    for found, wanted in zip(both(x), model.flow.forward_and_log_det(x), strict=True):
        torch.testing.assert_close(found, wanted)


def test_columns_on_which_a_density_grows_without_bound_are_named() -> None:
    x = torch.randn(50, 5)
    x[:, 1], x[:, 2], x[:, 4] = 3.5, -2 * x[:, 0] + 1, torch.randint(0, 4, (50,)).float()
    data = Dataset(Vectors(5), x, name="table")
    with pytest.warns(UserWarning) as found:
        catalogue.load("maf")(data.space, **SMALL["maf"]).adapt(data)
    said = [str(warning.message) for warning in found]
    assert [text.partition(",")[0] for text in said] == [
        "table has constant values in column 1 (counted from 0)",
        "table has copies of other columns in column 2 (counted from 0)",
        "table has whole numbers alone in column 4 (counted from 0)",
    ]
    assert said[2].endswith("give --dequantise, which adds uniform noise to them")


@pytest.mark.parametrize("name", PLANAR)
def test_whole_numbers_dequantised_come_back_and_their_density_is_a_bound(name: str) -> None:
    base, variant = VARIANTS.get(name, (name, {}))
    torch.manual_seed(0)
    x = torch.stack((torch.randint(0, 4, (60,)).float(), torch.randn(60)), 1)
    data = Dataset(Vectors(2), x, name="table")
    model = catalogue.load(base)(data.space, dequantise=True, **{**SMALL[base], **variant})
    model.adapt(data)
    model.eval()
    assert model.density in ("bound", "estimate")
    drawn = model.sample(20)
    assert torch.equal(drawn[:, 0], drawn[:, 0].round()) and not torch.equal(drawn[:, 1], drawn[:, 1].round())
    back = model.decode(model.encode(x))
    assert torch.equal(back[:, 0], x[:, 0])
    torch.testing.assert_close(back[:, 1], x[:, 1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["realnvp", "nice"])
def test_a_coupling_of_one_column_names_who_takes_it(name: str) -> None:
    with pytest.raises(SpaceError, match="here is one column: take cdf-flow, maf or neural-spline-flow"):
        catalogue.load(name)(Vectors(1))
    assert catalogue.load("neural-spline-flow")(Vectors(1), **SMALL["neural-spline-flow"]).sample(3).shape == (3, 1)


@pytest.mark.parametrize("name", ["glow", "flow++"])
def test_an_odd_side_is_refused_with_who_takes_it(name: str) -> None:
    with pytest.raises(SpaceError, match="images of 5 × 4 have an odd side: crop them by one, or take realnvp"):
        catalogue.load(name)(Images(1, 5, 4))


def test_learning_along_the_slow_direction_warns() -> None:
    data = Dataset(Vectors(3), torch.randn(30, 3), name="table")
    with pytest.warns(UserWarning, match="IAF learns by its slow direction"):
        catalogue.load("iaf")(data.space, **SMALL["iaf"]).adapt(data)
    assert catalogue.entry("flow").name == "neural-spline-flow"
