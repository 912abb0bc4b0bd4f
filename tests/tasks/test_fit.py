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


def test_start_gives_the_weights_of_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Dataset(Vectors(3), torch.randn(40, 3))
    first = tacit.fit("vae", data, steps=20, out=tmp_path / "first", quiet=True)
    # A rate that moves nothing: what comes out is what went in.
    second = tacit.fit(
        "vae", data, steps=1, learning_rate=1e-30, start=first.path, samples=5, out=tmp_path / "second", quiet=True
    )
    assert second.model.samples == 5
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor)


def test_start_refuses_other_models_data_and_sizes(tmp_path: Path) -> None:
    data = Dataset(Vectors(3), torch.randn(40, 3))
    start = tacit.fit("vae", data, steps=1, out=tmp_path / "start", quiet=True).path
    for model, given, arguments, message in (
        ("realnvp", data, {}, "a run of vae: give a run of realnvp"),
        ("vae", Dataset(Vectors(2), torch.randn(40, 2)), {}, "whose observations differ"),
        ("vae", data, {"latent": 2}, "it was fitted with latent None"),
    ):
        with pytest.raises(TacitError, match=message):
            tacit.fit(model, given, steps=1, start=start, out=tmp_path / "run", **arguments)
        assert not (tmp_path / "run").exists()
    with pytest.raises(TacitError, match="nowhere is not a run"):
        tacit.fit("vae", data, steps=1, start=tmp_path / "nowhere")
