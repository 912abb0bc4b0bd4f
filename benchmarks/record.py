"""Writes one measured figure as one JSON file: `benchmarks/results/<model>/<data>.<metric>.json`.

Published tables are generated from these files (`benchmarks/tables.py`) and typed nowhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch

import tacit
from tacit.data import Dataset

RESULTS = Path(__file__).parent / "results"


def _commit() -> str:
    """The commit that this code is of; "+" after it says that code was changed since."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--", "*.py"))


# As of the start: a long training must not be recorded under what was committed meanwhile.
COMMIT = _commit()


def record(
    model: str,
    data: str,
    metric: str,
    value: float,
    *,
    split: str,
    unit: str,
    better: Literal["lower", "higher"],
    seed: int | list[int],
    seconds: float,
    kind: Literal["exact", "bound", "estimate", "measured"] = "measured",
    uncertainty: float | None = None,
    target: float | None = None,
    reference: dict[str, Any] | None = None,
    note: str = "",
    reason: str = "",
    packages: tuple[str, ...] = (),
) -> Path:
    """Write the record and say on the terminal what it was and whether it met the target.

    Args:
        value: the figure, in `unit`.
        uncertainty: its standard error, or the standard deviation over seeds (say which in `note`).
        target: what was aimed at; a miss is recorded as such.
        reason: why, should it be missed; then, and only then, it joins the note.
        reference: `{"value": …, "source": …}`, the published or the peer's figure under the same protocol.
        packages: installed packages, beside torch and numpy, whose versions matter.
    """
    met = None if target is None else (value <= target if better == "lower" else value >= target)
    root = Path(__file__).parent.parent
    result = {
        "model": model,
        "data": data,
        "split": split,
        "metric": metric,
        "unit": unit,
        "value": value,
        "uncertainty": uncertainty,
        "kind": kind,
        "better": better,
        "target": target,
        "met": met,
        "reference": reference,
        "note": note if met is not False or not reason else f"{note}; missed because {reason}",
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_arguments()]),
        "seed": seed,
        "seconds": round(seconds, 1),
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("tacit", "torch", "numpy", *packages)},
        },
        "commit": COMMIT,
    }
    path = _path(model, data, metric)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    verdict = {None: "", True: f" (target {target}: met)", False: f" (target {target}: MISSED)"}[met]
    print(f"{model} on {data}, {metric}: {value:.5g} {unit}{verdict} -> {path.relative_to(root)}")
    return path


def _path(model: str, data: str, metric: str) -> Path:
    return RESULTS / model / f"{data}.{metric}.json".replace(":", ".").replace(" ", "-")


def recorded(model: str, data: str, metric: str) -> float | None:
    """The figure that was recorded last, if any was."""
    path = _path(model, data, metric)
    return json.loads(path.read_text(encoding="utf-8"))["value"] if path.exists() else None


def _arguments() -> list[str]:
    """The command's arguments but for the run's folder, which is nobody else's."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return words


def fit(model: str, data: str | Dataset, *, out: Path | str | None = None, **options: Any) -> tacit.Run:
    """`tacit.fit`, or what is left of it where `out` holds a run; ended by a signal that stops it.

    A figure of half a training must not be recorded.
    """
    if out is not None and (Path(out) / "run.json").exists():
        begun = tacit.Run(Path(out)).record
        for name, found in (("model", begun["model"]), *((n, begun["plan"][n]) for n in ("seed", "steps", "minutes"))):
            asked = model if name == "model" else options.get(name, found)
            if found != asked:
                raise SystemExit(f"{out} holds a run with {name} {found}, not {asked}: give another --out")
        run = tacit.resume(Path(out), None if isinstance(data, str) else data)
    else:
        run = tacit.fit(model, data, out=out, **options)
    if run.record["status"] == "interrupted":
        raise SystemExit(f"interrupted at step {run.record['step']}: nothing is recorded, and the same command goes on")
    return run


def hardware() -> str:
    """The processor, the threads torch uses, and the accelerator where there is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    parts = [f"{name}, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)
