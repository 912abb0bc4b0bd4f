"""The command line, derived from the verbs' signatures and the models' constructors.

`tacit --help` must answer at once, so nothing that imports torch is imported before a verb is known; a verb's options
are its function's parameters, and for `fit` the model's own arguments beside them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tacit import __version__, catalogue
from tacit.catalogue import argument_help
from tacit.errors import TacitError

_TASKS = Path(__file__).parent / "tasks"

# In the order in which someone meets them. Verbs whose data the user names take the options of `load` as well.
VERBS = (
    "compare",
    "fit",
    "resume",
    "sample",
    "complete",
    "interpolate",
    "traverse",
    "evaluate",
    "compress",
    "decompress",
    "anomalies",
    "embed",
    "dream",
    "models",
    "data",
)
_READS_DATA = ("compare", "fit", "complete", "interpolate", "traverse", "evaluate", "anomalies", "embed")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        _print_help()
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            _run(words[0], words[1:])
    except TacitError as error:
        print(f"tacit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tacit: interrupted", file=sys.stderr)
        return 130
    return 0


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One sentence, without the line of code that Python would show."""
    print(f"tacit: {message}", file=sys.stderr)


def _print_help() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("[bold]tacit[/] learns from data without labels.\n")
    console.print("usage: tacit VERB …        tacit VERB --help says what each takes\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb in VERBS:
        table.add_row(f"[bold]{verb}", _first_line(verb))
    console.print(table)
    console.print(
        "\nexamples:\n"
        "  tacit compare                          which model suits real 8×8 digits?\n"
        "  tacit compare photos/ --minutes 10     which suits mine?\n"
        "  tacit fit vae photos/ --size 32        train one on a folder of pictures\n"
        "  tacit fit flow table.csv --label y     or on a table\n"
        "  tacit sample runs/vae-photos           look at what it learned\n"
        "  tacit complete runs/made-digits        fill in the lower half of some images\n"
        "  tacit anomalies runs/vae-photos new/   what does not belong among new ones?",
        markup=False,
    )


def _first_line(verb: str) -> str:
    text = (_TASKS / f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").split("\n", 1)[0]


def _run(verb: str, words: list[str]) -> None:
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        raise TacitError(f"there is no verb {verb!r}: {hint}")
    function = getattr(importlib.import_module(f"tacit.tasks.{verb}"), verb)
    groups: list[Callable[..., Any]] = [function]
    if verb in _READS_DATA:
        from tacit.data import load

        groups.append(load)
    if verb == "fit" and words and not words[0].startswith("-"):
        groups.append(catalogue.load(words[0]))
    values = _parse(f"tacit {verb}", groups, words)
    if verb in _READS_DATA:
        values = _with_data(values, function, groups[1])
    shown = function(**values)
    if isinstance(shown, Path) or verb in ("fit", "resume"):
        print(getattr(shown, "path", shown))


def _with_data(values: dict[str, Any], verb: Callable[..., Any], load: Callable[..., Any]) -> dict[str, Any]:
    """Replace the name or path in `data` by the data set, read with the options given that are not the verb's own."""
    options = {name: values.pop(name) for name in _keywords(load) if name in values and name not in _keywords(verb)}
    if values.get("data") is not None:
        values["data"] = load(values["data"], **options)
    return values


def _parse(program: str, groups: list[Callable[..., Any]], words: list[str]) -> dict[str, Any]:
    """The values of all the groups' parameters, from the words of a command line."""
    import tyro

    fields: dict[str, tuple[str, Any, Any]] = {}
    for group in groups:
        docstring = inspect.getdoc(group) or ""
        for name, parameter in _keywords(group).items():
            if name in fields:
                continue
            positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and group is groups[0]
            mark = (tyro.conf.Positional,) if positional else ()
            kind: Any = parameter.annotation if name != "data" else str
            if name == "data" and parameter.default is None:
                kind = str | None
            empty = parameter.default is inspect.Parameter.empty
            if name == "classes" and empty:
                continue  # filled from the data
            help_text = argument_help(docstring, name)
            default = dataclasses.field() if empty else dataclasses.field(default=parameter.default)
            fields[name] = (name, Annotated[kind, tyro.conf.arg(help=help_text), *mark], default)
    ordered = sorted(fields.values(), key=lambda f: f[2].default is not dataclasses.MISSING)
    options = dataclasses.make_dataclass("Options", ordered)
    description = (inspect.getdoc(groups[0]) or "").split("\n\n", 1)[0]
    parsed: Any = tyro.cli(options, prog=program, description=description, args=words)
    return {name: getattr(parsed, name) for name in fields}


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters a command line can set: not `space`, not what only Python can give."""
    signature = inspect.signature(function, eval_str=True)
    hidden = ("space", "self", "watchers", "path")
    return {
        name: p
        for name, p in signature.parameters.items()
        if name not in hidden and p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }


if __name__ == "__main__":
    sys.exit(main())
