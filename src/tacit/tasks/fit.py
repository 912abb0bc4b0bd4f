"""Train a model on data: progress, checkpoints, samples as it learns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import platform
import time
from pathlib import Path
from typing import Any, Literal

import torch

from tacit import __version__, catalogue
from tacit.data import Dataset, load
from tacit.errors import DataError, RunError, TacitError
from tacit.model import Model
from tacit.tasks.run import Run, build, read_record
from tacit.training import checkpoint, distributed
from tacit.training.loop import Loop, Watcher
from tacit.training.plan import Plan, reseed
from tacit.training.progress import Bar, TensorBoard


def fit(
    model: str,
    data: str | Path | Dataset = "digits",
    *,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimiser: str | None = None,
    weight_decay: float | None = None,
    schedule: Literal["constant", "cosine"] | None = None,
    warmup: int | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    patience: int | None = None,
    log_every: int = 50,
    validate_every: int | None = None,
    save_seconds: float = 60.0,
    pictures: int = 5,
    start: Path | None = None,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    devices: int = 1,
    tensorboard: bool = False,
    quiet: bool = False,
    watchers: tuple[Watcher, ...] = (),
    **arguments: Any,
) -> Run:
    """Train `model` on the training part of `data` and keep everything in a run folder.

    Args:
        model: a name of the catalogue (`tacit models`); `flow` takes the first choice among flows.
        data: a path, a name (`tacit data`), or a `Dataset`.
        steps: the budget in optimiser steps.
        epochs: the budget in passes over the data.
        minutes: the budget in minutes; 5 where no budget is given at all.
        seed: of the weights, of the order of data and of all noise.
        batch_size: observations a step and a process; the model's own recipe has a default, as for the next seven.
        learning_rate: peak learning rate.
        optimiser: a class of torch.optim by name.
        weight_decay: decoupled weight decay.
        schedule: constant, or cosine to zero at the end of the budget.
        warmup: steps of linear warm-up.
        clip: largest gradient norm.
        ema: decay of the exponential moving average of the weights.
        precision: float32, or bfloat16 for mixed precision.
        patience: stop after this many validations without improvement, and keep the best weights.
        log_every: steps between lines of metrics.jsonl.
        validate_every: steps between validations; once an epoch by default.
        save_seconds: seconds between checkpoints.
        pictures: how many pictures of samples to draw while learning.
        start: a run of the same model, whose weights training begins with; the data or the objective may be others.
        out: the run folder; runs/MODEL-DATA by default.
        device: auto takes a GPU where there is one.
        devices: how many processes learn together, each with its own batch.
        tensorboard: also write TensorBoard events into the run folder.
        quiet: no progress bar.
        watchers: objects that are told how training goes (Python only).
        arguments: the model's own arguments (`tacit models MODEL` lists them).

    Returns:
        The run; its `model` is ready for use.

    Raises:
        TacitError: an argument, the data or the model does not fit; the message says which and what to do.
    """
    model = catalogue.entry(model).name
    cls = catalogue.load(model)
    dataset = data if isinstance(data, Dataset) else load(data)
    configured = configure(model, cls, dataset, arguments)
    overrides: dict[str, Any] = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimiser": optimiser,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "ema": ema,
    }
    if steps is epochs is minutes is None:
        minutes = 5.0
    plan = Plan(
        steps=steps,
        epochs=epochs,
        minutes=minutes,
        seed=seed,
        recipe=dataclasses.replace(cls.recipe, **{k: v for k, v in overrides.items() if v is not None}),
        precision=precision,
        patience=patience,
        log_every=log_every,
        validate_every=validate_every,
        save_seconds=save_seconds,
        pictures=pictures,
    )
    # Built once before a folder is made: it refuses a space or an argument that it cannot take.
    built = cls(dataset.space, **configured)
    if patience is not None and not built.loss_ranks:
        raise TacitError(
            f"patience is {patience}, but a lower loss of {model}, as configured here, is no better model: leave "
            "patience out"
        )
    stepped = any(list(group["params"]) for group in built.players().values())
    if not stepped and (devices > 1 or learning_rate is not None):
        option = "--devices" if devices > 1 else "--learning-rate"
        raise TacitError(f"{model} learns without an optimiser, in one process: leave {option} out")
    if start is not None:
        _begin_with(Run(start), built, model, configured, dataset)
    path = _new_folder(out, f"{model}-{dataset.name}")
    record = {
        "format": 1,
        "tacit": __version__,
        "model": model,
        "arguments": configured,
        "space": dataset.space.to_dict(),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "rows": len(dataset),
            "class_names": list(dataset.class_names),
            "fingerprint": dataset.fingerprint(),
        },
        "plan": plan.to_dict(),
        "start": None if start is None else str(start),
        "device": device,
        "devices": devices,
        "tensorboard": tensorboard,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "status": "new",
    }
    checkpoint.write_json(path / "run.json", record)
    if dataset.vocabulary:
        checkpoint.write_json(path / "vocabulary.json", list(dataset.vocabulary))
    return train(path, dataset, quiet=quiet, watchers=watchers)


def configure(name: str, cls: type[Model], data: Dataset, arguments: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments, defaults and data's own values filled in.

    Raises:
        TacitError: an argument is not the model's.
        DataError: the model needs labels and the data has none.
    """
    known = cls.arguments()
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise TacitError(f"{name} has no argument {unknown[0]!r}: it has {', '.join(known)}")
    values = {key: p.default for key, p in known.items() if p.default is not inspect.Parameter.empty} | arguments
    if "classes" in known and "classes" not in values:
        if data.classes == 0:
            raise DataError(
                f"{name} needs labels for some rows and {data.name} has none: name the label column with --label, "
                f"or put images into one subfolder a class"
            )
        values["classes"] = data.classes
    missing = [key for key in known if key not in values]
    if missing:
        raise TacitError(f"{name} needs a value for {missing[0]!r}: give --{missing[0].replace('_', '-')}")
    return values


def train(path: Path, data: Dataset, *, quiet: bool = False, watchers: tuple[Watcher, ...] = ()) -> Run:
    """Train the run at `path`, from its last checkpoint where it has one."""
    record = read_record(path)
    if record["devices"] > 1:
        distributed.spawn(record["devices"], _work, path, data, quiet, watchers)
    else:
        _work(path, data, quiet, watchers)
    run = Run(path)
    if run.record["status"] == "failed" and record["devices"] > 1:
        raise TacitError(run.record["error"])
    return run


def _work(path: Path, data: Dataset, quiet: bool, watchers: tuple[Watcher, ...]) -> None:
    """What one process does for a run."""
    record = read_record(path)
    leads = distributed.rank() == 0
    bar: Any = (
        Bar(f"{record['model']} on {record['data']['name']}") if leads and not quiet else contextlib.nullcontext()
    )
    started = time.monotonic()

    def note(**fields: Any) -> None:
        record.update(fields)
        if leads:
            checkpoint.write_json(path / "run.json", record)

    try:
        with bar:
            if leads and not quiet:
                watchers += (bar,)
            if leads and record["tensorboard"]:
                watchers += (TensorBoard(path / "tensorboard"),)
            note(status="running")
            loop = _loop(path, record, data, watchers)
            if loop.model.learns_exactly():
                _fit_exactly(loop)
                outcome = "finished"
            else:
                outcome = loop.run()
        note(status=outcome, step=loop.step, seconds=round(loop.seconds or time.monotonic() - started, 3))
    except TacitError as error:
        note(status="failed", error=str(error))
        if record["devices"] == 1:
            raise


def _loop(path: Path, record: dict[str, Any], data: Dataset, watchers: tuple[Watcher, ...]) -> Loop:
    """The loop of a run, new or where its last checkpoint left it."""
    plan = Plan.from_dict(record["plan"])
    device = _device(record["device"])
    train, valid, _ = data.parts()
    if device.type == "cuda" and train.x.nbytes < torch.cuda.mem_get_info()[0] / 4:
        train, valid = train.to(device), valid.to(device)
    reseed(plan.seed, "weights")
    model = build(record).to(device)

    def say(message: str) -> None:
        for watcher in watchers:
            watcher.said(message)

    saved = checkpoint.load_newest(path / "checkpoints", say)
    if saved is None and not model.learns_exactly():
        if record.get("start"):
            # What `adapt` would measure anew came with the weights, which were learnt for it.
            model.load_state_dict(Run(record["start"]).model.state_dict())
        else:
            reseed(plan.seed, "adapt")
            model.adapt(train)
        distributed.share_weights(model)
    loop = Loop(model.train(), train, valid, plan, path, watchers)
    if saved is not None and not model.learns_exactly():
        loop.restore(*saved)
    return loop


def _begin_with(run: Run, model: Model, name: str, arguments: dict[str, Any], data: Dataset) -> None:
    """Give `model` the weights of `run`.

    Raises:
        TacitError: the run is of another model, of observations of another kind, or of other sizes.
    """
    if run.record["model"] != name:
        raise TacitError(f"start is {run.path}, a run of {run.record['model']}: give a run of {name}")
    if model.learns_exactly():
        raise TacitError(f"start is {run.path}, but {name} begins with no weights: leave start out")
    if run.space != data.space or run.vocabulary != data.vocabulary:
        raise TacitError(f"start is {run.path}, whose observations differ from those of {data.name}: give data like it")
    try:
        model.load_state_dict(run.model.state_dict())
    except RuntimeError:
        theirs = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
        differ = ", ".join(f"{k} {v}" for k, v in run.record["arguments"].items() if theirs.get(k) != v)
        raise TacitError(f"start is {run.path}, whose weights have other sizes: it was fitted with {differ}") from None


def _fit_exactly(loop: Loop) -> None:
    reseed(loop.plan.seed, "exactly")
    loop.model.fit_exactly(loop.train, math.inf if loop.plan.minutes is None else 60 * loop.plan.minutes)
    checkpoint.save(loop.folder / "checkpoints", 0, {"weights": loop.model.state_dict()}, {})


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TacitError(
            "device is cuda and torch sees no GPU here: use --device cpu, or install a CUDA build of torch"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _new_folder(out: Path | None, name: str) -> Path:
    if out is not None:
        out = Path(out)
        if (out / "run.json").exists():
            raise RunError(f"{out} holds a run already: `tacit resume {out}`, or choose another --out")
        path = out
    else:
        path = Path("runs") / name.replace("/", "-")
        number = 2
        while path.exists():
            path = Path("runs") / f"{name.replace('/', '-')}-{number}"
            number += 1
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the run folder {path} cannot be made ({error.strerror}): choose another --out") from error
    return path
