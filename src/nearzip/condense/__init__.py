"""How much of a network can go, what that buys, and a smaller network to show for it. Needs the extra `condense`.

`tune` searches, `compress` takes a share that is given, `fit` rebuilds a module from a file. What a `scheme` removes
(`Prune`, `Structure`, `Quantize`), a recovery (`LC`, `Gradual`, `Direct`) trains back.
"""

from __future__ import annotations

from nearzip.errors import missing_extra

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise missing_extra("PyTorch", "condense", "condensing a network") from None

from nearzip.condense.execution import sparse
from nearzip.condense.objectives import Objective
from nearzip.condense.recovery import LC, Direct, Gradual, Recovery
from nearzip.condense.result import Condensed
from nearzip.condense.schemes import Prune, Quantize, Scheme
from nearzip.condense.structure import Structure
from nearzip.condense.tune import compress, tune
from nearzip.network.fitting import fit

__all__ = [
    "LC",
    "Condensed",
    "Direct",
    "Gradual",
    "Objective",
    "Prune",
    "Quantize",
    "Recovery",
    "Scheme",
    "Structure",
    "compress",
    "fit",
    "sparse",
    "tune",
]
