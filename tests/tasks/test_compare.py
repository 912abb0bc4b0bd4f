"""`tacit compare`: the table, the advice and the page from figures, and the whole of it on small data."""

import json
import math
import re
import signal
import time

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError, TrainingError
from tacit.metrics.anomalies import auroc
from tacit.model import Model
from tacit.spaces import Images, Tokens, Vectors, Waveform
from tacit.tasks import compare as module
from tacit.tasks.advice import advise
from tacit.tasks.compare import affordable, chosen, compare
from tacit.tasks.measure import Figure, Judge, in_time, measure
from tacit.tasks.run import Run
from tacit.tasks.table import BASELINE, Row, apart, leaders, marks, terminal_tables


def table(rows: int = 400) -> Dataset:
    """Two correlated features, and labels that tell the sign of their sum."""
    x = torch.randn(rows, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    return Dataset(Vectors(2), x, (x.sum(1) > 0).long(), name="tilted", class_names=("below", "above"))


def pictures(rows: int = 400, labels: bool = True) -> Dataset:
    x = torch.randint(4, (rows, 1, 6, 5), dtype=torch.uint8)
    label = torch.arange(rows) % 2
    x[label == 1, :, :3] += 12
    return Dataset(Images(1, 6, 5, 16), x, label if labels else None, name="halves")


def text(length: int = 4000) -> Dataset:
    return Dataset(Tokens(5, 8), torch.arange(length) % 5, name="abcde", vocabulary=tuple("abcde"))


def row(model: str, family: str, **figures: Figure) -> Row:
    return Row(model, family, "measured", figures=figures)


def per_row(mean: float, noise: float = 0.0, kind: str = "exact", rows: int = 200) -> Figure:
    """Bits that share their differences between rows with every other figure made here."""
    values = mean + torch.randn(rows, generator=torch.Generator().manual_seed(1)) + noise * torch.randn(rows)
    return Figure(float(values.mean()), float(values.std()) / math.sqrt(rows), rows, kind, values)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_figures_of_the_same_rows_are_compared_row_by_row():
    a, b = per_row(2.0), per_row(2.05, noise=0.05)
    assert abs(a.value - b.value) < a.error  # not to be told apart by their own errors
    assert apart(a, b)
    alone = Figure(a.value, a.error), Figure(b.value, b.error)
    assert not apart(*alone)
    assert not apart(a, per_row(2.0, noise=1.0))


def test_leaders_are_the_best_and_what_is_not_apart_from_it():
    rows = [
        row("a", "x", knn=Figure(0.90, 0.01)),
        row("b", "x", knn=Figure(0.92, 0.01)),
        row("c", "x", knn=Figure(0.50, 0.01)),
        row(BASELINE, "", knn=Figure(0.99, 0.01)),
    ]
    assert [r.model for r in leaders(rows, "knn")] == ["b", "a"]
    assert marks(rows) == {"knn": {"a", "b"}}
    rows[1].supervised = True
    assert [r.model for r in leaders(rows, "knn")] == ["a"]
    assert marks([rows[0]]) == {}


def test_what_depends_on_the_number_of_draws_competes_only_among_equals():
    rows = [
        row("slow", "x", precision=Figure(0.99, 0.001, 40), frechet=Figure(1.0, 0.1, 40)),
        row("a", "x", precision=Figure(0.90, 0.001, 500), frechet=Figure(2.0, 0.1, 500)),
        row("b", "x", precision=Figure(0.80, 0.001, 500), frechet=Figure(3.0, 0.1, 500)),
    ]
    assert [r.model for r in leaders(rows, "precision")] == ["a"]
    assert [r.model for r in leaders(rows, "frechet")] == ["slow"]


def test_infinite_figures_never_lead_and_are_null_in_json():
    rows = [row("a", "x", bits=Figure(math.inf)), row("b", "x", bits=Figure(9.0))]
    assert [r.model for r in leaders(rows, "bits")] == ["b"]
    assert rows[0].to_dict()["figures"]["bits"]["value"] is None
    json.dumps(rows[0].to_dict(), allow_nan=False)


def test_the_terminal_table_is_cut_into_blocks_that_fit():
    rows = [row("made", "autoregressive", bits=per_row(2.0), knn=Figure(0.9), auroc=Figure(0.8), ratio=Figure(3.0))]
    rows.append(row("vae", "latent", bits=per_row(2.0, kind="an upper bound")))
    rows.append(Row("lost", "latent", "failed", "it fell over"))
    assert len(terminal_tables(rows, "t", 200)) == 1
    blocks = terminal_tables(rows, "t", 34)
    assert len(blocks) > 1
    assert {len(block.rows) for block in blocks} == {2}
    cells = [str(cell) for cell in blocks[0].columns[1].cells]
    assert cells[1].startswith("≤ ")
    assert not cells[0].startswith("≤")


# -- the advice --------------------------------------------------------------------------------------------------------


def classic() -> list[Row]:
    """A field in which all three rules of thumb hold."""

    def samples(frechet: float, precision: float, recall: float) -> dict[str, Figure]:
        return {
            "frechet": Figure(frechet, 0.1, 500),
            "precision": Figure(precision, 0.01, 500),
            "recall": Figure(recall, 0.01, 500),
        }

    return [
        row(BASELINE, "", probe=Figure(0.80, 0.01)),
        row("made", "autoregressive", bits=per_row(2.0), probe=Figure(0.7, 0.01), **samples(6, 0.7, 0.7)),
        row(
            "vae", "latent", bits=per_row(2.5, kind="an upper bound"), probe=Figure(0.95, 0.01), **samples(4, 0.6, 0.8)
        ),
        row("dcgan", "adversarial", probe=Figure(0.85, 0.01), **samples(3, 0.95, 0.4)),
    ]


def test_the_rules_hold_where_the_figures_say_so():
    advice = advise(classic(), "toy")
    assert [rule.verdict for rule in advice.rules] == ["held", "held", "held"]
    assert advice.summary.startswith("On toy, made (")
    assert "dcgan (Fréchet 3.00) draws the best samples" in advice.summary
    assert "vae (probe 95.0 %) learns the best features, against 80.0 % of raw values" in advice.summary
    assert "≤ 2.5" in advice.rules[0].evidence or "≤ 2.4" in advice.rules[0].evidence
    assert "dcgan 40 %" in advice.rules[2].evidence
    assert "vae has the best with 80 %" in advice.rules[2].evidence


def test_the_rules_fail_where_the_figures_say_so():
    rows = classic()
    rows[1].figures["bits"] = per_row(3.0)
    rows[1].figures["probe"] = Figure(0.99, 0.001)
    rows[1].figures["frechet"] = Figure(1.0, 0.01, 500)
    rows[1].figures["precision"] = Figure(0.99, 0.001, 500)
    verdicts = [rule.verdict for rule in advise(rows, "toy").rules]
    assert verdicts == ["did not hold", "did not hold", "did not hold"]


def test_no_winner_is_called_within_the_error():
    rows = classic()
    rows[2].figures["bits"] = per_row(2.0, noise=1.0)
    rows[2].figures["precision"] = Figure(0.94, 0.01, 500)
    advice = advise(rows, "toy")
    assert advice.rules[0].verdict == advice.rules[2].verdict == "undecided"
    assert "describe the data best, too close to call" in advice.summary


def test_raw_values_and_blind_scores_are_named_as_such():
    rows = classic()
    rows[0].figures["probe"] = Figure(0.99, 0.001)
    for other in rows[1:]:
        other.figures["auroc"] = Figure(0.505, 0.01)
    summary = advise(rows, "toy").summary
    assert "raw values (99.0 %) are better features than those of the best model, vae" in summary
    assert "no model tells spoilt rows from sound ones" in summary


def test_what_was_not_measured_is_not_judged():
    advice = advise([row("simclr", "contrastive", probe=Figure(0.9, 0.01))], "toy")
    assert [rule.verdict for rule in advice.rules] == ["not checked"] * 3
    assert "with no other to compare" in advice.summary
    assert "nothing to advise" in advise([Row("made", "autoregressive", "failed", "x")], "toy").summary
    assert advise([], "toy").rules == ()


def test_a_histogram_is_no_autoregressive_model():
    rows = classic()
    rows[1].exact = True
    assert advise(rows, "toy").rules[0].verdict == "not checked"


# -- measuring ---------------------------------------------------------------------------------------------------------


class Truth(torch.nn.Module):
    """The distribution `table` is drawn from, as a model."""

    density = "exact"

    def __init__(self):
        super().__init__()
        self.register_buffer("root", torch.tensor([[1.0, 0.8], [0.0, 0.6]]))
        self.device = torch.device("cpu")

    @staticmethod
    def learns_exactly() -> bool:
        return True

    def law(self):
        return torch.distributions.MultivariateNormal(torch.zeros(2), self.root.T @ self.root)

    def log_prob(self, x):
        return self.law().log_prob(x)

    def sample(self, count, *, temperature=1.0):
        return self.law().sample((count,))

    def embed(self, x):
        return x


def test_the_truth_is_measured_as_such(tmp_path):
    data = table(4000)
    judge = Judge(data, tmp_path)
    base = judge.baseline()
    found = measure(Truth(), judge, 20.0)
    assert found.troubles == []
    entropy = float(Truth().law().entropy())
    nats = found.figures["nats"]
    assert abs(nats.value - entropy) < 4 * nats.error
    assert found.figures["bits"].value == pytest.approx(nats.value / (2 * math.log(2)))
    assert found.figures["frechet"].count == judge.count == 400
    assert found.figures["wasserstein"].value < base["wasserstein"].value + 3 * found.figures["wasserstein"].error
    assert found.figures["ratio"].value < 3
    assert abs(found.figures["kid"].value) < 4 * found.figures["kid"].error
    assert found.figures["knn"].value > 0.9
    # The best score there is on what destroys the dependence; and nobody sees what is not there.
    assert found.figures["auroc: columns permuted"].value > base["auroc: columns permuted"].value - 0.02
    assert found.samples.shape == (400, 2)


def test_without_a_density_the_energy_finds_anomalies(tmp_path):
    class Energetic(Model):
        spaces = (Vectors,)

        def __init__(self):
            super().__init__(Vectors(2))
            self.register_buffer("weight", torch.tensor([1.0, -1.0]))

        def energy(self, x):
            return x @ self.weight

    judge = Judge(table(), tmp_path)
    found = measure(Energetic(), judge, 5.0)
    assert found.troubles == []
    assert found.figures["auroc"].note == "its energy"
    x = judge.real
    expected = auroc(x[:, 0] - x[:, 1], -judge.corrupted["columns permuted"].diff()[:, 0])
    assert found.figures["auroc: columns permuted"].value == pytest.approx(expected, abs=1e-6)


def test_what_a_model_does_wrong_leaves_a_sentence_and_the_rest(tmp_path):
    judge = Judge(table(), tmp_path)

    class Wrong(Truth):
        def sample(self, count, *, temperature=1.0):
            return torch.full((count, 2), torch.nan)

        def embed(self, x):
            raise RuntimeError("out of\nmemory")

        def log_prob(self, x):
            return torch.where(x[:, 0] > 0, super().log_prob(x), -torch.inf)

    found = measure(Wrong(), judge, 5.0)
    said = " ".join(found.troubles)
    assert "samples could not be measured: some of its samples are not finite" in said
    assert "features could not be measured: RuntimeError: out of memory" in said
    assert "have no finite log-probability" in said
    assert math.isinf(found.figures["bits"].value)
    assert "frechet" not in found.figures
    assert 0 <= found.figures["auroc"].value <= 1


def test_what_takes_far_too_long_is_given_up_and_the_rest_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("tacit.tasks.measure._LEAST_SECONDS", 4.0)

    class Slow(Truth):
        def sample(self, count, *, temperature=1.0):
            time.sleep(60)

    found = measure(Slow(), Judge(table(), tmp_path), 0.01)
    assert found.troubles == ["samples could not be measured: it takes more than 4 seconds: allow more minutes"]
    assert {"bits", "auroc"} <= set(found.figures)


def test_work_stops_when_its_time_is_over_but_not_before_one_batch():
    x = torch.arange(1000.0)
    assert torch.equal(in_time(lambda y: 2 * y, x, 60.0), 2 * x)
    assert len(in_time(lambda y: y, x, 0.0)) == 16


def test_text_is_compared_by_its_pairs(tmp_path):
    judge = Judge(text(), tmp_path)
    base = judge.baseline()
    assert base["ngrams"].value == pytest.approx(0, abs=0.01)
    assert base["bits"].value < 3
    random = judge.yardstick.quality(torch.randint(5, (100, 8)))
    assert random["ngrams"].value > 0.4
    assert set(judge.corrupted) == {"shuffled symbols", "one symbol in five replaced"}


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_models_are_chosen_by_space_labels_and_name():
    names = [entry.name for entry in chosen(pictures(), [], [])]
    assert {"vae", "mean-teacher"} <= set(names)
    assert "mean-teacher" not in [entry.name for entry in chosen(pictures(labels=False), [], [])]
    exact = [module.catalogue.load(name).learns_exactly() for name in names]
    assert exact == sorted(exact, reverse=True)
    assert [entry.name for entry in chosen(table(), ["vae", "made", "vae"], [])] == ["vae", "made"]
    assert {entry.family for entry in chosen(table(), [], ["latent"])} == {"latent"}
    words = Dataset(Tokens(30_000, 16), torch.arange(5000), name="words")
    assert "made" not in [entry.name for entry in chosen(words, [], [])]
    with pytest.raises(TacitError, match="did you mean"):
        chosen(table(), ["vea"], [])
    with pytest.raises(TacitError, match="no family is called 'flow': there are"):
        chosen(table(), [], ["flow"])
    with pytest.raises(SpaceError, match="waveform"):
        compare(Dataset(Waveform(16, 8000), torch.zeros(9, 16, dtype=torch.int16)))


def test_models_that_need_longer_are_left_out_of_a_short_comparison():
    every = chosen(pictures(), [], [])
    short, long = ({e.name for e in affordable(every, minutes, 784)} for minutes in (3.0, 10_000.0))
    assert long == {e.name for e in every}
    assert "made" in short and "pixelcnn" not in short
    needs = sorted(module.catalogue.load(name).appetite for name in short)
    assert all(need * len(short) <= 3.0 or need == 0 for need in needs)


def test_comparison_of_a_table(tmp_path, capsys):
    found = compare(table(), minutes=0.1, models=("histogram,gaussian-mixture", "realnvp"), out=tmp_path / "c")
    assert [r.model for r in found.rows] == [BASELINE, "histogram", "gaussian-mixture", "realnvp"]
    assert {r.status for r in found.rows} == {"measured"}
    for r in found.rows[1:]:
        assert {"bits", "nats", "wasserstein", "frechet", "kid", "auroc", "samples_per_second", "parameters"} <= set(
            r.figures
        )
        assert Run(tmp_path / "c" / r.run).model is not None
    shown = capsys.readouterr().out
    assert "gaussian-mixture" in shown
    assert "For density alone" in shown

    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["rows"][2]["figures"]["bits"]["note"] == "exact"
    assert record["advice"]["summary"] == found.advice.summary
    assert record["space"] == {"kind": "vectors", "features": 2}

    page = found.path.read_text()
    assert '<p class="advice">On tilted' in page
    # Self-contained: nothing is fetched from anywhere.
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(http" not in page
    assert "@import" not in page
    assert page.count("<img ") == 4
    assert all("alt=" in tag for tag in re.findall(r"<img [^>]*>", page))

    again = compare(table(), minutes=0.05, models=("histogram",), out=tmp_path / "c", json=True)
    assert again.rows[1].run.endswith("histogram-2")
    assert json.loads(capsys.readouterr().out)["rows"][1]["model"] == "histogram"


def test_a_model_that_fails_is_a_row_with_its_reason(tmp_path, monkeypatch, capsys):
    true_fit = module.fit

    def fit(name, *args, **kwargs):
        if name == "vae":
            raise TrainingError("the loss was not finite at step 3")
        if name == "realnvp":
            raise RuntimeError("something\nunforeseen")
        return true_fit(name, *args, **kwargs)

    monkeypatch.setattr(module, "fit", fit)
    names = ("histogram", "vae", "realnvp", "word2vec")
    found = compare(table(), minutes=0.05, models=names, out=tmp_path)
    status = {r.model: (r.status, r.reason) for r in found.rows}
    assert status["histogram"][0] == "measured"
    assert status["vae"] == ("failed", "the loss was not finite at step 3.")
    assert status["realnvp"] == ("failed", "RuntimeError: something unforeseen.")
    assert status["word2vec"][0] == "failed"
    assert "word2vec takes tokens, not vectors" in status["word2vec"][1]
    assert "the loss was not finite at step 3" in found.path.read_text()
    assert "vae: failed" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_trained_and_reports_it(tmp_path, monkeypatch, capsys):
    true_fit, logged = module.fit, module._Display.logged

    def interrupt(self, record, fraction, seconds):
        logged(self, record, fraction, seconds)
        signal.raise_signal(signal.SIGINT)

    def fit(name, data, *, minutes, log_every, **options):
        return true_fit(name, data, steps=1000, log_every=1, **options)  # so that it comes long before the end

    monkeypatch.setattr(module._Display, "logged", interrupt)
    monkeypatch.setattr(module, "fit", fit)
    found = compare(table(), minutes=1.0, models=("histogram", "realnvp", "vae"), out=tmp_path)
    assert found.interrupted
    assert [r.status for r in found.rows] == ["measured", "measured", "interrupted", "not reached"]
    assert "tacit resume" in found.rows[2].reason
    assert Run(tmp_path / found.rows[2].run).record["status"] == "interrupted"
    assert Run(tmp_path / found.rows[1].run).model.log_prob(table().x[:3]).shape == (3,)
    assert "Interrupted." in found.path.read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["interrupted"]


def test_a_request_to_terminate_while_measuring_leaves_a_page(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, "measure", lambda *args: signal.raise_signal(signal.SIGTERM))
    found = compare(table(), minutes=1.0, models=("histogram", "vae"), out=tmp_path)
    assert [r.status for r in found.rows] == ["measured", "interrupted", "not reached"]
    assert "Not measured: histogram, vae" in found.path.read_text()
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_before_any_model_still_leaves_a_page(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Judge", interrupt)
    found = compare(table(), minutes=1.0, models=("histogram",), out=tmp_path)
    assert found.interrupted
    assert [r.status for r in found.rows] == ["not reached"]
    assert found.path.exists()


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(TacitError, match="minutes is 0"):
        compare(table(), minutes=0, out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TacitError, match="choose another --out"):
        compare(table(), out=tmp_path / "file" / "below")


def test_pages_of_pictures_and_of_text(tmp_path):
    shown = compare(pictures(), minutes=0.05, models=("histogram",), out=tmp_path / "pictures")
    assert "classifier of the 2 labels" in shown.extractor
    assert shown.path.read_text().count("data:image/png;base64,") == 2
    written = compare(text(), minutes=0.05, models=("histogram",), out=tmp_path / "text")
    assert "pairs of neighbouring symbols" in written.extractor
    assert written.path.read_text().count("<pre>") == 2
