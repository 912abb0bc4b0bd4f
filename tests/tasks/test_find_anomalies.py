"""`tacit anomalies`: the table, the page and the verdict for every kind of data, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from tacit.cli import main
from tacit.data import Dataset, load
from tacit.errors import DataError, SpaceError, TacitError
from tacit.spaces import Vectors
from tacit.tasks.anomalies import about_labels, anomalies, find
from tacit.tasks.fit import fit
from tacit.tasks.run import Run

RNG = np.random.default_rng(0)
OPTIONS = {"quiet": True, "pictures": 0, "steps": 2}


def rows(count: int = 1500) -> np.ndarray:
    x = RNG.normal(size=(count, 3))
    x[:, 2] = x[:, 0] - x[:, 1] + 0.1 * RNG.normal(size=count)
    return x


def write(path, x, label=None):
    head = "height,weight,age" + ("" if label is None else ",odd")
    x = x if label is None else np.c_[x, label]
    np.savetxt(path, x, delimiter=",", header=head, comments="", fmt="%.6g")
    return str(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run on a table, and a file in which the first five rows are anomalies."""
    folder = tmp_path_factory.mktemp("table")
    path = write(folder / "people.csv", rows())
    run = fit("gaussian-mixture", path, out=folder / "run", components=1, quiet=True, pictures=0)
    new = rows(60)
    new[:5, 1] += 8
    return run, new, folder


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_its_page_and_its_figures(table, capsys):
    run, new, folder = table
    path = write(folder / "new.csv", new, np.repeat([1, 0], [5, 55]))
    assert main(["anomalies", str(run.path), path, "--label", "odd", "--rate", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "of 60 rows are anomalies at a false discovery rate of 0.1" in " ".join(said.split())
    assert "AUROC" in said and "isolation forest" in said
    found = read(run.path / "anomalies-new" / "anomalies.csv")
    assert len(found) == 60 and {row["row"] for row in found[:5]} == {"0", "1", "2", "3", "4"}
    assert all(row["blame"] == "weight" and row["flagged"] == "1" and row["label"] == "1" for row in found[:5])
    assert [float(row["default"]) for row in found] == sorted((float(r["default"]) for r in found), reverse=True)
    assert {"nll", "typicality", "neighbours", "forest", "embedding"} < set(found[0])
    page = (run.path / "anomalies-new" / "anomalies.html").read_text(encoding="utf-8")
    assert (
        page.count("class=flagged") == sum(row["flagged"] == "1" for row in found) < 8
        and "<mark" in page
        and "weight" in page
        and "$" not in page
    )
    truth = [int(row["label"]) for row in found]
    measured = Run(run.path).anomalies(
        Dataset(run.space, torch.from_numpy(new).float(), torch.tensor([1] * 5 + [0] * 55))
    )
    for name, accuracy in measured.accuracy.items():
        score = [float(row[name]) for row in found]
        assert accuracy.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
        assert accuracy.average_precision == pytest.approx(average_precision_score(truth, score), abs=1e-2)


def test_nothing_found_is_an_answer_and_contamination_another(table, capsys):
    run, _, folder = table
    path = write(folder / "sound.csv", rows(100))
    assert main(["anomalies", str(run.path), path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Nothing found: none of 100 rows is an anomaly at a false discovery rate of 0.05" in said
    odd = rows(100)
    odd[:3, 1] += 9
    few = find(run, Dataset(run.space, torch.from_numpy(odd).float())).verdict
    assert few.startswith("nothing found") and "held-out rows can show, which tell 14 or more among so many" in few
    assert main(["anomalies", str(run.path), path, "--contamination", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["flagged"] == 10 and "as a contamination of 0.1 was asked for" in found["verdict"]
    assert len(found["strangest"]) == 24 and found["strangest"][0]["scores"]["nll"] > 0
    measured = find(run)
    assert len(measured.index) == 150 and measured.data.name == "people"
    assert len(find(run, rows=40).index) == 40


def test_labels_of_one_kind_alone(table, capsys):
    run, _, folder = table
    path = write(folder / "alike.csv", rows(30), np.zeros(30))
    assert main(["anomalies", str(run.path), path, "--label", "odd"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The labels of alike say that all rows are no anomalies: AUROC takes some of each." in said
    x = torch.from_numpy(rows(30)).float()
    words = Dataset(run.space, x, torch.arange(30) % 2, class_names=("anomaly", "normal"))
    assert find(run, words).labels.tolist() == [True, False] * 15
    cities = Dataset(run.space, x, torch.arange(30) % 2, "towns", class_names=("Bath", "York"))
    assert "The labels of towns are not 0 and 1" in about_labels(find(run, cities))


def test_images_text_and_sound(tmp_path):
    pictures = {
        "images": ("vae", "digits", {"hidden": (8,), "latent": 2}),
        "text": ("char-rnn", "text.txt", {"features": 8, "batch_size": 4}),
        "waveform": ("wavenet", "sounds", {"features": 8, "skip_features": 8, "dilations": (1, 2)}),
    }
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 120)
    import wave

    (tmp_path / "sounds").mkdir()
    for i in range(30):
        with wave.open(str(tmp_path / "sounds" / f"{i:02}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            tone = 9000 * np.sin(np.arange(64) * (0.3 if i != 7 else 1.5) + i)
            file.writeframes(tone.astype("<i2").tobytes())
    for kind, (model, data, arguments) in pictures.items():
        path = data if data == "digits" else str(tmp_path / data)
        run = fit(model, path, out=tmp_path / kind, **OPTIONS, **arguments)
        found = anomalies(run.path, rows=20, count=3)
        assert set(found.members) == {"complexity", "neighbours"} and len(found.blame) >= 3
        page = (run.path / f"anomalies-{found.data.name}" / "anomalies.html").read_text(encoding="utf-8")
        assert {"images": "data:image/png", "text": "<pre>", "waveform": "<polyline"}[kind] in page
        assert len(read(run.path / f"anomalies-{found.data.name}" / "anomalies.csv")) == len(found.index)
        assert (run.path / f"anomalies-{found.data.name}" / "anomalies.png").exists() == (kind == "images")


def test_another_text_is_read_by_the_runs_own_symbols(tmp_path):
    (tmp_path / "text.txt").write_text("abcabcabd " * 300)
    data = load(tmp_path / "text.txt", length=16)
    run = fit("char-rnn", data, out=tmp_path / "run", features=8, **OPTIONS)
    (tmp_path / "new.txt").write_text("dcba" * 30)
    found = find(run, load(tmp_path / "new.txt"), count=2)
    assert found.data.vocabulary == run.vocabulary and len(found.index) == 7
    (tmp_path / "odd.txt").write_text("abc!" * 30)
    with pytest.raises(DataError, match="odd has '!', which the model has never read and cannot score"):
        find(run, load(tmp_path / "odd.txt"))


def test_other_runs_as_background_and_ensemble(table, capsys):
    run, new, folder = table
    path = write(folder / "again.csv", new)
    others = []
    for seed in (1, 2):
        data = Dataset(run.space, torch.from_numpy(rows() + RNG.normal(size=(1500, 3))).float())
        others.append(
            fit("gaussian-mixture", data, out=folder / f"run{seed}", components=1, quiet=True, pictures=0, seed=seed)
        )
    words = ["--background", str(others[0].path), "--ensemble", *(str(other.path) for other in others)]
    assert main(["anomalies", str(run.path), path, "--score", "ratio", *words]) == 0
    assert "waic" in capsys.readouterr().out
    assert {"ratio", "waic"} < set(read(run.path / "anomalies-again" / "anomalies.csv")[0])


def test_what_it_refuses(table):
    run, new, _ = table
    with pytest.raises(SpaceError, match="but the model was fitted on"):
        anomalies(run.path, Dataset(Vectors(2), torch.from_numpy(new[:, :2]).float()))
    with pytest.raises(TacitError, match=r"rate is 0\.1 and contamination is 0\.1: give one of them"):
        anomalies(run.path, rate=0.1, contamination=0.1)
    with pytest.raises(TacitError, match="rate is 2: give a number between 0 and 1"):
        anomalies(run.path, rate=2)
    with pytest.raises(TacitError, match="count is 0 and rows is None: both must be above 0"):
        anomalies(run.path, count=0)
    with pytest.raises(TacitError, match="there is no score 'best'"):
        anomalies(run.path, score="best")
    one = find(run, Dataset(run.space, torch.from_numpy(new[:1]).float()))
    assert len(one.index) == 1 and one.scores["default"].isfinite().all()
    broken = Dataset(run.space, torch.full((3, 3), torch.nan))
    with pytest.raises(DataError, match=r"row 0 \(counted from 0\) holds a number that is not finite"):
        find(run, broken)
