"""Whether a compressed network still does the same thing: measures and their confidence. Needs the extra `torch`."""

from __future__ import annotations

from nearzip.budget.intervals import Interval
from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "torch", "nearzip.correctness") from None

from nearzip.correctness.cost import Cost
from nearzip.correctness.embedding import Embedding
from nearzip.correctness.measure import Measure, Predictions
from nearzip.correctness.outputs import Agreement, ClassAccuracy, Divergence, Flips, Loss, OutputDistance, TopK
from nearzip.correctness.registry import MEASURES, measures_of

__all__ = [
    "MEASURES",
    "Agreement",
    "ClassAccuracy",
    "Cost",
    "Divergence",
    "Embedding",
    "Flips",
    "Interval",
    "Loss",
    "Measure",
    "OutputDistance",
    "Predictions",
    "TopK",
    "measures_of",
]
