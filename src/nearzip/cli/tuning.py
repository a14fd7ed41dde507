"""nearzip tune."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from nearzip.attached import without_attached
from nearzip.budget import STRATEGIES, Plan, Trial
from nearzip.budget import tune as find_plan
from nearzip.budget.tune import parameters_of
from nearzip.cli.calibrating import calibrated_plan
from nearzip.cli.console import (
    check_streams,
    facts,
    human_bytes,
    output_of,
    print_json,
    rows_table,
    show,
    watching_trials,
)
from nearzip.cli.functions import load_function
from nearzip.cli.running import common_options, showing_warnings
from nearzip.cli.transfer import force_option, options_of, rename_option, renames_of
from nearzip.errors import missing_extra
from nearzip.fileio import check_outputs
from nearzip.inputs import open_input
from nearzip.tensors import Array

__all__ = ["max_loss_of", "tune", "workers"]

_FILE = click.Path(path_type=str)


@click.command()
@click.argument("new", type=_FILE)
@click.option("--base", type=_FILE, metavar="OLD", help="What the reader already holds; tunes an update.")
@click.option(
    "--evaluate",
    required=True,
    metavar="PACKAGE.MODULE:FUNCTION",
    help="Takes a dict of arrays, returns a number or a dict of numbers by metric; higher is better. Or an evaluator "
    "that nearzip.torch.evaluator made.",
)
@click.option(
    "--max-loss",
    "max_losses",
    multiple=True,
    metavar="X|PATTERN=X",
    help="Largest loss, in evaluate's units or as a share of the original's score (0.2%); by metric or pattern "
    "('class/*=0.02') if there are several. Repeatable.  [required without max_bytes]",
)
@click.option("-o", "--output", required=True, type=_FILE, metavar="PLAN.json", help="The plan to write.")
@click.option("--method", default="nearzip", show_default=True, help="See 'nearzip methods'.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A fixed option of the method. Repeatable.")
@click.option("--knob", metavar="NAME", help="What to turn: abs, rel, pwrel, rms, step, or an option such as bits.")
@click.option(
    "--calibrate",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="Calibrate on sample batches; FUNCTION returns (module, batches). Pass the same FUNCTION to compress --plan.",
)
@click.option("--strategy", type=click.Choice(STRATEGIES), default="nearzip", show_default=True)
@click.option(
    "--strategy-set",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the strategy; items of lists between commas. deepsz: max_bytes and others; delta-dnn: "
    "candidates, phi=points and others. Repeatable.",
)
@click.option("--evaluations", type=click.IntRange(min=1), help="Most trials of strategy nearzip.")
@click.option(
    "--trials", type=_FILE, metavar="DIR", help="File every trial here; an interrupted search goes on from it."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Global generators start from it at every trial.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True),
    metavar="P",
    help="0.95: the loss must be shown to be within its budget with 95 % confidence. The evaluator needs samples.",
)
@rename_option
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Trials at once, each in a process of its own.")
@force_option
@common_options
def tune(
    new: str,
    base: str | None,
    evaluate: str,
    max_losses: Sequence[str],
    output: str,
    method: str,
    settings: Sequence[str],
    knob: str | None,
    calibrate: str | None,
    strategy: str,
    parameters: Sequence[str],
    evaluations: int | None,
    trials: str | None,
    seed: int,
    confidence: float | None,
    renames: Sequence[str],
    jobs: int | None,
    force: bool,
    as_json: bool,
) -> int:
    """Find the settings that make the smallest archive of NEW within an accuracy budget.

    Every trial is stored, restored from its bytes and evaluated. 'nearzip compress NEW --plan PLAN.json' applies what
    was found. Modules are looked for in the current folder first.
    """
    if calibrate is not None and (method != "nearzip" or settings or knob or strategy != "nearzip"):
        raise click.UsageError("--calibrate is for the method and the strategy nearzip, without --set and --knob")
    on_stdout = check_streams(outputs=[output])
    check_outputs([output_of(output)], [new, base], force)
    started = time.perf_counter()
    how = parameters_of(strategy, options_of(parameters, "--strategy-set", "KEY=VALUE"))
    if not max_losses and "max_bytes" not in how and strategy != "delta-dnn":
        raise click.UsageError(
            "--max-loss is missing; only the strategy delta-dnn (0.2%) and a deepsz search for --strategy-set "
            "max_bytes=N need none"
        )
    max_loss = max_loss_of(max_losses) if max_losses else None
    function = load_function("--evaluate", evaluate)
    with showing_warnings() as warned, watching_trials("tune", as_json, best=_best_so_far) as watch, workers(jobs):
        search: dict[str, Any] = {
            "evaluations": evaluations, "trials": trials, "seed": seed, "confidence": confidence,
            "rename": renames_of(renames), "progress": watch,
        }  # fmt: skip
        if calibrate is not None:
            assert max_loss is not None
            plan = calibrated_plan(new, base, calibrate, function, max_loss, **search)
        else:
            plan = find_plan(
                _arrays(new), None if base is None else _arrays(base), method, function, max_loss,
                options=options_of(settings), knob=knob, strategy=strategy, **search, **how,
            )  # fmt: skip
    plan.save(output_of(output), force=force)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            "tune", {"output": output, "seconds": seconds, "warnings": warned, "plan": plan.to_json()}, err=on_stdout
        )
    else:
        show(_table(plan), "", _summary(plan, output, seconds), err=on_stdout)
    return 1 if warned else 0


# ---- what was asked for ----------------------------------------------------------------------------------------


def max_loss_of(texts: Sequence[str]) -> float | str | dict[str, float | str]:
    """Budgets as they are typed: one for all metrics, or NAME=X for each."""
    pairs = [text.rpartition("=") for text in texts]
    if len(pairs) == 1 and not pairs[0][1]:
        return _number(texts[0])
    found: dict[str, float | str] = {}
    for text, (name, equals, value) in zip(texts, pairs, strict=True):
        if not equals or not name or name in found:
            raise click.UsageError(f"--max-loss takes one number, or NAME=X once for each metric, not {text!r}")
        found[name] = _number(value)
    return found


def _number(text: str) -> float | str:
    """A number, or text for a share of the original's score."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise click.UsageError(f"--max-loss takes a number or a share such as 0.2%, not {text!r}") from None
    return text.strip() if text.strip().endswith("%") else number


def _arrays(path: str) -> dict[str, Array]:
    with contextlib.closing(open_input(path)) as checkpoint:
        return {name: array.copy() for name, array in without_attached(checkpoint).arrays()}


@contextlib.contextmanager
def workers(jobs: int | None) -> Iterator[None]:
    """joblib's processes; without `jobs` whatever joblib does by itself, which is one trial at a time."""
    if jobs is None:
        yield
        return
    try:
        import joblib
    except ImportError:
        raise missing_extra("joblib", "tune", "--jobs") from None
    with joblib.parallel_config("loky", n_jobs=jobs):
        yield


# ---- messages ---------------------------------------------------------------------------------------------------


def _best_so_far(best: Trial | None) -> str:
    return "tune: nothing within the budget yet" if best is None else f"tune: best {human_bytes(best.n_bytes)}"


def _table(plan: Plan) -> Any:
    names = list(plan.original)
    columns = {"setting": "left", "size": "right", **{f"loss of {name}": "right" for name in names}, "": "left"}
    rows = []
    for trial in plan.trials:
        word = "chosen" if trial is plan.chosen else "" if trial.fits else "over"
        losses = [_bounded(trial, name) for name in names]
        rows.append([str(trial.codings), human_bytes(trial.n_bytes), *losses, word])
    return rows_table(columns, rows)


def _loss(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "no number"


def _bounded(trial: Trial, name: str) -> str:
    """A loss, with its upper bound where there is one."""
    loss = _loss(trial.losses[name])
    return f"{loss} (at most {_loss(trial.intervals[name].upper)})" if name in trial.intervals else loss


def _summary(plan: Plan, output: str, seconds: float) -> str:
    budget = f"; at most {_by_metric(plan.max_loss)}" if plan.max_loss else ""
    return facts([
        ("wrote", output),
        ("size", f"{human_bytes(plan.original_bytes)} of tensors -> {human_bytes(plan.nbytes)}: "
                 f"{plan.original_bytes / plan.nbytes:.2f}x smaller"),
        ("loss", f"{_by_metric(plan.losses)}, measured on the stored archive{budget}"),
        *([("shown", _shown(plan))] if plan.confidence is not None else []),
        ("original", _by_metric(plan.original)),
        ("setting", plan.chosen.codings),
        ("trials", f"{len(plan.trials)}, and twice the original"),
        ("time", f"{seconds:.2f} s"),
    ])  # fmt: skip


def _shown(plan: Plan) -> str:
    """The upper bounds of the losses, and how many samples show them."""
    bounds = [f"{name} at most {found.upper:.6g} ({found.n} samples)" for name, found in plan.intervals.items()]
    return f"with {100 * (plan.confidence or 0):g} % confidence: {', '.join(bounds)}"


def _by_metric(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_loss(value)}" for name, value in values.items())
