"""Bits that a lossless general codec spends on an observation: how complicated it is to someone who learned nothing.

A density of images gives smooth ones more than their due, wherever they come from. What a codec that knows no data set
spends on the same image measures that, and taken off the density's own bits leaves what the density learned of *these*
data (Serrà et al. 2020, eq. 2). The codec must suit the space: WebP for images, LZMA for text, LZMA of differences for
sound. Tables of real numbers have no such codec.

References
----------
Serrà, Álvarez, Gómez, Slizovskaia, Núñez, Luque (2020). Input complexity and out-of-distribution detection with
    likelihood-based generative models. ICLR 2020. arXiv:1909.11480.
"""

from __future__ import annotations

import io
import lzma

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tacit.errors import SpaceError
from tacit.spaces import Images, Space, Tokens, Video, Waveform


def codec_of(space: Space) -> str | None:
    """The codec that suits a space, in words; None where there is none."""
    if isinstance(space, Images | Video):
        return "lossless WebP"
    if isinstance(space, Tokens):
        return "LZMA"
    if isinstance(space, Waveform):
        return "LZMA of differences"
    return None


def lossless_bits(space: Space, x: Tensor) -> Tensor:
    """Bits of each observation of `x` (batch, *space.shape) under its space's codec, each by itself: (batch,) float64.

    Raises:
        SpaceError: no lossless codec suits the space.
    """
    if codec_of(space) is None:
        raise SpaceError(f"no lossless codec suits {space.kind}: it is for images, video, text and sound")
    rows = x.cpu().numpy()
    return torch.tensor([8 * _bytes(space, row) for row in rows], dtype=torch.float64)


def _bytes(space: Space, row: np.ndarray) -> int:
    if isinstance(space, Images):
        return _webp(row, space.levels)
    if isinstance(space, Video):
        return _webp(np.concatenate(list(row), axis=1), space.levels)  # the frames below each other
    if isinstance(space, Waveform):
        # The low and the high bytes of a sample lie side by side: each is taken off the one two bytes on.
        return _lzma(row.astype("<i2").tobytes(), {"id": lzma.FILTER_DELTA, "dist": 2})
    return _lzma(row.astype(np.uint8 if (space.levels or 0) <= 256 else "<i4").tobytes())


def _lzma(raw: bytes, *before: dict[str, int]) -> int:
    """Bytes of LZMA without any header; a dictionary larger than what there is to say would take longer to lay out."""
    last = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(4096, len(raw))}
    return len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=[*before, last]))


def _webp(row: np.ndarray, levels: int) -> int:
    """Bytes of one image (channels, height, width): its levels as they are, which suits any number of them."""
    if levels > 256:
        raise SpaceError(f"WebP takes images of at most 256 levels, and these have {levels}")
    buffer = io.BytesIO()
    # WebP has no grey: three equal planes cost it nothing. Two channels are laid side by side.
    planes = row.transpose(1, 2, 0) if len(row) in (3, 4) else np.concatenate(list(row), axis=1)
    # Fully transparent pixels are part of the observation, too.
    Image.fromarray(np.ascontiguousarray(planes)).save(buffer, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return buffer.tell()
