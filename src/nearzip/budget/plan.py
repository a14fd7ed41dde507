"""A plan: which setting each tensor gets, and every trial that led to it, as JSON that a reader can audit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nearzip.archive import WriteReport
from nearzip.budget.documents import load_document, save_document
from nearzip.budget.intervals import Interval, Verdict, check_confidence
from nearzip.budget.trial import Trial, finite
from nearzip.coding import Coding, Codings
from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.fileio import Output, Path_
from nearzip.strictjson import Kinds, fields, number, numbers, text

__all__ = ["CalibratedRounding", "Plan"]

#: Raised with every change of the schema. Version 2 added `calibration`; version 3 has `made_by` in its place, and
#: `confidence`.
PLAN_VERSION = 3
FORMAT = "nearzip-plan"
#: Makers of plans: `nearzip.compress` applies those of the first.
TUNE, CALIBRATE = "nearzip.tune", "nearzip.calibrate"
_NOTHING = type(None)


#: Fields of `CalibratedRounding`, and of the same in plans of version 2.
_ROUNDING: Kinds = {
    "step": (float, int), "fit_biases": bool, "inputs": (float, int), "gradients": (float, int), "n_batches": int,
}  # fmt: skip
_ROUNDING_2 = {("tune" if name == "fit_biases" else name): kind for name, kind in _ROUNDING.items()}


@dataclass(frozen=True)
class CalibratedRounding:
    """How `nearzip.calibrate` rounded; the module and its batches are not in a plan.

    Parameters
    ----------
    step : float
        Distance between the levels of a weight, geometric mean over the network.
    fit_biases : bool
        Whether biases and norms were fitted to the rounded weights.
    inputs, gradients : float
        Damping.
    n_batches : int
    """

    step: float
    fit_biases: bool
    inputs: float
    gradients: float
    n_batches: int

    @staticmethod
    def from_json(document: Any, version: int = PLAN_VERSION) -> CalibratedRounding:
        """Raises CorruptError."""
        where = "plan, made_by" if version > 2 else "plan, calibration"
        d = dict(fields(document, where, _ROUNDING if version > 2 else _ROUNDING_2))
        for name in ("step", "inputs", "gradients", "n_batches"):
            if not number(d[name], f"{where}, {name}") > 0:
                raise CorruptError(f"{where}: {name} is not positive")
        if version <= 2:
            d["fit_biases"] = d.pop("tune")
        return CalibratedRounding(**d)


_VERSION_3: Kinds = {"made_by": dict, "confidence": (float, int, _NOTHING)}
_PLAN: Kinds = {
    "format": str, "version": int, "network_id": str, "base_id": (str, _NOTHING), "tensors": dict, "bytes": int,
    "original_bytes": int, "restored_id": str, "metrics": dict, "losses": dict, "max_loss": dict, "original": dict,
    "original_again": dict, "evaluate": str, "strategy": dict, "seed": int, "versions": dict, "trials": list,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Settings found by `tune`, with their evidence. `compress(plan=plan)` applies it.

    Attributes
    ----------
    codings : dict of str to Coding
        Every tensor's method, options and bound.
    chosen : Trial
        The trial that the settings were taken from: its bytes, metrics and losses were measured on the stored archive.
    trials : tuple of Trial
        All of them, in the order in which they were asked for.
    max_loss, original, original_again : dict
        By metric: the largest loss allowed (none where only bytes were limited), and what the original network scored,
        twice.
    network_id, base_id : str, str or None
        Content ids of the tensors and of the base that it was made for.
    original_bytes : int
        Of the tensors.
    evaluate : str
        Name of the evaluator.
    strategy : dict
        Name and parameters of the search.
    seed : int
    versions : dict
        Packages' versions.
    made_by : dict
        The `name` of what made the plan and applies it, and what else that needs: "nearzip.tune" for `compress`,
        "nearzip.calibrate" for `nearzip.calibrate.compress`.
    confidence : float or None
        With it, the upper confidence bound of every limited loss is within its budget; see `intervals`.
    """

    codings: Mapping[str, Coding]
    chosen: Trial
    trials: tuple[Trial, ...]
    max_loss: Mapping[str, float]
    original: Mapping[str, float]
    original_again: Mapping[str, float]
    network_id: str
    base_id: str | None
    original_bytes: int
    evaluate: str
    strategy: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    made_by: Mapping[str, Any] = field(default_factory=lambda: {"name": TUNE})
    confidence: float | None = None

    def __repr__(self) -> str:
        losses = ", ".join(f"{name} {-loss:+.4g}" for name, loss in self.chosen.losses.items())
        ratio = self.original_bytes / self.nbytes
        return (
            f"<nearzip.Plan for {len(self.codings)} tensors, {self.nbytes} bytes, ratio {ratio:.2f}, {losses}, "
            f"{len(self.trials)} trials>"
        )

    @property
    def nbytes(self) -> int:
        """Length of the archive that was measured."""
        return self.chosen.n_bytes

    @property
    def losses(self) -> Mapping[str, float]:
        """Loss by metric: original minus restored, measured on the archive as stored."""
        return self.chosen.losses

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """Upper confidence bound of the loss by metric. Empty without a confidence."""
        return self.chosen.intervals

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdict on every limited metric, with a confidence: "kept", "broken" or "not shown"."""
        return {name: self.intervals[name].verdict(x) for name, x in self.max_loss.items() if name in self.intervals}

    @property
    def calibration(self) -> CalibratedRounding | None:
        """How `nearzip.calibrate` rounded; None in a plan by another maker."""
        if self.made_by["name"] != CALIBRATE:
            return None
        return CalibratedRounding.from_json({name: v for name, v in self.made_by.items() if name != "name"})

    @property
    def choices(self) -> Mapping[str, Coding]:
        """The name of `codings` in release 0.1."""
        warnings.warn("Plan.choices is Plan.codings", DeprecationWarning, stacklevel=2)
        return self.codings

    def codings_for(self, names: Sequence[str]) -> Codings:
        """The codings of all tensors, for `compress(plan=...)`.

        Raises UsageError for tensors that are not the plan's, and for a plan that something else applies.
        """
        maker = self.made_by["name"]
        if maker == CALIBRATE:
            raise UsageError(
                "the plan is of calibrated rounding; give it to nearzip.calibrate.compress with the module and the "
                "batches, on the command line with --calibrate"
            )
        if maker != TUNE:
            raise UsageError(f"the plan was made by {maker}, which applies it; nearzip.compress cannot")
        odd = sorted(set(names) ^ set(self.codings))
        if odd:
            known = "has no setting for it" if odd[0] not in self.codings else "expects it"
            raise UsageError(f"tensor {odd[0]!r}: the plan {known}; it was made for another network")
        return Codings(next(iter(self.codings.values()), Coding()), self.codings).codings_for(names)

    def differs(self, network_id: str, base_id: str | None, report: WriteReport | None = None) -> str | None:
        """Why what the plan states does not speak for this network and base, and what was written; None if it does."""
        reason = self._unlike(network_id, base_id)
        if reason is None and report is not None:
            if report.index.id == self.chosen.restored_id:
                return self._resized(report)
            others = "with other batches, or on another machine or release of PyTorch"
            how = (
                others
                if self.made_by["name"] == CALIBRATE
                else "by another release of nearzip or of a codec that it calls"
            )
            reason = (
                f"the plan was measured {how}: its archive gives {self.chosen.restored_id}, this one {report.index.id}"
            )
        return reason and f"{reason}; the loss that it states was not measured here"

    def _unlike(self, network_id: str, base_id: str | None) -> str | None:
        if network_id != self.network_id:
            return f"the plan was made for the network {self.network_id}, this one is {network_id}"
        if base_id != self.base_id:
            return f"the plan was made against the base {self.base_id}, this one is {base_id}"
        return None

    def _resized(self, report: WriteReport) -> str | None:
        """Of an archive that gives what was measured. Metadata and another order of the tensors take other bytes."""
        index = report.index
        alike = (
            not index.metadata and index.tree is None and [spec.name for spec in index.tensors] == list(self.codings)
        )
        if not alike or report.n_bytes == self.nbytes:
            return None
        return (
            f"the plan states {self.nbytes} bytes, this archive takes {report.n_bytes} and gives the same; another "
            "release of nearzip or of a codec that it calls wrote the one that was measured"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": PLAN_VERSION,
            "made_by": dict(self.made_by),
            "network_id": self.network_id,
            "base_id": self.base_id,
            "original_bytes": self.original_bytes,
            "bytes": self.chosen.n_bytes,
            "restored_id": self.chosen.restored_id,
            "evaluate": self.evaluate,
            "max_loss": dict(self.max_loss),
            "confidence": self.confidence,
            "original": dict(self.original),
            "original_again": dict(self.original_again),
            "metrics": finite(self.chosen.metrics),
            "losses": finite(self.chosen.losses),
            "strategy": dict(self.strategy),
            "seed": self.seed,
            "versions": dict(self.versions),
            "tensors": {name: coding.to_json() for name, coding in self.codings.items()},
            "trials": [trial.to_json() for trial in self.trials],
        }

    def save(self, path: Output, force: bool = False) -> None:
        """Write the plan, whole or not at all. Raises UsageError if the file exists, unless `force`."""
        save_document(path, self.to_json(), force)

    @staticmethod
    def load(path: Path_) -> Plan:
        """Read a plan, believing nothing. Raises CorruptError, NewerFormatError, NotFoundError, LimitError."""
        return load_document(path, Plan.from_json)

    @staticmethod
    def from_json(document: Any) -> Plan:
        """Raises CorruptError if the parts do not fit together, UnknownMethodError for a method that is not here."""
        _check_version(document)
        version = document["version"]
        own: Kinds = _VERSION_3 if version > 2 else {"calibration": dict} if version == 2 else {}
        d = fields(document, "plan", {**_PLAN, **own})
        made_by = _made_by(d)
        trials = tuple(Trial.from_json(trial, f"trial {i}") for i, trial in enumerate(d["trials"]))
        codings = {name: Coding.from_json(c, f"tensor {name[:80]!r}") for name, c in d["tensors"].items()}
        if made_by["name"] in (TUNE, CALIBRATE):
            for coding in codings.values():
                _check_coding(coding)
        chosen = _chosen(trials, codings, d)
        names = set(chosen.metrics)
        original, again = (numbers(d[key], key) for key in ("original", "original_again"))
        max_loss = numbers(d["max_loss"], "max_loss") if d["max_loss"] else {}
        if set(max_loss) - names or set(original) != names or set(again) != names:
            raise CorruptError("plan: metrics differ in their names")
        confidence = _confidence(d.get("confidence"))
        if confidence is not None and not set(max_loss) <= set(chosen.intervals):
            raise CorruptError("plan: has a confidence, but not the bounds of every limited loss")
        versions = {name: text(version, "versions") for name, version in d["versions"].items()}
        return Plan(
            codings, chosen, trials, max_loss, original, again, d["network_id"], d["base_id"], d["original_bytes"],
            d["evaluate"], d["strategy"], d["seed"], versions,
            made_by, confidence,
        )  # fmt: skip


def _check_version(document: Any) -> None:
    if type(document) is not dict or document.get("format") != FORMAT or type(document.get("version")) is not int:
        raise CorruptError("is not a plan of nearzip")
    if document["version"] > PLAN_VERSION:
        raise NewerFormatError(f"is a plan of version {document['version']}; this release reads {PLAN_VERSION}")
    if document["version"] < 1:
        raise CorruptError(f"is a plan of version {document['version']}; the first is 1")


def _made_by(document: Mapping[str, Any]) -> dict[str, Any]:
    """What made a plan of any version. Raises CorruptError."""
    if document["version"] < 3:
        if "calibration" not in document:
            return {"name": TUNE}
        return {"name": CALIBRATE, **asdict(CalibratedRounding.from_json(document["calibration"], 2))}
    made_by: dict[str, Any] = document["made_by"]
    name = text(made_by.get("name"), "plan, made_by, name")
    rest = {key: value for key, value in made_by.items() if key != "name"}
    if name == CALIBRATE:
        CalibratedRounding.from_json(rest)
    elif name == TUNE and rest:
        raise CorruptError(f"plan, made_by: unknown field {next(iter(rest))[:80]!r}")
    return made_by


def _confidence(value: Any) -> float | None:
    try:
        return None if value is None else check_confidence(value)
    except UsageError as error:
        raise CorruptError(f"plan: {error}") from None


def _check_coding(coding: Coding) -> None:
    try:
        coding.checked()
    except UsageError as error:
        raise CorruptError(f"plan: {error}") from None


def _chosen(trials: Sequence[Trial], codings: Mapping[str, Coding], document: Mapping[str, Any]) -> Trial:
    """The trial that the plan's settings were taken from."""
    for trial in trials:
        if trial.restored_id == document["restored_id"] and trial.n_bytes == document["bytes"]:
            same = all(trial.codings[name] == coding for name, coding in codings.items())
            if same and finite(trial.losses) == document["losses"] and finite(trial.metrics) == document["metrics"]:
                return trial
    raise CorruptError("plan: no trial of it has its settings, size and metrics")
