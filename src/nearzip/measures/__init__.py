"""Measures of what a network still does the same; public as `nearzip.correctness`. Needs the extra `torch`."""

from __future__ import annotations

from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "torch", "measuring networks") from None

from nearzip.measures.attribution import Attribution, jaccard
from nearzip.measures.boundary import Boundary
from nearzip.measures.cost import Cost
from nearzip.measures.embedding import Embedding
from nearzip.measures.measure import Measure, Predictions
from nearzip.measures.outputs import Agreement, ClassAccuracy, Divergence, Flips, Loss, OutputDistance, TopK
from nearzip.measures.registry import MEASURES, measures_of
from nearzip.measures.robustness import PERTURBATIONS, Robustness

__all__ = [
    "MEASURES",
    "PERTURBATIONS",
    "Agreement",
    "Attribution",
    "Boundary",
    "ClassAccuracy",
    "Cost",
    "Divergence",
    "Embedding",
    "Flips",
    "Loss",
    "Measure",
    "OutputDistance",
    "Predictions",
    "Robustness",
    "TopK",
    "jaccard",
    "measures_of",
]
