"""tacit learns from data without labels: every family of unsupervised model behind one contract and one unit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tacit import catalogue

if TYPE_CHECKING:
    from tacit.data import Dataset as Dataset
    from tacit.data import load as load
    from tacit.model import Model as Model
    from tacit.tasks.compare import compare as compare
    from tacit.tasks.detector import Detector as Detector
    from tacit.tasks.fit import fit as fit
    from tacit.tasks.resume import resume as resume
    from tacit.tasks.run import Run as Run

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "tacit.data",
    "load": "tacit.data",
    "Model": "tacit.model",
    "Run": "tacit.tasks.run",
    "fit": "tacit.tasks.fit",
    "resume": "tacit.tasks.resume",
    "compare": "tacit.tasks.compare",
    "Detector": "tacit.tasks.detector",
}


def __getattr__(name: str) -> object:
    # torch takes two seconds to import and `tacit --help` must not wait for it.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    for entry in catalogue.entries():
        if entry.class_name == name:
            return catalogue.load(entry.name)
    raise AttributeError(f"module 'tacit' has no attribute {name!r}")
