"""Word2vec's inner loop compiled by numba: one thread, every pair its own noise words, exact sigmoids.

Random numbers are splitmix64's (Steele, Lea & Flood 2014): a state that a constant is added to, and a finaliser that
mixes it. A step's randomness hangs on its `seed` alone, so a run repeats bit for bit on one kind of processor.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def random_bits(state: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Splitmix64: the next state, and 64 random bits."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, z ^ (z >> np.uint64(31))


@njit(cache=True)
def below(bits: np.uint64, count: int) -> np.int64:
    """A number in {0, …, count − 1} from the upper 32 bits."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@njit(cache=True)
def uniform(bits: np.uint64) -> np.float32:
    """A number in [0, 1) from the lower 24 bits."""
    return np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2**-24)


@njit(cache=True)
def noise_word(bits: np.uint64, threshold: np.ndarray, alias: np.ndarray) -> np.int64:
    """A word of the noise distribution, by Walker's alias method."""
    word = below(bits, len(threshold))
    return word if uniform(bits) < threshold[word] else np.int64(alias[word])


@njit(cache=True, fastmath=True, error_model="numpy")
def learn_pair(
    v: np.ndarray, output: np.ndarray, words: np.ndarray, count: int, rate: np.float32, g: np.ndarray, e: np.ndarray
) -> float:
    """One step of stochastic gradient descent on one pair; returns its loss before the step.

    Args:
        v: the centre word's input vector, changed in place.
        output: all output vectors, of which those of `words` are changed in place.
        words: the context word, then its noise words; `count` of them.
        rate: learning rate.
        g: room for a number a word.
        e: room for the change of `v`, which is made last, so that every word sees the same `v`.
    """
    one = np.float32(1)
    for k in range(count):
        o = output[words[k]]
        score = np.float32(0)
        for d in range(len(v)):
            score += v[d] * o[d]
        g[k] = score if k == 0 else -score
    likelihood = one
    for k in range(count):
        p = one / (one + np.exp(-g[k]))
        likelihood *= p
        g[k] = rate * (one - p) if k == 0 else -rate * (one - p)
    e[:] = 0
    for k in range(count):
        o = output[words[k]]
        for d in range(len(v)):
            e[d] += g[k] * o[d]
            o[d] += g[k] * v[d]
    for d in range(len(v)):
        v[d] += e[d]
    # The product of a few sigmoids costs one logarithm; it could only underflow where learning has diverged.
    return -np.log(max(likelihood, np.float32(1e-38)))


@njit(cache=True, error_model="numpy")
def learn(
    text: np.ndarray,
    starts: np.ndarray,
    input: np.ndarray,
    output: np.ndarray,
    keep: np.ndarray,
    threshold: np.ndarray,
    alias: np.ndarray,
    window: int,
    negative: int,
    rate: float,
    seed: int,
) -> tuple[float, int]:
    """Learn from windows of text, in place; returns the summed loss and the number of pairs.

    Args:
        text: word numbers, (windows, length).
        starts: where each window starts in the stream, (windows,); windows that continue one another are one text.
        input: input vectors, (vocabulary, dim).
        output: output vectors, (vocabulary, dim).
        keep: probability with which an occurrence of a word survives subsampling, (vocabulary,).
        threshold: the noise distribution's alias table, (vocabulary,).
        alias: the same, (vocabulary,).
        window: furthest context word.
        negative: noise words a pair.
        rate: learning rate.
        seed: of this call's random numbers.
    """
    state = np.uint64(seed)
    step = np.float32(rate)
    windows, length = text.shape
    kept = np.empty(windows * length, np.int64)
    words = np.empty(negative + 1, np.int64)
    g = np.empty(negative + 1, np.float32)
    e = np.empty(input.shape[1], np.float32)
    loss, pairs = 0.0, 0
    first = 0
    while first < windows:
        last = first + 1
        while last < windows and starts[last] == starts[last - 1] + length:
            last += 1
        count = 0
        for row in range(first, last):
            for word in text[row]:
                state, bits = random_bits(state)
                if uniform(bits) < keep[word]:
                    kept[count] = word
                    count += 1
        for i in range(count):
            state, bits = random_bits(state)
            reach = 1 + below(bits, window)
            v = input[kept[i]]
            for j in range(i - reach, i + reach + 1):
                if j == i or j < 0 or j >= count:
                    continue
                words[0] = kept[j]
                filled = 1
                for _ in range(negative):
                    state, bits = random_bits(state)
                    word = noise_word(bits, threshold, alias)
                    if word != kept[j]:  # as word2vec.c has it: the context word is not its own noise
                        words[filled] = word
                        filled += 1
                loss += learn_pair(v, output, words, filled, step, g, e)
                pairs += 1
        first = last
    return loss, pairs
