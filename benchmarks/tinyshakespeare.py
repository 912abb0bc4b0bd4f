"""Nats a character on the last tenth of Shakespeare's plays, learnt from the first nine, beside nanoGPT's figures.

Protocol of nanoGPT (Karpathy 2022): the first 90 % of the text to learn from, the rest to measure on. A GPT is measured
on windows end to end, the first character of each given, as nanoGPT's windows of 64 inputs give theirs; the recurrent
network reads the whole held-out part as one text, which is what its state is for. Learning rates and sizes are
nanoGPT's, or were chosen by validation on the last tenth of the learning part.

    python benchmarks/tinyshakespeare.py char-rnn
    python benchmarks/tinyshakespeare.py gpt-cpu
    python benchmarks/tinyshakespeare.py gpt
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Tensor

import tacit
from record import fit, record
from tacit.data import Dataset
from tacit.models.autoregressive.char_rnn import CharRNN
from tacit.models.autoregressive.gpt import GPT
from tacit.spaces import Tokens


@dataclass(frozen=True)
class Entry:
    """How a model is trained here, and what is aimed at."""

    model: str
    length: int
    target: float
    reference: dict[str, Any]
    recipe: dict[str, Any]
    reason: str = ""


_CPU = {"value": 1.88, "source": "nanoGPT's recipe for a CPU, 0.8 M parameters, about 3 minutes (its README)"}
_GPU = {"value": 1.4697, "source": "nanoGPT's recipe for a GPU, 10.7 M parameters, 3 minutes of an A100 (its README)"}

ENTRIES: dict[str, Entry] = {
    "char-rnn": Entry(
        "char-rnn",
        64,
        1.58,
        _GPU,
        {"minutes": 25.0, "batch_size": 32, "features": 256, "layers": 2, "dropout": 0.2, "warmup": 50},
    ),
    "gpt-cpu": Entry(
        "gpt",
        65,
        1.90,
        _CPU,
        {"minutes": 5.0, "batch_size": 12, "layers": 4, "heads": 4, "features": 128, "learning_rate": 1e-3},
    ),
    "gpt": Entry(
        "gpt",
        257,
        1.48,
        _GPU,
        {
            "steps": 5000,
            "batch_size": 64,
            "layers": 6,
            "heads": 6,
            "features": 384,
            "dropout": 0.2,
            "learning_rate": 1e-3,
            "validate_every": 250,
            "patience": 8,
        },
        "10 M parameters take a GPU",
    ),
}


@torch.no_grad()
def nats(model: CharRNN | GPT, held_out: Dataset) -> Tensor:
    """Negative log-probability of held-out characters, each given what the protocol gives it."""
    if isinstance(model, CharRNN):
        return -model.stream_log_prob(held_out.x.to(model.device)).cpu()
    found = []
    for index in held_out.ordered(64):
        x = held_out[index].to(model.device)
        found.append(-model._log_prob_along(x, model.order[None], None)[:, 1:].cpu())
    return torch.cat(found).flatten()


def main(
    name: tyro.conf.Positional[str],
    *,
    minutes: float | None = None,
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Train by the recipe, measure the held-out part and record nats a character.

    Args:
        name: a line of `ENTRIES`.
        minutes: the budget; the recipe's own by default.
        threads: that torch may use.
        seed: of the weights, the order of data and all noise.
    """
    if name not in ENTRIES:
        raise SystemExit(f"there is no {name}: there are {', '.join(ENTRIES)}")
    entry = ENTRIES[name]
    torch.set_num_threads(threads)
    whole = tacit.load("tinyshakespeare", length=entry.length)
    cut = len(whole.x) * 9 // 10
    inner = cut * 9 // 10 if "patience" in entry.recipe else cut
    learn, held_out = (whole.take(part) for part in (slice(0, inner), slice(cut, len(whole.x))))
    # Early stopping, where there is any, looks at the learning part's own last tenth.
    valid = whole.take(slice(inner, cut)) if inner < cut else held_out.take(slice(0, 20_000))
    data = replace(learn, official={"valid": valid, "test": held_out})
    recipe = dict(entry.recipe)
    if minutes is not None:
        recipe = {key: value for key, value in recipe.items() if key not in ("minutes", "steps")} | {"minutes": minutes}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = fit(entry.model, data, seed=seed, out=Path(folder) / "run", pictures=0, **recipe)
        model = cast(CharRNN | GPT, run.model)
    trained = time.perf_counter() - started
    each = nats(model, held_out).double()
    space = cast(Tokens, whole.space)
    # Characters of one text are not independent: the error is that of means of stretches of a thousand.
    means = torch.stack([part.mean() for part in each.split(1000)[:-1]])
    record(
        entry.model,
        "tinyshakespeare",
        "nats-per-character" if name == entry.model else f"nats-per-character-{name.removeprefix(f'{entry.model}-')}",
        each.mean().item(),
        split="the last tenth",
        unit="nats a character",
        better="lower",
        kind="exact",
        uncertainty=means.std().item() / math.sqrt(len(means)),
        target=entry.target,
        reference=entry.reference,
        reason=entry.reason,
        seed=seed,
        seconds=time.perf_counter() - started,
        note=f"{sum(p.numel() for p in model.parameters())} parameters, windows of {space.length}, {entry.recipe}, "
        f"{run.record['step']} steps in {trained:.0f} s; uncertainty is the standard error of stretches of 1000",
    )


if __name__ == "__main__":
    tyro.cli(main)
