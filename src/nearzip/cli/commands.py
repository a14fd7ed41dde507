"""The commands, each imported when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click

from nearzip.cli.running import OneLineGroup
from nearzip.version import __version__

__all__ = ["cli"]

#: Where commands are: module and name.
_COMMANDS = {
    "compress": ("transfer", "compress"),
    "decompress": ("transfer", "decompress"),
    "tune": ("tuning", "tune"),
    "condense": ("condensing", "condense"),
    "inspect": ("looking", "inspect"),
    "compare": ("looking", "compare"),
    "certify": ("certify", "certify"),
    "methods": ("looking", "methods"),
    "store": ("store", "store"),
    "dataset": ("dataset", "dataset"),
    "average": ("federated", "average"),
    "demo": ("demo", "demo"),
}
#: What `nearzip --help` says of each, so that it loads none of them.
_SUMMARIES = {
    "compress": "Compress the network NEW, or the update that leads from OLD...",
    "decompress": "Restore an archive to a file of the format that it was made...",
    "tune": "Find the settings that make the smallest archive of NEW...",
    "condense": "Find how much of the trained network in NEW can go, retrain...",
    "inspect": "Show what an archive holds and how it is coded.",
    "compare": "Compare two networks: differences, linear fit, structural...",
    "certify": "Compare a network with its compressed self, sample by...",
    "methods": "List the methods, their options and defaults.",
    "store": "Keep versions of a network: small, verified, and restored...",
    "dataset": "Store image data sets in as few bytes as the accuracy of a...",
    "average": "Make the next model of a federated round: the weighted mean...",
    "demo": "Train a small network on real data, compress every epoch,...",
}
#: Commands of groups that have modules of their own.
_MORE = {
    "store": (("pulling", "pull"), ("reporting", "report")),
    "dataset": (("dataset_search", "tune"), ("dataset_search", "select")),
}


class _LazyGroup(OneLineGroup):
    """Loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *self.commands})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUMMARIES[name]) for name in self.list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in _COMMANDS:
            with _loading():
                self.add_command(_loaded(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)


def _loaded(name: str) -> click.Command:
    command: click.Command = _found(*_COMMANDS[name])
    if isinstance(command, click.Group):
        for place in _MORE.get(name, ()):
            command.add_command(_found(*place))
    return command


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"nearzip.cli.{module}"), name)


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """While modules load, Ctrl-C ends the process as `nearzip.cli.main` arranged; afterwards it unwinds the command."""
    yield
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearzip")
def cli() -> None:
    """Compress neural networks, and updates between their versions, within an error bound that is kept.

    Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 warnings, 2 usage, 3 error, 10 no such file,
    11 another process is writing, 12 corrupt, 13 format newer than this release, 14 limit exceeded, 15 bound or budget
    missed, 130 interrupted.
    """
