import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tacit.data import Dataset
from tacit.errors import DataError
from tacit.metrics.probes import embed_all, knn, linear_probe
from tacit.spaces import Vectors


@pytest.fixture(scope="module")
def digits():
    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    return x[:1000].float(), y[:1000], x[1000:].float(), y[1000:]


def brute_force(train, label, test, truth, k, temperature, centred):
    """One test row at a time, as the words say."""
    train, test = train.double().numpy(), test.double().numpy()
    if centred:
        train, test = train - train.mean(0), test - train.mean(0)
    right = 0
    for row, true in zip(test, truth.tolist(), strict=True):
        cosine = [row @ other / math.sqrt((row @ row) * (other @ other)) for other in train]
        votes = np.zeros(int(label.max()) + 1)
        for i in np.argsort(cosine)[::-1][:k]:
            votes[int(label[i])] += 1 if temperature is None else math.exp(cosine[i] / temperature)
        right += votes.argmax() == true
    return right / len(test)


@pytest.mark.parametrize(("k", "temperature", "centred"), [(1, None, False), (10, None, False), (30, 0.07, True)])
def test_knn_equals_brute_force(k, temperature, centred):
    # Classes overlap, so that weights and ties matter; 57 is no multiple of the chunk.
    label, truth = torch.arange(150) % 4, torch.arange(57) % 4
    train = torch.randn(150, 6) + torch.randn(4, 6)[label] + 1
    test = torch.randn(57, 6) + 1
    found = knn(train, label, test, truth, k=k, temperature=temperature, centred=centred, chunk=10)
    assert found.accuracy == pytest.approx(brute_force(train, label, test, truth, k, temperature, centred))
    assert (found.k, found.temperature, found.centred, found.rows) == (k, temperature, centred, 150)


def test_a_small_temperature_is_the_nearest_neighbour_and_does_not_overflow(digits):
    one = knn(*digits, k=1, temperature=None)
    assert knn(*digits, k=50, temperature=1e-5).accuracy == pytest.approx(one.accuracy, abs=2 / 797)
    assert one.accuracy > 0.9


def test_knn_of_few_rows_asks_them_all():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    found = knn(x, y, x, y, centred=False)
    assert (found.k, found.accuracy) == (2, 1.0)


def test_linear_probe_equals_scikit_learn(digits):
    train, label, test, truth = (a.numpy() for a in digits)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=0.1, max_iter=500).fit(scaler.transform(train), label)
    found = linear_probe(*digits, strengths=(0.1,))
    assert found.accuracy == pytest.approx(reference.score(scaler.transform(test), truth))
    assert found.accuracy > 0.85
    assert found.converged
    assert (found.rows, found.strength) == (1000, 0.1)


def test_strength_is_chosen_without_the_test_rows(digits):
    train, label, test, truth = digits
    found = linear_probe(*digits, strengths=(1e-9, 0.1))
    assert found.strength == pytest.approx(0.1)
    # The wrong test labels change the accuracy and nothing else.
    wrong = linear_probe(train, label, test, (truth + 1) % 10, strengths=(1e-9, 0.1))
    assert wrong.strength == found.strength
    assert wrong.accuracy < 0.1


def test_a_cap_takes_rows_from_everywhere(digits):
    train, label, test, truth = digits
    order = label.argsort()
    found = linear_probe(train[order], label[order], test, truth, strengths=(0.1,), most=300)
    assert found.rows == 300
    assert found.accuracy > 0.8


def test_unlabelled_rows_are_left_out(digits):
    train, label, test, truth = digits
    hidden = label.clone()
    hidden[::2] = -1
    kept = label[1::2]
    assert knn(train, hidden, test, truth) == knn(train[1::2], kept, test, truth)
    assert linear_probe(train, hidden, test, truth, strengths=(0.1,)) == linear_probe(
        train[1::2], kept, test, truth, strengths=(0.1,)
    )


def test_no_labels_and_one_class_are_refused(digits):
    train, label, test, truth = digits
    with pytest.raises(DataError, match="none of the 1000 training rows has a label"):
        knn(train, torch.full_like(label, -1), test, truth)
    with pytest.raises(DataError, match="none of the 797 test rows has a label"):
        linear_probe(train, label, test, torch.full_like(truth, -1))
    with pytest.raises(DataError, match="at least two"):
        linear_probe(train, torch.zeros_like(label), test, truth)


def test_embed_all_is_in_order_in_evaluation_mode_and_leaves_the_mode():
    class Doubles(torch.nn.Dropout):
        @torch.no_grad()
        def embed(self, x):
            return self(2 * x)

    data = Dataset(Vectors(3), torch.randn(25, 3))
    model = Doubles(0.5)
    assert torch.equal(embed_all(model, data, batch_size=10), 2 * data.x)
    assert model.training
