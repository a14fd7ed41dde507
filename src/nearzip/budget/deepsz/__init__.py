"""DeepSZ's choice of error bounds: Jin et al., HPDC 2019, sections 3.3 and 3.4."""

from nearzip.budget.deepsz.search import DeepSzSearch

__all__ = ["DeepSzSearch"]
