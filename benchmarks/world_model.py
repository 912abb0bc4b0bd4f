"""Returns of controllers in cart-pole seen as pixels: random, evolved in reality, and evolved in the dream of it.

    python benchmarks/world_model.py

Gymnasium's CartPole-v1 as 24 × 64 grey frames and nothing else; 1 is paid for every frame until the pole leaves ±12°,
500 at most. V and M learn from rollouts of random actions alone. Every controller is judged by the same number of
episodes that no evolution saw, and uncertainty is the standard error over them. 475 is what Gymnasium takes for solved;
Ha & Schmidhuber (2018) have no figures for cart-pole.

A frame shows no velocity. `blind` is a controller that sees z alone, evolved in reality; `velocity-r2` is the share of
the variance of both velocities that a linear map finds in [z, h], beside what it finds in z alone, on episodes of
random actions, the map fitted on others. (That h holds them is no merit of training: any memory of codes does.)

Every part is kept, and the same command goes on after an interruption.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from record import record
from tacit.models.latent.world_model import WorldModel
from tacit.tasks.dream import dream, measure
from tacit.tasks.run import Run
from tacit.training.plan import seed_of
from tacit.worlds.controller import Controllers
from tacit.worlds.dream import Dreams
from tacit.worlds.evolution import evolve, scores_in
from tacit.worlds.reality import Environments, Reality

ENVIRONMENT, SOLVED = "CartPole-v1", 475.0
POPULATION, EPISODES = 24, 4


def sighted_only(model: WorldModel, vectors: Tensor, size: int) -> Tensor:
    """Vectors of controllers of z, (rows, size · (latent + 1)), as those of controllers of [z, h] that ignore h."""
    small = Controllers.from_vectors(vectors, size)
    blank = small.weight.new_zeros(len(vectors), size, model.cell.hidden_size)
    return Controllers(torch.cat([small.weight, blank], 2), small.bias).vectors()


def velocities(world: Reality, seed: int) -> tuple[float, float]:
    """R² of linear maps to both velocities, the mean, from z and from [z, h]."""
    generator = np.random.default_rng(seed)
    parts: list[tuple[Tensor, Tensor]] = []
    for part in range(2):
        seen, states = [], []
        features = world.reset(128, seed_of(seed, "velocities", part))
        for _ in range(30):
            copies = world.environments.alive
            states.append(torch.tensor(np.array([env.unwrapped.state for env in copies]))[:, [1, 3]].float())  # type: ignore[attr-defined]
            seen.append(torch.cat([features, torch.ones(len(features), 1)], 1))
            features, _, done = world.step(world.actions.drawn(len(features), generator))
            if done.all():
                break
            features = features[~done]
            world.keep(~done)
        parts.append((torch.cat(seen), torch.cat(states)))
    (x, y), (held_x, held_y) = parts
    found = []
    latent = world.model.latent
    for columns in ([*range(latent), -1], list(range(x.shape[1]))):
        solution = torch.linalg.lstsq(x[:, columns], y).solution
        residual = (held_x[:, columns] @ solution - held_y).square().mean(0)
        found.append((1 - residual / held_y.var(0, unbiased=False)).mean().item())
    return found[0], found[1]


def main(
    *,
    steps: int = 3000,
    frames: int = 20_000,
    rounds: int = 1,
    generations: int = 80,
    real_generations: int = 60,
    trials: int = 200,
    threads: int = 1,
    seed: int = 0,
    out: Path = Path("runs/world-model"),
) -> None:
    """Learn the world and its controllers by the recipe, and record the returns.

    Args:
        steps: of the world model's learning, a round.
        frames: collected a round.
        rounds: of collecting, learning and dreaming.
        generations: of controllers in each dream.
        real_generations: of controllers in reality.
        trials: episodes of each figure.
        threads: that torch may use.
        seed: of everything.
        out: the folder.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    dream(
        ENVIRONMENT,
        frames=frames,
        rounds=rounds,
        steps=steps,
        generations=generations,
        real_generations=real_generations,
        population=POPULATION,
        episodes=EPISODES,
        trials=trials,
        seed=seed,
        out=out,
    )
    model = Run(out / f"model-{rounds}").model
    assert isinstance(model, WorldModel)
    world = Reality(Environments(ENVIRONMENT), model)
    size = world.actions.size

    def taught(score, parameters: int, name: str, count: int) -> Tensor:
        """The vector that evolution ends with, (1, parameters); those of `dream` are read from its own file."""
        seeds = seed_of(seed, name) % 2**32
        arguments = {"generations": count, "population": POPULATION, "seed": seeds, "path": out / f"{name}.npz"}
        return evolve(score, parameters, **arguments)[None]

    score, whole = scores_in(world, EPISODES, seed), Controllers.parameters(world.features, size)
    dreams = Dreams(model, world.actions, world.limit)
    blind = sighted_only(
        model,
        taught(
            lambda vectors, generation: score(sighted_only(model, vectors, size), generation),
            Controllers.parameters(model.latent, size),
            "blind",
            real_generations,
        ),
        size,
    )
    real = Controllers.from_vectors(taught(score, whole, "real", real_generations), size)
    dreamer = taught(scores_in(dreams, EPISODES, seed), whole, f"dream-{rounds}", generations)
    dreamer = Controllers.from_vectors(dreamer, size)
    figures = {
        "random": measure(world, None, trials, seed),
        "blind": measure(world, Controllers.from_vectors(blind, size), trials, seed),
        "real": measure(world, real, trials, seed),
        "dream": measure(world, dreamer, trials, seed),
        "dream-in-dream": measure(dreams, dreamer, trials, seed),
    }
    seconds = time.perf_counter() - started
    recipe = (
        f"{rounds} rounds of {frames} frames, {steps} steps and {generations} dreamt generations of {POPULATION}, "
        f"{real_generations} in reality; {EPISODES} episodes a controller; {trials} trials"
    )
    for name, figure in figures.items():
        record(
            "world-model",
            "cart-pole",
            f"return-{name}",
            figure["mean"],
            split="test",
            unit="frames",
            better="higher",
            uncertainty=figure["error"],
            target=SOLVED if name in ("real", "dream") else None,
            reference=None
            if name == "random"
            else {"value": figures["random"]["mean"], "source": "random actions, this run"},
            reason="V and M learnt for few steps and from random actions alone, as two cores do in half an hour",
            seed=seed,
            seconds=seconds,
            note=f"{recipe}; uncertainty is the standard error over trials",
            packages=("gymnasium", "cma"),
        )
    blind_r2, r2 = velocities(world, seed)
    record(
        "world-model",
        "cart-pole",
        "velocity-r2",
        r2,
        split="test",
        unit="share of the variance",
        better="higher",
        reference={"value": blind_r2, "source": "z alone, this run"},
        seed=seed,
        seconds=seconds,
        note=f"the mean of both velocities, by a linear map of [z, h]; {recipe}",
        packages=("gymnasium", "cma"),
    )


if __name__ == "__main__":
    tyro.cli(main)
