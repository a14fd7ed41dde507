"""nearzip certify: what a compressed network still does the same, under limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from nearzip.cli.console import hint, print_json, progress, rows_table, show
from nearzip.cli.functions import call_function
from nearzip.cli.running import common_options
from nearzip.cli.transfer import force_option
from nearzip.correctness import AnswersReport, Certificate, TaskComparison, compare_answers
from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.correctness.tasks import needed
from nearzip.errors import UsageError
from nearzip.fileio import check_outputs

__all__ = ["certify"]

#: Tasks whose lack of samples is explained on the terminal.
_MAX_HINTS = 8
#: Exit codes by verdict, as for bounds and budgets.
_CODES = {KEPT: 0, NOT_SHOWN: 1, BROKEN: 15}
_FILE = click.Path(path_type=str)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=_FILE, metavar="MODEL.nz | BASE_DIR QUANTIZED_DIR")
@click.option("--judge", metavar="PACKAGE.MODULE:FUNCTION",
              help="Returns the arguments of nearzip.correctness.certify as a dict: network, fresh_data, tuned_on and "
                   "others.")  # fmt: skip
@click.option("--answers", is_flag=True,
              help="Compare logs of an evaluation harness (lm_eval --log_samples), of both networks.")  # fmt: skip
@click.option("--check", type=_FILE, metavar="CERT.json",
              help="Check a certificate of MODEL.nz; with --judge, also measure again.")  # fmt: skip
@click.option("--limit", "limits", multiple=True, metavar="[PATTERN=]LOSS",
              help="What may be lost: 0.02 is two points of accuracy; top1=0.002, 'class/*=0.02', 'mmlu_*=0.03'. "
                   "Repeatable.  [default: the plan's; 0.02 with --answers]")  # fmt: skip
@click.option("--plan", type=_FILE, metavar="PLAN.json", help="What 'nearzip tune' wrote for MODEL.nz.")
@click.option("--base", type=_FILE, metavar="OLD", help="What MODEL.nz was made against.")
@click.option("--metric", "metrics", multiple=True, metavar="[PATTERN=]METRIC[,FILTER]",
              help="A metric to measure beside the limited ones; with --answers the metric to compare, such as "
                   "acc_norm. Repeatable.")  # fmt: skip
@click.option("--confidence", type=click.FloatRange(0.5, 1, max_open=True), metavar="P",
              help="Of all verdicts together.  [default: the plan's, or 0.95]")  # fmt: skip
@click.option("--seed", type=int, help="Of PyTorch's generator, with --judge.  [default: 0]")
@click.option(
    "-o", "--output", type=_FILE, metavar="OUT.json", help="Write the certificate, or all figures of answers."
)
@click.option("--page", type=_FILE, metavar="OUT.html", help="Write one self-contained HTML page.")
@force_option
@common_options
def certify(
    paths: Sequence[str],
    judge: str | None,
    answers: bool,
    check: str | None,
    limits: Sequence[str],
    plan: str | None,
    base: str | None,
    metrics: Sequence[str],
    confidence: float | None,
    seed: int | None,
    output: str | None,
    page: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Compare a network with its compressed self, sample by sample, under limits.

    With --judge: MODEL.nz is measured beside the original network on fresh data; the certificate says what was shown.
    With --answers: BASE_DIR and QUANTIZED_DIR hold the per-sample logs that lm-evaluation-harness wrote, whatever
    compressed the network; neither network is needed. With --check: a certificate is checked.

    Exit codes: 0 every loss is shown to be within its limit, 1 some are not shown, 15 a limit is broken.
    """
    _check_modes(paths, judge, answers, check, {"--plan": plan, "--base": base, "--seed": seed})
    check_outputs([output, page], [*paths, plan, base, check], force)
    if answers:
        found: AnswersReport | Certificate = _answers(paths, limits, metrics, confidence, as_json)
    elif check is not None:
        if limits or metrics or output or page or plan or confidence is not None:
            raise click.UsageError("--check takes --judge and --base; limits and metrics are the certificate's")
        return _checked(check, paths[0], judge, base, as_json)
    else:
        given: dict[str, Any] = {
            "limits": {name: _number(text) for name, text in _pairs(limits, "--limit").items()} or None,
            "plan": None if plan is None else _plan(plan), "base": base, "confidence": confidence,
            "seed": seed, "metrics": list(metrics) or None,
        }  # fmt: skip
        found = _measured(paths[0], str(judge), {name: value for name, value in given.items() if value is not None},
                          as_json)  # fmt: skip
    if output is not None:
        found.save(output, force=force)
    if page is not None:
        found.page(page, force=force)
    _report(found, as_json)
    return _CODES[found.verdict]


def _check_modes(
    paths: Sequence[str], judge: str | None, answers: bool, check: str | None, own: Mapping[str, object]
) -> None:
    if answers and (judge is not None or check is not None):
        raise click.UsageError("--answers compares two folders of logs; it takes neither --judge nor --check")
    if not answers and judge is None and check is None:
        raise click.UsageError("say what to do: --judge PACKAGE.MODULE:FUNCTION, --answers or --check CERT.json")
    wanted = 2 if answers else 1
    if len(paths) != wanted:
        names = "BASE_DIR and QUANTIZED_DIR" if answers else "MODEL.nz"
        raise click.UsageError(f"takes {names} here, not {len(paths)} paths")
    odd = [name for name, value in own.items() if value is not None]
    if answers and odd:
        raise click.UsageError(f"{odd[0]} is for --judge, not for --answers")


def _plan(path: str) -> Any:
    from nearzip.budget.plan import Plan

    return Plan.load(path)


# ---- with a judge ----------------------------------------------------------------------------------------------


def _measured(archive: str, judge: str, given: Mapping[str, Any], as_json: bool) -> Certificate:
    """The judge's arguments, those of the command line in their place."""
    from nearzip.correctness import certify as measure

    arguments = call_function("--judge", judge)
    if not isinstance(arguments, Mapping) or not {"network", "fresh_data"} <= set(arguments):
        raise UsageError(
            f"--judge {judge}: returns the arguments of nearzip.correctness.certify as a dict, network and fresh_data "
            "among them"
        )
    command = ["nearzip", *map(str, sys.argv[1:])]
    with progress("certify", as_json, unit="samples") as callback:
        watch = None if callback is None else (lambda done: callback(done, done))
        everything = {"command": command, "progress": watch, **arguments, **given}
        try:
            return measure(archive, **everything)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise UsageError(f"--judge {judge}: {error}") from None


def _checked(path: str, archive: str, judge: str | None, base: str | None, as_json: bool) -> int:
    """Check a certificate, and measure again with a judge."""
    certificate = Certificate.load(path)
    certificate.check_archive(archive)
    notes: list[str] = []
    if judge is not None:
        measurement = certificate.measurement
        given: dict[str, Any] = {
            "limits": dict(measurement["limits"]), "confidence": measurement["confidence"],
            "seed": measurement["seed"],
        }  # fmt: skip
        if base is not None:
            given["base"] = base
        notes = certificate.check_again(_measured(archive, judge, given, as_json))
    if as_json:
        document = {"certificate": path, "verdict": certificate.verdict, "measured_again": judge is not None,
                    "notes": notes}  # fmt: skip
        print_json("certify", document)
    else:
        again = "; measured again with the same result" if judge is not None else ""
        show(f"{path}: is of {archive}, no byte was changed{again}.", certificate.summary)
        if judge is None:
            hint("nothing was measured; --judge PACKAGE.MODULE:FUNCTION measures again")
        for note in notes:
            hint(note)
    return _CODES[certificate.verdict]


# ---- from logs -------------------------------------------------------------------------------------------------


def _answers(
    paths: Sequence[str], limits: Sequence[str], metrics: Sequence[str], confidence: float | None, as_json: bool
) -> AnswersReport:
    with progress("certify", as_json, unit="tasks") as callback:
        return compare_answers(
            paths[0], paths[1], max_loss=_limits(limits), metric=_pairs(metrics, "--metric") or None,
            confidence=confidence or 0.95, progress=callback,
        )  # fmt: skip


def _limits(texts: Sequence[str]) -> Mapping[str, float]:
    return {"*": 0.02, **{pattern: _number(text) for pattern, text in _pairs(texts, "--limit").items()}}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"--limit takes LOSS or PATTERN=LOSS, such as 0.02, not {text!r}") from None


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """[PATTERN=]VALUE; without a pattern it is for all tasks."""
    found: dict[str, str] = {}
    for text in texts:
        pattern, _, value = text.rpartition("=")
        if not value or (pattern or "*") in found:
            raise click.UsageError(f"{option} takes one VALUE or PATTERN=VALUE for each pattern, not {text!r}")
        found[pattern or "*"] = value
    return found


# ---- messages ---------------------------------------------------------------------------------------------------


def _report(found: AnswersReport | Certificate, as_json: bool) -> None:
    if isinstance(found, AnswersReport):
        if as_json:
            print_json("certify", found.to_json())
        else:
            _show(found)
        return
    if as_json:
        print_json("certify", {"verdict": found.verdict, "certificate": found.statement})
        return
    columns = {
        "metric": "left", "original": "right", "compressed": "right", "loss": "right", "at most": "right",
        "limit": "right", "verdict": "left",
    }  # fmt: skip
    limited = {name: row for name, row in found.metrics.items() if row["verdict"] is not None}
    rows = [[name, *map(_figure, (row["original"], row["restored"], row["loss"], row["interval"]["upper"],
                                  row["limit"])), row["verdict"]] for name, row in limited.items()]  # fmt: skip
    show(rows_table(columns, rows), found.summary)
    unknown = [name for name, row in limited.items() if row["verdict"] == NOT_SHOWN]
    for name in unknown[:_MAX_HINTS]:
        n, enough = limited[name]["interval"]["n"], limited[name]["samples_needed"]
        more = "more samples would not help" if enough is None else f"about {enough:,} would show it"
        hint(f"{name}: {n:,} samples do not show it; {more}")
    if not found.has_part("tuned-on"):
        hint("nothing shows that the samples are fresh; give tuned_on in what --judge returns")


def _figure(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _show(report: AnswersReport) -> None:
    columns = {
        "task": "left", "n": "right", "before": "right", "after": "right", "loss": "right", "at most": "right",
        "lost/won": "right", "verdict": "left",
    }  # fmt: skip
    show(rows_table(columns, [_cells(row) for row in report.rows]), report.summary)
    undecided = [row for row in report.rows if row.verdict == NOT_SHOWN]
    for row in undecided[:_MAX_HINTS]:
        hint(f"{row.task}: {needed(row)}")
    if len(undecided) > _MAX_HINTS:
        hint(f"and {len(undecided) - _MAX_HINTS} more tasks are not shown; --page or -o lists what each would need")
    for note in report.notes:
        hint(note)


def _cells(row: TaskComparison) -> list[str]:
    # The upper end of a two-sided interval is the one-sided bound at half the error: this is the bound of the verdict.
    at_most = row.paired.interval(2 * row.test.confidence - 1)[1]
    flips = "" if row.flips is None else f"{row.flips.lost}/{row.flips.gained}"
    return [
        row.task, f"{row.n:,}", f"{row.original:.3f}", f"{row.compressed:.3f}", f"{row.loss:+.4f}", f"{at_most:.4f}",
        flips, row.verdict,
    ]  # fmt: skip
