"""The softmax table against enumeration, the histogram it must learn, and the conditional of every mask."""

import itertools
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch, Progress
from tacit.models.autoregressive.softmax_table import SoftmaxTable
from tacit.spaces import Images, Tokens
from tacit.tasks.fit import fit
from tacit.tasks.run import Run
from tacit.training.learner import Learner

SPACES = [Images(1, 2, 2, 3), Images(2, 1, 3, 2), Tokens(5, 3)]


def random(space: Images | Tokens) -> SoftmaxTable:
    model = SoftmaxTable(space).eval()
    torch.nn.init.normal_(model.logits)
    return model


def every(space: Images | Tokens) -> Tensor:
    states = torch.tensor(list(itertools.product(range(space.levels), repeat=space.dimensions)))
    return states.view(-1, *space.shape).to(space.torch_dtype)


def number(space: Images | Tokens, x: Tensor) -> Tensor:
    """The row of `every` that each observation is."""
    worth = [space.levels**d for d in reversed(range(space.dimensions))]
    return x.flatten(1).long() @ torch.tensor(worth)


@pytest.mark.parametrize("space", SPACES)
def test_masses_sum_to_one_and_are_each_cells_own(space: Images | Tokens) -> None:
    model = random(space)
    log_prob = model.log_prob(every(space))
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(log_prob, model.logits.log_softmax(0))


def test_its_gradient_is_the_model_minus_the_data() -> None:
    space = SPACES[0]
    model = random(space)
    x = every(space)[torch.randint(81, (40,))]
    model.loss(Batch(x, torch.arange(40))).total.backward()
    seen = number(space, x).bincount(minlength=81) / 40
    torch.testing.assert_close(model.logits.grad, model.logits.softmax(0) - seen)


def test_it_learns_the_histogram_of_its_rows(tmp_path: Path) -> None:
    space = Images(1, 1, 3, 3)
    x = (3 * torch.rand(900, 1, 1, 3) ** 2).to(torch.uint8)
    data = Dataset(space, x)
    run = fit("softmax-table", data, steps=300, out=tmp_path / "run", quiet=True, pictures=0)
    train = data.parts()[0].x
    count = number(space, train).bincount(minlength=27).double() / len(train)
    entropy = -torch.xlogy(count, count).sum().item()
    assert -run.model.log_prob(train).mean().item() == pytest.approx(entropy, abs=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("space", SPACES)
def test_samples_follow_the_masses(space: Images | Tokens, temperature: float) -> None:
    model = random(space)
    p = (model.log_prob(every(space)).double() / temperature).softmax(0).detach()
    drawn = model.sample(9000, temperature=temperature)
    assert drawn.dtype == space.torch_dtype
    count = number(space, drawn).bincount(minlength=len(p))
    assert scipy.stats.chisquare(count.numpy(), 9000 * p.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("given", [(), (1,), (0, 2), "all"])
def test_what_is_completed_follows_the_conditional(space: Images | Tokens, given: tuple[int, ...] | str) -> None:
    model = random(space)
    known = torch.zeros(space.dimensions, dtype=torch.bool)
    known[list(range(space.dimensions)) if given == "all" else list(given)] = True
    known = known.view(space.shape)
    # Two states of what is known, and nonsense where nothing is.
    x = torch.full((2, *space.shape), 99).to(space.torch_dtype)
    x[0, known], x[1, known] = 1, 0
    drawn = model.complete(x.repeat_interleave(4000, 0), known)
    assert drawn.dtype == space.torch_dtype
    states = every(space)
    p = model.log_prob(states).double().exp().detach()
    for row, part in zip(x, drawn.split(4000), strict=True):
        assert (part[:, known] == row[known]).all()
        agree = (states == row)[:, known].all(1)
        count = number(space, part).bincount(minlength=len(p))
        assert count[~agree].sum() == 0
        if agree.sum() > 1:
            expected = 4000 * p[agree] / p[agree].sum()
            assert scipy.stats.chisquare(count[agree].numpy(), expected.numpy()).pvalue > 1e-3


def test_completing_a_large_table_goes_in_parts() -> None:
    space = Images(1, 4, 5, 2)
    model = random(space)
    known = torch.zeros(space.shape, dtype=torch.bool)
    known[0, 0, 0] = True
    x = torch.randint(2, (20, *space.shape)).to(torch.uint8)
    drawn = model.complete(x, known)
    assert torch.equal(drawn[:, known], x[:, known]) and drawn.max() <= 1


def test_learning_in_bfloat16_and_through_a_compiler_and_saved(tmp_path: Path) -> None:
    space = Images(1, 2, 2, 3)
    data = Dataset(space, torch.randint(3, (200, 1, 2, 2)).to(torch.uint8))
    model = SoftmaxTable(space).train()
    torch._dynamo.reset()
    assert torch.isfinite(torch.compile(model.loss, backend="eager")(data.batch(torch.arange(16))).total)
    Learner(model, model.recipe).step(data.batch(torch.arange(16)), Progress(0, 0, 0.0))
    assert (model.logits != 0).all(), "every logit receives a gradient"
    options = {"steps": 3, "batch_size": 16, "quiet": True, "pictures": 0}
    assert (
        fit("softmax-table", data, out=tmp_path / "half", precision="bfloat16", **options).model.logits.isfinite().all()
    )
    run = fit("softmax-table", data, out=tmp_path / "run", **options)
    assert torch.equal(run.model.log_prob(data.x), Run(tmp_path / "run").model.log_prob(data.x))


def test_clear_errors() -> None:
    with pytest.raises(
        SpaceError, match=r"softmax-table would need 2\^784 cells for .* 1,048,576 \(2\^20\) are the most"
    ):
        SoftmaxTable(Images(1, 28, 28, 2))
    with pytest.raises(SpaceError, match=r"would need 65\^4 cells"):
        SoftmaxTable(Tokens(65, 4))
    model = SoftmaxTable(Images(1, 2, 2, 2))
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(TacitError, match=r"known is bool of shape \(2, 2\): give a bool mask of shape \(1, 2, 2\)"):
        model.complete(x, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(SpaceError, match="observations hold 7"):
        model.log_prob(x + 7)
    with pytest.raises(TacitError, match="temperature is 0: give a number above 0"):
        model.sample(3, temperature=0)
    assert math.isclose(model.log_prob(x)[0].item(), -4 * math.log(2), rel_tol=1e-6)
