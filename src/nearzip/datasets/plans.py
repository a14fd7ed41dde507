"""Plans of data sets: the codec that `tune` chose, with its evidence, as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.budget.documents import load_document, save_document
from nearzip.budget.intervals import Interval
from nearzip.datasets.codecs.base import SampleCodec
from nearzip.datasets.codecs.registry import codec_from_json
from nearzip.errors import CorruptError, NewerFormatError
from nearzip.fileio import Output, Path_
from nearzip.strictjson import Kinds, as_dict, fields, integer, number, numbers, text

__all__ = ["Plan", "Trial"]

FORMAT = "nearzip-dataset-plan"
VERSION = 1
_NONE = type(None)


@dataclass(frozen=True)
class Trial:
    """One codec, written, read back and evaluated.

    Parameters
    ----------
    codec : SampleCodec
    n_bytes : int
        Of the whole file, with container and index.
    losses : dict of str to float
        By metric, original minus restored; infinite for what was no number.
    usage : float
        The largest share of a budget that was used; at most 1 is within.
    intervals : dict of str to Interval
        With a confidence: bounds of the losses, which `usage` then counts.
    """

    codec: SampleCodec
    n_bytes: int
    losses: Mapping[str, float]
    usage: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.usage <= 1

    def to_json(self) -> dict[str, Any]:
        document = {
            "codec": self.codec.to_json(),
            "bytes": self.n_bytes,
            "losses": {name: x if math.isfinite(x) else None for name, x in self.losses.items()},
            "usage": self.usage if math.isfinite(self.usage) else None,
        }
        if self.intervals:
            document["intervals"] = {name: found.to_json() for name, found in self.intervals.items()}
        return document

    @staticmethod
    def from_json(document: Any, where: str) -> Trial:
        """Raises CorruptError, UnknownMethodError."""
        more: Kinds = {"intervals": dict} if type(document) is dict and "intervals" in document else {}
        kinds: Kinds = {"codec": dict, "bytes": int, "losses": dict, "usage": (float, int, _NONE)}
        d = fields(document, where, {**kinds, **more})
        losses = {name: math.inf if x is None else number(x, f"{where}, losses") for name, x in d["losses"].items()}
        usage = math.inf if d["usage"] is None else number(d["usage"], f"{where}, usage")
        intervals = {name: Interval.from_json(i, f"{where}, intervals") for name, i in d.get("intervals", {}).items()}
        codec = codec_from_json(d["codec"], f"{where}, codec")
        return Trial(codec, integer(d["bytes"], f"{where}, bytes", 1), losses, usage, intervals)


@dataclass(frozen=True)
class Plan:
    """What `datasets.tune` found. `datasets.write(plan=plan)` applies it.

    Attributes
    ----------
    chosen : Trial
        The smallest within the budget.
    trials : tuple of Trial
    original : dict of str to float
        Metrics of the original images.
    max_loss : dict of str to float
        Absolute, by metric.
    n_samples, raw_bytes : int
        Of the images that it was measured on.
    evaluate : str
        Name of the evaluator.
    confidence : float or None
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    original: Mapping[str, float]
    max_loss: Mapping[str, float]
    n_samples: int
    raw_bytes: int
    evaluate: str
    confidence: float | None = None

    @property
    def codec(self) -> SampleCodec:
        return self.chosen.codec

    @property
    def losses(self) -> Mapping[str, float]:
        """Loss by metric: original minus restored, measured on the images as stored."""
        return self.chosen.losses

    @property
    def bytes_per_sample(self) -> float:
        """Bytes for each sample, index and checksums included."""
        return self.chosen.n_bytes / self.n_samples

    def __repr__(self) -> str:
        losses = ", ".join(f"{name} {loss:.4g}" for name, loss in self.losses.items())
        return f"<nearzip data set plan {self.codec}: {self.bytes_per_sample:.1f} bytes a sample, loses {losses}>"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "version": VERSION, "chosen": self.trials.index(self.chosen), "samples": self.n_samples,
            "raw_bytes": self.raw_bytes, "evaluate": self.evaluate, "original": dict(self.original),
            "max_loss": dict(self.max_loss), "confidence": self.confidence,
            "trials": [trial.to_json() for trial in self.trials],
        }  # fmt: skip

    def save(self, path: Output, force: bool = False) -> None:
        """Write the plan, whole or not at all. Raises UsageError if the file exists, unless `force`."""
        save_document(path, self.to_json(), force)

    @staticmethod
    def load(path: Path_) -> Plan:
        """Read a plan from an untrusted file. Raises CorruptError, NewerFormatError, NotFoundError."""
        return load_document(path, Plan.from_json)

    @staticmethod
    def from_json(document: Any) -> Plan:
        """Raises CorruptError, NewerFormatError, UnknownMethodError."""
        d = as_dict(document, "plan")
        if d.get("format") != FORMAT or type(d.get("version")) is not int:
            raise CorruptError("is not a plan of a data set")
        if d["version"] > VERSION:
            raise NewerFormatError(f"is a plan of version {d['version']}; this release reads {VERSION}")
        kinds: Kinds = {
            "format": str, "version": int, "chosen": int, "samples": int, "raw_bytes": int, "evaluate": str,
            "original": dict, "max_loss": dict, "confidence": (float, int, _NONE), "trials": list,
        }  # fmt: skip
        d = fields(d, "plan", kinds)
        trials = tuple(Trial.from_json(t, f"trial {i}") for i, t in enumerate(d["trials"]))
        chosen = integer(d["chosen"], "plan, chosen", 0, len(trials) - 1)
        original = numbers(d["original"], "original")
        if set(trials[chosen].losses) != set(original):
            raise CorruptError("plan: metrics differ in their names")
        return Plan(
            trials[chosen], trials, original, numbers(d["max_loss"], "max_loss"), integer(d["samples"], "samples", 1),
            integer(d["raw_bytes"], "raw_bytes", 0), text(d["evaluate"], "evaluate"), d["confidence"],
        )  # fmt: skip
