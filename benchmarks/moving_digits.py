"""Held-out nats per frame of video pixel networks on the moving digits, beside frames taken for independent.

Protocol: `moving-digits` as built in, all of its 1000 test clips, whose digits no training clip shows; exact; the mean
over the ten frames. The unit is that of Kalchbrenner et al. (2017, arXiv:1610.00527) on Moving MNIST, whose figures, of
64 × 64 grey pixels and given ten frames, do not compare. `known-motion` is the mean over frames 3 to 10 alone, which
the first two all but determine: what is left is the model's own. Independent frames are the same decoder without
context, trained by the same recipe, which was chosen on the validation clips. (The paper's baseline is another: it
keeps the context and takes a frame's pixels for independent.)

An interrupted run goes on where it stopped when the same command is given again; a finished one is measured again.

    python benchmarks/moving_digits.py
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import tyro

import tacit
from record import fit, record
from tacit.tasks.resume import resume

STEPS = 2500
RECIPE: dict[str, Any] = {
    "features": 16,
    "layers": 3,
    "first": 5,
    "readout_features": 32,
    "encoder_features": 12,
    "dilations": (1,),
    "batch_size": 2,
    "learning_rate": 4e-3,
}


def main(*, steps: int = STEPS, threads: int = 1, seed: int = 0, out: Path = Path("runs/moving-digits")) -> None:
    """Train both by the recipe, measure all test clips and record the means.

    Args:
        steps: of training, of each.
        threads: that torch may use.
        seed: of the weights, the order of data and all noise.
        out: the folder of both runs.
    """
    torch.set_num_threads(threads)
    data = tacit.load("moving-digits")
    test = data.parts()[2].x
    # The independent frames first: their figure is the other's reference.
    floor: dict[str, float] = {}
    for context in (False, True):
        started = time.perf_counter()
        name = "context" if context else "independent-frames"
        if (out / name / "run.json").exists():
            run = resume(out / name)
            if run.record["status"] == "interrupted":
                raise SystemExit(f"interrupted at step {run.record['step']}: the same command goes on from there")
        else:
            arguments = {"context": context, "steps": steps, "seed": seed, **RECIPE}
            run = fit("video-pixel-network", data, out=out / name, pictures=0, **arguments)
        before = run.record["seconds"] - (time.perf_counter() - started)  # what earlier commands trained
        with torch.no_grad():
            nats = -torch.cat([run.model.frame_log_prob(x) for x in test.split(50)]).double()
        print(f"{name}, by frame: {', '.join(f'{value:.2f}' for value in nats.mean(0).tolist())}")
        for metric, of in (("nll-per-frame", nats), ("nll-per-frame-known-motion", nats[:, 2:])):
            value = of.mean().item()
            record(
                "video-pixel-network",
                "moving-digits",
                metric if context else f"{metric}-{name}",
                value,
                split="test",
                unit="nats per frame",
                better="lower",
                kind="exact",
                uncertainty=of.mean(1).std().item() / math.sqrt(len(of)),
                reference={"value": floor[metric], "source": "independent frames, this run"} if context else None,
                seed=seed,
                seconds=time.perf_counter() - started + max(0.0, before),
                note=(
                    f"{run.record['arguments']}; {run.record['step']} steps of "
                    f"{run.record['plan']['recipe']['batch_size']} clips, {run.record['seconds']:.0f} seconds; "
                    "uncertainty is the standard error over test clips"
                ),
            )
            floor[metric] = value


if __name__ == "__main__":
    tyro.cli(main)
