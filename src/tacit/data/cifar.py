"""CIFAR-10's and CIFAR-100's binary batches, and the pickled ones of the Python version, of any number of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tacit.data.arrays import from_arrays
from tacit.data.dataset import Dataset
from tacit.data.pickles import unpickled
from tacit.data.reading import part_of, reading
from tacit.errors import DataError


def read_cifar(root: Path, files: Sequence[Path]) -> Dataset:
    """Batches by their names: those called test are the official test part, all others are for training."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in files:
        batch = _cifar_binary(path) if path.suffix == ".bin" else _cifar_python(path)
        found.setdefault("test" if part_of(path.stem) == "test" else "train", []).append(batch)
    parts = {p: (np.concatenate([x for x, _ in b]), np.concatenate([y for _, y in b])) for p, b in found.items()}
    return from_arrays(root.name, parts, class_names=_cifar_names(files[0].parent))


def _cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    fine = path.stem in ("train", "test")  # CIFAR-100 calls its files so, and has a coarse label before the fine one
    head = 2 if fine else 1
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % (head + 3072):
        raise DataError(
            f"{path.name} holds {len(data)} bytes, which is no whole number of CIFAR records of {head + 3072} bytes: "
            f"it is truncated or of another kind, get or copy it anew"
        )
    records = data.reshape(-1, head + 3072)
    return records[:, head:].reshape(-1, 3, 32, 32), records[:, head - 1]


def _cifar_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(path.name, "a CIFAR batch of the Python version"):
        record = unpickled(path)
        labels = np.asarray(record.get("fine_labels") or record["labels"], np.int64)
        return np.asarray(record["data"], np.uint8).reshape(len(labels), 3, 32, 32), labels


def _cifar_names(folder: Path) -> tuple[str, ...]:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (folder / name).exists():
            return tuple((folder / name).read_text(encoding="utf-8").split())
    for name, field in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / name).exists():
            with reading(name, "CIFAR's names of classes"):
                return tuple(map(str, unpickled(folder / name)[field]))
    return ()
