"""Every error that nearzip raises by name, with the exit code of its command line.

::

    Error (3)
    ├── UsageError (2)            an invalid argument or combination of arguments; also a ValueError
    ├── NotFoundError (10)        no such file, store, version or tensor; also a KeyError
    │   └── MissingFileError (10) no such file or folder; also a FileNotFoundError
    ├── BusyError (11)            another writer holds the lock or won the race
    ├── CorruptError (12)         data that is damaged or was not written by nearzip
    │   └── TruncatedError (12)   data that ends too early
    ├── NewerFormatError (13)     written by a newer release, which this one cannot read
    ├── LimitError (14)           would take more than the caller allows
    ├── BoundError (15)           the error bound cannot be kept
    ├── BudgetError (15)          the accuracy budget cannot be kept
    │   └── NotShownError (1)     the samples do not show whether it is kept
    ├── WrongBaseError (3)        the base is missing or not the one that the archive was made against
    ├── UnknownMethodError (3)    no recipe or stage of that name
    ├── PluginError (3)           a plug-in that cannot be loaded
    ├── StoreError (3)            a store that cannot do what was asked
    │   └── NoSpaceError (3)      the disk that holds it is full
    └── MissingExtraError (3)     an optional dependency is not installed; also an ImportError

    UpdateLostWarning (1)         nearly nothing of an update is kept; a UserWarning

Errors that Python has a word for are of that type as well, so that `except KeyError` and mappings' `get` work.
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
    "MissingFileError",
    "NewerFormatError",
    "NoSpaceError",
    "NotFoundError",
    "NotShownError",
    "PluginError",
    "StoreError",
    "TruncatedError",
    "UnknownMethodError",
    "UpdateLostWarning",
    "UsageError",
    "WrongBaseError",
]


class Error(Exception):
    """Root of all named errors. `exit_code` is what the command line returns."""

    exit_code = 3
    #: Name of the failure in the JSON of the command line, the same in every release; None: the name of the class.
    kind: str | None = None

    def __str__(self) -> str:
        """The message as it is: KeyError would show its `repr`, OSError take it for a number."""
        return str(self.args[0]) if len(self.args) == 1 else Exception.__str__(self)


class UsageError(Error, ValueError):
    """Invalid argument or combination of arguments."""

    exit_code = 2


class NotFoundError(Error, KeyError):
    """No such file, store, version or tensor."""

    exit_code = 10


class MissingFileError(NotFoundError, FileNotFoundError):
    """No such file or folder."""

    kind = "NotFoundError"

    def __new__(cls, *args: object) -> MissingFileError:
        # KeyError's comes first among the bases and cannot make an OSError: pickling as Dask does it calls it.
        return FileNotFoundError.__new__(cls, *args)


class BusyError(Error):
    """Another writer holds the lock or won the race; try again."""

    exit_code = 11


class CorruptError(Error):
    """Data that is damaged or was not written by nearzip."""

    exit_code = 12


class TruncatedError(CorruptError):
    """Data that ends too early."""


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


class NotShownError(BudgetError):
    """The samples do not show, with the confidence asked for, whether the accuracy budget is kept."""

    exit_code = 1


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


class UpdateLostWarning(UserWarning):
    """The error bound is so coarse that nearly nothing of an update is kept: a reader gets the base back."""


class MissingExtraError(Error, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional dependency: what needs it and how to install it."""
    return MissingExtraError(f"{purpose} needs {package}; install it with: pip install 'nearzip[{extra}]'")
