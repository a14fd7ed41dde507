"""nearzip average, and nearzip compress --residual: federated rounds by hand."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from nearzip.api import FileReport
from nearzip.api import open as open_archive
from nearzip.attached import without_attached
from nearzip.checkpoints import write_checkpoint
from nearzip.cli.console import facts, human_bytes, print_json, safe, show, warn
from nearzip.cli.running import common_options
from nearzip.errors import UsageError
from nearzip.federated import average_updates, compress_update
from nearzip.federated.residual import is_residual
from nearzip.fileio import atomic_file, check_outputs
from nearzip.inputs import open_input

__all__ = ["average", "update_with_residual"]

_FILE = click.Path(path_type=str)


def update_with_residual(
    new: str,
    base: str,
    output: str,
    residual: str,
    method: str | None,
    bound: str | Mapping[str, str] | None,
    options: Mapping[str, str] | None,
    force: bool,
) -> FileReport:
    """Write the update of NEW plus the residual, and then the new residual in the old one's place."""
    check_outputs([output], [new, base, residual], force)
    # The residual is written over, but only its own file: never a network, nor the update.
    check_outputs([residual, output], [new, base], True)
    with contextlib.ExitStack() as stack:

        def opened(path: str) -> Any:
            return without_attached(stack.enter_context(contextlib.closing(open_input(path))))

        source, held = opened(new), opened(base)
        left = _residual(residual) if os.path.exists(residual) else None
        archive, kept = compress_update(source, held, left, method or "nearzip", bound=bound, options=options)
    # The update is safe before the residual says that it was sent.
    with atomic_file(output, force=force) as stream:
        stream.write(archive.data)
    with atomic_file(residual, force=True) as stream:
        stream.write(kept.data)
    return FileReport(source.n_bytes, archive.nbytes, archive.report)


def _residual(path: str) -> Mapping[str, Any]:
    """What the last call left out. Raises UsageError for another file: a network would be added, and written over."""
    with open_archive(path) as reader:
        if not is_residual(reader.metadata()):
            raise UsageError(
                f"{path}: holds no residual; --residual names the file that 'nearzip compress --residual' wrote, or a "
                "new one"
            )
        return dict(reader.stream())


def _weights(ctx: click.Context, param: click.Parameter, value: str | None) -> list[float] | None:
    if value is None:
        return None
    try:
        return [float(text) for text in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 100,50", ctx, param) from None


@click.command()
@click.argument("updates", nargs=-1, required=True, metavar="UPDATE.nz...", type=_FILE)
@click.option("--base", required=True, type=_FILE, metavar="OLD", help="What the updates were made against.")
@click.option(
    "--weights", callback=_weights, metavar="N,N..", help="One for each update, such as samples. Default: equal."
)
@click.option(
    "--max-norm",
    type=click.FloatRange(min=1),
    default=10.0,
    show_default=True,
    help="Of three or more updates, leave out those with more than so many times the median norm.",
)
@click.option("-o", "--output", required=True, type=_FILE, metavar="NEXT", help="The next model.")
@click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
@common_options
def average(
    updates: Sequence[str],
    base: str,
    weights: list[float] | None,
    max_norm: float,
    output: str,
    force: bool,
    as_json: bool,
) -> int:
    """Make the next model of a federated round: the weighted mean of what UPDATEs make of OLD.

    Updates that are damaged, made against another base, not finite, or outliers by their norm are named and left out
    (exit code 1). It fails if none is left.
    """
    started = time.perf_counter()
    check_outputs([output], [base, *updates], force, folders=True)
    for path, count in Counter(map(os.path.realpath, updates)).items():
        if count > 1:
            raise UsageError(f"{path}: is given {count} times; give each update once, and its share by --weights")
    if weights is not None and len(weights) != len(updates):
        raise UsageError(f"{len(updates)} updates need as many weights, not {len(weights)}: --weights 100,50,..")
    with contextlib.closing(open_input(base)) as opened:
        held = without_attached(opened)
        found = average_updates(updates, held, weights, max_norm=max_norm)
        with write_checkpoint(output, opened.specs, opened.metadata, opened.tree, force, opened.read) as writer:
            for name in opened.specs:
                writer.write(name, found.model[name] if name in found.model else opened.read(name))
    for i, why in found.rejected.items():
        warn(f"{updates[i]} is left out: {why}")
    seconds = time.perf_counter() - started
    rows = [
        {
            "update": path, "bytes": _size(path), "norm": found.norms[i],
            "weight": 1.0 if weights is None else weights[i], "left_out": found.rejected.get(i),
        }
        for i, path in enumerate(updates)
    ]  # fmt: skip
    if as_json:
        print_json("average", {"output": output, "base": base, "updates": rows, "seconds": seconds})
    else:
        show(_text(output, rows, seconds))
    return 1 if found.rejected else 0


def _size(path: str) -> int | None:
    """Bytes, unless the update is missing: it was left out and named."""
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return None


def _text(output: str, rows: Sequence[Mapping[str, Any]], seconds: float) -> str:
    used = [row for row in rows if row["left_out"] is None]
    norms = ", ".join(f"{row['norm']:.3g}" for row in used[:8]) + (" .." if len(used) > 8 else "")
    return facts([
        ("wrote", output),
        ("updates", f"{len(used)} of {len(rows)}, {human_bytes(sum(row['bytes'] for row in used))}"),
        ("norms", norms),
        ("left out", ", ".join(safe(str(row["update"])) for row in rows if row["left_out"]) or None),
        ("time", f"{seconds:.2f} s"),
    ])  # fmt: skip
