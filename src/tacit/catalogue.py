"""The catalogue: which models there are, read from the source files without importing them (or torch).

A model's file is its entry: `models/autoregressive/made.py` is `made` of the family autoregressive, its class is the
one named like the file, its description the first line of the file's docstring, its papers the `References` section,
its capabilities the methods it defines. Adding a model edits nothing here.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tacit.errors import TacitError

if TYPE_CHECKING:
    from tacit.model import Model

_MODELS = Path(__file__).parent / "models"

# What is meant by the name of a family where a model is expected: the one to try first.
FIRST_CHOICE = {"flow": "neural-spline-flow"}

# Method -> capability: the same names as in capabilities.py, which needs torch and so is not imported here.
_CAPABILITIES = {
    "log_prob": "density",
    "sample": "sample",
    "encode": "encode",
    "decode": "decode",
    "embed": "embed",
    "classify": "classify",
    "complete": "complete",
    "energy": "energy",
    "visit": "code",
    "posterior_of": "bits-back",
}


@dataclass(frozen=True)
class Argument:
    """One keyword argument of a model's constructor, as its source has it."""

    name: str
    annotation: str
    default: str | None
    help: str


@dataclass(frozen=True)
class Entry:
    """What the source of one model says about it."""

    name: str
    family: str
    module: str
    class_name: str
    description: str
    text: str
    references: str
    spaces: tuple[str, ...]
    capabilities: tuple[str, ...]
    arguments: tuple[Argument, ...]

    @property
    def needs_labels(self) -> bool:
        """Whether the constructor requires `classes`."""
        return any(a.name == "classes" and a.default is None for a in self.arguments)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every model, by family and name."""
    files = sorted(_MODELS.glob("*/*.py"))
    return tuple(_read(path) for path in files if not path.name.startswith("_"))


def entry(name: str) -> Entry:
    """The model called `name`, or the first choice of a family called so.

    Raises:
        TacitError: there is none; the message gives the nearest names.
    """
    for found in entries():
        if found.name == FIRST_CHOICE.get(name, name):
            return found
    names = [found.name for found in entries()]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise TacitError(f"no model is called {name!r}: {hint} (`tacit models` lists them)")


def load(name: str) -> type[Model]:
    """Import the class of the model called `name`."""
    found = entry(name)
    return getattr(importlib.import_module(found.module), found.class_name)


def name_of(cls: type) -> str:
    """The catalogue name of a model class; the class's own name if it is not in the catalogue."""
    for found in entries():
        if (found.module, found.class_name) == (cls.__module__, cls.__name__):
            return found.name
    return cls.__name__


def names_taking(kind: str) -> list[str]:
    """Names of the models that take a kind of space."""
    return [found.name for found in entries() if kind in found.spaces]


def _read(path: Path) -> Entry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    cls = _class_of(tree, path.stem)
    if cls is None:
        raise TypeError(f"{path} holds no class named like the file")
    text = ast.get_docstring(tree) or ""
    methods: set[str] = set()
    spaces: tuple[str, ...] = ()
    for ancestor in _lineage(cls, tree):
        methods |= {node.name for node in ancestor.body if isinstance(node, ast.FunctionDef)}
        spaces = spaces or _spaces_of(ancestor)
    init = next(
        node
        for ancestor in _lineage(cls, tree)
        for node in ancestor.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    return Entry(
        name=path.stem.replace("_plus", "+").replace("_", "-"),
        family=path.parent.name,
        module=f"tacit.models.{path.parent.name}.{path.stem}",
        class_name=cls.name,
        description=text.split("\n", 1)[0].rstrip("."),
        text=text,
        references=text.partition("References")[2].strip(" \n-:"),
        spaces=spaces,
        capabilities=tuple(name for method, name in _CAPABILITIES.items() if method in methods),
        arguments=tuple(_arguments(init, ast.get_docstring(cls) or "")),
    )


def _class_of(tree: ast.Module, stem: str) -> ast.ClassDef | None:
    wanted = stem.replace("_", "").lower()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == wanted:
            return node
    return None


def _lineage(cls: ast.ClassDef, tree: ast.Module) -> list[ast.ClassDef]:
    """The class and its ancestors among the models, nearest first, following `from tacit.models.… import …`."""
    found = [cls]
    for base in cls.bases:
        if not isinstance(base, ast.Name) or base.id == "Model":
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == base.id:
                found += _lineage(node, tree)
            elif isinstance(node, ast.ImportFrom) and base.id in (alias.name for alias in node.names):
                source = _MODELS.parent.parent / Path(*(node.module or "").split(".")).with_suffix(".py")
                other = ast.parse(source.read_text(encoding="utf-8"))
                found += _lineage(
                    next(n for n in other.body if isinstance(n, ast.ClassDef) and n.name == base.id), other
                )
    return found


def _spaces_of(cls: ast.ClassDef) -> tuple[str, ...]:
    """`spaces = (Images, Vectors)` -> ("images", "vectors")."""
    for node in cls.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == "spaces" and isinstance(value, ast.Tuple):
            return tuple(name.id.lower() for name in value.elts if isinstance(name, ast.Name))
    return ()


def _arguments(init: ast.FunctionDef, docstring: str) -> list[Argument]:
    keywords = list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))
    return [
        Argument(
            name=arg.arg,
            annotation=ast.unparse(arg.annotation) if arg.annotation else "",
            default=ast.unparse(default) if default else None,
            help=argument_help(docstring, arg.arg),
        )
        for arg, default in keywords
    ]


def argument_help(docstring: str, name: str) -> str:
    """What the `Args:` section of a docstring says about one argument, on one line."""
    lines = docstring.partition("Args:")[2].splitlines()
    found: list[str] = []
    for line in lines:
        key, colon, _ = line.strip().partition(":")
        if found and (not line.strip() or (colon and key.isidentifier())):
            break
        if found or line.strip().startswith(f"{name}:"):
            found.append(line.strip())
    return " ".join(found).partition(":")[2].strip()
