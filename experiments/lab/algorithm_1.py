"""Delta-DNN's Algorithm 1 on points that were measured already. Without PyTorch: the pages use it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Theta in percent, section 5.2; alpha and beta and the default bound, section 5.1.
THETA, ALPHA, BETA, LAMBDA = 0.2, 0.5, 0.5, 1e-3
Point = dict[str, Any]


def loss_percent(point: Point, phi: str = "relative") -> float:
    """Loss of accuracy in percent of the original's (the paper's section 3.3, brackets of Table 1), or in points."""
    lost = -100 * float(point["accuracy_change"])
    return lost if phi == "points" else lost / (point["accuracy"] - point["accuracy_change"])


def choose(points: Sequence[Point], fallback: Point, phi: str = "relative") -> Point:
    """Algorithm 1 on points already measured: of those whose loss is below theta the best score, Phi = -loss in percent
    so that a loss lowers it; the fallback at lambda if none is."""
    best, best_score = fallback, 0.0
    for point in points:
        lost = loss_percent(point, phi)
        score = -ALPHA * lost + BETA * point["ratio"]
        if lost < THETA and score > best_score:
            best, best_score = point, score
    return best
