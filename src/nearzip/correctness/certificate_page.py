"""One self-contained HTML page about a certificate: verdicts first, then what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.correctness.pictures import heat_map, pairs_of_bars, png_uri, scatter
from nearzip.report.engine import environment, number
from nearzip.report.svg import Interval, intervals
from nearzip.version import __version__

if TYPE_CHECKING:
    from nearzip.correctness.evidence import Changed, Evidence

__all__ = ["render"]

_KINDS = {KEPT: "good", BROKEN: "bad", NOT_SHOWN: "open", None: ""}
#: Rows of the chart, of classes and of the matrix.
_MAX_DRAWN, _MAX_CLASSES, _MAX_MATRIX = 60, 100, 20


class Certified(Protocol):
    """What the page reads of a certificate."""

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def measurement(self) -> Mapping[str, Any]: ...

    @property
    def evidence(self) -> Any: ...

    def part(self, name: str) -> Mapping[str, Any]: ...

    def has_part(self, name: str) -> bool: ...


def render(certificate: Certified) -> str:
    """The page as text. Raises MissingExtraError where jinja2 is not installed."""
    engine = environment()
    engine.filters.update(kind=_KINDS.get, figure=_figure)
    engine.tests["missing"] = lambda value: value is None
    template = (resources.files("nearzip.correctness") / "certificate.html").read_text("utf-8")
    evidence: Evidence | None = certificate.evidence
    classes = None if evidence is None else evidence.classes
    limited = {name: row for name, row in certificate.metrics.items() if row["verdict"] is not None}
    return str(engine.from_string(template).render(
        certificate=certificate,
        version=__version__,
        limited=limited,
        others={name: row for name, row in certificate.metrics.items() if row["verdict"] is None},
        chart=_chart(limited),
        classes=_class_bars(certificate.metrics, classes),
        matrices=[] if evidence is None else _matrices(evidence),
        changed=[] if evidence is None else [_row(each, classes) for each in evidence.changed()],
        n_changed=None if evidence is None else evidence.n_changed,
        scatters=[] if evidence is None else _scatters(certificate, evidence),
        unknown=[f"{name}: {_needed(row)}" for name, row in limited.items() if row["verdict"] == NOT_SHOWN],
        notes=_notes(certificate),
    ))  # fmt: skip


def _figure(value: float | None) -> str:
    return "no number" if value is None else number(value)


def _chart(limited: Mapping[str, Mapping[str, Any]]) -> Any:
    rows = []
    for name, row in limited.items():
        low, high = row["interval"]["lower"], row["interval"]["upper"]
        if row["loss"] is not None and low is not None and high is not None:
            rows.append(Interval(name, row["loss"], low, high, row["limit"], f"{row['loss']:+.4f}",
                                 _KINDS[row["verdict"]]))  # fmt: skip
    rows.sort(key=lambda row: row.limit - row.high)
    return intervals("Loss by metric", rows[:_MAX_DRAWN], number)


def _class_bars(metrics: Mapping[str, Mapping[str, Any]], classes: Sequence[str] | None) -> Any:
    """Figure 4: accuracy class by class, before and after."""
    found = []
    for name, row in metrics.items():
        prefix, is_class, label = name.rpartition("class/")
        if not is_class or (prefix not in ("",) and not prefix.endswith("/")) or row["original"] is None:
            continue
        shown = prefix + _class_name(int(label) if label.isdigit() else label, classes)
        n = row["interval"]["n"] if row["interval"] else 0
        after = row["restored"] or 0.0
        words = f"{100 * row['original']:.1f} → {100 * after:.1f} %, n = {n}"
        found.append((shown, row["original"], after, words))
    return pairs_of_bars("Accuracy by class, before and after", found[:_MAX_CLASSES]) if found else None


def _class_name(label: Any, classes: Sequence[str] | None) -> str:
    if isinstance(label, int):
        if label < 0:
            return "not a number"
        return str(classes[label]) if classes is not None and label < len(classes) else str(label)
    return str(label)


def _matrices(evidence: Evidence) -> list[tuple[str, list[str], list[list[int]]]]:
    """Which class became which: rows the original's, columns the restored network's."""
    found = []
    for name, table in evidence.changes.items():
        if len(table) <= _MAX_MATRIX:
            labels = [_class_name(k, evidence.classes) for k in range(len(table))]
            found.append((name, labels, table.tolist()))
    return found


@dataclass(frozen=True)
class _ChangedRow:
    number: int
    picture: str | None
    text: str | None
    target: str | None
    before: str
    after: str
    maps: tuple[str, str] | None
    overlap: float | None


def _row(each: Changed, classes: Sequence[str] | None) -> _ChangedRow:
    """Figure 5: a sample, and what both networks looked at."""
    is_image = isinstance(each.shown, np.ndarray) and each.shown.ndim in (2, 3)
    maps = None
    if is_image and each.maps is not None:
        largest = max(float(np.abs(part).max()) for part in each.maps)
        maps = (png_uri(heat_map(each.maps[0], largest)), png_uri(heat_map(each.maps[1], largest)))
    return _ChangedRow(
        each.number, png_uri(each.shown) if is_image else None, None if is_image else str(each.shown)[:500],
        None if each.target is None else _class_name(each.target, classes), _class_name(each.before, classes),
        _class_name(each.after, classes), maps, each.overlap,
    )  # fmt: skip


def _scatters(certificate: Certified, evidence: Evidence) -> list[tuple[str, Any, str]]:
    """Figure 6: how far each sample is from another class."""
    found = []
    yardsticks = certificate.measurement["yardsticks"]
    for name, (before, after) in evidence.pairs.items():
        own = {key[len(name) + 1 :]: value for key, value in yardsticks.items() if key.startswith(f"{name}/")}
        ratio, half = own.get("log2-ratio/median"), own.get("below-half")
        words = f"{len(before)} samples"
        if ratio is not None and half is not None:
            words += f"; median ratio {2**ratio:.3g}; {100 * half:.1f} % at less than half the distance (red)"
        censored = sum(int(own.get(f"censored/{which}") or 0) for which in ("both", "original", "restored"))
        found.append((name, scatter(f"Distances, {name}", before, after), f"{words}; {censored} censored, on the edge"))
    return found


def _needed(row: Mapping[str, Any]) -> str:
    n, needed = row["interval"]["n"], row["samples_needed"]
    if needed is None:
        return f"the loss seen is not below its limit of {number(row['limit'])}; more samples would not help"
    return f"about {needed:,} samples would show it at the loss seen here; there are {n:,}"


def _notes(certificate: Certified) -> list[str]:
    samples = certificate.part("samples")["annotations"]
    found = []
    if not certificate.has_part("tuned-on"):
        found.append("What settings were tuned on is not stated, so nothing shows that these samples are fresh.")
    if samples["n"] != samples["n_distinct"]:
        found.append(f"{samples['n'] - samples['n_distinct']} samples are copies of others; they show nothing new.")
    for name, row in certificate.metrics.items():
        if row["restored"] is None or (row["loss"] is not None and not math.isfinite(row["loss"])):
            found.append(f"{name} is no number for the compressed network.")
    return found
