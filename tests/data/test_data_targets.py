"""What belongs to a row goes where the row goes."""

import dataclasses

import torch

from tacit.data import Dataset
from tacit.spaces import Vectors


def test_targets_follow_their_rows():
    x = torch.arange(40.0)[:, None]
    data = Dataset(Vectors(1), x, name="rows", target=x.repeat(1, 2) + 100)
    index = torch.tensor([3, 1])
    assert torch.equal(data.batch(index).target, torch.tensor([[103.0, 103], [101, 101]]))
    for part in (*data.parts(), data.take(index), data.take(slice(2, 5)), data.to("cpu")):
        assert torch.equal(part.target[:, :1], part.x + 100)
    assert Dataset(Vectors(1), x).batch(index).target is None


def test_other_targets_are_other_data():
    x = torch.arange(40.0)[:, None]
    data = Dataset(Vectors(1), x, name="rows", target=x)
    others = [dataclasses.replace(data, target=target) for target in (x + 1, None)]
    assert len({found.fingerprint() for found in (data, *others)}) == 3
