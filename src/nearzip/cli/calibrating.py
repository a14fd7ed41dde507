"""The parts of `nearzip compress` and `nearzip tune` that calibrate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from nearzip.api import FileReport
from nearzip.cli.functions import load_function
from nearzip.errors import Error, UsageError
from nearzip.fileio import Output
from nearzip.inputs import open_input

if TYPE_CHECKING:  # most commands need none of the search for plans
    from nearzip.budget import Plan

__all__ = ["calibrated_file", "calibrated_plan", "calibration_options"]

F = TypeVar("F", bound=Callable[..., Any])


def calibration_options(function: F) -> F:
    """--calibrate, --step and --kl."""
    options = (
        click.option(
            "--calibrate", metavar="PACKAGE.MODULE:FUNCTION",
            help="Calibrate on sample batches; FUNCTION returns (module, batches), and perhaps a "
            "nearzip.calibrate.Calibration. Needs --step, --kl, --bound or --plan.",
        ),
        click.option("--step", type=float, help="With --calibrate: distance between the levels of a weight."),
        click.option("--kl", type=float, help="With --calibrate: largest divergence of outputs, nats per prediction."),
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

    module, batches, calibration = _made(calibrate)
    return compress_file(new, output, module, batches, base, step=step, kl=kl, calibration=calibration, **more)


def calibrated_plan(
    new: str, base: str | None, calibrate: str, evaluate: Callable[..., Any], max_loss: Any, **more: Any
) -> Plan:
    """Tune a file with the module, batches and options that the user's function returns."""
    from nearzip.calibrate.tune import tune_file

    module, batches, calibration = _made(calibrate)
    with contextlib.closing(open_input(new)) as source:
        return tune_file(source, new, base, module, batches, evaluate, max_loss, calibration=calibration, **more)


def _made(calibrate: str) -> tuple[Any, Any, Any]:
    function = load_function("--calibrate", calibrate)
    try:
        returned = function()
    except Error:
        raise
    except Exception as error:
        raise UsageError(f"--calibrate {calibrate}: raised {type(error).__name__}: {error}") from error
    return _parts(calibrate, returned)


def _parts(calibrate: str, returned: Any) -> tuple[Any, Any, Any]:
    """Module, batches and a `Calibration`, which the function may give as a dict of its fields."""
    import torch

    from nearzip.calibrate import Calibration

    if not isinstance(returned, tuple) or len(returned) not in (2, 3) or not isinstance(returned[0], torch.nn.Module):
        raise UsageError(f"--calibrate {calibrate}: returns a module and batches, and perhaps a Calibration")
    module, batches, options = (*returned, {})[:3]
    if isinstance(options, Calibration):
        return module, batches, options
    known = sorted({"forward", "output", "n_batches", "damping", "fit_biases", "memory"})
    unknown = sorted(set(options) - {*known, "tune"}) if isinstance(options, Mapping) else [repr(options)]
    if unknown:
        raise UsageError(f"--calibrate {calibrate}: options are {', '.join(known)}, not {unknown[0]}")
    return module, batches, Calibration.of(None, options, calibrate)
