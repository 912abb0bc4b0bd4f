"""Show what data can be had by name, and what the options of loading are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from tacit.data import listing

if TYPE_CHECKING:
    from tacit.data import Dataset


def data(name: str | None = None, *, data_home: Path | None = None, json: bool = False) -> None:
    """List the data sets that have a name, or describe one (or any file or folder).

    Args:
        name: a name or a path to describe; all names by default.
        data_home: the folder of real sets; the environment variable TACIT_DATA by default.
        json: print JSON instead of a table.
    """
    console = Console()
    if name is not None:
        from tacit.data import load  # needs torch, which the list does not wait for

        _describe(console, load(name, data_home=data_home), json)
        return
    rows = [asdict(row) for row in listing(data_home)]
    if json:
        console.print_json(data=rows)
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in rows[0]:
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console.print(table)


def _describe(console: Console, found: Dataset, json: bool) -> None:
    record = {
        "name": found.name,
        "space": found.space.to_dict(),
        "rows": len(found),
        "classes": list(found.class_names) or found.classes,
        "parts of its own": {part: len(rows) for part, rows in found.official.items()},
        "bytes": found.x.nbytes,
    }
    if json:
        console.print_json(data=record)
        return
    for key, value in record.items():
        console.print(f"[bold]{key}[/]: {value}")


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
