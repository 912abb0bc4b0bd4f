"""Measures of disentanglement: what is known of perfect, rotated, noisy and hand-made codes."""

import math

import pytest
import torch

from tacit.data import load
from tacit.errors import DataError
from tacit.metrics.disentanglement import (
    beta_vae_score,
    dci,
    disentanglement,
    mutual_information,
    mutual_information_gap,
)


def table(rows: int = 1000, sizes: tuple[int, ...] = (3, 4, 5)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(size, (rows,), generator=generator) for size in sizes], 1)


def noise(rows: int = 1000, columns: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def test_the_factors_themselves_reach_the_optimum():
    factors = table()
    codes = torch.cat([factors[:, [2, 0, 1]] * torch.tensor([1.0, -7.0, 0.1]), 0.0 * noise(columns=2)], 1)
    found = disentanglement(codes, factors)
    assert found.beta_vae == 1 and found.informativeness == 1
    assert found.gap == pytest.approx(1, abs=0.02), "what is left is the finite sample's dependence of factors"
    assert found.disentanglement == pytest.approx(1) and found.completeness == pytest.approx(1)


def test_noise_reaches_chance():
    found = disentanglement(noise(), table())
    assert found.beta_vae == pytest.approx(1 / 3, abs=0.05) and found.gap < 0.03
    assert found.informativeness < 0.4 and found.disentanglement < 0.2 and found.completeness < 0.2


def test_a_rotation_hides_no_factor_and_shows_none():
    """Informative as ever, but no entry says one factor: the gap and DCI see it, a linear classifier need not."""
    factors = table(sizes=(5, 5, 5))
    rotation = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 0.1], [0.1, 1, -2]]))[0]
    found = disentanglement((factors - 2.0) @ rotation, factors)
    assert found.gap < 0.2 and found.disentanglement < 0.4 and found.completeness < 0.4
    assert found.informativeness > 0.75
    straight = disentanglement(factors.float(), factors)
    assert straight.gap > 0.9 and straight.disentanglement > 0.95


def test_two_copies_of_a_factor_have_no_gap_and_are_not_complete():
    factors = table(sizes=(4, 4))
    codes = torch.cat([factors, factors[:, :1]], 1) + 0.01 * noise()
    assert mutual_information_gap(codes, factors) == pytest.approx(0.5, abs=0.02), "that of the other factor, halved"
    separate, complete, _ = dci(codes, factors)
    assert separate > 0.99
    assert complete < 0.9


def test_an_entry_of_two_factors_is_complete_and_not_disentangled():
    factors = table(sizes=(4, 4))
    separate, complete, told = dci((4 * factors[:, :1] + factors[:, 1:]).float(), factors)
    assert separate == pytest.approx(0, abs=0.01) and told == 1
    assert complete == 1, "there is no other entry"


def test_mutual_information_equals_a_naive_loop():
    factors, codes = table(200, (3, 2)), noise(200, 4)
    bins = 6
    found, entropy = mutual_information(codes, factors, bins=bins)
    for j in range(4):
        edges = torch.linspace(codes[:, j].min(), codes[:, j].max(), bins + 1)
        cut = torch.bucketize(codes[:, j].contiguous(), edges[1:-1], right=True)
        for k in range(2):
            expected, of_factor = 0.0, 0.0
            for value in factors[:, k].unique():
                p_value = (factors[:, k] == value).double().mean().item()
                of_factor -= p_value * math.log(p_value)
                for a in range(bins):
                    p_cell = (cut == a).double().mean().item()
                    p = ((cut == a) & (factors[:, k] == value)).double().mean().item()
                    expected += p * math.log(p / (p_cell * p_value)) if p else 0.0
            assert found[j, k].item() == pytest.approx(expected, abs=1e-9)
            assert entropy[k].item() == pytest.approx(of_factor)
    gap = [
        (column.sort(descending=True).values[:2].diff().abs() / h).item()
        for column, h in zip(found.T, entropy, strict=True)
    ]
    assert mutual_information_gap(codes, factors, bins=bins) == pytest.approx(sum(gap) / 2)


def test_pairs_share_the_factor_and_nothing_else(monkeypatch):
    """With one pair an example, and codes that are the factors, the shared one differs by 0 and the others vary."""
    seen = {}
    monkeypatch.setattr(
        "tacit.metrics.disentanglement.linear_probe",
        lambda x, y, *_, **__: seen.update(x=x, y=y) or type("Probe", (), {"accuracy": 0.0}),
    )
    factors = table(sizes=(3, 4, 5))
    beta_vae_score(factors.float(), factors, pairs=1)
    for k, size in enumerate((3, 4, 5)):
        assert (seen["x"][seen["y"] == k, k] == 0).all()
        same = (seen["x"][seen["y"] != k, k] == 0).float().mean().item()
        assert same == pytest.approx(1 / size, abs=0.05), "partners are drawn uniformly"


def test_factors_that_do_not_vary_are_left_out():
    factors = table(400)
    still = torch.cat([factors, torch.ones(400, 1, dtype=torch.long)], 1)
    assert mutual_information_gap(factors.float(), still) == mutual_information_gap(factors.float(), factors)
    assert dci(factors.float(), still) == dci(factors.float(), factors)


def test_what_cannot_be_measured_is_a_sentence():
    factors = table(50)
    with pytest.raises(DataError, match=r"codes have shape \(49, 3\) and factors \(50, 3\)"):
        disentanglement(factors[1:].float(), factors)
    with pytest.raises(DataError, match="no factor varies"):
        mutual_information_gap(factors.float(), torch.zeros_like(factors))
    with pytest.raises(DataError, match="only one factor varies"):
        beta_vae_score(factors.float(), factors[:, :1])
    with pytest.raises(DataError, match="a code is not finite"):
        dci(factors / 0.0, factors)
    with pytest.raises(DataError, match="9 rows are too few"):
        dci(factors[:9].float(), factors[:9])


def test_on_sprites_the_factors_are_told_from_themselves():
    data = load("sprites").parts()[2]
    found = disentanglement(data.factors.float(), data.factors, rows=1000)
    assert found.rows == len(data) and found.beta_vae == 1
    assert min(found.gap, found.disentanglement, found.completeness, found.informativeness) > 0.95
