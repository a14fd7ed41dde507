"""The command line: each command calls one public function and formats what it returns."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

import click

from nearzip.cli.certify import certify
from nearzip.cli.demo import demo
from nearzip.cli.looking import compare, inspect, methods
from nearzip.cli.pulling import pull
from nearzip.cli.reporting import report
from nearzip.cli.running import OneLineGroup
from nearzip.cli.store import store
from nearzip.cli.transfer import compress, decompress
from nearzip.cli.tuning import tune
from nearzip.version import __version__

__all__ = ["cli", "main"]


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearzip")
def cli() -> None:
    """Compress neural networks, and updates between their versions, within an error bound that is kept.

    Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 warnings, 2 usage, 3 error, 10 no such file,
    11 somebody else is writing, 12 corrupt, 13 format newer than this release, 14 limit exceeded, 15 bound or budget
    missed, 130 interrupted.
    """


for command in (compress, decompress, tune, inspect, compare, certify, methods, store, demo):
    cli.add_command(command)
store.add_command(pull)
store.add_command(report)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point of `nearzip`. Ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal cannot show are no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # unwinds, so that no part of a file is left behind
    cli.main()
