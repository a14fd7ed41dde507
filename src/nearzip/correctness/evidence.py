"""What a measurement saw, sample by sample: digests, counts, and the samples whose prediction changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzip.budget.evaluators import Evaluation
from nearzip.correctness.samples import batch_digests
from nearzip.errors import UsageError
from nearzip.measures.attribution import Attribution, Network, jaccard
from nearzip.measures.inputs import inputs_of, rows_of
from nearzip.measures.measure import Predictions
from nearzip.tensors import Array
from nearzip.torch.evaluator import Evaluator

__all__ = ["Changed", "Evidence", "Show", "Witness"]

#: From a batch to a text or an image for each of its rows.
Show = Callable[[Any], Sequence[Any]]
#: Changed samples that are kept for the page, and classes of a cost matrix.
_MAX_CHANGED, _MAX_CLASSES = 24, 60


@dataclass(frozen=True)
class Changed:
    """A sample whose prediction changed: what it looks like, its classes, and what both networks looked at."""

    number: int
    shown: Any
    target: int | None
    before: int
    after: int
    maps: tuple[Array, Array] | None
    overlap: float | None


@dataclass(frozen=True)
class Evidence:
    """What a page shows beyond a certificate."""

    classes: Sequence[str] | None
    #: By data set: [original's class, restored's class], how many predictions.
    changes: Mapping[str, Array]
    #: None where predictions are no classes.
    n_changed: int | None
    #: By metric: a value for each sample under the original and the restored network.
    pairs: Mapping[str, tuple[Array, Array]]
    #: Makes the samples whose prediction changed, the first of them.
    changed: Callable[[], Sequence[Changed]]


@dataclass
class _Seen:
    prefix: str
    number: int
    row: int
    batch: Any
    target: int | None
    before: int
    after: int


@dataclass
class Witness:
    """Takes in every batch of a comparison."""

    classes: Sequence[str] | None = None
    show: Show | None = None
    progress: Callable[[int], None] | None = None
    digests: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    #: Predictions for which the original itself gives no number.
    n_undefined: int = 0
    _changes: dict[str, Array] = field(default_factory=dict)
    _changed: list[_Seen] = field(default_factory=list)
    _targets: Any = field(default_factory=hashlib.sha256)
    _has_targets: bool = False

    def __call__(self, prefix: str, batch: Any, seen: Predictions) -> None:
        if self.classes is not None and len(self.classes) != seen.logits.shape[-1]:
            raise UsageError(f"{len(self.classes)} names are given for {seen.logits.shape[-1]} classes")
        first = len(self.digests)
        self.digests += batch_digests(batch)
        self._count(prefix or "all", seen)
        self._keep(prefix, batch, seen, first, len(self.digests) - first)
        if self.progress is not None:
            self.progress(len(self.digests))

    @property
    def targets_digest(self) -> str | None:
        """SHA-256 of all targets, in order."""
        return self._targets.hexdigest() if self._has_targets else None

    def _count(self, name: str, seen: Predictions) -> None:
        counts = self.counts.setdefault(name.rstrip("/"), {"n": 0, "not_a_number": 0})
        before, after = seen.original_classes, seen.classes
        counts["n"] += len(after)
        self.n_undefined += int((before < 0).sum())
        counts["not_a_number"] += int((after < 0).sum())
        if not _has_classes(seen):
            if seen.targets is not None:
                self._has_targets = True
                self._targets.update(seen.targets.cpu().double().numpy().astype("<f8").tobytes())
            return
        counts["agree"] = counts.get("agree", 0) + int(((before == after) & (after >= 0)).sum())
        if seen.targets is not None:
            self._has_targets = True
            self._targets.update(seen.targets.cpu().numpy().astype("<i8").tobytes())
            right, still = before == seen.targets, after == seen.targets
            for key, which in (("worse", right & ~still), ("better", still & ~right),
                               ("other_wrong", ~right & ~still & (before != after)), ("right", still)):  # fmt: skip
                counts[key] = counts.get(key, 0) + int(which.sum())
        k = seen.logits.shape[-1]
        if k <= _MAX_CLASSES:
            table = self._changes.setdefault(name.rstrip("/"), np.zeros((k, k), np.int64))
            known = (before >= 0) & (after >= 0)
            np.add.at(table, (before[known].cpu().numpy(), after[known].cpu().numpy()), 1)

    def _keep(self, prefix: str, batch: Any, seen: Predictions, first: int, n_rows: int) -> None:
        if len(self._changed) >= _MAX_CHANGED or not _has_classes(seen):
            return
        per_row = len(seen.logits) // max(1, n_rows)
        found = (seen.classes != seen.original_classes).nonzero().flatten().tolist()
        rows = dict.fromkeys(i // max(1, per_row) for i in found if i // max(1, per_row) < n_rows)
        at = {i // max(1, per_row): i for i in reversed(found)}
        for row in list(rows)[: _MAX_CHANGED - len(self._changed)]:
            i = at[row]
            target = None if seen.targets is None else int(seen.targets[i])
            self._changed.append(_Seen(prefix, first + row, row, batch, target, int(seen.original_classes[i]),
                                       int(seen.classes[i])))  # fmt: skip

    def evidence(self, after: Evaluation, evaluator: Evaluator, tensors: Mapping[str, Any]) -> Evidence:
        """What a page needs; pictures and maps of samples that changed are made when it asks for them."""
        known = [counts["n"] - counts["agree"] for counts in self.counts.values() if "agree" in counts]
        n_changed = sum(known) if known else None
        network, reference = evaluator.networks(tensors)

        def changed() -> list[Changed]:
            return [_changed(each, self.show, network, reference) for each in self._changed]

        return Evidence(self.classes, self._changes, n_changed, after.details, changed)


def _has_classes(seen: Predictions) -> bool:
    """Whether predictions are classes, or numbers of which the largest means nothing."""
    return seen.logits.shape[-1] > 1 and not (seen.targets is not None and seen.targets.is_floating_point())


def _changed(seen: _Seen, show: Show | None, network: Network, reference: Network) -> Changed:
    batch = rows_of(seen.batch, slice(seen.row, seen.row + 1))
    shown = _picture(inputs_of(batch)[0]) if show is None else show(seen.batch)[seen.row]
    maps = overlap = None
    if inputs_of(batch).is_floating_point():
        measure = Attribution("occlusion" if _is_picture(inputs_of(batch)) else "saliency", window=4, stride=2)
        classes = torch.tensor([[seen.before]])
        theirs, own = (measure.maps(each, batch, classes) for each in (reference, network))
        maps, overlap = (theirs[0].cpu().numpy(), own[0].cpu().numpy()), float(jaccard(own, theirs))
    return Changed(seen.number, shown, seen.target, seen.before, seen.after, maps, overlap)


def _is_picture(inputs: Tensor) -> bool:
    return inputs.dim() == 4 and inputs.shape[1] in (1, 3)


def _picture(sample: Tensor) -> Any:
    """An image from 0 to 1, its own range stretched; a text of numbers for what is no image."""
    if sample.dim() == 3 and len(sample) in (1, 3) and sample.is_floating_point():
        image = sample.permute(1, 2, 0).cpu().numpy().astype(np.float64)
        low, high = image.min(), image.max()
        return (image - low) / (high - low if high > low else 1.0)
    flat = sample.flatten().tolist()
    return " ".join(f"{value:.3g}" for value in flat[:40]) + (" .." if len(flat) > 40 else "")
