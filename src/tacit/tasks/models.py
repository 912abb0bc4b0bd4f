"""Show the catalogue: every model with its paper, family, capabilities and recorded results."""

from __future__ import annotations

import itertools
import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tacit import catalogue

# Beside the source in a checkout; an installed package has no benchmarks and shows no results.
_RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def models(name: str | None = None, *, json: bool = False) -> list[dict[str, Any]]:
    """List the models, or show one: its idea, paper, arguments, capabilities and recorded results.

    Args:
        name: one model; all of them by default.
        json: print JSON instead of a table.

    Returns:
        The records that --json prints.

    Raises:
        TacitError: no model is called that.
    """
    entries = catalogue.entries() if name is None else (catalogue.entry(name),)
    records = [asdict(entry) | {"results": results(entry.name)} for entry in entries]
    console = Console()
    if json:
        console.print_json(data=records if name is None else records[0])
    elif name is None:
        console.print(_list(entries))
        console.print("`tacit models NAME` shows one; `tacit fit NAME DATA` trains it.", highlight=False)
    else:
        _show(console, entries[0], records[0]["results"])
    return records


def results(name: str) -> list[dict[str, Any]]:
    """What `benchmarks/` recorded of a model."""
    return [json_.loads(path.read_text(encoding="utf-8")) for path in sorted((_RESULTS / name).glob("*.json"))]


def _list(entries: tuple[catalogue.Entry, ...]) -> Table:
    """Two columns, for which eighty characters to a line suffice: the name; what it is, and below what it can do."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for family, members in itertools.groupby(entries, key=lambda entry: entry.family):
        table.add_row(f"\n[bold underline]{family}")
        for entry in members:
            takes = " or ".join(entry.spaces) + (" with labels" if entry.needs_labels else "")
            table.add_row(
                f"[bold]{entry.name}",
                f"{escape(entry.description)}\n[dim]for {takes}: {', '.join(entry.capabilities)}[/]",
            )
    return table


def flowing(text: str) -> str:
    """Paragraphs and list items on a line each, for the terminal to wrap; equations and headings as they are."""
    lines: list[str] = []
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        rule = not line.strip("-") or not before.strip("-")
        prose = not line[:1].isspace() and not before[:1].isspace() and not line.startswith("- ")
        listed = before.startswith("- ") and line.startswith("  ")
        if not rule and (prose or listed):
            lines[-1] = f"{before} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _show(console: Console, entry: catalogue.Entry, recorded: list[dict[str, Any]]) -> None:
    console.print(f"[bold]{entry.name}[/] ({entry.family})\n", highlight=False)
    console.print(escape(flowing(entry.text)) + "\n", highlight=False)
    console.print(f"Takes: {', '.join(entry.spaces)}{' with labels' if entry.needs_labels else ''}", highlight=False)
    console.print(f"Can: {', '.join(entry.capabilities)}\n", highlight=False)
    table = Table(title="Arguments", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("option", "type", "default", "what it is"):
        table.add_column(column, no_wrap=column == "option")
    for argument in entry.arguments:
        option = f"--{argument.name.replace('_', '-')}"
        default = "from the data" if argument.name == "classes" and argument.default is None else argument.default
        table.add_row(option, escape(argument.annotation), escape(default or "required"), escape(argument.help))
    console.print(table)
    if recorded:
        table = Table(title="Recorded results", box=box.SIMPLE_HEAD, title_justify="left")
        for column in ("data", "metric", "value", "target", "published or peer"):
            table.add_column(column, overflow="fold")
        for record in recorded:
            target, reference = record["target"], record["reference"]
            published = reference and reference["value"]
            if isinstance(published, int | float):
                published = f"{published:.4g}"
            table.add_row(
                f"{record['data']} ({record['split']})",
                record["metric"],
                f"{record['value']:.4g} {record['unit']}",
                "" if target is None else f"{target:.4g} {'met' if record['met'] else 'MISSED'}",
                "" if not reference else f"{published} ({escape(reference['source'])})",
            )
        console.print(table)
