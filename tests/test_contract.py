"""Every model of the catalogue × everything the contract says. A new model is tested here without an edit."""

from __future__ import annotations

import ast
import inspect
import math
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tacit import catalogue
from tacit.capabilities import CAPABILITIES, METHODS, has
from tacit.coding.blocks import BlockCoder
from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.model import Model, Progress
from tacit.spaces import Images, Strokes, Tokens, Vectors, Video, Waveform
from tacit.tasks.fit import configure, fit
from tacit.tasks.run import Run
from tacit.tasks.sample import draw
from tacit.training.learner import Learner
from tacit.training.plan import reseed

NAMES = [entry.name for entry in catalogue.entries()]


def _images(channels: int, height: int, width: int, levels: int) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(200) % 3
    # Three classes that differ in brightness, so that there is something to learn.
    centre = (label + 1)[:, None, None, None] / 4
    x = (centre + 0.2 * torch.randn(200, channels, height, width, generator=generator)).clamp(0, 1)
    return Dataset(
        Images(channels, height, width, levels), (x * (levels - 1)).round().to(torch.uint8), label, name="images"
    )


def _vectors() -> Dataset:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(2)) * 3 + 7
    return Dataset(Vectors(5), x, (x[:, 0] > 7).long(), name="vectors")


def _tokens() -> Dataset:
    x = torch.randint(0, 12, (4000,), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    return Dataset(Tokens(12, 10), x, vocabulary=tuple("abcdefghijkl"), name="tokens")


def _video() -> Dataset:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(0, 5, (60, 1, 1, 6, 8), generator=generator).to(torch.uint8)
    clips = torch.cat([x.roll(frame, 4) for frame in range(3)], 1)[..., :5].contiguous()
    return Dataset(Video(3, 1, 6, 5, 5), clips, torch.arange(60) % 3, name="video")


def _waveform() -> Dataset:
    """Three classes of different pitch."""
    label = torch.arange(40) % 3
    phase = 6.28 * torch.rand(40, 1, generator=torch.Generator().manual_seed(4))
    x = 9000 * torch.sin(phase + torch.arange(64) * (label[:, None] + 1) / 4)
    return Dataset(Waveform(64, 8000), x.to(torch.int16), label, name="waveform")


def _strokes() -> Dataset:
    """Three classes of different steepness."""
    generator = torch.Generator().manual_seed(6)
    label = torch.arange(60) % 3
    x = 20 * torch.rand(60, 12, 3, generator=generator)
    x[..., 1] *= label[:, None]
    x[..., 2] = torch.rand(60, 12, generator=generator) < 0.2
    x[torch.arange(12) >= torch.randint(3, 13, (60, 1), generator=generator)] = torch.tensor([0.0, 0.0, 2.0])
    return Dataset(Strokes(12), x.to(torch.int16), label, name="strokes")


DATA = {
    "binary": _images(1, 8, 8, 2),
    "grey, no power of two": _images(1, 10, 12, 17),
    "four channels": _images(4, 9, 9, 256),
    "vectors": _vectors(),
    "tokens": _tokens(),
    "waveform": _waveform(),
    "video": _video(),
    "strokes": _strokes(),
}


def cases(
    capability: str | None = None, *, learns: bool = False, method: str | None = None, skipped: tuple[str, ...] = ()
):
    """(name, data) of every model and kind of data it takes: with `capability`, with `method`, that learn by steps.

    Those of one model and data are tested by the same process, which fits it once.
    """
    found = [
        pytest.param(entry.name, data, id=f"{entry.name}-{data}", marks=pytest.mark.xdist_group(f"{entry.name}-{data}"))
        for entry in catalogue.entries()
        for data in DATA
        if data not in skipped
        and DATA[data].space.kind in entry.spaces
        and (capability is None or capability in entry.capabilities)
        and not (learns and catalogue.load(entry.name).learns_exactly())
        and (method is None or hasattr(catalogue.load(entry.name), method))
    ]
    return pytest.mark.parametrize(("name", "data"), found)


@cache
def small(name: str) -> dict[str, Any]:
    """The arguments that the model's own tests, or by its name its family's, call `SMALL`: all parts, none large."""
    *_, family, module = catalogue.entry(name).module.split(".")
    folder = Path(__file__).parent / "models" / family
    own, shared = (_literal(folder / f"test_{which}.py", "SMALL") for which in (module, family))
    return own or shared.get(name, {})


@cache
def _literal(file: Path, name: str) -> dict[str, Any]:
    """A dictionary that a file assigns to `name`, read without importing it; empty if there is none."""
    for line in ast.parse(file.read_text(encoding="utf-8")).body if file.exists() else []:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            if ast.unparse(target) == name:
                found: dict[str, Any] = ast.literal_eval(line.value)
                return found
    return {}


THREE_STEPS: dict[str, Any] = {"steps": 3, "batch_size": 16, "pictures": 0, "quiet": True}
_fitted: dict[tuple[str, str], Run] = {}


@pytest.fixture
def run(name, data, tmp_path_factory) -> Run:
    """The model after three steps, through the same `fit` that everybody calls."""
    build(name, DATA[data])
    if (name, data) not in _fitted:
        folder = tmp_path_factory.mktemp("runs") / f"{name}-{zlib.crc32(data.encode())}"
        _fitted[name, data] = fit(name, DATA[data], out=folder, **THREE_STEPS, **small(name))
    return _fitted[name, data]


def build(name: str, data: Dataset) -> Model:
    cls = catalogue.load(name)
    try:
        model = cls(data.space, **configure(name, cls, data, small(name)))
    except SpaceError as error:
        pytest.skip(str(error))  # as a table of 2^64 cells
    model.adapt(data)
    return model


# -- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_is_and_where_it_comes_from(name):
    entry = catalogue.entry(name)
    assert 10 < len(entry.description) <= 100
    assert "arXiv" in entry.references or "(" in entry.references, "a model without a paper is not in the catalogue"
    assert entry.spaces
    for argument in entry.arguments:
        assert argument.help, f"--{argument.name} of {name} is not documented"
        assert argument.annotation


@pytest.mark.parametrize("name", NAMES)
def test_what_the_source_claims_is_what_the_class_has(name):
    entry, cls = catalogue.entry(name), catalogue.load(name)
    assert set(entry.capabilities) == {c for c, method in METHODS.items() if callable(getattr(cls, method, None))}
    assert entry.spaces == tuple(space.kind for space in cls.spaces)
    assert [a.name for a in entry.arguments] == list(cls.arguments())
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in cls.arguments().values())
    assert catalogue.name_of(cls) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_space_it_cannot_take_is_refused_with_those_that_can(name):
    cls = catalogue.load(name)
    for data in DATA.values():
        if data.space.kind not in catalogue.entry(name).spaces:
            arguments = {key: 2 for key, p in cls.arguments().items() if p.default is inspect.Parameter.empty}
            with pytest.raises(SpaceError, match=f"{re.escape(name)} takes .* not {data.space.kind}; models that take"):
                cls(data.space, **arguments)


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.entries() if entry.needs_labels])
def test_missing_labels_are_named(name, tmp_path):
    data = DATA["binary"]
    with pytest.raises(DataError, match=f"{name} needs labels"):
        fit(name, Dataset(data.space, data.x, name="bare"), steps=1, out=tmp_path / "run", quiet=True)


def test_an_unknown_model_gives_the_nearest_names():
    with pytest.raises(TacitError, match="did you mean made"):
        catalogue.load("mades")


# -- learning --------------------------------------------------------------------------------------------------------


@cases(learns=True)
def test_every_parameter_of_a_player_receives_a_gradient(name, data):
    model = build(name, DATA[data]).train()
    learner = Learner(model, model.recipe)
    reached: set[str] = set()
    names = {p: n for n, p in model.named_parameters()}
    players = [p for members in learner.members.values() for p in members]
    for p in players:
        if not p.requires_grad:
            p.requires_grad_(True)
        p.register_post_accumulate_grad_hook(lambda p: reached.add(names[p]) if (p.grad != 0).any() else None)
    if len(learner.members) > 1:
        for p in players:
            p.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    # Two steps: layers that begin at zero let nothing through on the first.
    for step, index in zip(range(2), model.batches(DATA[data], 32, generator), strict=False):
        reseed(0, step)
        learner.step(DATA[data].batch(index), Progress(step, 0, 0.5))
        model.after_step(Progress(step + 1, 0, 0.5))
    assert {names[p] for p in players} - reached == set()


@cases()
def test_the_same_seed_learns_the_same_and_saved_it_gives_the_same_numbers(name, data, run, tmp_path):
    again = fit(name, DATA[data], out=tmp_path / "again", **THREE_STEPS, **small(name))
    expected = run.model.state_dict()
    for key, value in Run(tmp_path / "again").model.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(expected[key])), key
    assert (again.path / "metrics.jsonl").exists() or again.model.learns_exactly()


@cases(learns=True)
def test_bfloat16_does_not_break_it(name, data, tmp_path):
    build(name, DATA[data])
    run = fit(name, DATA[data], out=tmp_path / "run", precision="bfloat16", **THREE_STEPS, **small(name))
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


# What a compiler says of every graph that goes on after an equation's solver.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
# Tracing is slow, and what differs between images is sizes, and the likelihood of two levels.
@cases(learns=True, skipped=("grey, no power of two",))
def test_a_compiler_can_trace_its_loss(name, data):
    model = build(name, DATA[data]).train()
    if type(model).loss is Model.loss:
        pytest.skip(f"{name} has several losses, or none")
    torch._dynamo.reset()
    found = torch.compile(model.loss, backend="eager")(DATA[data].batch(torch.arange(16))).total
    assert torch.isfinite(found) and found.shape == ()


# -- capabilities ----------------------------------------------------------------------------------------------------


@cases("density")
def test_density(name, data, run):
    model = run.model
    x = DATA[data][torch.arange(6)]
    reseed(0)
    log_prob = model.log_prob(x)
    assert log_prob.shape == (6,)
    assert torch.isfinite(log_prob).all()
    assert model.density in ("exact", "bound", "estimate")
    if DATA[data].space.levels is not None and model.density == "exact":
        assert (log_prob <= 1e-4).all(), "a probability mass is at most 1"
    # Three steps from the start no model is worse than this, in its own unit.
    assert -log_prob.mean() / (model.space.dimensions * math.log(2)) < 40


@cases("sample")
def test_sample(name, data, run):
    model = run.model
    space = model.space
    for count in (1, 5):
        x = draw(model, count, seed=1)
        assert x.shape == (count, *space.shape)
        assert x.dtype == space.torch_dtype
        assert not x.requires_grad
    if space.levels is not None:
        lowest, highest = space.value_range
        assert int(x.min()) >= lowest and int(x.max()) <= highest
    assert torch.isfinite(x.float()).all()
    assert torch.equal(x, draw(model, 5, seed=1)), "the same seed draws the same"
    draw(model, 2, temperature=0.5, seed=1)


@cases("sample", method="chain")
def test_a_chain_is_rows_of_frames(name, data, run):
    model = run.model
    frames = draw(model, 2, seed=1, temperature=0.8, frames=3)
    assert frames.shape == (6, *model.space.shape) and frames.dtype == model.space.torch_dtype


@cases("embed")
def test_embed(name, data, run):
    model = run.model
    features = model.embed(DATA[data][torch.arange(6)])
    assert features.ndim == 2 and len(features) == 6
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features[:2], model.embed(DATA[data][torch.arange(2)]), rtol=1e-3, atol=1e-4)


@cases("encode")
def test_encode_and_decode(name, data, run):
    model = run.model
    z = model.encode(DATA[data][torch.arange(4)])
    assert len(z) == 4 and z.is_floating_point() and not z.requires_grad
    if isinstance(model, CAPABILITIES["decode"]):
        assert model.decode(z).shape == (4, *model.space.shape)


@cases("classify")
def test_classify(name, data, tmp_path):
    if DATA[data].classes == 0:
        pytest.skip("there is nothing to tell apart")
    build(name, DATA[data])
    classes = {"classes": DATA[data].classes} if "classes" in catalogue.load(name).arguments() else {}
    model = fit(name, DATA[data], out=tmp_path / "run", **THREE_STEPS, **small(name) | classes).model
    assert has(model, "classify")
    probabilities = model.classify(DATA[data][torch.arange(4)])
    assert probabilities.shape == (4, DATA[data].classes)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


@cases("complete")
def test_complete(name, data, run):
    model, x = run.model, DATA[data][torch.arange(3)]
    if x.dim() == 5:
        first = torch.arange(x.shape[1])[:, None, None, None] < 1
    elif x.dim() == 4:
        first = torch.arange(x.shape[2])[:, None] < x.shape[2] // 2
    elif x.dim() == 3:
        first = torch.arange(x.shape[1])[:, None] < x.shape[1] // 2
    else:
        first = torch.arange(x.shape[1]) < x.shape[1] // 2
    known = first.expand(x.shape[1:]).clone()
    try:
        done = model.complete(x, known)
    except TacitError as error:
        # An order in which the upper half does not come first: the sentence says what may be known instead.
        assert "known" in str(error)
        known[:] = False
        done = model.complete(x, known)
    assert done.shape == x.shape and done.dtype == x.dtype
    assert torch.equal(done[:, known], x[:, known])
    assert torch.equal(model.complete(x, torch.ones_like(known)), x)
    with pytest.raises(TacitError, match="known is bool of shape"):
        model.complete(x, known[1:])


class Told(BlockCoder):
    """Remembers the masses of the first row that the coder was told, site after site."""

    def _put(self, coder, symbols, weights):
        self.masses.append(weights[0].clone())
        super()._put(coder, symbols, weights)

    def told(self, x):
        self.masses = []
        return self.encode(x), torch.cat(self.masses)


@cases("code", skipped=("grey, no power of two",))
def test_code(name, data, run):
    """Rows come back from their code, whose length is what the density says; a row's masses are its own to the bit."""
    x, model = DATA[data][torch.arange(3)], run.model
    if model.space.levels is None:
        with pytest.raises(CapabilityError, match="real numbers cannot be coded"):
            Told(model)
        return
    coder = Told(model)
    block, masses = coder.told(x)
    assert torch.equal(coder.decode(block.payload, len(x), x[0].numel()), x)
    assert torch.equal(coder.told(x[:1])[1], masses)
    here = BlockCoder(model, portable=False)
    assert torch.equal(here.decode(here.encode(x).payload, len(x), x[0].numel()), x)
    # Of a model with classes the class is told, too, and of several orderings the first is taken.
    if getattr(model, "classes", None) is None:
        reseed(0)
        bits = -float(model.log_prob(x).detach().double().sum()) / math.log(2)
        assert 8 * len(block.payload) <= 1.01 * bits + 80


@cases("bits-back")
def test_bits_back(name, data, run):
    """Rows come back, at the cost of the bound, and what the stack began with."""
    x, model = DATA[data][torch.arange(40)], run.model
    if model.space.levels is None:
        with pytest.raises(CapabilityError, match="real numbers cannot be coded"):
            BlockCoder(model)
        return
    coder = BlockCoder(model)
    block = coder.encode(x)
    assert torch.equal(coder.decode(block.payload, len(x)), x)
    here = BlockCoder(model, portable=False)
    assert torch.equal(here.decode(here.encode(x[:9]).payload, 9), x[:9])
    reseed(0)
    bits = -float(torch.stack([model.log_prob(x).detach() for _ in range(20)]).mean(0).sum()) / math.log(2)
    assert 8 * len(block.payload) - block.initial == pytest.approx(bits, rel=0.04)


@cases("energy")
def test_energy(name, data, run):
    energy = run.model.energy(DATA[data][torch.arange(6)])
    assert energy.shape == (6,) and energy.isfinite().all() and not energy.requires_grad
    torch.testing.assert_close(energy[:2], run.model.energy(DATA[data][torch.arange(2)]), rtol=1e-3, atol=1e-3)


@cases()
def test_using_it_leaves_its_parameters_alone(name, data, run):
    model, x = run.model, DATA[data][torch.arange(3)]
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for capability, method in METHODS.items():
        if capability in ("sample",) and isinstance(model, CAPABILITIES["sample"]):
            model.sample(2)
        elif capability in ("density", "embed", "encode", "classify", "energy") and has(model, capability):
            getattr(model, method)(x)
    assert not model.training
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]), key
