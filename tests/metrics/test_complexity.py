"""Codecs give back what they were given, count what they write, and find constant things simple."""

import pytest
import torch

from tacit.errors import SpaceError
from tacit.metrics.complexity import codec_of, lossless_bits
from tacit.spaces import Images, Strokes, Tokens, Vectors, Video, Waveform


@pytest.mark.parametrize(
    ("space", "least"),
    [
        (Images(1, 28, 28), 8),
        (Images(3, 16, 12), 8),
        (Images(4, 9, 9), 8),
        (Images(2, 9, 9), 8),
        (Images(1, 28, 28, 2), 1),
        (Video(3, 1, 12, 12), 8),
        (Waveform(2000, 8000), 16),
        (Tokens(256, 500), 8),
    ],
)
def test_noise_takes_all_its_bits_and_constants_few(space, least):
    low, high = space.value_range
    noise = torch.randint(low, high + 1, (2, *space.shape)).to(space.torch_dtype)
    bits = lossless_bits(space, torch.cat([noise, torch.full_like(noise, high // 2)]))
    assert bits.shape == (4,) and bits.dtype == torch.float64 and (bits % 8 == 0).all()
    # No code is shorter than noise's entropy, and a good one not much longer.
    entropy = space.dimensions * least
    assert (bits[:2] >= entropy - 64).all() and (bits[:2] < 1.25 * entropy + 1600).all()
    assert (bits[2:] < 0.25 * bits[:2] + 300).all()
    torch.testing.assert_close(lossless_bits(space, noise[1:]), bits[1:2])


def test_a_smooth_image_is_simpler_than_its_pixels_shuffled():
    i, j = torch.arange(32.0)[:, None], torch.arange(32.0)
    smooth = (127 + 100 * torch.sin(i / 8) * torch.cos(j / 9)).round().to(torch.uint8).view(1, 1, 32, 32)
    shuffled = smooth.flatten()[torch.randperm(1024)].view_as(smooth)
    simple, complicated = lossless_bits(Images(1, 32, 32), torch.cat([smooth, shuffled]))
    assert simple < 0.7 * complicated


def test_where_no_codec_is_known():
    for space in (Vectors(3), Strokes(5)):
        assert codec_of(space) is None
        with pytest.raises(SpaceError, match=f"no lossless codec suits {space.kind}"):
            lossless_bits(space, torch.zeros(1, *space.shape))
    with pytest.raises(SpaceError, match="at most 256 levels, and these have 300"):
        lossless_bits(Images(1, 2, 2, 300), torch.zeros(1, 1, 2, 2))
