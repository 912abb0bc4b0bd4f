"""Sketch-RNN on drawings of pen strokes: nats a point, the paper's reconstruction loss, and pictures.

    TACIT_DATA=… python benchmarks/sketch_rnn.py omniglot
    TACIT_DATA=… python benchmarks/sketch_rnn.py short_kanji --decoder-alone

Protocol: the data sets of hardmaru/sketch-rnn-datasets with their own training, validation and test parts. Offsets are
whole numbers, and their likelihood, bounded under uniform noise, is that of whole numbers. Nats are summed over offsets
and pen states of all drawings, the end of each among them, and divided by the number of points: with a latent variable
those of the bound of `SAMPLES` importance weights, of the decoder alone those of one draw of noise. The reconstruction
loss is the paper's L_R on the validation part: one draw of z, offsets in units of their deviation, divided by N_max,
the points of the longest drawing; the pen's states behind an end are certain and not counted.

Neither the paper nor the data's authors published a likelihood of these sets: the paper's are of Quick, Draw!. Beside
the model stands what needs no network: points that know nothing of each other, by a mixture of as many Gaussians of
offsets and the frequencies of the three pen states.

An interrupted run goes on where it stopped when the same command is given again; a finished one is measured again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from sklearn.mixture import GaussianMixture
from torch import Tensor

import tacit
from record import fit, record
from tacit.data import Dataset
from tacit.models.latent.sketch_rnn import SketchRNN
from tacit.spaces import Strokes
from tacit.tasks.complete import complete
from tacit.tasks.interpolate import interpolate
from tacit.tasks.sample import sample, write
from tacit.training.plan import reseed

SAMPLES = 16
COMPONENTS = 20
# Points that the mixture of the baseline is fitted on.
MOST_POINTS = 100_000
# Budgets in steps: what else a machine does then changes no figure.
RECIPE: dict[str, Any] = {"steps": 3000, "encoder": 256, "decoder": 512, "mixtures": COMPONENTS}
LATENT = 128


def points(x: Tensor) -> Tensor:
    """All points of drawings, (points, 3)."""
    return x[x[..., 2] != Strokes.END]


def noisy(offsets: Tensor) -> Tensor:
    return offsets + torch.rand_like(offsets) - 0.5


def per_point(nats: Tensor, counts: Tensor) -> tuple[float, float]:
    """Nats a point over all drawings, and the standard error over drawings."""
    nats, counts = nats.double(), counts.double()
    mean = nats.sum() / counts.sum()
    rest = nats - mean * counts
    return mean.item(), (rest.std() * math.sqrt(len(nats)) / counts.sum()).item()


def independent(train: Dataset, held_out: Dataset, seed: int) -> tuple[float, float]:
    """Nats a point where points know nothing of each other."""
    reseed(seed)
    found = train.observations()
    every = points(found)
    chosen = every[torch.randperm(len(every))[:MOST_POINTS]]
    mixture = GaussianMixture(COMPONENTS, random_state=seed).fit(noisy(chosen[:, :2]).numpy())
    ended = int((found[..., 2] == Strokes.END).any(1).sum())
    pens = torch.tensor([int((every[:, 2] == 0).sum()), int((every[:, 2] == 1).sum()), ended]).double()
    log_pens = (pens / pens.sum()).log()
    nats, counts = [], []
    for x in held_out.observations():
        of = points(x[None])
        ends = log_pens[2] * (len(of) < len(x))
        log_prob = mixture.score_samples(noisy(of[:, :2]).numpy()).sum() + log_pens[of[:, 2].long()].sum() + ends
        nats.append(-log_prob)
        counts.append(len(of))
    return per_point(torch.stack(nats), torch.tensor(counts))


@torch.no_grad()
def nats(model: SketchRNN, held_out: Dataset, seed: int) -> tuple[float, float]:
    """Nats a point of the model, and the standard error over drawings."""
    reseed(seed)
    found, counts = [], []
    for index in held_out.ordered(100):
        x = held_out[index]
        found.append(-(model.importance_weighted(x, SAMPLES) if model.latent else model.log_prob(x)))
        counts.append((x[..., 2] != Strokes.END).sum(1))
    return per_point(torch.cat(found), torch.cat(counts))


@torch.no_grad()
def reconstruction(model: SketchRNN, held_out: Dataset, seed: int) -> float:
    """The paper's L_R, of all drawings."""
    reseed(seed)
    sums = [model.loss(held_out.batch(index))["reconstruction"] * len(index) for index in held_out.ordered(100)]
    return float(torch.stack(sums).sum()) / len(held_out)


def show(run: tacit.Run, held_out: Dataset) -> None:
    """Pictures into the run's folder."""
    sample(run.path, count=10, temperature=(0.25, 0.5, 0.75, 1.0))
    complete(run.path, held_out, count=8, each=6, temperature=0.5)
    if run.model.latent:
        interpolate(run.path, held_out, pairs=6, steps=9)
        x = held_out.observations(10)
        both = torch.cat([x, run.model.decode(run.model.encode(x))])
        folder = run.path / "reconstructions"
        folder.mkdir(exist_ok=True)
        write(both, held_out.space, folder, "reconstructions", columns=10)


def main(
    data: Literal["omniglot", "short_kanji"],
    /,
    *,
    decoder_alone: bool = False,
    steps: int | None = None,
    seed: int = 0,
    threads: int = 1,
    out: Path | None = None,
) -> None:
    """Fit, measure, record and draw.

    Args:
        data: which of the two.
        decoder_alone: without the latent variable.
        steps: the budget; the recipe's own by default.
        seed: of the weights, the order of data and all noise.
        threads: of torch.
        out: the run folder; runs/sketch-rnn-DATA by default.
    """
    torch.set_num_threads(threads)
    found = tacit.load(f"sketchrnn/{data}")
    train, valid, test = found.parts()
    recipe = RECIPE | {"latent": 0 if decoder_alone else LATENT} | ({} if steps is None else {"steps": steps})
    out = out or Path("runs") / f"sketch-rnn-{data}{'-decoder' if decoder_alone else ''}"
    run = fit("sketch-rnn", found, out=out, seed=seed, pictures=5, validate_every=500, **recipe)
    model, seconds = run.model, run.record["seconds"]
    assert isinstance(model, SketchRNN)

    which = "decoder alone, one draw of noise" if decoder_alone else f"bound of {SAMPLES} importance weights"
    note = (
        f"nats of whole-numbered offsets and pen states a point; {which}; standard error over drawings; {recipe}; "
        f"{seconds:.0f} seconds of training; no likelihood of this set was published"
    )
    common: dict[str, Any] = {"unit": "nats", "better": "lower", "seed": seed, "seconds": seconds}
    name = "nll-per-point-decoder" if decoder_alone else "nll-per-point"
    for split, held_out in (("valid", valid), ("test", test)):
        floor, error = independent(train, held_out, seed)
        suffix = "" if split == "test" else "-valid"
        if split == "test":
            alone = f"{COMPONENTS} Gaussians of offsets, three frequencies of the pen; standard error over drawings"
            record(
                "independent-points",
                data,
                "nll-per-point",
                floor,
                split=split,
                kind="bound",
                uncertainty=error,
                note=alone,
                **{**common, "seconds": 0.0},
            )
        value, error = nats(model, held_out, seed)
        record(
            "sketch-rnn",
            data,
            name + suffix,
            value,
            split=split,
            kind="bound",
            uncertainty=error,
            target=floor,
            reference={"value": floor, "source": "points that know nothing of each other (this benchmark)"},
            note=note,
            **common,
        )
    if not decoder_alone:
        record(
            "sketch-rnn",
            data,
            "reconstruction-valid",
            reconstruction(model, valid, seed),
            split="valid",
            kind="estimate",
            note=f"the paper's L_R, N_max = {found.space.length}; {recipe}",
            **common,
        )
    show(run, valid)


if __name__ == "__main__":
    tyro.cli(main)
