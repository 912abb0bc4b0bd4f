"""Extractors: which data gets which, the same one every time, and that they notice what they should."""

from dataclasses import replace
from pathlib import Path

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Extractor]:
    """The folder that keeps the extractor of the labelled digits, and that extractor."""
    folder = tmp_path_factory.mktemp("extractor")
    return folder, extractor_for(digits(), folder)


def test_labelled_images_get_a_classifier_that_is_kept_and_found_again(trained, monkeypatch):
    data, (folder, extractor) = digits(), trained
    assert isinstance(extractor, ClassifierNet)
    assert float(extractor.accuracy) > 0.9
    assert "classifier of the 10 labels" in extractor.description
    features = extractor(data.observations(700))
    assert features.shape == (700, 64)
    assert features.dtype == torch.float32

    monkeypatch.setattr(ClassifierNet, "learn", None)  # not to be called again
    again = extractor_for(data, folder)
    assert again.hash() == extractor.hash()
    assert again.description == extractor.description
    assert torch.equal(again(data.observations(700)), features)


def test_other_data_or_another_seed_is_another_extractor(tmp_path):
    data = replace(digits(), label=None, class_names=())
    first, same, other = (extractor_for(data, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert isinstance(first, RandomNet)
    assert first.hash() == same.hash() != other.hash()
    state = torch.get_rng_state()
    extractor_for(data)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("labelled", [True, False])
def test_spoilt_digits_are_farther_than_real_ones(labelled, trained):
    data = digits()
    _, valid, test = data.parts()
    extractor = trained[1] if labelled else extractor_for(replace(data, label=None, class_names=()))
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
    classifier = ClassifierNet(space, 3)
    classifier.learn(Dataset(space, x, label), Dataset(space, x, label), steps=2)
    assert classifier(x).isfinite().all()


def test_unlabelled_rows_are_neither_learned_from_nor_counted():
    data = digits()
    label = torch.where(torch.arange(len(data)) % 2 == 0, data.label, -1)
    train, valid, _ = replace(data, label=label).parts()
    noise = replace(train, x=torch.where((train.label < 0).view(-1, 1, 1, 1), 16 - train.x, train.x))
    networks = [ClassifierNet(data.space, 10) for _ in range(2)]
    for network, part in zip(networks, (train, noise), strict=True):
        network.learn(part, valid, steps=5)
    assert networks[0].hash() == networks[1].hash()
    right = networks[0].accuracy_on(valid) * int((valid.label >= 0).sum())
    assert right == pytest.approx(round(right), abs=1e-6)


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
