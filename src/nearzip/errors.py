"""Every error that nearzip raises by name, with the exit code of its command line.

::

    Error (3)
    ├── UsageError (2)            an argument that cannot be meant
    ├── NotFoundError (10)        no such file, store, version or tensor
    ├── BusyError (11)            somebody else holds the lock or won the race
    ├── CorruptError (12)         bytes that no writer of ours wrote
    │   └── TruncatedError (12)   bytes that end too early
    ├── NewerFormatError (13)     written by a release that this one cannot read
    ├── LimitError (14)           would take more than the caller allows
    ├── BoundError (15)           the error bound cannot be kept
    ├── BudgetError (15)          the accuracy budget cannot be kept
    ├── WrongBaseError (3)        the base is missing or not the one that the archive was made against
    ├── UnknownMethodError (3)    no recipe or stage of that name
    ├── PluginError (3)           a plug-in that cannot be loaded
    ├── StoreError (3)            a store that cannot do what was asked
    │   └── NoSpaceError (3)      the disk that holds it is full
    └── MissingExtraError (3)     an optional dependency is not installed
"""

from __future__ import annotations

__all__ = [
    "BoundError",
    "BudgetError",
    "BusyError",
    "CorruptError",
    "Error",
    "LimitError",
    "MissingExtraError",
    "NewerFormatError",
    "NoSpaceError",
    "NotFoundError",
    "PluginError",
    "StoreError",
    "TruncatedError",
    "UnknownMethodError",
    "UsageError",
    "WrongBaseError",
]


class Error(Exception):
    """Root of all named errors. `exit_code` is what the command line returns."""

    exit_code = 3


class UsageError(Error):
    """An argument that cannot be meant."""

    exit_code = 2


class NotFoundError(Error):
    """No such file, store, version or tensor."""

    exit_code = 10


class BusyError(Error):
    """Somebody else holds the lock or won the race; try again."""

    exit_code = 11


class CorruptError(Error):
    """Bytes that no writer of ours wrote: damaged or hostile."""

    exit_code = 12


class TruncatedError(CorruptError):
    """Bytes that end too early."""


class NewerFormatError(Error):
    """Written by a release whose files this one cannot read."""

    exit_code = 13


class LimitError(Error):
    """Reading would take more memory than the caller allows."""

    exit_code = 14


class BoundError(Error):
    """The error bound cannot be kept."""

    exit_code = 15


class BudgetError(Error):
    """The accuracy budget cannot be kept."""

    exit_code = 15


class WrongBaseError(Error):
    """The base is missing, or is not the one that the archive was made against."""


class UnknownMethodError(Error):
    """No recipe or stage of that name."""


class PluginError(Error):
    """A plug-in that cannot be loaded; the message names it and its package."""


class StoreError(Error):
    """A store that cannot do what was asked."""


class NoSpaceError(StoreError):
    """The disk that holds a store is full; what was committed is safe."""


class MissingExtraError(Error):
    """An optional dependency is not installed; the message names the extra."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional dependency: what needs it and how to install it."""
    return MissingExtraError(f"{purpose} needs {package}; install it with: pip install 'nearzip[{extra}]'")
