"""What a user types, and what they are told when it cannot be done: one line, exit status 2, no traceback."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tacit.cli import VERBS, main


def fails(capsys, *words: str) -> str:
    """The one line that `tacit WORDS` says on standard error, after exit status 2."""
    assert main(list(words)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("tacit: ") and "\n" not in said, said
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A VAE of a few steps on the digits, typed as a user would."""
    out = tmp_path_factory.mktemp("run") / "vae"
    words = ["fit", "vae", "digits", "--steps", "5", "--hidden", "16", "16", "--out", str(out), "--quiet"]
    assert main(words) == 0
    return out


def test_help_is_quick_and_does_not_import_torch():
    code = "import sys; from tacit.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        assert found.returncode == 0, found.stderr
    assert all(verb in found.stdout for verb in VERBS)
    # 0.3 s on an idle machine; this bound only catches an import that should not be there.
    assert min(seconds) < 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.count("--") > 1 and "usage: tacit" in said


def test_the_models_own_arguments_are_options_of_fit(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "wgan-gp", "--help"])
    said = capsys.readouterr().out
    assert "--critic-steps" in said and "--minutes" in said and "--image-shape" in said


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_sentence(tmp_path, capsys):
    table = np.random.default_rng(0).normal(size=(50, 2)).round(2)
    table[:, 1] = 1
    np.save(tmp_path / "table.npy", table)
    assert main(["fit", "maf", str(tmp_path / "table.npy"), "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "\ntacit: table has constant values in column 1" in f"\n{said}" and ".py" not in said


def test_models_and_data_for_people_and_machines(capsys):
    assert main(["models"]) == 0
    assert "mean-teacher" in capsys.readouterr().out
    assert main(["models", "made", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["family"] == "autoregressive" and "density" in record["capabilities"]
    assert main(["data", "--json"]) == 0
    assert any(row["name"] == "digits" for row in json.loads(capsys.readouterr().out))


def test_sample_evaluate_and_embed_a_run(run, tmp_path, capsys):
    assert main(["sample", str(run), "--count", "9", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width >= 256
    assert np.load(tmp_path / "samples.npy").shape == (9, 1, 8, 8)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--rows", "20"]) == 0
    assert "on 20 rows" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["likelihood"]["kind"] == "bound"
    assert 0 < measured["likelihood"]["bits_per_dimension"] < 8
    assert set(measured["probes"]) == {"embed", "raw data"}
    assert main(["embed", str(run), "digits", "--out", str(tmp_path / "e.npy")]) == 0
    assert np.load(tmp_path / "e.npy").shape == (1797, 40)
    assert main(["resume", str(run)]) == 0


def test_unknown_names_give_the_nearest(capsys):
    assert "did you mean vae" in fails(capsys, "fit", "vea", "digits")
    assert "did you mean sample" in fails(capsys, "samples", "x")
    assert "digits" in fails(capsys, "fit", "vae", "digit")


def test_a_folder_that_is_missing_or_empty(tmp_path, capsys):
    missing = fails(capsys, "fit", "vae", str(tmp_path / "nowhere"))
    assert "nowhere" in missing
    (tmp_path / "bare").mkdir()
    assert "bare" in fails(capsys, "fit", "vae", str(tmp_path / "bare"))


def test_a_corrupt_image_among_good_ones_is_counted_and_named(tmp_path, capfd):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nonsense")
    assert main(["fit", "vae", str(folder), "--steps", "2", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    said = capfd.readouterr()
    assert "broken.png" in said.err + said.out


def test_tables_that_cannot_be_used_as_they_are(tmp_path, capsys):
    rows = [f"{i / 7},{i * i / 9},{'good' if i % 2 else 'bad'}" for i in range(40)]
    text = tmp_path / "text.csv"
    text.write_text("\n".join(["a,b,verdict", *rows]))
    assert "verdict" in fails(capsys, "fit", "realnvp", str(text), "--steps", "1")
    gaps = tmp_path / "gaps.csv"
    gaps.write_text("\n".join(["a,b", "1,", *(f"{i},{i}" for i in range(40))]))
    said = fails(capsys, "fit", "realnvp", str(gaps), "--steps", "1")
    assert "'b'" in said or " b " in said or "b:" in said
    words = [
        "fit",
        "realnvp",
        str(text),
        "--label",
        "verdict",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert main(words) == 0


def test_a_truncated_idx_file(tmp_path, capsys):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 100, 8, 8) + bytes(1000)))
    said = fails(capsys, "fit", "vae", str(path), "--steps", "1")
    assert "images-idx3-ubyte.gz" in said and ("6400" in said or "6416" in said)


def test_a_model_that_cannot_take_the_space_names_those_that_can(capsys):
    said = fails(capsys, "fit", "dcgan", "moons", "--steps", "1")
    assert "vectors" in said and "realnvp" in said


def test_a_verb_the_model_lacks_the_capability_for(tmp_path, capsys):
    words = ["fit", "rotation", "digits", "--steps", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(words) == 0
    said = fails(capsys, "sample", str(tmp_path / "run"))
    assert "rotation cannot draw samples" in said and "vae" in said


def test_labels_missing_for_a_model_that_needs_some(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    said = fails(capsys, "fit", "mean-teacher", str(tmp_path / "x.npy"), "--steps", "1")
    assert "mean-teacher needs labels" in said


def test_runs_that_are_none_or_damaged(run, tmp_path, capsys):
    assert "is not a run" in fails(capsys, "sample", str(tmp_path))
    (tmp_path / "run.json").write_text("{nonsense")
    assert "damaged" in fails(capsys, "sample", str(tmp_path))
    assert "holds a run already" in fails(capsys, "fit", "vae", "digits", "--steps", "1", "--out", str(run))


def test_an_argument_that_is_not_the_models(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "vae", "digits", "--bogus", "3"])
    assert end.value.code == 2


def test_a_disk_that_refuses_is_one_line_and_loses_nothing(tmp_path):
    # A limit on file size stands for a full disk: the same error from the same calls.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from tacit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["fit", "vae", "digits", "--steps", "5", "--out", str(tmp_path / "run"), "--quiet", "--pictures", "0"]
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert "checkpoint of step 5 could not be written" in found.stderr and "Traceback" not in found.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_options_that_mean_nothing_to_a_model_are_refused(capsys):
    assert "leave --learning-rate out" in fails(capsys, "fit", "histogram", "digits", "--learning-rate", "0.1")
    assert "leave --devices out" in fails(capsys, "fit", "histogram", "digits", "--devices", "2")
