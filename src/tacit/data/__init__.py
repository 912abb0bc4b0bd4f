"""From the user's files to a `Dataset`.

`load` reads a path or a name; `listing`, `names` and `describe` say which names there are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tacit.data.register import describe, listing, names

if TYPE_CHECKING:
    from tacit.data.dataset import Dataset as Dataset
    from tacit.data.loading import load as load

__all__ = ["Dataset", "describe", "listing", "load", "names"]

_HOMES = {"Dataset": "tacit.data.dataset", "load": "tacit.data.loading"}


def __getattr__(name: str) -> object:
    # `tacit data` lists the names without waiting for torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tacit.data' has no attribute {name!r}")
