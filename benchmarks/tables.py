"""Writes the tables of measured figures into README.md from `benchmarks/results`, between its two markers.

python benchmarks/tables.py            rewrite them
python benchmarks/tables.py --check    fail if they are not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parent.parent
START, END = "<!-- results: made by benchmarks/tables.py -->", "<!-- end of results -->"


def rows() -> list[dict[str, Any]]:
    """Every record, by model, data and metric."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("benchmarks/results/*/*.json"))]


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


def main(check: bool = False) -> None:
    """Rewrite the tables, or check them.

    Args:
        check: change nothing, and exit with status 1 where README.md is out of date.
    """
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = f"{before}{START}\n{table(rows())}\n{END}{after}"
    if check and wanted != text:
        sys.exit("README.md is not what benchmarks/results say: run python benchmarks/tables.py")
    if not check:
        readme.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
