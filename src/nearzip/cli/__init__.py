"""The command line: each command calls one public function and formats what it returns.

This module imports next to nothing, so that Ctrl-C is handled from the first moment; the commands are in `commands`.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

#: Not from `typing`, which takes long to import; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

__all__ = ["cli", "main"]

_INTERRUPTED = b"nearzip: error: interrupted; no part of a file was left behind\n"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing is being written before a command begins and after it has ended."""
    os.write(2, _INTERRUPTED)
    os._exit(130)


def main() -> None:
    """Entry point of `nearzip`. Ends the process with the exit code."""
    try:
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _terminate)  # unwinds, so that no part of a file is left behind
        handled = True
    except ValueError:  # not in the main thread
        handled = False
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal cannot show are no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from nearzip.cli.commands import cli as group

    try:
        group.main()
    except KeyboardInterrupt:
        os.write(2, _INTERRUPTED)
        sys.exit(130)
    finally:
        if handled:
            signal.signal(signal.SIGINT, _leave)


def __getattr__(name: str) -> Any:
    if name != "cli":
        raise AttributeError(f"module 'nearzip.cli' has no attribute {name!r}")
    from nearzip.cli.commands import cli as group

    return group
