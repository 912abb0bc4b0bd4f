"""`tacit evaluate`: every figure by other means, every part of the report, and what is said where there is none."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from tacit.data import Dataset, load
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.metrics.extractor import extractor_for
from tacit.metrics.frechet import frechet_distance, jackknife
from tacit.spaces import Tokens, Vectors
from tacit.tasks.evaluate import evaluate, measure
from tacit.tasks.fit import fit
from tacit.tasks.likelihood import likelihood
from tacit.tasks.quality import draw_in_time
from tacit.tasks.run import Run
from tacit.training.plan import reseed

QUIET = {"quiet": True, "pictures": 0}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    """A MADE of labelled digits: a density, samples and classes."""
    out = tmp_path_factory.mktemp("runs") / "made"
    return fit("made", "digits", steps=60, out=out, hidden=(64,), classes=10, **QUIET)


def table(rows: int = 600) -> Dataset:
    """Three groups of rows in three columns, labelled by group."""
    label = torch.arange(rows) % 3
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(5)) + 4 * label[:, None] * torch.tensor([1, 0, -2])
    return Dataset(Vectors(3), x, label, name="groups", class_names=("a", "b", "c"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> Run:
    return fit("gaussian-mixture", table(), out=tmp_path_factory.mktemp("runs") / "mixture", **QUIET)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_report_of_labelled_images(digits, capsys):
    measured = evaluate(digits.path, samples=120, json=True)
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record == json.loads((digits.path / "evaluation-digits" / "evaluation.json").read_text())
    assert (record["model"], record["data"], record["split"], record["rows"]) == ("made", "digits", "test", 180)
    test = load("digits").parts()[2]
    with torch.no_grad():
        nats = -digits.model.log_prob(test.observations()).double().numpy()
    assert measured.likelihood.kind == "exact" and measured.likelihood.rows == 180
    assert measured.likelihood.nats == pytest.approx(nats.mean(), rel=1e-6)
    assert record["likelihood"]["bits_per_dimension"] == pytest.approx(nats.mean() / 64 / math.log(2), rel=1e-6)
    interval = ttest_1samp(nats, 0).confidence_interval(0.95)
    assert record["likelihood"]["interval"] == pytest.approx(list(interval), rel=1e-6)
    assert 0 < record["likelihood"]["precision"]["largest"] < 1e-3
    by_class = record["likelihood"]["by_class"]
    assert [c["name"] for c in by_class] == list("0123456789")
    assert sum(c["rows"] for c in by_class) == 180
    third = nats[(test.label == 3).numpy()]
    assert by_class[3]["nats"] == pytest.approx(third.mean(), rel=1e-6)
    assert by_class[3]["standard_error"] == pytest.approx(third.std(ddof=1) / math.sqrt(len(third)), rel=1e-4)
    assert record["likelihood"]["most"][0] == pytest.approx([int(nats.argmin()), nats.min()], rel=1e-6)
    assert record["likelihood"]["least"][0] == pytest.approx([int(nats.argmax()), nats.max()], rel=1e-6)

    predicted = digits.model.classify(test.observations())
    assert record["accuracy"] == pytest.approx(float((predicted.argmax(1) == test.label).double().mean()))
    assert record["calibration"]["nats"] == pytest.approx(
        float(torch.nn.functional.nll_loss(predicted.double().log(), test.label)), rel=1e-5
    )
    assert set(record["probes"]) == {"embed", "raw data"}
    assert record["left_out"] == []

    page = (digits.path / "evaluation-digits" / "index.html").read_text()
    for words in (
        "Most likely rows",
        "Samples nearest to training rows",
        "Reliability diagram",
        "sha256",
        "Classes drawn",
    ):
        assert words in page
    assert page.count("data:image/png") == 5
    assert "has learned from these rows" not in page


def test_samples_are_judged_as_compare_judges_them(digits):
    """The same draws, features and floors put together by hand."""
    quality = measure(digits, samples=90, rows=1).samples
    data = load("digits")
    extractor = extractor_for(data, digits.path)
    assert extractor.hash() in quality.extractor and "classifier" in quality.extractor
    reseed(0, "sample")
    drawn = draw_in_time(digits.model, 90, math.inf)[0]
    assert torch.equal(drawn[:64], quality.drawn)
    real, fake = extractor(quality.real), extractor(drawn)
    assert len(real) == 64  # of the 90 those that are shown
    figures, floor = quality.figures, quality.floor
    assert figures["frechet"].count == floor["frechet"].count == 90
    assert {"kid", "precision", "recall", "density", "coverage", "classes", "class_divergence", "nearer"} <= set(
        figures
    )
    for key, figure in figures.items():
        assert key == "samples_per_second" or key in floor, key
        assert figure.error is not None or key in ("classes", "samples_per_second"), key
    assert floor["frechet"].value < figures["frechet"].value
    labels = extractor.labels(drawn).bincount(minlength=10) / 90
    assert [share for _, share in quality.classes.values()] == pytest.approx(labels.tolist())
    assert figures["classes"].value == int((labels > 0).sum())
    distance = jackknife(lambda x: frechet_distance(real, x), fake)[0]
    assert distance == pytest.approx(figures["frechet"].value, rel=0.5)  # against 64 of its 90 rows
    pairs, train = quality.pairs, data.parts()[0].observations()
    assert pairs.shape == (2, 10, 1, 8, 8)
    gap = (extractor(pairs[0]) - extractor(pairs[1])).norm(dim=1)
    assert torch.allclose(gap, torch.cdist(extractor(pairs[0]), extractor(train)).min(1).values, atol=1e-3)
    assert bool((gap.diff() > -1e-5).all())


def test_a_model_that_learned_by_heart_is_found_out(digits, monkeypatch):
    train = load("digits").parts()[0].observations()
    monkeypatch.setattr(
        type(digits.model), "sample", lambda self, count, **_: train[torch.randperm(len(train))[:count]]
    )
    figures = measure(digits, samples=100, rows=1).samples.figures
    assert figures["copies"].value == 1 and figures["nearer"].value > 0.99 and figures["copying"].value < -3
    monkeypatch.setattr(type(digits.model), "sample", lambda self, count, **_: train[:1].expand(count, -1, -1, -1))
    figures = measure(digits, samples=100, rows=1).samples.figures
    assert figures["classes"].value == 1
    # One class alone of ten: the divergence is the log of one over its share.
    share = next(real for real, drawn in measure(digits, samples=100, rows=1).samples.classes.values() if drawn == 1)
    assert figures["class_divergence"].value == pytest.approx(-math.log(share))


def test_other_parts_of_the_data(digits, capsys):
    valid = measure(digits, split="valid", samples=40)
    assert (valid.split, valid.rows) == ("valid", 180) and valid.probes is not None
    evaluate(digits.path, split="train", samples=40, rows=60)
    folder = digits.path / "evaluation-digits-train"
    assert "has learned from these rows" in (folder / "index.html").read_text()
    said = capsys.readouterr().out
    assert "Probes are left out" in said and "on 60 rows" in said and "±" in said
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["samples"]["floor"]["copies"]["value"] == 0, "the floor's rows are held out whatever is measured"
    everything = measure(digits, load("digits"), split="all", samples=0)
    assert (everything.split, everything.rows, everything.samples) == ("all", 1797, None)


def test_a_table_by_transport_and_its_neighbours(groups, monkeypatch):
    data = table()
    measured = measure(groups, data, samples=60)
    assert measured.split == "test" and measured.rows == 60
    figures, quality = measured.samples.figures, measured.samples
    train = data.parts()[0].x.double()
    mean, scale = train.mean(0), train.std(0, unbiased=False)
    real, drawn = ((x.double() - mean) / scale for x in (quality.real, quality.drawn))
    assert len(real) == len(drawn) == 60
    cost = ot.dist(real.numpy(), drawn.numpy())
    assert figures["transport"].value == pytest.approx(ot.emd2([], [], cost), rel=1e-5)
    assert figures["wasserstein"].value < 1 and quality.floor["transport"].value > 0
    told = KNeighborsClassifier(5).fit((train - mean) / scale, data.parts()[0].label)
    shares = torch.from_numpy(told.predict(drawn)).bincount(minlength=3) / 60
    assert [share for _, share in quality.classes.values()] == pytest.approx(shares.tolist())
    assert "100.0% right" in figures["classes"].note
    monkeypatch.setitem(sys.modules, "ot", None)
    without = measure(groups, data, samples=60)
    assert "transport" not in without.samples.figures and "frechet" in without.samples.figures
    assert any("pip install 'tacit[transport]'" in said for said in without.left_out)


def test_a_page_of_a_table(groups, capsys):
    evaluate(groups.path, replace(table(), label=None), samples=60)
    assert "W₂²" in capsys.readouterr().out
    page = (groups.path / "evaluation-groups" / "index.html").read_text()
    assert "Samples and their nearest training rows" in page and "A scatter plot" in page


def test_text_is_judged_by_its_pairs_and_whole_windows(tmp_path, capsys):
    data = Dataset(Tokens(5, 8), torch.arange(4000) % 5, name="abcde", vocabulary=tuple("abcde"))
    run = fit("char-rnn", data, steps=2, features=8, out=tmp_path / "run", **QUIET)
    measured = evaluate(run.path, data, samples=40)
    assert measured.rows == 50 and measured.likelihood.by_class == ()
    assert measured.samples.floor["copies"].value == 1 and measured.samples.figures["ngrams"].value > 0.1
    assert "abcdeabc" in (run.path / "evaluation-abcde" / "index.html").read_text()
    with pytest.raises(SpaceError, match="other symbols"):
        measure(run, replace(data, vocabulary=tuple("fghij"), name="other"))


def test_factors_are_looked_for_in_codes(tmp_path, capsys):
    data = load("sprites")
    few = replace(data.take(torch.arange(0, len(data), 97)), label=None, source=None)
    options = {"steps": 2, "quiet": True, "pictures": 0, "hidden": (8,)}
    run = fit("vae", few, out=tmp_path / "small", latent=3, **options)
    found = evaluate(run.path, few, split="all", importance=1, samples=0)
    assert found.disentanglement["rows"] == len(few) and 0 <= found.disentanglement["gap"] <= 1
    assert "mutual information gap" in capsys.readouterr().out
    large = fit("vae", few, out=tmp_path / "large", latent=257, **options)
    assert large.evaluate(few, importance=1, samples=0).disentanglement is None
    without = Dataset(few.space, few.x)
    assert run.evaluate(without, importance=1, samples=0).disentanglement is None


# -- likelihood --------------------------------------------------------------------------------------------------------


def test_importance_weights_tighten_a_bound(tmp_path):
    run = fit("vae", "digits", steps=20, hidden=(32,), out=tmp_path / "run", **QUIET)
    test = load("digits").parts()[2]
    plain, tight = (likelihood(run.model, test, importance=k) for k in (1, 50))
    assert (plain.importance, tight.importance, plain.kind) == (None, 50, "bound")
    assert tight.nats < plain.nats - 2 * plain.standard_error / math.sqrt(180)
    reseed(0, "likelihood")
    by_hand = [-run.model.importance_weighted(test.observations(), 50).mean().item() for _ in range(3)]
    assert tight.nats == pytest.approx(np.mean(by_hand), abs=0.5)
    assert tight.precision.largest < 1e-2


class Estimated(torch.nn.Module):
    """A standard normal whose log Z was estimated, and which can be told to have no float64."""

    density = "estimate"
    log_z_error = torch.tensor(0.5)
    space = Vectors(2)
    device = torch.device("cpu")
    stubborn = False

    def log_prob(self, x: Tensor) -> Tensor:
        if self.stubborn and x.dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return -0.5 * x.square().sum(1) - math.log(2 * math.pi)


def test_the_error_of_an_estimate_is_in_the_interval():
    model, data = Estimated(), Dataset(Vectors(2), torch.randn(4000, 2))
    found = likelihood(model, data)
    spread = math.hypot(float(found.values.std()) / math.sqrt(4000), 0.5)
    assert found.log_z_error == 0.5 and found.standard_error == pytest.approx(spread)
    assert found.interval[1] - found.nats == pytest.approx(1.9605 * spread, rel=1e-3)
    assert found.nats == pytest.approx(1 + math.log(2 * math.pi), abs=0.1)
    assert found.precision.largest < 1e-5
    model.stubborn = True
    assert likelihood(model, data).precision is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    model, truth = Estimated(), 1 + math.log(2 * math.pi)
    model.log_z_error = torch.tensor(math.nan)
    held, generator = 0, torch.Generator().manual_seed(1)
    for _ in range(200):
        found = likelihood(model, Dataset(Vectors(2), torch.randn(40, 2, generator=generator)))
        held += found.interval[0] <= truth <= found.interval[1]
    assert found.log_z_error is None
    assert 0.89 <= held / 200 <= 0.99


def test_rows_that_are_impossible_and_rows_that_time_does_not_reach():
    model, x = Estimated(), torch.randn(1000, 2)
    x[7] = 1e30
    found = likelihood(model, Dataset(Vectors(2), x))
    assert found.infinite == 1 and found.least[0] == (7, math.inf)
    assert found.to_dict()["nats"] is None
    json.dumps(found.to_dict(), allow_nan=False)
    heard = []
    hurried = likelihood(model, Dataset(Vectors(2), x), seconds=0.0, said=lambda *done: heard.append(done))
    assert hurried.rows == 16 and heard == [(16, 1000)]
    assert bool((hurried.index.diff() > 0).all()) and int(hurried.index[-1]) > 500


# -- what cannot be measured -------------------------------------------------------------------------------------------


def test_too_few_rows_leave_a_sentence(groups):
    few = measure(groups, replace(table(), x=table().x + 1, name="few").take(torch.arange(50)))
    assert few.samples is None and few.likelihood.rows == 50 and few.split == "all"
    assert any("25 rows to hold them against and 25 for the floor" in said for said in few.left_out)
    few = measure(groups, table(), samples=20)
    assert any("fewer than 32" in said for said in few.left_out)


def test_data_that_cannot_be_measured_on(groups, digits, tmp_path):
    with pytest.raises(DataError, match="given from Python: give the same data again"):
        measure(groups)
    with pytest.raises(SpaceError, match="but the model was fitted on"):
        measure(groups, load("digits"))
    spoilt = table()
    spoilt.x[5] = math.nan
    with pytest.raises(DataError, match="1 of the 600 rows of groups hold numbers that are not finite"):
        measure(groups, spoilt)
    with pytest.raises(DataError, match="too few rows"):
        measure(groups, replace(table(), name="few").take(torch.arange(4)), split="test")
    with pytest.raises(TacitError, match="rows is 0"):
        measure(digits, rows=0)
    with pytest.raises(TacitError, match="importance is 0"):
        measure(digits, importance=0)


def test_another_table_has_its_own_floor_and_no_copies(groups):
    other = replace(table(), x=table().x + 0.5, name="shifted")
    found = measure(groups, other, samples=60)
    assert "nearer" not in found.samples.figures and any("given from Python" in said for said in found.left_out)
    assert found.samples.floor["wasserstein"].value < found.samples.figures["wasserstein"].value


def test_a_run_without_anything_to_measure(tmp_path, groups):
    run = fit("simclr", "digits", steps=1, out=tmp_path / "run", **QUIET)
    unlabelled = replace(load("digits"), label=None, class_names=())
    with pytest.raises(CapabilityError, match="nothing about simclr can be measured on digits"):
        measure(run, unlabelled)


def test_what_fails_leaves_the_rest(groups, monkeypatch):
    def broken(self: object, count: int, **_: object) -> Tensor:
        return torch.full((count, 3), math.nan)

    monkeypatch.setattr(type(groups.model), "sample", broken)
    found = measure(groups, table(), samples=40)
    assert found.samples is None and found.likelihood is not None
    assert "The samples could not be measured: 16 of 40 samples" not in " ".join(found.left_out)
    assert any("40 of 40 samples are not finite" in said for said in found.left_out)
