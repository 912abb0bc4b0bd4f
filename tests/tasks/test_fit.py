"""What fitting refuses before it makes a folder."""

from pathlib import Path

import pytest
import torch

import tacit
from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.spaces import Vectors


@pytest.mark.parametrize(("model", "arguments"), [("gaussian-rbm", {}), ("ebm", {}), ("vae", {"kl_below": 1.0})])
def test_patience_goes_by_a_loss_that_ranks_models(model: str, arguments: dict[str, float], tmp_path: Path) -> None:
    data = Dataset(Vectors(3), torch.randn(40, 3))
    with pytest.raises(TacitError, match=f"a lower loss of {model}, as configured here, is no better model"):
        tacit.fit(model, data, steps=1, patience=2, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
