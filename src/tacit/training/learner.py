"""What learns besides the model: optimisers, schedule, moving average. Its whole state is tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tacit.errors import TacitError, TrainingError
from tacit.model import Batch, Losses, Model, Progress, Recipe
from tacit.training import distributed


class Learner:
    """Takes steps for every player of a model.

    Args:
        model: already on its device.
        recipe: how to train; see `tacit.model.Recipe`.
        precision: "float32", or "bfloat16" for autocast.

    Raises:
        TacitError: the recipe names no optimiser of torch, or no schedule.
    """

    def __init__(self, model: Model, recipe: Recipe, precision: str = "float32"):
        if recipe.schedule not in ("constant", "cosine"):
            raise TacitError(f'there is no schedule {recipe.schedule!r}: use "constant" or "cosine"')
        self.model = model
        self.recipe = recipe
        self.autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        groups = {name: {**group, "params": list(group["params"])} for name, group in model.players().items()}
        self.members: dict[str, list[nn.Parameter]] = {name: group["params"] for name, group in groups.items()}
        self.optimisers = {name: _optimiser(group, recipe) for name, group in groups.items() if group["params"]}
        self.peaks = {name: [group["lr"] for group in o.param_groups] for name, o in self.optimisers.items()}
        self.averaged: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        # Averaged weights make other activations than the last ones: their statistics are averaged with them.
        for module_name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                self.averaged |= {f"{module_name}.{n}": b for n, b in module.named_buffers() if b.is_floating_point()}
        self.average = [] if recipe.ema is None else [p.detach().clone() for p in self.averaged.values()]
        self.acting: str | None = None
        if len(self.members) > 1:
            for parameters in self.members.values():
                _let_learn(parameters, False)

    def step(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Learn from one batch; returns every player's terms and gradient norm by name, detached.

        Raises:
            TrainingError: a loss or a gradient is not finite; the acting player's weights are untouched.
        """
        self._set_rates(progress)
        terms: dict[str, Tensor] = {}
        for player, closure in self.model.steps(batch):
            prefix = f"{player}/" if player is not None and len(self.members) > 1 else ""
            if player is None:
                with torch.no_grad():
                    losses = closure()
                _refuse_nonfinite(losses, losses.total, prefix, progress.step)
            else:
                losses, norm = self._act(player, closure, prefix, progress.step)
                terms[f"{prefix}gradient_norm"] = norm
            terms[f"{prefix}loss"] = losses.total.detach()
            terms |= {prefix + name: value.detach() for name, value in losses.items()}
        if self.average:
            # Early weights are forgotten sooner, so that short runs are not averages of their beginnings.
            decay = min(self.recipe.ema or 0.0, (1 + progress.step) / (10 + progress.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.averaged.values()), 1 - decay)
        return terms

    def _act(self, player: str, closure: Callable[[], Losses], prefix: str, step: int) -> tuple[Losses, Tensor]:
        if player not in self.members:
            raise TacitError(f"steps() acts for {player!r}, but players() names {', '.join(self.members)}")
        if len(self.members) > 1 and player != self.acting:
            # Gradients reach the acting player alone: a critic's update must not move the generator, nor cost it time.
            _let_learn(self.members.get(self.acting or "", []), False)
            _let_learn(self.members[player], True)
            self.acting = player
        optimiser = self.optimisers[player]
        with self.autocast:
            losses = closure()
        losses.total.backward()
        gradients = [p.grad for p in self.members[player] if p.grad is not None]
        total = losses.total.detach().clone()
        distributed.average([total, *gradients])
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        _refuse_nonfinite(losses, total + norm, prefix, step)
        if self.recipe.clip is not None:
            torch._foreach_mul_(gradients, (self.recipe.clip / (norm + 1e-6)).clamp(max=1.0))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return losses, norm

    def _set_rates(self, progress: Progress) -> None:
        factor = min(1.0, (progress.step + 1) / self.recipe.warmup) if self.recipe.warmup else 1.0
        if self.recipe.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, progress.fraction)))
        for name, optimiser in self.optimisers.items():
            for group, peak in zip(optimiser.param_groups, self.peaks[name], strict=True):
                group["lr"] = peak * factor

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this the model has the moving average of its weights, if there is one, and is in eval mode."""
        training = self.model.training
        self._swap()
        self.model.eval()
        try:
            yield
        finally:
            self._swap()
            self.model.train(training)

    def _swap(self) -> None:
        for i, p in enumerate(self.averaged.values()) if self.average else ():
            p.data, self.average[i] = self.average[i], p.data

    def state(self) -> dict[str, Tensor]:
        """Everything that must be known, beside the step, to go on bit for bit."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in zip(self.averaged, self.average, strict=True)}
        for player, optimiser in self.optimisers.items():
            for i, values in optimiser.state_dict()["state"].items():
                for key, value in values.items():
                    if value is not None:
                        tensors[f"optimiser.{player}.{i}.{key}"] = torch.as_tensor(value)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        self.model.load_state_dict(parts["model"])
        for mine, name in zip(self.average, self.averaged, strict=False):
            mine.copy_(parts["average"][name])
        for player, optimiser in self.optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in parts.get("optimiser", {}).items():
                owner, i, name = key.rsplit(".", 2)
                if owner != player:
                    continue
                if value.shape == parameters[int(i)].shape:
                    # Fused kernels walk memory: a moment must lie as its parameter does, channels last or not.
                    value = torch.empty_like(parameters[int(i)]).copy_(value)
                state.setdefault(int(i), {})[name] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _optimiser(group: dict[str, Any], recipe: Recipe) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, recipe.optimiser, None)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise TacitError(f"torch.optim has no optimiser {recipe.optimiser!r}: use AdamW, Adam, SGD, …")
    accepted = inspect.signature(cls).parameters
    wanted: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": recipe.betas,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "fused": True,
    } | {key: value for key, value in group.items() if key != "params"}
    settings = {key: value for key, value in wanted.items() if key in accepted}
    if not settings.get("weight_decay"):
        return cls(group["params"], **settings)
    decayed = [p for p in group["params"] if p.ndim >= 2]
    spared = [p for p in group["params"] if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return cls([g for g in groups if g["params"]], **settings)


def _let_learn(parameters: list[nn.Parameter], allowed: bool) -> None:
    for p in parameters:
        p.requires_grad_(allowed)


def _refuse_nonfinite(losses: Losses, witness: Tensor, prefix: str, step: int) -> None:
    if math.isfinite(witness.item()):
        return
    culprits = [prefix + name for name, value in losses.items() if not math.isfinite(value.item())]
    what = f"the term {' and '.join(culprits)}" if culprits else f"the {prefix}gradient"
    raise TrainingError(f"{what} is not finite at step {step}")
