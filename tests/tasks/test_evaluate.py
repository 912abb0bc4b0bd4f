"""`tacit evaluate` on data with known factors."""

from dataclasses import replace

import torch

from tacit.data import Dataset, load
from tacit.tasks.evaluate import evaluate
from tacit.tasks.fit import fit


def test_factors_are_looked_for_in_codes(tmp_path, capsys):
    data = load("sprites")
    few = replace(data.take(torch.arange(0, len(data), 97)), label=None, source=None)
    options = {"steps": 2, "quiet": True, "pictures": 0, "hidden": (8,)}
    run = fit("vae", few, out=tmp_path / "small", latent=3, **options)
    found = evaluate(run.path, few)
    assert found.disentanglement["rows"] == len(few) and 0 <= found.disentanglement["gap"] <= 1
    assert "mutual information gap" in capsys.readouterr().out
    large = fit("vae", few, out=tmp_path / "large", latent=257, **options)
    assert large.evaluate(few).disentanglement is None
    assert run.evaluate(Dataset(few.space, few.x)).disentanglement is None
