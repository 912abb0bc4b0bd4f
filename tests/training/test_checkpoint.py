import errno
import os
import random
import signal
import subprocess
import time

import pytest
import torch

from tacit.errors import RunError, TrainingError
from tacit.training import checkpoint


def save(folder, step, value=0.0, size=10):
    tensors = {"weights": {"w": torch.full((size,), value)}, "state": {"m": torch.full((size,), value)}}
    return checkpoint.save(folder, step, tensors, {"step": step})


def test_two_are_kept_and_the_newest_is_read(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, step)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000003", "step-00000002"]
    tensors, record = checkpoint.load_newest(tmp_path, pytest.fail)
    assert record == {"step": 3}
    assert (tensors["weights"]["w"] == 3).all()


@pytest.mark.parametrize("part", ["weights.safetensors", "state.safetensors", "progress.json", "manifest.json"])
def test_one_flipped_bit_anywhere_is_found_and_the_older_one_used_with_a_warning(tmp_path, part):
    save(tmp_path, 1, 1)
    newest = save(tmp_path, 2, 2)
    content = bytearray((newest / part).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / part).write_bytes(content)
    warnings = []
    _, record = checkpoint.load_newest(tmp_path, warnings.append)
    assert record == {"step": 1}
    assert part in warnings[0] or "manifest" in part


@pytest.mark.parametrize("part", ["weights.safetensors", "state.safetensors", "progress.json", "manifest.json"])
def test_a_missing_part_is_an_error(tmp_path, part):
    newest = save(tmp_path, 2)
    (newest / part).unlink()
    with pytest.raises(RunError, match="missing"):
        checkpoint.read(newest)
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole"):
        checkpoint.load_newest(tmp_path, lambda _: None)


def test_a_manifest_cannot_point_elsewhere(tmp_path):
    newest = save(tmp_path / "run", 2)
    outside = tmp_path / "outside"
    outside.write_text("x")
    text = (newest / "manifest.json").read_text().replace("state.safetensors", "../../outside")
    (newest / "manifest.json").write_text(text)
    with pytest.raises(RunError):
        checkpoint.read(newest)


def test_killed_while_saving_twenty_times_never_leaves_an_unreadable_run(tmp_path):
    save(tmp_path, 1, 1, size=200_000)
    generator = random.Random(0)
    for _ in range(20):
        step = checkpoint.load_newest(tmp_path, pytest.fail)[1]["step"]
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                save(tmp_path, step, step, size=200_000)
        time.sleep(0.01 + 0.2 * generator.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        tensors, record = checkpoint.load_newest(tmp_path, pytest.fail)
        assert (tensors["weights"]["w"] == record["step"]).all()
    assert record["step"] > 1
    save(tmp_path, step + 100)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    save(tmp_path, 1, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"checkpoint of step 2 could not be written.*No space left.*step-00000001"):
        save(tmp_path, 2)
    assert checkpoint.load_newest(tmp_path, pytest.fail)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small file system")
    try:
        save(tmp_path / "c", 1, 1, size=1000)
        with pytest.raises(TrainingError, match="step 2 could not be written"):
            save(tmp_path / "c", 2, 2, size=1_000_000)
        assert checkpoint.load_newest(tmp_path / "c", pytest.fail)[1] == {"step": 1}
    finally:
        subprocess.run(["umount", tmp_path], check=True)
