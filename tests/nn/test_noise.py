"""Noise in common: every row meets the same."""

import torch

from tacit.nn import noise


def test_rows_share_their_noise_within_common_and_nowhere_else():
    for draw in (noise.rand, noise.randn):
        with noise.common():
            x = draw(5, 3, 2)
            assert (x == x[:1]).all() and x[0].unique().numel() == 6
            torch.manual_seed(1)
            many = draw(4, 7)
            torch.manual_seed(1)
            torch.testing.assert_close(draw(9, 7)[:4], many)
        assert not (draw(5, 3) == draw(5, 3)[:1]).all()
    with noise.common():
        assert noise.stratified(6).unique().numel() == 1
