"""nearzip certify: what a compressed network still does the same, under limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from nearzip.cli.console import hint, print_json, progress, rows_table, show
from nearzip.cli.running import common_options
from nearzip.cli.transfer import force_option
from nearzip.correctness import AnswersReport, TaskComparison, compare_answers
from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.correctness.tasks import needed

__all__ = ["certify"]

#: Tasks whose lack of samples is explained on the terminal.
_MAX_HINTS = 8
#: Exit codes by verdict, as for bounds and budgets.
_CODES = {KEPT: 0, NOT_SHOWN: 1, BROKEN: 15}


@click.command()
@click.argument("original", type=click.Path(path_type=str), metavar="BASE_DIR")
@click.argument("compressed", type=click.Path(path_type=str), metavar="QUANTIZED_DIR")
@click.option("--answers", is_flag=True, required=True,
              help="Compare logs of an evaluation harness (lm_eval --log_samples), of both networks.")  # fmt: skip
@click.option("--limit", "limits", multiple=True, metavar="[PATTERN=]LOSS",
              help="What may be lost: 0.02 is two points of accuracy; 'mmlu_*=0.03' for some tasks. Repeatable.  "
                   "[default: 0.02]")  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="[PATTERN=]METRIC[,FILTER]",
              help="The metric to judge, such as acc_norm. Repeatable.  [default: the first logged]")  # fmt: skip
@click.option("--confidence", type=click.FloatRange(0.5, 1, max_open=True), default=0.95, show_default=True,
              help="Of all verdicts together.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=str), metavar="OUT.json", help="Write all figures as JSON.")
@click.option("--page", type=click.Path(path_type=str), metavar="OUT.html", help="Write one self-contained HTML page.")
@force_option
@common_options
def certify(
    original: str,
    compressed: str,
    answers: bool,
    limits: Sequence[str],
    metrics: Sequence[str],
    confidence: float,
    output: str | None,
    page: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Compare a network with its compressed self, sample by sample, under limits.

    BASE_DIR and QUANTIZED_DIR hold the per-sample logs that lm-evaluation-harness wrote for the original and for the
    compressed network, whatever compressed it. Neither network is needed.

    Exit codes: 0 every loss is shown to be within its limit, 1 some are not shown, 15 a limit is broken.
    """
    with progress("certify", as_json, unit="tasks") as callback:
        report = compare_answers(
            original, compressed, max_loss=_limits(limits), metric=_pairs(metrics, "--metric") or None,
            confidence=confidence, progress=callback,
        )  # fmt: skip
    if output is not None:
        report.save(output, force=force)
    if page is not None:
        report.page(page, force=force)
    if as_json:
        print_json("certify", report.to_json())
    else:
        _show(report)
    return _CODES[report.verdict]


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
