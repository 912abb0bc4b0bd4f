"""The only training loop: batches to steps, steps to checkpoints, for every model of the catalogue.

Two laws make a run resume bit for bit from its step alone: the order of data is a function of (seed, epoch), and the
noise of a step is drawn from generators reseeded from (seed, step, process).
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tacit.capabilities import Samples
from tacit.data import Dataset
from tacit.errors import DataError, TrainingError
from tacit.model import Model, Progress
from tacit.nn import noise
from tacit.training import checkpoint, distributed, pictures
from tacit.training.learner import Learner
from tacit.training.plan import Plan, generator_of, reseed, seed_of


class Watcher(Protocol):
    """Who is told how training goes: a progress bar, TensorBoard, a comparison's own display."""

    def logged(self, record: dict[str, float], fraction: float, seconds: float) -> None:
        """A line was written to the metrics log."""

    def said(self, message: str) -> None:
        """Something the user should know happened."""


class Loop:
    """One run of one model.

    Args:
        model: on its device; adapted to the data if this run is new.
        train: what it learns from.
        valid: what early stopping looks at.
        plan: budget, seed and recipe.
        folder: where checkpoints, the metrics log and pictures go.
        watchers: who is told.
    """

    def __init__(
        self, model: Model, train: Dataset, valid: Dataset, plan: Plan, folder: Path, watchers: tuple[Watcher, ...] = ()
    ):
        self.model, self.train, self.valid, self.plan = model, train, valid, plan
        self.folder = folder
        self.watchers = watchers
        self.learner = Learner(model, plan.recipe, plan.precision)
        self.step = 0
        self.epoch = 0
        self.in_epoch = 0
        self.seconds = 0.0
        self.sums: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.best_loss = float("inf")
        self.stale = 0
        self.pictures_drawn = 0
        self.log_bytes = 0
        self.leads = distributed.rank() == 0
        self.draws = self.leads and isinstance(model, Samples)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Learn until the budget is used: returns "finished", "stopped early" or "interrupted".

        Raises:
            TrainingError: a loss was not finite (the message names the last good checkpoint), or a save failed.
        """
        self._open_log()
        started = time.monotonic() - self.seconds
        last_save = last_picture = time.monotonic()
        picture_cost = 0.0
        outcome = "finished"
        with _interruptions() as interrupted:
            for indices, batches in self._indices():
                progress = Progress(self.step, self.epoch, self._fraction(batches))
                terms = self._step(indices, progress)
                self._count(batches)
                self.model.after_step(Progress(self.step, self.epoch, self._fraction(batches)))
                self.seconds = distributed.agree(time.monotonic() - started)
                fraction = self._fraction(batches)
                self._log(terms, fraction)
                if self._due_for_validation(batches) and self._validate():
                    outcome = "stopped early"
                    break
                now = time.monotonic()
                # Drawing samples never takes more than a twentieth of the time.
                if self._picture_due(fraction, now - last_picture, picture_cost):
                    self._draw()
                    last_picture = time.monotonic()
                    picture_cost = last_picture - now
                if fraction >= 1.0:
                    break
                if distributed.agree(float(interrupted())):
                    outcome = "interrupted"
                    break
                if distributed.agree(float(now - last_save >= self.plan.save_seconds)):
                    self.save()
                    last_save = time.monotonic()
        self.save()
        return outcome

    def _indices(self) -> Iterator[tuple[Tensor, int]]:
        """Row numbers of this process's share of each batch, with the number of batches of the epoch, for ever."""
        world, rank = distributed.world(), distributed.rank()
        size = self.plan.recipe.batch_size * world
        while True:
            if self.in_epoch == 0:
                reseed(self.plan.seed, "epoch", self.epoch)
                self.model.before_epoch(self.train)
            epoch = list(self.model.batches(self.train, size, generator_of(self.plan.seed, self.epoch)))
            if not epoch or len(epoch[0]) < world:
                raise DataError(f"{self.train.name} has {len(self.train)} rows, too few for one batch: bring more")
            for indices in epoch[self.in_epoch :]:
                whole = len(indices) // world * world
                yield indices[:whole][rank::world], len(epoch)

    def _step(self, indices: Tensor, progress: Progress) -> dict[str, Tensor]:
        world, rank = distributed.world(), distributed.rank()
        batch = self.train.batch(indices.to(self.model.device, non_blocking=True))
        reseed(self.plan.seed, self.step, rank)
        # Seeded as a lone process would be: noise that belongs to rows is the same however many share the batch.
        common = torch.Generator(self.model.device).manual_seed(seed_of(self.plan.seed, self.step, 0))
        try:
            with noise.shared(rank, world, common):
                return self.learner.step(batch, progress)
        except TrainingError as error:
            good = checkpoint.found(self.folder / "checkpoints")
            where = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
            raise TrainingError(f"{error}; {where}; try a smaller --learning-rate or --clip 1") from error

    def _count(self, batches: int) -> None:
        self.step += 1
        self.in_epoch += 1
        if self.in_epoch == batches:
            self.epoch, self.in_epoch = self.epoch + 1, 0

    def _fraction(self, batches: int) -> float:
        return self.plan.fraction(self.step, self.epoch + self.in_epoch / batches, self.seconds)

    # -- what is written down ----------------------------------------------------------------------------------------

    def _open_log(self) -> None:
        """Cut the metrics log back to where the checkpoint saw it: the lines after it are about to be written again."""
        if not self.leads:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "metrics.jsonl"
        log.touch()
        with log.open("r+b") as file:
            file.truncate(self.log_bytes)

    def _log(self, terms: dict[str, Tensor], fraction: float) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        if self.step % self.plan.log_every and fraction < 1.0:
            return
        count = (self.step - 1) % self.plan.log_every + 1
        means = [self.sums[name] / count for name in sorted(self.sums)]
        distributed.average(means)
        self._write({name: value.item() for name, value in zip(sorted(self.sums), means, strict=True)}, fraction)
        self.sums = {}

    def _write(self, values: dict[str, float], fraction: float) -> None:
        if not self.leads:
            return
        record = {"step": self.step, "epoch": self.epoch, **values}
        line = (json.dumps(record) + "\n").encode()
        with (self.folder / "metrics.jsonl").open("ab") as file:
            file.write(line)
        self.log_bytes += len(line)
        for watcher in self.watchers:
            watcher.logged(record, fraction, self.seconds)

    def _due_for_validation(self, batches: int) -> bool:
        every = self.plan.validate_every or max(100, batches)
        return self.step % every == 0 and type(self.model).loss is not Model.loss

    @torch.no_grad()
    def _validate(self) -> bool:
        """Log the validation loss of the averaged weights; returns whether patience has run out."""
        reseed(self.plan.seed, "validation", 0)
        total, rows = torch.zeros((), device=self.model.device), 0
        with self.learner.averaged_weights():
            for indices in self.valid.ordered(self.plan.recipe.batch_size):
                batch = self.valid.batch(indices.to(self.model.device))
                total += self.model.loss(batch).total * len(indices)
                rows += len(indices)
            loss = (total / rows).item()
            self._write({"validation_loss": loss}, self.plan.fraction(self.step, self.epoch, self.seconds))
            self.stale += 1
            if loss < self.best_loss:
                self.best_loss, self.stale = loss, 0
                if self.plan.patience is not None:
                    self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        return self.plan.patience is not None and self.stale >= self.plan.patience

    def _picture_due(self, fraction: float, idle: float, cost: float) -> bool:
        return self.draws and int(fraction * self.plan.pictures) > self.pictures_drawn and idle >= 20 * cost

    def _draw(self) -> None:
        reseed(self.plan.seed, "picture", 0)
        with self.learner.averaged_weights():
            samples = self.model.sample(36 if self.train.space.kind != "vectors" else 500)  # type: ignore[operator]
            path = self.folder / "samples" / f"step-{self.step:08d}.png"
            pictures.draw(self.model, samples.cpu(), self.train, path)
        self.pictures_drawn += 1

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """The weights to use: the best by validation under early stopping, else the moving average, else the raw."""
        if self.best:
            return self.best
        with self.learner.averaged_weights():
            return {name: value.clone() for name, value in self.model.state_dict().items()}

    def save(self) -> None:
        """Write a checkpoint, from process 0.

        Raises:
            TrainingError: it could not be written; the checkpoints before it are untouched.
        """
        if not self.leads:
            return
        state = self.learner.state()
        state |= {f"best.{name}": value for name, value in self.best.items()}
        state |= {f"sum.{name}": value for name, value in self.sums.items()}
        record = {name: getattr(self, name) for name in _COUNTERS}
        tensors = {"weights": self.weights(), "state": state}
        checkpoint.save(self.folder / "checkpoints", self.step, tensors, record)

    def restore(self, tensors: dict[str, dict[str, Tensor]], record: dict[str, Any]) -> None:
        """Take back what `save` wrote."""
        state = {name: value.to(self.model.device) for name, value in tensors["state"].items()}
        self.best = {name.removeprefix("best."): value for name, value in state.items() if name.startswith("best.")}
        self.sums = {name.removeprefix("sum."): value for name, value in state.items() if name.startswith("sum.")}
        self.learner.restore(state)
        for name in _COUNTERS:
            setattr(self, name, record[name])


_COUNTERS = ("step", "epoch", "in_epoch", "seconds", "best_loss", "stale", "log_bytes", "pictures_drawn")


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come; a second one acts as it always does."""
    arrived = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: object) -> None:
        nonlocal arrived
        arrived = True
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
