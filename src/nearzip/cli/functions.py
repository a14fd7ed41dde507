"""Functions of the user's, named on the command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from nearzip.errors import Error, UsageError

__all__ = ["call_function", "load_function"]


def load_function(option: str, spelled: str) -> Callable[..., Any]:
    """The function (or evaluator) PACKAGE.MODULE:FUNCTION, looked for in the current folder first.

    Errors name the option.
    """
    module_name, colon, name = spelled.partition(":")
    if not colon or not module_name or not name:
        raise click.UsageError(f"{option} takes PACKAGE.MODULE:FUNCTION, not {spelled!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Error:
        raise
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} {spelled}: {error}") from error
    except Exception as error:
        raise UsageError(f"{option} {spelled}: importing it raised {type(error).__name__}: {error}") from error
    if not callable(found) and not callable(getattr(type(found), "evaluation", None)):
        raise UsageError(f"{option} {spelled}: is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def call_function(option: str, spelled: str, *arguments: Any) -> Any:
    """What the function returns. What it raises is named as its own, not taken for a fault of nearzip."""
    function = load_function(option, spelled)
    try:
        return function(*arguments)
    except (Error, MemoryError):
        raise
    except Exception as error:
        raise UsageError(f"{option} {spelled} raised {type(error).__name__}: {error}; --debug shows where") from error
