"""From the user's files to a `Dataset`."""

from tacit.data.dataset import Dataset

__all__ = ["Dataset"]
