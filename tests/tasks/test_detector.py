"""Scores are what their papers say, a row's score is its own, p-values keep their promise, and blame finds the part."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

import tacit
from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.metrics.complexity import lossless_bits
from tacit.spaces import Images, Tokens, Vectors, Waveform
from tacit.tasks.detector import MEANINGS, Detector, parts, raw_features

TABLE = Dataset(Vectors(4), torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1, name="table")
IMAGES = Dataset(
    Images(1, 8, 8, 9),
    torch.poisson(torch.linspace(1, 5, 64).expand(120, 64), torch.Generator().manual_seed(1))
    .clamp(0, 8)
    .to(torch.uint8)
    .view(-1, 1, 8, 8),
    name="images",
)
TEXT = Dataset(Tokens(5, 12), (torch.arange(840) * 3 % 5).to(torch.uint8), vocabulary=tuple("abcde"), name="text")
SOUND = Dataset(
    Waveform(64, 8000),
    (9000 * torch.sin(torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) + torch.arange(64) / 3)).to(
        torch.int16
    ),
    name="sound",
)
CASES = {
    "gaussian-mixture": (TABLE, {"components": 2}),
    "vae": (IMAGES, {"hidden": (16,), "latent": 2}),
    "realnvp": (IMAGES, {"couplings": 2, "channels": 4, "blocks": 1, "scales": 1}),
    "ffjord": (TABLE.take(torch.arange(40)), {"hidden": (8,)}),
    "ddpm": (IMAGES, {"width": 8, "timesteps": 20}),
    "ebm": (TABLE, {}),
    "char-rnn": (TEXT, {"features": 8}),
    "autoencoder": (TABLE, {"code": 2}),
    "wavenet": (SOUND, {"features": 8, "skip_features": 8, "dilations": (1, 2)}),
}


@pytest.fixture(scope="module")
def model_of():
    """A model of each kind of capability, after a step or two."""
    kept = {}

    def get(name):
        if name not in kept:
            from tacit import catalogue

            data, arguments = CASES[name]
            cls = catalogue.load(name)
            known = {k: v for k, v in arguments.items() if k in cls.arguments()}
            torch.manual_seed(0)
            kept[name] = cls(data.space, **known)
            if cls.learns_exactly():
                kept[name].fit_exactly(data, math.inf)
            else:
                kept[name].adapt(data)
        return kept[name].eval(), CASES[name][0]

    return get


@pytest.mark.parametrize("name", list(CASES))
def test_a_rows_scores_are_its_own(name, model_of):
    model, data = model_of(name)
    detector = Detector(model, score="default").fit(data)
    x = data.observations(12)
    together, alone, turned = detector.scores(x), detector.scores(x[3:4]), detector.scores(x.flip(0))
    assert set(together) == set(detector.names) <= set(MEANINGS)
    for score, values in together.items():
        assert values.shape == (12,) and values.dtype == torch.float64 and not values.isnan().any()
        torch.testing.assert_close(values[3:4], alone[score], rtol=1e-6, atol=1e-9, msg=score)
        torch.testing.assert_close(values, turned[score].flip(0), rtol=1e-6, atol=1e-9, msg=score)
    np.testing.assert_allclose(detector.p_values(x)[3:4], detector.p_values(x[3:4]))


def test_which_scores_apply(model_of):
    expected = {
        "gaussian-mixture": {"nll", "typicality", "reconstruction", "embedding"},
        "vae": {"nll", "typicality", "complexity", "reconstruction", "embedding"},
        "realnvp": {"nll", "typicality", "complexity", "embedding"},
        "ffjord": {"nll", "typicality", "embedding"},
        "ddpm": {"nll", "typicality", "complexity", "diffusion", "embedding"},
        "ebm": {"energy", "embedding"},
        "char-rnn": {"nll", "typicality", "complexity", "embedding"},
        "autoencoder": {"reconstruction", "embedding"},
        "wavenet": {"nll", "typicality", "complexity", "embedding"},
    }
    for name, of_model in expected.items():
        model, data = model_of(name)
        assert set(Detector(model).fit(data).names) == of_model | {"default", "neighbours", "forest"}, name


def test_scores_are_what_their_papers_say(model_of):
    model, data = model_of("gaussian-mixture")
    train, held, x = data.x[:150], data.x[150:250], data.x[250:]
    other = copy.deepcopy(model)
    other.shift += 1
    detector = Detector(model, background=other, ensemble=(other,)).fit(train, held)
    found = detector.scores(x)
    p, q, usual = (m.log_prob(rows).double() for m, rows in ((model, x), (other, x), (model, held)))
    torch.testing.assert_close(found["nll"], -p)
    torch.testing.assert_close(found["typicality"], (-p + usual.mean()).abs())
    torch.testing.assert_close(found["ratio"], q - p)
    both = torch.stack([-p, -q])
    torch.testing.assert_close(found["waic"], both.mean(0) + (both - both.mean(0)).square().mean(0))
    rebuilt = model.decode(model.encode(x)).double()
    torch.testing.assert_close(found["reconstruction"], ((rebuilt - x) / train.double().std(0)).square().mean(1))
    scale = train.amax(0) - train.amin(0)
    near = NearestNeighbors(n_neighbors=5).fit((train / scale).double().numpy())
    expected = near.kneighbors((x / scale).double().numpy())[0].mean(1)
    np.testing.assert_allclose(found["neighbours"].numpy(), expected, rtol=1e-6)
    forest = IsolationForest(random_state=0).fit(train.double().numpy())
    np.testing.assert_allclose(found["forest"].numpy(), -forest.score_samples(x.double().numpy()))


def test_complexity_takes_off_the_codecs_bits(model_of):
    model, data = model_of("vae")
    found = Detector(model).fit(data).scores(data.x[:9])
    torch.testing.assert_close(found["complexity"], found["nll"] / math.log(2) - lossless_bits(data.space, data.x[:9]))


def test_denoising_brings_back_what_noise_took(model_of):
    model, data = model_of("ddpm")
    torch.manual_seed(0)
    errors = [((model.denoise(data.x[:50], at).float() - data.x[:50]).square()).mean() for at in (0.05, 0.5, 1.0)]
    assert errors[0] < errors[1] < errors[2]
    with pytest.raises(TacitError, match="amount is 0: give above 0"):
        model.denoise(data.x[:5], 0)


def test_raw_arrays_and_the_conventions_of_pyod():
    rng = np.random.default_rng(0)
    train, sound = rng.normal(size=(2500, 3)), rng.normal(size=(200, 3))
    strange = rng.normal(size=(20, 3)) * 0.3 + 7
    detector = tacit.Detector().fit(train)
    assert detector.decision_function(strange).min() > detector.decision_function(sound).max()
    x = np.concatenate([sound, strange])
    assert detector.predict(x)[200:].all() and detector.predict(x)[:200].sum() <= 4
    assert detector.predict(x, contamination=0.1).sum() == 22
    assert detector.predict(sound[:1]).tolist() == [0]
    assert detector.predict(rng.normal(size=(2000, 3))).sum() <= 2, "in pure noise nothing is found"


def test_p_values_keep_their_promise_on_fresh_rows():
    rng = np.random.default_rng(1)
    alarms = []
    for seed in range(12):
        x = rng.gamma(2, size=(700, 3)).round(1)
        detector = Detector(seed=seed).fit(x[:200], x[200:400])
        alarms.append((detector.p_values(x[400:]) <= 0.05).mean())
    assert abs(np.mean(alarms) - 0.05) < 0.015


def test_ties_are_broken_by_the_row_itself():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(900, 2)).astype(float)
    detector = Detector(score="neighbours").fit(x[:300], x[300:600])
    p = detector.p_values(x[600:])
    assert np.unique(p).size <= 4, "rows that are the same have the same p-value"
    np.testing.assert_array_equal(p[5:6], detector.p_values(x[605:606]))


def test_blame_finds_the_column_the_block_and_the_symbol(model_of):
    x = torch.randn(500, 6)
    x[:, 1] = x[:, 0] + 0.1 * torch.randn(500)
    rows = torch.zeros(2, 6)
    rows[0, 4] = 9.0
    rows[1, :2] = torch.tensor([1.5, -1.5])  # neither is strange by itself
    blame = Detector().fit(x).blame(rows)
    assert int(blame[0].argmax()) == 4 and int(blame[1].argmax()) in (0, 1)
    model, data = model_of("vae")
    image = data.x[:1].clone()
    image[..., :2, 6:] = 8
    detector = Detector(model, score="neighbours").fit(data)
    assert int(detector.blame(image)[0].flatten().argmax()) in (6, 7, 14, 15)
    model, data = model_of("char-rnn")
    text = data.observations(1)
    text[0, 6] = (text[0, 6] + 1) % 5
    detector = Detector(model, score="neighbours").fit(data)
    assert int(detector.blame(text)[0].argmax()) == 6


def test_parts_cover_every_entry():
    for space in (Images(3, 20, 5), Images(1, 28, 28), Waveform(100, 8000), Vectors(7), Tokens(4, 9)):
        found = parts(space)
        assert found.shape == space.shape and found.unique().tolist() == list(range(int(found.max()) + 1))


def test_a_text_and_a_recording_become_numbers():
    text = torch.tensor([[0, 1, 2, 1], [0, 1, 2, 1], [2, 2, 2, 2]])
    found = raw_features(Tokens(3, 4), text)
    assert found.shape == (3, 3 + 512) and (found[0] == found[1]).all()
    np.testing.assert_allclose(found[0, :3] ** 2, [0.25, 0.5, 0.25])
    sound = raw_features(Waveform(900, 8000), torch.randint(-99, 99, (2, 900)).to(torch.int16))
    assert sound.shape == (2, 65 * 8) and np.isfinite(sound).all()


def test_what_it_refuses(model_of):
    model, data = model_of("gaussian-mixture")
    with pytest.raises(TacitError, match="there is no score 'entropy': give one of default, nll"):
        Detector(score="entropy")
    with pytest.raises(
        CapabilityError, match=r"'ratio' does not apply here: it takes a density and a background model"
    ):
        Detector(model, score="ratio").fit(data)
    with pytest.raises(CapabilityError, match="'energy' does not apply here: the model has no energy"):
        Detector(score="energy").fit(data.x)
    with pytest.raises(DataError, match="1 rows to learn from"):
        Detector().fit(data.x[:1], data.x[:1])
    with pytest.raises(TacitError, match="call fit first"):
        Detector().predict(data.x)
    fitted = Detector().fit(data.x)
    with pytest.raises(SpaceError, match=r"observations of shape \(3,\) do not fit"):
        fitted.decision_function(data.x[:, :3])
    with pytest.raises(DataError, match=r"row 2 \(counted from 0\) holds a number that is not finite"):
        fitted.decision_function(torch.tensor([[0.0] * 4, [1.0] * 4, [math.nan] * 4]))
    with pytest.raises(TacitError, match=r"rate is 0\.1 and contamination is 0\.1: give one of them"):
        fitted.predict(data.x, rate=0.1, contamination=0.1)
    with pytest.raises(TacitError, match=r"contamination is 1\.5: give a number between 0 and 1"):
        fitted.predict(data.x, contamination=1.5)
    with pytest.raises(SpaceError, match="is no table"):
        Detector().fit(np.zeros((30, 2, 2)))
    with pytest.raises(SpaceError, match="fit both on the same data"):
        Detector(model, background=model_of("vae")[0])


def test_constant_columns_are_handled():
    x = torch.randn(200, 3)
    x[:, 1] = 4
    detector = Detector().fit(x)
    rows = torch.tensor([[0.0, 4.0, 0.0], [0.0, 5.0, 0.0]])
    score = detector.decision_function(rows)
    assert np.isfinite(score).all() and score[1] > score[0]
    assert int(detector.blame(rows)[1].argmax()) == 1
