"""Writes what was measured, `benchmarks/results`, as tables: all of it to docs/results.md, some of it to README.md.

python benchmarks/tables.py            rewrite them
python benchmarks/tables.py --check    fail if they are not what the results say
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parent.parent
START, END = "<!-- results: made by benchmarks/tables.py -->", "<!-- end of results -->"

# What README.md shows: of each family and verb what it is best known by, met or missed.
HEADLINES = (
    "pixelcnn++/binarized-mnist.nll",
    "pixelcnn++/fashion-mnist.bits-per-dimension",
    "char-rnn/tinyshakespeare.nats-per-character",
    "gated-pixelcnn/random-28x28.speed-ratio.full-passes.sample-64",
    "neural-spline-flow/miniboone-subset.nll",
    "neural-spline-flow/gaussian-64.speed-ratio.train-step",
    "vae/binarized-mnist.nll-importance-weighted-1000",
    "vae/random-28x28.speed-ratio.pythae.train-step",
    "ddpm/fashion-mnist.frechet-classifier-distance.ddim-20",
    "world-model/cart-pole.return-dream",
    "simclr/fashion-mnist.linear-probe",
    "semi-supervised-vae/mnist-100-labels.error",
    "mean-teacher/mnist-100-labels.error",
    "word2vec/gutenberg+wikitext-2.speed-ratio.gensim.words-per-second",
    "anomalies/adbench.auroc-normal-only",
    "anomalies-realnvp/fashion-mnist.auroc-mnist",
    "pixelcnn++/fashion-mnist.size-ratio.jpeg-xl-tiled",
)

_INTRODUCTION = """# What was measured

<!-- made by benchmarks/tables.py -->

Every row was written by a command, which its file under `benchmarks/results` names together with seed, hardware,
versions and commit. ✗ is a target missed; the file says why where that is known.
"""


def rows() -> dict[str, dict[str, Any]]:
    """Every record by its file's name, MODEL/DATA.METRIC."""
    results = ROOT / "benchmarks" / "results"
    return {
        str(path.relative_to(results).with_suffix("")): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("*/*.json"))
    }


def table(records: list[dict[str, Any]]) -> str:
    """One Markdown table of records, targets beside values and references beside both."""
    lines = [
        "| model | data | figure | measured | target | published or peer | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        error = "" if r["uncertainty"] is None else f" ± {r['uncertainty']:.2g}"
        target = (
            ""
            if r["target"] is None
            else f"{'≤' if r['better'] == 'lower' else '≥'} {r['target']:.4g} {'✓' if r['met'] else '✗'}"
        )
        reference = "" if not r["reference"] else f"{_short(r['reference']['value'])} ({r['reference']['source']})"
        kind = "" if r["kind"] in ("measured", "exact") else f" ({r['kind']})"
        lines.append(
            f"| {r['model']} | {r['data']} ({r['split']}) | {r['metric']}{kind} "
            f"| {_short(r['value'])}{error} {r['unit']} | {target} | {reference} | {r['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    if not isinstance(value, float | int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def summary(records: dict[str, dict[str, Any]]) -> str:
    """How many figures there are and how many targets were met, and the headlines."""
    aimed = [r for r in records.values() if r["target"] is not None]
    met = sum(r["met"] for r in aimed)
    return (
        f"{len(records)} figures are recorded, of which {len(aimed)} had a target: {met} met it, {len(aimed) - met} "
        f"missed it (✗). [All of them](docs/results.md); some:\n\n{table([records[name] for name in HEADLINES])}"
    )


def everything(records: dict[str, dict[str, Any]]) -> str:
    """The page of all figures, a table a model."""
    by_model = itertools.groupby(records.values(), key=lambda r: r["model"])
    return "\n".join([_INTRODUCTION, *(f"## {model}\n\n{table(list(each))}\n" for model, each in by_model)])


def main(check: bool = False) -> None:
    """Rewrite the tables, or check them.

    Args:
        check: change nothing, and exit with status 1 where they are out of date.
    """
    records, readme = rows(), ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    wanted = {
        readme: f"{before}{START}\n{summary(records)}\n{END}{after}",
        ROOT / "docs" / "results.md": everything(records),
    }
    for path, text in wanted.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} is not what benchmarks/results say: run python benchmarks/tables.py")


if __name__ == "__main__":
    tyro.cli(main)
