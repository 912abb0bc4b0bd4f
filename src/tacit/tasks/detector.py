"""What says how strange an observation is: every score that a model and its data allow, and p-values for one of them.

Rows that a model was fitted on are its reference: neighbours are looked for among them, a forest is grown on them, and
they say what is usual. Rows that nothing was fitted on calibrate: an observation's p-value is its rank among theirs,
which keeps its promise whatever the score is worth (`metrics/conformal.py`). All rows are scored in batches of one size
and in the same noise, so that a row's score is its own and not its batch-mates'.

References
----------
Nalisnick et al. (2019). Detecting out-of-distribution inputs to deep generative models using typicality.
    arXiv:1906.02994, §3 for a single observation.
Serrà et al. (2020). Input complexity and out-of-distribution detection with likelihood-based generative models.
    arXiv:1909.11480, eq. 2.
Ren et al. (2019). Likelihood ratios for out-of-distribution detection. arXiv:1906.02845, §3.
Choi, Jang, Alemi (2018). WAIC, but why? Generative ensembles for robust anomaly detection. arXiv:1810.01392, §2.
Graham et al. (2023). Denoising diffusion models for out-of-distribution detection. arXiv:2211.07740, §3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tacit.capabilities import Decodes, Embeds, Encodes, HasDensity, HasEnergy
from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.metrics.complexity import codec_of, lossless_bits
from tacit.metrics.conformal import check_share, discoveries, p_values
from tacit.metrics.outliers import Crowd, Forest, Near, Scaled, Tail
from tacit.model import Model
from tacit.nn import noise
from tacit.nn.continuous import Continuous
from tacit.spaces import Images, Space, Strokes, Tokens, Vectors, Video, Waveform
from tacit.tasks.embed import check_space
from tacit.training.plan import reseed

if TYPE_CHECKING:
    from tacit.tasks.run import Run

# Rows of the reference that neighbours are looked for among, in the data and in a model's features; how many say what
# scores are usual; rows that calibrate, of tables, which are quick, and of others. All evenly spaced.
_REFERENCE, _EMBEDDED, _USUAL, _CALIBRATION = 10_000, 3000, 500, (10_000, 5000)
_LEAST_ROWS = 20
# Every batch has so many rows, or as few as so many entries make up; the last is filled up.
_ROWS, _ENTRIES = 64, 2**20
# How far towards noise observations are brought before a diffusion model denoises them.
_NOISED = (0.2, 0.4, 0.6)
# Blame: the reference rows asked, how many of them answer, and the parts an image has a side and a recording has.
_ASKED, _ANSWER, _SIDE, _SEGMENTS = 2000, 10, 8, 32
_CONTEXT = 3  # symbols on each side of one that say what should stand there

MEANINGS = {
    "default": "of tables, a crowd of distances and a forest; else the mean of two of the other scores",
    "nll": "−log p(x), nats: naive, and misled by whatever is simple",
    "typicality": "distance of −log p(x) from its mean over held-out rows, on either side, nats",
    "complexity": "−log₂ p(x) less the bits of a general codec, which takes off what is merely complicated",
    "ratio": "−log p(x) less that under the background model, nats",
    "waic": "mean plus variance of −log p(x) over the ensemble, nats",
    "energy": "the model's energy, which falls as p(x) rises",
    "reconstruction": "mean squared error of what the model rebuilds",
    "diffusion": "mean squared error of what the model denoises, from several amounts of noise",
    "embedding": "distance to near training rows in the model's features",
    "neighbours": "distance to near training rows in the data itself",
    "forest": "how few random cuts set the row apart (isolation forest)",
}


class Detector:
    """Anomaly scores, p-values and decisions, in PyOD's conventions: higher is stranger, and 1 is an anomaly.

    Without a model it takes tables; with one, whatever the model takes. `of(run)` builds one from a run.

    Args:
        model: one with a density, an energy, a reconstruction or features.
        score: which score decides, of `MEANINGS`.
        background: a model like `model` fitted on perturbed data, for the score "ratio".
        ensemble: further models of the same data, for the score "waic".
        seed: of the forest, and of the noise that bounds are estimated from.

    Raises:
        SpaceError: the other models are of another space.
        TacitError: there is no such score.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        score: str = "default",
        background: Model | None = None,
        ensemble: Sequence[Model] = (),
        seed: int = 0,
    ):
        if score not in MEANINGS:
            raise TacitError(f"there is no score {score!r}: give one of {', '.join(MEANINGS)}")
        for other in (background, *ensemble):
            if other is not None and (model is None or other.space != model.space):
                raise SpaceError(
                    f"a model of {other.space} was given beside one of {getattr(model, 'space', None)}: fit both on "
                    "the same data"
                )
        self.model, self.score, self.seed = model, score, seed
        self.background, self.ensemble = background, tuple(ensemble)
        for each in (model, background, *ensemble):
            if each is not None:
                each.eval()

    @classmethod
    def of(
        cls,
        run: Run,
        *,
        score: str = "default",
        background: Run | None = None,
        ensemble: Sequence[Run] = (),
        seed: int = 0,
    ) -> Detector:
        """The detector of a run: its training part is the reference, its validation part calibrates.

        Raises:
            DataError: the run's data cannot be read again.
            TacitError: as in `Detector` and `fit`.
        """
        train, valid, _ = run.data().parts()
        others = [other.model for other in ensemble]
        found = cls(
            run.model,
            score=score,
            background=None if background is None else background.model,
            ensemble=others,
            seed=seed,
        )
        return found.fit(train, valid)

    # -- learning -----------------------------------------------------------------------------------------------------

    def fit(
        self, train: Dataset | Tensor | np.ndarray, calibration: Dataset | Tensor | np.ndarray | None = None
    ) -> Detector:
        """Learn what is usual from `train`, and keep `calibration` for p-values.

        Args:
            train: (rows, *shape), anomalies among them or not; those a model was fitted on.
            calibration: likewise, of rows that neither it nor this detector was fitted on; without, every fifth row of
                `train`, in random order, is held out. Anomalies among them make p-values larger than need be.

        Raises:
            DataError: there are too few rows, or numbers that are not finite.
            SpaceError: the data is not of the model's space.
            CapabilityError: the score asked for does not apply to this model and data.
        """
        self.space = self._space_of(train)
        x = self._observations(train, _REFERENCE)
        if calibration is None:
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
            held, x = x[order[::5]], x[order[torch.arange(len(x)) % 5 != 0]]
        else:
            held = self._observations(calibration, _CALIBRATION[not isinstance(self.space, Vectors)])
        if len(x) < _LEAST_ROWS or not len(held):
            raise DataError(
                f"{len(x)} rows to learn from and {len(held)} held out are too few to say what is usual: give at least "
                f"{_LEAST_ROWS} and 1"
            )
        self.reference, self.held_out = x, held
        raw = raw_features(self.space, x)
        table = isinstance(self.space, Vectors)
        self._scaled = Scaled(raw) if table else None
        self._near = Near(raw if self._scaled is None else self._scaled(raw))
        self._grown = Forest(raw, self.seed)
        self._crowd = Crowd(raw, self.seed) if table else None
        self._embedded = None if self._embed is None else Near(self._embed(_spread(x, _EMBEDDED)).numpy())
        self.names = self._applicable()
        if self.score not in self.names:
            raise CapabilityError(
                f"the score {self.score!r} does not apply here: {self._lacking(self.score)}; those that do are "
                f"{', '.join(self.names)}"
            )
        self._tails = {}
        if not table:
            usual = _Seen(self, _spread(x, _USUAL), among=True)
            self._tails = {name: Tail(usual[name].numpy()) for name in self.default_of()}
        self._held = _Seen(self, held)
        return self

    def default_of(self) -> tuple[str, ...]:
        """The scores whose mean the default one is; none of a table's, which is a crowd of distances of its own."""
        if isinstance(self.space, Vectors):
            return ()
        own = next((n for n in ("complexity", "nll", "energy", "diffusion", "reconstruction") if n in self.names), None)
        return ("neighbours",) if own is None else (own, "neighbours")

    def _applicable(self) -> tuple[str, ...]:
        density = isinstance(self.model, HasDensity)
        applies = {
            "default": True,
            "nll": density,
            "typicality": density,
            "complexity": density and codec_of(self.space) is not None,
            "ratio": density and isinstance(self.background, HasDensity),
            "waic": density and bool(self.ensemble),
            "energy": isinstance(self.model, HasEnergy),
            "reconstruction": self._rebuild is not None,
            "diffusion": hasattr(self.model, "denoise"),
            "embedding": self._embed is not None,
            "neighbours": True,
            "forest": True,
        }
        return tuple(name for name in MEANINGS if applies[name])

    def _lacking(self, name: str) -> str:
        if name == "ratio":
            return "it takes a density and a background model (--background RUN)"
        if name == "waic":
            return "it takes a density and an ensemble (--ensemble RUN RUN)"
        if name == "complexity":
            return f"it takes a density, and a lossless codec for {self.space.kind}"
        needs = {
            "nll": "density",
            "typicality": "density",
            "diffusion": "way from noise to data",
            "embedding": "features",
        }
        return f"the model has no {needs.get(name, name)}"

    @cached_property
    def _embed(self) -> Callable[[Tensor], Tensor] | None:
        model = self.model
        return (lambda x: self._each(model, model.embed, x).flatten(1)) if isinstance(model, Embeds) else None  # type: ignore[arg-type]

    @cached_property
    def _rebuild(self) -> Callable[[Tensor], Tensor] | None:
        """What the model makes of its own codes; None where it has none, or none that are shorter than the data."""
        model: Any = self.model
        if hasattr(model, "reconstruct"):
            return model.reconstruct
        if not (isinstance(model, Encodes) and isinstance(model, Decodes)):
            return None
        with torch.no_grad():
            code = model.encode(self.reference[:1].to(model.device))  # type: ignore[attr-defined]
        return (lambda x: model.decode(model.encode(x))) if code.numel() < self.space.dimensions else None

    # -- scoring ------------------------------------------------------------------------------------------------------

    def scores(self, x: Dataset | Tensor | np.ndarray, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Some scores of observations, or all that apply: name -> (rows,) float64, higher is stranger.

        Raises:
            DataError: there are numbers that are not finite.
            SpaceError: the observations are of another space.
        """
        seen = _Seen(self, self._observations(x))
        return {name: seen[name] for name in names or self.names}

    def decision_function(self, x: Dataset | Tensor | np.ndarray) -> np.ndarray:
        """The score that decides, (rows,): higher is stranger."""
        return self.scores(x, [self.score])[self.score].numpy()

    def p_values(self, x: Dataset | Tensor | np.ndarray) -> np.ndarray:
        """The p-value of each observation, (rows,): for rows like those that calibrate, P(p ≤ a) ≤ a."""
        observed = self._observations(x)
        return self.p_values_of(self.score, _Seen(self, observed)[self.score], observed).numpy()

    def predict(
        self, x: Dataset | Tensor | np.ndarray, *, rate: float | None = None, contamination: float | None = None
    ) -> np.ndarray:
        """1 for anomalies and 0 for others, (rows,): by default as many as hold false discoveries at 5 %.

        Args:
            x: (rows, *shape).
            rate: the share of false alarms among the alarms. Which rows are called anomalies then depends on how many
                rows are asked about, though their scores and p-values do not.
            contamination: call this share of the rows anomalies, the strangest, whatever they are.

        Raises:
            TacitError: both are given, or one is not between 0 and 1.
        """
        observed = self._observations(x)
        score = _Seen(self, observed)[self.score]
        return decide(score, self.p_values_of(self.score, score, observed), rate, contamination).long().numpy()

    def p_values_of(self, name: str, score: Tensor, x: Tensor) -> Tensor:
        """P-values by the score `name`, whose values for the observations `x` are `score`: (rows,)."""
        held = self._held[name]
        # Where scores repeat, as of rows that do, chance decides: by the row itself, so that the p-value is its own.
        ties = len(held) - len(held.unique())
        return p_values(score, held, _chances(x) if ties > len(held) // 10 else None)

    def _each(self, model: Model, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function` of rows x on the model's device: float64 in memory."""
        size = max(1, min(_ROWS, _ENTRIES // self.space.dimensions))
        if any(isinstance(module, Continuous) for module in model.modules()):
            size = 1  # an adaptive solver goes through all rows of a batch in the same steps
        found = []
        for part in x.split(size):
            # Sums over as many rows are added in the same order, and the same noise is drawn.
            full = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            reseed(self.seed, "anomalies")
            with noise.common(), torch.no_grad():
                found.append(function(full.to(model.device))[: len(part)].double().cpu())
        return torch.cat(found)

    # -- blame --------------------------------------------------------------------------------------------------------

    def blame(self, x: Dataset | Tensor | np.ndarray) -> Tensor:
        """How much of each observation's score is due to each of its entries: (rows, *shape) float64.

        A part (a column of a table, a block of an image, a symbol of a text, a stretch of sound) is replaced by what
        the reference rows that are most alike in everything else have there, the median of ten or of symbols the
        commonest; its blame is by how much the score falls. That asks the same of every model and score, and other
        than a gradient or the part's own −log p it says what is wrong in the user's terms: had this been as it is
        elsewhere, the row would be so much less strange. Drawings have no such parts, and all blame is 0.
        """
        observed = self._observations(x)
        if isinstance(self.space, Strokes):
            return torch.zeros(observed.shape, dtype=torch.float64)  # no part of a drawing can be another's
        part_of = parts(self.space)
        count = int(part_of.max()) + 1
        ask = _spread(self.reference, _ASKED)
        flat = ask.flatten(1).double()
        spread = flat.std(0).clamp(min=1e-12) if isinstance(self.space, Vectors) else flat.new_ones(())
        member = torch.nn.functional.one_hot(part_of.flatten(), count).double()
        speaks = _beside(member) if isinstance(self.space, Tokens) else 1 - member
        blamed = []
        for row in observed:
            one = row.flatten().double()
            apart = (flat != one).double() if isinstance(self.space, Tokens) else ((flat - one) / spread).square()
            near = (apart @ speaks).topk(min(_ANSWER, len(flat)), dim=0, largest=False).indices.T
            others = ask.flatten(1)[near]  # (parts, answers, entries)
            typical = others.mode(1).values if isinstance(self.space, Tokens) else others.double().quantile(0.5, 1)
            changed = torch.where(member.T.bool(), typical.to(row.dtype), row.flatten()).view(count, *row.shape)
            score = _Seen(self, torch.cat([row[None], changed]))[self.score]
            blamed.append((score[0] - score[1:]).nan_to_num(nan=0.0)[part_of])
        return torch.stack(blamed)

    # -- observations -------------------------------------------------------------------------------------------------

    def _space_of(self, train: Dataset | Tensor | np.ndarray) -> Space:
        if self.model is not None:
            return self.model.space
        if isinstance(train, Dataset):
            return train.space
        if train.ndim != 2:
            raise SpaceError(
                f"an array of shape {tuple(train.shape)} is no table: give (rows, features), or a Dataset, or a model"
            )
        return Vectors(train.shape[1])

    def _observations(self, given: Dataset | Tensor | np.ndarray, most: int | None = None) -> Tensor:
        """Rows (rows, *shape), at most so many, evenly spaced."""
        if not hasattr(self, "space"):
            raise TacitError("the detector does not know yet what is usual: call fit first")
        if isinstance(given, Dataset):
            if self.model is not None:
                check_space(self.model, given)
            x = given.observations(most)
        else:
            x = torch.as_tensor(given)
            x = x if most is None else _spread(x, most)
        if x.is_floating_point() and not x.isfinite().all():
            row = int((~x.flatten(1).isfinite()).any(1).nonzero()[0])
            raise DataError(
                f"row {row} (counted from 0) holds a number that is not finite: fill it, or leave the row out"
            )
        # A table without a model keeps the precision it came in.
        exact = self.model is None and isinstance(self.space, Vectors)
        x = x.to(torch.float64 if exact else self.space.torch_dtype)
        return self.space.check_values(x)


class _Seen:
    """The scores of some observations, each computed when it is first asked for, and what they share only once.

    Args:
        detector: whose scores.
        x: (rows, *shape).
        among: whether the rows are among those that neighbours are looked for among, and none is its own neighbour.
    """

    def __init__(self, detector: Detector, x: Tensor, among: bool = False):
        self.detector, self.x, self.among = detector, x, among
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            # A density that judges a row impossible, or cannot judge it, could not find it any stranger.
            self._known[name] = getattr(self, f"_{name}")().double().nan_to_num(nan=math.inf, posinf=math.inf)
        return self._known[name]

    def _default(self) -> Tensor:
        if self.detector._crowd is not None:
            return torch.from_numpy(self.detector._crowd(self._raw))
        tails = self.detector._tails
        return torch.from_numpy(np.mean([tail(self[name].numpy()) for name, tail in tails.items()], axis=0))

    def _nll(self) -> Tensor:
        return self._nll_of(self.detector.model)

    def _nll_of(self, model: Any) -> Tensor:
        return -self.detector._each(model, model.log_prob, self.x)

    def _typicality(self) -> Tensor:
        usual = self.detector._held["nll"]
        return (self["nll"] - usual[usual.isfinite()].mean()).abs()

    def _complexity(self) -> Tensor:
        return self["nll"] / math.log(2) - lossless_bits(self.detector.space, self.x)

    def _ratio(self) -> Tensor:
        return self["nll"] - self._nll_of(self.detector.background)

    def _waic(self) -> Tensor:
        each = torch.stack([self["nll"], *map(self._nll_of, self.detector.ensemble)])
        return each.mean(0) + each.var(0, unbiased=False)

    def _energy(self) -> Tensor:
        model: Any = self.detector.model
        return self.detector._each(model, model.energy, self.x)

    def _reconstruction(self) -> Tensor:
        detector: Any = self.detector
        return self._error(detector._each(detector.model, detector._rebuild, self.x))

    def _diffusion(self) -> Tensor:
        detector: Any = self.detector
        model = detector.model
        denoised = [detector._each(model, lambda x, at=at: model.denoise(x, at), self.x) for at in _NOISED]
        return torch.stack([self._error(x) for x in denoised]).mean(0)

    def _error(self, rebuilt: Tensor) -> Tensor:
        """Mean squared error, of columns of unit deviation or of levels of unit range; of symbols how many differ."""
        space, x = self.detector.space, self.x
        if isinstance(space, Tokens):
            return (rebuilt.round() != x).double().flatten(1).mean(1)
        scale: Any = (space.levels or 2) - 1
        if isinstance(space, Vectors | Strokes):
            scale = self.detector.reference.double().std(0).clamp(min=1e-12)
        return ((rebuilt - x.double()) / scale).square().flatten(1).mean(1)

    def _embedding(self) -> Tensor:
        detector: Any = self.detector
        return torch.from_numpy(detector._embedded(detector._embed(self.x).numpy(), self.among))

    @cached_property
    def _raw(self) -> np.ndarray:
        return raw_features(self.detector.space, self.x)

    def _neighbours(self) -> Tensor:
        scaled = self.detector._scaled
        return torch.from_numpy(self.detector._near(self._raw if scaled is None else scaled(self._raw), self.among))

    def _forest(self) -> Tensor:
        return torch.from_numpy(self.detector._grown(self._raw))


def decide(score: Tensor, p: Tensor, rate: float | None = None, contamination: float | None = None) -> Tensor:
    """Which rows are called anomalies, (rows,) bool: see `Detector.predict`.

    Raises:
        TacitError: both are given, or one is not between 0 and 1.
    """
    if contamination is None:
        return discoveries(p, 0.05 if rate is None else rate)
    if rate is not None:
        raise TacitError(f"rate is {rate} and contamination is {contamination}: give one of them")
    check_share(contamination=contamination)
    called = torch.zeros(len(score), dtype=torch.bool)
    called[score.argsort(descending=True, stable=True)[: round(contamination * len(score))]] = True
    return called


def raw_features(space: Space, x: Tensor) -> np.ndarray:
    """Observations x (rows, *shape) as rows of numbers in which near ones are alike, (rows, features).

    Tables and images are their own entries; a text is how often each symbol, and each of 512 sets of pairs, occurs in
    it (square roots); a recording is the logarithm of its power at 65 frequencies in up to 8 stretches of time.
    """
    if isinstance(space, Vectors):
        return x.double().numpy()
    if isinstance(space, Tokens):
        pairs = (x[:, :-1] * 7919 + x[:, 1:]) % 512 + space.vocabulary
        counts = torch.zeros(len(x), space.vocabulary + 512)
        counts.scatter_add_(1, torch.cat([x, pairs], 1), torch.ones(1).expand(len(x), 2 * space.length - 1))
        return (counts / space.length).sqrt().numpy()
    if isinstance(space, Waveform):
        size = min(128, space.length)
        power = torch.stft(
            x.float() / 32768, size, window=torch.hann_window(size), return_complex=True, pad_mode="constant"
        )
        loud = torch.log(power.abs().square() + 1e-6)
        return torch.nn.functional.adaptive_avg_pool1d(loud, min(8, loud.shape[2])).flatten(1).numpy()
    return (x.flatten(1).float() / max(1, (space.levels or 2) - 1)).numpy()


def parts(space: Space) -> Tensor:
    """The number of the part that each entry of an observation belongs to, (*shape) int64: see `Detector.blame`."""
    if isinstance(space, Images | Video):
        rows, columns = (
            torch.div(torch.arange(side) * min(_SIDE, side), side, rounding_mode="floor") for side in space.shape[-2:]
        )
        return (rows[:, None] * min(_SIDE, space.shape[-1]) + columns).expand(space.shape)
    if isinstance(space, Waveform):
        return torch.arange(space.length) * min(_SEGMENTS, space.length) // space.length
    return torch.arange(space.dimensions)


def _spread(x: Tensor, most: int) -> Tensor:
    """At most so many rows of x, evenly spaced."""
    return x if len(x) <= most else x[torch.arange(most) * len(x) // most]


def _beside(member: Tensor) -> Tensor:
    """Which entries of a text stand near each part: (entries, parts)."""
    near = sum(member.roll(by, 0) for by in range(-_CONTEXT, _CONTEXT + 1) if by)
    return torch.as_tensor(near).clamp(max=1)


def _chances(x: Tensor) -> Tensor:
    """A number in [0, 1) for each row of x that depends on that row alone: (rows,) float64."""
    digests = (hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in x)
    return torch.tensor([int.from_bytes(digest) / 2**64 for digest in digests], dtype=torch.float64)
