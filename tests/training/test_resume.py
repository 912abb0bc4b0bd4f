"""A killed run and one never interrupted are the same, bit for bit: in real processes, killed by SIGKILL."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tacit.tasks.fit import fit
from tacit.tasks.resume import resume
from tacit.tasks.run import Run
from tacit.training import checkpoint

# One player, two players, Markov chains, momentum copies. Steps are chosen so that runs cross several epochs.
MODELS = {
    "vae": {"hidden": (32,), "latent": 4, "ema": 0.99},
    "wgan-gp": {"channels": 8},
    "rbm": {"hidden": 16, "chains": 32},
    "mean-teacher": {},
}
STEPS = 60


def newest(folder: Path):
    return checkpoint.read(checkpoint.found(folder / "checkpoints")[0])


def assert_same(one: Path, other: Path) -> None:
    (tensors, record), (expected, expected_record) = newest(one), newest(other)
    assert tensors.keys() == expected.keys()
    for file in expected:
        assert tensors[file].keys() == expected[file].keys()
        for name, value in expected[file].items():
            assert torch.allclose(tensors[file][name], value, rtol=0, atol=0, equal_nan=True), f"{file}: {name}"
    timeless = lambda r: {k: v for k, v in r.items() if k != "seconds"}  # noqa: E731
    assert timeless(record) == timeless(expected_record)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def start(model: str, out: Path, arguments: dict, steps: int = STEPS) -> subprocess.Popen:
    options = []
    for name, value in arguments.items():
        words = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        options += [f"--{name.replace('_', '-')}", *words]
    words = [
        "fit",
        model,
        "digits",
        "--steps",
        str(steps),
        "--save-seconds",
        "0",
        "--log-every",
        "7",
        "--pictures",
        "1",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "tacit.cli", *words, "--out", str(out), "--quiet", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = checkpoint.found(out / "checkpoints")
        if found and int(found[0].name.removeprefix("step-")) >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"no checkpoint of step {step} within two minutes")


def start_and_kill(model: str, out: Path) -> None:
    """Begin a run and kill it at a random step, or the next one earlier if that had ended before."""
    # On a busy machine the signal may come so late that there is nothing left to kill.
    for step in (random.Random(model).randint(5, STEPS - 30), 5, 1, 1):
        shutil.rmtree(out, ignore_errors=True)
        process = start(model, out, MODELS[model])
        wait_for_step(out, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if Run(out).record["status"] == "running" and newest(out)[1]["step"] < STEPS:
            return
    pytest.fail("four runs ended before they could be killed")


@pytest.mark.parametrize("model", MODELS)
def test_killed_at_a_random_step_and_resumed_it_is_as_if_never_interrupted(model, tmp_path):
    killed = tmp_path / "killed"
    start_and_kill(model, killed)
    resume(killed, quiet=True)
    assert Run(killed).record["status"] == "finished"

    fit(
        model, steps=STEPS, save_seconds=0, log_every=7, pictures=1, out=tmp_path / "whole", quiet=True, **MODELS[model]
    )
    assert_same(killed, tmp_path / "whole")


def test_ctrl_c_finishes_the_step_saves_and_exits_0(tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / number.name
        process = start("vae", out, MODELS["vae"], steps=100_000)
        wait_for_step(out, 3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert Run(out).record["status"] == "interrupted"
        assert newest(out)[1]["step"] == Run(out).record["step"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys):
    fit("vae", steps=20, save_seconds=0, out=tmp_path / "run", quiet=True, **MODELS["vae"])
    newest_path = checkpoint.found(tmp_path / "run" / "checkpoints")[0]
    shutil.copy(newest_path / "progress.json", newest_path / "weights.safetensors")
    model = Run(tmp_path / "run").model
    assert not model.training
    said = capsys.readouterr().err
    assert "step-00000020" in said and "damaged" in said
