"""One HTML page about a store: no script, nothing fetched, every name escaped."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from nearzip.display import human_bytes
from nearzip.fileio import atomic_file, check_outputs
from nearzip.report.engine import environment, number
from nearzip.report.facts import StoreFacts, gather
from nearzip.sources import is_url
from nearzip.store import Store, Version
from nearzip.store.chain import Progress
from nearzip.version import __version__

__all__ = ["render", "write_report"]

#: Rows of the table of versions, tensors with a bar of their own, metrics with a chart.
_ROWS, _TENSORS, _METRICS = 200, 25, 12


def write_report(
    store: Store,
    path: str | os.PathLike[str],
    *,
    originals: Mapping[str, str | os.PathLike[str]] | None = None,
    rules: Sequence[str] = (),
    newest: int = 100,
    force: bool = False,
    progress: Progress | None = None,
) -> StoreFacts:
    """Write a page about a store: sizes, chains, metrics, errors beside the bound, space by tensor, what pruning frees.

    Parameters
    ----------
    path : path
        The .html file.
    originals : mapping of selector to path
        Files that were committed as these versions: their errors are measured.
    rules : sequence of str
        What pruning is to keep, as for `Store.prune`; default: some usual rules.
    newest : int
        Versions whose objects are looked at for the space of each tensor.

    Raises
    ------
    MissingExtraError
        jinja2 is not installed.
    UsageError
        The file exists, and `force` was not given.
    """
    engine = environment()
    check_outputs([path], [*(originals or {}).values(), *([] if is_url(store.url) else [store.url])], force)
    facts = gather(store, originals, rules, newest, progress)
    page = _rendered(engine, facts)
    with atomic_file(path, force=force) as stream:
        stream.write(page.encode("utf-8", "backslashreplace"))
    return facts


def render(facts: StoreFacts) -> str:
    """The page. Raises MissingExtraError."""
    return _rendered(environment(), facts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "broken"


def _rendered(engine: Any, facts: StoreFacts) -> str:
    engine.filters.update(percent=_percent)
    text = (resources.files("nearzip.report") / "store.html").read_text("utf-8")
    return str(engine.from_string(text).render(
        facts=facts,
        version=__version__,
        charts=_charts(facts),
        rows=facts.live[::-1][:_ROWS],
        errors=sorted(facts.errors, key=lambda row: -(row.share or 0.0))[:_ROWS],
    ))  # fmt: skip


def _charts(facts: StoreFacts) -> dict[str, Any]:
    from nearzip.report import svg

    live = facts.live
    metrics = sorted({name for row in live for name in row.metrics})
    return {
        "stored": svg.bars("Bytes stored for each version", live),
        "total": svg.lines("Bytes in all", _totals(live), human_bytes, log=True),
        "chains": svg.chains("Chains", facts.rows),
        "metrics": {name: svg.lines(name, [svg.Series(name, _points(live, name))], number)
                    for name in metrics[:_METRICS]},
        "more_metrics": metrics[_METRICS:],
        "tensors": svg.shares("Space by tensor", _tensor_bars(facts)),
        "freed": svg.shares("What pruning would free", [
            (f"--keep {freed.rule}", float(freed.n_freed),
             f"{human_bytes(freed.n_freed)}, {freed.n_kept} of {freed.n_kept + freed.n_dropped} versions stay")
            for freed in facts.freed
        ]),
        "errors": svg.shares("Largest error over what was promised", [
            (f"{row.name} ({row.version})", row.share if math.isfinite(row.share) else 2.0, _percent(row.share))
            for row in sorted(facts.errors, key=lambda row: -(row.share or 0.0))[:_TENSORS] if row.share is not None
        ], limit=1.0),
    }  # fmt: skip


def _totals(rows: Sequence[Version]) -> list[Any]:
    from nearzip.report.svg import Series

    raw = itertools.accumulate(row.n_bytes for row in rows)
    stored = itertools.accumulate(row.n_stored for row in rows)
    return [
        Series("tensors", [(row.number, float(n)) for row, n in zip(rows, raw, strict=True)], "b"),
        Series("stored", [(row.number, float(n)) for row, n in zip(rows, stored, strict=True)], "a"),
    ]


def _points(rows: Sequence[Version], metric: str) -> list[tuple[float, float]]:
    return [(float(row.number), row.metrics[metric]) for row in rows if metric in row.metrics]


def _tensor_bars(facts: StoreFacts) -> list[tuple[str, float, str]]:
    shown, rest = facts.spaces[:_TENSORS], facts.spaces[_TENSORS:]
    found = [(space.name, space.n_stored, _beside(space.n_stored, space.n_values, facts)) for space in shown]
    if rest:
        n_stored = sum(space.n_stored for space in rest)
        n_values = sum(space.n_values for space in rest)
        found.append((f"{len(rest)} other tensors", n_stored, _beside(n_stored, n_values, facts)))
    if facts.n_described:
        found.append(("names, checksums and the like", facts.n_described, human_bytes(facts.n_described)))
    return found


def _beside(n_stored: float, n_values: int, facts: StoreFacts) -> str:
    bits = 8 * n_stored / (n_values * facts.n_looked_at) if n_values else 0.0
    return f"{human_bytes(n_stored)}, {bits:.2f} bits per value"
