"""What an evaluator sees: data sets, the original's outputs, and predictions one by one with their units."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nearzip.budget.evaluators import Evaluation
from nearzip.budget.intervals import Statistic
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure, Predictions
from nearzip.network.arrays import digest_of
from nearzip.tensors import Array

__all__ = [
    "DataSet",
    "Documents",
    "Figures",
    "Loader",
    "Original",
    "Units",
    "aligned",
    "data_sets",
    "original_of",
    "per_prediction",
    "predictions",
]

#: Takes a batch; returns the document of each of its rows.
Documents = Callable[[Any], Sequence[Hashable]]
Loader = Iterable[Any]
#: PyTorch's mark of a target that does not count.
_IGNORED = -100


@dataclass
class Original:
    """What the original network gives for a batch."""

    digest: bytes
    logits: Tensor
    features: Tensor | None
    #: What measures keep about the original for this batch.
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSet:
    """One data set, and the original's outputs where a measure needs them."""

    prefix: str
    loader: Loader
    originals: list[Original] | None = None


class Figures:
    """Metrics, the samples behind them and yardsticks, of several data sets."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._statistics: dict[str, Statistic] = {}
        self._yardsticks: dict[str, float] = {}
        self._details: dict[str, tuple[Array, Array]] = {}

    def add(self, prefix: str, measures: Iterable[Measure]) -> None:
        """What the measures found on one data set."""
        for measure in measures:
            for name, value in measure.result().items():
                if isinstance(value, Statistic):
                    self._statistics[prefix + name] = value
                self._metrics[prefix + name] = value.value if isinstance(value, Statistic) else value
            self._yardsticks |= {prefix + name: value for name, value in measure.yardsticks().items()}
            self._details |= {prefix + name: pair for name, pair in measure.details().items()}

    def evaluation(self) -> Evaluation:
        return Evaluation(self._metrics, self._statistics, self._yardsticks, self._details)


def data_sets(loader: Loader | Mapping[str, Loader]) -> list[DataSet]:
    named = {f"{name}/": each for name, each in loader.items()} if isinstance(loader, Mapping) else {"": loader}
    for each in named.values():
        if isinstance(each, Iterator) or not isinstance(each, Iterable):
            raise UsageError("the loader is read at every call; give a list or a DataLoader")
    if not named:
        raise UsageError("no data set is given to evaluate on")
    return [DataSet(prefix, each) for prefix, each in named.items()]


def original_of(data: DataSet, i: int, batch: Any) -> Original:
    assert data.originals is not None
    if i >= len(data.originals) or data.originals[i].digest != digest_of(batch):
        raise UsageError("the loader gives other batches than before; take shuffle=False and no random augmentation")
    return data.originals[i]


class Units:
    """Numbers the independent units of predictions: rows of batches, or documents."""

    def __init__(self, documents: Documents | None):
        self._documents, self._n_rows = documents, 0
        self._numbers: dict[Hashable, int] = {}

    def of(self, batch: Any, logits: Tensor) -> Tensor:
        """The unit of each prediction of the next batch."""
        n, first = len(logits), self._n_rows
        self._n_rows += n
        if self._documents is None:
            return per_prediction(torch.arange(first, first + n), logits)
        named = list(self._documents(batch))
        if len(named) != n:
            raise UsageError(f"documents= gives {len(named)} documents for the {n} rows of a batch")
        numbers = [self._numbers.setdefault(document, len(self._numbers)) for document in named]
        return per_prediction(torch.tensor(numbers), logits)


def per_prediction(rows: Tensor, logits: Tensor) -> Tensor:
    """Each row's number, once for every prediction of the row."""
    each = logits[..., 0].numel() // max(1, len(logits))
    return rows.repeat_interleave(each)


def aligned(features: Tensor, logits: Tensor, layer: str) -> Tensor:
    """Features of the predictions that count: language models leave out each row's last token."""
    if features.dim() == logits.dim() and features.dim() > 2 and features.shape[1] == logits.shape[1] + 1:
        return features[:, : logits.shape[1]].flatten(0, -2)
    raise UsageError(
        f"layer {layer!r} has inputs {list(features.shape)}, the logits are {list(logits.shape)}; name another layer "
        "with features="
    )


def predictions(
    logits: Tensor, targets: Tensor | None, units: Tensor, original: Original | None, features: Tensor | None
) -> Predictions:
    """Predictions one by one, without those whose target cross entropy ignores."""
    shape = logits.shape
    logits, units = logits.flatten(0, -2), units.to(logits.device)
    before = None if original is None else original.logits.flatten(0, -2).to(logits.device)
    there = None if original is None or original.features is None else original.features.to(logits.device)
    memory = {} if original is None else original.memory
    if targets is None:
        return Predictions(logits, units, None, before, features, there, memory=memory)
    if not isinstance(targets, Tensor):
        raise UsageError(f"targets are a tensor, one for each prediction, not {type(targets).__name__}; give predict=")
    targets = targets.flatten()
    if len(targets) != len(logits):
        raise UsageError(f"{len(logits)} predictions and {len(targets)} targets; give predict=")
    kept = targets != _IGNORED
    if not targets.is_floating_point() and bool(((targets < 0) | (targets >= shape[-1]))[kept].any()):
        raise UsageError(
            f"targets lie between {int(targets[kept].min())} and {int(targets[kept].max())}; the network has "
            f"{shape[-1]} classes, numbered from 0"
        )
    if bool(kept.all()):
        return Predictions(logits, units, targets, before, features, there, memory=memory)
    before, features, there = (None if part is None else part[kept] for part in (before, features, there))
    return Predictions(logits[kept], units[kept], targets[kept], before, features, there, memory=memory)
