"""Find out which model suits your data: several families, one budget, one table and one page."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from tacit import catalogue
from tacit.catalogue import Entry
from tacit.data import Dataset, load
from tacit.errors import SpaceError, TacitError
from tacit.spaces import Images, Space, Tokens, Vectors
from tacit.tasks.advice import Advice, advise
from tacit.tasks.fit import configure, fit
from tacit.tasks.measure import Judge, measure, sentence
from tacit.tasks.quality import QUALITY, Figure
from tacit.tasks.report import write_page
from tacit.tasks.run import Run
from tacit.tasks.table import BASELINE, COLUMN, Row, density_mark, terminal_tables
from tacit.training import checkpoint

# Of each model's share of the budget: the rest is for measuring it.
_TRAINING = 0.75
# A model of text with more outputs than this for one window does not suit it: words in place of characters.
_MOST_OUTPUTS = 200_000
# Entries of an observation beyond which networks are too large to be built for a question.
_MOST_BUILT = 4096


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        data: the data's name.
        space: what one observation is, as run records have it.
        kind: the same in words.
        fingerprint: of the data.
        sizes: rows of the training, validation and test parts.
        minutes: the budget.
        training_seconds: of that, for each model that learns by steps.
        seed: of everything.
        device: where models ran.
        extractor: the features in which samples are compared, with the hash of their weights.
        corruptions: what the anomaly figures are on.
        rows: one for each model, the first of no model at all.
        advice: who wins at what.
        interrupted: whether it was stopped before the end.
        seconds: how long it all took.
        path: the page.
    """

    data: str
    space: dict[str, Any]
    kind: str
    fingerprint: str
    sizes: tuple[int, int, int]
    minutes: float
    seed: int
    device: str
    training_seconds: float = 0.0
    extractor: str = ""
    corruptions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    rows: list[Row] = field(default_factory=list)
    advice: Advice = field(default_factory=lambda: Advice(""))
    interrupted: bool = False
    seconds: float = 0.0
    path: Path = Path()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        plain = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("rows", "advice", "path")
        }
        rows = [row.to_dict() for row in self.rows]
        return {**plain, "rows": rows, "advice": self.advice.to_dict(), "page": str(self.path)}


def compare(
    data: str | Path | Dataset = "digits",
    *,
    minutes: float | None = None,
    models: tuple[str, ...] = (),
    family: tuple[str, ...] = (),
    out: Path = Path("compare"),
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
) -> Comparison:
    """Train several families of models on the same data under the same budget, and say which suits it.

    For each model: bits per dimension of your own data, sample quality, samples a second, how good its features are,
    how well it finds anomalies, and how fast it trains; in a table and on a page with pictures. Every trained model is
    kept in OUT/runs, ready for every other verb. Ctrl-C stops, keeps what is trained and reports it.

    Args:
        data: a path, a name (`tacit data`), or a `Dataset`; scikit-learn's 8×8 digits by default.
        minutes: for the whole comparison, training and measuring; by default 3, and 10 where an observation has more
            than 300 numbers.
        models: which to compare, by name; by default all that suit the data and the time.
        family: only models of these families.
        out: folder for the page (index.html), the numbers (comparison.json) and the runs.
        seed: of everything: weights, order, noise and the choice of held-out rows.
        device: auto takes a GPU where there is one.
        json: print the numbers as JSON instead of the table.

    Raises:
        TacitError: the data cannot be read, or no model takes it.
    """
    if minutes is not None and minutes <= 0:
        raise TacitError(f"minutes is {minutes:g}: give a number above 0")
    dataset = data if isinstance(data, Dataset) else load(data)
    if dataset.space.kind not in QUALITY:
        raise SpaceError(
            f"compare has no measure of samples of {dataset.space.kind}: fit each model that takes it "
            f"({', '.join(catalogue.names_taking(dataset.space.kind)) or 'none yet'}) and look at `tacit evaluate`"
        )
    if minutes is None:
        minutes = 10.0 if dataset.space.dimensions > 300 else 3.0
    entries = chosen(dataset, _words(models), _words(family))
    left_out: tuple[str, ...] = ()
    if not models and not family:
        kept = affordable(entries, minutes, dataset.space.dimensions)
        left_out = tuple(entry.name for entry in entries if entry not in kept)
        entries = kept
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TacitError(f"the folder {out} cannot be made ({error.strerror}): choose another --out") from error
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    # A text's rows are counted as windows end to end, not as the places at which one can start.
    step = dataset.space.length if isinstance(dataset.space, Tokens) else 1
    sizes = tuple(-(-len(part) // step) for part in dataset.parts())
    found = Comparison(
        data=dataset.name,
        space=dataset.space.to_dict(),
        kind=_described(dataset.space),
        fingerprint=dataset.fingerprint(),
        sizes=sizes,  # type: ignore[arg-type]
        minutes=minutes,
        seed=seed,
        device=where,
        path=out / "index.html",
        left_out=left_out,
    )
    found.rows = [
        Row(e.name, e.family, supervised=e.needs_labels, exact=catalogue.load(e.name).learns_exactly()) for e in entries
    ]
    started = time.monotonic()
    with _Display(dataset.name, 60 * minutes) as display:
        work = _Work(found, dataset, out, device, display)
        with _terminated_like_interrupted():
            work.run()
    found.seconds = round(time.monotonic() - started, 1)
    _finish(work, json)
    return found


def _described(space: Space) -> str:
    if isinstance(space, Images):
        channels = {1: "grey ", 3: "colour "}.get(space.channels, f"{space.channels}-channel ")
        return f"{channels}images of {space.height} × {space.width} pixels and {space.levels} levels"
    if isinstance(space, Vectors):
        return f"rows of {space.features} numbers"
    if isinstance(space, Tokens):
        return f"windows of {space.length} of {space.vocabulary} symbols"
    return str(space)


def _words(given: tuple[str, ...] | str) -> list[str]:
    """("a,b", "c") -> ["a", "b", "c"]: names with commas or spaces between them."""
    given = (given,) if isinstance(given, str) else given
    return [word for words in given for word in words.replace(",", " ").split()]


def chosen(data: Dataset, models: list[str], families: list[str]) -> list[Entry]:
    """The models to compare, quick ones first: those that learn exactly, then one of each family, then the rest.

    Raises:
        TacitError: a name is unknown, or nothing is left.
    """
    if unknown := [name for name in families if name not in {entry.family for entry in catalogue.entries()}]:
        known = ", ".join(sorted({entry.family for entry in catalogue.entries()}))
        raise TacitError(f"no family is called {unknown[0]!r}: there are {known}")
    found = [catalogue.entry(name) for name in dict.fromkeys(models)]
    if not models:
        found = [entry for entry in catalogue.entries() if suits(entry, data)]
    if families:
        found = [entry for entry in found if entry.family in families]
    if not found:
        wanted = f"of the families {', '.join(families)} " if families else ""
        raise SpaceError(f"no model {wanted}takes {data.space.kind}: `tacit models` lists what each takes")
    seen: dict[str, int] = {}

    def turn(entry: Entry) -> tuple[bool, int]:
        seen[entry.family] = seen.get(entry.family, 0) + 1
        return not catalogue.load(entry.name).learns_exactly(), seen[entry.family]

    return sorted(found, key=turn)


def affordable(entries: list[Entry], minutes: float, dimensions: int) -> list[Entry]:
    """Of these models as many as can each have the time they need: the most frugal first, in the order given."""
    needs = {entry.name: catalogue.load(entry.name).appetite * dimensions / 784 for entry in entries}
    kept: list[str] = []
    for name in sorted(needs, key=lambda name: needs[name]):
        if needs[name] <= minutes / (len(kept) + 1):
            kept.append(name)
    return [entry for entry in entries if entry.name in kept]


def suits(entry: Entry, data: Dataset) -> bool:
    """Whether a model is compared on this kind of data unless others are asked for.

    Its constructor knows best what it cannot take, as a table of 2^64 cells.
    """
    if data.space.kind not in entry.spaces or (entry.needs_labels and data.classes < 2):
        return False
    outputs = data.space.vocabulary * data.space.length if isinstance(data.space, Tokens) else 0
    if outputs > _MOST_OUTPUTS and "density" in entry.capabilities:
        return False
    if data.space.dimensions > _MOST_BUILT:
        return True
    cls = catalogue.load(entry.name)
    try:
        cls(data.space, **configure(entry.name, cls, data, {}))
    except SpaceError:
        return False
    return True


# -- the work ----------------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """Fits and measures each row in turn, and writes down what it found after each."""

    found: Comparison
    data: Dataset
    out: Path
    device: Literal["auto", "cpu", "cuda"]
    display: _Display
    judge: Judge | None = None

    def run(self) -> None:
        """Work until all is done or Ctrl-C comes; what it leaves undone stays "not reached"."""
        found, end = self.found, time.monotonic() + 60 * self.found.minutes
        models = list(found.rows)
        exact = sum(row.exact for row in models)
        try:
            self.display.says("preparing: held-out rows, extractor and floors")
            # The extractor may take three twentieths of the time.
            self.judge = Judge(self.data, self.out, device=found.device, seed=found.seed, seconds=9 * found.minutes)
            found.extractor, found.corruptions = self.judge.extractor_name, tuple(self.judge.corrupted)
            figures = self.judge.baseline()
            found.rows.insert(0, Row(BASELINE, "", "measured", "the held-out data itself", figures=figures))
            share = 0.0
            for i, row in enumerate(models):
                if i <= exact:
                    # What learns exactly comes first; what it leaves over is then shared out once, equally.
                    share = max(1.0, (end - time.monotonic()) / (len(models) - i))
                    found.training_seconds = round(_TRAINING * share, 1)
                self.display.model(f"{row.model} ({i + 1} of {len(models)})")
                self.one(row, self.judge, share)
                checkpoint.write_json(self.out / "comparison.json", found.to_dict())
                self.display.done(row)
                if row.status == "interrupted":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            found.interrupted = True

    def one(self, row: Row, judge: Judge, share: float) -> None:
        """Fit and measure one model in `share` seconds; whatever goes wrong becomes its row's reason."""
        path = _free(self.out / "runs" / row.model)
        row.run = str(path.relative_to(self.out))
        try:
            started = time.monotonic()
            run = fit(
                row.model,
                self.data,
                minutes=_TRAINING * share / 60,
                seed=self.found.seed,
                out=path,
                device=self.device,
                quiet=True,
                pictures=0,
                log_every=10,
                watchers=(self.display,),
            )
            row.figures |= _cost(run, len(judge.train), time.monotonic() - started)
            if run.record["status"] == "interrupted":
                row.status, row.reason = "interrupted", f"stopped while it trained: `tacit resume {path}` goes on"
                return
            self.display.says("measuring")
            measured = measure(run.model.to(self.found.device), judge, (1 - _TRAINING) * share)
            row.figures |= measured.figures
            row.samples, row.reason = measured.samples, " ".join(f"{text}." for text in measured.troubles)
            row.status = "measured"
        except KeyboardInterrupt:
            row.status, row.reason = "interrupted", f"stopped before it was measured: its run is {path}"
        except Exception as error:
            # A comparison of many models outlives the failure of any one of them, of whatever kind.
            row.status, row.reason = "failed", f"{sentence(error)}."


def _cost(run: Run, rows: int, seconds: float) -> dict[str, Figure]:
    """Time and throughput of training, from the run's record."""
    steps = run.record.get("step", 0)
    spent = run.record.get("seconds") or seconds
    gone_through = steps * run.record["plan"]["recipe"]["batch_size"] if steps else rows
    what = f"{steps} steps in batches of {run.record['plan']['recipe']['batch_size']}" if steps else "learned exactly"
    return {
        "seconds": Figure(spent, None, None, what),
        "rows_per_second": Figure(gone_through / max(1e-9, spent), None, None, what),
    }


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within this, SIGTERM is what Ctrl-C is; the training loop has its own handlers for both."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free(path: Path) -> Path:
    """`path`, or the next of its name with a number that nobody has: an earlier comparison's runs are kept."""
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number}"), number + 1
    return free


def _finish(work: _Work, json: bool) -> None:
    """Advice, files, and what stands on the terminal."""
    found = work.found
    found.advice = advise(found.rows, found.data)
    checkpoint.write_json(work.out / "comparison.json", found.to_dict())
    write_page(found, work.data, None if work.judge is None else work.judge.real)
    console = Console()
    if json:
        console.print_json(data=found.to_dict())
        return
    title = f"{found.data}: {found.training_seconds:g} s of training a model"
    for table in terminal_tables(found.rows, title, console.width):
        console.print(table)
        console.print()
    for row in found.rows:
        if row.status != "measured" or (row.reason and row.model != BASELINE):
            status = "" if row.status == "measured" else f"{row.status}. "
            console.print(Text(f"{row.model}: {status}{row.reason}"))
    if found.left_out:
        names = ", ".join(found.left_out)
        console.print(Text(f"Left out, for they need longer: {names} (--minutes gives it, --models names them)."))
    console.print(Text(found.advice.summary, style="bold"))
    for rule in found.advice.rules:
        console.print(
            Text.assemble((f"{rule.claim} ", "italic"), (f"{rule.verdict.capitalize()}. ", "bold"), rule.evidence)
        )
    console.print(Text(f"\nSamples are compared in {found.extractor}."))
    console.print(Text(f"The page with pictures: {found.path}"))


# -- progress ---------------------------------------------------------------------------------------------------------


class _TimeLeft(ProgressColumn):
    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def render(self, task: Task) -> Text:
        left = max(0, round(self.end - time.monotonic()))
        return Text(f"{left // 60}:{left % 60:02d} left", style="cyan")


class _Display(contextlib.AbstractContextManager["_Display"]):
    """One line of progress over the whole comparison, and one line for each model that is done; on standard error."""

    def __init__(self, name: str, seconds: float):
        self.started, self.seconds = time.monotonic(), seconds
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[doing]}"),
            _TimeLeft(self.started + seconds),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(name, total=seconds, doing="")

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def model(self, title: str) -> None:
        """A model's turn begins."""
        self.bar.update(self.task, description=title)
        self.says("training")

    def says(self, doing: str) -> None:
        """What is being done now."""
        spent = min(self.seconds, time.monotonic() - self.started)
        self.bar.update(self.task, completed=spent, doing=doing)

    def done(self, row: Row) -> None:
        """A model's turn ends: its row in a line."""
        found = [(COLUMN[key], row.figures[key]) for key in _SHOWN if key in row.figures]
        shown = [f"{column.heading} {density_mark(column, figure)}{column.show(figure)}" for column, figure in found]
        self.console.print(f"{row.model}: {row.status}{', ' if shown else ''}{', '.join(shown)}", markup=False)

    # A watcher of the training loop.

    def logged(self, record: dict[str, float], fraction: float, seconds: float) -> None:
        self.says(f"training {fraction:4.0%}, step {record['step']}")

    def said(self, message: str) -> None:
        self.console.print(message, markup=False)


_SHOWN = ("bits", *QUALITY.values(), "ngrams", "probe", "auroc")
