"""The worked example of CONTRIBUTING.md, taken from the page as it stands: one file more, and everything knows it."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import tacit.models.autoregressive as family
from tacit import catalogue
from tacit.cli import main
from tacit.data import Dataset
from tacit.spaces import Images
from tacit.tasks.fit import fit

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    path, code = re.search(
        r"<!-- example: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S
    ).groups()
    file = tmp_path / Path(path).relative_to("src/tacit/models")
    file.parent.mkdir()
    file.write_text(code, encoding="utf-8")
    monkeypatch.setattr(catalogue, "_MODELS", tmp_path)
    monkeypatch.setattr(family, "__path__", [*family.__path__, str(file.parent)])
    catalogue.entries.cache_clear()
    yield "independent-pixels"
    catalogue.entries.cache_clear()


def test_one_file_is_all_it_takes(example, tmp_path, capsys):
    assert main(["models", example]) == 0
    assert "--bias" in capsys.readouterr().out

    pixels = torch.tensor(list(itertools.product((0, 1), repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)
    x = pixels[torch.randint(0, 16, (400,), generator=torch.Generator().manual_seed(0))]
    x[:, :, 0, 0] |= x[:, :, 1, 1]
    run = fit(example, Dataset(Images(1, 2, 2, 2), x), steps=300, out=tmp_path / "run", quiet=True)
    assert run.model.log_prob(pixels).exp().sum().item() == pytest.approx(1, abs=1e-5)
    means = torch.sigmoid(run.model.logits).flatten()
    torch.testing.assert_close(means, x.float().mean(0).flatten(), atol=0.06, rtol=0)
    assert run.sample(5).shape == (5, 1, 2, 2)
