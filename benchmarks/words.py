"""Word2vec beside gensim's: words a second, and agreement with human judgements of similarity, in one run.

Both learn from the same tokens of `gutenberg` and `wikitext-2` with the same hyperparameters, one worker each, epoch by
epoch in turn, so that whatever else the machine does slows both. gensim gets the text in sentences of 10 000 words, its
longest, which is its fastest. Needs gensim (`pip install --no-deps gensim smart_open wrapt`) and numba.

    TACIT_DATA=… python benchmarks/words.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: gensim's routines call BLAS

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from gensim.models import word2vec as gensim_word2vec
from torch import Tensor

from record import record
from tacit.data import Dataset
from tacit.data.text import from_texts
from tacit.errors import DataError
from tacit.metrics.words import analogies, read_analogies, read_similarities, similarity
from tacit.model import Progress
from tacit.models.embeddings.word2vec import Word2Vec
from tacit.training.learner import Learner
from tacit.training.plan import generator_of, reseed

SETS = {"wordsim-353": "EN-WS-353-ALL.txt", "men": "EN-MEN-TR-3k.txt"}


def main(
    *,
    epochs: int = 20,
    seeds: tuple[int, ...] = (0, 1, 2),
    dim: int = 100,
    window: int = 5,
    negative: int = 5,
    min_count: int = 5,
    sample: float = 1e-3,
    rate: float = 0.025,
    final_rate: float = 1e-4,
) -> None:
    """Learn with both, and record the similarity correlations, analogies and the ratio of speeds.

    Args:
        epochs: passes over the text.
        seeds: a run of each library for each.
        dim: entries of a vector.
        window: furthest context word.
        negative: noise words a pair.
        min_count: rarer words are left out.
        sample: subsampling threshold.
        rate: learning rate at the start.
        final_rate: learning rate at the end.
    """
    torch.set_num_threads(1)
    assert gensim_word2vec.FAST_VERSION >= 0, "gensim runs without its compiled routines: install its wheel"
    started = time.perf_counter()
    home = Path(os.environ.get("TACIT_DATA", "data"))
    data = corpus(home)
    settings: dict[str, Any] = {"window": window, "negative": negative, "min_count": min_count, "sample": sample}
    speeds: dict[str, list[float]] = {"tacit": [], "gensim": []}
    scores: dict[tuple[str, str], list[float]] = {}
    used: dict[str, str] = {}
    for seed in seeds:
        sides = {
            "tacit": tacit_epochs(data, epochs, seed, dim=dim, rate=rate, final_rate=final_rate, **settings),
            "gensim": gensim_epochs(data, epochs, seed, vector_size=dim, rates=(rate, final_rate), **settings),
        }
        learnt: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
        for _ in range(epochs):
            for name, side in sides.items():
                seconds, *learnt[name] = next(side)  # type: ignore[misc]
                speeds[name].append(len(data.x) / seconds)
        for name, (vectors, vocabulary) in learnt.items():
            for metric, file in SETS.items():
                score = similarity(vectors, vocabulary, read_similarities(home / "word-similarity" / file))
                scores.setdefault((metric, name), []).append(score.value)
                used[metric] = f"{score.used} of {score.total} pairs known"
            score = analogies(vectors, vocabulary, read_analogies(home / "word-analogy" / "questions-words.txt"))["all"]
            scores.setdefault(("analogies", name), []).append(score.value)
            used["analogies"] = f"{score.used} of {score.total} questions known, 3CosAdd"
        print(f"seed {seed}:", {f"{metric} {name}": round(values[-1], 4) for (metric, name), values in scores.items()})

    common: dict[str, Any] = {
        "model": "word2vec",
        "data": data.name,
        "better": "higher",
        "seed": list(seeds),
        "packages": ("numba", "gensim"),
    }
    setting = f"{len(data.x)} words, {epochs} epochs, dim {dim}, " + ", ".join(f"{k} {v}" for k, v in settings.items())
    seconds = time.perf_counter() - started
    for metric in (*SETS, "analogies"):
        ours, theirs = (scores[metric, name] for name in ("tacit", "gensim"))
        record(
            metric=f"accuracy:{metric}" if metric == "analogies" else f"spearman:{metric}",
            value=statistics.mean(ours),
            uncertainty=statistics.stdev(ours) if len(ours) > 1 else None,
            target=statistics.mean(theirs),
            reference={"value": statistics.mean(theirs), "source": "gensim, same tokens and settings, same run"},
            split="all of the text, to learn from",
            unit="share right" if metric == "analogies" else "rank correlation",
            seconds=seconds,
            note=f"means over seeds, standard deviation over seeds; {used[metric]}; {setting}; "
            f"by seed: tacit {rounded(ours)}, gensim {rounded(theirs)}",
            reason="the libraries differ by no more than seeds do" if max(ours) > min(theirs) else "",
            **common,
        )
    # Each library's first epoch compiles, fills caches and sizes its tables.
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    record(
        metric="speed-ratio:gensim:words-per-second",
        value=medians["tacit"] / medians["gensim"],
        target=1.8,
        reference={"value": medians["gensim"], "source": "gensim, words a second with one worker, same run"},
        split="all of the text, to learn from",
        unit="times gensim's words a second",
        seconds=seconds,
        note=f"medians of {len(speeds['tacit']) - 1} interleaved epochs, wall clock: tacit {medians['tacit']:.0f} and "
        f"gensim {medians['gensim']:.0f} words a second, FAST_VERSION {gensim_word2vec.FAST_VERSION}; {setting}",
        **common,
    )


def corpus(home: Path) -> Dataset:
    """All of both texts as one stream of words."""
    files = [home / "gutenberg" / f"{book}.txt" for book in ("2600", "145", "1661")]
    files += [home / "wikitext-2" / f"wiki.{part}.tokens" for part in ("valid", "test")]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise DataError(f"{missing[0]} does not exist: set TACIT_DATA to the folder of the data sets")
    return from_texts("gutenberg+wikitext-2", {"train": files}, words=True, framed=True)


def tacit_epochs(data: Dataset, epochs: int, seed: int, **arguments: Any) -> Iterator[tuple[float, Tensor, tuple]]:
    """Learn epoch by epoch as the training loop does: seconds that the epoch took, vectors, vocabulary."""
    reseed(seed, "weights")
    model = Word2Vec(data.space, **arguments)
    model.adapt(data)
    learner = Learner(model.train(), model.recipe)
    step = 0
    for epoch in range(epochs):
        before = time.perf_counter()
        batches = list(model.batches(data, model.recipe.batch_size, generator_of(seed, epoch)))
        for i, index in enumerate(batches, 1):
            reseed(seed, step, 0)
            learner.step(data.batch(index), Progress(step, epoch, (epoch + (i - 1) / len(batches)) / epochs))
            step += 1
            model.after_step(Progress(step, epoch, (epoch + i / len(batches)) / epochs))
        yield time.perf_counter() - before, model.vectors, data.vocabulary


def gensim_epochs(
    data: Dataset, epochs: int, seed: int, *, rates: tuple[float, float], **arguments: Any
) -> Iterator[tuple[float, Tensor, tuple]]:
    """The same with gensim, whose learning rate falls along the same line over all epochs."""
    words = [data.vocabulary[i] for i in data.x.tolist()]
    longest = gensim_word2vec.MAX_WORDS_IN_BATCH
    sentences = [words[i : i + longest] for i in range(0, len(words), longest)]
    model = gensim_word2vec.Word2Vec(sg=1, hs=0, workers=1, seed=seed, alpha=rates[0], min_alpha=rates[1], **arguments)
    model.build_vocab(sentences)
    for epoch in range(epochs):
        start, end = (rates[0] + (rates[1] - rates[0]) * e / epochs for e in (epoch, epoch + 1))
        before = time.perf_counter()
        model.train(sentences, total_examples=len(sentences), epochs=1, start_alpha=start, end_alpha=end)
        yield time.perf_counter() - before, torch.from_numpy(model.wv.vectors), tuple(model.wv.index_to_key)


def rounded(values: list[float]) -> list[float]:
    """To four places, for a note."""
    return [round(value, 4) for value in values]


if __name__ == "__main__":
    tyro.cli(main)
