"""nearzip condense."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nearzip.attached import without_attached
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
from nearzip.cli.transfer import force_option, options_of
from nearzip.cli.tuning import max_loss_of, workers
from nearzip.errors import UsageError
from nearzip.fileio import check_outputs
from nearzip.inputs import open_input

if TYPE_CHECKING:
    from nearzip.condense.result import Condensed
    from nearzip.condense.trial import Trial

__all__ = ["condense"]

_FILE = click.Path(path_type=str)
_MAKES = "returns (module, train_epoch, inputs, evaluate): an untrained network, one epoch of training, a batch of " \
         "inputs, and a function of a dict of arrays; see docs/condense.md"  # fmt: skip


@click.command()
@click.argument("new", type=_FILE)
@click.option("--network", required=True, metavar="PACKAGE.MODULE:FUNCTION", help=f"{_MAKES[0].upper()}{_MAKES[1:]}.")
@click.option(
    "--max-loss",
    "max_losses",
    multiple=True,
    required=True,
    metavar="X|PATTERN=X",
    help="Largest loss of pruning and storing together, as for 'nearzip tune'. Repeatable.",
)
@click.option("-o", "--output", required=True, type=_FILE, metavar="OUT.nz", help="The archive to write.")
@click.option(
    "--scheme",
    type=click.Choice(["prune", "structure"]),
    default="prune",
    show_default=True,
    help="Remove single weights, or whole neurons and filters.",
)
@click.option("--align", type=click.IntRange(min=1), default=8, show_default=True, help="Widths are multiples of it.")
@click.option("--bits", type=click.IntRange(1, 16), help="Also share 2^BITS values in each layer.")
@click.option(
    "--objective",
    default="bytes",
    show_default=True,
    metavar="NAME",
    help="What to make better: bytes, flops, throughput, nonzeros16, or MODULE:FUNCTION of yours, which gets the "
    "network and returns a number, higher is better.",
)
@click.option(
    "--recover",
    type=click.Choice(["lc", "gradual", "direct"]),
    default="lc",
    show_default=True,
    help="How training brings back what removing costs.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Of each training.")
@click.option("--keep", type=float, help="Condense to this share; no search.")
@click.option("--samples", type=click.IntRange(min=1), help="Most trainings.  [default: 5; condensa: 10]")
@click.option("--strategy", type=click.Choice(["nearzip", "condensa"]), default="nearzip", show_default=True,
              help="How the share is searched. Read the page about a patent before taking condensa.")  # fmt: skip
@click.option("--strategy-set", "parameters", multiple=True, metavar="KEY=VALUE",
              help="A parameter of the strategy condensa, such as coordinate=log2. Repeatable.")  # fmt: skip
@click.option("--trials", type=_FILE, metavar="DIR", help="File every trial here; an interrupted search goes on.")
@click.option("--seed", type=int, default=0, show_default=True, help="Global generators start from it at every trial.")
@click.option("--evidence", type=_FILE, metavar="OUT.json", help="Write every trial as JSON.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Trials at once, each in a process of its own.")
@force_option
@common_options
def condense(
    new: str,
    network: str,
    max_losses: Sequence[str],
    output: str,
    scheme: str,
    align: int,
    bits: int | None,
    objective: str,
    recover: str,
    epochs: int,
    keep: float | None,
    samples: int | None,
    strategy: str,
    parameters: Sequence[str],
    trials: str | None,
    seed: int,
    evidence: str | None,
    jobs: int | None,
    force: bool,
    as_json: bool,
) -> int:
    """Find how much of the trained network in NEW can go, retrain what is left, and write it.

    The archive is an ordinary one: 'nearzip decompress' restores it, and nearzip.condense.fit rebuilds the module.
    """
    from nearzip import condense as condensing

    on_stdout = check_streams(outputs=[output])
    check_outputs([output_of(output), *([output_of(evidence)] if evidence else [])], [new], force)
    if keep is not None and (samples or trials or strategy != "nearzip"):
        raise click.UsageError("--keep gives the share: there is no search for --samples, --trials or --strategy")
    started = time.perf_counter()
    module, train_epoch, inputs, evaluate = _network(network)
    with contextlib.closing(open_input(new)) as checkpoint:
        condensing.fit(module, dict(without_attached(checkpoint).arrays()))
    how: dict[str, Any] = {
        "evaluate": evaluate, "max_loss": max_loss_of(max_losses), "objective": _objective(objective), "inputs": inputs,
        "seed": seed, "scheme": _scheme(condensing, scheme, align, bits),
        "recover": {"lc": condensing.LC, "gradual": condensing.Gradual, "direct": condensing.Direct}[recover](epochs),
    }  # fmt: skip
    watching = watching_trials("condense", as_json, "trainings", _best_so_far)
    with showing_warnings() as warned, watching as watch, workers(jobs):
        if keep is not None:
            found = condensing.compress(module, train_epoch, keep=keep, **how)
        else:
            found = condensing.tune(
                module, train_epoch, samples=samples, trials=trials, strategy=strategy, progress=watch,
                **how, **_parameters(parameters),
            )  # fmt: skip
    found.archive.save(output_of(output), force=force)
    if evidence is not None:
        found.save_evidence(evidence, force=force)
    seconds = time.perf_counter() - started
    if as_json:
        document = {"output": output, "seconds": seconds, "warnings": warned, **found.to_json()}
        print_json("condense", document, err=on_stdout)
    else:
        show(_table(found), "", _summary(found, output, seconds), err=on_stdout)
    return 1 if warned else 0


def _network(spelled: str) -> tuple[Any, Any, Any, Any]:
    try:
        found = load_function("--network", spelled)()
    except (UsageError, click.UsageError):
        raise
    except Exception as error:
        raise UsageError(f"--network {spelled}: raised {type(error).__name__}: {error}") from error
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        what = f"{len(found)} values" if isinstance(found, (tuple, list)) else repr(type(found).__name__)
        raise UsageError(f"--network {spelled}: {_MAKES}; it returned {what}")
    parts = tuple(found)
    if not hasattr(parts[0], "load_state_dict"):
        raise UsageError(f"--network {spelled}: {_MAKES}; the first is of type {type(parts[0]).__name__!r}")
    return parts


def _objective(spelled: str) -> Any:
    """A name, or the user's function."""
    return load_function("--objective", spelled) if ":" in spelled else spelled


def _scheme(condensing: Any, scheme: str, align: int, bits: int | None) -> Any:
    main = condensing.Prune() if scheme == "prune" else condensing.Structure(align=align)
    return main if bits is None else (main, condensing.Quantize(bits))


def _parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Numbers where they read as such."""
    found: dict[str, Any] = dict(options_of(texts, "--strategy-set", "KEY=VALUE"))
    for name, value in found.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(value)
    return found


def _best_so_far(best: Trial | None) -> str:
    return "condense: nothing within the budget yet" if best is None else f"condense: best keeps {best.keep:.3g}"


def _table(found: Condensed) -> Any:
    names = list(found.original)
    name = str(found.objective["name"])
    columns = {"kept": "left", "size": "right", **({name: "right"} if name != "bytes" else {}),
               **{f"loss of {metric}": "right" for metric in names}, "": "left"}  # fmt: skip
    rows = []
    for trial in found.trials:
        word = "chosen" if trial is found.chosen else "" if trial.fits else "over"
        size = "" if trial.n_bytes is None else human_bytes(trial.n_bytes)
        value = [] if name == "bytes" else ["" if trial.objective is None else f"{trial.objective:.4g}"]
        rows.append([f"{100 * trial.keep:.3g} %", size, *value, *(f"{trial.losses[m]:.6g}" for m in names), word])
    return rows_table(columns, rows)


def _summary(found: Condensed, output: str, seconds: float) -> str:
    what = found.objective
    return facts([
        ("wrote", output),
        ("size", f"{human_bytes(found.original_bytes)} of tensors -> {human_bytes(found.archive.nbytes)}: "
                 f"{found.ratio:.2f}x smaller"),
        ("kept", f"{100 * found.keep:.3g} % of the {'channels' if found.chosen.shapes else 'weights'}"),
        (str(what["name"]), None if what["name"] == "bytes" else f"{what['gain']:.2f}x better"),
        ("loss", ", ".join(f"{m} {loss:.6g}" for m, loss in found.losses.items())
                 + "; at most " + ", ".join(f"{m} {x:g}" for m, x in found.max_loss.items())),
        ("not thinned", "; ".join(found.notes) or None),
        ("trainings", len(found.trials)),
        ("time", f"{seconds:.2f} s"),
    ])  # fmt: skip
