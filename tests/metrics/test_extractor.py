"""Extractors: which data gets which, the same one every time, and that they notice what they should."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from tacit.data import Dataset
from tacit.errors import SpaceError
from tacit.metrics.anomalies import corruptions
from tacit.metrics.extractor import ClassifierNet, Columns, Extractor, RandomNet, extractor_for
from tacit.metrics.frechet import frechet_distance
from tacit.spaces import Images, Tokens, Vectors


def digits() -> Dataset:
    found = load_digits()
    x = torch.tensor(found.images).to(torch.uint8).unsqueeze(1)
    names = tuple("0123456789")
    return Dataset(Images(1, 8, 8, 17), x, torch.tensor(found.target).long(), name="digits", class_names=names)


def test_labelled_images_get_a_classifier_that_is_kept_and_found_again(tmp_path, monkeypatch):
    data = digits()
    extractor = extractor_for(data, tmp_path)
    assert isinstance(extractor, ClassifierNet)
    assert float(extractor.accuracy) > 0.93
    assert "classifier of the 10 labels" in extractor.description
    features = extractor(data.observations(700))
    assert features.shape == (700, 64)
    assert features.dtype == torch.float32

    monkeypatch.setattr(ClassifierNet, "learn", None)  # not to be called again
    again = extractor_for(data, tmp_path)
    assert again.hash() == extractor.hash()
    assert again.description == extractor.description
    assert torch.equal(again(data.observations(10)), features[:10])


def test_other_data_or_another_seed_is_another_extractor(tmp_path):
    data = replace(digits(), label=None, class_names=())
    first, same, other = (extractor_for(data, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert isinstance(first, RandomNet)
    assert first.hash() == same.hash() != other.hash()
    state = torch.get_rng_state()
    extractor_for(data)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("labelled", [True, False])
def test_spoilt_digits_are_farther_than_real_ones(labelled):
    data = digits() if labelled else replace(digits(), label=None, class_names=())
    _, valid, test = data.parts()
    extractor = extractor_for(data)
    real, other = extractor(test.observations()), valid.observations()
    floor = frechet_distance(real, extractor(other))
    for name, spoilt in corruptions(data.space, other).items():
        assert frechet_distance(real, extractor(spoilt)) > 1.5 * floor, name


@pytest.mark.parametrize("space", [Images(3, 20, 28), Images(4, 7, 5), Images(1, 100, 70, 2), Images(2, 1, 1)])
def test_images_of_any_shape(space):
    x = torch.randint(space.levels, (60, *space.shape), dtype=torch.uint8)
    label = torch.arange(60) % 3
    features = extractor_for(Dataset(space, x))(x)
    assert features.shape == (60, 64)
    assert features.isfinite().all()
    trained = ClassifierNet(space, 3)
    trained.learn(Dataset(space, x, label), Dataset(space, x, label), steps=2)
    assert trained(x).isfinite().all()


def test_unlabelled_rows_are_neither_learned_from_nor_counted():
    data = digits()
    label = torch.where(torch.arange(len(data)) % 2 == 0, data.label, -1)
    extractor = extractor_for(replace(data, label=label))
    assert isinstance(extractor, ClassifierNet)
    assert float(extractor.accuracy) > 0.9


def test_tables_are_compared_by_their_standardised_columns():
    x = torch.randn(400, 3) * torch.tensor([1.0, 1000.0, 0.0]) + 5
    data = Dataset(Vectors(3), x)
    extractor = extractor_for(data)
    assert isinstance(extractor, Columns)
    features = extractor(data.parts()[0].observations())
    assert features.mean(0).abs().max() < 1e-4
    assert torch.allclose(features.std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)
    assert isinstance(extractor, Extractor)


def test_text_has_no_extractor():
    data = Dataset(Tokens(5, 8), torch.randint(5, (400,)), vocabulary=tuple("abcde"))
    with pytest.raises(SpaceError, match="tokens"):
        extractor_for(data)
