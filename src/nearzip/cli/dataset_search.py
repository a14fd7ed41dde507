"""nearzip dataset tune and select: the searches, with functions of the user's."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from nearzip.cli.console import (
    check_streams,
    facts,
    hint,
    output_of,
    print_json,
    rows_table,
    show,
    watching_trials,
)
from nearzip.cli.dataset import source_options, table_of_trials
from nearzip.cli.functions import call_function, load_function
from nearzip.cli.running import common_options, showing_warnings
from nearzip.cli.transfer import force_option
from nearzip.cli.tuning import max_loss_of
from nearzip.errors import UsageError
from nearzip.fileio import atomic_file, check_outputs

__all__ = ["select", "tune"]

_FILE = click.Path(path_type=str)


@click.command()
@click.argument("source", type=_FILE)
@click.option("--evaluate", required=True, metavar="PACKAGE.MODULE:FUNCTION",
              help="Takes a list of images, returns a number or a dict of numbers; higher is better. Or what "
                   "nearzip.datasets.image_evaluator made.")  # fmt: skip
@click.option("--max-loss", "max_losses", multiple=True, required=True, metavar="X|PATTERN=X",
              help="Largest loss, in evaluate's units or as a share of the original's score (2%). "
                   "Repeatable.")  # fmt: skip
@click.option("--codec", "codecs", multiple=True, metavar="NAME[:KNOB][,KEY=VALUE]",
              help="A codec to try, such as nearzip, jpeg,chroma=4:4:4 or zfp:rate,values=int32. "
                   "Repeatable.")  # fmt: skip
@click.option("-o", "--output", required=True, type=_FILE, metavar="PLAN.json", help="The plan to write; - is stdout.")
@click.option("--confidence", type=click.FloatRange(0.5, 1, max_open=True), metavar="P",
              help="0.95: the loss must be shown to be within its budget.")  # fmt: skip
@source_options
@force_option
@common_options
def tune(
    source: str,
    evaluate: str,
    max_losses: Sequence[str],
    codecs: Sequence[str],
    output: str,
    confidence: float | None,
    split: str | None,
    mode: str | None,
    images: str | None,
    labels: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Find the codec and setting that make the smallest file of SOURCE within an accuracy budget.

    'nearzip dataset compress SOURCE --plan PLAN.json' applies what was found.
    """
    from nearzip.datasets import load
    from nearzip.datasets import tune as find

    on_stdout = check_streams(outputs=[output])
    check_outputs([output_of(output)], [source], force)
    started = time.perf_counter()
    function, max_loss = load_function("--evaluate", evaluate), max_loss_of(max_losses)
    samples = load(source, split=split, mode=mode, images=images, labels=labels)
    with showing_warnings() as warned, watching_trials("dataset tune", as_json) as watch:
        plan = find(
            samples, evaluate=function, max_loss=max_loss, codecs=codecs or None, confidence=confidence, progress=watch
        )
    plan.save(output_of(output), force=force)
    seconds = time.perf_counter() - started
    if as_json:
        print_json("dataset tune", {"output": output, "seconds": seconds, "warnings": warned, "plan": plan.to_json()},
                   err=on_stdout)  # fmt: skip
    else:
        share = 100 * plan.chosen.n_bytes / plan.raw_bytes
        show(table_of_trials(plan.trials, plan.chosen, plan.n_samples), "", facts([
            ("wrote", output),
            ("codec", plan.codec),
            ("size", f"{plan.bytes_per_sample:.1f} bytes a sample with index, {share:.2f} % of the values"),
            ("loss", ", ".join(f"{name} {loss:.6g}" for name, loss in plan.losses.items())),
            ("time", f"{seconds:.2f} s"),
        ]), err=on_stdout)  # fmt: skip
    return 1 if warned else 0


@click.command()
@click.argument("source", type=_FILE)
@click.option("--experiment", required=True, metavar="PACKAGE.MODULE:FUNCTION",
              help="Takes the samples, returns a dict of train, predict and evaluate, as nearzip.datasets.select takes "
                   "them.")  # fmt: skip
@click.option("--max-loss", type=click.FloatRange(min=0), required=True, metavar="X", help="Against all samples.")
@click.option("--ranking", "rankings", multiple=True, metavar="NAME", help="Rankings to try. Repeatable.")
@click.option("--share", "shares", multiple=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Shares of every class to try. Repeatable.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each trial.")
@click.option(
    "-o", "--output", required=True, type=_FILE, metavar="CHOSEN.json", help="Indices of what to keep; - is stdout."
)
@source_options
@force_option
@common_options
def select(
    source: str,
    experiment: str,
    max_loss: float,
    rankings: Sequence[str],
    shares: Sequence[float],
    seeds: int,
    output: str,
    split: str | None,
    mode: str | None,
    images: str | None,
    labels: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Find the smallest subset of SOURCE on which a network trained from scratch loses at most so much."""
    from nearzip.datasets import load
    from nearzip.datasets import select as find

    on_stdout = check_streams(outputs=[output])
    check_outputs([output_of(output)], [source], force)
    samples = load(source, split=split, mode=mode, images=images, labels=labels)
    if "label" not in samples.columns:
        raise UsageError(f"{source}: has no labels; a subset is chosen class by class")
    parts = call_function("--experiment", experiment, samples)
    if not isinstance(parts, dict) or not {"train", "predict", "evaluate"} <= set(parts):
        raise UsageError(f"--experiment {experiment}: returns no dict of train, predict and evaluate")
    more: dict[str, Any] = {
        **parts,
        **({"rankings": rankings} if rankings else {}),
        **({"shares": shares} if shares else {}),
    }
    tell = None if as_json else lambda tried: hint(f"{tried.share:.0%} by {tried.ranking}: {tried.metric:.4f}")
    found = find(samples.columns["label"], max_loss=max_loss, seeds=range(seeds), progress=tell, **more)
    tried = [
        {"ranking": t.ranking, "share": t.share, "samples": t.n_samples, "metrics": list(t.metrics)}
        for t in found.tried
    ]
    document = {
        "samples": len(samples.columns["label"]), "kept": len(found), "ranking": found.ranking, "metric": found.metric,
        "original": found.original, "tried": tried,
    }  # fmt: skip
    with atomic_file(output_of(output), force=force, text=True) as stream:
        stream.write(json.dumps({**document, "indices": found.indices.tolist()}).encode() + b"\n")
    if as_json:
        print_json("dataset select", {"output": output, **document}, err=on_stdout)
    else:
        rows = [[t.ranking, f"{t.share:.0%}", t.n_samples, f"{t.metric:.4f}"] for t in found.tried]
        show(rows_table({"ranking": "left", "share": "right", "samples": "right", "metric": "right"}, rows), "", facts([
            ("wrote", output),
            ("kept", f"{len(found)} of {document['samples']} by {found.ranking}"),
            ("metric", f"{found.metric:.4f}; all samples {found.original:.4f}"),
        ]), err=on_stdout)  # fmt: skip
    return 0
