"""Watchers of the loop: a progress bar on the terminal, and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Bar:
    """One line that says how far a run is, what its losses are and how long it will take."""

    def __init__(self, title: str):
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(title, total=1.0, losses="")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def logged(self, record: dict[str, float], fraction: float, seconds: float) -> None:
        shown = {name: value for name, value in record.items() if name == "loss" or name.endswith(("/loss", "_loss"))}
        losses = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.bar.update(self.task, completed=fraction, losses=f"step {record['step']}  {losses}")

    def said(self, message: str) -> None:
        self.bar.console.print(message, highlight=False, soft_wrap=True)


@contextmanager
def counting(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A line on the terminal that says how much of `total` is done, and how long the rest takes; gone when it is."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(title, total=total)
    with bar:
        yield lambda done: bar.advance(task, done)


class TensorBoard:
    """Every number of the metrics log as a TensorBoard scalar, under the run folder.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def logged(self, record: dict[str, float], fraction: float, seconds: float) -> None:
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(record["step"]))
        self.writer.flush()

    def said(self, message: str) -> None:
        """TensorBoard shows numbers; messages go to the terminal."""
