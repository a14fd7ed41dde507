"""The parts of `nearzip compress` and `nearzip tune` that calibrate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import click

from nearzip.api import FileReport, open_input
from nearzip.budget import Plan
from nearzip.cli.functions import load_function
from nearzip.errors import Error, UsageError
from nearzip.fileio import Output

__all__ = ["calibrated_file", "calibrated_plan", "calibration_options"]

F = TypeVar("F", bound=Callable[..., Any])

_CHOICES = {"forward", "output", "n_batches", "tune", "damping"}


def calibration_options(function: F) -> F:
    """--calibrate, --step and --kl."""
    options = (
        click.option(
            "--calibrate", metavar="PACKAGE.MODULE:FUNCTION",
            help="Round as a network on a few batches says; the function returns both. Needs --step, --kl, --bound or "
            "--plan.",
        ),
        click.option("--step", type=float, help="With --calibrate: distance between the levels of a weight."),
        click.option("--kl", type=float, help="With --calibrate: most divergence of the answers, nats per prediction."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def calibrated_file(
    new: str | BinaryIO,
    output: Output,
    base: str | BinaryIO | None,
    calibrate: str,
    step: float | None,
    kl: float | None,
    **more: Any,
) -> FileReport:
    """Compress a file with the module, batches and options that the user's function returns."""
    from nearzip.calibrate import compress_file

    module, batches, choices = _made(calibrate)
    return compress_file(new, output, module, batches, base, step=step, kl=kl, **choices, **more)


def calibrated_plan(
    new: str, base: str | None, calibrate: str, evaluate: Callable[..., Any], max_loss: Any, **more: Any
) -> Plan:
    """Tune a file with the module, batches and options that the user's function returns."""
    from nearzip.calibrate.planning import tune_file

    module, batches, choices = _made(calibrate)
    with contextlib.closing(open_input(new)) as source:
        return tune_file(source, new, base, module, batches, evaluate, max_loss, **choices, **more)


def _made(calibrate: str) -> tuple[Any, Any, dict[str, Any]]:
    function = load_function("--calibrate", calibrate)
    try:
        answer = function()
    except Error:
        raise
    except Exception as error:
        raise UsageError(f"--calibrate {calibrate}: raised {type(error).__name__}: {error}") from error
    return _parts(calibrate, answer)


def _parts(calibrate: str, answer: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Module, batches and, if the function gives them, options."""
    import torch

    if not isinstance(answer, tuple) or len(answer) not in (2, 3) or not isinstance(answer[0], torch.nn.Module):
        raise UsageError(f"--calibrate {calibrate}: returns a module and batches, and perhaps a dict of options")
    choices = answer[2] if len(answer) == 3 else {}
    unknown = sorted(set(choices) - _CHOICES) if isinstance(choices, Mapping) else [repr(choices)]
    if unknown:
        raise UsageError(f"--calibrate {calibrate}: options are {', '.join(sorted(_CHOICES))}, not {unknown[0]}")
    return answer[0], answer[1], dict(choices)
