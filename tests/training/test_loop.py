import json
import math

import pytest
import torch
from torch import nn
from toys import Duel, Mean, rows

from tacit.errors import TacitError, TrainingError
from tacit.model import Batch, Losses, Progress, Recipe
from tacit.training.learner import Learner
from tacit.training.loop import Loop
from tacit.training.plan import Plan, seed_of


def loop_of(model, folder, **plan):
    train, valid, _ = rows().parts()
    recipe = plan.pop("recipe", model.recipe)
    return Loop(model, train, valid, Plan(recipe=recipe, **plan), folder)


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_player_steps_along_the_gradient_of_its_own_loss_alone():
    model = Duel(rows().space)
    batch = Batch(rows().x[:4], torch.arange(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    left = torch.autograd.grad(model.left_loss(batch).total, list(model.left.parameters()))

    learner = Learner(model, model.recipe)
    learner.step(batch, Progress(0, 0, 0.0))
    for p, gradient, name in zip(model.left.parameters(), left, ("left.weight", "left.bias"), strict=True):
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * gradient)

    # The right player moved after the left one, so its loss is that of the moved left side; its own rate is 0.5.
    moved = Duel(rows().space)
    moved.load_state_dict(before | {k: v for k, v in model.state_dict().items() if k.startswith("left")})
    right = torch.autograd.grad(moved.right_loss(batch).total, list(moved.right.parameters()))
    for p, gradient, name in zip(model.right.parameters(), right, ("right.weight", "right.bias"), strict=True):
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * gradient)


def test_nobody_else_receives_a_gradient():
    model = Duel(rows().space)
    learner = Learner(model, model.recipe)
    seen = []
    original = model.right_loss

    def watched(batch):
        seen.append([p.requires_grad for p in model.left.parameters()])
        return original(batch)

    model.right_loss = watched
    learner.step(Batch(rows().x[:4], torch.arange(4)), Progress(0, 0, 0.0))
    assert seen == [[False, False]]
    assert all(p.grad is None for p in model.left.parameters())


def test_a_loss_that_is_not_finite_stops_the_run_with_the_weights_of_the_step_before(tmp_path):
    model = Mean(rows().space, breaks_at=6)
    loop = loop_of(model, tmp_path, steps=20, save_seconds=0)
    with pytest.raises(
        TrainingError, match=r"distance is not finite at step 6.*last good checkpoint is .*step-00000006"
    ):
        loop.run()
    kept = model.mean.detach().clone()
    other = Mean(rows().space)
    loop_of(other, tmp_path / "other", steps=6).run()
    torch.testing.assert_close(kept, other.mean.detach(), rtol=0, atol=0)


def test_an_infinite_gradient_with_a_finite_loss_stops_too():
    model = Mean(rows().space)
    model.loss = lambda batch: Losses(root=(model.mean.abs().sqrt().sum()))  # d√0 is infinite
    with pytest.raises(TrainingError, match="gradient is not finite"):
        Learner(model, model.recipe).step(Batch(rows().x[:4], torch.arange(4)), Progress(0, 0, 0.0))
    assert (model.mean == 0).all()


def test_cosine_and_warm_up_follow_the_budget():
    model = Mean(rows().space)
    learner = Learner(model, Recipe(learning_rate=1.0, schedule="cosine", warmup=10))
    rates = []
    for step in range(100):
        learner._set_rates(Progress(step, 0, step / 100))
        rates.append(learner.optimisers["model"].param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[99] < 0.001


def test_clipping_bounds_the_step(tmp_path):
    model = Mean(rows().space)
    learner = Learner(model, Recipe(optimiser="SGD", momentum=0.0, learning_rate=1.0, clip=0.01))
    learner.step(Batch(rows().x[:4] * 100, torch.arange(4)), Progress(0, 0, 0.0))
    assert model.mean.detach().norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_what_is_saved_for_use(tmp_path):
    model = Mean(rows().space)
    loop = loop_of(model, tmp_path, steps=30, recipe=Recipe(batch_size=8, learning_rate=0.1, ema=0.5))
    track, expected = [], None
    step = loop.learner.step

    def watched(batch, progress):
        terms = step(batch, progress)
        track.append(model.mean.detach().clone())
        return terms

    loop.learner.step = watched
    loop.run()
    expected = torch.zeros(3)
    for i, mean in enumerate(track):
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * mean
    torch.testing.assert_close(loop.weights()["mean"], expected)
    torch.testing.assert_close(model.mean.detach(), track[-1], rtol=0, atol=0)


def test_statistics_of_batches_are_averaged_with_the_weights_and_no_graph_is_kept():
    model = Mean(rows().space)
    model.norm = nn.BatchNorm1d(3)
    model.loss = lambda batch: Losses(distance=(model.norm(batch.x) - model.mean).square().mean())
    learner = Learner(model, Recipe(learning_rate=0.1, ema=0.5))
    expected = model.norm.running_mean.clone()
    for i in range(12):
        learner.step(Batch(rows().x[3 * i : 3 * i + 4], torch.arange(4)), Progress(i, 0, 0.0))
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * model.norm.running_mean
    assert not any(value.requires_grad for value in learner.average)
    last = model.norm.running_mean.clone()
    with learner.averaged_weights():
        torch.testing.assert_close(model.norm.running_mean, expected)
    assert torch.equal(model.norm.running_mean, last)
    assert not torch.allclose(last, expected)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    model = Mean(rows().space)
    # A rate so large that the first validation is the best one.
    recipe = Recipe(batch_size=8, optimiser="SGD", momentum=0.0, learning_rate=1.01)
    loop = loop_of(model, tmp_path, steps=500, recipe=recipe, patience=3, validate_every=2)
    assert loop.run() == "stopped early"
    losses = [line["validation_loss"] for line in log_of(tmp_path) if "validation_loss" in line]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 3
    model.load_state_dict(loop.weights())
    x = loop.valid.x
    assert (x - model.mean).square().sum(1).mean().item() == pytest.approx(min(losses), rel=1e-5)


def test_the_log_holds_means_between_lines(tmp_path):
    loop = loop_of(Mean(rows().space), tmp_path, steps=10, log_every=5, recipe=Recipe(batch_size=8, learning_rate=0.0))
    loop.run()
    first, second = [line for line in log_of(tmp_path) if "distance" in line]
    assert (first["step"], second["step"]) == (5, 10)
    expected = []
    for epoch in (0, 1):
        generator = torch.Generator().manual_seed(seed_of(0, epoch))
        expected += [loop.train.x[i].square().sum(1).mean().item() for i in loop.train.shuffled(8, generator)]
    assert first["distance"] == pytest.approx(sum(expected[:5]) / 5, rel=1e-5)
    assert "loss" not in first or first["loss"] == pytest.approx(first["distance"])


def test_budgets_end_where_they_should(tmp_path):
    for i, budget in enumerate(({"steps": 7}, {"epochs": 2})):
        loop = loop_of(Mean(rows().space), tmp_path / str(i), **budget)
        assert loop.run() == "finished"
        assert loop.step == (7 if "steps" in budget else 2 * (len(loop.train) // 8))
    loop = loop_of(Mean(rows().space), tmp_path / "time", minutes=0.01)
    loop.run()
    assert 0.5 < loop.seconds < 2


def test_bad_plans_are_refused_in_a_sentence():
    with pytest.raises(TacitError, match="exactly one of steps, epochs and minutes"):
        Plan(steps=3, minutes=1.0)
    with pytest.raises(TacitError, match="steps is 0"):
        Plan(steps=0)
    with pytest.raises(TacitError, match="no optimiser 'Nope'"):
        Learner(Mean(rows().space), Recipe(optimiser="Nope"))
