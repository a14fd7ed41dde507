"""What commands print with: tables and text for people, JSON for programs, progress on a terminal.

Names in files are hostile text: everything printed passes `safe`.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from nearzip.cli.tables import Rows, printed
from nearzip.display import human_bytes, safe
from nearzip.errors import UsageError
from nearzip.fileio import Output, refuse_terminal

if TYPE_CHECKING:  # Rich takes long to import, and few commands draw a bar
    from rich.progress import Progress

__all__ = [
    "Bar",
    "check_streams",
    "facts",
    "hint",
    "human_bytes",
    "input_of",
    "output_of",
    "print_json",
    "print_json_line",
    "progress",
    "rows_table",
    "safe",
    "show",
    "warn",
    "watching_trials",
]  # fmt: skip

#: Work that ends sooner shows no bar; also the least time between two status lines.
_PATIENCE = 1.0
#: The same for lines in a log.
_LOG_PATIENCE = 10.0


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def print_json(command: str, document: Mapping[str, Any], err: bool = False) -> None:
    """The one document on stdout; on stderr (`err`) where stdout carries data."""
    whole = {"message_type": "summary", "command": command, **document}
    click.echo(json.dumps(_plain(whole), indent=2, allow_nan=False), err=err)


def print_json_line(document: Mapping[str, Any]) -> None:
    """A status line or an error, on stderr."""
    click.echo(json.dumps(_plain(document), allow_nan=False), err=True)


def show(*items: Any, err: bool = False) -> None:
    """Print text and tables to stdout, or to stderr (`err`) where stdout carries data. Strings are taken to be safe
    already.
    """
    for item in items:
        click.echo(printed(item, err) if isinstance(item, Rows) else item, err=err)


# ---- streams ---------------------------------------------------------------------------------------------------

#: Names of stdout: what else is printed must not end up in the data.
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def output_of(name: str) -> Output:
    """Where data goes: "-" is stdout. Raises UsageError if that is a terminal."""
    if name not in _STDOUT:
        return name
    stream = sys.stdout.buffer
    refuse_terminal(stream)
    return stream


def input_of(name: str) -> str | BinaryIO:
    """Where data comes from: "-" is stdin. Raises UsageError if that is a terminal."""
    if name != "-":
        return name
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal; give a file name, or redirect the input")
    return sys.stdin.buffer


def check_streams(inputs: Iterable[str | None] = (), outputs: Iterable[str | None] = ()) -> bool:
    """Whether stdout carries data. Raises UsageError for two inputs or two outputs called "-"."""
    n_in, n_out = sum(name == "-" for name in inputs), sum(name in _STDOUT for name in outputs)
    if n_in > 1 or n_out > 1:
        raise UsageError(f"'-' is given for two {'inputs' if n_in > 1 else 'outputs'}; name a file for one of them")
    return n_out == 1


# ---- messages --------------------------------------------------------------------------------------------------


def hint(text: str) -> None:
    """Print a message to stderr."""
    click.echo(f"nearzip: {safe(text)}", err=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    click.echo(f"nearzip: warning: {safe(text)}", err=True)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Lines of name and value; pairs whose value is None are left out."""
    kept = [(name, safe(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in kept), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in kept)


def rows_table(columns: Mapping[str, str], rows: Iterable[Iterable[object]]) -> Rows:
    """A table; `columns` maps headings to "left" (text) or "right" (numbers)."""
    return Rows(columns, rows)


@contextlib.contextmanager
def progress(command: str, as_json: bool, unit: str = "bytes") -> Iterator[Callable[[int, int], None] | None]:
    """A callback for work done and work in all.

    On a terminal it draws a bar once the work has lasted a second. With --json it writes status lines to stderr, at
    most one a second. Otherwise, into a log, it writes a line once the work has lasted some seconds, and then ever more
    rarely.
    """
    if as_json:
        yield _status_lines(command, unit)
    elif not sys.stderr.isatty():
        yield _log_lines(command, unit)
    else:
        bar = Bar(command, unit)
        try:
            yield bar
        finally:
            bar.stop()


def _status_lines(command: str, unit: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PATIENCE:
            last = now
            print_json_line({
                "message_type": "status", "command": command, f"{unit}_done": done, f"{unit}_total": total,
                "seconds": round(now - start, 3),
            })  # fmt: skip

    return report


def _log_lines(command: str, unit: str) -> Callable[[int, int], None]:
    start = time.monotonic()
    wait = _LOG_PATIENCE

    def report(done: int, total: int) -> None:
        nonlocal wait
        seconds = time.monotonic() - start
        if seconds >= wait and done < total:
            wait = seconds + max(_LOG_PATIENCE, seconds / 2)
            said = [human_bytes(n) if unit == "bytes" else f"{n:,}" for n in (done, total)]
            what = "" if unit == "bytes" else f" {unit}"
            hint(f"{command}: {said[0]} of {said[1]}{what}, {100 * done // total} %, {seconds:.0f} s")

    return report


class Bar:
    """A bar on stderr, once the work has lasted a second. Called with work done, work in all, and what to say."""

    def __init__(self, command: str, unit: str):
        self._command = command
        self._start = time.monotonic()
        self._unit = unit
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int, note: str | None = None) -> None:
        if self._progress is None and time.monotonic() - self._start < _PATIENCE:
            return
        if self._progress is None:
            self._progress = self._begun(total)
        self._progress.update(self._task, completed=done, total=total, description=note or self._command)

    def _begun(self, total: int) -> Progress:
        from rich import progress as bars
        from rich.console import Console

        amount = bars.DownloadColumn() if self._unit == "bytes" else bars.MofNCompleteColumn()
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), amount, bars.TimeRemainingColumn())
        begun = bars.Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = begun.add_task(self._command, total=total)
        begun.start()
        return begun

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextlib.contextmanager
def watching_trials(
    command: str, as_json: bool, unit: str = "trials", best: Callable[[Any], str] | None = None
) -> Iterator[Callable[[Any], None] | None]:
    """What a search calls with its status after every trial: a line of JSON, or a bar on a terminal.

    `best`: words for the best of a status so far, in place of the command's name before the bar.
    """
    if as_json:
        yield lambda status: print_json_line({
            "message_type": "status", "command": command, "trials_done": status.done, "trials_most": status.most,
            "latest": status.latest and status.latest.to_json(), "best": status.best and status.best.to_json(),
        })  # fmt: skip
    elif not sys.stderr.isatty():
        yield None
    else:
        bar = Bar(command, unit)
        try:
            yield lambda status: bar(status.done, status.most, *([] if best is None else [best(status.best)]))
        finally:
            bar.stop()
