"""How near drawn images are to real ones: their Fréchet distance to test images.

In the features of a classifier of the data's own labels, learnt from its training part and named by its weights' hash
(not "FID", which is another network's). Beside it in every note stands the floor: the distance of as many training
images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from record import record
from tacit.data import Dataset
from tacit.metrics.extractor import extractor_for
from tacit.metrics.frechet import frechet_distance, jackknife


class Judge:
    """Judges draws of a model of `data`.

    Args:
        data: labelled images.
        rows: of the test part at most, and of the training part for the floor.
        seed: of the classifier.
        folder: where the classifier is kept for the next script.
    """

    def __init__(self, data: Dataset, rows: int, seed: int, folder: Path):
        train, _, test = data.parts()
        self.data, self.seed = data.name, seed
        self.extractor = extractor_for(data, folder, seed=seed, seconds=600)
        self.real = self.extractor(test.observations(rows))
        self.floor = self.distance(train.observations(rows))

    def distance(self, images: Tensor) -> float:
        """Of images, (rows, *shape)."""
        return frechet_distance(self.real, self.extractor(images))

    def record(self, model: str, images: Tensor, note: str, *, way: str = "", **rest: Any) -> float:
        """Record the distance of a model's images and return it; `way` of drawing them joins the metric's name."""
        fake = self.extractor(images)
        distance = frechet_distance(self.real, fake)
        record(
            model,
            self.data,
            f"frechet-classifier-distance{way}",
            distance,
            split=f"{len(fake)} samples against {len(self.real)} test images",
            unit=f"squared distance, extractor {self.extractor.hash()}",
            better="lower",
            seed=self.seed,
            uncertainty=jackknife(lambda part: frechet_distance(self.real, part), fake)[1],
            note=f"{note}; features: {self.extractor.description}; real against real: {self.floor:.3g}; uncertainty is "
            "the jackknife's over the samples drawn",
            **rest,
        )
        return distance
