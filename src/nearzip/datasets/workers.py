"""Work on parts of a data set through joblib, as the caller's `parallel_config` says; results in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nearzip.errors import missing_extra

__all__ = ["ordered", "processes"]


@contextlib.contextmanager
def processes(n: int) -> Iterator[None]:
    """Inside, `ordered` uses so many processes. Raises MissingExtraError without joblib."""
    if n == 1:
        yield
        return
    try:
        import joblib
    except ImportError:
        raise missing_extra("joblib", "tune", "more than one process") from None
    with joblib.parallel_config("loky", n_jobs=n):
        yield


def ordered(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """`function(*job)` for each job, in the order of the jobs. Without joblib, or with one worker, here."""
    try:
        import joblib
    except ImportError:
        yield from (function(*job) for job in jobs)
        return
    if joblib.effective_n_jobs(None) == 1:
        yield from (function(*job) for job in jobs)
        return
    calls = (joblib.delayed(function)(*job) for job in jobs)
    try:
        parallel = joblib.Parallel(return_as="generator")
    except ValueError:  # a backend that gives its results all at once
        parallel = joblib.Parallel()
    yield from parallel(calls)
