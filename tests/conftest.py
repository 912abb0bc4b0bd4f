"""What every test shares."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def data_home() -> Path:
    """The folder of real data sets, where the machine has one."""
    home = os.environ.get("TACIT_DATA")
    if not home or not Path(home).is_dir():
        pytest.skip("TACIT_DATA does not point at the folder of real data sets")
    return Path(home)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
