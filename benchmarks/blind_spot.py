"""The picture of PixelCNN's blind spot: which pixels move the conditional of one, found by the gradient.

python benchmarks/blind_spot.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from tacit import catalogue
from tacit.models.autoregressive._autoregressive import Sequential
from tacit.spaces import Images

_PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "blind-spot.png"


def reach(name: str, layers: int, side: int, seed: int) -> Tensor:
    """Mean size of the gradient of the middle pixel's logit with respect to every pixel, (side, side)."""
    torch.manual_seed(seed)
    model = catalogue.load(name)(Images(1, side, side, 2), layers=layers, first=3, kernel=3)
    assert isinstance(model, Sequential)
    x = torch.rand(64, 1, side, side, requires_grad=True)
    logit = model.conditionals(x, None)[:, 0, 0, side // 2, side // 2]
    (gradient,) = torch.autograd.grad(logit.sum(), x)
    return gradient[:, 0].abs().mean(0)


def main(layers: int = 10, side: int = 17, seed: int = 0) -> None:
    """Draw it for both models, with kernels of 3 × 3.

    Args:
        layers: residual blocks, or gated layers.
        side: of the square image.
        seed: of weights and images.
    """
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    middle = side // 2
    for plot, name in zip(figure.subplots(1, 2), ("pixelcnn", "gated-pixelcnn"), strict=True):
        gradient = reach(name, layers, side, seed)
        # Zeros stay white; the rest is shown by its logarithm, for it falls off steeply.
        shown = torch.where(gradient > 0, gradient.clamp(min=1e-12).log10(), torch.nan)
        plot.imshow(shown, cmap="viridis")
        plot.plot(middle, middle, "rs")
        before = torch.arange(side * side).view(side, side) < middle * side + middle
        blind = int((before & (gradient == 0)).sum())
        plot.set_title(f"{name}: blind to {blind} of {int(before.sum())}")
        plot.set_xticks([])
        plot.set_yticks([])
        print(f"{name}: {blind} of the {int(before.sum())} pixels before the middle one have no gradient")
    _PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(_PICTURE, dpi=80)


if __name__ == "__main__":
    tyro.cli(main)
