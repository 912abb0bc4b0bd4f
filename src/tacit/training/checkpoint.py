"""Checkpoints that are whole or absent: written aside, flushed to the disk, renamed last, verified when read.

A checkpoint is a folder `checkpoints/step-00000400` of safetensors and JSON, nothing of which is ever unpickled, and
a manifest of SHA-256 sums, without which a flipped bit loads silently. Two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tacit.errors import RunError, TrainingError

KEPT = 2
_MANIFEST = "manifest.json"


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], record: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` under `folder`, unless it is there: one safetensors file for each of `tensors`.

    Raises:
        TrainingError: the disk is full or refuses; what was saved before is untouched.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    aside = folder / f".saving-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_debris(folder)
        aside.mkdir()
        for name, content in tensors.items():
            save_file(
                {key: value.detach().contiguous().clone() for key, value in content.items()},
                aside / f"{name}.safetensors",
            )
        (aside / "progress.json").write_text(json.dumps(record), encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
        (aside / _MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for path in aside.iterdir():
            _flush(path)
        _flush(aside)
        aside.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = [path.name for path in found(folder)]
        raise TrainingError(
            f"the checkpoint of step {step} could not be written to {folder} ({_reason(error)}): free some space and "
            f"`tacit resume {folder.parent}`, which continues from {kept[0] if kept else 'the start'}"
        ) from error
    for old in found(folder)[KEPT:]:
        _discard(old)
    return final


def found(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, newest first, unverified."""
    return sorted(folder.glob("step-*"), reverse=True)


def load_newest(
    folder: Path, warn: Callable[[str], None]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint that is whole; None where there is none at all.

    A damaged one is named through `warn` and set aside, and the one before it is used.

    Raises:
        RunError: there are checkpoints and every one is damaged.
    """
    candidates = found(folder)
    problems = []
    for path in candidates:
        try:
            return read(path)
        except RunError as error:
            problems.append(str(error))
            warn(f"{error}; using the checkpoint before it")
            path.rename(path.with_name(f".damaged-{path.name}-{os.getpid()}"))
    if problems:
        raise RunError(f"no checkpoint in {folder} is whole: {'; '.join(problems)}; fit the model again")
    return None


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """One checkpoint's tensors, by file, and its record.

    Raises:
        RunError: a part is missing, or is not what the manifest says.
    """
    for name, expected in _manifest(path).items():
        if Path(name).name != name or not (path / name).is_file():
            raise RunError(f"{path / name} is missing")
        if _sha256(path / name) != expected:
            raise RunError(f"{path / name} is damaged (its SHA-256 is not the recorded one)")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "progress.json").read_text(encoding="utf-8"))


def write_json(path: Path, record: dict[str, Any] | list[str]) -> None:
    """Replace `path` by `record` in one step: a reader, or a crash, sees the old file or the new one."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _flush(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise TrainingError(f"{path} could not be written ({_reason(error)}): free some space there") from error


def _manifest(path: Path) -> dict[str, str]:
    try:
        sums = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path / _MANIFEST} is missing") from None
    except ValueError:
        raise RunError(f"{path / _MANIFEST} is damaged (it is not JSON)") from None
    if not isinstance(sums, dict) or not {"weights.safetensors", "progress.json"} <= sums.keys():
        raise RunError(f"{path / _MANIFEST} is damaged (it does not name every part)")
    return sums


def _clear_debris(folder: Path) -> None:
    for left in _debris(folder):
        shutil.rmtree(left, ignore_errors=True)


def _debris(folder: Path) -> Iterator[Path]:
    yield from folder.glob(".saving-*")
    yield from folder.glob(".discarded-*")


def _discard(path: Path) -> None:
    # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
    gone = path.with_name(f".discarded-{path.name}-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
