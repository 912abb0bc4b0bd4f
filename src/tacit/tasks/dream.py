"""Learn a world from pixels, and act in it as a dream of it taught, beside one whom reality taught."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tacit.errors import RunError, TacitError, check_at_least
from tacit.tasks.fit import fit
from tacit.tasks.resume import resume
from tacit.training import checkpoint
from tacit.training.plan import seed_of

if TYPE_CHECKING:
    from tacit.models.latent.world_model import WorldModel
    from tacit.worlds.controller import Controllers, World
    from tacit.worlds.reality import Environments
    from tacit.worlds.rollouts import Rollouts

# Of the picture: frames that are given, frames between two that are shown, and dreams.
_GIVEN, _STRIDE, _DREAMS = 8, 3, 3


def dream(
    environment: str = "CartPole-v1",
    *,
    frames: int = 20_000,
    rounds: int = 1,
    clip: int = 32,
    steps: int = 3000,
    generations: int = 80,
    real_generations: int = 40,
    population: int = 24,
    episodes: int = 4,
    temperature: float = 1.0,
    trials: int = 200,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Look at an environment, learn a world model of it, and evolve a controller in its dream and one in reality.

    Every part is kept in the folder as it is finished: after Ctrl-C the same command goes on from there.

    Args:
        environment: a Gymnasium environment, whose actions are numbered or a bounded vector.
        frames: to be collected a round: by random actions, in later rounds by the controller that the dream taught.
        rounds: how often rollouts are collected, the world model fitted to all of them, and a controller dreamt.
        clip: frames of the clips that the world model learns from.
        steps: of its learning, a round.
        generations: of the controllers in the dream.
        real_generations: of those in reality.
        population: controllers a generation.
        episodes: by which each of them is judged.
        temperature: of the dream that they learn in.
        trials: episodes of every figure of the table.
        seed: of everything.
        out: the folder; runs/dream-ENVIRONMENT by default.
        quiet: no progress.

    Returns:
        The picture of a dream beside reality. The figures are in `result.json` beside it, the world model is the run
        `model-ROUND`.

    Raises:
        TacitError: gymnasium or cma are not installed, the environment does not suit, or a number is too low.
        RunError: the folder holds another dream.
    """
    check_at_least(1, frames=frames, rounds=rounds, steps=steps, generations=generations, episodes=episodes)
    check_at_least(2, clip=clip, trials=trials, population=population, real_generations=real_generations)
    try:
        from tacit.worlds import evolution, reality, rollouts
        from tacit.worlds.dream import Dreams
    except ModuleNotFoundError as error:
        raise TacitError(f"{error.name} is not installed: pip install 'tacit[world]'") from error
    environments = reality.Environments(environment)
    settings = {
        "environment": environment,
        "frames": frames,
        "rounds": rounds,
        "clip": clip,
        "steps": steps,
        "generations": generations,
        "population": population,
        "episodes": episodes,
        "temperature": temperature,
        "seed": seed,
    }
    folder = _folder(out or Path("runs") / f"dream-{environment.replace('/', '-')}", settings)

    def taught(world: World, name: str, generations: int) -> Controllers:
        from tacit.worlds.controller import Controllers

        size = world.actions.size
        with _Telling(f"controllers, {name}", quiet) as tell:
            vector = evolution.evolve(
                evolution.scores_in(world, episodes, seed),
                Controllers.parameters(world.features, size),
                generations=generations,
                population=population,
                seed=seed_of(seed, name) % 2**32,
                path=folder / f"{name}.npz",
                told=lambda generation, scores: tell(
                    (generation + 1) / generations, f"mean {scores.mean():.4g}  best {scores.max():.4g}"
                ),
            )
        return Controllers.from_vectors(vector[None], size)

    seen: Rollouts | None = None
    dreamer: Controllers | None = None
    model: WorldModel | None = None
    for number in range(1, rounds + 1):
        path = folder / f"rollouts-{number}.npz"
        if not path.exists():
            with _Telling(f"rollouts of {environment}", quiet) as tell:
                made = rollouts.collect(environments, frames, seed_of(seed, number), model, dreamer, told=tell)
            made.save(path)
        new = rollouts.Rollouts.load(path)
        seen = new if seen is None else seen.joined(new)
        model = _fitted(folder / f"model-{number}", seen, environments, clip, steps, seed, quiet)
        dreamer = taught(
            Dreams(model, environments.actions, environments.limit, temperature), f"dream-{number}", generations
        )
    assert model is not None and dreamer is not None
    real = reality.Reality(environments, model)
    awake = taught(real, "real", real_generations)

    figures = {
        "random": measure(real, None, trials, seed),
        "real": measure(real, awake, trials, seed),
        "dream": measure(real, dreamer, trials, seed),
        "dream-in-dream": measure(
            Dreams(model, environments.actions, environments.limit, temperature), dreamer, trials, seed
        ),
    }
    checkpoint.write_json(folder / "result.json", {**settings, "trials": trials, "returns": figures})
    _show(environment, figures, temperature)
    shown = rollouts.collect(environments, 16 * clip, seed_of(seed, "picture"), model, dreamer)
    return beside(model, shown, clip, folder / "dream.png")


def measure(world: World, controller: Controllers | None, trials: int, seed: int) -> dict[str, float]:
    """The mean return of a controller over `trials` episodes that no evolution saw, and its standard error."""
    from tacit.worlds.controller import returns

    total = returns(world, None if controller is None else controller.repeat(trials), trials, seed_of(seed, "trials"))
    return {"mean": total.mean().item(), "error": total.std().item() / math.sqrt(trials)}


def beside(model: WorldModel, seen: Rollouts, clip: int, path: Path) -> Path:
    """A picture: a real clip, what V makes of it, and dreams that go on from its first frames by the same actions."""
    from tacit.training import pictures

    data = seen.clips(clip, "rollouts")
    assert data.target is not None
    # One that tells of a single episode, where there is one.
    row = int(data.target[:, 1:, -1].sum(1).argmin())
    x, target = data.x[row : row + 1], data.target[row : row + 1]
    given = x[:, : min(_GIVEN, clip - 1)].repeat(_DREAMS, 1, 1, 1, 1)
    dreams = model.decode(model.dream(given, target.repeat(_DREAMS, 1, 1)))
    rows = torch.cat([x, model.decode(model.encode(x)), dreams])
    pictures.strips(rows[:, ::_STRIDE], model.space.levels or 256).save(path)
    return path


def _fitted(
    path: Path, seen: Rollouts, environments: Environments, clip: int, steps: int, seed: int, quiet: bool
) -> WorldModel:
    """The world model of a round: fitted, or gone on with."""
    data = seen.clips(clip, environments.name)
    if (path / "run.json").exists():
        run = resume(path, data, quiet=quiet)
    else:
        run = fit("world-model", data, steps=steps, seed=seed, out=path, quiet=quiet, actions=environments.actions.size)
    if run.record["status"] == "interrupted":
        raise KeyboardInterrupt
    return run.model  # type: ignore[return-value]


def _folder(path: Path, settings: dict[str, Any]) -> Path:
    """The folder, new or of a dream with the same settings."""
    record = path / "dream.json"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if found.get(name) != value:
                raise RunError(f"{path} holds a dream with {name} {found.get(name)}, not {value}: give another --out")
    else:
        path.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(record, settings)
    return path


class _Telling:
    """A progress bar that is told a fraction and a text."""

    def __init__(self, title: str, quiet: bool):
        from tacit.training.progress import Bar

        self.bar = None if quiet else Bar(title)

    def __enter__(self) -> Callable[[float, str], None]:
        if self.bar is not None:
            self.bar.__enter__()
        return self.tell

    def tell(self, fraction: float, text: str) -> None:
        if self.bar is not None:
            self.bar.bar.update(self.bar.task, completed=fraction, losses=text)

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*error)


def _show(environment: str, figures: dict[str, dict[str, float]], temperature: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{environment}, return of an episode", title_justify="left", box=None, pad_edge=False)
    table.add_column("controller")
    table.add_column("acts in")
    table.add_column("mean ± standard error", justify="right")
    lines = {
        "random": ("random actions", "reality"),
        "real": ("evolved in reality", "reality"),
        "dream": ("evolved in the dream", "reality"),
        "dream-in-dream": ("evolved in the dream", f"the dream at {temperature:g}"),
    }
    for key, words in lines.items():
        table.add_row(*words, f"{figures[key]['mean']:.4g} ± {figures[key]['error']:.2g}")
    Console().print(table)
