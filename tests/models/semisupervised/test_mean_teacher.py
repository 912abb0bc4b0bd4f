"""Mean Teacher: the teacher is the moving average, and it is the student that learns from what has no label."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.losses.consistency import ramp_up, softmax_mse
from tacit.model import Batch, Progress
from tacit.models.semisupervised.mean_teacher import MeanTeacher
from tacit.spaces import Images, Vectors


def two_moons(rows: int = 120) -> Dataset:
    """Two separate clouds of which one row in ten is labelled."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(rows) % 2
    x = torch.randn(rows, 2, generator=generator) * torch.tensor([1.0, 100.0]) + 6 * label[:, None]
    return Dataset(Vectors(2), x, torch.where(torch.arange(rows) < rows // 10, label, -1))


def model_of(data: Dataset, **arguments) -> MeanTeacher:
    torch.manual_seed(0)
    model = MeanTeacher(data.space, classes=2, **{"hidden": 8, "labelled_per_batch": 4, **arguments})
    model.adapt(data)
    return model


def gradients(model: MeanTeacher, loss: torch.Tensor) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(loss, list(model.student.parameters()), allow_unused=True))


def test_softmax_mse_equals_a_double_loop():
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    naive = sum((a[i].softmax(0)[j] - b[i].softmax(0)[j]) ** 2 for i in range(5) for j in range(3)) / 15
    torch.testing.assert_close(softmax_mse(a, b), naive)


def test_ramp_up_has_the_papers_ends():
    fractions = torch.tensor([0.0, 0.2, 0.4, 1.0])
    expected = torch.tensor([math.exp(-5), math.exp(-5 / 4), 1.0, 1.0])
    torch.testing.assert_close(ramp_up(fractions, 0.4), expected)


def test_unlabelled_rows_teach_the_student_and_not_the_teacher():
    """Views differ, so a batch without a label still has a gradient in every weight of the student."""
    data = two_moons()
    model = model_of(data)
    model.after_step(Progress(step=1, epoch=0, fraction=1.0))
    losses = model.loss(data.batch(torch.arange(100, 120)))
    assert losses["classification"].item() == 0
    assert losses["consistency"].item() > 0
    losses.total.backward()
    for name, p in model.student.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert {id(p) for p in model.players()["model"]["params"]} == {id(p) for p in model.student.parameters()}


def test_student_and_teacher_are_two_networks_with_two_views():
    """Equal weights right after construction, yet the predictions compared differ by the views' noise."""
    data = two_moons()
    model = model_of(data, dropout=0.0)
    model.eval()
    assert model.loss(data.batch(torch.arange(120)))["consistency"].item() == pytest.approx(0, abs=1e-12)
    model.train()
    assert model.loss(data.batch(torch.arange(120)))["consistency"].item() > 1e-6
    model.eval()
    torch.nn.init.zeros_(model.student.output.weight)
    assert model.loss(data.batch(torch.arange(120)))["consistency"].item() > 1e-6


def test_classification_is_the_mean_over_labelled_rows_alone():
    data = two_moons()
    model = model_of(data).eval()
    losses = model.loss(data.batch(torch.arange(8, 40)))
    logits = model.student(model.standardise(data.x[8:12]))
    torch.testing.assert_close(losses["classification"], F.cross_entropy(logits, data.label[8:12]))


def test_consistency_weight_follows_the_budget_and_is_saved():
    data = two_moons()
    model = model_of(data, consistency=10.0, ramp=0.5).eval()
    torch.nn.init.zeros_(model.student.output.weight)
    batch = data.batch(torch.arange(120))
    model.after_step(Progress(step=10**9, epoch=0, fraction=0.25))
    early = model.loss(batch)["consistency"]
    reborn = model_of(data, consistency=10.0, ramp=0.5).eval()
    reborn.load_state_dict(model.state_dict())
    torch.testing.assert_close(reborn.loss(batch)["consistency"], early)
    model.progress.fill_(0.75)
    torch.testing.assert_close(model.loss(batch)["consistency"] * math.exp(-5 / 4), early)


def test_teacher_is_the_moving_average_exactly():
    """The mean of all students while 1 − 1/k < decay, exponential from there on."""
    data = two_moons()
    model = model_of(data, decay=0.75)
    expected = [torch.zeros_like(p) for p in model.student.parameters()]
    for step in range(1, 9):
        with torch.no_grad():
            for p in model.student.parameters():
                p.add_(torch.randn_like(p))
        model.after_step(Progress(step=step, epoch=0, fraction=step / 8))
        decay = min((step - 1) / step, 0.75)
        expected = [
            decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.student.parameters(), strict=True)
        ]
        if step <= 4:
            assert decay == (step - 1) / step  # the plain mean: nothing of the initial teacher is left
    for p, e in zip(model.teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(p, e)


def test_teacher_keeps_batch_statistics_of_its_own():
    """Training mode on both sides: the teacher's running averages come from its own forwards, not by averaging."""
    data = two_moons()
    model = model_of(data)
    before = copy.deepcopy(model.teacher.state_dict())
    model.loss(data.batch(torch.arange(120)))
    assert not torch.equal(before["encoder.1.running_mean"], model.teacher.encoder[1].running_mean)
    held = model.teacher.encoder[1].running_mean.clone()
    model.after_step(Progress(step=1, epoch=0, fraction=0.0))
    assert torch.equal(held, model.teacher.encoder[1].running_mean)
    model.eval().loss(data.batch(torch.arange(120)))
    assert torch.equal(held, model.teacher.encoder[1].running_mean)


def test_without_consistency_unlabelled_rows_teach_nothing():
    data = two_moons()
    model = model_of(data, consistency=0.0)
    loss = model.loss(data.batch(torch.arange(100, 120))).total
    assert all(g is None or not g.any() for g in gradients(model, loss))


def test_batches_draw_labelled_and_unlabelled_together():
    data = two_moons()
    model = model_of(data)
    batches = list(model.batches(data, 16, torch.Generator().manual_seed(0)))
    assert all((data.label[batch[:4]] >= 0).all() and (data.label[batch[4:]] < 0).all() for batch in batches)
    unlabelled = torch.cat([batch[4:] for batch in batches])
    assert torch.equal(unlabelled.sort().values, torch.arange(12, 120))  # each once: an epoch
    times = torch.bincount(torch.cat([batch[:4] for batch in batches]), minlength=12)[:12]
    assert times.max() - times.min() <= 1
    again = list(model.batches(data, 16, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_batches_when_every_row_is_labelled_or_few_are():
    data = two_moons()
    everyone = dataclasses.replace(data, label=torch.arange(120) % 2)
    batches = list(model_of(data).batches(everyone, 16, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat([b[4:] for b in batches]).sort().values, torch.arange(120))
    model = model_of(data, labelled_per_batch=32)
    (first, *_) = model.batches(data, 16, torch.Generator().manual_seed(0))
    assert len(first) == 16 and (data.label[first] >= 0).sum() == 8


def test_labels_are_asked_for_in_one_sentence():
    data = two_moons()
    model = model_of(data)
    for label in (None, torch.full((120,), -1)):
        with pytest.raises(DataError, match="has no labels, and mean-teacher needs some"):
            model.adapt(dataclasses.replace(data, label=label))
    with pytest.raises(DataError, match="no labelled row of class dog"):
        model.adapt(
            dataclasses.replace(data, label=torch.where(data.label == 1, -1, data.label), class_names=("cat", "dog"))
        )
    with pytest.raises(TacitError, match="labelled_per_batch=0"):
        MeanTeacher(Vectors(2), classes=2, labelled_per_batch=0)
    with pytest.raises(TacitError, match="classes=1"):
        MeanTeacher(Vectors(2), classes=1)


@pytest.mark.parametrize(
    "space", [Images(1, 8, 8, 17), Images(3, 13, 20), Images(4, 5, 3, 2), Images(1, 28, 28)], ids=str
)
def test_images_of_any_form(space: Images):
    torch.manual_seed(0)
    model = MeanTeacher(space, classes=3, width=4)
    x = torch.randint(space.levels, (12, *space.shape), dtype=torch.uint8)
    batch = Batch(x, torch.arange(12), torch.arange(12) % 4 - 1)
    model.loss(batch).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())
    model.eval()
    probability = model.classify(x)
    assert probability.shape == (12, 3) and torch.allclose(probability.sum(1), torch.ones(12))
    assert model.embed(x).shape == (12, model.student.output.in_features)
    other = MeanTeacher(space, classes=3, width=4).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.classify(x), probability)


def test_it_learns_from_twelve_labels():
    data = two_moons()
    truth = torch.arange(120) % 2
    model = model_of(data, consistency=20.0)
    optimiser = torch.optim.Adam(model.student.parameters(), lr=0.02)
    before = copy.deepcopy(model.student.state_dict())
    step = 0
    for epoch in range(4):
        for index in model.batches(data, 16, torch.Generator().manual_seed(epoch)):
            torch.manual_seed(step)
            optimiser.zero_grad()
            ((player, closure),) = model.steps(data.batch(index))
            closure().total.backward()
            optimiser.step()
            step += 1
            model.after_step(Progress(step, epoch, step / 36))
    assert player == "model"
    after = model.student.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name, _ in model.student.named_parameters())
    assert (model.eval().classify(data.x).argmax(1) == truth).float().mean() > 0.97
