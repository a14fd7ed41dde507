"""A plan: which setting each tensor gets, and every trial that led to it, as JSON that a reader can audit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nearzip.archive import WriteReport
from nearzip.bounds import Bound, parse_bound
from nearzip.budget.documents import Kinds, as_dict, fields, number, numbers, read_document, text
from nearzip.errors import CorruptError, NewerFormatError, UnknownMethodError, UsageError
from nearzip.recipes import Recipe, recipe_type
from nearzip.storage import Path_, atomic_file
from nearzip.tensors import Array
from nearzip.version import __version__

__all__ = ["Assignment", "CalibratedRounding", "Choice", "Plan", "Trial", "trial_key"]

#: Raised with every change of the schema. Plans without a calibration are written as version 1.
PLAN_VERSION = 2
FORMAT = "nearzip-plan"
_NOTHING = type(None)


@dataclass(frozen=True)
class Choice:
    """A method, its options, and the bound that was asked of it (None: the method's own)."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bound: Bound | None = None

    def recipe(self) -> Recipe:
        """The method with its options. Raises UnknownMethodError, UsageError."""
        return recipe_type(self.method).from_options(self.options)

    def checked(self) -> Choice:
        """Itself, if the method exists and can keep the bound. Raises UnknownMethodError, UsageError."""
        self.recipe().resolve_bound(self.bound)
        return self

    def with_bound(self, bound: Bound) -> Choice:
        """The same method and options with another bound."""
        return replace(self, bound=bound)

    def to_json(self) -> dict[str, Any]:
        bound = None if self.bound is None else self.bound.to_json()
        return {"method": self.method, "options": dict(self.options), "bound": bound}

    @staticmethod
    def from_json(document: Any, where: str) -> Choice:
        """Raises CorruptError; whether the method exists is `recipe`'s question."""
        d = fields(document, where, {"method": str, "options": dict, "bound": (dict, _NOTHING)})
        return Choice(d["method"], d["options"], _bound(d["bound"], f"{where}, bound"))

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.method, *options] + ([] if self.bound is None else [str(self.bound)]))


def _bound(document: Any, where: str) -> Bound | None:
    if document is None:
        return None
    kind = text(as_dict(document, where).get("kind"), where)
    value = f":{number(document['value'], where)!r}" if "value" in document else ""
    if document.get("per", "network") != "network":
        value += f":{text(document['per'], where)}"
    try:
        found = parse_bound(kind + value)
    except UsageError as error:
        raise CorruptError(f"{where}: {error}") from None
    if set(document) != set(found.to_json()):
        raise CorruptError(f"{where}: has unknown fields")
    return found


@dataclass(frozen=True)
class Assignment:
    """A choice for every tensor: `default`, and others by name.

    `targets`: what is stored in place of the tensors of these names; rounded on a grid by a calibration, for example.
    """

    default: Choice
    by_name: Mapping[str, Choice] = field(default_factory=dict)
    targets: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Choice:
        return self.by_name.get(name, self.default)

    def settings(self) -> Assignment:
        """The same without what is stored."""
        return replace(self, targets=None)

    def assignments(self, names: Sequence[str]) -> dict[str, tuple[Recipe, Bound | None]]:
        """What `compress(plan=...)` asks for: every tensor's recipe and bound."""
        return {name: (self[name].recipe(), self[name].bound) for name in names}

    def to_json(self) -> dict[str, Any]:
        return {
            "default": self.default.to_json(),
            "tensors": {name: choice.to_json() for name, choice in self.by_name.items()},
        }

    @staticmethod
    def from_json(document: Any, where: str) -> Assignment:
        d = fields(document, where, {"default": dict, "tensors": dict})
        others = {name: Choice.from_json(c, f"{where}, tensor {name[:80]!r}") for name, c in d["tensors"].items()}
        return Assignment(Choice.from_json(d["default"], f"{where}, default"), others)

    def __str__(self) -> str:
        if len(self.by_name) == 1:
            [(name, choice)] = self.by_name.items()
            return f"{self.default} and {name!r} {choice}"
        return str(self.default) + (f" and {len(self.by_name)} tensors otherwise" if self.by_name else "")


_TRIAL: Kinds = {
    "settings": dict, "bytes": int, "restored_id": str, "metrics": dict, "losses": dict,
    "usage": (float, int, _NOTHING), "stage": str, "seconds": (float, int),
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One setting, stored, restored from the stored bytes, and evaluated.

    Parameters
    ----------
    assignment : Assignment
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
    """

    assignment: Assignment
    n_bytes: int
    restored_id: str
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    usage: float
    stage: str = ""
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return self.usage <= 1

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.assignment.to_json(),
            "bytes": self.n_bytes,
            "restored_id": self.restored_id,
            "metrics": _finite(self.metrics),
            "losses": _finite(self.losses),
            "usage": self.usage if math.isfinite(self.usage) else None,
            "stage": self.stage,
            "seconds": round(self.seconds, 4),
        }

    @staticmethod
    def from_json(document: Any, where: str) -> Trial:
        """Raises CorruptError."""
        d = fields(document, where, _TRIAL)
        if d["bytes"] <= 0:
            raise CorruptError(f"{where}: takes {d['bytes']} bytes")
        metrics = _infinite(d["metrics"], f"{where}, metrics", -math.inf)
        losses = _infinite(d["losses"], f"{where}, losses", math.inf)
        if set(metrics) != set(losses) or not metrics:
            raise CorruptError(f"{where}: metrics and losses differ in their names")
        usage = math.inf if d["usage"] is None else number(d["usage"], f"{where}, usage")
        seconds = number(d["seconds"], f"{where}, seconds")
        assignment = Assignment.from_json(d["settings"], f"{where}, settings")
        return Trial(assignment, d["bytes"], d["restored_id"], metrics, losses, usage, d["stage"], seconds)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _infinite(document: Any, where: str, meant: float) -> dict[str, float]:
    values = as_dict(document, where)
    return {name: meant if v is None else number(v, f"{where}, {name[:80]!r}") for name, v in values.items()}


_ROUNDING: Kinds = {
    "step": (float, int), "tune": bool, "inputs": (float, int), "gradients": (float, int), "n_batches": int,
}  # fmt: skip


@dataclass(frozen=True)
class CalibratedRounding:
    """How `nearzip.calibrate` rounded, besides the module and its batches, which a plan cannot hold.

    Parameters
    ----------
    step : float
        Distance between the levels of a weight, geometric mean over the network.
    tune : bool
        Whether biases and norms followed.
    inputs, gradients : float
        Damping.
    n_batches : int
    """

    step: float
    tune: bool
    inputs: float
    gradients: float
    n_batches: int

    @staticmethod
    def from_json(document: Any) -> CalibratedRounding:
        """Raises CorruptError."""
        d = fields(document, "plan, calibration", _ROUNDING)
        for name in ("step", "inputs", "gradients", "n_batches"):
            if not number(d[name], f"plan, calibration, {name}") > 0:
                raise CorruptError(f"plan, calibration: {name} is not positive")
        return CalibratedRounding(**d)


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
    choices : dict of str to Choice
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
        Name of the function that judged.
    strategy : dict
        Name and parameters of the search.
    seed : int
    versions : dict
        Packages' versions.
    calibration : CalibratedRounding or None
        Of a plan by `nearzip.calibrate.tune`, which `nearzip.calibrate.compress` applies.
    """

    choices: Mapping[str, Choice]
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
    calibration: CalibratedRounding | None = None

    def __repr__(self) -> str:
        losses = ", ".join(f"{name} {-loss:+.4g}" for name, loss in self.chosen.losses.items())
        ratio = self.original_bytes / self.nbytes
        return (
            f"<nearzip.Plan for {len(self.choices)} tensors, {self.nbytes} bytes, ratio {ratio:.2f}, {losses}, "
            f"{len(self.trials)} trials>"
        )

    @property
    def nbytes(self) -> int:
        """Length of the archive that was measured."""
        return self.chosen.n_bytes

    @property
    def losses(self) -> Mapping[str, float]:
        """By metric, as measured on the stored archive."""
        return self.chosen.losses

    def assignments(self, names: Sequence[str]) -> dict[str, tuple[Recipe, Bound | None]]:
        """What `compress(plan=...)` asks for. Raises UsageError for tensors that are not the plan's, and for a plan of
        calibrated rounding.
        """
        if self.calibration is not None:
            raise UsageError(
                "the plan is of calibrated rounding; give it to nearzip.calibrate.compress with the module and the "
                "batches, on the command line with --calibrate"
            )
        odd = sorted(set(names) ^ set(self.choices))
        if odd:
            known = "has no setting for it" if odd[0] not in self.choices else "expects it"
            raise UsageError(f"tensor {odd[0]!r}: the plan {known}; it was made for another network")
        return Assignment(next(iter(self.choices.values()), Choice("nearzip")), self.choices).assignments(names)

    def differs(self, network_id: str, base_id: str | None, report: WriteReport | None = None) -> str | None:
        """Why what the plan states does not speak for this network and base, and what was written; None if it does."""
        reason = self._unlike(network_id, base_id)
        if reason is None and report is not None:
            if report.index.id == self.chosen.restored_id:
                return self._resized(report)
            others = "with other batches, or on another machine or release of PyTorch"
            how = "by another release of nearzip or of a codec that it calls" if self.calibration is None else others
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
            not index.metadata and index.tree is None and [spec.name for spec in index.tensors] == list(self.choices)
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
            "version": 1 if self.calibration is None else PLAN_VERSION,
            "network_id": self.network_id,
            "base_id": self.base_id,
            "original_bytes": self.original_bytes,
            "bytes": self.chosen.n_bytes,
            "restored_id": self.chosen.restored_id,
            "evaluate": self.evaluate,
            "max_loss": dict(self.max_loss),
            "original": dict(self.original),
            "original_again": dict(self.original_again),
            "metrics": _finite(self.chosen.metrics),
            "losses": _finite(self.chosen.losses),
            "strategy": dict(self.strategy),
            "seed": self.seed,
            "versions": dict(self.versions),
            **({} if self.calibration is None else {"calibration": asdict(self.calibration)}),
            "tensors": {name: choice.to_json() for name, choice in self.choices.items()},
            "trials": [trial.to_json() for trial in self.trials],
        }

    def save(self, path: Path_, force: bool = False) -> None:
        """Write the plan, whole or not at all. Raises UsageError if the file exists, unless `force`."""
        with atomic_file(path, force=force) as stream:
            stream.write(json.dumps(self.to_json(), indent=1, allow_nan=False).encode() + b"\n")

    @staticmethod
    def load(path: Path_) -> Plan:
        """Read a plan, believing nothing. Raises CorruptError, NewerFormatError, NotFoundError, LimitError."""
        document = read_document(path)
        try:
            return Plan.from_json(document)
        except (CorruptError, NewerFormatError, UnknownMethodError) as error:
            raise type(error)(f"{path}: {error}") from None

    @staticmethod
    def from_json(document: Any) -> Plan:
        """Raises CorruptError if the parts do not fit together, UnknownMethodError for a method that is not here."""
        _check_version(document)
        calibrated: Kinds = {} if document["version"] == 1 else {"calibration": dict}
        d = fields(document, "plan", {**_PLAN, **calibrated})
        trials = tuple(Trial.from_json(trial, f"trial {i}") for i, trial in enumerate(d["trials"]))
        choices = {name: Choice.from_json(c, f"tensor {name[:80]!r}") for name, c in d["tensors"].items()}
        for choice in choices.values():
            _check_choice(choice)
        chosen = _chosen(trials, choices, d)
        names = set(chosen.metrics)
        original, again = (numbers(d[key], key) for key in ("original", "original_again"))
        max_loss = numbers(d["max_loss"], "max_loss") if d["max_loss"] else {}
        if set(max_loss) - names or set(original) != names or set(again) != names:
            raise CorruptError("plan: metrics differ in their names")
        versions = {name: text(version, "versions") for name, version in d["versions"].items()}
        return Plan(
            choices, chosen, trials, max_loss, original, again, d["network_id"], d["base_id"], d["original_bytes"],
            d["evaluate"], d["strategy"], d["seed"], versions,
            CalibratedRounding.from_json(d["calibration"]) if calibrated else None,
        )  # fmt: skip


def _check_version(document: Any) -> None:
    if type(document) is not dict or document.get("format") != FORMAT or type(document.get("version")) is not int:
        raise CorruptError("is not a plan of nearzip")
    if document["version"] > PLAN_VERSION:
        raise NewerFormatError(f"is a plan of version {document['version']}; this release reads {PLAN_VERSION}")
    if document["version"] < 1:
        raise CorruptError(f"is a plan of version {document['version']}, which never was")


def _check_choice(choice: Choice) -> None:
    try:
        choice.checked()
    except UsageError as error:
        raise CorruptError(f"plan: {error}") from None


def _chosen(trials: Sequence[Trial], choices: Mapping[str, Choice], document: Mapping[str, Any]) -> Trial:
    """The trial that the plan's settings were taken from."""
    for trial in trials:
        if trial.restored_id == document["restored_id"] and trial.n_bytes == document["bytes"]:
            same = all(trial.assignment[name] == choice for name, choice in choices.items())
            if same and _finite(trial.losses) == document["losses"] and _finite(trial.metrics) == document["metrics"]:
                return trial
    raise CorruptError("plan: no trial of it has its settings, size and metrics")


def trial_key(network_id: str, base_id: str | None, assignment: Assignment, evaluate: str) -> str:
    """What a trial is filed under: the same network, base, settings, judge and release give the same key."""
    document = {
        "network": network_id, "base": base_id, "settings": assignment.to_json(), "evaluate": evaluate,
        "nearzip": __version__,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]
