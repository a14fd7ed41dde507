"""Measures of a network's outputs: right or wrong, the same as the original's, how far apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearzip.budget.intervals import Quantile, Statistic
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure, PerPrediction, Predictions, Units, check_counts

__all__ = ["Agreement", "ClassAccuracy", "Divergence", "Flips", "Loss", "OutputDistance", "TopK"]


def _targets(batch: Predictions) -> Tensor:
    assert batch.targets is not None
    return batch.targets


def _original(batch: Predictions) -> Tensor:
    assert batch.original is not None
    return batch.original


class TopK(PerPrediction):
    """ "top1", "top5", ..: the share of targets among the k most likely classes."""

    needs_targets = needs_classes = trainable = True

    def __init__(self, k: int = 1):
        check_counts("top-k", k=k)
        self.k = k
        super().__init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"top{self.k}"

    def values(self, batch: Predictions) -> Tensor:
        if self.k == 1:
            return batch.classes.eq(_targets(batch))
        best = batch.logits.topk(min(self.k, batch.logits.shape[-1]), dim=-1).indices
        return (best == _targets(batch).unsqueeze(-1)).any(-1) & (batch.classes >= 0)

    def loss(self, batch: Predictions) -> Tensor:
        return functional.cross_entropy(batch.logits, _targets(batch))


class Loss(PerPrediction):
    """ "loss": minus the cross entropy, in nats. "perplexity" (`exponential`): minus the exponential of its mean."""

    needs_targets = needs_classes = trainable = True

    def __init__(self, exponential: bool = False):
        self.exponential = exponential
        super().__init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return "perplexity" if self.exponential else "loss"

    def values(self, batch: Predictions) -> Tensor:
        return -functional.cross_entropy(batch.logits.double(), _targets(batch), reduction="none")

    def result(self) -> dict[str, Statistic | float]:
        return {self.name: self._units.mean(exponential=self.exponential)}

    def loss(self, batch: Predictions) -> Tensor:
        return functional.cross_entropy(batch.logits, _targets(batch))


class Agreement(PerPrediction):
    """ "agreement": the share of predictions whose most likely class is the original's.

    "churn" (`churn`): minus the share that is not.
    """

    needs_original = needs_classes = trainable = True

    def __init__(self, churn: bool = False):
        self.churn = churn
        super().__init__()

    @property
    def name(self) -> str:  # type: ignore[override]
        return "churn" if self.churn else "agreement"

    def values(self, batch: Predictions) -> Tensor:
        return (batch.classes == batch.original_classes) & (batch.classes >= 0)

    def result(self) -> dict[str, Statistic | float]:
        return {self.name: self._units.mean(offset=-1.0 if self.churn else 0.0)}

    def loss(self, batch: Predictions) -> Tensor:
        """KL(original || trained): it tells which class is the runner-up, which the original's first class does not."""
        return _soft_divergence(batch).mean()


class Flips(Measure):
    """Predictions that became wrong, and predictions that became right.

    "flips/worse" is minus the share of predictions that went from right to wrong (negative flips), "flips/better" the
    share that went from wrong to right. Accuracy can stay the same while both are large.
    """

    needs_targets = needs_original = needs_classes = trainable = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._kept, self._gained = Units(), Units()

    def __repr__(self) -> str:
        return "flips"

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        before, after = batch.original_classes.eq(_targets(batch)), batch.classes.eq(_targets(batch))
        self._kept.add(batch.units, ~(before & ~after))
        self._gained.add(batch.units, after & ~before)

    def result(self) -> dict[str, Statistic | float]:
        return {"flips/worse": self._kept.mean(offset=-1.0), "flips/better": self._gained.mean()}

    def loss(self, batch: Predictions) -> Tensor:
        """KL(original || trained) over the predictions that are right in the original.

        Focal distillation of "Positive-Congruent Training" (arXiv 2011.09161).
        """
        right = batch.original_classes.eq(_targets(batch))
        return (_soft_divergence(batch) * right).sum() / right.sum().clamp(min=1)


class ClassAccuracy(Measure):
    """ "class/0", "class/1", ..: the accuracy on the samples of each class.

    Parameters
    ----------
    names : sequence of str or None
        Names in place of numbers: "class/cat". Classes without samples have no metric.
    """

    needs_targets = needs_classes = trainable = True

    def __init__(self, names: Sequence[str] | None = None):
        self.names = None if names is None else tuple(names)
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise UsageError("the names of classes are not distinct")
        self.reset()

    def reset(self) -> None:
        self._units: dict[int, Units] = {}

    def __repr__(self) -> str:
        return "class/*" if self.names is None else f"class/* {list(self.names)}"

    def check(self, batch: Predictions) -> None:
        super().check(batch)
        if self.names is not None and len(self.names) != batch.logits.shape[-1]:
            raise UsageError(f"{len(self.names)} names are given for {batch.logits.shape[-1]} classes")

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        targets, right = _targets(batch), batch.classes.eq(_targets(batch))
        for k in sorted(set(targets.tolist())):
            members = targets == k
            self._units.setdefault(k, Units()).add(batch.units[members], right[members])

    def result(self) -> dict[str, Statistic | float]:
        return {f"class/{self.names[k] if self.names else k}": self._units[k].mean() for k in sorted(self._units)}

    def loss(self, batch: Predictions) -> Tensor:
        """Cross entropy in which all classes of the batch have the same weight."""
        targets = _targets(batch)
        counts = targets.bincount(minlength=batch.logits.shape[-1])
        weights = counts.clamp(min=1).reciprocal()[targets].to(batch.logits.dtype)
        losses = functional.cross_entropy(batch.logits, targets, reduction="none")
        return (losses * weights).sum() / weights.sum()


#: Metric to the share of predictions that do not exceed it; None: the mean.
_DIVERGENCES = {"kl": None, "kl/median": 0.5, "kl/p99": 0.99, "kl/p99.9": 0.999}


class Divergence(Measure):
    """Minus KL(original || restored), in nats per prediction: "kl" its mean, "kl/median", "kl/p99" and "kl/p99.9".

    Parameters
    ----------
    metrics : sequence of str
        Which of them.
    """

    needs_original = needs_classes = trainable = True

    def __init__(self, metrics: Sequence[str] = tuple(_DIVERGENCES)):
        unknown = [name for name in metrics if name not in _DIVERGENCES]
        if unknown or not metrics:
            raise UsageError(f"divergences are {', '.join(_DIVERGENCES)}, not {unknown[0] if unknown else 'nothing'}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.reset()

    def reset(self) -> None:
        self._units, self._values = Units(), list[tuple[Tensor, Tensor]]()

    def __repr__(self) -> str:
        return ", ".join(self.metrics)

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        values = _divergence(batch)
        self._units.add(batch.units, -values)
        if self.metrics != ("kl",):
            self._values.append((values.detach().cpu(), batch.units.cpu()))

    def result(self) -> dict[str, Statistic | float]:
        found: dict[str, Statistic | float] = {}
        for name in self.metrics:
            share = _DIVERGENCES[name]
            found[name] = self._units.mean() if share is None else self._quantile(share)
        return found

    def _quantile(self, share: float) -> Quantile:
        if not self._values:
            return Quantile(np.zeros(0), np.zeros(0, np.int64), share)
        values, units = (torch.cat(part).numpy() for part in zip(*self._values, strict=True))
        return Quantile(values, units, share)

    def loss(self, batch: Predictions) -> Tensor:
        return _soft_divergence(batch).mean()


def _divergence(batch: Predictions) -> Tensor:
    ours, theirs = (functional.log_softmax(x.double(), dim=-1) for x in (batch.logits, _original(batch)))
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def _soft_divergence(batch: Predictions) -> Tensor:
    """The same in the network's own precision, to train on."""
    ours, theirs = (functional.log_softmax(x, dim=-1) for x in (batch.logits, _original(batch).to(batch.logits.dtype)))
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


class OutputDistance(PerPrediction):
    """ "distance": minus the distance of the outputs to the original's, relative to its length; for regressors too."""

    name = "distance"
    needs_original = trainable = True

    def values(self, batch: Predictions) -> Tensor:
        ours, theirs = batch.logits.double(), _original(batch).double()
        scale: Tensor = theirs.norm(dim=-1).clamp(min=torch.finfo(theirs.dtype).tiny)
        # Equal outputs are at distance 0, outputs beside an original of length 0 included.
        distances: Tensor = torch.linalg.vector_norm(ours - theirs, dim=-1)
        return -distances / scale

    def loss(self, batch: Predictions) -> Tensor:
        return -self.values(batch).mean()
