"""The sections of a store's page: ours, and those of plug-ins (entry points `nearzip.report_sections`)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from nearzip.display import human_bytes
from nearzip.errors import PluginError
from nearzip.plugins import Plugins, subclass_check
from nearzip.report import svg
from nearzip.report.engine import environment, number
from nearzip.report.facts import ErrorRow, StoreFacts
from nearzip.report.section import Section, View
from nearzip.store import Version

__all__ = ["BUILT_IN", "PLUGINS", "Made", "make_sections"]

#: Rows of a table, tensors with a bar of their own, metrics with a chart.
_ROWS, _TENSORS, _METRICS = 200, 25, 12


@cache
def _macros() -> Any:
    text = (resources.files("nearzip.report") / "sections.html").read_text("utf-8")
    return environment().from_string(text).module


class Sizes(Section):
    """What each version takes, and all up to it."""

    name, title = "sizes", "Sizes"

    def data(self, view: View) -> dict[str, Any]:
        facts = view.facts
        return {
            "versions": len(facts.live), "n_bytes": facts.n_bytes, "n_stored": facts.n_stored, "ratio": facts.ratio,
        }  # fmt: skip

    def html(self, view: View) -> str:
        live = view.facts.live
        stored = svg.bars("Bytes stored for each version", live)
        return str(_macros().sizes(stored, svg.lines("Bytes in all", _totals(live), human_bytes, log=True)))


class Chains(Section):
    """What each version is coded against."""

    name, title = "chains", "Chains"

    def data(self, view: View) -> dict[str, Any]:
        live = view.facts.live
        return {
            "keyframes": [row.number for row in live if row.base is None],
            "longest": max((row.depth for row in live), default=0),
        }

    def html(self, view: View) -> str:
        rows = view.facts.rows
        return str(_macros().chains(svg.chains("Chains", rows), len(rows)))


class Metrics(Section):
    """The metrics that were given to commit, version by version."""

    name, title = "metrics", "Metrics"

    def data(self, view: View) -> dict[str, Any]:
        return {"newest": {name: value for row in view.facts.live for name, value in row.metrics.items()}}

    def html(self, view: View) -> str:
        live = view.facts.live
        names = sorted({name for row in live for name in row.metrics})
        charts = {name: svg.lines(name, [svg.Series(name, _points(live, name))], number) for name in names[:_METRICS]}
        return str(_macros().metrics(charts, names[_METRICS:]))


class Errors(Section):
    """The largest error of each tensor beside its bound, of versions whose originals were given."""

    name, title = "errors", "Error beside the bound"

    def data(self, view: View) -> dict[str, Any]:
        return {"tensors": [vars(row) for row in _worst_first(view.facts)]}

    def html(self, view: View) -> str:
        rows = _worst_first(view.facts)
        drawn = [
            (f"{row.name} ({row.version})", row.share if math.isfinite(row.share) else 2.0, _percent(row.share))
            for row in rows[:_TENSORS]
            if row.share is not None
        ]
        chart = svg.shares("Largest error over what was promised", drawn, limit=1.0)
        table = [(row, None if row.share is None else _percent(row.share)) for row in rows[:_ROWS]]
        return str(_macros().errors(chart, table, len(rows)))


class Space(Section):
    """The bytes that each tensor takes in all objects that were looked at."""

    name, title = "space", "Space by tensor"

    def data(self, view: View) -> dict[str, Any]:
        facts = view.facts
        return {
            "versions": facts.n_looked_at,
            "n_described": facts.n_described,
            "tensors": [vars(space) for space in facts.spaces],
        }

    def html(self, view: View) -> str:
        facts = view.facts
        return str(_macros().space(svg.shares("Space by tensor", _tensor_bars(facts)), facts.n_looked_at))


class Pruning(Section):
    """What pruning with each rule would free."""

    name, title = "pruning", "What pruning would free"

    def data(self, view: View) -> dict[str, Any]:
        return {"rules": [vars(freed) for freed in view.facts.freed]}

    def html(self, view: View) -> str:
        bars = [
            (f"--keep {freed.rule}", float(freed.n_freed),
             f"{human_bytes(freed.n_freed)}, {freed.n_kept} of {freed.n_kept + freed.n_dropped} versions stay")
            for freed in view.facts.freed
        ]  # fmt: skip
        return str(_macros().pruning(svg.shares("What pruning would free", bars)))


class Versions(Section):
    """The table of versions, the newest first."""

    name, title = "versions", "Versions"

    def data(self, view: View) -> dict[str, Any]:
        """Numbers only: `store log --json` has the rest."""
        rows = view.facts.rows
        return {
            "live": [row.number for row in rows if row.pruned is None],
            "pruned": [row.number for row in rows if row.pruned is not None],
        }

    def html(self, view: View) -> str:
        live = view.facts.live
        return str(_macros().versions(live[::-1][:_ROWS], len(live)))


BUILT_IN: tuple[type[Section], ...] = (Sizes, Chains, Metrics, Errors, Space, Pruning, Versions)
#: A plug-in cannot replace a built-in section.
PLUGINS: Plugins[type[Section]] = Plugins("nearzip.report_sections", "report section", subclass_check(Section, "name"))  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Made:
    """A section as the page shows it.

    Parameters
    ----------
    name, title : str
    html : Drawing
        Markup.
    data : dict
        What the section shows, as JSON.
    failure : str or None
        Why the section of a plug-in could not be made; the page says so and has all others.
    """

    name: str
    title: str
    html: svg.Drawing
    data: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def make_sections(view: View) -> list[Made]:
    """The sections that apply to a store: ours, then those of plug-ins, in the order of their names."""
    ours = [_made(kind(), view) for kind in BUILT_IN]
    theirs = [_of_plugin(name, view) for name in sorted(set(PLUGINS.names()) - {kind.name for kind in BUILT_IN})]
    return [section for section in (*ours, *theirs) if section is not None]


def _made(section: Section, view: View) -> Made | None:
    if not section.applies(view):
        return None
    return Made(section.name, section.title, svg.Drawing(section.html(view)), section.data(view))


def _of_plugin(name: str, view: View) -> Made | None:
    try:
        kind = PLUGINS.load(name)
        assert kind is not None
        made = _made(kind(), view)
        json.dumps(None if made is None else made.data)
        return made
    except PluginError as error:
        failure = str(error)
    except Exception as error:  # whatever the package's own code raises
        failure = f"report section {name!r}: {type(error).__name__}: {error}"
    return Made(name, name, svg.Drawing(_macros().failed(failure)), failure=failure)


# ---- what is drawn ---------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "broken"


def _worst_first(facts: StoreFacts) -> list[ErrorRow]:
    return sorted(facts.errors, key=lambda row: -(row.share or 0.0))


def _totals(rows: Sequence[Version]) -> list[svg.Series]:
    raw = itertools.accumulate(row.n_bytes for row in rows)
    stored = itertools.accumulate(row.n_stored for row in rows)
    return [
        svg.Series("tensors", [(row.number, float(n)) for row, n in zip(rows, raw, strict=True)], "b"),
        svg.Series("stored", [(row.number, float(n)) for row, n in zip(rows, stored, strict=True)], "a"),
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
