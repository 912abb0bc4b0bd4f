"""Conformal p-values equal a loop and keep what they promise; the rows called anomalies equal scipy's."""

import pytest
import torch
from scipy.stats import false_discovery_control, kstest

from tacit.errors import DataError, TacitError
from tacit.metrics.conformal import discoveries, fewest_discoveries, p_values


@pytest.mark.parametrize("levels", [5, 10**6])
def test_p_values_equal_a_loop(levels):
    calibration, scores = torch.randint(levels, (31,)).float(), torch.randint(levels, (17,)).float()
    expected = [(1 + sum(c >= s for c in calibration.tolist())) / 32 for s in scores.tolist()]
    assert p_values(scores, calibration).tolist() == pytest.approx(expected, abs=1e-12)
    u = torch.rand(17)
    by_chance = [
        (sum(c > s for c in calibration.tolist()) + float(w) * (1 + sum(c == s for c in calibration.tolist()))) / 32
        for s, w in zip(scores.tolist(), u, strict=True)
    ]
    assert p_values(scores, calibration, u).tolist() == pytest.approx(by_chance, abs=1e-6)
    assert p_values(torch.tensor([torch.inf]), calibration).item() == 1 / 32


def test_p_values_are_uniform_and_the_tie_break_makes_them_so():
    many = torch.stack(
        [p_values(s[:1], s[1:], u[:1])[0] for s, u in zip(torch.randn(4000, 20), torch.rand(4000, 1), strict=True)]
    )
    assert kstest(many.numpy(), "uniform").pvalue > 0.001
    tied = torch.randint(3, (4000, 200)).float()
    smooth = torch.stack([p_values(s[:1], s[1:], u)[0] for s, u in zip(tied, torch.rand(4000, 1), strict=True)])
    assert kstest(smooth.numpy(), "uniform").pvalue > 0.001
    # Without it two thirds of the rows could not be told at any level below a third.
    plain = torch.stack([p_values(s[:1], s[1:])[0] for s in tied])
    assert plain.min() > 0.2


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_discoveries_equal_scipys(rate):
    for strange in (0, 3, 40):
        p = torch.cat([torch.rand(100), torch.rand(strange) * 0.002])
        expected = false_discovery_control(p.double().numpy(), method="bh") <= rate
        assert discoveries(p, rate).tolist() == expected.tolist()


def test_the_share_of_false_alarms_among_alarms_is_what_was_asked_for():
    shares, found = [], []
    for _ in range(300):
        sound, strange = torch.randn(90), torch.randn(10) + 4
        flagged = discoveries(p_values(torch.cat([sound, strange]), torch.randn(1000)), 0.1)
        shares.append(flagged[:90].sum().item() / max(1, flagged.sum().item()))
        found.append(flagged[90:].float().mean().item())
    assert sum(shares) / 300 < 0.1 + 0.02
    assert sum(found) / 300 > 0.6


def test_how_many_anomalies_can_be_told():
    for rows, calibration in ((100, 39), (180, 180), (1000, 20), (10, 1000)):
        least = fewest_discoveries(rows, calibration, 0.05)
        for count, told in ((least, True), (least - 1, False)):
            p = torch.ones(rows, dtype=torch.float64)
            p[:count] = 1 / (calibration + 1)
            assert bool(discoveries(p, 0.05).any()) == (told and count <= rows)


def test_what_cannot_be_done_is_said():
    with pytest.raises(DataError, match="2 scores by 0 held-out ones"):
        p_values(torch.zeros(2), torch.zeros(0))
    with pytest.raises(DataError, match="no NaN"):
        p_values(torch.tensor([torch.nan]), torch.zeros(3))
    with pytest.raises(TacitError, match=r"rate is 1\.5: give a number between 0 and 1"):
        discoveries(torch.rand(3), 1.5)
