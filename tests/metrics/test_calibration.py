"""Calibration against torchmetrics, scikit-learn and classifiers whose calibration is known."""

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from tacit.errors import DataError
from tacit.metrics.calibration import calibration


def classified(rows: int, classes: int, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and labels drawn from them."""
    p = (sharpness * torch.randn(rows, classes, dtype=torch.float64)).softmax(1)
    return p, torch.multinomial(p, 1)[:, 0]


@pytest.mark.parametrize("classes", [2, 7])
def test_all_three_agree_with_other_implementations(classes):
    p, label = classified(500, classes)
    label[::3] = torch.randint(classes, label[::3].shape)
    found = calibration(p, label)
    peer = multiclass_calibration_error(p, label, num_classes=classes, n_bins=15)
    assert found.error == pytest.approx(float(peer), abs=1e-6)
    assert found.nats == pytest.approx(log_loss(label, p, labels=range(classes)), rel=1e-9)
    brier = brier_score_loss(label.numpy(), p.numpy(), labels=range(classes), scale_by_half=False)
    assert found.brier == pytest.approx(brier, rel=1e-9)
    assert found.accuracy == pytest.approx(float((p.argmax(1) == label).double().mean()))
    assert found.rows == sum(b.rows for b in found.bins) == 500


def test_a_calibrated_classifier_has_the_error_of_the_floor():
    errors, floors = [], []
    for _ in range(40):
        found = calibration(*classified(300, 4))
        errors.append(found.error)
        floors.append(found.error_floor)
    spread = torch.tensor(errors).std() / math.sqrt(40)
    assert abs(sum(errors) / 40 - sum(floors) / 40) < 4 * spread
    p, label = classified(3000, 4)
    sure = (p.log() * 3).softmax(1)
    assert calibration(sure, label).error > 5 * calibration(sure, label).error_floor


def test_bins_hold_their_upper_edge_and_certainty():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    found = calibration(p, torch.tensor([0, 1, 0, 1]), bins=2)
    assert [b.rows for b in found.bins] == [1, 3]
    assert found.bins[1].accuracy == pytest.approx(2 / 3)
    assert found.bins[1].confidence == pytest.approx(2.8 / 3)
    assert found.error == pytest.approx(0.25 * 0.5 + 0.75 * (2.8 - 2) / 3)
    assert found.nats == math.inf


def test_rows_without_a_label_are_left_out_and_nonsense_is_refused():
    p, label = classified(50, 3)
    half = torch.where(torch.arange(50) < 25, label, -1)
    assert calibration(p, half) == calibration(p[:25], label[:25])
    with pytest.raises(DataError, match="none of the 50 rows has a label"):
        calibration(p, torch.full((50,), -1))
    with pytest.raises(DataError, match="go up to 3"):
        calibration(p, label + 1 + (label < 2).long() * (2 - label))
    with pytest.raises(DataError, match="between 0 and 1"):
        calibration(p - 0.5, label)
