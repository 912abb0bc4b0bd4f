"""What can go wrong through no fault of the code.

Every message is one sentence that names the thing, the value and the remedy; the command line prints it
without a traceback and exits with status 2.
"""

import math


class TacitError(Exception):
    """Base of every error whose remedy is in the user's hands."""


class DataError(TacitError):
    """The data cannot be read, or lacks what was asked of it."""


class SpaceError(TacitError):
    """A model was given a space of observations it cannot take, or observations outside its space."""


class CapabilityError(TacitError):
    """A verb was asked of a model that lacks the capability it needs."""


class RunError(TacitError):
    """A run folder is missing something, or holds something damaged."""


class TrainingError(TacitError):
    """Learning stopped: a loss or a gradient was not finite, or a checkpoint could not be written."""


def check_at_least(least: float, **arguments: float | tuple[float, ...]) -> None:
    """Check that no argument is, or holds a number, below `least`, and that none is empty.

    Raises:
        TacitError: one is.
    """
    for name, value in arguments.items():
        if min(value if isinstance(value, tuple) else (value,), default=-math.inf) < least:
            raise TacitError(f"{name} is {value}: give at least {least}")


class ArchiveError(TacitError):
    """An archive is damaged, or is not what it is taken for."""
