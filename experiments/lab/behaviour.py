"""What is measured of a network's behaviour, by data set: costs of mistakes, names of classes, all measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from experiments.lab.data import CIFAR_MEAN, CIFAR_STD, MNIST_MEAN, MNIST_STD
from nearzip.correctness import Attribution, Boundary, Cost, Measure, Robustness
from nearzip.torch import evaluator

#: CIFAR-10's classes by what they are.
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARENTS = {
    **dict.fromkeys(("airplane", "automobile", "ship", "truck"), "vehicle"),
    **dict.fromkeys(("cat", "deer", "dog", "horse"), "mammal"),
    "mammal": "animal", "bird": "animal", "frog": "animal",
}  # fmt: skip
PERTURBATIONS = ("linf:1", "linf:2", "transfer:2", "gauss:0.08", "shift:2", "blur:0.7")


def costs(name: str, n_classes: int, text: str = "") -> list[Cost]:
    """Three of them: every change alike, by what classes are, and not symmetric."""
    return [Cost(name="cost/any"), Cost(_by_kind(name, n_classes, text), name="cost/kind"),
            Cost(_one_sided(n_classes), name="cost/one-sided")]  # fmt: skip


def _by_kind(name: str, n: int, text: str) -> Any:
    """The path in a tree of classes; the distance of two digits; kinds of characters."""
    if name == "cifar-10":
        return Cost.from_tree(PARENTS, CIFAR).d
    if name == "mnist":
        return np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / (n - 1)
    kinds = {c: "space" if c.isspace() else "letter" if c.isalpha() else "sign" for c in sorted(set(text))}
    case = {c: f"{kind} {c.isupper()}" for c, kind in kinds.items()}
    return Cost.from_tree({**case, **{case[c]: kind for c, kind in kinds.items()}}, sorted(kinds)).d


def _one_sided(n: int) -> Any:
    """A class in place of a later one costs five times the other way round, as a reading that is too low."""
    d = np.ones((n, n))
    d[np.triu_indices(n, 1)] = 5.0
    np.fill_diagonal(d, 0)
    return d / 5


def measures(name: str, n_classes: int, text: str = "") -> list[str | Measure]:
    """Of outputs and features, for all samples."""
    return ["top1", "class/*", "flips", "agreement", "kl/*", "loss", "embedding", *costs(name, n_classes, text)]


def deep_measures(name: str, n: int) -> list[Measure]:
    """What calls the networks again, on the first `n` images."""
    mean, std = (CIFAR_MEAN, CIFAR_STD) if name == "cifar-10" else (MNIST_MEAN, MNIST_STD)
    return [
        Attribution(n=n), Attribution("occlusion", n=n), Boundary(n=n), Boundary("worst", n=n),
        Robustness(PERTURBATIONS, mean=mean, std=std, n=n),
    ]  # fmt: skip


def behaviour(judges: Mapping[str, Any], tensors: Any) -> dict[str, Any]:
    """Metrics and yardsticks of restored tensors by all evaluators."""
    metrics: dict[str, float] = {}
    yardsticks: dict[str, float] = {}
    for judge in judges.values():
        found = judge.evaluation(tensors)
        metrics |= {key: round(value, 6) for key, value in found.metrics.items()}
        yardsticks |= {key: round(value, 6) for key, value in found.yardsticks.items()}
    return {"metrics": metrics, "yardsticks": yardsticks}


def judges_of(network: nn.Module, name: str, batches: list[Any], n_deep: int, text: str = "") -> dict[str, Any]:
    """Evaluators of the outputs and, for images, of what calls the networks again."""
    n_classes = network(batches[0][0][:1]).shape[-1]
    found = {"outputs": evaluator(network, batches, measures(name, n_classes, text))}
    if not text:
        found["deep"] = evaluator(network, first(batches, n_deep), deep_measures(name, n_deep))
    return found


def first(batches: list[Any], n: int) -> list[Any]:
    """The first `n` samples."""
    found, left = [], n
    for x, y in batches:
        if left > 0:
            found.append((x[:left], y[:left]))
            left -= len(x)
    return found
