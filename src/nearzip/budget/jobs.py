"""Runs trials in parallel through joblib, as the caller's `parallel_config` says."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from nearzip.errors import Error, UsageError

__all__ = ["in_parallel", "n_workers"]


def n_workers() -> int:
    """How many trials the caller's joblib configuration runs at once; 1 without joblib."""
    try:
        import joblib
    except ImportError:
        return 1
    return int(joblib.effective_n_jobs(None))


def in_parallel(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    """Index and result of each job, in order of completion."""
    try:
        import joblib
    except ImportError:
        yield from ((i, function(*job)) for i, job in enumerate(jobs))
        return
    calls = [joblib.delayed(_numbered)(i, function, job) for i, job in enumerate(jobs)]
    try:
        parallel = joblib.Parallel(return_as="generator_unordered")
    except ValueError:  # a backend that gives its results all at once
        parallel = joblib.Parallel()
    try:
        yield from parallel(calls)
    except pickle.PicklingError as error:
        raise UsageError(
            f"evaluate cannot be sent to another process ({error}); make it a function of a module, or run trials with "
            "joblib.parallel_config('threading')"
        ) from error
    except BrokenExecutor as error:
        raise Error(
            f"a worker ended before its trial did, perhaps for want of memory ({error}); run fewer at once, and give "
            "trials= to go on from those that are done"
        ) from error


def _numbered(i: int, function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[int, Any]:
    return i, function(*job)
