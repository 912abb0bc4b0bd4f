"""Go on with a run from its last good checkpoint."""

from __future__ import annotations

from pathlib import Path

from tacit.data import Dataset
from tacit.errors import DataError
from tacit.tasks.fit import train
from tacit.tasks.run import Run


def resume(run: Path, data: Dataset | None = None, *, quiet: bool = False) -> Run:
    """Continue the run until its budget is used, bit for bit as if it had never stopped.

    Args:
        run: the run folder.
        data: the data it was fitted on, where that came from Python and not from a file.
        quiet: no progress bar.

    Raises:
        RunError: the folder is not a run, or no checkpoint is whole.
        DataError: the data is not what the run was fitted on.
    """
    found = Run(run)
    if found.record["status"] in ("finished", "stopped early"):
        return found
    if data is None:
        data = found.data()
    elif data.fingerprint() != found.record["data"]["fingerprint"]:
        raise DataError(f"{data.name} is not the data that {run} was fitted on: give the same data")
    return train(found.path, data, quiet=quiet)
