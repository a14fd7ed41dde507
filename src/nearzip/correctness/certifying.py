"""Measure what a compressed network still does the same on fresh data, and certify it. Needs the extra `torch`."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nearzip
from nearzip.api import decompress
from nearzip.api import open as open_archive
from nearzip.archive import Archive
from nearzip.budget.budgets import Budgets, MaxLoss, check_budgets
from nearzip.budget.evaluators import Evaluation
from nearzip.budget.intervals import check_confidence, interval
from nearzip.budget.plan import Plan
from nearzip.correctness.canonical import canonical, sha256
from nearzip.correctness.certificate import VERSION, ArchiveLike, Certificate, MetricRow, archive_digest, sealed
from nearzip.correctness.evidence import Show, Witness
from nearzip.correctness.limited import measures_for
from nearzip.correctness.samples import digest_of_list, sample_digests, tensors_digest
from nearzip.errors import UsageError
from nearzip.inputs import open_input
from nearzip.measures.measure import Measure
from nearzip.torch.evaluator import Evaluator, Predict, predict_classes
from nearzip.torch.observing import Documents, Loader, data_sets

__all__ = ["certify"]

#: Beside the limited metrics, where predictions have targets, and where not.
_WITH_TARGETS = ("top1", "class/*", "flips", "agreement", "kl/*")
_WITHOUT = ("agreement", "kl/*")
_OF_REGRESSORS = ("distance",)


def certify(
    archive: ArchiveLike,
    network: nn.Module,
    fresh_data: Loader | Mapping[str, Loader],
    *,
    limits: MaxLoss | None = None,
    plan: Plan | None = None,
    tuned_on: Any = None,
    metrics: Sequence[str | Measure] | None = None,
    base: Any = None,
    confidence: float | None = None,
    predict: Predict | None = None,
    documents: Documents | None = None,
    features: str | None = None,
    classes: Sequence[str] | None = None,
    show: Show | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Certificate:
    """Measure an archive's network beside the original on data that it was not tuned on, under limits.

    Parameters
    ----------
    archive : Archive, bytes or path
        What is deployed: its tensors are restored from its bytes.
    network : torch.nn.Module
        The original.
    fresh_data : iterable of batches, or mapping of str to iterables
        As for `nearzip.torch.evaluator`. Nothing of it may have been tuned on.
    limits : float, str or mapping
        The largest loss allowed by metric or pattern, as `max_loss` of `nearzip.tune`. Default: the plan's.
    plan : Plan
        What the archive was made with.
    tuned_on : iterable of batches, mapping of them, or sequence of str
        The data that settings were chosen on, or the digests that `sample_digests` gave for it. The certificate holds
        both lists, so that anybody can see that they are disjoint; without it, it says nothing about that.
    metrics : sequence of str or Measure
        What to measure beside the limited metrics. Default: accuracy by class, flips, agreement and divergence, as far
        as the data have targets. Measures with options of their own, such as `Cost(d)`, are given here.
    base : mapping or path
        What the archive was made against, if anything.
    confidence : float
        Of every verdict; where one pattern limits several metrics, of all of them at once. Default: the plan's, or
        0.95.
    predict, documents, features
        As for `nearzip.torch.evaluator`.
    classes : sequence of str
        Names of the classes, for the page.
    show : callable
        show(batch) -> for each row a text, or an image (height, width) or (height, width, 3) from 0 to 1, for the page.
    seed : int
        PyTorch's generator starts from it.
    command : sequence of str
        The command that repeats the measurement.
    progress : callable
        Called with the number of samples measured so far.

    Returns
    -------
    Certificate

    Raises
    ------
    UsageError
        Samples that were tuned on, a limit that matches no metric, a plan of another archive.
    WrongBaseError, CorruptError
        As `nearzip.decompress` does.

    Notes
    -----
    Each network runs once over the data, and once more for every measure that needs gradients.
    """
    _check_kinds(network, plan, tuned_on, classes, show, seed)
    subject = _Subject.of(archive, network, base, plan)
    limits = _limits(limits, plan)
    given = confidence if confidence is not None or plan is None else plan.confidence
    confidence = check_confidence(0.95 if given is None else given)
    measures = _measures(limits, metrics, fresh_data, predict)
    evaluator = Evaluator(network, fresh_data, measures, predict, None, documents, features, keep=False)
    witness = Witness(classes, show, progress)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before, after = evaluator.compared(subject.restored, witness)
    if witness.n_undefined:
        total = sum(counts["n"] for counts in witness.counts.values())
        raise UsageError(
            f"the original gives NaN for {witness.n_undefined} of {total} predictions, so that nothing can be kept; "
            "check its weights and the samples"
        )
    tuned = None if tuned_on is None else _digests(tuned_on)
    _check_fresh(witness.digests, tuned)
    rows = _rows(before, after, Budgets.of(limits, before.metrics), confidence)
    measurement = {
        "version": VERSION, "confidence": confidence, "limits": _as_given(limits),
        "metrics": {row.name: row.to_json() for row in rows}, "yardsticks": _finite(after.yardsticks),
        "counts": witness.counts, "evaluator": evaluator.name, "seed": seed, "versions": _versions(),
        "command": list(command),
    }  # fmt: skip
    parts = [*subject.parts, *_data_parts(witness, tuned), _part("measurement", measurement)]
    evidence = witness.evidence(after, evaluator, subject.restored)
    return Certificate(sealed(subject.subjects, parts), evidence)


def _check_kinds(network: Any, plan: Any, tuned_on: Any, classes: Any, show: Any, seed: Any) -> None:
    """Raises UsageError for arguments of the wrong kind, before anything is measured."""
    if not isinstance(network, nn.Module):
        raise UsageError(f"the network is a torch.nn.Module, not {type(network).__name__}")
    if plan is not None and not isinstance(plan, Plan):
        raise UsageError(f"plan= is what nearzip.tune or Plan.load returned, not {type(plan).__name__}")
    if tuned_on is not None and not isinstance(tuned_on, Iterable):
        raise UsageError(f"tuned_on= takes batches or digests of samples, not {type(tuned_on).__name__}")
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Sequence)):
        raise UsageError("classes= are names in the order of the network's outputs, such as ['cat', 'dog']")
    if show is not None and not callable(show):
        raise UsageError("show= is a function: show(batch) returns an image or a text for each row")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed= is a whole number, not {seed!r}")


@dataclass(frozen=True)
class _Subject:
    """What is certified: bytes, tensors, and what they belong to."""

    subjects: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    restored: Mapping[str, Any]

    @staticmethod
    def of(archive: ArchiveLike, network: nn.Module, base: Any, plan: Plan | None) -> _Subject:
        digest = archive_digest(archive)
        with open_archive(archive, base) as reader:
            restored_id, base_id = reader.index.id, reader.index.base_id
        if plan is not None and plan.chosen.restored_id != restored_id:
            raise UsageError(
                f"the plan was measured on another archive: it gives {plan.chosen.restored_id}, this one {restored_id}"
            )
        restored = decompress(archive, base)
        subjects = [
            {"name": _name_of(archive), "digest": {"sha256": digest}},
            {"name": "restored tensors", "digest": {"sha256": tensors_digest(restored)}},
        ]
        parts: list[dict[str, Any]] = [{"name": "original", "digest": {"sha256": tensors_digest(network.state_dict())}}]
        if base_id is not None:
            parts.append({"name": "base", "digest": {"sha256": tensors_digest(_base_of(base))}})
        if plan is not None:
            parts.append({"name": "plan", "digest": {"sha256": sha256(canonical(plan.to_json()))}})
        return _Subject(subjects, parts, restored)


def _base_of(base: Any) -> Mapping[str, Any]:
    if isinstance(base, Mapping):
        return base
    with contextlib.closing(open_input(base)) as checkpoint:
        return {name: array.copy() for name, array in checkpoint.arrays()}


def _name_of(archive: ArchiveLike) -> str:
    if isinstance(archive, (Archive, bytes, bytearray, memoryview)):
        return "archive"
    return Path(archive).name


def _limits(limits: MaxLoss | None, plan: Plan | None) -> MaxLoss:
    if limits is None and plan is not None:
        limits = dict(plan.max_loss) or None
    if limits is None:
        raise UsageError("a certificate needs limits; give limits= or a plan with max_loss")
    check_budgets(limits)
    return limits


def _as_given(limits: MaxLoss) -> dict[str, Any]:
    return dict(limits) if isinstance(limits, Mapping) else {"*": limits}


def _measures(
    limits: MaxLoss, metrics: Sequence[str | Measure] | None, data: Any, predict: Predict | None
) -> list[str | Measure]:
    """What to measure: the limited metrics, and what was asked for beside them."""
    if metrics is None:
        metrics = _usual(data, predict)
    return measures_for(limits if isinstance(limits, Mapping) else (), metrics)


def _usual(data: Any, predict: Predict | None) -> tuple[str, ...]:
    """What is measured of the targets that the first batch comes with: classes, real numbers or none."""
    if predict is not None:
        return _WITH_TARGETS
    first: Any = next(iter(data_sets(data)[0].loader), None)
    targets = predict_classes(_Anything(), first)[1] if first is not None else None
    if isinstance(targets, torch.Tensor) and targets.is_floating_point():
        return _OF_REGRESSORS
    return _WITHOUT if targets is None else _WITH_TARGETS


class _Anything:
    """A module whose outputs do not matter."""

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        first = next(iter([*inputs, *named.values()]))
        return torch.zeros(*first.shape[:2], 1)


def _digests(tuned_on: Any) -> list[str]:
    if isinstance(tuned_on, Sequence) and not tuned_on:
        raise UsageError("tuned_on= is empty; leave it out where nothing was tuned")
    if isinstance(tuned_on, Sequence) and all(isinstance(each, str) for each in tuned_on):
        if any(not re.fullmatch(r"[0-9a-f]{64}", each) for each in tuned_on):
            raise UsageError("tuned_on= takes batches, or the digests that nearzip.correctness.sample_digests gives")
        return list(tuned_on)
    return sample_digests(tuned_on)


def _check_fresh(digests: Sequence[str], tuned: Sequence[str] | None) -> None:
    shared = len(set(digests) & set(tuned or ()))
    if shared:
        raise UsageError(
            f"{shared} of the {len(digests)} samples were tuned on; a certificate is about fresh data, leave them out"
        )


def _rows(before: Evaluation, after: Evaluation, budgets: Budgets, confidence: float) -> list[MetricRow]:
    confidences = budgets.confidences(confidence)
    missing = [name for name in budgets.allowed if name not in before.statistics]
    if missing:
        raise UsageError(f"metric {missing[0]!r} has no samples behind it that a confidence could be computed from")
    found = []
    for name, value in before.metrics.items():
        own = before.statistics.get(name)
        bounds = None if own is None else interval(own, after.statistics[name], confidences.get(name, confidence))
        found.append(MetricRow.of(name, value, after.metrics[name], bounds, budgets.allowed.get(name)))
    return found


def _data_parts(witness: Witness, tuned: Sequence[str] | None) -> Iterable[dict[str, Any]]:
    notes = {"n": len(witness.digests), "n_distinct": len(set(witness.digests)), "targets": witness.targets_digest}
    yield _listed("samples", witness.digests, notes)
    if tuned is not None:
        yield _listed("tuned-on", sorted(set(tuned)), {"n": len(tuned), "shared_with_samples": 0})


def _listed(name: str, digests: Sequence[str], notes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "digest": {"sha256": digest_of_list(digests)}, "annotations": {**notes, "sha256": list(digests)},
    }  # fmt: skip


def _part(name: str, annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256(canonical(annotations))}, "annotations": annotations}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if value == value and abs(value) != float("inf") else None
            for name, value in values.items()}  # fmt: skip


def _versions() -> dict[str, str]:
    return {"nearzip": nearzip.__version__, "torch": torch.__version__, "python": platform.python_version()}
