"""Distances equal a loop's, the crowd keeps sound rows and leaves out groups of anomalies, and finds either."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tacit.metrics.outliers import Crowd, Forest, Near, Scaled, Tail

RNG = np.random.default_rng(0)


def test_near_equals_a_loop_and_no_row_is_its_own_neighbour():
    rows, x = RNG.normal(size=(40, 3)), RNG.normal(size=(7, 3))
    near = Near(rows, 4)
    expected = [np.sort(np.linalg.norm(rows - one, axis=1))[:4] for one in x]
    np.testing.assert_allclose(near.nearest(x), expected)
    np.testing.assert_allclose(near(x), np.mean(expected, 1))
    own = [np.sort(np.linalg.norm(rows - one, axis=1))[1:5] for one in rows[:9]]
    np.testing.assert_allclose(near.nearest(rows[:9], among=True), own)
    assert Near(rows[:3], 5)(x).shape == (7,), "fewer rows than neighbours"


def test_scales_and_tails():
    rows = np.array([[0.0, 5, 2], [4, 5, 4], [8, 5, 9]])
    assert Scaled(rows)(rows)[:, :2].tolist() == [[0, 0], [0.5, 0], [1, 0]]
    np.testing.assert_allclose(Scaled(rows, standard=True)(rows)[:, 2].std(), 1)
    tail = Tail(np.append(np.arange(1, 102.0), np.inf))
    np.testing.assert_allclose(tail(np.array([51.0, 91, np.inf])), [0, 1, np.inf])
    assert np.isfinite(Tail(np.full(9, 3.0))(np.array([3.0, 4.0]))).all()


def sound_and_strange(grouped: bool) -> tuple[np.ndarray, np.ndarray]:
    sound = np.concatenate([RNG.normal(centre, 1, size=(300, 4)) for centre in (0, 6)])
    if grouped:
        return sound, RNG.normal(3, 0.1, size=(14, 4)) * [1, -1, 1, -1]
    return sound, RNG.uniform(-12, 18, size=(25, 4))


@pytest.mark.parametrize("grouped", [False, True])
def test_anomalies_among_what_it_learns_from_do_no_harm(grouped):
    sound, strange = sound_and_strange(grouped)
    crowd = Crowd(np.concatenate([sound, strange]))
    fresh = sound_and_strange(grouped)
    truth = np.repeat([0, 1], [len(fresh[0]), len(fresh[1])])
    assert roc_auc_score(truth, crowd(np.concatenate(fresh))) > 0.97
    plain = roc_auc_score(truth, Near(np.concatenate([sound, strange]))(np.concatenate(fresh)))
    if grouped:
        assert plain < 0.3, "five near neighbours take the group for a place like any other"
        assert not set(range(600, 614)) & set(crowd.kept.tolist())
    assert len(set(range(600)) & set(crowd.kept.tolist())) > 0.97 * 600


def test_rows_that_are_the_same_and_few_rows():
    for rows in (np.zeros((50, 2)), RNG.integers(0, 2, (60, 3)).astype(float), RNG.normal(size=(16, 200))):
        score = Crowd(rows)(np.concatenate([rows[:3], rows[:1] + 9]))
        assert np.isfinite(score).all() and score[3] > score[:3].max()


def test_forest_ranks_like_scikit_learns():
    rows = RNG.normal(size=(200, 2))
    assert Forest(rows, seed=3)(np.array([[0.0, 0], [6, 6]])).argmax() == 1
