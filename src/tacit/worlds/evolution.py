"""Evolution of a controller by CMA-ES, in any world.

The covariance matrix adaptation evolution strategy draws a generation of controllers from a Gaussian, and moves and
shapes the Gaussian by their ranks. Its state is a function of its seed and of the scores it was told: these alone are
saved, and an interrupted evolution is told them again, which takes milliseconds a generation.

References
----------
- Hansen & Ostermeier (2001), Completely derandomized self-adaptation in evolution strategies, Evolutionary
  Computation 9(2)
- Hansen, Akimoto & Baudis, pycma, https://github.com/CMA-ES/pycma (the implementation)
- Ha & Schmidhuber (2018), World models, arXiv:1803.10122, appendix A.4
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tacit.errors import DataError, TacitError
from tacit.training.plan import seed_of
from tacit.worlds.controller import Controllers, World, returns

# The deviation of the first generation's weights.
_SIGMA = 0.3


def evolve(
    score: Callable[[Tensor, int], Tensor],
    parameters: int,
    *,
    generations: int,
    population: int,
    seed: int,
    path: Path | None = None,
    told: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The mean of the last generation's Gaussian, (parameters,), where higher scores are better.

    Args:
        score: scores, (population,), of vectors, (population, parameters), in a generation of that number.
        parameters: numbers a vector has.
        generations: how many.
        population: vectors a generation.
        seed: of the draws.
        path: of an .npz of the scores so far, from which evolution goes on.
        told: is told the number of every new generation and its scores.

    Raises:
        DataError: `path` holds something else, or the scores of another evolution.
        TacitError: cma is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cma
    except ModuleNotFoundError as error:
        raise TacitError("controllers are evolved by the package cma: pip install 'tacit[world]'") from error
    generator = np.random.default_rng(seed)
    options = {
        "popsize": population,
        "randn": lambda *shape: generator.standard_normal(shape),
        "seed": np.nan,
        "verbose": -9,
        "maxiter": np.inf,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = cma.CMAEvolutionStrategy(np.zeros(parameters), _SIGMA, options)
        asked = {"seed": seed, "population": population, "parameters": parameters}
        history = _read(path, asked)
        for generation in range(generations):
            drawn = strategy.ask()
            if generation == len(history):
                scores = score(torch.from_numpy(np.array(drawn)).float(), generation)
                history = np.concatenate([history, scores.double().numpy()[None]])
                if path is not None:
                    aside = path.with_name(f".{path.name}.npz")
                    np.savez(aside, scores=history, **asked)  # type: ignore[arg-type]
                    aside.replace(path)
                if told is not None:
                    told(generation, scores)
            strategy.tell(drawn, -history[generation])
        return torch.from_numpy(np.array(strategy.mean)).float()


def _read(path: Path | None, asked: dict[str, int]) -> np.ndarray:
    """The scores in the file, (generations, population); none where there is no file."""
    if path is None or not path.exists():
        return np.zeros((0, asked["population"]))
    try:
        with np.load(path, allow_pickle=False) as parts:
            found = {name: int(parts[name]) for name in asked}
            scores = parts["scores"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and evolution begins again") from error
    if found != asked:
        raise DataError(f"{path} holds an evolution with {found}, not {asked}: remove it, or choose another folder")
    return scores


def scores_in(world: World, episodes: int, seed: int) -> Callable[[Tensor, int], Tensor]:
    """The mean return of each of a generation's controllers over `episodes` that no other generation sees."""

    def score(vectors: Tensor, generation: int) -> Tensor:
        controllers = Controllers.from_vectors(vectors, world.actions.size).repeat(episodes)
        total = returns(world, controllers, len(vectors) * episodes, seed_of(seed, "generation", generation))
        return total.view(len(vectors), episodes).mean(1)

    return score
