"""Random crops, flips, rotations and colours of a whole batch of images at once, on the device the batch is on.

Geometry is one sampling of the batch at coordinates that an affine map per image gives, so that crop, flip, rotation
and shift cost no more together than one of them. Colour is linear in the pixels and is therefore one matrix M and one
offset b per image, x ↦ M x + b, whatever it is made of: with w the luma weights (Rec. 601), G = 1 wᵀ and β, γ, σ the
factors of brightness, contrast and saturation,

    brightness  x ↦ β x
    contrast    x ↦ γ x + (1 − γ) m 1        m: mean luma of the image
    saturation  x ↦ σ x + (1 − σ) G x
    hue         x ↦ Q⁻¹ R(θ) Q x             Q: RGB to YIQ, R: rotation of the I-Q plane
    grey        x ↦ G x

in this order; values are clipped to [0, 1] once, at the end. Images that are not RGB (grey, or with an alpha plane)
get brightness and contrast, alike in all channels.

References
----------
Chen, Kornblith, Norouzi, Hinton (2020). A Simple Framework for Contrastive Learning of Visual Representations.
arXiv:2002.05709, appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import SpaceError
from tacit.nn import noise

_LUMA = torch.tensor((0.299, 0.587, 0.114))
_YIQ = torch.tensor(((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))
_RGB = torch.linalg.inv(_YIQ)


@dataclass(frozen=True)
class Augment:
    """A recipe of random changes; calling it applies it to a batch. All zeros, the default, changes nothing.

    Attributes:
        levels: how many values a pixel takes: x / (levels − 1) is in [0, 1].
        crop: smallest share of the area that a crop keeps; 1 does not crop. The crop is scaled back to full size.
        ratio: a crop's width : height, relative to the image's own, lies in [1 / ratio, ratio], evenly on a log scale,
            as far as the image has room for it.
        flip: probability of mirroring left and right.
        rotation: largest angle in degrees, either way.
        shift: largest shift as a share of the side, either way; what comes into view repeats the border.
        brightness: factors lie in [1 − brightness, 1 + brightness], not below 0; likewise `contrast`, `saturation`.
        contrast: see brightness.
        saturation: see brightness; RGB only.
        hue: largest turn of the hue circle, in turns, either way; RGB only.
        jitter: probability that an image's brightness, contrast, saturation and hue change at all.
        grey: probability of losing all colour; RGB only.
        blur: probability of a Gaussian blur, its standard deviation between 0.1 and 2 pixels.
        noise: standard deviation of Gaussian noise added to the pixels.
    """

    levels: int = 256
    crop: float = 1.0
    ratio: float = 4 / 3
    flip: float = 0.0
    rotation: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) integers in {0, …, levels − 1} -> float32 in [0, 1], each image its own way.

        Raises:
            SpaceError: `x` is not a batch of images.
        """
        if x.dim() != 4:
            raise SpaceError(
                f"a batch of shape {tuple(x.shape)} is not one of images: give (batch, channels, height, width)"
            )
        # Each image's parameters are a row of uniform numbers: one draw, the same for any number of processes.
        u = iter(noise.rand(len(x), 18, device=x.device).unbind(1))
        x = x.float()
        affine = self._affine(u, x.shape[3] / x.shape[2])
        if self.crop < 1 or self.flip or self.rotation or self.shift:
            x = warp(x, affine)
        x = self._colour(x, u)
        if self.blur:
            x = blur(x, torch.where(next(u) < self.blur, 0.1 + 1.9 * next(u), 0.0))
        if self.noise:
            x = (x + self.noise * noise.randn_like(x)).clamp_(0, 1)
        return x

    def _affine(self, u: Iterator[Tensor], aspect: float) -> Tensor:
        """(batch, 2, 3) maps from coordinates of the output to coordinates of the source."""
        area = 1 - (1 - self.crop) * next(u)
        # Both sides must fit, so the larger the window, the nearer its shape is to the image's.
        most = (-area.log() / 2).clamp(max=math.log(self.ratio) / 2)
        shape = (most * (2 * next(u) - 1)).exp()
        width, height = area.sqrt() * shape, area.sqrt() / shape
        left = (1 - width) * (2 * next(u) - 1) + 2 * self.shift * (2 * next(u) - 1)
        top = (1 - height) * (2 * next(u) - 1) + 2 * self.shift * (2 * next(u) - 1)
        mirror = torch.where(next(u) < self.flip, -1.0, 1.0)
        angle = math.radians(self.rotation) * (2 * next(u) - 1)
        cos, sin = angle.cos(), angle.sin()
        # Angles are angles between pixels, and coordinates run over [−1, 1] on the longer side and the shorter alike.
        rows = (width * mirror * cos, -width / aspect * sin, left, height * aspect * mirror * sin, height * cos, top)
        return torch.stack(rows, 1).view(-1, 2, 3)

    def _colour(self, x: Tensor, u: Iterator[Tensor]) -> Tensor:
        """(batch, channels, height, width) in [0, levels − 1] -> [0, 1], recoloured."""
        changes = next(u) < self.jitter

        def factor(strength: float) -> Tensor:
            return torch.where(changes, 1 + strength * (2 * next(u) - 1), 1.0).clamp(min=0)

        brightness, contrast, saturation = factor(self.brightness), factor(self.contrast), factor(self.saturation)
        turn = torch.where(changes, 2 * math.pi * self.hue * (2 * next(u) - 1), 0.0)
        grey = next(u) < self.grey
        brightness = brightness / (self.levels - 1)
        rgb = x.shape[1] == 3
        if rgb and (self.saturation or self.hue or self.grey):
            matrix = colour_matrix(saturation, turn, grey) * (brightness * contrast).view(-1, 1, 1)
        elif self.brightness or self.contrast:
            matrix = brightness * contrast
        else:
            return x / (self.levels - 1)
        # Saturation and hue leave grey alone, and the offset is grey.
        mean = x.mean((2, 3))
        luma = mean @ _LUMA.to(x.device) if rgb else mean.mean(1)
        return recolour(x, matrix, (1 - contrast) * brightness * luma)


def warp(x: Tensor, affine: Tensor) -> Tensor:
    """Sample each image at an affine map of its coordinates, bilinearly; beyond the border the border repeats.

    Args:
        x: (batch, channels, height, width).
        affine: (batch, 2, 3), from the output's (x, y, 1) to the source's (x, y), where −1 and 1 are the outer edges of
            the first and the last pixel.
    """
    height, width = x.shape[2:]
    across = (torch.arange(width, device=x.device) * 2 + 1) / width - 1
    down = (torch.arange(height, device=x.device) * 2 + 1) / height - 1
    # Outer sums into two planes, ten times as fast as `affine_grid`, which multiplies matrices to the same end.
    along_x = affine[:, :, 0, None] * across
    along_y = affine[:, :, 1, None] * down + affine[:, :, 2, None]
    grid = (along_x[:, :, None, :] + along_y[:, :, :, None]).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def colour_matrix(saturation: Tensor, turn: Tensor, grey: Tensor) -> Tensor:
    """(batch, 3, 3): scale saturation, turn hue by `turn` radians, lose colour where `grey` is true; each (batch,)."""
    cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), 1).view(-1, 3, 3)
    luma = _LUMA.to(turn.device).expand(3, 3)
    saturated = saturation.view(-1, 1, 1) * (torch.eye(3, device=turn.device) - luma) + luma
    coloured = _RGB.to(turn.device) @ rotation @ _YIQ.to(turn.device) @ saturated
    return torch.where(grey.view(-1, 1, 1), luma, coloured)


def recolour(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """M x + b at every pixel, clipped to [0, 1].

    Args:
        x: (batch, channels, height, width).
        matrix: (batch, channels, channels), or (batch,) for a multiple of the identity.
        offset: (batch,), the same for all channels.
    """
    if matrix.dim() == 1:
        return torch.addcmul(offset.view(-1, 1, 1, 1), x, matrix.view(-1, 1, 1, 1)).clamp_(0, 1)
    return torch.baddbmm(offset.view(-1, 1, 1), matrix, x.flatten(2)).view_as(x).clamp_(0, 1)


def blur(x: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur of each image by its own standard deviation in pixels, (batch,); 0 leaves it as it is.

    Separable: one matrix of normalised weights per image and axis, so that the border loses no brightness.
    """

    def weights(size: int) -> Tensor:
        place = torch.arange(size, device=x.device)
        distance = (place[:, None] - place).square()
        return torch.softmax(-distance / (2 * deviation.clamp(min=1e-3).square().view(-1, 1, 1)), -1)

    down, across = weights(x.shape[2]), weights(x.shape[3])
    return down.unsqueeze(1) @ x @ across.transpose(1, 2).unsqueeze(1)
