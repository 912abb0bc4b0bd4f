"""Folders of recordings."""

import wave

import numpy as np
import pytest
import torch

from tacit.data import load
from tacit.errors import DataError
from tacit.spaces import Waveform


def _wav(path, samples, *, rate=8000, width=2, channels=1):
    """Write `samples` in [−1, 1), (frames,) or (frames, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.round(np.asarray(samples) * 2.0 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        values += 128
    data = values.reshape(-1, 1).astype("<i8").view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, len(data) // (width * channels), "NONE", ""))
        file.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths(tmp_path, width):
    samples = np.array([0.0, 0.5, -0.5, -1.0, 0.25, 0.75])
    _wav(tmp_path / "a.wav", samples, width=width)
    data = load(tmp_path)
    assert data.space == Waveform(6, 8000) and data.x.dtype == torch.int16
    assert data.x.tolist() == [[0, 16384, -16384, -32768, 8192, 24576]]


def test_channels_are_averaged(tmp_path):
    _wav(tmp_path / "a.wav", np.array([[0.5, 0.25], [-0.5, 0.5]]), channels=2)
    assert load(tmp_path).x.tolist() == [[12288, 0]]


def test_windows_and_classes(tmp_path):
    _wav(tmp_path / "up" / "long.wav", np.arange(25) / 100)
    _wav(tmp_path / "down" / "short.wav", -np.arange(4) / 100)
    data = load(tmp_path, length=10)
    assert data.class_names == ("down", "up") and data.label.tolist() == [0, 1, 1]
    long = np.round(np.arange(25) / 100 * 2**15).astype(int)
    assert data.x[1:].tolist() == [long[:10].tolist(), long[10:20].tolist()]
    assert data.x[0, 4:].tolist() == [0] * 6
    assert load(tmp_path).space.length == 25  # the longest
    _wav(tmp_path / "up" / "hour.wav", np.zeros(20000))
    assert load(tmp_path).space.length == 8000  # but a second at most


def test_on_disk_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TACIT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(6):
        _wav(tmp_path / "sounds" / f"{i}.wav", rng.uniform(-1, 1, 30))
    here, there = load(tmp_path / "sounds", length=7), load(tmp_path / "sounds", length=7, memory=0)
    assert there.mapped and torch.equal(here.observations(), there.observations())


def test_different_rates_are_refused(tmp_path):
    for i, rate in enumerate((8000, 8000, 44100)):
        _wav(tmp_path / f"{i}.wav", np.zeros(5), rate=rate)
    with pytest.raises(DataError, match="2 at 8000 and 1 at 44100 samples a second"):
        load(tmp_path)


def test_unreadable_recordings_are_named(tmp_path, capsys):
    good = _wav(tmp_path / "a.wav", np.zeros(50)).read_bytes()
    (tmp_path / "torn.wav").write_bytes(good[:-40])
    (tmp_path / "float.wav").write_bytes(good[:20] + b"\x03\x00" + good[22:])  # IEEE float instead of PCM
    (tmp_path / "wide.wav").write_bytes(good[:32] + b"\x08\x00@\x00" + good[36:])  # 64 bits a sample
    (tmp_path / "none.wav").write_bytes(good[:40] + b"\0\0\0\0")
    (tmp_path / "words.wav").write_text("no sound")
    data = load(tmp_path)
    assert data.skipped == ("float.wav", "none.wav", "torn.wav", "wide.wav", "words.wav") and len(data) == 1
    assert "5 of 6 files" in capsys.readouterr().err
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DataError, match="none of the 5 files could be read"):
        load(tmp_path)


def test_a_length_must_be_positive(tmp_path):
    _wav(tmp_path / "a.wav", np.zeros(50))
    with pytest.raises(DataError, match="length=0"):
        load(tmp_path, length=0)
