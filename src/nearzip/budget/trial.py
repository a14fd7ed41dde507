"""One trial of a search, as JSON: its settings, bytes, metrics and losses; and the key it is filed under."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.budget.intervals import Interval
from nearzip.coding import Codings
from nearzip.errors import CorruptError
from nearzip.strictjson import Kinds, as_dict, fields, number
from nearzip.version import __version__

__all__ = ["Trial", "finite", "trial_key"]

_NOTHING = type(None)

_TRIAL: Kinds = {
    "settings": dict, "bytes": int, "restored_id": str, "metrics": dict, "losses": dict,
    "usage": (float, int, _NOTHING), "stage": str, "seconds": (float, int),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One setting, stored, restored from the stored bytes, and evaluated.

    Parameters
    ----------
    codings : Codings
    n_bytes : int
        Of the whole archive.
    restored_id : str
        Content id of what a reader gets.
    metrics, losses : dict
        By metric, higher is better; loss is the original network's metric minus this one's, negative for a gain. -inf
        and inf for what was no number.
    usage : float
        The largest share of a metric's budget that was used; at most 1 means within. Without a budget 0, or infinite
        if a metric was no number.
    stage : str
        Which part of the search asked for it.
    seconds : float
        Compressing, restoring and evaluating.
    intervals : dict of str to Interval
        Of a search with a confidence: bounds of the losses, by metric. `usage` then counts their upper bounds.
    """

    codings: Codings
    n_bytes: int
    restored_id: str
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    usage: float
    stage: str = ""
    seconds: float = 0.0
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def assignment(self) -> Codings:
        """The name of `codings` in release 0.1."""
        warnings.warn("Trial.assignment is Trial.codings", DeprecationWarning, stacklevel=2)
        return self.codings

    @property
    def fits(self) -> bool:
        return self.usage <= 1

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.codings.to_json(),
            "bytes": self.n_bytes,
            "restored_id": self.restored_id,
            "metrics": finite(self.metrics),
            "losses": finite(self.losses),
            "usage": self.usage if math.isfinite(self.usage) else None,
            "stage": self.stage,
            "seconds": round(self.seconds, 4),
            **({"intervals": {n: found.to_json() for n, found in self.intervals.items()}} if self.intervals else {}),
        }

    @staticmethod
    def from_json(document: Any, where: str) -> Trial:
        """Raises CorruptError."""
        bounded: Kinds = {"intervals": dict} if type(document) is dict and "intervals" in document else {}
        d = fields(document, where, {**_TRIAL, **bounded})
        if d["bytes"] <= 0:
            raise CorruptError(f"{where}: takes {d['bytes']} bytes")
        metrics = _or(d["metrics"], f"{where}, metrics", -math.inf)
        losses = _or(d["losses"], f"{where}, losses", math.inf)
        if set(metrics) != set(losses) or not metrics:
            raise CorruptError(f"{where}: metrics and losses differ in their names")
        usage = math.inf if d["usage"] is None else number(d["usage"], f"{where}, usage")
        seconds = number(d["seconds"], f"{where}, seconds")
        codings = Codings.from_json(d["settings"], f"{where}, settings")
        intervals = {
            name: Interval.from_json(found, f"{where}, intervals, {name[:80]!r}")
            for name, found in d.get("intervals", {}).items()
        }
        if not set(intervals) <= set(metrics):
            raise CorruptError(f"{where}: has intervals of other metrics")
        return Trial(codings, d["bytes"], d["restored_id"], metrics, losses, usage, d["stage"], seconds, intervals)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _or(document: Any, where: str, meant: float) -> dict[str, float]:
    values = as_dict(document, where)
    return {name: meant if v is None else number(v, f"{where}, {name[:80]!r}") for name, v in values.items()}


def trial_key(network_id: str, base_id: str | None, codings: Codings, evaluate: str) -> str:
    """The key a trial is filed under: equal for the same network, base, settings, evaluator and release."""
    document = {
        "network": network_id, "base": base_id, "settings": codings.to_json(), "evaluate": evaluate,
        "nearzip": __version__,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
