"""How good word vectors are: correlation with human similarity judgements, and analogy questions.

`vectors` are (words, dim), `vocabulary` their words. A word whose vector is zero counts as unknown: that is how models
mark words that were too rare to learn. Words are compared in lower case, and what is asked of unknown words is left out
and counted, never guessed.

References
----------
Finkelstein et al. (2002), Placing search in context: the concept revisited (WordSim-353)
Bruni, Tran & Baroni (2014), Multimodal distributional semantics (MEN)
Mikolov, Yih & Zweig (2013), Linguistic regularities in continuous space word representations (3CosAdd)
Levy & Goldberg (2014), Linguistic regularities in sparse and explicit word representations (3CosMul)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from tacit.errors import DataError

# Questions that are answered at once: bounds the (questions, words) matrix of cosines.
_TOGETHER = 512


class Score(NamedTuple):
    """A value, and of how many pairs or questions it was taken out of how many there were."""

    value: float
    used: int
    total: int


def read_similarities(path: str | Path) -> list[tuple[str, str, float]]:
    """Judged pairs from a file of lines `word word score`.

    Raises:
        DataError: the file is missing, or a line is not of that form.
    """
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        match line.split():
            case [first, second, score] if _is_number(score):
                pairs.append((first, second, float(score)))
            case [_, *_]:
                raise DataError(f"{path} line {number} is {line!r}: expected two words and a score")
    return pairs


def read_analogies(path: str | Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """Questions `a b c d` (a is to b as c is to d) by section, from a file of those and `: section` lines.

    Raises:
        DataError: the file is missing, or a line is not of that form.
    """
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    section = ""
    for number, line in enumerate(_lines(path), 1):
        match line.split():
            case [":", *name]:
                section = " ".join(name)
            case [a, b, c, d]:
                sections.setdefault(section, []).append((a, b, c, d))
            case [_, *_]:
                raise DataError(f"{path} line {number} is {line!r}: expected four words, or a colon and a section")
    return sections


def similarity(vectors: Tensor, vocabulary: Sequence[str], pairs: Iterable[tuple[str, str, float]]) -> Score:
    """Spearman's rank correlation between cosines and judgements, over the pairs whose words are both known.

    Raises:
        DataError: fewer than two pairs are known.
    """
    pairs = list(pairs)
    number = _numbers(vectors, vocabulary)
    known = [
        (number[a.lower()], number[b.lower()], score)
        for a, b, score in pairs
        if a.lower() in number and b.lower() in number
    ]
    if len(known) < 2:
        raise DataError(f"{len(known)} of {len(pairs)} pairs have two known words: bring vectors of more words")
    first, second, scores = zip(*known, strict=True)
    cosines = F.cosine_similarity(vectors[list(first)].double(), vectors[list(second)].double())
    return Score(float(spearmanr(cosines.cpu().numpy(), scores).statistic), len(known), len(pairs))


def analogies(
    vectors: Tensor,
    vocabulary: Sequence[str],
    questions: dict[str, list[tuple[str, str, str, str]]],
    method: Literal["3CosAdd", "3CosMul"] = "3CosAdd",
) -> dict[str, Score]:
    """Share of the questions answered rightly, by section, and under "all" over all sections.

    The answer to "a is to b as c is to ?" is the known word d, other than a, b and c, with the greatest
    cos(d, b) − cos(d, a) + cos(d, c) (3CosAdd), or cos(d, b) cos(d, c) / (cos(d, a) + 0.001) with cosines shifted to
    [0, 1] (3CosMul).
    """
    number = _numbers(vectors, vocabulary)
    rows = torch.tensor(sorted(number.values()), device=vectors.device)
    place = {row: i for i, row in enumerate(rows.tolist())}
    unit = F.normalize(vectors[rows], dim=1)
    scores = {}
    for section, asked in questions.items():
        known = [
            [place[number[word.lower()]] for word in question]
            for question in asked
            if all(word.lower() in number for word in question)
        ]
        right = 0
        for some in (known[i : i + _TOGETHER] for i in range(0, len(known), _TOGETHER)):
            right += int(_right(unit, torch.tensor(some, device=unit.device), method).sum())
        scores[section] = Score(right / max(len(known), 1), len(known), len(asked))
    used = sum(score.used for score in scores.values())
    mean = sum(score.value * score.used for score in scores.values()) / max(used, 1)
    scores["all"] = Score(mean, used, sum(score.total for score in scores.values()))
    return scores


def _right(unit: Tensor, questions: Tensor, method: str) -> Tensor:
    """Whether each question (batch, 4) is answered rightly, (batch,) bool."""
    a, b, c = (unit[questions[:, i]] @ unit.T for i in range(3))
    score = b - a + c if method == "3CosAdd" else (1 + b) * (1 + c) / ((1 + a) / 2 + 1e-3)
    score.scatter_(1, questions[:, :3], -torch.inf)
    return score.argmax(1) == questions[:, 3]


def _numbers(vectors: Tensor, vocabulary: Sequence[str]) -> dict[str, int]:
    """Row of each known word, in lower case; where two spellings meet, the first is kept."""
    known = vectors.ne(0).any(1).tolist()
    numbers: dict[str, int] = {}
    for i, (word, has_vector) in enumerate(zip(vocabulary, known, strict=True)):
        if has_vector:
            numbers.setdefault(word.lower(), i)
    return numbers


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the path of a word-similarity or word-analogy file") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
