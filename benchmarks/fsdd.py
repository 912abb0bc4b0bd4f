"""WaveNet on spoken digits: bits a sample of the μ-law codes, beside a histogram and an order-1 Markov table.

    TACIT_DATA=… python benchmarks/fsdd.py

Protocol: the Free Spoken Digit Dataset (a part: six speakers, takes 0 to 24), 8 kHz, its official rule: takes 0 to 4
are the test part (300 recordings of the same speakers); a tenth of the others is held out for validation. All three
models give probabilities to the same 256 μ-law codes of the same samples: every test recording from its first sample to
its last that is not zero, and nothing of the silence that pads rows to one length. What a recording begins with has no
context, and counts. WaveNet learns from windows of `LENGTH` samples cut from the training recordings every `STRIDE`,
without padding; it then reads a test recording as one sequence, however long. Its recipe was chosen on the validation
recordings, and so were both tables' smoothing constants.

The likelihood of the 16-bit samples is p(code) over the number of samples that share it: its bits are in the note.

An interrupted run goes on where it stopped when the same command is given again; a finished one is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import tacit
from record import record
from tacit.data import Dataset
from tacit.nn.mulaw import CODES, MuLaw
from tacit.spaces import Waveform
from tacit.tasks.resume import resume

# Longer than any recording: rows are whole ones.
LONGEST = 20_000
LENGTH, STRIDE = 1024, 256
SMOOTHING = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RECIPE: dict[str, Any] = {
    "steps": 4500,
    "batch_size": 4,
    "learning_rate": 6e-3,
    "features": 32,
    "skip_features": 128,
    "dilations": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
RATE = 8000


def recordings(part: Dataset) -> list[Tensor]:
    """Each row up to its last sample that is not zero, (samples,) int16."""
    ends = (part.x != 0).long().cumsum(1).argmax(1) + 1
    return [row[:end] for row, end in zip(part.x, ends.tolist(), strict=True)]


def windows(found: list[Tensor]) -> Tensor:
    """Windows without padding, (rows, LENGTH) int16."""
    return torch.cat([x.unfold(0, LENGTH, STRIDE) for x in found if len(x) >= LENGTH])


def bits(nats: Callable[[Tensor], Tensor], codes: list[Tensor]) -> tuple[float, float]:
    """Mean bits a sample over all of `codes`, and its standard error over recordings."""
    sums = torch.stack([nats(c).double().sum() for c in codes]) / math.log(2)
    counts = torch.tensor([len(c) for c in codes]).double()
    mean = sums.sum() / counts.sum()
    rest = sums - mean * counts
    return mean.item(), (rest.std() * math.sqrt(len(codes)) / counts.sum()).item()


def tables(train: list[Tensor], valid: list[Tensor]) -> dict[str, tuple[Callable[[Tensor], Tensor], float]]:
    """The two tables as functions from codes to nats a sample, each with the constant added to its counts."""
    single = torch.stack([torch.bincount(c, minlength=CODES) for c in train]).sum(0).double()
    pairs = torch.stack([torch.bincount(c[:-1] * CODES + c[1:], minlength=CODES**2) for c in train]).sum(0).double()
    pairs = pairs.view(CODES, CODES)

    def normalised(counts: Tensor, added: float) -> Tensor:
        return -((counts + added) / (counts + added).sum(-1, keepdim=True)).log()

    def histogram(added: float) -> Callable[[Tensor], Tensor]:
        table = normalised(single, added)
        return lambda c: table[c]

    def markov(added: float) -> Callable[[Tensor], Tensor]:
        # A recording's first sample has nothing before it.
        first, table = normalised(single, 1.0), normalised(pairs, added)
        return lambda c: torch.cat([first[c[:1]], table[c[:-1], c[1:]]])

    found = {}
    for name, make in (("mu-law-histogram", histogram), ("order-1-markov", markov)):
        best = min(SMOOTHING, key=lambda added: bits(make(added), valid)[0])
        found[name] = (make(best), best)
    return found


def main(*, steps: int | None = None, seed: int = 0, test: bool = True, out: Path | None = None) -> None:
    """Fit, measure and record.

    Args:
        steps: the budget; the recipe's own by default.
        seed: of the weights, the order of data and all noise.
        test: measure and record the test part; else only print what the validation part says.
        out: the run folder; runs/fsdd-wavenet by default.
    """
    torch.set_num_threads(1)
    data = tacit.load("fsdd", length=LONGEST)
    train, valid, held_out = (recordings(part) for part in data.parts())
    law = MuLaw()
    codes = [[law.encode(x) for x in part] for part in (train, valid, held_out)]
    baselines = tables(codes[0], codes[1])

    space = Waveform(LENGTH, RATE)
    official = {name: Dataset(space, windows(part)) for name, part in (("valid", valid), ("test", held_out))}
    cut = Dataset(space, windows(train), name="fsdd-windows", official=official)
    recipe = RECIPE | ({} if steps is None else {"steps": steps})
    out = out or Path("runs") / "fsdd-wavenet"
    resumed = (out / "run.json").exists()
    run = resume(out, cut) if resumed else tacit.fit("wavenet", cut, seed=seed, out=out, pictures=0, **recipe)
    if run.record["status"] == "interrupted":
        raise SystemExit(f"interrupted at step {run.record['step']}: the same command goes on from there")
    model, seconds = run.model, run.record["seconds"]

    @torch.no_grad()
    def wavenet(c: Tensor) -> Tensor:
        return -model.head.log_prob(model.conditionals(c[None], None), c[None])[0]

    print("validation:", {name: bits(nats, codes[1])[0] for name, (nats, _) in baselines.items()})
    print("validation: wavenet", bits(wavenet, codes[1]), f"{seconds:.0f} seconds, reach {model.receptive_field}")
    if not test:
        return
    samples = sum(map(len, codes[2]))
    on = f"{samples} samples of {len(codes[2])} recordings; no padding; standard error over recordings"
    figures = {name: bits(nats, codes[2]) for name, (nats, _) in baselines.items()}
    for name, (_, added) in baselines.items():
        record(
            name,
            "fsdd",
            "bits-per-sample",
            figures[name][0],
            split="test",
            unit="bits",
            better="lower",
            kind="exact",
            uncertainty=figures[name][1],
            seed=seed,
            seconds=0.0,
            note=f"256 μ-law codes; {added:g} added to every count, chosen on validation recordings; {on}",
        )
    value, error = bits(wavenet, codes[2])
    within = torch.cat([law.sizes.double().log2()[c] for c in codes[2]]).mean().item()
    record(
        "wavenet",
        "fsdd",
        "bits-per-sample",
        value,
        split="test",
        unit="bits",
        better="lower",
        kind="exact",
        uncertainty=error,
        target=figures["order-1-markov"][0],
        reference={
            "value": figures["order-1-markov"][0],
            "source": "an order-1 Markov table of the same codes (this benchmark)",
        },
        seed=seed,
        seconds=seconds,
        note=(
            f"256 μ-law codes, unconditional; {recipe}; {seconds:.0f} seconds of training, one thread; the same "
            f"likelihood of the 16-bit samples is {value + within:.3f} bits; {on}"
        ),
    )


if __name__ == "__main__":
    tyro.cli(main)
