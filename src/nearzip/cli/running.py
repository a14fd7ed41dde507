"""How a command runs and fails: one line, an exit code, a traceback only with --debug."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from nearzip.cli.console import print_json_line, safe, warn
from nearzip.errors import Error

__all__ = ["OneLineGroup", "common_options", "showing_warnings"]

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = "interrupted; no part of a file was left behind"
#: As a shell reports a process that died of SIGPIPE.
_BROKEN_PIPE = 141


def common_options(function: F) -> F:
    """--json and --debug."""
    function = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure.")(function)


@contextlib.contextmanager
def showing_warnings() -> Iterator[list[str]]:
    """Warnings of the public functions as lines on stderr, at once; all of them in the list."""
    shown: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        shown.append(str(message))
        warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield shown


class _StoppedError(Exception):
    """Carries what Click would handle in its own way past it."""


class OneLineGroup(click.Group):
    """Ends the process with the documented exit code, and says why in one line on stderr.

    With --json that line is a JSON document with `message_type` "exit_error".
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise _StoppedError from error

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = "nearzip", **extra: Any
    ) -> None:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        try:
            code = super().main(arguments, "nearzip", **extra)
            sys.stdout.flush()
        except Exception as stopped:
            error = stopped.__cause__ if isinstance(stopped, _StoppedError) else stopped
            code = _fail(error or stopped, "--debug" in options, "--json" in options)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(error: BaseException, debug: bool, as_json: bool) -> int:
    if isinstance(error, BrokenPipeError):
        _silence(sys.stdout)
        return _BROKEN_PIPE
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError) and error.ctx:
        # Since Click 8.2 a group without a command raises its help; before, it printed it and ended with 0.
        click.echo(error.ctx.get_help(), err=True)
        return 2
    code, message = _explain(error)
    with contextlib.suppress(OSError):  # stderr may be full, too
        if debug:
            traceback.print_exception(error)
        if as_json:
            kind = getattr(error, "kind", None) or type(error).__name__
            print_json_line({"message_type": "exit_error", "code": code, "error": kind, "message": message})
        else:
            click.echo(f"nearzip: error: {safe(message)}", err=True)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence(sys.stdout)
    return code


def _silence(stream: Any) -> None:
    """Nobody takes what is left in a stream; keep the interpreter's own flush at its end from complaining."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message."""
    if isinstance(error, Error):
        return error.exit_code, str(error)
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "nearzip"
        return 2, f"{error.format_message().rstrip('.')}; see '{command} --help'"
    if isinstance(error, click.ClickException):
        return 2, error.format_message()
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return 130, INTERRUPTED
    if isinstance(error, MemoryError):
        return 3, "out of memory; give fewer --threads, or a machine with more"
    if isinstance(error, OSError):
        # Errors with files are named where they happen; what is left is the output of the command itself.
        where = error.filename if isinstance(error.filename, (str, bytes)) else "standard output"
        return 3, f"{os.fsdecode(where)}: {'cannot write: ' if error.filename is None else ''}{error.strerror or error}"
    text = f"{type(error).__name__}: {error}"
    return 3, f"{text}; this is a fault of nearzip, please report it with what --debug shows"
