"""Optimizer state in few bits, and back without PyTorch."""

from __future__ import annotations

from nearzip.moments.document import expand
from nearzip.moments.expand import expand_moments
from nearzip.moments.settings import Moments
from nearzip.moments.shrink import shrink_moments

__all__ = ["Moments", "expand", "expand_moments", "shrink_moments"]
