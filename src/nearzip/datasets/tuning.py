"""As few bytes as the accuracy allows: the search for a codec and its setting (Table I and Figure 7 of the paper)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearzip.budget.budgets import Budgets, MaxLoss, check_budgets, losses_of, usage_of
from nearzip.budget.evaluators import Evaluation, check_original, evaluation_of, evaluator_of, name_of
from nearzip.budget.intervals import Interval, check_confidence, interval
from nearzip.datasets.codecs.base import SampleCodec
from nearzip.datasets.codecs.ladders import ladder
from nearzip.datasets.plans import Plan, Trial
from nearzip.datasets.samples import ListSamples, Samples, Spec, samples_of
from nearzip.datasets.shards import open_dataset
from nearzip.datasets.writing import write
from nearzip.errors import BudgetError, NotShownError, UsageError
from nearzip.tensors import Array

__all__ = ["CODECS_TRIED", "Status", "tune"]

#: Codecs that are tried unless the caller says which.
CODECS_TRIED = ("nearzip", "jpeg", "jpeg,chroma=4:4:4", "webp", "lossless")
_ARRAYS_TRIED = ("bounded",)


@dataclass(frozen=True)
class Status:
    """Progress of a search: trials done, about how many there will be, the latest one, the best within the budget."""

    done: int
    most: int
    latest: Trial
    best: Trial | None


def tune(
    images: Any,
    labels: Any = None,
    *,
    evaluate: Any,
    max_loss: MaxLoss,
    codecs: Iterable[str | SampleCodec] | None = None,
    confidence: float | None = None,
    progress: Callable[[Status], None] | None = None,
) -> Plan:
    """Find the codec and parameters that give the smallest file within an accuracy budget.

    Every trial is written, read back from its bytes and evaluated. Within a codec settings are bisected, so that some
    six of them are measured; a setting that cannot be smaller than what was found is not.

    Parameters
    ----------
    images, labels
        As for `write`; the labels are stored as well, so that they count.
    evaluate : callable or evaluator
        Takes the restored images, a list of arrays; returns a number, or a dict of numbers by metric; higher is better.
        `datasets.image_evaluator` makes one of a network. A function that trains a network from scratch on these images
        is one, too, and judges images for training.
    max_loss : float, str or dict
        As for `nearzip.tune`: absolute, or "2%" of the original's score; by metric or pattern.
    codecs : sequence of str or SampleCodec
        Which to try, with parameters that stay as they are: "jpeg,chroma=4:4:4", "zfp:rate,values=int32",
        "nearzip:step,rounding=0.5". Default: ours, JPEG, WebP; `bounded` for other arrays.
    confidence : float
        A trial is within a budget only if its loss is shown to be, by an evaluator that has samples.
    progress : callable
        Called with a `Status` after every trial.

    Raises
    ------
    BudgetError
        No setting is within the budget.
    Error
        `evaluate` raised, or gave no number for the original images.
    NotShownError
        With a confidence: none is shown to be.

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip import datasets
    >>> images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 1), dtype=np.uint8)
    >>> def evaluate(restored):  # put your network's accuracy here
    ...     return -float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(restored, images)]))
    >>> plan = datasets.tune(images, evaluate=evaluate, max_loss=4, codecs=["nearzip", "lossless"])
    >>> plan.losses["score"] <= 4, str(plan.codec).split(":")[0]
    (True, 'nearzip')
    """
    check_budgets(max_loss)
    samples = samples_of(images, labels)
    spec = Spec.of(samples[0])
    tried = [_family(given) for given in (codecs or (CODECS_TRIED if spec.is_image else _ARRAYS_TRIED))]
    if not tried:
        raise UsageError("no codec is given to try")
    for family in tried:
        family[0].check(spec)
    search = _Search(samples, spec, evaluate, max_loss, confidence, progress, sum(_trials(f) for f in tried))
    for family in tried:
        search.bisect(family)
    return search.plan()


def _trials(family: Sequence[SampleCodec]) -> int:
    return len(family).bit_length()


def _family(given: str | SampleCodec) -> list[SampleCodec]:
    """Settings of a codec, from the coarsest to the finest; "jpeg,chroma=4:4:4" and "zfp:rate,values=int32"."""
    if isinstance(given, SampleCodec):
        return ladder(given, None)
    at = min((k for k in (given.find(":"), given.find(",")) if k >= 0), default=len(given))
    parts = [part for part in given[at + 1 :].split(",") if part]
    knob = parts.pop(0) if parts and "=" not in parts[0] else None
    return ladder(given[:at], knob, ",".join(parts))


class _Search:
    def __init__(
        self, samples: Samples, spec: Spec, evaluate: Any, max_loss: MaxLoss, confidence: float | None,
        progress: Callable[[Status], None] | None, most: int,
    ):  # fmt: skip
        self._images = [samples[i] for i in range(len(samples))]
        self._samples: Samples = ListSamples(self._images, samples.columns, tuple(samples.classes))
        self._judge = evaluate if hasattr(evaluate, "restored") else _Plain(evaluate)
        found = confidence if confidence is not None else self._judge.confidence
        self._confidence = None if found is None else check_confidence(found)
        self._progress, self._most = progress, most
        self.trials: list[Trial] = []
        self._judge.check(len(self._images))
        what = "the original images"
        self._own = check_original(evaluation_of(lambda: self._judge.original(self._images), what), what)
        self._budgets = Budgets.of(max_loss, self._own.metrics)

    @property
    def best(self) -> Trial | None:
        return min((t for t in self.trials if t.fits), key=lambda t: t.n_bytes, default=None)

    def bisect(self, family: Sequence[SampleCodec]) -> None:
        """Find the coarsest setting within the budget by bisection, assuming that all finer ones are within it too."""
        low, high = 0, len(family) - 1
        while low <= high:
            middle = (low + high) // 2
            if self._fits(family[middle]):
                high = middle - 1
            else:
                low = middle + 1

    def _fits(self, codec: SampleCodec) -> bool:
        data = io.BytesIO()
        write(data, self._samples, codec=codec)
        if self.best is not None and data.tell() >= self.best.n_bytes:
            return True  # whether it is or not: only coarser settings can be smaller
        trial = self._measured(codec, data.getvalue())
        self.trials.append(trial)
        if self._progress:
            self._progress(Status(len(self.trials), max(self._most, len(self.trials)), trial, self.best))
        return trial.fits

    def _measured(self, codec: SampleCodec, data: bytes) -> Trial:
        with open_dataset(data) as reader:
            restored = reader.some(0, len(reader))
        found = evaluation_of(
            lambda: self._judge.restored(restored, lambda images: _restored(codec, images)), f"the trial of {codec}"
        )
        losses = losses_of(self._own.metrics, found.metrics)
        intervals = self._intervals(found)
        bounds = {**losses, **{name: each.upper for name, each in intervals.items()}}
        usage = usage_of(bounds, self._budgets.allowed, self._own.metrics)
        return Trial(codec, len(data), losses, usage, intervals)

    def _intervals(self, found: Evaluation) -> dict[str, Interval]:
        if self._confidence is None:
            return {}
        bounds = {}
        for name, confidence in self._budgets.confidences(self._confidence).items():
            own, theirs = self._own.statistics.get(name), found.statistics.get(name)
            if own is None or theirs is None:
                raise UsageError(f"confidence needs the samples behind {name!r}; take datasets.image_evaluator")
            bounds[name] = interval(own, theirs, confidence)
        return bounds

    def plan(self) -> Plan:
        best = self.best
        if best is None:
            raise self._nothing()
        return Plan(
            best, tuple(self.trials), dict(self._own.metrics), dict(self._budgets.allowed), len(self._images),
            sum(image.nbytes for image in self._images), self._judge.name, self._confidence,
        )  # fmt: skip

    def _nothing(self) -> BudgetError:
        nearest = min(self.trials, key=lambda t: t.usage)
        losses = ", ".join(
            f"{name} {nearest.losses[name]:.6g} of {most:g}" for name, most in self._budgets.allowed.items()
        )
        said = f"within the budget after {len(self.trials)} trials; the best, {nearest.codec}, loses {losses}"
        if any(i.verdict(self._budgets.allowed[n]) == "not shown" for n, i in nearest.intervals.items()):
            return NotShownError(f"no codec is shown to be {said}; give more images, or allow more")
        return BudgetError(f"no codec is {said}; allow more, or add 'lossless' to the codecs")


class _Plain:
    """A function of a list of images, or an evaluator of a dict of arrays."""

    def __init__(self, evaluate: Any):
        self._evaluate = evaluate
        self._evaluator = evaluator_of(evaluate)
        self.name = name_of(evaluate)
        self.confidence = self._evaluator.confidence

    def check(self, n_images: int) -> None:
        """Nothing is known of a function."""

    def original(self, images: Sequence[Array]) -> Evaluation:
        return self._evaluator.evaluation([image.copy() for image in images])  # type: ignore[arg-type]

    def restored(self, images: Sequence[Array], restore: Any) -> Evaluation:
        return self._evaluator.evaluation(list(images))  # type: ignore[arg-type]


def _restored(codec: SampleCodec, images: Any) -> list[Array]:
    data = io.BytesIO()
    write(data, images, codec=replace(codec))
    with open_dataset(data.getvalue()) as reader:
        return [np.array(image) for image in reader.some(0, len(reader))]
