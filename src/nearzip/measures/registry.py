"""Measures by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from nearzip.errors import UsageError
from nearzip.measures.attribution import METHODS, Attribution
from nearzip.measures.boundary import Boundary
from nearzip.measures.cost import Cost
from nearzip.measures.embedding import Embedding
from nearzip.measures.measure import Measure
from nearzip.measures.outputs import Agreement, ClassAccuracy, Divergence, Flips, Loss, OutputDistance, TopK
from nearzip.measures.robustness import Robustness

__all__ = ["MEASURES", "measures_of"]

#: Names and what they measure, and how they are made: a measure, or the names of several. None: the name is a pattern,
#: read in `measures_of`.
_KNOWN: dict[str, tuple[str, Callable[[], Measure] | tuple[str, ...] | None]] = {
    "top1": ("share of targets that are the most likely class", None),
    "top5": ("share of targets among the five most likely classes; top2, top3, .. as well", None),
    "class/*": ("accuracy on the samples of each class", ClassAccuracy),
    "loss": ("minus the mean cross entropy, in nats", Loss),
    "perplexity": ("minus the exponential of the mean cross entropy", lambda: Loss(exponential=True)),
    "agreement": ("share of predictions whose most likely class is the original's", Agreement),
    "churn": (
        "minus the share of predictions whose most likely class is not the original's",
        lambda: Agreement(churn=True),
    ),
    "flips": (
        "minus the share that went from right to wrong (flips/worse), and from wrong to right (flips/better)", Flips,
    ),
    "kl": ("minus KL(original || restored), mean in nats per prediction", None),
    "kl/*": ("the same, with its median and its 99 % and 99.9 % quantiles: kl/median, kl/p99, kl/p99.9", None),
    "cost": ("minus the mean cost of changed classes; nearzip.correctness.Cost takes your own costs", Cost),
    "embedding": ("features: cosine, distance, neighbours kept, structure of the class means", Embedding),
    "distance": ("minus the relative distance of the outputs; for regressors too", OutputDistance),
    "attribution": (
        "share of what both networks look at; attribution/integrated-gradients, /occlusion as well", Attribution,
    ),
    "boundary": (
        "distance to another class over the original's, at most 1: boundary/random, boundary/worst",
        ("boundary/random", "boundary/worst"),
    ),
    "robust": ("accuracy on perturbed inputs: robust/linf:2, robust/gauss:0.04, robust/blur:0.7, ..", Robustness),
}  # fmt: skip
#: Name to what it measures.
MEASURES: dict[str, str] = {name: text for name, (text, _) in _KNOWN.items()}
_MAKERS: dict[str, Callable[[], Measure]] = {
    **{name: maker for name, (_, maker) in _KNOWN.items() if callable(maker)},
    **{f"attribution/{method}": partial(Attribution, method) for method in METHODS},
    "boundary/random": Boundary,
    "boundary/worst": partial(Boundary, "worst"),
}
#: A name for several measures.
_GROUPS: dict[str, tuple[str, ...]] = {
    **{name: members for name, (_, members) in _KNOWN.items() if isinstance(members, tuple)},
    "boundary/*": ("boundary/random", "boundary/worst"),
    "attribution/*": tuple(f"attribution/{method}" for method in METHODS),
}


def measures_of(metrics: Iterable[str | Measure]) -> list[Measure]:
    """Measures from names; those given as objects are returned as they are. Raises UsageError.

    "kl", "kl/p99" and the like become one measure.

    Examples
    --------
    >>> measures_of(["top3", "kl", "flips", "kl/p99"])
    [top3, kl, kl/p99, flips]
    """
    found: list[Measure | None] = []
    divergences: list[str] = []
    at = None
    for metric in _ungrouped(metrics):
        if isinstance(metric, str) and (metric == "kl" or metric.startswith("kl/")):
            if at is None:
                at = len(found)
                found.append(None)
            divergences += list(Divergence().metrics) if metric == "kl/*" else [metric]
        else:
            found.append(_measure(metric))
    return [Divergence(divergences) if measure is None else measure for measure in found]


def _ungrouped(metrics: Iterable[str | Measure]) -> Iterator[str | Measure]:
    """The metrics with groups replaced by their members, and all perturbations in one measure."""
    perturbed = []
    for metric in metrics:
        if isinstance(metric, str) and metric.startswith("robust/") and metric != "robust/*":
            perturbed.append(metric)
        elif isinstance(metric, str):
            yield from _GROUPS.get(metric, (metric.removesuffix("/*") if metric == "robust/*" else metric,))
        else:
            yield metric
    if perturbed:
        yield Robustness(perturbed)


def _measure(metric: str | Measure) -> Measure:
    if isinstance(metric, Measure):
        return metric
    top = re.fullmatch(r"top([1-9]\d{0,5})", metric) if isinstance(metric, str) else None
    if top:
        return TopK(int(top[1]))
    if metric not in _MAKERS:
        raise UsageError(f"a metric is one of {', '.join(MEASURES)}, or a nearzip.correctness.Measure, not {metric!r}")
    return _MAKERS[metric]()
