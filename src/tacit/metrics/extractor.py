"""Features in which sets of observations are compared, from extractors that need no download.

Which one a data set gets follows from what it brings: labelled images, a small classifier trained on their training
part, whose last hidden layer is taken (of the substitutes for Inception it is the one that notices both noise and a
missing class); images without labels, a fixed random convolutional net; tables, the standardised columns themselves.
An extractor is named by the hash of its weights: figures of different hashes cannot be compared.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import SpaceError
from tacit.spaces import Images, Space, Vectors

# Few features, because the bias of a Fréchet distance grows with their number over the number of rows.
_FEATURES = 64


class Extractor(nn.Module):
    """Maps observations to features, (rows, *space.shape) -> (rows, features), float32 on the CPU.

    Attributes:
        description: what it is, in words for a report.
    """

    def __init__(self, description: str):
        super().__init__()
        self.description = description

    def features(self, x: Tensor) -> Tensor:
        """The features of one batch, on its device."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.buffers()).device

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.features(part.to(self.device)).float().cpu() for part in x.split(512)])

    def hash(self) -> str:
        """The first twelve hexadecimal digits of the SHA-256 of its weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]


class Columns(Extractor):
    """A table's columns, each to mean 0 and deviation 1 over the training part."""

    def __init__(self, features: int):
        super().__init__(f"the {features} columns, standardised on the training part")
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def learn(self, train: Dataset) -> None:
        """Take means and deviations from the training part."""
        x = train.observations().double()
        deviation = x.std(0, unbiased=False)
        self.mean.copy_(x.mean(0))
        self.scale.copy_(torch.where(deviation > 1e-12, deviation, 1.0))

    def features(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class ConvNet(Extractor):
    """Three convolutions, each halving the sides, and one hidden layer: the trunk of both image extractors.

    Images larger than 32 pixels are first averaged down to that: the cost stays that of small ones.
    """

    def __init__(self, space: Images, description: str):
        super().__init__(description)
        self.centre: Tensor
        self.register_buffer("centre", torch.tensor((space.levels - 1) / 2))
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((min(space.height, 32), min(space.width, 32)))]
        for before, after in ((space.channels, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.trunk(torch.zeros(1, *space.shape)).shape[1]
        self.hidden = nn.Linear(flat, _FEATURES)

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(self.trunk(x / self.centre - 1))


class RandomNet(ConvNet):
    """The trunk with weights drawn once from a fixed seed; features standardised on the training part."""

    def __init__(self, space: Images, seed: int = 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(space, f"a random convolutional net ({_FEATURES} features, seed {seed}), standardised")
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(_FEATURES))
        self.register_buffer("scale", torch.ones(_FEATURES))

    def learn(self, train: Dataset) -> None:
        """Take the features' means and deviations from the training part."""
        x = self(train.observations(5000))
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0).clamp(min=1e-6))

    def features(self, x: Tensor) -> Tensor:
        return (super().features(x) - self.mean) / self.scale


class ClassifierNet(ConvNet):
    """The trunk under a softmax layer, trained to tell the data's own classes apart."""

    def __init__(self, space: Images, classes: int, seed: int = 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(space, "")
            self.output = nn.Linear(_FEATURES, classes)
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.tensor(0.0))
        self.seed = seed

    def features(self, x: Tensor) -> Tensor:
        return F.relu(super().features(x))

    @torch.no_grad()
    def labels(self, x: Tensor) -> Tensor:
        """The most likely class of each observation, (rows,) int64 on the CPU."""
        return torch.cat([self.output(self.features(part.to(self.device))).argmax(1).cpu() for part in x.split(512)])

    def learn(self, train: Dataset, valid: Dataset, steps: int = 800, seconds: float = 60.0) -> None:
        """Train with Adam on the labelled rows: `steps` of 128 rows, 40 epochs or `seconds`, whichever is least."""
        assert train.label is not None
        generator = torch.Generator().manual_seed(self.seed)
        labelled = (train.label.cpu() >= 0).nonzero().squeeze(1)
        steps = max(1, min(steps, 40 * len(labelled) // 128))
        optimiser = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        end = time.monotonic() + seconds
        for _ in range(steps):
            index = labelled[torch.randint(len(labelled), (128,), generator=generator)]
            label = train.label[index.to(train.label.device)].to(self.device)
            logits = self.output(self.features(train[index.to(self.device)]))
            loss = F.cross_entropy(logits, label, label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if time.monotonic() > end:
                break
        if valid.label is not None:
            self.accuracy.fill_(self.accuracy_on(valid))

    @torch.no_grad()
    def accuracy_on(self, data: Dataset, most: int = 2000) -> float:
        """Fraction of the labelled ones among the first `most` rows that it names rightly."""
        assert data.label is not None
        label = data.label[:most].cpu()
        found = self.labels(data[torch.arange(len(label))])
        return float((found == label)[label >= 0].double().mean())


def kept_as(train: Dataset, seed: int = 0) -> str:
    """The name of the file in which the extractor of this training part is kept."""
    return f"extractor-{train.fingerprint()[:16]}-seed{seed}.safetensors"


def extractor_for(
    data: Dataset, folder: Path | None = None, *, device: str = "cpu", seed: int = 0, seconds: float = 60.0
) -> Extractor:
    """The extractor that suits `data`, whose training part it learns from.

    Args:
        data: the user's data; its parts are those of `Dataset.parts`.
        folder: where a trained extractor is kept, by the data's fingerprint, and found again.
        device: where it runs.
        seed: of its weights.
        seconds: the longest it may train; its hash then depends on the machine, so be generous.

    Raises:
        SpaceError: neither images nor a table; text is compared by its n-grams (`metrics/ngrams.py`).
    """
    train, valid, _ = data.parts()
    extractor = _untrained(data.space, train, seed).to(device)
    if not isinstance(extractor, ClassifierNet):
        extractor.learn(train)
        return extractor.eval()
    path = None if folder is None else folder / kept_as(train, seed)
    if path is not None and path.exists():
        extractor.load_state_dict(safetensors.torch.load_file(path, device=device))
    else:
        extractor.learn(train, valid, seconds=seconds)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            safetensors.torch.save_file(extractor.state_dict(), partial)
            partial.replace(path)
    extractor.description = (
        f"the last hidden layer ({_FEATURES} features) of a small classifier of the {data.classes} labels, trained on "
        f"the training part, {float(extractor.accuracy):.1%} right on held-out rows"
    )
    return extractor.eval()


def _untrained(space: Space, train: Dataset, seed: int) -> Columns | RandomNet | ClassifierNet:
    if isinstance(space, Vectors):
        return Columns(space.features)
    if isinstance(space, Images) and train.classes > 1 and train.label is not None:
        return ClassifierNet(space, train.classes, seed)
    if isinstance(space, Images):
        return RandomNet(space, seed)
    raise SpaceError(f"no feature extractor is defined for {space.kind}: use images or vectors")
