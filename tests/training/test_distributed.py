"""Two processes learn what one learns from batches twice as large."""

import pytest
import torch

from tacit.tasks.fit import fit

MODELS = {"vae": {"hidden": (32,), "latent": 4}, "wgan-gp": {"channels": 8}}


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_are_one_with_twice_the_batch(model, tmp_path):
    common = {"steps": 12, "seed": 3, "quiet": True, "pictures": 1, **MODELS[model]}
    one = fit(model, batch_size=32, out=tmp_path / "one", **common)
    two = fit(model, batch_size=16, devices=2, out=tmp_path / "two", **common)
    assert two.record["status"] == "finished"
    expected = one.model.state_dict()
    for name, value in two.model.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=2e-3, atol=2e-4), name
