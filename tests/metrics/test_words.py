import pytest
import torch

from tacit.errors import DataError
from tacit.metrics.words import analogies, read_analogies, read_similarities, similarity

# Angles of 0°, 30°, 90° and 180° from "sun", and a word that was never learnt.
VOCABULARY = ("Sun", "moon", "tree", "night", "rare")
ANGLES = torch.deg2rad(torch.tensor([0.0, 30.0, 90.0, 180.0]))
VECTORS = torch.cat(
    (torch.stack((ANGLES.cos(), ANGLES.sin()), 1) * torch.tensor([[1.0], [5], [2], [0.1]]), torch.zeros(1, 2))
)


def test_similarity_is_the_rank_correlation_of_cosines():
    in_order = [("sun", "moon", 9.0), ("sun", "tree", 5.0), ("sun", "night", 1.0)]
    assert similarity(VECTORS, VOCABULARY, in_order).value == pytest.approx(1)
    # Ranks 2, 3, 1 against 3, 2, 1: 1 − 6·(1 + 1 + 0) / (3·8) = 0.5.
    swapped = [("sun", "moon", 5.0), ("sun", "tree", 9.0), ("sun", "night", 1.0)]
    assert similarity(VECTORS, VOCABULARY, swapped).value == pytest.approx(0.5)


def test_pairs_of_unknown_words_are_left_out_and_counted():
    pairs = [("SUN", "Moon", 9.0), ("sun", "night", 1.0), ("sun", "rare", 5.0), ("sun", "absent", 10.0)]
    score = similarity(VECTORS, VOCABULARY, pairs)
    assert score == (pytest.approx(1), 2, 4)
    with pytest.raises(DataError, match="0 of 1 pairs"):
        similarity(VECTORS, VOCABULARY, [("sun", "absent", 1.0)])


def test_analogies_on_a_grid():
    vocabulary = ("man", "woman", "king", "queen", "stone", "noise")
    vectors = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1], [-1, -1, -1, 0], [0, 0, 0, 0]])
    questions = {
        "family": [
            ("man", "woman", "king", "queen"),
            ("king", "queen", "man", "woman"),
            ("man", "king", "woman", "queen"),
        ],
        "wrong": [("man", "woman", "king", "stone"), ("man", "woman", "king", "noise"), ("x", "y", "z", "w")],
    }
    for method in ("3CosAdd", "3CosMul"):
        scores = analogies(vectors, vocabulary, questions, method)
        assert scores == {"family": (1, 3, 3), "wrong": (0, 1, 3), "all": (0.75, 4, 6)}


def test_the_two_methods_are_levy_and_goldbergs():
    """A case in which they differ, against the formulas written out word by word."""
    torch.manual_seed(0)
    vectors = torch.randn(40, 5)
    vocabulary = tuple(f"w{i}" for i in range(40))
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    expected = {"3CosAdd": [], "3CosMul": []}
    for q in range(10):
        a, b, c = 3 * q, 3 * q + 1, 3 * q + 2

        def cos(i, j):
            return float(unit[i] @ unit[j])

        others = [d for d in range(40) if d not in (a, b, c)]
        expected["3CosAdd"].append(max(others, key=lambda d: cos(d, b) - cos(d, a) + cos(d, c)))
        expected["3CosMul"].append(
            max(others, key=lambda d: (1 + cos(d, b)) / 2 * (1 + cos(d, c)) / 2 / ((1 + cos(d, a)) / 2 + 1e-3))
        )
    assert expected["3CosAdd"] != expected["3CosMul"]
    for method, answers in expected.items():
        asked = [(f"w{3 * q}", f"w{3 * q + 1}", f"w{3 * q + 2}", f"w{d}") for q, d in enumerate(answers)]
        assert analogies(vectors, vocabulary, {"": asked}, method)["all"] == (1, 10, 10)


def test_files_are_read_and_bad_lines_named(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("tiger\tcat\t7.35\n\nbook paper 7\n")
    assert read_similarities(file) == [("tiger", "cat", 7.35), ("book", "paper", 7.0)]
    file.write_text("tiger cat\n")
    with pytest.raises(DataError, match="line 1"):
        read_similarities(file)
    file.write_text(": capitals of\nAthens Greece Paris France\n")
    assert read_analogies(file) == {"capitals of": [("Athens", "Greece", "Paris", "France")]}
    file.write_text("Athens Greece Paris\n")
    with pytest.raises(DataError, match="line 1"):
        read_analogies(file)
    with pytest.raises(DataError, match="does not exist"):
        read_similarities(tmp_path / "absent.txt")
